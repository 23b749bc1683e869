"""Generation data of programs with their own formats -> a block as WebUI writes it, and the program's name.

The formats were taken from what users of the programs post and from public readers of such data: JSON objects, one key
per line, and InvokeAI's old command line.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InvalidInput
from pipelines.infotext.dialects import (
    COMFYUI,
    DRAW_THINGS,
    EASY_DIFFUSION,
    FOOOCUS,
    INVOKEAI,
    MIDJOURNEY,
    NOVELAI,
    SWARMUI,
    program_of,
)
from pipelines.infotext.keys import SETTING_KEYS, as_key, as_text, folded, own_key
from pipelines.infotext.syntax import NEGATIVE, write
from pipelines.infotext.webui_api import fields_of_request, is_request


@dataclass(frozen=True)
class Block:
    """A block as WebUI writes it, and the program that wrote the original ("" for WebUI's own formats)."""

    text: str
    program: str


def translated(text: str) -> Block | None:
    """Translate the text of another program into a block. Return None if the text has none of these formats.

    Raises InvalidInput for JSON in an unknown format, and for a workflow that cannot be read.
    """
    stripped = text.strip()
    for read in (_of_json, _of_list, _of_command_line, _of_draw_things, _of_midjourney):
        if (block := read(stripped)) is not None:
            return block
    return None


def _as_block(values: Mapping[str, str], program: str) -> Block:
    """Make a block of fields with our keys. Its line of parameters begins with Steps, because readers look for that."""
    fields = {key: " ".join(value.split()) for key, value in values.items() if value.strip()}
    line = {"Steps": fields.get("Steps"), **fields, "Prompt": None, "Negative prompt": None}
    return Block(write(values.get("Prompt", ""), values.get("Negative prompt", ""), line), program)


# --- JSON -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """A program's JSON format: the keys that identify it, and a table from its keys to ours."""

    program: str
    signs: frozenset[str]
    keys: Mapping[str, str]
    harmless: frozenset[str] = frozenset()
    """Keys that do not affect the picture, in lower case."""


_USUAL = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "cfg_scale": "CFG scale",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "width": "Width",
    "height": "Height",
    "model": "Model",
    "vae": "VAE",
    "clip_skip": "Clip skip",
    "denoising_strength": "Denoising strength",
}
_OF_CIVITAI = _USUAL | {
    "negativePrompt": "Negative prompt",
    "cfgScale": "CFG scale",
    "clipSkip": "Clip skip",
    "hashes": "Hashes",
    "resources": "Resources",
    "civitaiResources": "Civitai resources",
}

_FORMS = (
    _Form(
        DRAW_THINGS,
        frozenset(("c", "uc")),
        _USUAL
        | {
            "c": "Prompt",
            "uc": "Negative prompt",
            "scale": "CFG scale",
            "strength": "Strength",
            "seed_mode": "Seed mode",
        },
        frozenset(("v2", "profile", "model_version")),
    ),
    _Form(
        SWARMUI,
        frozenset(("cfgscale", "prompt")),
        _USUAL | {"negativeprompt": "Negative prompt", "cfgscale": "CFG scale"},
        frozenset(("images", "aspectratio", "swarm_version")),
    ),
    _Form(
        INVOKEAI,
        frozenset(("positive_prompt",)),
        _USUAL | {"positive_prompt": "Prompt", "scheduler": "Sampler"},
        frozenset(("app_version", "generation_mode", "metadata_version", "canvas_v2_metadata", "rand_device")),
    ),
    _Form(INVOKEAI, frozenset(("prompt", "threshold", "perlin")), _USUAL),
    _Form(
        NOVELAI,
        frozenset(("uc", "scale")),
        _USUAL | {"uc": "Negative prompt", "scale": "CFG scale", "noise_schedule": "Schedule type"},
        frozenset(("request_type", "signed_hash", "n_samples", "version", "hide_debug_overlay", "stream")),
    ),
    _Form(
        FOOOCUS,
        frozenset(("base_model", "prompt")),
        _USUAL | {"base_model": "Model", "base_model_hash": "Model hash", "resolution": "Size"},
        frozenset(("metadata_scheme", "version", "created_by", "full_prompt", "full_negative_prompt")),
    ),
    _Form(
        EASY_DIFFUSION,
        frozenset(("num_inference_steps", "use_stable_diffusion_model")),
        _USUAL
        | {
            "num_inference_steps": "Steps",
            "sampler_name": "Sampler",
            "use_stable_diffusion_model": "Model",
            "use_vae_model": "VAE",
        },
        frozenset(
            {"original_prompt", "active_tags", "inactive_tags", "session_id", "num_outputs", "vram_usage_level"}
            | {"output_format", "output_quality", "output_lossless", "metadata_output_format", "block_nsfw"}
            | {"show_only_filtered_image", "stream_image_progress", "stream_progress_updates", "used_random_seed"}
        ),
    ),
    _Form("", frozenset(("prompt", "cfgScale")), _OF_CIVITAI, frozenset(("nsfw", "basemodel", "batchsize"))),
)
"""An object has the first of these forms whose signs it contains."""
_WRAPPERS = ("parameters", "sui_image_params", "invokeai_metadata", "sd-metadata", "meta", "image", "Comment")
"""Keys whose value (an object or text) is the generation data itself."""
_WRAPPED_MOST = 4
"""How many levels of nested objects are searched."""


