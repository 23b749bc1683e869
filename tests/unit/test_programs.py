"""Generation data of other programs is read, or a doubt names the program; repeated values must agree."""

import json
from typing import Any

import pytest

from pipelines.ask.identity import ModelIdentity
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import NO_EXTRAS, ExtraFile, Extras
from pipelines.errors import InvalidInput
from pipelines.infotext.asked import read_data, request_from, settle
from pipelines.infotext.obstacles import obstacles
from pipelines.infotext.reading import GenerationData, read
from pipelines.infotext.unused import unused_inputs
from tests.growth import grows_linearly

MODEL = ModelIdentity(name="m", sha256="0" * 64)
LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768"
USUAL = {"prompt": "a cat", "negative_prompt": "dog, blurry", "num_inference_steps": 25, "seed": 42}


def stops(text: str, extras: Extras = NO_EXTRAS) -> list[str]:
    """What makes another picture of a block."""
    asked = settle(Inputs(), read_data(text), {"width": 64, "height": 64})
    return [each.text for each in obstacles(asked, MODEL, extras=extras) if each.other_picture]


COMFY_GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **{"seed": 42, "steps": 25, "cfg": 8.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0},
            **{"model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog, blurry", "clip": ["4", 1]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "q", "model": ["4", 0], "clip": ["4", 1]}},
}
NOVELAI = {"steps": 25, "sampler": "k_euler_ancestral", "seed": 42, "scale": 8.5, "uc": "dog, blurry"}

OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Draw Things": (
        "Draw Things",
        "a cat\n-dog, blurry\nSteps: 25, Sampler: DPM++ 2M Karras, Guidance Scale: 8.5, Seed: 42, Size: 512x640, "
        "Model: m.ckpt, Strength: 1.0, Seed Mode: Torch CPU Compatible",
        {"sampler": "DPM++ 2M", "schedule_type": "Karras", "rng": "CPU"},
    ),
    "Draw Things, JSON": (
        "Draw Things",
        json.dumps(
            {"c": "a cat", "uc": "dog, blurry", "steps": 25, "seed": 42, "scale": 8.5, "size": "512x640"}
            | {"sampler": "Euler A", "seed_mode": "Scale Alike", "strength": 1}
        ),
        {"sampler": "Euler a"},
    ),
    "ComfyUI, nodes": (
        "ComfyUI",
        json.dumps(COMFY_GRAPH),
        {"sampler": "DPM++ 2M", "schedule_type": "Karras"},
    ),
    "ComfyUI, nodes and workflow": (
        "ComfyUI",
        json.dumps({"prompt": json.dumps(COMFY_GRAPH), "workflow": {"nodes": []}}),
        {"sampler": "DPM++ 2M", "schedule_type": "Karras"},
    ),
    "ComfyUI, a saver's text": (
        "ComfyUI",
        "a cat\nNegative prompt: dog, blurry\nSteps: 25, Sampler: dpmpp_2m_karras, CFG scale: 8.5, Seed: 42, "
        "Size: 512x640, Lora_0 Model name: q.safetensors, Lora_0 Strength model: 0.5, Denoise: 1.0",
        {"sampler": "DPM++ 2M", "schedule_type": "Karras"},
    ),
    "InvokeAI": (
        "InvokeAI",
        json.dumps(
            {"positive_prompt": "a cat", "negative_prompt": "dog, blurry", "steps": 25, "seed": 42, "cfg_scale": 8.5}
            | {"width": 512, "height": 640, "scheduler": "dpmpp_2m_k", "model": {"name": "m"}}
        ),
        {"sampler": "DPM++ 2M", "schedule_type": "Karras"},
    ),
    "InvokeAI, a command": (
        "InvokeAI",
        '"a cat [dog, blurry]" -s 25 -S 42 -W 512 -H 640 -C 8.5 -A k_lms',
        {"sampler": "LMS"},
    ),
    "NovelAI": (
        "NovelAI",
        json.dumps({"Description": "a cat", "Comment": json.dumps({**NOVELAI, "width": 512, "height": 640})}),
        {"sampler": "Euler a"},
    ),
    "NovelAI, the texts of a PNG": (
        "NovelAI",
        "Title: AI generated image\nDescription: a cat\nSoftware: NovelAI\nSource: Stable Diffusion 1D44365E\n"
        f"Comment: {json.dumps({**NOVELAI, 'width': 512, 'height': 640})}",
        {"sampler": "Euler a"},
    ),
    "Fooocus": (
        "Fooocus",
        json.dumps(
            {"prompt": "a cat", "negative_prompt": "dog, blurry", "steps": 25, "seed": "42", "guidance_scale": 8.5}
            | {"resolution": "(512, 640)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras"}
            | {"base_model": "m", "performance": "Speed", "metadata_scheme": "fooocus"}
        ),
        {"sampler": "DPM++ 2M SDE", "schedule_type": "Karras"},
    ),
    "Fooocus, a log": (
        "Fooocus",
        "Prompt: a cat\nNegative Prompt: dog, blurry\nFooocus V2 Expansion: x\nPerformance: Speed\nSteps: 25\n"
        "Resolution: (512, 640)\nGuidance Scale: 8.5\nSampler: euler\nSeed: 42\nVersion: v2.1.8",
        {"sampler": "Euler"},
    ),
    "Easy Diffusion": (
        "Easy Diffusion",
        "Prompt: a cat\nSeed: 42\nStable Diffusion model: m\nSampler: euler_a\nNegative Prompt: dog, blurry\n"
        "Width: 512\nHeight: 640\nSteps: 25\nGuidance Scale: 8.5",
        {"sampler": "Euler a"},
    ),
    "Easy Diffusion, JSON": (
        "Easy Diffusion",
        json.dumps(
            {"prompt": "a cat", "negative_prompt": "dog, blurry", "num_inference_steps": 25, "seed": 42}
            | {"guidance_scale": 8.5, "width": 512, "height": 640, "sampler_name": "euler_a"}
            | {"use_stable_diffusion_model": "m"}
        ),
        {"sampler": "Euler a"},
    ),
    "SwarmUI": (
        "SwarmUI",
        json.dumps(
            {"sui_image_params": {"prompt": "a cat", "negativeprompt": "dog, blurry", "steps": 25, "seed": 42}
             | {"cfgscale": 8.5, "width": 512, "height": 640, "sampler": "euler", "scheduler": "normal"}}
        ),
        {"sampler": "Euler", "schedule_type": "Normal"},
    ),
    "Mochi Diffusion": (
        "Mochi Diffusion",
        "Include in Image: a cat; Exclude from Image: dog, blurry; Steps: 25; Guidance Scale: 8.5; Seed: 42; "
        "Size: 512x640; Scheduler: LMS; Generator: Mochi Diffusion 2.2",
        {"sampler": "LMS"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("program", "text", "own"), OTHERS.values(), ids=list(OTHERS))
def test_another_program_is_read_and_named(program: str, text: str, own: dict[str, Any]) -> None:
    found = read_data(text)
    assert found.whole
    size = {"width": 512, "height": 640}
    expected = {**USUAL, **size, "guidance_scale": 8.5, **own}
    assert {key: found.values.get(key) for key in expected} == expected
    assert not found.from_picture
    assert any(f"made with {program}, which " in told for told in stops(text))


WEBUI_JSON = {
    "a request to the API": {
        **{"prompt": "a cat", "negative_prompt": "dog, blurry", "steps": 25, "seed": 42, "cfg_scale": 8.5},
        **{"sampler_name": "Euler a", "width": 512, "height": 640, "send_images": True, "restore_faces": False},
        **{"enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent"},
    },
    "an answer of the API": {
        "infotexts": [
            f"a cat\nNegative prompt: dog, blurry\n{LINE.replace('20', '25').replace('Seed: 1', 'Seed: 42')}"
        ],
        "images": [],
    },
    "CivitAI's": {
        **{"prompt": "a cat", "negativePrompt": "dog, blurry", "steps": 25, "seed": 42, "cfgScale": 8.5},
        **{"sampler": "Euler a", "Size": "512x640", "Model": "m", "hashes": {"model": "0000000000"}, "width": 512},
    },
}


@pytest.mark.parametrize("data", WEBUI_JSON.values(), ids=list(WEBUI_JSON))
def test_webuis_data_as_json_is_read_like_the_block(data: dict[str, Any]) -> None:
    found = read_data(json.dumps(data))
    assert {key: found.values[key] for key in USUAL} == USUAL
    assert (found.values["sampler"], found.hires) == ("Euler a", False)
    assert stops(json.dumps(data)) == []


def test_the_api_needs_enable_hr_for_a_second_pass_and_an_image_for_a_strength() -> None:
    asked = WEBUI_JSON["a request to the API"] | {"denoising_strength": 0.5}
    assert not read_data(json.dumps(asked)).from_picture
    assert read_data(json.dumps(asked | {"enable_hr": True})).hires
    drawn_over = asked | {"init_images": ["AAAA"]}
    del drawn_over["enable_hr"]
    assert read_data(json.dumps(drawn_over)).from_picture
    assert not read_data(json.dumps(drawn_over)).hires


def test_keys_of_the_api_that_are_not_known_are_told() -> None:
    data = WEBUI_JSON["a request to the API"] | {"restore_faces": True, "alwayson_scripts": {"x": 1}}
    assert [told.partition(":")[0] for told in stops(json.dumps(data))] == ["restore faces", "alwayson scripts"]


@pytest.mark.parametrize(
    "name", [name for name, (_, text, _) in OTHERS.items() if text.startswith("{") and "nodes" not in name]
)
def test_what_the_json_of_a_program_asks_for_is_told(name: str) -> None:
    """Its own keys, whatever they hold; and nothing of what is off."""
    program, text, _ = OTHERS[name]
    more = {"mystery_key": 0.3, "loras": [{"name": "ink", "weight": 0.7}], "seamless_x": False, "controlnets": []}
    data = json.loads(text)
    inside = data.get("sui_image_params", data)
    if "Comment" in data:
        data["Comment"] = json.dumps({**json.loads(data["Comment"]), **more})
    else:
        inside |= more
    found = set(stops(json.dumps(data))) - set(stops(text))
    assert {told.partition(":")[0] for told in found} == {"mystery key", "loras"}
    assert all(told.endswith(f"of {program} is not understood") for told in found)
    assert any("ink" in told and "0.7" in told for told in found)


API = WEBUI_JSON["a request to the API"]


@pytest.mark.parametrize(
    ("more", "values"),
    [
        ({"seed_resize_from_w": 384, "seed_resize_from_h": 512}, {"seed_resize_width": 384, "seed_resize_height": 512}),
        ({"seed_resize_from_w": -1, "seed_resize_from_h": -1}, {"seed_resize_width": None}),
        ({"sampler_index": "LMS"}, {"sampler": "Euler a"}),  # sampler_name wins
        ({"sampler_name": None, "sampler_index": "LMS"}, {"sampler": "LMS"}),
        ({"s_min_uncond": 1.5, "s_churn": 4}, {"ngms": 1.5, "sigma_churn": 4}),
        ({"enable_hr": True, "hr_resize_x": 1024, "hr_resize_y": 1280}, {"hires_width": 1024, "hires_height": 1280}),
        ({"hr_resize_x": 1024, "hr_resize_y": 1280}, {"hires_width": None}),  # without enable_hr
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 2, "randn_source": "CPU", "eta_noise_seed_delta": 3}},
            {"clip_skip": 2, "rng": "CPU", "ensd": 3},
        ),
        (
            {"init_images": ["A"], "mask": "B", "inpainting_fill": 2, "inpainting_mask_invert": 1, "mask_blur": 7},
            {
                **{"masked_content": "latent noise", "mask_invert": True, "mask_blur": (7, 7)},
                **{"inpaint_area": "Only masked", "inpaint_padding": 0, "denoising_strength": 0.75},  # its defaults
            },
        ),
        ({"mask_blur": 7, "inpainting_fill": 2, "resize_mode": 1}, {"masked_content": None, "resize_mode": None}),
        ({"init_images": ["A"], "resize_mode": 1, "mask_blur": 7}, {"resize_mode": "crop", "mask_blur": (0, 0)}),
        ({"extra_generation_params": {"Schedule max sigma": 9}}, {"schedule_sigma_max": 9}),
    ],
)  # fmt: skip
def test_a_request_to_the_api_is_read_whole(more: dict[str, Any], values: dict[str, Any]) -> None:
    found = read(json.dumps(API | more))
    assert {name: found.values.get(name) for name in values} == values
    assert (found.unknown, found.doubts) == ({}, ())


