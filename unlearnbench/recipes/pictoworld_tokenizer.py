"""How Pictoworld's tokenizer was trained.

`python -m unlearnbench.recipes.pictoworld_tokenizer` writes pictoworld/byte_pairs.json again.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import unlearnbench.pictoworld
from unlearnbench.pictoworld.captions import corpus


def train_byte_pairs() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The vocabulary and the merges of byte-pair encoding, trained on Pictoworld's captions, letters and digits."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(unk_token=special[1], end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=special, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([*corpus(), *letters, " ".join(letters)], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
    merged = ["".join(pair) for pair in merges]
    single = sorted(set(model["vocab"]) - {*special, *merged})  # the trainer's order of these varies
    return {token: number for number, token in enumerate(dict.fromkeys([*special, *single, *merged]))}, merges


def main() -> None:
    """Train, and write the file that the package reads."""
    vocab, merges = train_byte_pairs()
    path = Path(unlearnbench.pictoworld.__file__).with_name("byte_pairs.json")
    path.write_text(json.dumps({"vocab": vocab, "merges": merges}, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