def _of_json(text: str) -> Block | None:
    data = _json(text)
    if not isinstance(data, dict):
        return None  # it may be a prompt that begins with a brace
    for _ in range(_WRAPPED_MOST):
        if (block := _of_object(data, text)) is not None:
            return block
        inside = _unwrapped(data)
        if isinstance(inside, str):
            return Block(inside, "")
        if inside is None:
            break
        data = {"prompt": data.get("Description"), **inside}
    rule = "is JSON from an unknown program"
    raise InvalidInput("generation_data", text, rule, "Paste the text that WebUI shows, or fill in the form.")


def _of_object(data: Mapping[str, Any], text: str) -> Block | None:
    """Make a block of an object in one of the known forms; None for any other object."""
    if (graph := _graph_of(data)) is not None:
        return _as_block(_of_graph(graph, text), COMFYUI)
    for form in _FORMS:
        if form.signs <= data.keys():
            return _as_block(dict(_by_our_keys(form, data)), form.program)
    return _as_block(fields_of_request(data), "") if is_request(data) else None


def _unwrapped(data: Mapping[str, Any]) -> dict[str, Any] | str | None:
    """Return the object or text inside `data` that is the generation data itself; None if there is none."""
    candidates = [data.get(key) for key in _WRAPPERS]
    infotexts = data.get("infotexts")
    if isinstance(infotexts, list):
        candidates = [*infotexts[:1], *candidates]
    for inside in filter(None, candidates):
        if isinstance(inside, str):
            return _json(inside) or inside
        if isinstance(inside, dict):
            return inside
    return None


def _json(text: str) -> Any:
    """Parse a JSON object. Return None for any other text."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _by_our_keys(form: _Form, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the values of an object with our keys. Unknown keys are kept, because they may affect the picture."""
    for key, value in data.items():
        said = as_text(value)
        if said and key.lower() not in form.harmless:
            yield form.keys.get(key) or form.keys.get(key.lower()) or as_key(key), said


# --- ComfyUI ----------------------------------------------------------------------------------------------------------

_Graph = Mapping[str, Mapping[str, Any]]
_OF_SAMPLER = {
    "steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "cfg": "CFG scale",
    "seed": "Seed",
    "noise_seed": "Seed",
}
"""Inputs of the sampling node -> our keys."""
_DEEPEST = 50
"""How many links are followed to find a node."""


def _graph_of(data: Mapping[str, Any]) -> _Graph | None:
    """Return the inputs of ComfyUI's nodes by number. They are empty for its editor's workflow format, which is not
    supported, and None if `data` is neither."""
    if {"nodes", "links"} <= data.keys():
        return {}
    inside = data.get("prompt")
    if isinstance(inside, str):
        inside = _json(inside)
    for graph in (data, inside):
        nodes = _nodes(graph)
        if nodes:
            return nodes
    return {} if "workflow" in data else None


def _nodes(graph: Any) -> dict[str, Mapping[str, Any]]:
    """Return the inputs of each node; empty if this is not a graph."""
    nodes: dict[str, Mapping[str, Any]] = {}
    if not isinstance(graph, dict):
        return nodes
    for number, node in graph.items():
        if not isinstance(node, dict):
            return {}
        inputs = node.get("inputs")
        if "class_type" in node and isinstance(inputs, dict):
            nodes[number] = inputs
    return nodes


def _of_graph(graph: _Graph, text: str) -> dict[str, str]:
    """Read the sampling node and the nodes before it into our keys. Raises InvalidInput if there is no such node."""
    samplers = [inputs for inputs in graph.values() if {"steps", "cfg"} <= inputs.keys()]
    if not samplers:
        rule = "is a workflow of ComfyUI in which no prompt and sampler were found"
        raise InvalidInput("generation_data", text, rule, "Fill in the form, or paste a block that WebUI shows.")
    sampler = samplers[0]
    said = {
        ours: str(sampler[key]) for key, ours in _OF_SAMPLER.items() if isinstance(sampler.get(key), (str, int, float))
    }
    said["Prompt"] = _before(graph, sampler.get("positive"), "text")
    said["Negative prompt"] = _before(graph, sampler.get("negative"), "text")
    said["Width"] = _before(graph, sampler.get("latent_image"), "width")
    said["Height"] = _before(graph, sampler.get("latent_image"), "height")
    said["Model"] = _before(graph, sampler.get("model"), "ckpt_name")
    strength = sampler.get("denoise", 1)
    return said | ({"Denoising strength": str(strength)} if strength != 1 else {})


