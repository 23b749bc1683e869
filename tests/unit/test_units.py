"""ControlNet units: lines of the input, values of infotexts in every format, and the checks on both."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.ask.catalog import CONTROL_MODES, CONTROL_RESIZE_MODES, IMAGE_PROMPT, PREPROCESSORS
from pipelines.ask.identity import ModelIdentity
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import ExtraFile, Extras
from pipelines.ask.plan import make_plan
from pipelines.ask.request import ControlSettings, GenerationRequest, HiresSettings
from pipelines.errors import InvalidInput, ModelError
from pipelines.infotext import reading as pasted
from pipelines.infotext.asked import NO_PICTURES, Asked, Pictures, read_data, request_from, settle
from pipelines.infotext.control_lines import read_lines, read_unit, write_unit
from pipelines.infotext.obstacles import drop_unsupported, obstacles
from pipelines.infotext.writing import of_picture
from script.schema import ROOT
from tests.unit.sized import Sized
from weights_script.extras import Library

PLAIN = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x768"
UNIT = (
    "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, Resize Mode: Crop and Resize, "
    "Processor Res: 512, Threshold A: 100, Threshold B: 200, Guidance Start: 0, Guidance End: 1, Pixel Perfect: True, "
    "Control Mode: Balanced"
)
OLD_UNIT = (
    "preprocessor: canny, model: control_v11p_sd15_canny [d14c016b], weight: 1, starting/ending: (0, 1), "
    "resize mode: Crop and Resize, pixel perfect: True, control mode: Balanced, preprocessor params: (512, 100, 200)"
)
CANNY = ControlSettings(model="control_v11p_sd15_canny", model_hash="d14c016b")
MODEL = ModelIdentity(name="m", sha256="0" * 64)
PICTURE = Sized((64, 64))


def asked(text: str, pictures: Pictures = NO_PICTURES) -> Asked:
    """What generation data alone asks for."""
    return settle(Inputs(), read_data(text), {"width": 64, "height": 64}, pictures)


NOTHING = asked("").wanted


@pytest.fixture
def file(tmp_path: Path) -> ExtraFile:
    path = tmp_path / "x_canny.safetensors"
    path.write_bytes(bytes(1 << 20) + b"weights")
    return ExtraFile.at(path)


def request(file: ExtraFile, *controls: ControlSettings, **fields: Any) -> GenerationRequest:
    found = Extras(controls={"x_canny": file})
    return GenerationRequest(prompt="", width=64, height=64, seed=1, extras=found, controls=controls, **fields)


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("canny", {"model": "canny", "preprocessor": "canny"}),
        (" canny: 0.8 ", {"model": "canny", "weight": 0.8}),
        ("openpose:.5", {"model": "openpose", "weight": 0.5, "preprocessor": "none"}),
        ("a/lineart_b: weight=0.8, start=0.1, end=0.6,mode=prompt", {"model": "a/lineart_b", "start": 0.1, "end": 0.6}),
        ("a: preprocessor = scribble , resize=stretch", {"preprocessor": "scribble", "resize_mode": "stretch"}),
        ("canny: 1, low=50, high=60", {"low": 50, "high": 60, "weight": 1}),
        ("https://h.co/x/a_canny.safetensors: 0.4", {"model": "https://h.co/x/a_canny.safetensors", "weight": 0.4}),
        ("ip-adapter-plus: 0.6", {"model": "ip-adapter-plus", "preprocessor": "ip-adapter", "weight": 0.6}),
        ("h94/IP-Adapter/models/x.bin: end=0.5", {"preprocessor": "ip-adapter", "end": 0.5}),
        ("t2iadapter_canny_sd15v2", {"preprocessor": "canny"}),
        ("t2iadapter_color_sd14v1", {"preprocessor": "color"}),
        ("ioclab_sd15_recolor", {"preprocessor": "none"}),
        ("mine: preprocessor=ip-adapter", {"preprocessor": "ip-adapter"}),
        ("https://h.co:80/a.safetensors?a=b", {"model": "https://h.co:80/a.safetensors?a=b", "preprocessor": "none"}),
    ],
)
def test_lines(line: str, settings: dict[str, object]) -> None:
    (control,) = read_lines(f"\n{line}\n\n")
    assert {name: getattr(control, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("canny: strength=1", "strength is not a setting. Use weight, start"),
        ("canny: weight=much", "weight must be a number. Write canny: weight=0.8"),
        ("canny: 2.1", "controls, weight of canny=2.1: must be a number from 0 to 2"),
        ("canny: start=0.5, end=0.4", "controls, start of canny=0.5: it would end at 0.4"),
        ("canny: mode=equal", "controls, mode of canny='equal': must be one of balanced, prompt, control"),
        ("my canny: weight 0.8", "only a weight and settings"),
        ("my canny: 80%", "only a weight and settings"),
        ("canny: 0.8; end=0.5", "only a weight and settings"),
        ("canny: 0.8 0.2 0.6", "only a weight and settings"),
        ("canny, weight=0.8", "only a weight and settings"),
        ("https://h.co/a.safetensors: strong", "only a weight and settings"),
        ("canny: preprocessor=hed", "controls, preprocessor of canny='hed': must be one of canny, lineart"),
        ("canny: resize=fill", "must be one of crop, stretch"),
        ("\n".join(["canny"] * 5), "at most 4 lines"),
        ("ip-adapter: mode=prompt", "mode of ip-adapter='prompt': it has no effect on an IP-Adapter"),
        ("ip-adapter: resize=stretch", "resize of ip-adapter='stretch': it has no effect"),
    ],
)
def test_lines_that_ask_for_what_there_is_not(line: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_lines(line)


@pytest.mark.parametrize("text", [UNIT, OLD_UNIT])
def test_a_unit_of_either_form_is_read(text: str) -> None:
    told = read_unit(text, (512, 768))
    assert told.settings == CANNY
    assert told.warnings + told.doubts == ()


def test_a_unit_is_written_as_the_extension_does() -> None:
    assert write_unit(CANNY, "d14c016b") == UNIT


@pytest.mark.parametrize("preprocessor", [name for name in PREPROCESSORS if name != IMAGE_PROMPT])
@pytest.mark.parametrize("mode", CONTROL_MODES)
@pytest.mark.parametrize("resize_mode", CONTROL_RESIZE_MODES)
def test_what_is_written_is_read_back(preprocessor: str, mode: str, resize_mode: str) -> None:
    control = replace(
        CANNY, preprocessor=preprocessor, mode=mode, resize_mode=resize_mode, weight=0.35, start=0.1, end=0.7
    )
    assert read_unit(write_unit(control, "d14c016b"), (64, 64)).settings == control


@pytest.mark.parametrize(
    ("changed", "to", "words"),
    [
        ("Pixel Perfect: True", "Pixel Perfect: False", ""),  # 512 is its shorter side
        ("Processor Res: 512", "Processor Res: 640", ""),
        ("Processor Res: 512, Threshold A: 100", "Processor Res: 640, Pixel Perfect: False", "made at 640 px"),
        ("Crop and Resize", "Resize and Fill", "resize mode Resize and Fill is not available"),
        ("Control Mode", "Hr Option: Low res only, Control Mode", "in one pass only"),
        ("Control Mode", "Hr Option: Both, Control Mode", ""),
        ("Control Mode", "Low Vram: True, Save Detected Map: True, Control Mode", ""),
        ("Control Mode", "Advanced Weighting: None, Control Mode", ""),
        ("Control Mode", "Advanced Weighting: 0.5, Control Mode", r"its advanced weighting (0.5) is not supported"),
    ],
)
def test_what_makes_another_picture_is_a_doubt(changed: str, to: str, words: str) -> None:
    text = UNIT.replace(changed, to)
    if "Pixel Perfect: False" in to:
        text = text.replace("Pixel Perfect: True, ", "")
    doubts = read_unit(text, (512, 768)).doubts
    assert words in " ".join(doubts)
    assert bool(words) == bool(doubts)


IP_UNIT = (
    "Module: {}, Model: ip-adapter_sd15 [6a3f6166], Weight: 0.6, Resize Mode: {}, Low Vram: False, "
    "Processor Res: 640, Threshold A: 0.5, Threshold B: 0.5, Guidance Start: 0, Guidance End: 0.8, "
    "Pixel Perfect: False, Control Mode: {}, Hr Option: Both, Save Detected Map: True"
)


@pytest.mark.parametrize(
    ("module", "resize_mode", "mode"),
    [
        ("ip-adapter_clip_sd15", "Crop and Resize", "Balanced"),
        ("ip-adapter-auto", "Resize and Fill", "ControlNet is more important"),
    ],
)
def test_an_ip_adapter_of_an_infotext(module: str, resize_mode: str, mode: str) -> None:
    """The extension hides both modes of one, and ignores them."""
    told = read_unit(IP_UNIT.format(module, resize_mode, mode), (512, 768))
    assert told.settings == ControlSettings(
        model="ip-adapter_sd15", model_hash="6a3f6166", preprocessor="ip-adapter", weight=0.6, end=0.8
    )
    assert told.warnings + told.doubts == ()
    assert read_unit(write_unit(told.settings, "6a3f6166"), (512, 768)).settings == told.settings


def test_an_ip_adapter_that_looked_at_a_face_is_a_doubt() -> None:
    (doubt,) = read_unit(IP_UNIT.format("ip-adapter_face_id_plus", "Just Resize", "Balanced"), None).doubts
    assert doubt == "ip-adapter_face_id_plus needs a face network that is not available"


def test_a_preprocessor_that_is_not_here_leaves_its_map_to_be_sent() -> None:
    told = read_unit(UNIT.replace("Module: canny", "Module: depth_midas"), None)
    assert told.settings.preprocessor == "none"
    assert "depth_midas is not available: the picture sent for it is used as its map" in told.warnings[0]


@pytest.mark.parametrize("value", ["Module: canny", "Model: x, Weight: much", "Model: x, Control Mode: Whatever"])
def test_a_unit_that_cannot_be_read_is_named(value: str) -> None:
    with pytest.raises(InvalidInput, match=r"generation_data='ControlNet 0: .*cannot be read"):
        pasted.read(f'a\n{PLAIN}, ControlNet 0: "{value}"')


def test_an_infotext_round_trip(file: ExtraFile) -> None:
    made = request(
        file,
        ControlSettings(model="x_canny", picture=PICTURE, weight=0.5),
        ControlSettings(model="x_canny", picture=PICTURE, mode="control", end=0.5, preprocessor="lineart"),
    )
    text = of_picture(made, make_plan(made), MODEL, 0)
    assert 'ControlNet 0: "Module: canny, Model: x_canny [' in text
    pictures = Pictures(controls=(PICTURE,))
    read = asked(text, pictures)
    assert read.data.unknown == {}
    assert obstacles(read, MODEL, pictures=pictures, extras=made.extras) == []
    again = request_from(read, pictures=pictures, extras=made.extras)
    assert [replace(control, model_hash="") for control in again.controls] == list(made.controls)


def test_obstacles(file: ExtraFile) -> None:
    data = asked(f'a\n{PLAIN}, Model: m, Model hash: 0000000000, ControlNet 0: "{UNIT}"')
    (missing,) = obstacles(data, MODEL, pictures=Pictures(controls=(PICTURE,)))
    assert "the ControlNet control_v11p_sd15_canny is missing" in missing.text
    assert drop_unsupported(data, [missing], strict=False).settings.controls == ()
    here = Extras(controls={"control_v11p_sd15_canny": file})
    other, alone = obstacles(data, MODEL, extras=here)
    assert f"a different ControlNet control_v11p_sd15_canny (d14c016b) than this one ({file.short_hash})" in other.text
    assert "send its pictures (control_images, --control)" in alone.text
    assert all(obstacle.other_picture for obstacle in (missing, other, alone))


def settled(controls: int) -> Asked:
    """So many ControlNets, and nothing else that is said."""
    plain = asked("Seed: 1")
    return replace(plain, settings=replace(plain.settings, controls=(ControlSettings(model="x_canny"),) * controls))


@pytest.mark.parametrize(
    ("controls", "sent", "words"),
    [
        (0, 1, "control_images='1 sent': there is no ControlNet to follow them"),
        (3, 2, "must be one for each of the 3 lines of controls, or one for all"),
        (1, 0, "there is no picture for it to follow. Send one in control_images, or an image."),
        (5, 1, "at most 4 at once"),
    ],
)
def test_pictures_and_lines_belong_together(file: ExtraFile, controls: int, sent: int, words: str) -> None:
    data = settled(controls)
    with pytest.raises(InvalidInput, match=words):
        request_from(data, pictures=Pictures(controls=(PICTURE,) * sent), extras=Extras(controls={"x_canny": file}))


def test_each_line_has_its_picture(file: ExtraFile) -> None:
    data = settled(2)
    sent = Sized((64, 64)), Sized((128, 64))
    made = request_from(data, pictures=Pictures(controls=sent), extras=Extras(controls={"x_canny": file}))
    assert [control.picture for control in made.controls] == list(sent)


def test_what_a_request_refuses(file: ExtraFile) -> None:
    with pytest.raises(InvalidInput, match="controls='y': there is no ControlNet of this name"):
        request(file, ControlSettings(model="y", picture=PICTURE))
    with pytest.raises(InvalidInput, match="an IP-Adapter needs an image encoder; there is none"):
        request(file, ControlSettings(model="x_canny", picture=PICTURE, preprocessor="ip-adapter"))
    with pytest.raises(InvalidInput, match="the preprocessor inpaint needs a mask"):
        request(file, ControlSettings(model="x_canny", picture=PICTURE, preprocessor="inpaint"))


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [(0, 1, range(20)), (0, 0.5, range(11)), (0.5, 1, range(10, 20)), (0.96, 1, range(0)), (0.25, 0.25, range(5, 6))],
)
def test_the_steps_at_which_it_acts(file: ExtraFile, start: float, end: float, steps: range) -> None:
    control = ControlSettings(model="x_canny", picture=PICTURE, start=start, end=end)
    plan = make_plan(request(file, control, hires=HiresSettings(steps=20)))
    assert plan.hires is not None
    assert plan.first.steps_under(control) == plan.hires.steps_under(control) == steps
    assert plan.first.steps_under(replace(control, weight=0)) == range(0)
    told = f"{steps.start + 1} to {steps.stop}" if steps else "none"
    assert plan.describe().endswith(f"; ControlNet x_canny (canny) at 1 in steps {told} and {told}")


CANNY_TINY = ROOT / "tests" / "data" / "controlnets" / "canny-tiny.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: ExtraFile) -> Path:
    """A cache that holds one ControlNet, own_canny."""
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "controlnets").mkdir()
    shutil.copy(CANNY_TINY, tmp_path / "controlnets" / "own_canny.safetensors")
    return tmp_path


def test_files_of_lines(cache: Path) -> None:
    made = Library().load_only(NOTHING, Inputs(controls="own_canny: 0.5\nmine: 0.7", files=(CANNY_TINY,)))
    assert [(control.model, control.weight) for control in made.controls] == [("own_canny", 0.5), ("mine", 0.7)]
    assert made.extras.controls["mine"].path == CANNY_TINY
    assert made.extras.controls["own_canny"].path == cache / "controlnets" / "own_canny.safetensors"


def test_a_line_that_names_a_file_means_that_one(cache: Path) -> None:
    other = cache / "other.safetensors"
    other.write_bytes(CANNY_TINY.read_bytes())
    made = Library().load_only(NOTHING, Inputs(controls="canny-tiny: 0.7\nother", files=(other, CANNY_TINY)))
    assert [control.model for control in made.controls] == ["canny-tiny", "other"]
    assert made.extras.controls["canny-tiny"].path == CANNY_TINY


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["canny-tiny", "mine"])
def test_two_lines_of_one_name_share_its_file(name: str) -> None:
    made = Library().load_only(NOTHING, Inputs(controls=f"{name}: 0.5\n{name}: 0.7", files=(CANNY_TINY,)))
    assert [(control.model, control.weight) for control in made.controls] == [(name, 0.5), (name, 0.7)]
    assert made.extras.controls[name].path == CANNY_TINY


@pytest.mark.usefixtures("cache")
def test_a_file_without_a_line_acts_as_it_is() -> None:
    made = Library().load_only(NOTHING, Inputs(files=(CANNY_TINY,)))
    assert made.controls == (ControlSettings(model="canny-tiny"),)


@pytest.mark.usefixtures("cache")
def test_lines_win_over_a_block() -> None:
    made = Library().load_only(replace(NOTHING, controls=(CANNY,)), Inputs(controls="own_canny: 0.5"))
    assert [control.model for control in made.controls] == ["own_canny"]


@pytest.mark.usefixtures("cache")
def test_a_block_asks_for_the_file_of_its_model() -> None:
    own = replace(NOTHING, controls=(replace(CANNY, model="own_canny"), replace(CANNY, model="unheard_of")))
    made = Library().load_only(own, Inputs())
    assert list(made.extras.controls) == ["own_canny"]
    assert made.controls == own.controls
    with pytest.raises(
        ModelError,
        match=r"controls='control_v11p_sd15_canny': canny cannot be fetched.*HF_HUB_OFFLINE.*send it in files",
    ):
        Library().load_only(replace(NOTHING, controls=(CANNY,)), Inputs())  # known by the manifest


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nothing", r"controls='nothing': nothing of this name is here.*Known names are .*own_canny"),
        ("cany", r"controls='cany'.*Did you mean canny"),
        ("https://example.com/a.safetensors", "must be an https address of .*or send the file in files"),
    ],
)
def test_lines_that_name_nothing(line: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Library().load_only(NOTHING, Inputs(controls=line))


@pytest.fixture
def sent(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Files by whose content an IP-Adapter, an image encoder and a T2I adapter are known."""
    names = ("ip_adapter.1.to_k_ip.weight", "vision_model.embeddings.class_embedding", "body.0.block1.weight")
    paths = tmp_path / "face.bin", tmp_path / "vision.safetensors", tmp_path / "ip-adapter.safetensors"
    for name, path in zip(names, paths, strict=True):
        save_file({name: torch.zeros(2)}, path)
    return paths


