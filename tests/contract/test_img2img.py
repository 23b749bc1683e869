"""Pictures and masks over HTTP."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from script.cog_server import CogServer, reasons
from tests.contract.pictures import DRAFT, ask, draw, parameters, picture

INPUTS = {name: DRAFT[name] for name in ("seed", "num_inference_steps")}


def uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def mask_of(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask


IMAGE = Image.effect_noise((136, 72), 60).convert("RGB")


def test_only_the_masked_part_changes_and_its_block_brings_it_back(server: CogServer) -> None:
    pictures = {"image": uri(IMAGE), "mask": uri(mask_of(136, 72))}
    (made,) = draw(server, INPUTS | pictures | {"masked_content": "fill", "prompt": "a sea"})["output"]
    pixels, before = np.asarray(picture(made)), np.asarray(IMAGE)
    assert np.array_equal(pixels[:, 85:], before[:, 85:])
    assert not np.array_equal(pixels[:, :50], before[:, :50])
    text = parameters(picture(made))
    assert "Size: 136x72" in text
    assert "Denoising strength: 0.6, RNG: NV, Mask blur: 4, Masked content: fill, Version" in text
    again = draw(server, pictures | {"generation_data": text})
    assert again["output"] == [made]
    assert again["metrics"]["not_honoured"] == []


def test_outpainting_and_highres_fix(server: CogServer) -> None:
    hires = {"highres_fix": "On", "hires_steps": 2}
    inputs = INPUTS | hires | {"image": uri(IMAGE.crop((0, 0, 64, 64))), "outpaint": "right 32"}
    (made,) = draw(server, inputs)["output"]
    assert picture(made).size == (192, 128)
    assert "Outpaint: 0 0 32 0" in parameters(picture(made))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"mask": uri(IMAGE)}, ["mask=", "no image", "Send it in image"]),
        ({"image": uri(IMAGE), "mask": uri(mask_of(64, 64))}, ["mask='64x64'", "size of image, 136 x 72"]),
        ({"image": uri(IMAGE), "mask": uri(Image.new("L", (136, 72)))}, ["mask=", "nothing would be drawn"]),
        ({"image": "data:image/png;base64,bm8gcGljdHVyZQ=="}, ["image=", "cannot be read as a picture", "PNG"]),
        ({"image": "no URL"}, ["image"]),
        ({"outpaint": "left 8"}, ["outpaint='left 8'", "no image"]),
        ({"mask_blur": 65}, ["mask_blur"]),
    ],
)
def test_what_is_wrong_is_named(server: CogServer, inputs: dict[str, object], words: list[str]) -> None:
    reply = ask(server, DRAFT | inputs)
    told = " ".join(reasons(reply.body))
    assert reply.status == 422 or reply.body["status"] == "failed"
    assert [word for word in words if word not in told] == [], told
