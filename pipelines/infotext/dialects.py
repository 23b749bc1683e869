"""Which program wrote a block, and the fields that mean something else there than in WebUI."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipelines.infotext.keys import folded, same_value

COMFYUI, SDNEXT, DRAW_THINGS = "ComfyUI", "SD.Next", "Draw Things"
INVOKEAI, NOVELAI, FOOOCUS, SWARMUI = "InvokeAI", "NovelAI", "Fooocus", "SwarmUI"
EASY_DIFFUSION, MOCHI, MIDJOURNEY = "Easy Diffusion", "Mochi Diffusion", "Midjourney"

_SIGNS: tuple[tuple[str, str, str], ...] = (
    (SDNEXT, "app", r"sd\.?next"),
    (SDNEXT, "version", "vlad"),
    (SWARMUI, "version|app|swarm version", "swarm"),
    (SWARMUI, "automaticvae|swarm version|loraweights", ""),
    (COMFYUI, "version|app|software", "comfy"),
    (COMFYUI, r"(lora|embedding|clip) \d+ (model )?(name|hash)|metadata generator version", ""),
    (FOOOCUS, "version|software", "fooocus"),
    (FOOOCUS, "adm guidance|fooocus v2 expansion|metadata scheme|sharpness", ""),
    (DRAW_THINGS, "seed mode", ""),
    (DRAW_THINGS, "software|creator tool", "draw things"),
    (INVOKEAI, "version|app|software|app id", "invoke"),
    (NOVELAI, "software|source", "novelai"),
    (EASY_DIFFUSION, "stable diffusion model", ""),
    (MOCHI, "generator", "mochi"),
    (MOCHI, "include in image", ""),
    (COMFYUI, "sampler", r"(dpm|euler|heun|uni|res|lms|ddim)\w*_\w"),
)
"""Program, a pattern for one of its folded keys, and a pattern for the beginning of the key's value, in any case."""

REASONS: Mapping[str, str] = {
    COMFYUI: "uses different noise and prompt weights",
    DRAW_THINGS: "has its own samplers and noise",
    EASY_DIFFUSION: "has its own noise and prompt weights",
    FOOOCUS: "changes prompts and guidance in its own way",
    INVOKEAI: "uses different noise and prompt weights",
    MIDJOURNEY: "has models that are not public",
    MOCHI: "has its own samplers and noise",
    NOVELAI: "has its own models and prompt weights",
    SWARMUI: "draws with ComfyUI, which uses different noise and prompt weights",
}
"""Programs whose pictures cannot be drawn here, and why."""


def program_of(fields: Mapping[str, str]) -> str:
    """Return the program that wrote a block with these fields; "" if nothing points to a program other than WebUI."""
    said = {folded(key): value.strip().strip('"') for key, value in fields.items()}
    for program, key, beginning in _SIGNS:
        for name, value in said.items():
            if re.fullmatch(key, name) and re.match(beginning, value, re.IGNORECASE):
                return program
    return ""


@dataclass
class Dialect:
    """The fields of another program's block while they are being translated into WebUI's."""

    program: str
    fields: dict[str, str]
    doubts: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    def take(self, key: str) -> str | None:
        """Remove a field, by its key in any case, and return its value."""
        name = next((name for name in self.fields if folded(name) == key), None)
        return None if name is None else self.fields.pop(name)


def in_our_words(fields: Mapping[str, str], program: str) -> Dialect:
    """Translate the fields of a program's block into WebUI's."""
    dialect = Dialect(program, dict(fields))
    if reason := REASONS.get(program):
        dialect.doubts.append(f"made with {program}, which {reason}")
    _ADAPTED.get(program, _as_it_is)(dialect)
    return dialect


def _as_it_is(dialect: Dialect) -> None:
    """Leave the fields as they are."""


def _strength(dialect: Dialect, key: str) -> None:
    """Translate a strength, which is 1 unless the picture was made from another one."""
    strength = dialect.take(key)
    if strength is not None and not same_value(strength, "1"):
        dialect.fields["Denoising strength"] = strength


_SEED_MODES = {"torch cpu compatible": "CPU", "nvidia gpu compatible": "GPU"}
"""Draw Things' seed modes whose noise we can draw -> our noise source."""


