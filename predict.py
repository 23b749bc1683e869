"""The container's entrance: Cog's typed inputs -> a request -> pictures. No arithmetic and no tensors here.

Cog makes the web form and the API schema from the text of this file, without running it: choices and defaults are
literals of this file, and every description is one literal on one line (Cog does not join adjacent ones).
"""

import inspect
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any, Optional

from cog import BasePredictor, Input, Path, streaming

from pipelines import parameters, pasted, picture
from pipelines.compiled import compile_model
from pipelines.device import best_device
from pipelines.enlarge import Enlargement, enlarge
from pipelines.errors import AllPicturesFlagged, InvalidInput, ModelError
from pipelines.highres import BASE, FINAL, UPSCALE, Finished, PassResult, Picture, Step, render
from pipelines.loader import load
from pipelines.memory import release_memory, trim_heap
from pipelines.output import FileFormat, OutputFolder, parameters_in
from pipelines.pasted import Parameters
from pipelines.plan import make_plan
from pipelines.progress import Bars
from pipelines.reproduce import (
    Pictures,
    check_pictured,
    from_data,
    honour,
    idle,
    name_of_upscaler,
    obstacles,
    request_from,
    size_of,
    with_inputs,
)
from pipelines.request import CONTROLS_MAX, GenerationRequest, HiresSettings, plain
from pipelines.safety import SafetyChecker, load_safety_checker
from pipelines.units import read_lines
from pipelines.upscale import Upscaler, load_upscaler
from pipelines.wildcards import with_picks
from pipelines.worker import Worker
from weights_script.extras import bring
from weights_script.resolve import resolve, upscaler_file

SAMPLERS = [
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "Euler a",
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "DDIM",
    "DDIM CFG++",
    "PLMS",
    "UniPC",
    "LCM",
]
SCHEDULE_TYPES = [
    "Automatic",
    "Karras",
    "Exponential",
    "Polyexponential",
    "Uniform",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
]
UPSCALERS = [
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
    "SD x2 latent upscaler",
    "None",
    "Nearest",
    "Lanczos",
    "R-ESRGAN 4x+",
    "R-ESRGAN 4x+ Anime6B",
]
SAME_SAMPLER = ["Use same sampler"]
SAME_SCHEDULE = ["Use same scheduler"]


