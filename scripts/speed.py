"""Speed as ratios, measured side by side in one process: `make bench` prints the table and writes docs/performance.md.

python scripts/speed.py [--rounds 3] [--images 64] [--write docs/performance.md]
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
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from suite_seconds import sections

from unlearnbench.config.compose import compose
from unlearnbench.data.prompts import Prompt, read_prompts
from unlearnbench.experiment.measure import measure
from unlearnbench.experiment.run import run
from unlearnbench.recipes.quality import embedded_model
from unlearnbench.reports.export import markdown_table
from unlearnbench.sampling import ImageGenerator, Sampling, sample
from unlearnbench.worlds.pictoworld import WORLD

TEN = ("ga", "grad_diff", "random_label", "salun", "esd_x", "ca", "uce", "rece", "substitute", "surgery")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_eval_unlearn(folder: Path, steps: int, guidance: float) -> Callable[[list[str]], object]:
    """The sampling loop of eval-unlearn (PyPI, MIT), on a pipeline folder: one prompt after another."""
    from eval_unlearn.techniques.free_run.wrapper import FreeRunTechnique

    theirs = FreeRunTechnique(
        model_id=str(folder), device="cpu", use_fp16=False, num_inference_steps=steps, guidance_scale=guidance
    )
    theirs.pipe.set_progress_bar_config(disable=True)
    return partial(theirs.generate, seed=0)


def sampling(images: int, rounds: int) -> tuple[list[list[str]], float]:
    """Our sampling, with PNG files, against two loops and the bare forward passes; and the seconds per image of eval-unlearn."""
    model = embedded_model(WORLD).load(torch.device("cpu"))
    pipe = model.pipeline
    pipe.set_progress_bar_config(disable=True)
    prompts = [p.text for p in read_prompts("retain/pictoworld.csv")][:images]
    few = prompts[: images // 4]
    settings = Sampling(per_prompt=1, steps=model.steps, guidance=model.guidance)
    states = model.encode_prompts([""] * 2 * settings.batch)["prompt_embeds"]
    latents = torch.randn(2 * settings.batch, *model.latent_shape())
    with tempfile.TemporaryDirectory() as saved:
        model.save_pipeline(Path(saved))
        theirs = by_eval_unlearn(Path(saved), model.steps, model.guidance)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sample("ours", ImageGenerator(model), [Prompt(text, "far") for text in prompts], settings, Path(folder))

    def plain() -> None:
        for seed, text in enumerate(few):
            generator = torch.Generator().manual_seed(seed)
            pipe(text, num_inference_steps=model.steps, guidance_scale=model.guidance, generator=generator)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(images // settings.batch):
                for _ in range(model.steps):
                    model.unet(latents, 500, states)
                model.vae.decode(latents[: settings.batch])

    model.predict(latents, torch.tensor(500), {"prompt_embeds": states})
    works: dict[str, Callable[[], object]] = {"ours": ours, "plain": plain, "theirs": partial(theirs, few), "bare": bare}
    counts = {"ours": images, "plain": len(few), "theirs": len(few), "bare": images // settings.batch * settings.batch}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work) / counts[name])
    rows = []
    for name, title, goal in (
        ("plain", "images a second over a plain `pipe(prompt)` loop", ">= 3.5"),
        ("theirs", "images a second over eval-unlearn's loop", ">= 3.5"),
        ("bare", "time over the bare UNet and VAE passes of the same batches", "<= 1.05"),
    ):
        over = ("ours", name) if name == "bare" else (name, "ours")
        ratios = sorted(a / b for a, b in zip(taken[over[0]], taken[over[1]], strict=True))
        each = ", ".join(f"{who} {statistics.median(taken[who]):.4f} s an image" for who in ("ours", name))
        rows.append([title, f"{statistics.median(ratios):.2f}", span(ratios), goal, each])
    return rows, statistics.median(taken["theirs"])


def span(values: list[float]) -> str:
    return f"{values[0]:.2f}..{values[-1]:.2f}"


def whole_runs() -> list[list[str]]:
    """The default run with empty caches, then another algorithm with the same cache, and its metrics again."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        first = seconds(lambda: run("algo=redirect", "concept=nudity"))
        second = run("algo=esd_x")
        cache = second.log["cache"]
        measured = seconds(lambda: measure(second.folder))
        images = sum(second.log["images"].values())
    return [
        ["default run, caches empty, seconds", f"{first:.0f}", "", "<= 120", ""],
        ["original's images sampled by a second run", str(cache["misses"]), "", "0", f"{cache['hits']} taken from the cache"],
        ["the standard suite on a finished run, seconds", f"{measured:.1f}", "", "", f"{images} images"],
    ]


