"""Turn OpenAI's CLIP merge list (bpe_simple_vocab_16e6.txt.gz, MIT) into the two files that CLIPTokenizer reads.

python -m pastel_tiny.vocabulary bpe_simple_vocab_16e6.txt.gz weights_script/embedded/tokenizer
"""

import argparse
import gzip
import json
from pathlib import Path

# CLIP has 49,408 tokens: 256 bytes, the same 256 as word ends, two specials, the rest merges.
VOCABULARY_SIZE = 49_408
MERGES = VOCABULARY_SIZE - 256 - 256 - 2
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_characters() -> list[str]:
    """Return GPT-2's printable stand-ins for the 256 bytes, in the order in which CLIP numbers them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]


def convert(source: Path, folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` (and the tokenizer's settings) for the merge list in `source`."""
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + MERGES]  # the first line is a version comment; the list is longer than what CLIP uses
    characters = byte_characters()
    words = [
        *characters,
        *(char + "</w>" for char in characters),
        *("".join(line.split()) for line in merges),
        BOS,
        EOS,
    ]
    vocabulary = {word: index for index, word in enumerate(words)}
    assert len(vocabulary) == VOCABULARY_SIZE, len(vocabulary)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": EOS,
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    compact = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(compact, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("folder", type=Path, help="folder for the tokenizer's files")
    arguments = parser.parse_args()
    convert(arguments.source, arguments.folder)


if __name__ == "__main__":
    main()
