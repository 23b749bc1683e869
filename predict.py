"""The container's entrance: Cog's typed inputs -> a request -> pictures. No arithmetic and no tensors here.

Cog makes the web form and the API schema from the text of this file, without running it: choices and defaults are
literals of this file, and every description is one literal on one line (Cog does not join adjacent ones).
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Optional

from cog import BasePredictor, Input, Path, streaming

from pipelines import parameters
from pipelines.device import best_device, release_memory
from pipelines.errors import AllPicturesFlagged
from pipelines.highres import Finished, PassResult, Picture, Step, render
from pipelines.loader import load
from pipelines.output import FileFormat, OutputFolder
from pipelines.plan import make_plan
from pipelines.progress import Bars
from pipelines.request import GenerationRequest, HiresSettings, random_seed
from pipelines.safety import SafetyChecker, load_safety_checker
from weights_script.resolve import resolve

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
    "None",
    "Nearest",
    "Lanczos",
]


class Predictor(BasePredictor):
    """One model, ready; one prediction at a time."""

    def setup(self, weights: Optional[Path] = None) -> None:
        """Make a model ready: COG_WEIGHTS, else the one that PASTEL_MODEL names, else the embedded default."""
        started = time.perf_counter()
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.model = resolve(str(weights) if weights else None, os.environ.get("PASTEL_MODEL"))
        print(f"Model: {self.model.description}")
        self.networks = load(self.model.files, best_device())
        self.safety = load_safety_checker(self.model.safety_checker, self.networks.device)
        self.outputs = OutputFolder()
        print(f"Ready in {time.perf_counter() - started:.1f} s on {self.networks.device}.")

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
        width: Optional[int] = Input(
            description="Width before the highres fix, in pixels. Empty: the model's own, 448 for Pastel-Mix.",
            default=None,
            ge=64,
            le=2048,
        ),
        height: Optional[int] = Input(
            description="Height before the highres fix, in pixels. Empty: the model's own, 640 for Pastel-Mix.",
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
        hires: bool = Input(
            description="Highres fix: enlarge the first picture, then draw it again in detail.", default=True
        ),
        hires_scale: float = Input(description="How much the highres fix enlarges.", default=2.0, ge=1.0, le=4.0),
        hires_upscaler: str = Input(
            description="How the draft is enlarged. Latent invents more; Lanczos keeps closer to the draft.",
            default="Latent",
            choices=UPSCALERS,
        ),
        hires_steps: int = Input(
            description="Sampling steps of the highres pass. 0: as many as the first pass.", default=0, ge=0, le=150
        ),
        denoising_strength: float = Input(
            description="How much the highres pass may change, above 0. Latent upscalers need 0.5 to come out sharp.",
            default=0.6,
            ge=0.0,
            le=1.0,
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
        disable_safety_checker: bool = Input(
            description="Do not check pictures for explicit content, where the container has a checker.", default=False
        ),
    ) -> Iterator[Path]:
        """Draw the pictures; each comes as soon as it is decoded."""
        request = GenerationRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=self.model.width if width is None else width,
            height=self.model.height if height is None else height,
            seed=random_seed() if seed is None else seed,
            num_outputs=num_outputs,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            schedule_type=schedule_type,
            clip_skip=clip_skip,
            hires=HiresSettings(
                scale=hires_scale,
                upscaler=hires_upscaler,
                steps=hires_steps,
                denoising_strength=denoising_strength,
            )
            if hires
            else None,
        )
        file_format = FileFormat(output_format, output_quality)
        checker = None if disable_safety_checker else self.safety
        try:
            yield from self._draw(request, file_format, checker, show_phases)
        except BaseException as error:  # cancelling is one, too
            release_memory(error)
            raise

    def _draw(
        self, request: GenerationRequest, file_format: FileFormat, checker: SafetyChecker | None, show_phases: bool
    ) -> Iterator[Path]:
        """Run the plan; log, save and hand out what comes."""
        plan = make_plan(request)
        print(f"Seed: {', '.join(map(str, plan.seeds))}")
        print("\n".join((f"Plan: {plan.describe()}", *plan.notes)))
        self.record_metric("seed", request.seed)
        self.outputs.clear()
        self.outputs = OutputFolder()
        count = 0
        with Bars() as bars, closing(render(self.networks, request, plan, show_phases=show_phases)) as events:
            for event in events:
                if isinstance(event, Step):
                    bars.advance(event)
                elif isinstance(event, PassResult):
                    bars.close()
                elif isinstance(event, Picture) and passes(event, checker):
                    text = parameters.of_picture(request, plan, self.networks.identity, event.index)
                    name = f"{event.kind}-{event.index}"
                    yield Path(self.outputs.save(event.pixels, name, file_format, text))
                    count += 1
                elif isinstance(event, Finished):
                    self._report(event.seconds)
        self.record_metric("image_output_count", count)
        if count == 0:
            raise AllPicturesFlagged()

    def _report(self, seconds: dict[str, float]) -> None:
        """Seconds per phase, in the log and as metrics."""
        print("Time: " + ", ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items()))
        for phase, value in seconds.items():
            self.record_metric(f"timing.{phase}", round(value, 3))


def passes(picture: Picture, checker: SafetyChecker | None) -> bool:
    """Whether the picture may be handed out; says so where it may not."""
    if checker is None:
        return True
    verdict = checker.check(picture.pixels)
    if verdict.flagged:
        print(f"Left out {picture.kind} {picture.index}: explicit content, score {verdict.score:.3f} (above 0).")
    return not verdict.flagged
