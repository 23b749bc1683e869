"""Pickles as torch writes them, read without torch; and as attackers write them."""

import datetime
import functools
import importlib
import os
import pickle
import shutil
import subprocess
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.files.headers import Stored
from pipelines.files.machine import Inert
from pipelines.files.pickles import read_pickle
from pipelines.models.checkpoint import map_tensors
from tests.attacks import pickled, storage, tensor, text, zipped

KINDS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
)  # fmt: skip


def some() -> dict[str, Tensor]:
    """Tensors of every number format and of the layouts that real files have."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(5, 7, generator=generator)
    shapes = (), (0,), (3,), (2, 3, 5, 7)
    made = {f"{k} {shape}": torch.rand(shape, generator=generator).to(k) for k in KINDS for shape in shapes}
    return made | {"transposed": base.T, "part": base[1:3, 2:5], "tied": base, "expanded by one": base[0].expand(1, 7)}


def same(found: Tensor, expected: Tensor) -> bool:
    bits = [each.contiguous().reshape(-1).view(torch.uint8).tolist() for each in (found, expected)]
    return (found.dtype, found.shape, bits[0]) == (expected.dtype, expected.shape, bits[1])


@pytest.mark.parametrize("zipped_form", [True, False])
def test_tensors_are_what_torch_reads(tmp_path: Path, zipped_form: bool) -> None:
    path, tensors = tmp_path / "a.ckpt", some()
    if not zipped_form:  # torch itself cannot read what it writes of these in that form
        tensors = {name: value for name, value in tensors.items() if "float8" not in name and "uint16" not in name}
    torch.save({"state_dict": OrderedDict(tensors)}, path, _use_new_zipfile_serialization=zipped_form)
    expected = torch.load(path, weights_only=True)["state_dict"]
    found = map_tensors(path)
    assert found.keys() == expected.keys() == tensors.keys()
    for name, value in expected.items():
        assert same(found[name], value), name
        assert found[name].stride() == value.stride() or value.numel() < 2, name


@pytest.mark.parametrize("zipped_form", [True, False])
def test_what_stands_beside_weights_is_read_over(tmp_path: Path, zipped_form: bool) -> None:
    """A module's state, parameters, and what trainers keep."""
    layer = nn.Linear(3, 2)
    content = {
        "state_dict": layer.state_dict(),
        "parameter": nn.Parameter(torch.ones(2)),
        "numbers": [1, -1, 300, 70_000, 2**40, -(2**70), 0.5, True, None, "☃", ("a", (1,)), {"b": b"\xff"}],
        "others": [torch.Size((1, 2)), torch.device("cpu"), Counter("aab"), {1, 2}],
    }
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped_form)
    found = read_pickle(path)
    assert list(map_tensors(path)) == ["weight", "bias"]
    assert isinstance(found["parameter"], Stored)
    assert found["numbers"][:-2] == content["numbers"][:-2]
    assert found["numbers"][-2] == ("a", (1,))
    assert all(isinstance(other, Inert) for other in found["others"])


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Their texts are bytes, and an OrderedDict is called with its items."""
    pair = b"](U\x01a" + tensor((2,), (1,)) + b"e"
    path = tmp_path / "a.pth"
    path.write_bytes(zipped(b"\x80\x02ccollections\nOrderedDict\n](" + pair + b"e\x85R.", **{"data/0": bytes(16)}))
    assert map_tensors(path)["a"].tolist() == [0, 0]


class Call:
    """Unpickling it would call the function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("zipped_form", [True, False])
