"""What diffusers makes of the results of trainings, without our program: run in a process of its own.

    python tests/in_diffusers.py MODEL TOKENIZER PROMPT OUT TASK=RESULT...

MODEL has the base model's parts as `tests.folders.save` writes them. OUT gets what the UNet predicts for the prompt,
with each result and without any ("plain").
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

WORD = "<tok>"


def whole(parts: Path, tokenizer: Path) -> StableDiffusionPipeline:
    """Put the model's parts together."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        scheduler=DDIMScheduler.from_pretrained(parts / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def with_lora(base: Path, result: Path) -> StableDiffusionPipeline:
    """Return the model with a LoRA."""
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(str(result))
    return pipe


def with_word(base: Path, result: Path) -> StableDiffusionPipeline:
    """Return the model with a word, by a name that diffusers can use: no word of CLIP's, which it refuses, and in small
    letters, as CLIP's tokenizer gives words back. Of a name in capitals it puts only the first vector into a prompt."""
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.load_textual_inversion(str(result), token=WORD)
    return pipe


def with_both(base: Path, result: Path) -> StableDiffusionPipeline:
    """Return the model with a LoRA and the word that calls it."""
    pipe = with_word(base, result.with_name("word.safetensors"))
    tensors = load_file(result)
    pipe.load_lora_weights({name: each for name, each in tensors.items() if not name.startswith("bundle_emb.")})
    return pipe


def checkpoint(base: Path, result: Path) -> StableDiffusionPipeline:
    """Return the model of a checkpoint. The base only says how large its parts are."""
    return StableDiffusionPipeline.from_single_file(str(result), config=str(base), local_files_only=True)


USES: Mapping[str, Callable[[Path, Path], StableDiffusionPipeline]] = {
    "plain": lambda base, _: StableDiffusionPipeline.from_pretrained(base),
    "LoRA": with_lora,
    "DreamBooth": checkpoint,
    "textual inversion": with_word,
    "pivotal tuning": with_both,
}


@torch.inference_mode()
def predicted(pipe: StableDiffusionPipeline, prompt: str) -> Tensor:
    """Return what the UNet predicts for noise (1, 4, 16, 16) from a seed, in the middle of the noise levels."""
    if WORD in pipe.tokenizer.get_vocab():
        prompt = prompt.replace("TOK", WORD)
    tokens, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    made: Tensor = pipe.unet(latents, torch.tensor(500), encoder_hidden_states=tokens, return_dict=False)[0]
    return made


def main(model: str, tokenizer: str, prompt: str, out: str, *results: str) -> None:
    """Run the command line."""
    base = Path(out).with_suffix("")
    whole(Path(model), Path(tokenizer)).save_pretrained(base)
    pairs = [("plain", ""), *(result.split("=", 1) for result in results)]
    save_file({task: predicted(USES[task](base, Path(path)), prompt) for task, path in pairs}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
