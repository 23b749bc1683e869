"""One training from an archive of pictures to an archive of results, as a generator of events.

accelerate runs the loop: mixed precision, accumulation, one or several GPUs. All chance follows from the seed and the
step, so that a training that goes on after a break meets the same noise and the same order of pictures.
"""

import math
import secrets
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipelines import __version__
from pipelines.ask.identity import ModelFiles
from pipelines.ask.inputs import checked_files
from pipelines.ask.networks import NO_EXTRAS, ExtraFile, Extras, name_of_upload
from pipelines.errors import InvalidInput, OutputError, PastelError, in_one_line
from pipelines.families.family import LATENT_CHANNELS
from pipelines.files.archives import Limits, unpack
from pipelines.models.loader import family_at, load
from pipelines.models.model import Model
from pipelines.models.text import load_tokenizer
from pipelines.runtime.device import Device, best_device, limit_threads
from pipelines.runtime.memory import memory_errors_say
from pipelines.runtime.unet_call import Condition
from pipelines.runtime.worker import stop_if_asked
from pipelines.training import result, state
from pipelines.training.batches import Batch, Batches, Encoded, encode
from pipelines.training.learner import Learner, NoisyBatch
from pipelines.training.loss import Loss, Noisy
from pipelines.training.pictures import FIELD as PICTURES
from pipelines.training.pictures import Example, Examples, Opened, captioned, opened
from pipelines.training.previews import class_requests, drawn, preview_requests
from pipelines.training.remarks import check_prompts, check_token, remarks
from pipelines.training.saving import metadata_of, save, save_word
from pipelines.training.settings import Course, check_same, course_for
from pipelines.training.wishes import DREAMBOOTH, INVERSION, PIVOTAL, Wishes, check

from accelerate import Accelerator  # isort: skip  # after the learner, which reveals it
from accelerate.state import AcceleratorState  # isort: skip
from accelerate.utils import broadcast_object_list  # isort: skip
from diffusers.optimization import get_scheduler  # isort: skip

