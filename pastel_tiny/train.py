"""Train the embedded model: one resumable command for all phases.

    python -m pastel_tiny.train --out DIR

A phase whose steps are done is skipped; an interrupted one continues from its last checkpoint.
"""

import argparse
from pathlib import Path

import torch

from pastel_tiny import contexts, latents, text, unet, vae
from pastel_tiny.dataset import SHAPES, chunks, painted
from pastel_tiny.start import started
from pipelines.ask.identity import TOKENIZER

PHASES = ("vae", "calm", "text", "encode", "better", "unet")
STEPS = {"vae": 1600, "calm": 800, "text": 1200, "better": 3160, "unet": 3650}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, checkpoints, logs, samples")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="which phases (default: all)")
    parser.add_argument("--vae-scenes", type=int, default=2000, help="pictures for the autoencoder")
    parser.add_argument("--chunks", type=int, default=8, help="thousands of pictures of the base size for the UNet")
    parser.add_argument("--start", type=Path, help="folder of an earlier version's files to begin with")
    for phase, steps in STEPS.items():
        parser.add_argument(f"--steps-{phase}", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s"
    )
    parser.add_argument("--batch", type=int, default=1, help="multiple of a CPU's batch; 16 fills a large GPU better")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_default_device(arguments.device)
    run(arguments)


def run(options: argparse.Namespace) -> None:
    """Run the chosen phases in order."""
    folder: Path = options.out
    pictures, start = painted(folder / "vae.npy", 0, options.vae_scenes, SHAPES[0]), started(options.start)
    if "vae" in options.phases:
        vae.train(folder, pictures, options.steps_vae, options.batch, start=start.get("vae"))
    if "calm" in options.phases:
        calm = vae.Calm(latents.trained(folder, "vae"), latents.statistics(folder).deviation)
        vae.train(folder, pictures, options.steps_calm, options.batch, "calm", calm=calm)
    if "text" in options.phases:
        text.train(folder, TOKENIZER, options.steps_text, start.get("text"))
    if "encode" in options.phases:
        encoder = text.Encoder(folder, TOKENIZER)
        contexts.blanks(folder, encoder)
        # the UNet may begin with the first of them
        for chunk in sorted((unet.TEST, *chunks(options.chunks)), key=lambda each: not each.small):
            contexts.described(folder, chunk, encoder)
            latents.encoded(folder, chunk)
    if "better" in options.phases:
        vae.train(folder, pictures, options.steps_better, options.batch, "better")
    if "unet" in options.phases:
        plan = unet.Plan(options.steps_unet, options.chunks, options.batch)
        unet.train(folder, TOKENIZER, plan, start.get("unet"))


if __name__ == "__main__":
    main()