def test_the_apis_own_defaults_fill_a_request() -> None:
    found = read('{"prompt": "puppy dog", "steps": 5, "n_iter": 1, "seed": 3}')
    assert (
        found.values.items() >= {"num_inference_steps": 5, "sampler": "Euler", "guidance_scale": 7, "seed": 3}.items()
    )
    assert (found.values["width"], found.values["height"]) == (512, 512)


def test_options_that_a_request_overrides_are_told_if_they_are_not_known() -> None:
    chosen = {"sd_model_checkpoint": "anime/ink.safetensors [abcdef0123]", "mystery": 3}
    found = read(json.dumps(API | {"override_settings": chosen}))
    assert (found.model, found.model_hash, found.unknown) == ("ink", "abcdef0123", {"mystery": "3"})


@pytest.mark.parametrize(
    ("text", "program", "steps"),
    [
        (
            "Prompt: a\nStyles: ['x']\nPerformance: Speed\nResolution: (512, 640)\nSharpness: 2.0\nSeed: 4",
            "Fooocus",
            30,
        ),
        (
            "Prompt: a\nStyles: ['x']\nPerformance: Later\nResolution: (512, 640)\nSharpness: 2.0\nSeed: 4",
            "Fooocus",
            None,
        ),
        ("Prompt: a\nSeed: 4\nStable Diffusion model: m\nWidth: 512\nHeight: 640", "Easy Diffusion", None),
    ],
)
def test_a_list_without_steps_is_known_by_its_program(text: str, program: str, steps: int | None) -> None:
    found = read(text)
    assert (found.program, found.values["seed"], found.values["width"]) == (program, 4, 512)
    assert found.values.get("num_inference_steps") == steps
    assert ("Performance" in found.unknown) == ("Later" in text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"last_node_id": 9, "nodes": [], "links": []}', "workflow of ComfyUI"),
        ('{"mood": "fine"}', "JSON from an unknown program"),
        ('{"image": {"image": {"image": {"image": {"image": {"image": 1}}}}}}', "JSON from an unknown program"),
    ],
)
def test_json_that_cannot_be_read_is_no_prompt(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_data(text)


def test_a_prompt_that_looks_like_another_programs_stays_one() -> None:
    assert read(f"{{a|b}} cat\n{LINE}").values["prompt"] == "{a|b} cat"
    assert read(f'"a cat" -s\n{LINE}').values["prompt"] == '"a cat" -s'
    assert read(f"a cat\n-dog\n{LINE}").values["prompt"] == "a cat\n-dog"
    assert read(f"style: anime\nmood: fine\n{LINE}").values["prompt"] == "style: anime\nmood: fine"


def test_midjourney_is_named() -> None:
    assert any("made with Midjourney" in told for told in stops("a cat --ar 2:3 --v 6"))


@pytest.mark.parametrize(
    "text",
    [
        "a cat\nNegative Prompt: dog\n{}",
        "a cat\nNEGATIVE PROMPT: dog\n{}",
        "a cat\nNegative_prompt: dog\n{}",
        "Prompt: a cat\nNegative prompt: dog\n{}",
        "Positive prompt: a cat\nnegative prompt : dog\n{}",
        "a cat Negative Prompt: dog {}",
    ],
)
def test_a_negative_prompt_is_known_in_any_case(text: str) -> None:
    found = read_data(text.format(LINE))
    assert (found.values["prompt"], found.values["negative_prompt"]) == ("a cat", "dog")
    assert found.values["seed"] == 1


def test_a_list_of_all_that_a_picture_needs_is_a_block() -> None:
    found = read_data("Prompt: a, b: c\nNegative prompt: d\n" + LINE.replace(", ", "\n"))
    assert (found.whole, found.values["prompt"], found.values["width"]) == (True, "a, b: c", 512)
    assert not read_data("Prompt: a\nSteps: 20\nSeed: 1").whole


def test_parameters_of_a_log_stand_between_bars() -> None:
    assert read(f"a\n{LINE.replace(', ', '| ')}").values == read(f"a\n{LINE}").values


# --- SD.Next

SDNEXT = (
    "Steps: 20, Size: 512x512, Sampler: Euler a, Seed: 1, CFG scale: 6, App: SD.Next, Version: cb0eb55, Parser: native"
)


def sdnext(end: str) -> GenerationData:
    return read(f"a\n{SDNEXT}, {end}")


def test_the_newer_names_of_sdnext() -> None:
    found = sdnext(
        "Sampler sigma: karras, Operations: hires; txt2img, Hires steps: 9, HiRes mode: 1, Hires upscaler: Lanczos, "
        "Hires scale: 2, Hires size: 1024x1024, Hires strength: 0.3, Hires CFG scale: 6, Denoising strength: 0.5, "
        "Image CFG scale: 6, Resize scale: 1, UNet: Default, VAE: Default, "
        "Sampler dynamic shift: False, Variation strength: 0.2, Variation seed: 3"
    )
    values = found.values
    assert (values["schedule_type"], values["hires_scale"], values["hires_steps"]) == ("Karras", 2, 9)
    assert (values["denoising_strength"], values["variation_strength"], found.hires) == (0.3, 0.2, True)
    assert (found.unknown, found.doubts) == ({}, ())


@pytest.mark.parametrize(
    ("end", "sampler"),
    [
        ("Sampler: Default, Scheduler: EulerDiscreteScheduler", "Euler"),
        ("Scheduler: DPMSolverMultistepScheduler", "Euler a"),
    ],
)
def test_a_class_of_diffusers_is_no_schedule_type(end: str, sampler: str) -> None:
    found = read(
        f"a\n{SDNEXT.replace('Sampler: Euler a, ', '')}, {end if 'Sampler' in end else f'Sampler: Euler a, {end}'}"
    )
    assert (found.values["sampler"], found.values.get("schedule_type"), found.doubts) == (sampler, None, ())


def test_sdnext_tells_by_its_operations_which_passes_there_were() -> None:
    enlarged = sdnext("Operations: upscale; txt2img, Hires upscaler: 4x-Valar, Hires scale: 2, Denoising strength: 1")
    assert not enlarged.hires
    assert not enlarged.from_picture
    assert "SD.Next enlarged the picture with 4x-Valar without redrawing it" in enlarged.doubts
    both = sdnext("Operations: hires; img2img, Hires scale: 2, Hires strength: 0.3, Denoising strength: 0.6")
    assert (both.values["denoising_strength"], both.values["hires_denoising_strength"]) == (0.6, 0.3)
    assert "SD.Next also did detailer, which is not done here" in sdnext("Operations: txt2img; detailer").doubts


def test_networks_of_sdnext_must_stand_in_the_prompt() -> None:
    text = f'a <lora:x:0>\n{SDNEXT}, LoRA networks: "x, y"'
    assert stops(text) == ["the LoRA y is not in its prompt, so its multiplier is unknown"]


# --- CivitAI


@pytest.mark.parametrize(
    ("resource", "told"),
    [
        ({"type": "lora", "modelName": "Ink", "modelVersionId": 5}, "the LoRA Ink from CivitAI (version 5), which"),
        (
            {"air": "urn:air:sd1:lora:civitai:12@34", "weight": 0.8},
            "the LoRA from CivitAI (version 34, weight 0.8), which",
        ),
        (
            {"air": "urn:air:sd1:lora:civitai:12@34", "weight": 0.8},
            "write https://civitai.com/api/download/models/34:0.8 in",
        ),
        (
            {"type": "lora", "modelId": 12},
            "the LoRA from CivitAI (model 12), which its prompt does not name: write https://",
        ),
        ({"air": "urn:air:sd1:lora:civitai:12"}, "write https://civitai.com/models/12 in loras"),
        ({"air": "civitai:12@34", "type": "LORA"}, "the LoRA from CivitAI (version 34)"),
        (
            {"air": "urn:air:sd1:lora:huggingface:a/b@main"},
            "the LoRA from Hugging Face (model a/b), which its prompt does not name: write a/b in loras",
        ),
        ({"modelVersionId": 9}, "the file from CivitAI (version 9), which its prompt does not name"),
        ({"type": "embed", "modelVersionId": 9}, "the embedding from CivitAI (version 9)"),
        (
            {"type": "ImageJobNetworkParams { Strength = 0.4, Type = lora }", "modelVersionId": 7},
            "the LoRA from CivitAI (v",
        ),
        (
            {"type": "checkpoint", "modelName": "Pony", "modelVersionId": 1},
            "the checkpoint Pony from CivitAI (version 1)",
        ),
        ({"air": "urn:air:sdxl:checkpoint:civitai:1@2"}, "which is for models of the family sdxl"),
        ({"type": "hypernet", "modelVersionId": 2}, "the hypernetwork from CivitAI (version 2)"),
    ],
)
def test_a_resource_says_what_it_is_and_what_to_do(resource: dict[str, Any], told: str) -> None:
    (found,) = stops(f"a\n{LINE}, Civitai resources: {json.dumps([resource])}, Civitai metadata: {{}}")
    assert told in found
    assert "  " not in found


def test_a_resource_that_is_known_otherwise_is_no_obstacle() -> None:
    lora = {"type": "lora", "modelVersionId": 34, "weight": 0.8}
    text = f"a <lora:x:0.8>\n{LINE}, Civitai resources: {json.dumps([lora])}"
    brought = ExtraFile("x", 0, 0, origin="loras='https://civitai.com/api/download/models/34'")  # type: ignore[arg-type]
    assert stops(text, Extras(loras={"x": brought})) == []
    checkpoint = {"type": "checkpoint", "modelVersionId": 1}
    assert stops(f"a\n{LINE}, Model: m, Civitai resources: {json.dumps([checkpoint])}") == []
    named = {"type": "lora", "name": "x", "weight": 0.8}
    assert stops(f"a <lora:x:0>\n{LINE}, Resources: {json.dumps([named])}") == []


def test_hashes_of_other_kinds_are_told() -> None:
    (found,) = stops(f'a\n{LINE}, Hashes: {{"hypernet:h": "12", "model": "0000000000", "LORA:": ""}}')
    assert "the hypernetwork h" in found
    assert not any("CivitAI" in told for told in stops(f'a <hypernet:h:0>\n{LINE}, Hashes: {{"hypernet:h": "12"}}'))
    assert stops(f'a\n{LINE}, Hashes: {{"LORA:x": "12"}}')[0].startswith("the LoRA x is not in its prompt")


# --- told twice


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("Size: 768x512", "different values for Size: 512x768, 768x512"),
        ("Size-1: 512, Size-2: 512", "different values for Size: 512x768, 512x512"),
        ("Width: 512, Height: 512", "different values for Size: 512x768, 512x512"),
        ("Resolution: 512x512", "different values for Size"),
        ("Seed: 2", "different values for Seed: 1, 2"),
        ("Guidance scale: 5", "different values for CFG scale: 7, 5"),
        (
            "Denoising strength: 0.5, Hires upscale: 2, Hires resize: 1024x1024",
            "1024x1536 by Hires upscale, 1024x1024 by",
        ),
        ("Denoising strength: 0.5, Hires upscale: 2, Hires size: 512x768", "different sizes for the hires pass"),
    ],
)
def test_what_is_told_twice_must_agree(end: str, told: str) -> None:
    (found,) = stops(f"a\n{LINE}, {end}")
    assert told in found


