"""Names of a container's models."""

from collections.abc import Iterator, Mapping

import pytest

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.models import ModelNames, closest_first, stem
from pipelines.errors import InvalidInput

MODELS = ModelNames(
    identities={
        "pastel-mix": ModelIdentity(name="pastelmix-better-vae-fp16", sha256="0f0eaaa61e" + "0" * 54),
        "sdxl": ModelIdentity(name="sd_xl_base_1.0", sha256="31e35c80fc" + "1" * 54),
        "folder": ModelIdentity(name="unpacked", sha256="abcdefabcd" + "2" * 54, folder=True),
        "twin": ModelIdentity(name="sd_xl_base_1.0", sha256="31e35c80ff" + "3" * 54),
    },
    broken={"animagine-xl-4": "the file ends early.", "sdxl-refiner": "no network"},
    files={"sdxl-refiner": "sd_xl_refiner_1.0.safetensors"},
)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("pastel-mix", "pastel-mix"),
        ("Pastel-Mix", "pastel-mix"),
        ("PastelMix-Better-VAE-fp16.safetensors", "pastel-mix"),
        (r"anime\pastelmix-better-vae-fp16.ckpt [0f0eaaa61e]", "pastel-mix"),
        ("another name [0F0EAAA61E]", "pastel-mix"),  # the hash comes before the name
        ("0f0eaaa61e", "pastel-mix"),
        ("sd_xl_base_1.0", "sdxl"),  # only these have a dot
        ("sd_xl_base_1.0 [31e35c80ff]", "twin"),  # the whole title comes before the hash
        ("sd_xl_base_1.0 [0000000000]", "sdxl"),
        ("unpacked [0000000000]", "folder"),
        ("animagine-xl-4", None),
        ("other", None),
        ("other [0000000000]", None),
        ("", None),
        ("3", None),
        ("31e35c8", None),  # too few digits to tell files apart
        ("x [31e35c8]", None),
    ],
)
def test_what_a_name_means(text: str, label: str | None) -> None:
    assert MODELS.find(text) == label


@pytest.mark.parametrize(
    ("label", "text", "differs"),
    [
        ("sdxl", "sd_xl_base_1.0 [31e35c80fc]", False),
        ("sdxl", "sd_xl_base_1.0", False),
        ("sdxl", "sd_xl_base_1.0 [0000000000]", True),
        ("sdxl", "sd_xl_base_1.0 [31e35c]", True),
        ("folder", "unpacked [0000000000]", False),  # cannot be compared
    ],
)
def test_a_hash_tells_files_of_one_name_apart(label: str, text: str, differs: bool) -> None:
    assert MODELS.differs(label, text) == differs


def test_the_closest_name_comes_first() -> None:
    assert closest_first("sdxll.safetensors [0123456789]", MODELS.identities)[0] == "sdxl"
    assert closest_first("pastel", MODELS.identities)[0] == "pastel-mix"
    assert refused("pastelmixx").startswith(
        "model='pastelmixx': is not one of this container's models. The models here are pastel-mix, "
    )


def refused(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        MODELS.meant("model", text)
    return str(caught.value)


def test_a_broken_model_tells_why() -> None:
    told = refused("Animagine-XL-4.safetensors")
    assert "'Animagine-XL-4.safetensors': this model cannot be used here: the file ends early. The models here" in told
    assert "this model cannot be used here: no network. The" in refused("sd_xl_refiner_1.0 [7440042bbd]"), (
        "WebUI's title"
    )


def test_a_name_with_another_hash_tells_the_hash_here() -> None:
    told = "model='SDXL [0123456789]': sdxl here is 31e35c80fc. Leave out the hash to use this one."
    assert refused("SDXL [0123456789]") == told
    assert MODELS.meant("model", "SDXL [31e35c80fc]") == "sdxl"
    odd = ModelNames(identities={"a [0123456789]": ModelIdentity(name="a [0123456789]", sha256="f" * 64)})
    assert odd.meant("model", "a [0123456789]") == "a [0123456789]", "the file is called so"


def test_only_the_end_of_a_name_is_an_extension() -> None:
    assert stem("x/My.Mix.safetensors") == "my.mix"
    assert stem("kl-f8.vae.pt") == "kl-f8"
    assert stem("a.ptolemy") == "a.ptolemy"
    assert stem("a.vae-b.ckpt") == "a.vae-b"


def test_what_a_request_calls_a_model_comes_before_the_name_of_another_file() -> None:
    one, other = (ModelIdentity(name=name, sha256=digit * 64) for name, digit in (("b", "1"), ("c", "2")))
    models = ModelNames(identities={"a": one, "b": other, "deadbeef": one})
    assert models.find("B.safetensors") == "b"
    assert models.find("c") == "b"
    assert models.find("deadbeef") == "deadbeef", "it could be a hash, too"


class Slow(Mapping[str, ModelIdentity]):
    """Models whose hashes nobody should wait for."""

    def __getitem__(self, name: str) -> ModelIdentity:
        raise AssertionError(f"waited for {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(["first", "second"])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("text", ["second", "Second.safetensors", "x/second", "file.ckpt"])
def test_a_name_needs_no_hash(text: str) -> None:
    models = ModelNames(identities=Slow(), files={"first": "other", "second": "file"})
    assert models.meant("model", text) == "second"