def test_what_does_harm_when_it_is_called_is_refused_by_name(tmp_path: Path, zipped_form: bool) -> None:
    path, proof = tmp_path / "a.pt", tmp_path / "ran"
    for value, name in (
        (Call(os.system, f"touch {proof}"), "posix.system"),
        (Call(eval, f"open({str(proof)!r}, 'w')"), "__builtin__.eval"),
        (Call(getattr, Path, "touch"), "__builtin__.getattr"),
        (Call(subprocess.Popen, ["touch", str(proof)]), "commands.Popen"),  # which it was called in Python 2
        (Call(shutil.copy, "/etc/hostname", str(proof)), "shutil.copy"),
        (Call(importlib.import_module, "antigravity"), "importlib.import_module"),
        (Call(functools.partial(os.system, f"touch {proof}")), "posix.system"),
        (Call(torch.hub.load, "owner/name", "model"), "torch.hub.load"),
        (Call(np.testing.runstring, f"open({str(proof)!r}, 'w')", {}), "numpy.testing._private.utils.runstring"),
        (torch.zeros(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    ):
        torch.save({"a": value}, path, _use_new_zipfile_serialization=zipped_form)
        with pytest.raises(ValueError, match=f"^it asks for {name}$"):
            read_pickle(path)
    assert not proof.exists()


class Strange(dict[str, int]):
    """A class that nobody here knows, and whose objects are dicts."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (), {"attribute": 1}, iter([1]), iter(self.items())

    def append(self, value: object) -> None:
        """What unpickling adds."""


TRAINERS: dict[str, Any] = {
    "lightning's callbacks": {
        "callbacks": {Strange: Strange(a=1), "path": Path("a"), "when": datetime.date(2024, 1, 1)}
    },
    "numpy's scalars": {"loss": np.float64(0.5), "many": np.ones(3), "kind": np.dtype("f2"), "step": np.int64(3)},
    "arguments": {"hyper_parameters": Namespace(a=1, b=Strange(c=2)), "partial": functools.partial(int, base=2)},
    "sets and keys": {"set": {1, 2}, "frozen": frozenset((3,)), ("a", "tuple"): 1, b"bytes": bytearray(3), None: ...},
    "an optimizer": {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}]},
    "nothing": {},
}


@pytest.mark.parametrize("beside", TRAINERS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_trainers_keep_beside_weights_is_inert(tmp_path: Path, beside: str, protocol: int) -> None:
    path, values = tmp_path / "a.ckpt", torch.arange(6.0).reshape(2, 3)
    torch.save({"state_dict": {"w": values}} | TRAINERS[beside], path, pickle_protocol=protocol)
    assert {name: tensor.tolist() for name, tensor in map_tensors(path).items()} == {"w": values.tolist()}


def of_device(values: Tensor) -> Call:
    """How torch 1.12 to 2.0 wrote a tensor of a Mac's GPU: as a numpy array."""
    array = values.numpy()
    return Call(torch._utils._rebuild_device_tensor_from_numpy, array, values.dtype, "mps:0", False)  # type: ignore


EMBEDDINGS: dict[str, Callable[[Tensor], Any]] = {
    "ParameterDict": lambda v: nn.ParameterDict({"*": nn.Parameter(v)}),
    "OrderedDict": lambda v: OrderedDict({"*": v}),
    "defaultdict": lambda v: defaultdict(list, {"*": v}),
    "a class of nobody": lambda v: Strange({"*": v}),  # type: ignore[dict-item]
    "of a Mac": lambda v: {"*": of_device(v)},
    "of a Mac, by columns": lambda v: {"*": of_device(v.T.contiguous().T)},
}


@pytest.mark.parametrize("form", EMBEDDINGS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("zipped_form", [True, False])
def test_embeddings_of_all_programs_are_read(tmp_path: Path, form: str, kind: torch.dtype, zipped_form: bool) -> None:
    path, values = tmp_path / "a.pt", torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(kind)
    content = {"string_to_token": {"*": 265}, "string_to_param": EMBEDDINGS[form](values), "name": "a", "step": 9}
    torch.save(content, path, _use_new_zipfile_serialization=zipped_form)
    (name, found), *others = map_tensors(path).items()
    assert (name, others) == ("string_to_param.*", [])
    assert same(found, values)


def test_weights_are_found_where_webui_looks(tmp_path: Path) -> None:
    path, weights = tmp_path / "a.ckpt", {"w": torch.ones(2)}
    for content in (weights, {"state_dict": weights}, {"state_dict": {"state_dict": weights, "x": torch.ones(1)}}):
        torch.save(content, path)
        assert list(map_tensors(path)) == ["w"]


def test_a_whole_module_has_the_names_of_its_state(tmp_path: Path) -> None:
    module, path = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3))), tmp_path / "a.pth"
    torch.save(module, path)
    assert {name: value.tolist() for name, value in map_tensors(path).items()} == {
        name: value.tolist() for name, value in module.state_dict().items()
    }


