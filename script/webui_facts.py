"""Extract the facts in tests/data/webui from folders of WebUI's reference cases.

The data that WebUI computes without a network is small: noise levels, tokens, editing schedules, infotexts, blur
kernels, and samples of its noise. Values are copied in full, without rounding or changes.

    .venv/bin/python -m script.webui_facts
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from script.parity import REFERENCE, ROOT

FACTS = ROOT / "tests" / "data" / "webui"
CHECKPOINTS = (
    "tiny_sd21_v",
    "tiny_sd2_base",
    "tiny_sd2_inpaint",
    "tiny_sd2_depth",
    "tiny_sd21_unclip",
    "tiny_sd15",
    "tiny_sdxl",
    "tiny_sdxl_refiner",
    "tiny_sdxl_v",
    "tiny_sdxl_inpaint",
)
"""Checkpoints of the other families that this container runs; only their cases are kept."""
SAMPLES = 16
"""Number of elements kept from each image's noise, evenly spaced."""
Table = dict[str, Any]


def facts(folder: Path) -> dict[str, Table]:
    """Return tables by file name, from a reference folder and the folder of other families next to it."""
    families, prompts = families_of(folder), _read(folder / "prompt_tables.json")
    return {
        "sigmas.json": _sigmas(_read(folder / "sigma_tables.json"), _read(families / "sigma_tables.json")),
        "levels.json": _levels(_read(families / "sigma_tables.json")),
        "attention.json": {text: row["attention"] for text, row in prompts["prompts"].items()},
        "schedules.json": prompts["schedules"],
        "chunks.json": {text: _chunks(row) for text, row in prompts["prompts"].items()},
        "tokens.json": _tokens(_read(families / "prompt_tables.json")),
        "blocks.json": _read(folder / "parse_table.json")["blocks"] | _read(families / "parse_table.json"),
        "quotes.json": _read(folder / "parse_table.json")["quote"],
        "blur_kernels.json": _read(folder / "mask_blur_kernels.json"),
        "cases.json": _cases(folder),
        "families.json": _families(families),
    }


def families_of(folder: Path) -> Path:
    """Return the folder of the other families' cases, next to that of SD 1."""
    return folder.with_name(f"{folder.name}_families")


def _read(path: Path) -> Table:
    table: Table = json.loads(path.read_text(encoding="utf-8"))
    return table


def _sigmas(own: Table, families: Table) -> Table:
    """Return noise levels by schedule type and steps, as in "Karras|10". From the other families' tables, only SD 1's
    rows are used."""
    more = {name.removeprefix("sd1|"): levels for name, levels in families.items() if name.startswith("sd1|")}
    return {name: levels for name, levels in more.items() if name.count("|") == 1 and name[-1].isdigit()} | own


def _levels(families: Table) -> Table:
    """Return SD 1's noise levels: the whole table, "model", or "alphas_cumprod" at twelve timesteps. With zero terminal
    SNR the keys start with "ztsnr|", for schedule types too."""
    own = {name.removeprefix("sd1|"): levels for name, levels in families.items() if name.startswith("sd1|")}
    return {name: levels for name, levels in own.items() if name.startswith("ztsnr|") or "|" not in name}


def _chunks(row: Table) -> list[list[Table]]:
    """Return the chunks of a prompt: 77 tokens, and a weight for each."""
    return [[chunk["tokens"], chunk["mult"]] for chunk in row["chunks"]]


def _tokens(prompts: Table) -> Table:
    """Return the tokens of each prompt's chunks by text encoder, without weights: those of the other families are
    rounded. SDXL's first tokenizer is the one of SD 1, its second one that of SD 2. Prompts that name an embedding are
    left out, because they would need its file.
    """
    return {
        text: {tower: [chunk["tokens"] for chunk in row["chunks"]] for tower, row in towers.items()}
        for text, towers in prompts.items()
        if not any(chunk["fixes"] for row in towers.values() for chunk in row["chunks"])
    }


def _cases(folder: Path) -> Table:
    """Return options, parameters, seeds and infotexts of every case, and samples of the noise of its passes."""
    return {name: _case(folder, name, case) for name, case in _read(folder / "settings.json").items()}


def _case(folder: Path, name: str, case: Table) -> Table:
    kept = ("options", "params", "seeds", "infotexts")
    return {key: case[key] for key in kept} | {"noise": _noise(folder / "cases" / f"{name}.safetensors")}


def _families(folder: Path) -> Table:
    """Return the same for the cases of other families, with the checkpoint. Cases that fail in WebUI are left out."""
    return {
        name: _case(folder, name, case)
        | {"checkpoint": case["checkpoint"]}
        | {key: case[key] for key in ("torch_global_seed_before",) if key in case}
        for name, case in _read(folder / "settings.json").items()
        if case["checkpoint"] in CHECKPOINTS and "error" not in case
    }


def _noise(path: Path) -> list[Table]:
    with safe_open(path, framework="pt") as file:
        tensors: Mapping[str, Tensor] = {name: file.get_tensor(name) for name in file.keys() if name.endswith("_noise")}  # noqa: SIM118
    return [
        {"shape": list(noise.shape[1:]), "samples": [sample(image) for image in noise]} for noise in tensors.values()
    ]


def sample(noise: Tensor) -> list[float]:
    """Return SAMPLES elements of one image's noise (4, h, w), evenly spaced."""
    values: list[float] = noise.flatten()[:: noise.numel() // SAMPLES][:SAMPLES].tolist()
    return values


def rows(table: Table) -> str:
    """Return JSON with one line for every entry of the table."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())
    return f"{{\n{lines}\n}}\n"


def main() -> None:
    for name, table in facts(REFERENCE).items():
        (FACTS / name).write_text(rows(table), encoding="utf-8")


if __name__ == "__main__":
    main()
