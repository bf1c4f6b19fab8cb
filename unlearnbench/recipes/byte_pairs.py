"""How the tokenizers of Pictoworld and Pictoscenes were trained.

`python -m unlearnbench.recipes.byte_pairs` writes both files byte_pairs.json again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from unlearnbench.pictoscenes import architecture as pictoscenes_architecture
from unlearnbench.pictoscenes import captions as pictoscenes_captions
from unlearnbench.pictoworld import architecture, captions


def train_byte_pairs(corpus: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The vocabulary and the merges of byte-pair encoding, trained on the captions of a world, letters and digits."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(unk_token=special[1], end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=special, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([*corpus, *letters, " ".join(letters)], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
    merged = ["".join(pair) for pair in merges]
    single = sorted(set(model["vocab"]) - {*special, *merged})  # the trainer's order of these varies
    return {token: number for number, token in enumerate(dict.fromkeys([*special, *single, *merged]))}, merges


def main() -> None:
    """Train, and write the files that the package reads."""
    for corpus, path in (
        (captions.corpus(), architecture.BYTE_PAIRS),
        (pictoscenes_captions.corpus(), pictoscenes_architecture.BYTE_PAIRS),
    ):
        vocab, merges = train_byte_pairs(corpus)
        path.write_text(json.dumps({"vocab": vocab, "merges": merges}, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