GOOD = {"data/0": bytes(16)}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pickle.dumps({"a": 1}, protocol=2), "none that torch wrote"),
        (pickle.dumps({"a": 1}, protocol=4), "none that torch wrote"),
        (zipped(b"\x80\x02"), "cut or too long"),
        (zipped(b"\x80\x02."), "takes more from the stack"),
        (zipped(b"\x80\x02}t."), "lacks a mark"),
        (zipped(b"\x80\x02(a."), "takes more from the stack"),
        (zipped(b"\x80\x02h\x07."), "did not remember"),
        (zipped(b"\x80\x02NNR."), "what cannot be called"),
        (zipped(b"\x80\x02d."), "instruction b'd'"),
        (zipped(b"\x80\x02" + text("a") + b"](NNe\x93."), "no short text"),
        (zipped(b"\x80\x02" + text("os\n") + text("system") + b"\x93."), "no short text"),
        (zipped(b"\x80\x04" + text("os") + text("system") + b"\x93."), "it asks for os.system"),
        (zipped(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."), "too many or too few"),
        (zipped(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + b"N" * 999 + b"tR."), "too many or too few"),
        (zipped(b"\x80\x02c" + b"x" * 300 + b"\n\n."), "a name in its pickle is too long"),
        (zipped(b"\x80\x02}]Ns."), "no plain value"),
        (zipped(b"\x80\x02Na."), "takes more from the stack"),
        (zipped(b"\x80\x02NNa."), "adds to what is no list"),
        (zipped(b"\x80\x02NQ."), "names storages in no known way"),
        (zipped(b"\x80\x02" + storage(4, "StrangeStorage") + b".", **GOOD), "a storage of no known type"),
        (zipped(b"\x80\x02(" + storage(4) + storage(5) + b"t.", **GOOD), "names one storage in two ways"),
        (zipped(pickled(tensor((2,), (1,)))), "a storage is missing"),
        (zipped(pickled(tensor((2,), (1, 1))), **GOOD), "more sizes than strides"),
        (zipped(pickled(tensor((1,) * 9, (1,) * 9)), **GOOD), "no readable shape"),
        (zipped(pickled(tensor((2,), (1,))), **GOOD, byteorder=b"big"), "big-endian"),
        (zipped(pickled(text("a")), **{"b/data.pkl": b""}), "none that torch wrote"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_torch_does_not_write_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_pickle(path)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for form in (True, False):
        torch.save({"a": torch.ones(5), "b": [torch.ones(3)]}, path, _use_new_zipfile_serialization=form)
        whole = path.read_bytes()
        for length in range(0, len(whole) - 1, 7):
            path.write_bytes(whole[:length] or b"\0")
            with pytest.raises((ValueError, zipfile.BadZipFile)):
                read_pickle(path)


def test_changed_bytes_never_raise_what_is_not_caught(tmp_path: Path) -> None:
    """Whatever is read from a changed file lies inside it."""
    path, chance = tmp_path / "a.pt", torch.Generator().manual_seed(0)
    for form in (True, False):
        torch.save({"a": torch.ones(5), "b": nn.Linear(2, 2).state_dict()}, path, _use_new_zipfile_serialization=form)
        whole = path.read_bytes()
        for _ in range(500):
            changed = bytearray(whole)
            for place in torch.randint(len(whole), (3,), generator=chance).tolist():
                changed[place] = int(torch.randint(256, (), generator=chance))
            path.write_bytes(changed)
            try:
                found = map_tensors(path)
            except Exception as error:
                assert type(error).__name__ == "ModelError"  # noqa: PT017
            else:
                assert sum(tensor.nbytes for tensor in found.values()) < 10 * len(whole)
