"""A request to WebUI's API, or the part of its response that repeats the request -> fields with our keys.

The names are those listed on WebUI's own API page (`/docs`). The API's defaults are filled in.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pipelines.infotext.keys import as_key, as_text

_KEYS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Width",
    "height": "Height",
    "subseed": "Variation seed",
    "subseed_strength": "Variation seed strength",
    "sd_model_name": "Model",
    "sd_model_hash": "Model hash",
    "sd_vae_name": "VAE",
    "sd_vae_hash": "VAE hash",
    "vae": "VAE",
    "model": "Model",
    "clip_skip": "Clip skip",
    "size": "Size",
    "eta": "Eta",
    "s_churn": "Sigma churn",
    "s_noise": "Sigma noise",
    "s_tmin": "Sigma tmin",
    "s_tmax": "Sigma tmax",
    "s_min_uncond": "NGMS",
    "tiling": "Tiling",
    "refiner_checkpoint": "Refiner",
    "refiner_switch_at": "Refiner switch at",
    "denoising_strength": "Denoising strength",
}
_OF_A_HIRES_PASS = {
    "hr_scale": "Hires upscale",
    "hr_upscaler": "Hires upscaler",
    "hr_second_pass_steps": "Hires steps",
    "hr_sampler_name": "Hires sampler",
    "hr_scheduler": "Hires schedule type",
    "hr_checkpoint_name": "Hires checkpoint",
    "hr_prompt": "Hires prompt",
    "hr_negative_prompt": "Hires negative prompt",
}
"""These apply only if `enable_hr` is true."""
_OF_AN_IMAGE = {"initial_noise_multiplier": "Noise multiplier"}
"""These apply only if there is an image."""
_OF_A_MASK = {"mask_blur": "Mask blur", "inpaint_full_res_padding": "Masked area padding"}
"""These apply only if there is a mask."""
_CHOICES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "resize_mode": ("Resize mode", ("stretch", "crop", "fill", "latent")),
    "inpainting_fill": ("Masked content", ("fill", "original", "latent noise", "latent nothing")),
    "inpaint_full_res": ("Inpaint area", ("Whole picture", "Only masked")),
    "inpainting_mask_invert": ("Mask mode", ("Inpaint masked", "Inpaint not masked")),
}
"""Names whose value in the API is a number or a boolean -> our key, and the choices in the API's order."""
_PAIRS = {
    "Hires resize": ("hr_resize_x", "hr_resize_y"),
    "Seed resize from": ("seed_resize_from_w", "seed_resize_from_h"),
}
_OPTIONS = {
    "sd_model_checkpoint": "Model",
    "sd_checkpoint_hash": "Model hash",
    "sd_vae": "VAE",
    "clip_stop_at_last_layers": "Clip skip",
    "randn_source": "RNG",
    "eta_noise_seed_delta": "ENSD",
    "eta_ancestral": "Eta",
    "eta_ddim": "Eta DDIM",
    "s_churn": "Sigma churn",
    "s_noise": "Sigma noise",
    "s_tmin": "Sigma tmin",
    "s_tmax": "Sigma tmax",
    "s_min_uncond": "NGMS",
    "s_min_uncond_all": "NGMS all steps",
    "skip_early_cond": "Skip Early CFG",
    "sigma_min": "Schedule min sigma",
    "sigma_max": "Schedule max sigma",
    "rho": "Schedule rho",
    "always_discard_next_to_last_sigma": "Discard penultimate sigma",
    "sgm_noise_multiplier": "SGM noise multiplier",
    "sd_noise_schedule": "Noise Schedule",
    "use_downcasted_alpha_bar": "Downcast alphas_cumprod",
    "use_old_scheduling": "Old prompt editing timelines",
    "emphasis": "Emphasis",
    "pad_cond_uncond": "Pad conds",
    "tiling": "Tiling",
    "img2img_fix_steps": "Exact steps",
    "img2img_extra_noise": "Extra noise",
    "initial_noise_multiplier": "Noise multiplier",
    "inpainting_mask_weight": "Conditional mask weight",
}
"""Options that `override_settings` may set."""
_DEFAULTS = {"steps": 50, "cfg_scale": 7.0, "sampler_name": "Euler", "width": 512, "height": 512}
_DEFAULTS_OF_AN_IMAGE = {"denoising_strength": 0.75}
_DEFAULTS_OF_A_MASK = {"mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0}
"""The API's defaults for names that a request leaves out."""
_HARMLESS = frozenset(
    {"send_images", "save_images", "do_not_save_samples", "do_not_save_grid", "n_iter", "batch_size", "enable_hr"}
    | {"init_images", "include_init_images", "mask", "latent_mask", "mask_round", "image_cfg_scale", "force_task_id"}
    | {"all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "job_timestamp", "index_of_first_image"}
    | {"override_settings", "override_settings_restore_afterwards", "infotexts", "extra_generation_params"}
    | {"is_using_inpainting_conditioning"}
)
"""Names that do not affect the picture, or that are read separately."""
_READ_APART = frozenset(
    (
        *_HARMLESS,
        *_OF_A_HIRES_PASS,
        *_OF_AN_IMAGE,
        *_OF_A_MASK,
        *_CHOICES,
        *(side for pair in _PAIRS.values() for side in pair),
    )
)
"""Names that do not become fields directly, unless they apply."""
_SIGNS = frozenset(("sampler_name", "sampler_index", "override_settings", "enable_hr", "n_iter", "init_images"))
"""A request has at least one of these names, or both its steps and its CFG scale."""


def is_request(data: Mapping[str, Any]) -> bool:
    """Return whether an object is a request to WebUI's API, or repeats one in a response without an infotext."""
    if "prompt" not in data or "infotexts" in data:
        return False
    return not _SIGNS.isdisjoint(data) or {"steps", "cfg_scale"} <= data.keys()


def fields_of_request(data: Mapping[str, Any]) -> dict[str, str]:
    """Return a request's values with our keys. Unknown names are kept."""
    hires, image = bool(data.get("enable_hr")), bool(data.get("init_images"))
    mask = image and bool(data.get("mask"))
    data = _complete(data, image, mask)
    keys = dict(_KEYS)
    for counts, names in ((hires, _OF_A_HIRES_PASS), (image, _OF_AN_IMAGE), (mask, _OF_A_MASK)):
        if counts:
            keys |= names
    apart = _READ_APART - keys.keys()
    fields = {keys.get(name) or as_key(name): as_text(value) for name, value in data.items() if name not in apart}
    if not (hires or image):
        fields["Denoising strength"] = ""
    fields |= _choices(data, image, mask) | _pairs(data, hires) | dict(_overridden(data.get("override_settings")))
    more = data.get("extra_generation_params")
    fields |= {as_key(key): as_text(value) for key, value in more.items()} if isinstance(more, dict) else {}
    return {key: said for key, said in fields.items() if said}


def _complete(data: Mapping[str, Any], image: bool, mask: bool) -> dict[str, Any]:
    """Add the API's defaults. If the sampler is named twice, `sampler_name` wins."""
    defaults = _DEFAULTS | (_DEFAULTS_OF_AN_IMAGE if image else {}) | (_DEFAULTS_OF_A_MASK if mask else {})
    sampler = data.get("sampler_name") or data.get("sampler_index") or data.get("sampler") or defaults["sampler_name"]
    said = {name: value for name, value in data.items() if not name.startswith("sampler")}
    return {**defaults, **said, "sampler_name": sampler}


def _choices(data: Mapping[str, Any], image: bool, mask: bool) -> dict[str, str]:
    """Read the choices that apply: those of a mask, and how an image is resized."""
    fields: dict[str, str] = {}
    for name, (key, choices) in _CHOICES.items():
        value = data.get(name)
        if isinstance(value, int) and (image if name == "resize_mode" else mask):
            fields[key] = choices[value] if 0 <= value < len(choices) else str(value)
    return fields


def _pairs(data: Mapping[str, Any], hires: bool) -> dict[str, str]:
    """Join width and height into sizes. Sides of 0 or -1 count as not given."""
    fields: dict[str, str] = {}
    for key, names in _PAIRS.items():
        sides = [data.get(name) or 0 for name in names]
        if (hires or not key.startswith("Hires")) and any(side not in (0, -1) for side in sides):
            fields[key] = "x".join(map(str, sides))
    return fields


def _overridden(options: object) -> Iterator[tuple[str, str]]:
    for name, value in options.items() if isinstance(options, dict) else ():
        key, said = _OPTIONS.get(name.lower()) or as_key(name), as_text(value)
        if key == "Model":  # in the form of WebUI's menu: folder/name.safetensors [hash]
            said, _, digits = said.partition(" [")
            said = PurePath(said.replace("\\", "/")).stem
            if digits:
                yield "Model hash", digits.removesuffix("]")
        if said:
            yield key, said
