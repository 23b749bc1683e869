"""Keep an unfinished training in git, or lay it out again on another machine. This folder goes away with the swap.

    python state/keep.py pack DIR       # DIR/*.pt -> state/state.safetensors, 11 MB
    python state/keep.py unpack DIR

The autoencoder, its better decoder and the text encoder are finished (fp16). The UNet is not: its averaged weights are
kept in 8 bits, which a warm restart repairs within a few steps. `--phases encode` makes pictures, contexts and latents.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = Path(__file__).parent / "state.safetensors"
TABLE = "embeddings.token_embedding.weight"


def pack(folder: Path) -> None:
    kept: dict[str, torch.Tensor] = {}
    for phase in ("calm", "better"):
        if (folder / f"{phase}.pt").exists():
            for name, value in torch.load(folder / f"{phase}.pt")["average"].items():
                if phase == "calm" or name.startswith(("decoder.", "post_quant")):
                    kept[f"{phase}/{name}"] = value.half()
    for name, value in torch.load(folder / "statistics.pt").items():
        kept[f"statistics/{name}"] = value.clone()
    for name, value in torch.load(folder / "text.pt")["network"].items():
        if name.endswith(TABLE):  # nearly all rows are alike
            rows = (value != value[0]).any(1).nonzero().flatten()
            kept["rows/numbers"], kept["rows/values"], kept["rows/other"] = rows, value[rows], value[0].clone()
            kept["rows/size"] = torch.tensor(len(value))
        else:
            kept[f"text/{name}"] = value.half() if value.is_floating_point() else value
    unet = torch.load(folder / "unet.pt")
    for name, value in unet["average"].items():
        scale = value.abs().flatten(1).amax(1).clamp(min=1e-8) / 127 if value.dim() > 1 else None
        if scale is None:
            kept[f"unet/{name}"] = value.half()
        else:
            wide = scale.view(-1, *[1] * (value.dim() - 1))
            kept[f"unet8/{name}"], kept[f"scale/{name}"] = (value / wide).round().to(torch.int8), scale.half()
    kept["step"] = torch.tensor(unet["step"])
    save_file({name: value.contiguous() for name, value in kept.items()}, FILE)
    print(f"{FILE.stat().st_size:,} bytes, UNet after {unet['step']} steps")


def unpack(folder: Path) -> None:
    kept = load_file(FILE)
    folder.mkdir(parents=True, exist_ok=True)

    def of(kind: str) -> dict[str, torch.Tensor]:
        names = [name for name in kept if name.startswith(f"{kind}/")]
        values = [kept[name].float() if kept[name].is_floating_point() else kept[name] for name in names]
        return {name.removeprefix(f"{kind}/"): value for name, value in zip(names, values, strict=True)}

    table = kept["rows/other"].float().repeat(int(kept["rows/size"]), 1)
    table[kept["rows/numbers"]] = kept["rows/values"].float()
    text = of("text")
    prefix = next(name.split("encoder.layers")[0] for name in text if "encoder.layers" in name)
    text[prefix + TABLE] = table
    wide, small = of("scale"), of("unet8")
    unet = of("unet") | {
        name: value.float() * wide[name].view(-1, *[1] * (value.dim() - 1)) for name, value in small.items()
    }
    calm = of("calm")
    better = {"better": calm | of("better")} if of("better") else {}
    for phase, vae in ({"vae": calm, "calm": calm} | better).items():
        torch.save({"network": vae, "average": vae, "step": 10**9, "optimizer": None}, folder / f"{phase}.pt")
    torch.save(of("statistics"), folder / "statistics.pt")
    torch.save({"network": text, "heads": {}, "step": 10**9}, folder / "text.pt")
    torch.save({"network": unet, "average": unet, "step": int(kept["step"]), "optimizer": None}, folder / "unet.pt")
    print(f"UNet after {int(kept['step'])} steps. Go on with --phases encode unet.")


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]))