RESUMED = Limits(entries=10_000, file=64_000_000_000, total=80_000_000_000)
"""Limits for an earlier result."""
GRADIENT_MAX = 1.0
"""Longer gradients are cut to this length, as in the recipes."""
CAPABLE_OF_BF16 = (8, 0)
FOLDER = "result"
"""The folder, beside its archive, that a result is made in."""
NO_MEMORY = (
    "The training needs more memory than there is. Lower batch_size, and raise gradient_accumulation instead; or lower "
    "resolution; or train a LoRA."
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a training needs."""

    pictures: Opened
    """The archive of pictures."""
    wishes: Wishes
    base: str
    """What the result calls its base model: an entry of the manifest, or a file's name."""
    files: ModelFiles
    settings: Mapping[str, Any]
    """The base model's own settings for requests, over those of its family."""
    folder: Path
    """Where results go."""
    resume: Path | None = None
    """An earlier result to go on from."""


@dataclass(frozen=True)
class Looked:
    """The pictures were looked at. What is said about them, for the log."""

    report: str
    course: Course


@dataclass(frozen=True)
class Drawn:
    """A picture was drawn. `what` it is for: the class, or the previews. `number` counts from 1."""

    what: str
    number: int
    total: int


@dataclass(frozen=True)
class Stepped:
    """A step is done. `number` counts from 1."""

    number: int
    total: int
    loss: float


@dataclass(frozen=True)
class Saved:
    """A result was written, which a later training can go on from."""

    archive: Path
    step: int


@dataclass(frozen=True)
class Finished:
    """The training is over. `stopped` says why it ended early, and is empty otherwise."""

    archive: Path
    stopped: str


Event = Looked | Drawn | Stepped | Saved | Finished


class _NotFinite(Exception):
    """The loss or the gradient of a batch is NaN or infinite."""


@dataclass(frozen=True)
class _Before:
    """An earlier result."""

    told: dict[str, Any]
    progress: state.Progress
    state: Path


@contextmanager
def looked_at(pictures: Path, wishes: Wishes, resume: Path | None) -> Iterator[Opened]:
    """Look at everything that needs no model, so that bad input fails before weights are fetched; yield the pictures.

    Raises InvalidInput.
    """
    check(wishes)
    checked_files((pictures,), PICTURES)
    if resume:
        checked_files((resume,), state.FIELD)
        with tempfile.TemporaryDirectory(prefix="pastel-training-") as folder:
            state.progress_of(_told_by(resume, Path(folder) / "before")[1])
    with opened(pictures, wishes.resolution) as found:
        yield found


def train(job: Job) -> Generator[Event]:
    """Train, and yield what happens. The last event is `Finished`.

    Raises InvalidInput for bad input, before any network is loaded where that is possible, OutOfMemory, OutputError,
    and NothingTrained if the first loss is not finite. If it ends early, also because the generator is closed, the
    last saved result stays in the job's folder.
    """
    with (
        memory_errors_say(lambda: NO_MEMORY),
        tempfile.TemporaryDirectory(prefix="pastel-training-", ignore_cleanup_errors=True) as scratch,
    ):
        work = Path(scratch)
        before = _before(job.resume, work / "before") if job.resume else None
        wishes = _with_seed(job.wishes, before)
        family = family_at(job.files)
        own = {**family.settings, **family.v_settings, **job.settings}
        course = course_for(wishes, family, own)
        tokenize = load_tokenizer(job.files.tokenizer, family.texts[0].openclip)
        if before:
            _check_goes_on(before, course)
        examples = job.pictures.examples(course.resolution)
        captions = _captions(course, examples)
        check_token(course, tokenize, captions)
        check_prompts(course, own, tokenize, captions)
        accelerator = _accelerator(course)
        try:
            # A random seed is the first process's.
            wishes = replace(wishes, seed=broadcast_object_list([wishes.seed])[0])
            if accelerator.is_main_process:
                with _disk_errors_say(job.folder):
                    result.fresh(job.folder / FOLDER)
            model = load(job.files, Device(accelerator.device, torch.float32))
            _check_channels(job.base, model)
            if before:
                _check_base(before, job.base, model)
            own = {**model.settings, **job.settings}
            resolution, course = course.resolution, course_for(wishes, family, own)
            if course.resolution != resolution:  # SD 2 has two own sizes, and which one only its UNet tells
                examples = job.pictures.examples(course.resolution)
            told = before.told["settings"] if before else {}
            sizes = [each.size for each in examples.pictures]
            report = examples.report(remarks(wishes, course, tokenize, sizes, told))
            yield Looked(report, course)
            training = _Training(job, course, model, own, accelerator)
            yield from training.prepare(examples, report, work)
            if before:
                training.resume(before)
            yield from training.run()
        finally:
            AcceleratorState._reset_state(True)


def _with_seed(wishes: Wishes, before: _Before | None) -> Wishes:
    """Return the wishes with a seed: the given one, that of the training to resume, or a random one."""
    if wishes.seed is not None and wishes.seed >= 0:
        return wishes
    known = before.told["settings"].get("seed") if before else None
    return replace(wishes, seed=known if isinstance(known, int) else secrets.randbits(32))


def _before(archive: Path, folder: Path) -> _Before:
    """Read an earlier result. Raises InvalidInput if it is none."""
    files, told = _told_by(archive, folder, result.STATE)
    return _Before(told, state.progress_of(told), files[result.STATE])


def _told_by(archive: Path, folder: Path, *others: str) -> tuple[dict[str, Path], dict[str, Any]]:
    """Unpack an earlier result's settings and other files into a new folder. Raises InvalidInput if it has not all."""
    folder.mkdir()
    wanted = (result.SETTINGS, *others)
    try:
        files = unpack(archive, folder, RESUMED, wanted.__contains__).files
        if missing := [name for name in wanted if name not in files]:
            raise ValueError(f"it has no {' and no '.join(missing)}")
        told = state.read_settings(files[result.SETTINGS])
    except (OSError, ValueError) as error:
        rule, fix = f"is no result of a training ({error})", "Send the archive that a training returned."
        raise InvalidInput(state.FIELD, name_of_upload(archive.name), rule, fix) from error
    return files, told


def _check_goes_on(before: _Before, course: Course) -> None:
    """Raise InvalidInput if a training cannot go on from an earlier one."""
    check_same(course, before.told["settings"])
    if before.progress.step >= course.steps:
        rule = f"the training to resume has {before.progress.step} steps already"
        raise InvalidInput("steps", course.steps, rule, "Ask for more: steps counts those before as well.")


def _check_base(before: _Before, base: str, model: Model) -> None:
    """Raise InvalidInput if the training to resume had another base model."""
    if before.told.get("base_sha256", "") != model.identity.sha256:
        rule = f"the training to resume had {before.told.get('base', 'another')}, which has other weights"
        raise InvalidInput("model", base, rule, "Name the model of that training.")


@contextmanager
def _disk_errors_say(folder: Path) -> Iterator[None]:
    """Turn the system's errors into OutputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"The result cannot be written to {folder}: {in_one_line(error)}. Free some space there, or name another "
            "folder. If there was a save before, it is still complete."
        ) from error


def _captions(course: Course, examples: Examples) -> list[str]:
    return [captioned(each, course.caption_prefix, course.token) for each in examples.pictures]


def _check_channels(base: str, model: Model) -> None:
    """Raise InvalidInput for a model that needs more than latents, as those for inpainting do."""
    if (channels := model.unet.network.config.in_channels) != LATENT_CHANNELS:
        rule = f"cannot be trained: its UNet takes {channels} channels, and not {LATENT_CHANNELS}"
        raise InvalidInput("model", base, rule, "Choose a model that is not for inpainting or depth.")


def _accelerator(course: Course) -> Accelerator:
    limit_threads()
    device = best_device().place
    precision = course.precision
    if precision == "automatic":
        fast = device.type == "cuda" and torch.cuda.get_device_capability() >= CAPABLE_OF_BF16
        precision = "bf16" if fast else "fp16" if device.type == "cuda" else "no"
    if precision == "fp16" and device.type == "cpu":
        raise InvalidInput("precision", precision, "needs a GPU", "Leave it out, or use bf16.")
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=course.gradient_accumulation,
        cpu=device.type == "cpu",
    )


class _Training:
    """The parts of one training, and how far it is."""

    def __init__(
        self, job: Job, course: Course, model: Model, own: Mapping[str, Any], accelerator: Accelerator
    ) -> None:
        self._job, self._course, self._model, self._own = job, course, model, own
        self._accelerator = accelerator
        self._losses: list[float] = []
        self._folder = job.folder / FOLDER
        self._loss = Loss(model.noise, model.prediction, course.min_snr_gamma, course.noise_offset)
        self._previews = preview_requests(course, own)
        self._class_pictures = class_requests(course, own)

    @property
    def _archive(self) -> Path:
        return self._job.folder / f"{self._course.name}.tar"

    def prepare(self, examples: Examples, report: str, work: Path) -> Generator[Event]:
        """Encode the pictures, make what is trained, and write what is known of the result already."""
        course, model = self._course, self._model
        captions = _captions(course, examples)
        pairs = list(zip(examples.pictures, captions, strict=True))
        self._batches = Batches(list(encode(model.vae, model.family, pairs)), course.batch_size, course.random("order"))
        self._class = yield from self._class_batches(work)
        self._metadata = metadata_of(course, model, captions, [each.size for each in examples.pictures])
        if self._accelerator.is_main_process:
            result.write_captions(self._folder, ((each.name, caption) for each, caption in pairs))
            (self._folder / result.REPORT).write_text(report, "utf-8")
        self._halve()
        self._learner = Learner(model, course)
        if course.gradient_checkpointing or (course.gradient_checkpointing is None and model.device.queues):
            self._learner.unet.enable_gradient_checkpointing()
            self._learner.train()
        self._encoded = self._encode_captions([*captions, *course.class_prompts] if self._class else captions)
        optimizer = torch.optim.AdamW(self._learner.groups(), weight_decay=1e-2)
        self._plain_optimizer = optimizer
        self._wrapped, self._optimizer = self._accelerator.prepare(self._learner, optimizer)

    def _halve(self) -> None:
        """Store networks that are not trained in half precision, where the training computes in it."""
        precision = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self._accelerator.mixed_precision)
        if precision is None:
            return
        whole = self._course.task == DREAMBOOTH
        if not whole:
            nn.Module.to(self._model.unet.network, precision)
        if not (whole and self._course.text_learning_rate):
            for tower in self._model.text.towers:
                nn.Module.to(tower.network, precision)

    def _class_batches(self, work: Path) -> Generator[Event, None, Batches | None]:
        """Draw pictures of the class with the untrained model, for prior preservation; None if none are asked for."""
        course, model = self._course, self._model
        encoded: list[Encoded] = []
        for number, (prompt, pixels) in enumerate(drawn(model, self._class_pictures), 1):
            yield Drawn("pictures of the class", number, course.class_images)
            file, size = work / f"class-{number}.npy", (course.resolution, course.resolution)
            np.save(file, pixels)
            example = Example(name=f"class {number}", caption="", file=file, original=size, size=size, corner=(0, 0))
            encoded += encode(model.vae, model.family, [(example, prompt)])
        return Batches(encoded, course.batch_size, course.random("class order")) if encoded else None

    def _encode_captions(self, captions: Sequence[str]) -> dict[str, Condition]:
        """Encode every caption once, if the text encoders stay as they are."""
        if self._learner.reads_text:
            return {}
        with torch.no_grad(), self._accelerator.autocast():
            return {text: self._learner.encode([text]) for text in dict.fromkeys(captions)}

    def resume(self, before: _Before) -> None:
        """Go on where an earlier training stopped. Raises InvalidInput."""
        state.read_state(before.state, self._learner.trained(), self._plain_optimizer)
        if self._accelerator.scaler and before.progress.scaler:
            self._accelerator.scaler.load_state_dict(before.progress.scaler)
        self._losses = list(before.progress.losses)

    def run(self) -> Generator[Event]:
        """Take the steps that are left."""
        course, stopped, done = self._course, "", len(self._losses)
        schedule = get_scheduler(
            course.schedule,
            self._plain_optimizer,
            num_warmup_steps=course.warmup_steps,
            num_training_steps=course.steps,
            last_epoch=done - 1,
        )
        for step in range(done, course.steps):
            try:
                loss = self._step(step)
                schedule.step()
            except _NotFinite:
                stopped = f"the loss of step {step + 1} was not finite; the result is that of step {step}"
                break
            self._losses.append(loss)
            yield Stepped(step + 1, course.steps, loss)
            if (step + 1) % course.save_every == 0 and step + 1 < course.steps:
                yield Saved((yield from self._save()), step + 1)
        if not self._losses:
            raise result.NothingTrained(
                "The first loss was not finite, so nothing was trained. Lower learning_rate. If that does not help, "
                "the model overflows in this precision."
            )
        yield Finished((yield from self._save(stopped)), stopped)

    def _step(self, step: int) -> float:
        """Take one step and return its mean loss. Raises _NotFinite, with the weights as they were."""
        accelerator, course = self._accelerator, self._course
        total = 0.0
        for part in range(course.gradient_accumulation):
            stop_if_asked()
            number = (step * course.gradient_accumulation + part) * accelerator.num_processes
            with accelerator.accumulate(self._wrapped):
                loss = self._loss_of(number + accelerator.process_index)
                total += self._finite(accelerator.reduce(loss.detach(), "mean"))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    length = accelerator.clip_grad_norm_(list(self._learner.trained().values()), GRADIENT_MAX)
                    if accelerator.scaler is None:  # else it skips such steps, and lowers its scale
                        self._finite(length)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return total / course.gradient_accumulation

    def _finite(self, value: Tensor) -> float:
        number = float(value)
        if not math.isfinite(number):
            self._optimizer.zero_grad()
            raise _NotFinite
        return number

    def _loss_of(self, number: int) -> Tensor:
        """Return the loss of a batch by its number, and of one of the class beside it."""
        kinds = [("picture", self._batches[number], 1.0)]
        if self._class:
            kinds.append(("class", self._class[number], self._course.prior_weight))
        noisy = [self._noisy(batch, number, kind) for kind, batch, _ in kinds]
        given = [self._given(batch, each) for (_, batch, _), each in zip(kinds, noisy, strict=True)]
        losses = map(self._loss, self._wrapped(given), noisy)
        return torch.stack([share * loss for (_, _, share), loss in zip(kinds, losses, strict=True)]).sum()

    def _noisy(self, batch: Batch, number: int, kind: str) -> Noisy:
        course, device = self._course, self._accelerator.device
        latents = batch.latents(course.random(kind, "latents", number), device)
        return self._loss.noisy(latents, course.random(kind, "noise", number))

    def _given(self, batch: Batch, noisy: Noisy) -> NoisyBatch:
        sizes = None if batch.sizes is None else batch.sizes.to(self._accelerator.device)
        return NoisyBatch(noisy.latents, noisy.times, batch.captions, self._known(batch), sizes)

    def _known(self, batch: Batch) -> Condition | None:
        """Return the encoded captions of a batch; None if they are encoded anew. Shorter ones get empty chunks."""
        if not self._encoded:
            return None
        found = [self._encoded[caption] for caption in batch.captions]
        if len({each.tokens.shape[1] for each in found}) > 1:
            with torch.no_grad(), self._accelerator.autocast():
                return self._learner.encode(batch.captions)
        return Condition.cat(found)

    def _save(self, stopped: str = "") -> Generator[Event, None, Path]:
        """Write the result as it is now, with previews, and return its archive. Raises OutputError."""
        with _disk_errors_say(self._job.folder):
            return (yield from self._write(stopped))

    def _write(self, stopped: str) -> Generator[Event, None, Path]:
        course, folder, step = self._course, self._folder, len(self._losses)
        self._accelerator.wait_for_everyone()
        if not self._accelerator.is_main_process:
            return self._archive
        file = folder / f"{course.name}.safetensors"
        metadata = {**self._metadata, "ss_steps": str(step)}
        save(self._learner, self._model, course, metadata, file)
        if course.task == PIVOTAL:
            save_word(self._learner, self._model, course, folder / result.WORD)
        state.write_state(folder / result.STATE, self._learner.trained(), self._plain_optimizer)
        yield from self._preview(file, step)
        result.write_losses(folder, self._losses)
        identity = self._model.identity
        told = {
            "program": f"pastel-sd {__version__}",
            "task": course.task,
            "token": course.token,
            "name": course.name,
            "family": self._model.family.name,
            "base": self._job.base,
            "base_sha256": identity.sha256,
            "step": step,
            "stopped": stopped,
            "settings": course.told(),
            "losses": self._losses,
            "scaler": self._accelerator.scaler.state_dict() if self._accelerator.scaler else {},
        }
        result.write_settings(folder, told)
        return result.pack(folder, self._archive)

    def _preview(self, file: Path, step: int) -> Generator[Event]:
        """Draw the previews. A word is read from its file, as requests do; a LoRA is part of the model now."""
        course = self._course
        word = file if course.task == INVERSION else file.with_name(result.WORD)
        extras = Extras(embeddings={course.token: ExtraFile.at(word)}) if course.vectors else NO_EXTRAS
        with self._accelerator.autocast():
            requests = [replace(request, extras=extras) for request in self._previews]
            pictures = drawn(self._model, requests, PastelError)  # what was learned is worth more than a preview
            for number, (_, pixels) in enumerate(pictures, 1):
                result.write_preview(self._folder, f"{number}-step-{step:06}", pixels)
                yield Drawn("previews", number, len(self._previews))
