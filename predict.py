"""The container's entry point: Cog's typed inputs -> a request -> pictures. There is no arithmetic here.

Cog builds the web form and the API schema from the text of this file, without running it. So choices and defaults are
literals in this file, and every description is one literal on one line (Cog does not join adjacent literals).
"""

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Optional

gc.disable()  # what is imported stays: looking through it for garbage again and again takes a tenth of the start

from cog import BasePredictor, CancelationException, Input, Path, streaming

from pipelines.animation.frames import Frame, FrameTexts, Progress, draw_film
from pipelines.animation.inbetween import Interpolator, load_interpolator
from pipelines.animation.reel import Reel
from pipelines.ask.animation import NONE, AnimationSettings
from pipelines.ask.film import Film, describe, make_film
from pipelines.ask.formats import formats_of
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import name_of_upload
from pipelines.ask.plan import make_plan
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.cast import Cast, cast_of, picked
from pipelines.drawing.compiling import compile_model
from pipelines.drawing.phases import FINAL, UPSCALE, Beside, Finished, Notice, PassResult, Picture, Step, render
from pipelines.drawing.pictures import check_image, check_noise_level, remarks, with_depth
from pipelines.drawing.progress import Bars
from pipelines.drawing.unused import idle_refiner, unused_by
from pipelines.errors import AllPicturesFlagged, ModelError, clean_errors, log_plainly, say
from pipelines.images.files import FileFormat, OutputFolder, parameters_in
from pipelines.images.reading import DECODER, read_pictures
from pipelines.infotext import writing as parameters
from pipelines.infotext.asked import (
    Asked,
    Fetched,
    Pictures,
    check_pictured,
    read_data,
    request_from,
    settle,
    settle_keys,
    wanted_by,
    with_networks,
)
from pipelines.infotext.control_lines import read_lines
from pipelines.infotext.obstacles import drop_unsupported, obstacles
from pipelines.infotext.other_models import with_models
from pipelines.infotext.unused import unused_in_files, unused_inputs
from pipelines.models.loader import load
from pipelines.models.model import Model
from pipelines.models.room import makers
from pipelines.models.roster import Member, Roster, made, put_away
from pipelines.models.safety import SafetyChecker, load_safety_checker
from pipelines.runtime import watchdog
from pipelines.runtime.device import Device, best_device, limit_threads
from pipelines.runtime.memory import forget_data_uris, release_memory, trim_heap
from pipelines.runtime.parts import in_parts_on
from pipelines.runtime.worker import Worker
from pipelines.upscalers.enlarging import Enlargement, enlarge, enlargement
from pipelines.upscalers.esrgan import Trials
from pipelines.upscalers.interpolation import Upscaler, load_upscaler
from weights_script.extras import Library
from weights_script.resolve import ResolvedModel, file_names, interpolator_file, resolvers, upscaler_file

gc.freeze()
gc.enable()

ASPECT_RATIOS = ["model's own", "1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9"]
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