def _from_draw_things(dialect: Dialect) -> None:
    _strength(dialect, "strength")
    mode = (dialect.take("seed mode") or "").casefold()
    if mode in _SEED_MODES:
        dialect.fields["RNG"] = _SEED_MODES[mode]


def _from_comfyui(dialect: Dialect) -> None:
    _strength(dialect, "denoise")


_STEPS_OF_FOOOCUS = {"quality": "60", "speed": "30", "extreme speed": "8", "lightning": "4", "hyper-sd": "4"}
"""How many steps Fooocus's `Performance` stands for."""


def _from_fooocus(dialect: Dialect) -> None:
    """Read the steps from the performance, which implies them in newer versions."""
    performance = dialect.take("performance")
    if performance is None or "Steps" in dialect.fields:
        return
    if steps := _STEPS_OF_FOOOCUS.get(folded(performance)):
        dialect.fields["Steps"] = steps
    else:
        dialect.fields["Performance"] = performance


_CLASSES = {
    "ddimscheduler": "DDIM",
    "eulerancestraldiscretescheduler": "Euler a",
    "eulerdiscretescheduler": "Euler",
    "heundiscretescheduler": "Heun",
    "kdpm2ancestraldiscretescheduler": "DPM2 a",
    "kdpm2discretescheduler": "DPM2",
    "lcmscheduler": "LCM",
    "lmsdiscretescheduler": "LMS",
    "unipcmultistepscheduler": "UniPC",
}
"""diffusers' class of a sampler -> our name. SD.Next writes it in addition to the sampler's name."""
_OPERATIONS = frozenset(("txt2img", "img2img", "hires", "upscale", "inpaint"))
_RESIZED = {"fixed": "stretch", "crop": "crop", "fill": "fill"}


def _from_sdnext(dialect: Dialect) -> None:
    """Translate SD.Next's fields (https://github.com/vladmandic/sdnext/wiki). Its samplers are those of diffusers."""
    dialect.warnings.append("made with SD.Next, whose samplers round noise levels: details differ")
    _sampler_of_sdnext(dialect)
    mode = dialect.take("resize mode")
    if mode is not None and folded(mode) in _RESIZED:
        dialect.fields["Resize mode"] = _RESIZED[folded(mode)]
    operations = dialect.fields.get("Operations", "").split(";")
    done = set(map(folded, operations)) - {""}
    if not done:  # older versions do not write them
        return
    if other := sorted(done - _OPERATIONS):
        dialect.doubts.append(f"SD.Next also did {', '.join(other)}, which is not done here")
    from_picture = not done.isdisjoint(("img2img", "inpaint"))
    if "hires" in done:
        _second_pass_of_sdnext(dialect, from_picture)
    else:
        _single_pass_of_sdnext(dialect, from_picture, enlarged="upscale" in done)


def _sampler_of_sdnext(dialect: Dialect) -> None:
    """Read the sampler from diffusers' class if its name is "Default", and the schedule type from SD.Next's own key."""
    fields = dialect.fields
    scheduler = (dialect.take("scheduler") or "").casefold()
    if folded(fields.get("Sampler", "default")) == "default" and scheduler in _CLASSES:
        fields["Sampler"] = _CLASSES[scheduler]
    spacing = dialect.take("sampler sigma")
    if spacing is not None and folded(spacing) != "default":
        fields["Schedule type"] = spacing


def _second_pass_of_sdnext(dialect: Dialect, from_picture: bool) -> None:
    strength = dialect.take("hires strength")
    if strength is not None:
        key = "Hires denoising strength" if from_picture else "Denoising strength"
        dialect.fields[key] = strength


def _single_pass_of_sdnext(dialect: Dialect, from_picture: bool, enlarged: bool) -> None:
    """Remove the settings of a second pass, which SD.Next writes even if there was none."""
    upscaler = dialect.take("hires upscaler")
    for key in list(dialect.fields):
        if folded(key).startswith("hires "):
            del dialect.fields[key]
    if not from_picture:
        dialect.take("denoising strength")
    if enlarged:
        dialect.doubts.append(f"SD.Next enlarged the picture with {upscaler or 'an upscaler'} without redrawing it")


_ADAPTED: Mapping[str, Callable[[Dialect], None]] = {
    COMFYUI: _from_comfyui,
    DRAW_THINGS: _from_draw_things,
    FOOOCUS: _from_fooocus,
    SDNEXT: _from_sdnext,
}