@pytest.mark.parametrize(
    "end",
    [
        "Size: 512 x 768",
        "width: 512, height: 768",
        "Seed: 1",
        "cfg: 7.0",
        "sampler: euler a",
        "Denoising strength: 0.5, Hires upscale: 1.3, Hires resize: 664x1000, Hires upscaler: Latent",
    ],
)
def test_what_is_told_twice_and_alike_is_fine(end: str) -> None:
    assert stops(f"a\n{LINE}, {end}") == []


@pytest.mark.parametrize("sides", ["Width: 512, Height: 768", "Size-1: 512, Size-2: 768"])
def test_two_sides_are_a_size(sides: str) -> None:
    found = read(f"a\nSteps: 20, Sampler: Euler a, Seed: 1, {sides}")
    assert (found.values["width"], found.values["height"]) == (512, 768)


def test_parameters_on_several_lines_are_one() -> None:
    found = read("a\nSteps: 20, Sampler: Euler a\nCFG scale: 7, Seed: 1,\nSize: 512x768\n\nTime taken: 5 sec.")
    assert found.values == read(f"a\n{LINE}").values
    assert found.warnings == ("'Time taken: 5 sec.' after the parameters is ignored",)
    assert stops(f"a\n{LINE}\nPAG scale: 3") == ["PAG scale: 3 is not understood"]


