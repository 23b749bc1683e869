"""Names of a container's models."""

import pytest

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.models import ModelNames, closest_first

MODELS = ModelNames(
    identities={
        "pastel-mix": ModelIdentity(name="pastelmix-better-vae-fp16", sha256="0f0eaaa61e" + "0" * 54),
        "sdxl": ModelIdentity(name="sd_xl_base_1.0", sha256="31e35c80fc" + "1" * 54),
        "folder": ModelIdentity(name="unpacked", sha256="abcdefabcd" + "2" * 54, folder=True),
        "twin": ModelIdentity(name="sd_xl_base_1.0", sha256="31e35c80ff" + "3" * 54),
    },
    broken={"animagine-xl-4": "the file ends early."},
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
        ("folder", "unpacked [0000000000]", False),  # cannot be compared
    ],
)
def test_a_hash_tells_files_of_one_name_apart(label: str, text: str, differs: bool) -> None:
    assert MODELS.differs(label, text) == differs


def test_the_closest_name_comes_first() -> None:
    assert closest_first("sdxll.safetensors [0123456789]", MODELS.identities)[0] == "sdxl"
    assert closest_first("pastel", MODELS.identities)[0] == "pastel-mix"
    told = str(MODELS.refusal("model", "pastelmixx"))
    assert told.startswith(
        "model='pastelmixx': is not one of this container's models. The models here are pastel-mix, "
    )


def test_a_broken_model_tells_why() -> None:
    told = str(MODELS.refusal("model", "Animagine-XL-4.safetensors"))
    assert "'Animagine-XL-4.safetensors': this model cannot be used here: the file ends early. The models here" in told