@pytest.mark.usefixtures("cache")
def test_an_ip_adapter_is_known_by_its_content_and_brings_its_encoder(sent: tuple[Path, Path, Path]) -> None:
    made = Library().load_only(NOTHING, Inputs(controls="face: 0.5", files=sent[:2]))
    assert made.controls == (ControlSettings(model="face", weight=0.5, preprocessor="ip-adapter"),)
    assert made.extras.image_encoder is not None
    assert made.extras.image_encoder.path == sent[1]
    assert list(made.extras.controls) == ["own_canny", "face"]


@pytest.mark.usefixtures("cache")
def test_a_name_makes_no_ip_adapter(sent: tuple[Path, Path, Path]) -> None:
    made = Library().load_only(NOTHING, Inputs(controls="ip-adapter: 0.5", files=sent[2:]))
    assert made.controls == (ControlSettings(model="ip-adapter", weight=0.5, preprocessor="none"),)
    assert made.extras.image_encoder is None


def test_an_encoder_in_the_cache_is_used(cache: Path, sent: tuple[Path, Path, Path]) -> None:
    own = Path(shutil.copy(sent[1], cache / "controlnets" / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"))
    made = Library().load_only(NOTHING, Inputs(controls="face", files=sent[:1]))
    assert made.extras.image_encoder is not None
    assert made.extras.image_encoder.path == own


@pytest.mark.usefixtures("cache")
def test_an_encoder_that_cannot_be_had_is_told_before_anything_is_drawn(sent: tuple[Path, Path, Path]) -> None:
    told = r"The image encoder of IP-Adapters: clip-vit-h cannot be fetched.*HF_HUB_OFFLINE.*send it in files"
    with pytest.raises(ModelError, match=told):
        Library().load_only(NOTHING, Inputs(controls="face", files=sent[:1]))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("line", "count", "words"),
    [
        ("face: preprocessor=canny", 2, "preprocessor of face='canny': an IP-Adapter sees its picture without"),
        ("face: mode=prompt", 2, "mode of face='prompt': it has no effect on an IP-Adapter"),
    ],
)
def test_what_an_ip_adapter_has_not(sent: tuple[Path, Path, Path], line: str, count: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Library().load_only(NOTHING, Inputs(controls=line, files=sent[:count]))


@pytest.mark.usefixtures("cache")
def test_what_is_no_ip_adapter(sent: tuple[Path, Path, Path]) -> None:
    with pytest.raises(InvalidInput, match="preprocessor of mine='ip-adapter': its file is no IP-Adapter"):
        Library().load_only(NOTHING, Inputs(controls="mine: preprocessor=ip-adapter", files=sent[2:]))


@pytest.mark.usefixtures("cache")
def test_no_image_encoder_is_looked_for_where_the_adapter_cannot_run(tmp_path: Path) -> None:
    """A FaceID file is refused for what it is, and not for lack of an encoder that would not help it."""
    face = tmp_path / "a.safetensors"
    names = ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.0.to_q_lora.down.weight")
    save_file({name: torch.zeros(2, 2) for name in names}, face)
    made = Library().load_only(NOTHING, Inputs(files=(face,)))
    assert made.extras.image_encoder is None
    assert not any(control.image_prompt for control in made.controls)


def test_a_picture_that_no_square_can_be_cut_of(file: ExtraFile) -> None:
    extras = Extras(controls={"x_canny": file}, image_encoder=file)
    long = ControlSettings(model="x_canny", picture=Sized((4, 4_000_000)), preprocessor="ip-adapter")
    made = replace(request(file), extras=extras, controls=(long,))
    with pytest.raises(InvalidInput, match=r"control_images='4x4000000'.*Send a picture that is closer to a square"):
        make_plan(made)
