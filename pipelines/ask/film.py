"""A film as requests: its key frames, and batches of the frames between them, each with its plan."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.ask.animation import CIRCLE, WHOLE_FILM, AnimationSettings, KeyFrame, Timeline
from pipelines.ask.networks import hypernetwork_tags, lora_tags
from pipelines.ask.plan import Between, HighresPlan, make_plan
from pipelines.ask.request import GenerationRequest
from pipelines.errors import InvalidInput, counted

BATCH = 8
"""Frames between two key frames that are drawn together."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """Frames that are drawn together."""

    frames: tuple[float, ...]
    """Their places in the film: key frames have whole numbers, and 2.5 lies between the frames 2 and 3."""
    request: GenerationRequest
    """A key frame's own request; else that of the key frame before, with numbers in between."""
    plan: HighresPlan
    keys: tuple[int, ...]
    """The numbers of the key frames that it is drawn from: a key frame's own; else those before and behind it."""
    blended: int
    """How many of their first calls the frames between key frames blend, instead of computing their own."""

    @property
    def steps(self) -> int:
        """Computed steps of all frames; those that a sampler takes as it needs them count as requested."""
        parts = [part for part in (self.plan.first, self.plan.hires) if part]
        steps = sum(part.asked if part.steps is None else part.steps for part in parts)
        calls_per_step = self.plan.first.calls_of(1)
        return len(self.frames) * (steps - (self.blended // calls_per_step if self.plan.between else 0))


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film's requests. Every frame can be drawn again alone."""

    base: GenerationRequest
    """The request that the film was asked with. Its animation has the key frames' prompts as they are drawn."""
    keys: tuple[GenerationRequest, ...]
    """The request of each key frame."""
    timeline: Timeline

    @property
    def settings(self) -> AnimationSettings:
        """How the film moves and plays."""
        return self.base.animation

    def shots(self) -> list[Shot]:
        """Return everything to draw, in the film's order, with equally spaced frames, or the one that is asked for.

        Raises InvalidInput if a frame would run no step.
        """
        if self.settings.frame != WHOLE_FILM:
            return self._only(self.settings.frame)
        shots = []
        for number, frames in self.timeline.between():
            shots += [self.key(number), *self.between(number, frames)]
        return shots if self.settings.loop == CIRCLE else [*shots, self.key(len(self.keys) - 1)]

    def _only(self, frame: float) -> list[Shot]:
        for number, key in enumerate(self.timeline.keys):
            if frame == key.frame:
                return [self.key(number % len(self.keys))]
            if frame < key.frame:
                return list(self.between(number - 1, [frame]))
        raise AssertionError(frame)  # the settings have checked it

    def key(self, number: int) -> Shot:
        """Return a key frame, which is the picture of its prompt."""
        request = self.keys[number]
        return Shot(
            frames=(self.timeline.keys[number].frame,),
            request=request,
            plan=make_plan(request),
            keys=(number,),
            blended=self._blended(request),
        )

    def ends(self, number: int) -> tuple[int, int]:
        """Return the numbers of a key frame and the next one, which is the first one again where a circle closes."""
        return number, (number + 1) % len(self.keys)

    def batch(self, number: int) -> int:
        """Return how many frames between a key frame and the next one can be drawn together."""
        start, end = (self.keys[key] for key in self.ends(number))
        return BATCH if _alike(start, end) and not _adaptive(start) else 1

    def _blended(self, *requests: GenerationRequest) -> int:
        """Return how many calls are blended between requests: none if their first passes visit other noise levels."""
        first, *others = (make_plan(request).first for request in requests)
        if self.settings.common_beginning or first.steps is None or any(other != first for other in others):
            return 0
        return math.floor(self.settings.blended_beginning * first.calls + 0.5)

    def between(self, number: int, frames: Sequence[float]) -> Iterator[Shot]:
        """Yield the frames between a key frame and the next, in batches if the same networks and steps draw them."""
        start, end = (self.keys[key] for key in self.ends(number))
        size, blended = self.batch(number), self._blended(start, end)
        for first in range(0, len(frames), size):
            batch = tuple(frames[first : first + size])
            shares = tuple(self.timeline.weight(number, frame) for frame in batch)
            request = _with_strengths(start, end, shares[0])
            plan = make_plan(request)
            yield Shot(
                frames=batch,
                request=request,
                plan=replace(
                    plan,
                    seeds=plan.seeds * len(batch),
                    variation_seeds=plan.variation_seeds * len(batch),
                    between=Between(end=end, shares=shares, common=self.settings.common_beginning),
                ),
                keys=self.ends(number),
                blended=blended,
            )

    def infotext_request(self, frame: float) -> GenerationRequest:
        """Return the request whose generation data draws this frame again alone: for a key frame its own."""
        pairs = zip(self.timeline.keys, self.keys, strict=False)
        own = next((request for key, request in pairs if key.frame == frame), None)
        frame = int(frame) if frame == int(frame) else frame
        return own or replace(self.base, animation=replace(self.settings, frame=frame))


def describe(shots: Sequence[Shot]) -> str:
    """Return the plan of a film in one line, for the log."""
    frames = counted(frames_of(shots), "frame")
    return f"{frames}, {sum(shot.steps for shot in shots)} steps in all; each {shots[0].plan.describe()}"


def frames_of(shots: Sequence[Shot]) -> int:
    """Return how many frames they are."""
    return sum(len(shot.frames) for shot in shots)


def make_film(requests: Sequence[GenerationRequest]) -> Film:
    """Put a film together from the request that it was asked with, followed by one for each key frame.

    Dynamic prompts may pick another negative prompt for a key frame with its own seed. Its line then names that. Raises
    InvalidInput if they pick what would be read as something else, such as ` | ` or `seed=7`.
    """
    base, *keys = requests
    timeline = base.animation.timeline
    drawn = []
    for key, request in zip(timeline.keys, keys, strict=False):
        prompt, negative = (" ".join(text.split()) for text in (request.prompt, request.negative_prompt))
        own = key.negative is not None or request.negative_prompt != base.negative_prompt
        drawn.append(replace(key, prompt=prompt, negative=negative if own else None))
    text, circle = "\n".join(map(str, drawn)), base.animation.loop == CIRCLE
    try:
        settings = replace(base.animation, text=text, frames=timeline.count if circle else 0)
        same = all(map(_same, settings.timeline.keys, drawn))
    except InvalidInput:
        same = False
    if not same:
        rule = "dynamic prompts picked what reads as another film"
        fix = "Keep ` | `, empty prompts, seed=, strength=, guidance= and negative= out of the options."
        raise InvalidInput("animation", text, rule, fix)
    return Film(base=replace(base, prompt=keys[0].prompt, animation=settings), keys=tuple(keys), timeline=timeline)


def _same(read: KeyFrame, drawn: KeyFrame) -> bool:
    """Return whether a key frame is read as it is drawn. Spaces and commas at the ends mean nothing."""
    texts = ((each.prompt.strip(" ,;"), (each.negative or "").strip(" ,;")) for each in (read, drawn))
    return len(set(texts)) == 1 and replace(read, prompt="", negative=None) == replace(drawn, prompt="", negative=None)


def _alike(start: GenerationRequest, end: GenerationRequest) -> bool:
    """Return whether the frames between two requests run the same steps with the same networks."""
    return _strengths(start) == _strengths(end) and _networks(start) == _networks(end)


def _adaptive(request: GenerationRequest) -> bool:
    """Return whether a sampler takes as many steps as the pictures of its batch need. A frame's must be its own."""
    plan = make_plan(request)
    return any(part is not None and part.steps is None for part in (plan.first, plan.hires))


def _networks(request: GenerationRequest) -> list[object]:
    return [*lora_tags(request.prompt), *hypernetwork_tags(request.prompt)]


def _strengths(request: GenerationRequest) -> tuple[float | None, ...]:
    parts = request.image, request.hires
    return tuple(part.denoising_strength if part else None for part in parts)


def _with_strengths(start: GenerationRequest, end: GenerationRequest, share: float) -> GenerationRequest:
    """Return the first request with strengths between both."""
    of_image, of_hires = (
        None if a is None or b is None else a + (b - a) * share
        for a, b in zip(_strengths(start), _strengths(end), strict=True)
    )
    image, hires = start.image, start.hires
    if image and of_image is not None:
        image = replace(image, denoising_strength=of_image)
    if hires and of_hires is not None:
        hires = replace(hires, denoising_strength=of_hires)
    return replace(start, image=image, hires=hires)