def ten_algorithms(each: float) -> list[str]:
    """Sampling and metrics of ten algorithms, against a script in which each metric samples its own images from each model.

    Training counts on neither side: it takes one step, and its seconds are subtracted. The script's time is computed, not
    measured: the images of ten algorithms and the original model times `each`, the seconds per image of eval-unlearn's loop
    in this process, and nothing for the metrics themselves.
    """
    few = ("concept=church", "sample.prompts=12", "sample.per_prompt=2", "metrics=standard")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        began, training = time.perf_counter(), 0.0
        for algo in TEN:
            steps = min(compose(f"algo={algo}").algo.steps, 1)
            done = run(f"algo={algo}", f"algo.steps={steps}", *few)
            training += done.find("seconds", "unlearning").unlearned
        ours = time.perf_counter() - began - training
    parts = ("retain", "forget", "paraphrase")  # near, far and generic are the retain prompts once more
    images = sum(v.n for v in done.values if v.metric in compose(*few).metrics and v.split in parts)
    by_hand = (len(TEN) + 1) * images * each
    details = f"ours {ours:.0f} s, by hand {by_hand:.0f} s ({images} images a model)"
    return [
        "ten algorithms, standard suite, over eval-unlearn's loop once a metric and model",
        f"{by_hand / ours:.1f}",
        "",
        ">= 10",
        details,
    ]


def sweep(runs: int = 20) -> list[str]:
    """A sweep with one cache in one process, against a command for each run with its own cache."""
    command = [
        sys.executable,
        "-m",
        "unlearnbench",
        "run",
        "model=pictoworld",
        "algo=uce",
        "metrics=quick",
        "sample.prompts=4",
    ]
    with tempfile.TemporaryDirectory() as folder:

        def do(*words: str) -> None:
            subprocess.run([*command, *words], check=True, capture_output=True, cwd=folder)

        together = seconds(lambda: do("-m", f"seed=range({runs})", "cache=shared"))
        apart = sum(seconds(partial(do, f"seed={seed}", f"cache=own-{seed}")) for seed in range(runs))
    details = f"{together:.0f} s and {apart:.0f} s"
    return [f"a sweep of {runs} runs over {runs} separate ones, caches empty", f"{together / apart:.2f}", "", "<= 0.5", details]


def cold_starts() -> list[list[str]]:
    """Commands that should answer at once, each in a new process."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        done = run("experiment=smoke").folder
        for words in (["--help"], ["list"], ["show", str(done)]):
            command = [sys.executable, "-m", "unlearnbench", *words]
            taken = sorted(seconds(partial(subprocess.run, command, check=True, capture_output=True)) for _ in range(5))
            name = " ".join(words).replace(str(done), "RUN")
            rows.append([f"`unlearnbench {name}`, seconds", f"{taken[2]:.2f}", span(taken), "<= 0.5", ""])
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if find_spec("eval_unlearn") is None:
        raise SystemExit("the comparison needs eval-unlearn: pip install 'unlearnbench[bench]'")
    with contextlib.redirect_stdout(io.StringIO()):
        rows, each = sampling(options.images, options.rounds)
        rows += [*whole_runs(), ten_algorithms(each), sweep(), *cold_starts()]
    text = "\n".join(
        [
            "# Performance",
            "",
            "Made by `make bench`: Pictoworld with its own settings, 64 px, 20 steps, batch 32.",
            f"{options.rounds} rounds of {options.images} images, each ratio within one round, median and range.",
            f"On {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__},",
            f"eval-unlearn {version('eval-unlearn')}.",
            "The seconds of ten algorithms by hand are not measured: they are images times eval-unlearn's seconds an image,",
            "without metrics.",
            "",
            markdown_table(["what", "median", "range", "goal", ""], rows),
        ]
    )
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8") if options.write.is_file() else ""
        options.write.write_text(text + sections(page), encoding="utf-8")


if __name__ == "__main__":
    main()
