"""Headers of safetensors files, as programs write them and as attackers do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.files.headers import ITEM_SIZES, TENSORS_MAX, read_header
from pipelines.models.checkpoint import NUMBER_FORMATS, map_tensors
from tests.attacks import of_zeros, safetensors

KINDS = [kind for kind in NUMBER_FORMATS.values() if kind.is_floating_point or kind in (torch.int64, torch.bool)]


def test_number_formats_have_torchs_sizes() -> None:
    assert {name: kind.itemsize for name, kind in NUMBER_FORMATS.items()} == ITEM_SIZES


def test_tensors_are_what_the_formats_own_library_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{kind} {shape}": torch.rand(shape, generator=generator).to(kind)
        for kind in KINDS
        for shape in ((), (0,), (3,), (2, 0, 2), (2, 3, 5, 7), (1, 1, 1, 1, 1, 1))
    }
    texts = {"ss_output_name": 'a "quoted" {name}, ☃', "empty": "", "ss_tags": json.dumps({"a": {"b": 1}})}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, texts)
    assert read_header(path).texts == texts
    with safe_open(path, "pt") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    found = map_tensors(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape, found[name].stride()) == (
            tensor.dtype, tensor.shape, tensor.stride(),
        )  # fmt: skip
        assert found[name].tolist() == tensor.tolist(), name


def test_values_at_odd_places_are_read(tmp_path: Path) -> None:
    """Old files have a header of any length."""
    values = torch.arange(6, dtype=torch.float32)
    header = b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    for spaces in range(8):
        path = tmp_path / "a.safetensors"
        path.write_bytes(safetensors(header + b" " * spaces, values.numpy().tobytes()))
        assert torch.equal(map_tensors(path)["a"], values.view(2, 3))


def test_what_is_written_to_tensors_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    before = path.read_bytes()
    map_tensors(path)["a"].fill_(1)
    assert path.read_bytes() == before


ONE = b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "has no { where"),
        (b"[]", "has no { where"),
        (b"{" + ONE, "has no , where"),
        (b"{" + ONE + b",}", 'has no " where'),
        (b"{" + ONE + b"}x", "something follows"),
        (b"{" + ONE + b"," + ONE + b"}", "holds a twice"),
        (b'{"a":"b"}', "in no known way"),
        (b'{"a":[1]}', "in no known way"),
        (b'{"a":{"shape":{}}}', "in no known way"),
        (b'{"a":{"dtype":"U8"}}', "no readable shape or place"),
        (ONE.join((b"{", b"}")).replace(b"[2]", b"[2.0]"), "no readable shape or place"),
        (ONE.join((b"{", b"}")).replace(b"[2]", b"[true,2]"), "no readable shape or place"),
        (ONE.join((b"{", b"}")).replace(b"[2]", b"[-1,-2]"), "no readable shape or place"),
        (ONE.join((b"{", b"}")).replace(b"[2]", b"[1,1,1,1,1,1,1,1,2]"), "no readable shape or place"),
        (ONE.join((b"{", b"}")).replace(b"[0,2]", b"[0,2,2]"), "no readable shape or place"),
        (ONE.join((b"{", b"}")).replace(b"[2]", b"[3]"), "does not fill its place"),
        (ONE.join((b"{", b"}")).replace(b"U8", b"F4"), "unknown number format"),
        (ONE.join((b"{", b"}")).replace(b'"U8"', b"8"), "unknown number format"),
        (ONE.join((b"{", b"}")).replace(b"[0,2]", b"[1,3]"), "overlap or leave gaps"),
        (ONE.join((b"{", b"}")).replace(b'"a"', b'"\\ud800"'), "control characters"),
        (ONE.join((b"{", b"}")).replace(b'"a"', b'"\\n"'), "control characters"),
        (b'{"__metadata__":{"a":{}}}', 'has no " where'),
        (b'{"__metadata__":{"a":1}}', 'has no " where'),
        (b'{"' + b"x" * 501 + ONE[2:] + b"}", "has 501 characters"),
        (b"{" + ONE.replace(b"U8", b" " * 1001) + b"}", "in no known way"),
    ],
)
def test_what_is_no_header_is_refused(tmp_path: Path, header: bytes, told: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, bytes(2)))
    with pytest.raises(ValueError, match=told):
        read_header(path)


def test_no_more_tensors_than_any_real_file_has(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(of_zeros({f"a{k}": (0,) for k in range(TENSORS_MAX)}))
    assert len(read_header(path).tensors) == TENSORS_MAX
    path.write_bytes(of_zeros({f"a{k}": (0,) for k in range(TENSORS_MAX + 1)}))
    with pytest.raises(ValueError, match="more than 20000 tensors"):
        read_header(path)