class Predictor(BasePredictor):
    """Holds the loaded models and runs one prediction at a time."""

    @clean_errors()
    def setup(self, weights: Optional[Path] = None) -> None:
        """Load the models: COG_WEIGHTS if set, else those that PASTEL_MODEL names, else the embedded default."""
        imports, marks = time.process_time(), [time.perf_counter()]
        log_plainly()
        chosen, missing = made(resolvers(str(weights) if weights else None, os.environ.get("PASTEL_MODEL")))
        say("\n".join(f"Model: {each.description}" for each in chosen.values()))
        marks.append(time.perf_counter())
        limit_threads()
        device = best_device()
        self.worker = Worker(within=in_parts_on(device.place))
        self.fetchers = Worker(threads=4)  # one may still be waiting for a server after its prediction was cancelled
        self.roster, seconds = self._loaded(chosen, missing, device)
        marks.append(time.perf_counter())
        checkers = [each.safety_checker for each in chosen.values() if each.safety_checker]
        self.safety = load_safety_checker(checkers[0] if checkers else None, device)
        self.outputs = OutputFolder()
        self.library = Library([each.trained for each in chosen.values() if each.trained])
        self.trials = Trials()
        DECODER.start()  # its imports run in the background while the server gets ready
        self.watchdog = watchdog.start()
        marks.append(time.perf_counter())
        found, _, checker = (end - start for start, end in pairwise(marks))
        print(
            f"Ready in {marks[-1] - marks[0]:.1f} s on {device}: weights found or fetched {found:.1f} s, "
            f"read and built {seconds['load']:.1f} s, compiled {seconds['compile']:.1f} s, "
            f"safety checker {checker:.1f} s; imports before that took {imports:.1f} s of CPU time."
        )

    def _loaded(
        self, chosen: Mapping[str, ResolvedModel], missing: Mapping[str, str], device: Device
    ) -> tuple[Roster, dict[str, float]]:
        """Load and compile the models, the first one last: it is on the device then. Return the seconds, too."""
        seconds = {"load": 0.0, "compile": 0.0}

        def loaded(name: str) -> Member:
            start, resolved = time.perf_counter(), chosen[name]
            model = self.worker.run(load, resolved.files, device)
            settings = {**model.settings, **resolved.settings}
            begin = time.perf_counter()
            model = self.worker.run(compile_model, model, settings["width"], settings["height"])
            seconds["load"] += begin - start
            seconds["compile"] += time.perf_counter() - begin
            if name != first:
                self.worker.run(put_away, model)
            return Member(model=model, settings=settings, checked=resolved.safety_checker is not None)

        first = next(iter(chosen))
        make = makers({name: each.files for name, each in chosen.items()}, device, loaded)
        members, broken = made(dict(reversed(make.items())), missing)
        files = file_names(missing) | {name: each.files.name for name, each in chosen.items()}
        roster = Roster({name: members[name] for name in chosen if name in members}, broken, files)
        if len(roster.members) + len(roster.broken) > 1:
            say(f"Models: {', '.join(roster.members)}. The first is used unless a request names another.")
        return roster, seconds

    @streaming  # type: ignore[untyped-decorator]  # cog has no types
    def predict(
        self,
        prompt: str = Input(
            description="What to draw, as tags or a sentence. WebUI syntax works: (strong:1.2). Empty: an example.",
            default="",
            max_length=10000,
        ),
        negative_prompt: str = Input(
            description="What to keep out of the picture. Empty: the model's default. A single space: nothing.",
            default="",
            max_length=10000,
        ),
        model: str = Input(
            description="Which of the container's models to use. Empty: that of the generation data, or the first.",
            default="",
            max_length=200,
        ),
        aspect_ratio: str = Input(
            description="Shape of the picture, at a size that suits the model. width and height override it.",
            default="model's own",
            choices=ASPECT_RATIOS,
        ),
        width: Optional[int] = Input(
            description="Width before the highres fix. Empty: set by the aspect ratio or by your image.",
            default=None,
            ge=64,
            le=2048,
        ),
        height: Optional[int] = Input(
            description="Height before the highres fix. Empty: set by the aspect ratio or by your image.",
            default=None,
            ge=64,
            le=2048,
        ),
        num_outputs: int = Input(description="Number of pictures. Each uses the next seed.", default=1, ge=1, le=4),
        seed: Optional[int] = Input(
            description="The same seed and settings give the same picture. Empty or -1: random; the log shows it.",
            default=None,
            ge=-1,
            le=4294967295,
        ),
        highres_fix: str = Input(
            description="Enlarge the picture and redraw it. Automatic: on, but not with an image or in a film.",
            default="Automatic",
            choices=["Automatic", "On", "Off"],
        ),
        hires_scale: Optional[float] = Input(
            description="Enlargement factor of the highres fix. Empty: 2.", default=None, ge=1.0, le=4.0
        ),
        hires_upscaler: Optional[str] = Input(
            description="How to enlarge. Latent adds most detail (strength 0.5). Empty: the model's own, or Latent.",
            default=None,
            choices=UPSCALERS,
        ),
        denoising_strength: Optional[float] = Input(
            description="How much your image or the enlarged draft may change. Empty: the model's own, or 0.6.",
            default=None,
            ge=0.0,
            le=1.0,
        ),
        image: Optional[Path] = Input(
            description="A picture to start from, instead of noise. denoising_strength sets how much it may change.",
            default=None,
        ),
        mask: Optional[Path] = Input(
            description="The part of the image to redraw: a picture of its size, white there and black elsewhere.",
            default=None,
        ),
        inpaint_area: Optional[str] = Input(
            description="Only masked redraws the masked area at full size, then pastes it. Empty: Whole picture.",
            default=None,
            choices=["Whole picture", "Only masked"],
        ),
        outpaint: str = Input(
            description="Pixels to add around the image: right 64, top 32. Use a denoising_strength of 0.8 or more.",
            default="",
            max_length=100,
        ),
        num_inference_steps: Optional[int] = Input(
            description="Sampling steps. Empty: the model's default, usually 20.",
            default=None,
            ge=1,
            le=150,
        ),
        guidance_scale: Optional[float] = Input(
            description="How closely to follow the prompt (CFG scale). 5 to 9 is usual. Empty: the model's default.",
            default=None,
            ge=1.0,
            le=30.0,
        ),
        sampler: Optional[str] = Input(
            description="Sampling method, by its WebUI name. Empty: the model's default, usually DPM++ 2M.",
            default=None,
            choices=SAMPLERS,
        ),
        schedule_type: Optional[str] = Input(
            description="Spacing of the noise levels. Empty: what suits the sampler (Karras for DPM++ 2M).",
            default=None,
            choices=SCHEDULE_TYPES,
        ),
        clip_skip: Optional[int] = Input(
            description="Text layer to use, counted from the last. Often 2 for anime. Empty: the model's default.",
            default=None,
            ge=1,
            le=12,
        ),
        loras: str = Input(
            description="LoRAs, one per line: a name, https URL or owner/repository, then :weight:text weight.",
            default="",
            max_length=10000,
        ),
        controls: str = Input(
            description="ControlNets or adapters, one per line: canny: 0.8 or owner/repo: weight=1, start=0, end=0.6.",
            default="",
            max_length=10000,
        ),
        control_images: list[Path] = Input(
            description="Pictures for controls: one per line of controls, or one for all. Empty: the image.",
            default=[],
        ),
        files: list[Path] = Input(
            description="LoRAs, embeddings, hypernetworks, ControlNets, adapters or upscalers, used by file name.",
            default=[],
        ),
        generation_data: str = Input(
            description="A picture's generation data, or settings: ENSD: 31337, RNG: CPU. Inputs you fill in win.",
            default="",
            max_length=50000,
        ),
        animation: str = Input(
            description="A film from prompt to prompt: a sun | a moon, or one per line, as 0: a sun. Empty: a picture.",
            default="",
            max_length=20000,
        ),
        frames_per_second: Optional[int] = Input(
            description="How fast the film of an animation plays. Empty: 12.", default=None, ge=1, le=60
        ),
        loop: Optional[str] = Input(
            description="How the film ends. ping-pong plays it backwards, circle draws back to its start. Empty: no.",
            default=None,
            choices=["no", "ping-pong", "circle"],
        ),
        output_format: str = Input(
            description="File format. Automatic: png, or mp4 for a film. png, webp and jpg give only a film's frames.",
            default="automatic",
            choices=["automatic", "png", "webp", "jpg", "mp4", "webm", "gif", "animated webp"],
        ),
        show_phases: bool = Input(
            description="Also return the draft, and the enlarged picture before it is redrawn.", default=False
        ),
        disable_safety_checker: bool = Input(
            description="Do not check pictures for explicit content, if the container has a checker.", default=False
        ),
        hires: Optional[bool] = Input(
            description="The old name of highres_fix. It will be removed in the next version.",
            default=None,
            deprecated=True,
        ),
        mask_blur: Optional[int] = Input(
            description="Write Mask blur: 8 into generation_data instead. It will be removed in the next version.",
            default=None,
            ge=0,
            le=64,
            deprecated=True,
        ),
        hires_steps: Optional[int] = Input(
            description="Write Hires steps: 10 into generation_data instead. It will be removed in the next version.",
            default=None,
            ge=0,
            le=150,
            deprecated=True,
        ),
        masked_content: Optional[str] = Input(
            description="Write Masked content: fill into generation_data. It will be removed in the next version.",
            default=None,
            choices=["fill", "original", "latent noise", "latent nothing"],
            deprecated=True,
        ),
        output_quality: Optional[int] = Input(
            description="Write Output quality: 80 into generation_data. It will be removed in the next version.",
            default=None,
            ge=1,
            le=100,
            deprecated=True,
        ),
    ) -> Iterator[Path]:
        """Draw the pictures, or the frames of a film and then the film, and yield each as soon as it is done."""
        inputs = Inputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            model=model,
            aspect_ratio=aspect_ratio,
            width=width,
            height=height,
            num_outputs=num_outputs,
            seed=seed,
            highres_fix=highres_fix if hires is None else "On" if hires else "Off",
            hires_scale=hires_scale,
            hires_upscaler=hires_upscaler,
            denoising_strength=denoising_strength,
            hires_steps=hires_steps,
            image=image,
            mask=mask,
            masked_content=masked_content,
            mask_blur=mask_blur,
            inpaint_area=inpaint_area,
            outpaint=outpaint,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            schedule_type=schedule_type,
            clip_skip=clip_skip,
            loras=loras,
            controls=controls,
            control_images=tuple(control_images),
            files=tuple(files),
            animation=animation,
            frames_per_second=frames_per_second,
            loop=loop,
            output_quality=output_quality,
            generation_data=generation_data,
        )
        with clean_errors(), self.watchdog.working():
            try:
                pictures = read_pictures(inputs)
                data = read_data(inputs.generation_data)
                member = picked(self.roster, inputs.model, data)
                asked = settle(inputs, data, member.settings, pictures)
                formats = formats_of(output_format, asked.settings.animation)
                file_format = FileFormat(formats.picture, asked.handling.output_quality)
                if asked.handling.upscale_only:
                    checker = None if disable_safety_checker else self.safety
                    yield self._enlarge(self._enlargement(asked, inputs, pictures), file_format, checker)
                else:
                    names = self.roster.names_beside(member.model)
                    asked = with_models(asked, names)
                    cast = cast_of(self.roster, member, asked)
                    checker = self.safety if cast.checked and not disable_safety_checker else None
                    if asked.settings.animation.asked:
                        keys = settle_keys(asked, inputs, member.settings, pictures)
                        keys = tuple(with_models(key, names) for key in keys)
                        film = make_film(self.requests_for((asked, *keys), inputs, pictures, cast))
                        say("\n".join(unused_in_files(asked, formats.film, show_phases)))
                        yield from self.animate(cast, film, file_format, formats.film, checker)
                    else:
                        (request,) = self.requests_for((asked,), inputs, pictures, cast)
                        yield from self.draw(cast, request, file_format, checker, show_phases)
            except BaseException as error:  # a cancel is a BaseException, too
                self.outputs.stop()
                release_memory(error)
                raise
            finally:
                self.library.release()
                forget_data_uris()
                trim_heap()

    def requests_for(
        self, asked: Sequence[Asked], inputs: Inputs, pictures: Pictures, cast: Cast
    ) -> list[GenerationRequest]:
        """Build the request, or those of a film: fetch the networks that they name. Log where settings come from."""
        model, first = cast.model, asked[0]
        if first.taken:
            told = ", ".join(f"{first.called(name)}: {value}" for name, value in first.taken.items())
            say(f"From the generation data: {told}")
        say("\n".join(dict.fromkeys(f"Prompt: {each.settings.prompt}" for each in asked if each.resolved)))
        lines = read_lines(inputs.controls)
        check_pictured(lines, pictures)  # before any network is fetched
        check_image(model, pictures, controlled=bool(lines or first.settings.controls))
        check_noise_level(model, first.settings.image_noise_level)
        fetched = self.fetchers.run(self.library.load_only, wanted_by(asked), inputs)
        pictures = with_depth(model, pictures, controlled=bool(fetched.controls))
        self.not_honoured = list[str]()
        drawn = list[tuple[Asked, GenerationRequest]]()
        for each in asked:
            each = self._supported(with_networks(each, fetched), pictures, fetched, model)
            drawn.append((each, request_from(each, pictures, fetched.extras)))
        (first, request), *keys = drawn
        given = {name: first.called(name) for name in first.given}
        unused = [*unused_inputs(first, request, keys), *unused_by(model, given, cast.others)]
        unused += idle_refiner(request, model, cast.others)
        say("\n".join(dict.fromkeys(unused)))
        return [request for _, request in drawn]

    def _supported(self, asked: Asked, pictures: Pictures, fetched: Fetched, model: Model) -> Asked:
        """Report what cannot be done of whole generation data, and return the rest. A strict request stops there."""
        if not asked.data.whole:
            return asked
        found = obstacles(asked, model.identity, pictures, fetched.extras, self.roster.names_beside(model))
        new = [obstacle.text for obstacle in found if obstacle.text not in self.not_honoured]
        self.not_honoured += new
        self.record_metric("not_honoured", self.not_honoured)
        say("\n".join(f"Not honoured: {text}" for text in new))
        return drop_unsupported(asked, found, asked.handling.strict)

    def _enlargement(self, asked: Asked, inputs: Inputs, pictures: Pictures) -> Enlargement:
        """Build the request that only enlarges a picture."""
        fetched = self.fetchers.run(self.library.load_only, asked.wanted, inputs)
        settings = with_networks(asked, fetched).settings
        return enlargement(settings, pictures.image, parameters_in(inputs.image) if inputs.image else "")

    def _enlarge(self, request: Enlargement, file_format: FileFormat, checker: SafetyChecker | None) -> Path:
        """Enlarge the picture, save it and return its path."""
        upscaler = self._upscaler(request.by)
        say(f"Plan: {request.describe()}")
        started = time.perf_counter()
        enlarged = Picture(FINAL, 0, self.worker.run(enlarge, request, upscaler))
        self._report({UPSCALE: time.perf_counter() - started})
        if not self.worker.run(passes, enlarged, checker):
            raise AllPicturesFlagged()
        self.outputs.clear()
        self.record_metric("image_output_count", 1)
        self.outputs.begin(enlarged.pixels, enlarged.kind, file_format, request.generation_data())
        (path,) = self.outputs.saved(wait=True)
        return Path(path)

    def draw(
        self,
        cast: Cast,
        request: GenerationRequest,
        file_format: FileFormat,
        checker: SafetyChecker | None,
        show_phases: bool,
    ) -> Iterator[Path]:
        """Run the plan: log its progress, save the pictures and yield their paths."""
        plan, model = make_plan(request), cast.model
        upscaler = self._upscaler(request.hires)
        print(f"Seed: {', '.join(map(str, plan.seeds))}")
        say("\n".join((f"Plan: {plan.describe()}", *plan.notes, *remarks(model, plan, request))))
        self.record_metric("seed", request.seed)
        self.outputs.clear()
        self.worker.run(self.roster.use, (model, *cast.others.values()), plan, request)
        drawing = render(
            model, request, plan, show_phases=show_phases, beside=Beside(upscaler=upscaler, others=cast.others)
        )
        count, events = 0, self.worker.each(drawing)
        with Bars() as bars, closing(events):
            try:
                for event in events:
                    if isinstance(event, Step):
                        bars.advance(event)
                    elif isinstance(event, PassResult):
                        bars.close()
                    elif isinstance(event, Picture) and self.worker.run(passes, event, checker):
                        identity, others, told = model.identity, cast.identities, request.as_drawn(event.refined)
                        text = parameters.of_picture(told, plan, identity, event.index, event.embeddings, others)
                        name = f"{event.kind}-{event.index}-seed-{plan.seeds[event.index]}"
                        self.outputs.begin(event.pixels, name, file_format, text)
                        count += 1
                    elif isinstance(event, Notice):
                        self._leave_out(event)
                    elif isinstance(event, Finished):
                        self._report(event.seconds)
                    # a device with a queue keeps working meanwhile; without one the next event may be far away
                    yield from map(Path, self.outputs.saved(wait=not model.device.queues))
            except Exception:
                yield from map(Path, self.outputs.saved(wait=True))  # keep the pictures that are finished
                raise
            yield from map(Path, self.outputs.saved(wait=True))
        self.record_metric("image_output_count", count)
        if count == 0:
            raise AllPicturesFlagged()

    def animate(
        self, cast: Cast, film: Film, file_format: FileFormat, suffix: str | None, checker: SafetyChecker | None
    ) -> Iterator[Path]:
        """Draw a film's frames and yield each, and then the film itself, if it has a `suffix`.

        If it fails or is cancelled, the film of the frames so far comes last.
        """
        shots, model, told = film.shots(), cast.model, FrameTexts(film, cast)
        beside = Beside(upscaler=self._upscaler(film.base.hires), others=cast.others)
        interpolator = self._interpolator(film.settings, model.device) if suffix else None
        print(f"Seed: {', '.join(map(str, dict.fromkeys(request.seed for request in film.keys)))}")
        say("\n".join((f"Plan: {describe(shots)}", *shots[0].plan.notes)))
        self.record_metric("seed", film.base.seed)
        self.outputs.clear()
        reel = Reel(self.outputs, film.settings, suffix, file_format.quality)
        largest = max(shots, key=lambda shot: len(shot.frames))
        self.worker.run(self.roster.use, (model, *cast.others.values()), largest.plan, largest.request)
        events, progress = self.worker.each(draw_film(model, film, beside)), Progress(shots)
        with progress, closing(events):
            try:
                for event in events:
                    if isinstance(event, Notice):
                        self._leave_out(event)
                    elif isinstance(event, Frame):
                        progress.advance()
                        if self.worker.run(passes, Picture(f"frame {event.place}", 0, event.pixels), checker):
                            reel.begin(event, file_format, told.of(event))
                    yield from map(Path, reel.collect(wait=not model.device.queues))
                yield from map(Path, reel.collect(wait=True))
                self.record_metric("image_output_count", len(reel.frames))
                self._report({"frames": progress.seconds})
                if interpolator and reel.frames:
                    reel.compute(interpolator, self.worker)
            except Exception:
                yield from map(Path, reel.rescue(told.of_film, hurry=False))
                raise
            except CancelationException:  # Cog hands out what comes after it, too
                yield from map(Path, reel.rescue(told.of_film, hurry=True))
                raise
        if not reel.frames:
            raise AllPicturesFlagged()
        yield from map(Path, reel.film(told.of_film))

    def _interpolator(self, settings: AnimationSettings, device: Device) -> Interpolator | None:
        """Load the network for frames between the drawn ones, if the film has any."""
        if settings.interpolation == NONE:
            return None
        path, sha256 = self.fetchers.run(interpolator_file)
        return self.worker.run(load_interpolator, path, sha256, device)

    def _leave_out(self, notice: Notice) -> None:
        """Report something that was requested and is not drawn, once."""
        if notice.text not in self.not_honoured:
            say(f"Not honoured: {notice.text}")
            self.not_honoured.append(notice.text)
            self.record_metric("not_honoured", self.not_honoured)

    def _upscaler(self, hires: HiresSettings | None) -> Upscaler | None:
        """Load the upscaler that the hires pass names; None if it has no weights of its own."""
        file = self.fetchers.run(upscaler_file, hires)
        try:
            if hires and hires.upscaler_file:
                self.trials.check(hires.upscaler_file)  # in this thread, which a cancel can interrupt
            return self.worker.run(load_upscaler, file, self.roster.first.model.device) if file else None
        except ModelError as error:
            sent = hires.upscaler_file if hires else None
            name = f"files={name_of_upload(sent.name)!r}" if sent else "hires_upscaler"
            reason = str(error).removeprefix(f"{sent.name}: ") if sent else str(error)
            raise ModelError(f"{name}: {reason}") from error

    def _report(self, seconds: dict[str, float]) -> None:
        """Log the seconds per phase and record them as metrics."""
        print("Time: " + ", ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items()))
        for phase, value in seconds.items():
            self.record_metric(f"timing.{phase}", round(value, 3))


def passes(picture: Picture, checker: SafetyChecker | None) -> bool:
    """Return whether the picture may be handed out; log it if not."""
    if checker is None:
        return True
    verdict = checker.check(picture.pixels)
    if verdict.flagged:
        print(f"Left out {picture.kind} {picture.index}: explicit content, score {verdict.score:.3f} (above 0).")
    return not verdict.flagged