def _before(graph: _Graph, link: Any, name: str) -> str:
    """Follow a link back to the first node with a value for this input. Return "" if there is none."""
    for _ in range(_DEEPEST):
        if not isinstance(link, list) or not link:
            return ""
        inputs = graph.get(str(link[0]), {})
        value = inputs.get(name)
        if isinstance(value, (str, int, float)):
            return str(value)
        links = [each for each in (value, *inputs.values()) if isinstance(each, list)]
        link = next(iter(links), None)
    return ""


# --- texts ------------------------------------------------------------------------------------------------------------

_LINE = re.compile(r"\s*([A-Za-z][\w ./()-]{0,60}?)\s*:\s?(.*)")
_OF_MOCHI = {"include in image": "Prompt", "exclude from image": "Negative prompt"}
"""Mochi Diffusion's own folded keys -> ours."""
_TEXTS = ("Prompt", "Negative prompt")


def _of_list(text: str) -> Block | None:
    """Read a text with one key per line, as Easy Diffusion and Fooocus write it. Return None for single settings."""
    written = _written(text)
    if any(_json(value) for value in written.values()):  # NovelAI's Description and Comment
        return _of_json(json.dumps(written))
    values = {_of_list_key(key): value for key, value in written.items()}
    if "Sampler" not in values and "Schedule type" in values:  # diffusers calls samplers schedulers
        values["Sampler"] = values.pop("Schedule type")
    program = program_of(dict.fromkeys(written, "") | values)
    foreign = not values.keys() <= SETTING_KEYS
    needed = _OF_A_PROGRAM if program and foreign else _OF_ANY_PICTURE if foreign else _OF_A_PICTURE
    return _as_block(values, program) if values.keys() >= needed else None


_OF_A_PROGRAM = frozenset(("Prompt", "Seed"))
"""Keys that a list must have to count as a whole picture, if its keys identify the program."""
_OF_ANY_PICTURE = _OF_A_PROGRAM | {"Steps"}
"""The same for an unknown program, if some keys are not settings of ours."""
_OF_A_PICTURE = _OF_ANY_PICTURE | {"Sampler", "CFG scale"}
"""The same for a list that contains only settings of ours."""


def _written(text: str) -> dict[str, str]:
    """Parse a text with one key per line into values by key; empty if the text does not begin with a key."""
    lines = text.split("\n")
    if text.casefold().startswith("include in image:"):
        lines = re.split("[;\n]", text)
    written: dict[str, list[str]] = {}
    key = ""
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is not None and (_of_list_key(key) not in _TEXTS or found[1][0].isupper()):
            key = found[1].strip()
            written[key] = [found[2].strip()]
        elif key:
            written[key].append(line)
        else:
            return {}
    return {key: "\n".join(lines).strip() for key, lines in written.items()}


def _of_list_key(key: str) -> str:
    return _OF_MOCHI.get(folded(key)) or own_key(key) or key


_OPTIONS = {"s": "Steps", "S": "Seed", "W": "Width", "H": "Height", "C": "CFG scale", "A": "Sampler"}
_OPTION = re.compile(r"(?<!\S)-([a-zA-Z])[ ]?(\S+)")


def _of_command_line(text: str) -> Block | None:
    """Read InvokeAI's `"a cat [ugly]" -s 50 -S 3 -W 512 -H 512 -C 7.5 -A k_lms`."""
    before, _, options = text.rpartition('"')
    values = {_OPTIONS[flag]: value for flag, value in _OPTION.findall(options) if flag in _OPTIONS}
    if not before.startswith('"') or not {"Steps", "Seed"} <= values.keys():
        return None
    prompt, bracket, rest = before[1:].partition("[")
    negative, closing, _ = rest.rpartition("]")
    texts = {"Prompt": prompt.strip(), "Negative prompt": negative} if bracket and closing else {"Prompt": before[1:]}
    return _as_block(texts | values, INVOKEAI)


def _of_draw_things(text: str) -> Block | None:
    """Read Draw Things' form: WebUI's, except that a minus at the beginning of a line marks the negative prompt."""
    above, _, line = text.rpartition("\n")
    if not re.match(r"Steps: ?\d+,", line) or "Guidance Scale:" not in line:
        return None
    lines = above.split("\n")
    for number, each in enumerate(lines):
        if each.startswith("-"):
            lines[number] = f"{NEGATIVE} {each[1:].strip()}"
            break
    return Block("\n".join((*lines, line)), DRAW_THINGS)


_FLAG = re.compile(r"(?:^|\s)--(?:ar|v|niji|stylize|s|chaos|c|q|iw|style|no|seed|sref|cref|raw|tile|weird)\b", re.I)


def _of_midjourney(text: str) -> Block | None:
    return Block(text, MIDJOURNEY) if _FLAG.search(text) and "Steps:" not in text else None
