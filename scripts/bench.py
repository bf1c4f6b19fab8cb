"""Speed, as ratios measured side by side in one process: `make bench` prints the table and writes docs/performance.md.

python scripts/bench.py [--rounds 3] [--images 64] [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from unlearnbench.bench import run
from unlearnbench.data import Prompt, read_prompts
from unlearnbench.pictoworld.quality import shipped
from unlearnbench.sampling import Sampling, sample


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def sampling(images: int, rounds: int) -> list[list[str]]:
    """Our sampling, PNG files included, against a plain diffusers loop and against the bare forward passes of its batches."""
    model = shipped()
    model.load(torch.device("cpu"))
    pipe = model.pipeline
    pipe.set_progress_bar_config(disable=True)
    prompts = [p.text for p in read_prompts("retain/pictoworld.csv")][:images]
    settings = Sampling(per_prompt=1, steps=model.steps, guidance=model.guidance)
    states = model.encode([""] * 2 * settings.batch)["states"]
    latents = torch.randn(2 * settings.batch, *model.latent_shape())

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sample("ours", model, [Prompt(text, "far") for text in prompts], settings, Path(folder))

    def plain() -> None:
        for seed, text in enumerate(prompts[: images // 4]):
            generator = torch.Generator().manual_seed(seed)
            pipe(text, num_inference_steps=model.steps, guidance_scale=model.guidance, generator=generator)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(images // settings.batch):
                for _ in range(model.steps):
                    model.unet(latents, 500, states)
                model.vae.decode(latents[: settings.batch])

    model.predict(latents, torch.tensor(500), {"states": states})
    taken: dict[str, list[float]] = {"ours": [], "plain": [], "bare": []}
    for _ in range(rounds):
        for name, work, count in (("ours", ours, images), ("plain", plain, images // 4), ("bare", bare, images)):
            taken[name].append(seconds(work) / count)
    each = {name: statistics.median(times) for name, times in taken.items()}
    pairs = list(zip(taken["plain"], taken["ours"], taken["bare"], strict=True))
    faster = sorted(p / o for p, o, _ in pairs)
    over = sorted(o / b for _, o, b in pairs)
    return [
        ["images a second over a plain `pipe(prompt)` loop", f"{statistics.median(faster):.2f}", span(faster), ">= 3",
         f"{each['plain']:.3f} s and {each['ours']:.3f} s an image"],
        ["time over the bare UNet and VAE passes of the same batches", f"{statistics.median(over):.2f}", span(over), "<= 1.10",
         f"{each['ours']:.3f} s and {each['bare']:.3f} s an image"],
    ]  # fmt: skip


def span(values: list[float]) -> str:
    return f"{values[0]:.2f}..{values[-1]:.2f}"


def whole_runs() -> list[list[str]]:
    """The default run with empty caches, then another algorithm on the same cache."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        first = seconds(lambda: run())
        second = run("algo=esd_x")
    cache = second.log["cache"]
    return [
        ["default run, caches empty, seconds", f"{first:.0f}", "", "<= 120", ""],
        ["original's batches sampled by a second run", str(cache["misses"]), "", "0", f"{cache['hits']} taken from the cache"],
        ["second run over the first", f"{second.log['seconds'] / first:.2f}", "", "", ""],
    ]


def cold_starts() -> list[list[str]]:
    """Verbs that should answer at once, in fresh processes."""
    rows = []
    for words in (["--help"], ["list"]):
        command = [sys.executable, "-m", "unlearnbench.cli", *words]
        taken = sorted(seconds(partial(subprocess.run, command, check=True, capture_output=True)) for _ in range(5))
        rows.append([f"`unlearnbench {' '.join(words)}`, seconds", f"{taken[2]:.2f}", span(taken), "<= 0.5", ""])
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--write", type=Path)
    known = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):
        rows = [*sampling(known.images, known.rounds), *whole_runs(), *cold_starts()]
    text = "\n".join(
        [
            "# Performance",
            "",
            "Made by `make bench`: Pictoworld with its own settings, 64 px, 20 steps, batch 32.",
            f"{known.rounds} rounds of {known.images} images, each ratio within one round, median and range.",
            f"On {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}.",
            "",
            "| what | median | range | goal | |",
            "|---|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
        ]
    )
    print(text)
    if known.write:
        known.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