# --- tags


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("<lora:x:0.8:lbw=OUTALL>", "its lbw=OUTALL is not applied here"),
        ("<lora:x:0.8:lbw=1,0,0,0:lbwe=x>", "its lbw=1,0,0,0, lbwe=x is not applied here"),
        ("<lora:x:1:start=3:stop=9>", "its start=3, stop=9 is not"),
        ("<lora:x:1:1:8:step=0-9>", "step=0-9"),
        ("<lora:x:1:1:8:0.5>", "its 0.5 is not"),
        ("<lora:x:1:lbw=a=b>", "lbw=a=b"),
        ("<lyco:x:1:in=1:mid=0>", "its in=1, mid=0"),
        ("<foo:bar>", "<foo:bar>: only LoRAs and hypernetworks"),
        ("<segment:face:0.5>", "<segment:face:0.5>"),
    ],
)
def test_what_a_tag_says_and_is_not_applied_is_told(tag: str, told: str) -> None:
    here = Extras(loras={"x": ExtraFile("x", 0, 0)})  # type: ignore[arg-type]
    (found,) = stops(f"a {tag}\n{LINE}", here)
    assert told in found
    asked = settle(Inputs(prompt=f"a {tag}"), GenerationData(whole=False), {"width": 64, "height": 64})
    assert any(told in line for line in unused_inputs(asked, request_from(asked, extras=here)))


@pytest.mark.parametrize("tag", ["<lora:x:0:lbw=OUTALL>", "<lora:x:te=0.5:unet=0.8:dyn=4>", "<lyco:x>", "<foo:bar:0>"])
def test_tags_that_ask_for_nothing_more_are_fine(tag: str) -> None:
    assert stops(f"a {tag}\n{LINE}", Extras(loras={"x": ExtraFile("x", 0, 0)})) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unit",
    [
        "Ab: [",
        'ab: ["',
        "Prompt: a\n",
        '"a" -s',
        " -s 1",
        "{",
        '{"a":',
        "a;",
        "-\n",
        " --v",
        "steps: 1,\n",
        "Width: 1, ",
    ],
)
def test_long_texts_of_any_program_are_read_in_linear_time(unit: str) -> None:
    def use(size: int) -> None:
        for before in ("", "Include in Image: ", '"', "Steps: 1, Seed: 1, Guidance Scale: "):
            try:
                read_data(before + unit * (size // len(unit)))
            except InvalidInput:
                continue

    assert grows_linearly(use, 40_000)