class Predictor(BasePredictor):
    """One model, ready; one prediction at a time."""

    def setup(self, weights: Optional[Path] = None) -> None:
        """Make a model ready: COG_WEIGHTS, else the one that PASTEL_MODEL names, else the embedded default."""
        imports, marks = time.process_time(), [time.perf_counter()]
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.model = resolve(str(weights) if weights else None, os.environ.get("PASTEL_MODEL"))
        print(f"Model: {self.model.description}")
        marks.append(time.perf_counter())
        self.worker = Worker()
        networks = self.worker.run(load, self.model.files, best_device())
        marks.append(time.perf_counter())
        self.networks = self.worker.run(compile_model, networks, self.model.width, self.model.height)
        marks.append(time.perf_counter())
        self.safety = load_safety_checker(self.model.safety_checker, self.networks.device)
        self.outputs = OutputFolder()
        marks.append(time.perf_counter())
        found, loaded, compiled, checker = (end - start for start, end in pairwise(marks))
        print(
            f"Ready in {marks[-1] - marks[0]:.1f} s on {self.networks.device}: weights found or fetched {found:.1f} s, "
            f"read and built {loaded:.1f} s, compiled {compiled:.1f} s, safety checker {checker:.1f} s; "
            f"imports before it {imports:.1f} s of CPU."
        )

    @streaming  # type: ignore[untyped-decorator]  # cog has no types
    def predict(
        self,
        prompt: str = Input(
            description="What to draw, as tags or a sentence. WebUI's syntax works: (strong:1.2), [weak], AND, BREAK.",
            default="masterpiece, best quality, a pink sun over the sea",
            max_length=10000,
        ),
        negative_prompt: str = Input(
            description="What the picture must not show.",
            default="lowres, worst quality, low quality, text, watermark",
            max_length=10000,
        ),
        dynamic_prompts: bool = Input(
            description="Pick one of {a|b|c} wherever a prompt says so, by the seed. 2$$ before a picks two.",
            default=False,
        ),
        wildcards: str = Input(
            description="Turns dynamic_prompts on. A line colour: red | blue makes __colour__ one of them in prompts.",
            default="",
            max_length=50000,
        ),
        generation_data: str = Input(
            description="Paste a picture's generation data to get that picture. Inputs win unless at their default.",
            default="",
            max_length=50000,
        ),
        strict: bool = Input(
            description="Refuse generation data that gives another picture here. Off: draw, and tell what differs.",
            default=True,
        ),
        image: Optional[Path] = Input(
            description="A picture to start from, instead of noise. denoising_strength says how much it may change.",
            default=None,
        ),
        mask: Optional[Path] = Input(
            description="Draw only a part of the image anew: a picture of its size, white there and black elsewhere.",
            default=None,
        ),
        width: Optional[int] = Input(
            description="Width before the highres fix. Empty: the image's, or the model's own, 448 for Pastel-Mix.",
            default=None,
            ge=64,
            le=2048,
        ),
        height: Optional[int] = Input(
            description="Height before the highres fix. Empty: the image's, or the model's own, 640 for Pastel-Mix.",
            default=None,
            ge=64,
            le=2048,
        ),
        seed: Optional[int] = Input(
            description="The same seed and settings give the same picture. Empty: a random one, told in the log.",
            default=None,
            ge=0,
            le=4294967295,
        ),
        num_outputs: int = Input(description="How many pictures. Each takes the next seed.", default=1, ge=1, le=4),
        num_inference_steps: int = Input(
            description="Sampling steps of the first pass. 20 to 30 is usual.", default=20, ge=1, le=150
        ),
        guidance_scale: float = Input(
            description="How closely to follow the prompt (CFG scale). 5 to 9 is usual.", default=7.0, ge=1.0, le=30.0
        ),
        guidance_rescale: float = Input(
            description="Take back the contrast that a high guidance_scale adds. 0: off, 0.7 is usual.",
            default=0.0,
            ge=0.0,
            le=1.0,
        ),
        sampler: str = Input(
            description="Sampling method, by the name it has in WebUI.", default="DPM++ 2M", choices=SAMPLERS
        ),
        schedule_type: str = Input(
            description="Spacing of the noise levels. Automatic is what suits the sampler: Karras for DPM++ 2M.",
            default="Automatic",
            choices=SCHEDULE_TYPES,
        ),
        clip_skip: int = Input(
            description="Which text layer is used, counted from the last. Many anime models are made for 2.",
            default=1,
            ge=1,
            le=12,
        ),
        variation_seed: int = Input(
            description="Seed of the picture to lean towards. Does nothing at variation_strength 0.",
            default=0,
            ge=0,
            le=4294967295,
        ),
        variation_strength: float = Input(
            description="How far to go from the seed's picture to the variation seed's.", default=0.0, ge=0.0, le=1.0
        ),
        rng: str = Input(
            description="Where noise comes from, as in WebUI. NV and GPU agree, CPU gives another picture.",
            default="NV",
            choices=["NV", "CPU", "GPU"],
        ),
        ensd: int = Input(
            description="Eta noise seed delta: added to the seed for the noise of samplers whose name ends in a.",
            default=0,
        ),
        freeu: str = Input(
            description="FreeU's b1 b2 s1 s2, for clearer shapes: 1.5 1.6 0.9 0.2 for SD 1.5. Empty: off.",
            default="",
            max_length=100,
        ),
        resize_mode: str = Input(
            description="How an image of another size comes to width x height. fill adds bands of its edge colours.",
            default="stretch",
            choices=["stretch", "crop", "fill", "latent"],
        ),
        mask_invert: bool = Input(description="Draw anew where the mask is black instead.", default=False),
        mask_blur: int = Input(
            description="How far the mask's edge is softened, in pixels of the image.", default=4, ge=0, le=64
        ),
        mask_soft: bool = Input(
            description="Change grey parts of the mask by degrees, instead of wholly or not at all.", default=False
        ),
        masked_content: str = Input(
            description="What is under the mask at first. Noise and nothing need a denoising_strength above 0.8.",
            default="original",
            choices=["fill", "original", "latent noise", "latent nothing"],
        ),
        inpaint_area: str = Input(
            description="Only masked draws the mask's surroundings at width x height, then pastes them back.",
            default="Whole picture",
            choices=["Whole picture", "Only masked"],
        ),
        inpaint_padding: int = Input(
            description="Pixels around the mask that Only masked shows to the model.", default=32, ge=0, le=256
        ),
        outpaint_left: int = Input(
            description="Pixels to add at the image's left and draw. Use a denoising_strength of 0.8 or more.",
            default=0,
            ge=0,
            le=512,
        ),
        outpaint_top: int = Input(description="Pixels to add above the image.", default=0, ge=0, le=512),
        outpaint_right: int = Input(description="Pixels to add at the image's right.", default=0, ge=0, le=512),
        outpaint_bottom: int = Input(description="Pixels to add below the image.", default=0, ge=0, le=512),
        denoising_strength: float = Input(
            description="How much the image, or without one the highres pass, may change. Latent upscalers need 0.5.",
            default=0.6,
            ge=0.0,
            le=1.0,
        ),
        hires: Optional[bool] = Input(
            description="Highres fix: enlarge the first picture, then draw it in detail. Empty: not with an image.",
            default=None,
        ),
        hires_scale: float = Input(description="How much the highres fix enlarges.", default=2.0, ge=1.0, le=4.0),
        hires_width: int = Input(
            description="Width to enlarge to, instead of by hires_scale. 0: from hires_height and the aspect.",
            default=0,
            ge=0,
            le=4096,
        ),
        hires_height: int = Input(
            description="Height to enlarge to, instead of by hires_scale. 0: from hires_width and the aspect.",
            default=0,
            ge=0,
            le=4096,
        ),
        hires_upscaler: str = Input(
            description="How the draft is enlarged. Latent invents more; the others keep closer to the draft.",
            default="Latent",
            choices=UPSCALERS,
        ),
        hires_upscaler_file: Optional[Path] = Input(
            description="Weights of an ESRGAN-family upscaler of your own, instead of hires_upscaler.", default=None
        ),
        hires_steps: int = Input(
            description="Sampling steps of the highres pass. 0: as many as the first pass.", default=0, ge=0, le=150
        ),
        hires_denoising_strength: float = Input(
            description="How much the highres pass may change. 0: as denoising_strength says.",
            default=0.0,
            ge=0.0,
            le=1.0,
        ),
        hires_prompt: str = Input(
            description="Another prompt for the highres pass. Empty: the same.", default="", max_length=10000
        ),
        hires_negative_prompt: str = Input(
            description="Another negative prompt for the highres pass. Empty: the same.", default="", max_length=10000
        ),
        hires_sampler: str = Input(
            description="Sampling method of the highres pass.",
            default="Use same sampler",
            choices=SAME_SAMPLER + SAMPLERS,
        ),
        hires_schedule_type: str = Input(
            description="Spacing of the noise levels of the highres pass.",
            default="Use same scheduler",
            choices=SAME_SCHEDULE + SCHEDULE_TYPES,
        ),
        upscale_only: bool = Input(
            description="Only enlarge the image, by hires_upscaler and hires_scale; nothing is drawn.", default=False
        ),
        show_phases: bool = Input(
            description="Also return the draft, and the enlarged picture before its refinement.", default=False
        ),
        output_format: str = Input(
            description="File format of the pictures.", default="png", choices=["png", "webp", "jpg"]
        ),
        output_quality: int = Input(
            description="Quality of webp and jpg files. png is lossless and ignores it.", default=95, ge=1, le=100
        ),
        loras: str = Input(
            description="LoRAs, one a line: a name, https URL or owner/repository, then :weight:text weight.",
            default="",
            max_length=10000,
        ),
        lora_file: Optional[Path] = Input(
            description="A LoRA of your own (.safetensors). Set its weight in the prompt: <lora:any name:0.8>.",
            default=None,
        ),
        embeddings: str = Input(
            description="Textual inversions, one a line: name=URL or owner/repository/file. Call them in a prompt.",
            default="",
            max_length=10000,
        ),
        embedding_file: Optional[Path] = Input(
            description="A textual inversion of your own (.safetensors, .pt). Name it in embeddings: my_style.",
            default=None,
        ),
        controls: str = Input(
            description="ControlNets, one a line: canny: 0.8, or owner/repository: weight=1, start=0, end=0.6.",
            default="",
            max_length=10000,
        ),
        control_images: list[Path] = Input(
            description="What the lines of controls follow: pictures in their order, or one for all. None: the image.",
            default=[],
        ),
        control_file: Optional[Path] = Input(
            description="A ControlNet of your own (.safetensors). Name it in controls: canny of mine: 0.8.",
            default=None,
        ),
        disable_safety_checker: bool = Input(
            description="Do not check pictures for explicit content, where the container has a checker.", default=False
        ),
    ) -> Iterator[Path]:
        """Draw the pictures; each comes as soon as it is decoded."""
        request = self._enlargement(locals()) if upscale_only else self._request(locals())
        file_format = FileFormat(output_format, output_quality)
        checker = None if disable_safety_checker else self.safety
        try:
            if isinstance(request, Enlargement):
                yield self._enlarge(request, file_format, checker)
            else:
                yield from self._draw(request, file_format, checker, show_phases)
        except BaseException as error:  # cancelling is one, too
            release_memory(error)
            raise
        finally:
            trim_heap()

    def _enlargement(self, inputs: dict[str, Any]) -> Enlargement:
        """The request of the inputs that tell how a picture is enlarged; the others do nothing."""
        if not inputs["image"]:
            raise InvalidInput("upscale_only", True, "there is no image to enlarge", "Send it in image, too.")
        image, file, name = _picture(inputs, "image"), inputs["hires_upscaler_file"], inputs["hires_upscaler"]
        if file:
            _check_file("hires_upscaler_file", file)
            name = name_of_upscaler(file.stem, None)
        resize_to = inputs["hires_width"], inputs["hires_height"]
        scale = plain(inputs["hires_scale"])
        by = HiresSettings(scale=scale, resize_to=resize_to, upscaler=name, upscaler_file=file or None)
        return Enlargement(image=image, by=by, told=parameters_in(inputs["image"]))

    def _enlarge(self, request: Enlargement, file_format: FileFormat, checker: SafetyChecker | None) -> Path:
        """Enlarge, log and save the picture."""
        upscaler = self._upscaler(request.by)
        print(f"Plan: {request.describe()}")
        started = time.perf_counter()
        made = Picture(FINAL, 0, self.worker.run(enlarge, request, upscaler))
        self._report({UPSCALE: time.perf_counter() - started})
        if not self.worker.run(passes, made, checker):
            raise AllPicturesFlagged()
        self.outputs.clear()
        self.outputs = OutputFolder()
        self.record_metric("image_output_count", 1)
        return Path(self.outputs.save(made.pixels, f"{made.kind}-{made.index}", file_format, request.generation_data()))

    def _request(self, inputs: dict[str, Any]) -> GenerationRequest:
        """The request of the inputs, by name; over generation data those count that differ from their default."""
        text, count = inputs["generation_data"].strip(), inputs["num_outputs"]
        pictures = Pictures(
            image=_picture(inputs, "image"),
            mask=_picture(inputs, "mask"),
            resize_mode=inputs["resize_mode"],
            soft=inputs["mask_soft"],
            controls=_control_images(inputs),
        )
        size = size_of(pictures, inputs, (self.model.width, self.model.height))
        block = pasted.read(text) if text else None
        upscalers: dict[str, pathlib.Path] = {}
        for name in ("lora_file", "embedding_file", "control_file"):
            if inputs[name]:
                _check_file(name, inputs[name])
        if file := inputs["hires_upscaler_file"]:
            _check_file("hires_upscaler_file", file)
            inputs["hires_upscaler"] = name_of_upscaler(file.stem, block.hires_upscaler if block else None)
            upscalers[inputs["hires_upscaler"]] = file
        defaults = input_defaults()
        changed = {name: inputs[name] for name, default in defaults.items() if inputs[name] != default}
        if block is None:
            if inputs["hires"] is None:
                inputs["hires"] = pictures.image is None
            data = with_inputs(Parameters(), inputs, size)
        else:
            data = with_inputs(block, changed, size)
            settings = from_data(data, changed, defaults)
            print("From the generation data: " + ", ".join(f"{name}={value}" for name, value in settings.items()))
        if inputs["dynamic_prompts"] or inputs["wildcards"].strip():
            data = with_picks(data, inputs["wildcards"])
            print(f"Prompt: {data.prompt}")
        check_pictured(read_lines(inputs["controls"]), pictures)  # before one is fetched
        extras, data = bring(data, inputs)
        if block is not None:
            found = obstacles(data, self.networks.identity, upscalers, pictures, extras, block)
            self.record_metric("not_honoured", [obstacle.text for obstacle in found])
            print("".join(f"Not honoured: {obstacle.text}\n" for obstacle in found), end="")
            data = honour(data, found, inputs["strict"])
        request = request_from(data, size, count, upscalers, block, pictures, extras)
        print("".join(f"{line}\n" for line in idle(changed, request)), end="")
        return request

    def _draw(
        self, request: GenerationRequest, file_format: FileFormat, checker: SafetyChecker | None, show_phases: bool
    ) -> Iterator[Path]:
        """Run the plan; log, save and hand out what comes."""
        plan = make_plan(request)
        upscaler = self._upscaler(request.hires)
        print(f"Seed: {', '.join(map(str, plan.seeds))}")
        print("\n".join((f"Plan: {plan.describe()}", *plan.notes)))
        self.record_metric("seed", request.seed)
        self.outputs.clear()
        self.outputs = OutputFolder()
        embeddings: tuple[tuple[str, str], ...] = ()
        made = render(self.networks, request, plan, show_phases=show_phases, upscaler=upscaler)
        count, events = 0, self.worker.each(made)
        with Bars() as bars, closing(events):
            try:
                for event in events:
                    if isinstance(event, Step):
                        bars.advance(event)
                    elif isinstance(event, PassResult):
                        bars.close()
                        embeddings = event.prompts.embeddings if event.phase == BASE else embeddings
                    elif isinstance(event, Picture) and self.worker.run(passes, event, checker):
                        identity = self.networks.identity
                        text = parameters.of_picture(request, plan, identity, event.index, embeddings)
                        self.outputs.begin(event.pixels, f"{event.kind}-{event.index}", file_format, text)
                        count += 1
                    elif isinstance(event, Finished):
                        self._report(event.seconds)
                    # a device that works by itself goes on meanwhile; elsewhere the next event may be far away
                    yield from map(Path, self.outputs.saved(wait=not self.networks.device.queues))
            except Exception:
                yield from map(Path, self.outputs.saved(wait=True))  # what is made is not lost
                raise
            yield from map(Path, self.outputs.saved(wait=True))
        self.record_metric("image_output_count", count)
        if count == 0:
            raise AllPicturesFlagged()

    def _upscaler(self, hires: HiresSettings | None) -> Upscaler | None:
        """The upscaler that is asked for, if it is one with weights of its own."""
        file = upscaler_file(hires)
        try:
            return self.worker.run(load_upscaler, file, self.networks.device) if file else None
        except ModelError as error:
            name = "hires_upscaler_file" if hires and hires.upscaler_file else "hires_upscaler"
            raise ModelError(f"{name}: {error}") from error

    def _report(self, seconds: dict[str, float]) -> None:
        """Seconds per phase, in the log and as metrics."""
        print("Time: " + ", ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items()))
        for phase, value in seconds.items():
            self.record_metric(f"timing.{phase}", round(value, 3))


def _check_file(name: str, value: object) -> None:
    if not isinstance(value, pathlib.Path):  # text that Cog took for no URL
        raise InvalidInput(name, value, "must be a file", "Send a data, http or https URL.")


def _picture(inputs: dict[str, Any], name: str) -> Any:
    """The picture that an input holds; None for an empty one."""
    if not inputs[name]:
        return None
    _check_file(name, inputs[name])
    return picture.read(inputs[name], name)


def _control_images(inputs: dict[str, Any]) -> tuple[Any, ...]:
    if (count := len(inputs["control_images"])) > CONTROLS_MAX:  # told before each takes its memory
        rule = f"at most {CONTROLS_MAX} pictures, as there are at most so many ControlNets"
        raise InvalidInput("control_images", f"{count} sent", rule, "Leave some out.")
    for sent in inputs["control_images"]:
        _check_file("control_images", sent)
    return tuple(picture.read(sent, "control_images") for sent in inputs["control_images"])


def input_defaults() -> dict[str, Any]:
    """The default of every input, by name."""
    fields = inspect.signature(Predictor.predict).parameters
    # the server puts plain values in place of what Input() made
    return {name: getattr(field.default, "default", field.default) for name, field in fields.items() if name != "self"}


def passes(picture: Picture, checker: SafetyChecker | None) -> bool:
    """Whether the picture may be handed out; says so where it may not."""
    if checker is None:
        return True
    verdict = checker.check(picture.pixels)
    if verdict.flagged:
        print(f"Left out {picture.kind} {picture.index}: explicit content, score {verdict.score:.3f} (above 0).")
    return not verdict.flagged
