"""How long the metrics of many images take, and how much memory: synthetic images of 64 pixels, Pictoworld's small networks.

python scripts/metrics_speed.py --write docs/performance.md      # 3,000 and 30,000 images of each model: some minutes
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from suite_seconds import write_section

from unlearnbench.config.compose import compose
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.experiment.measure import measure_images
from unlearnbench.experiment.memory import peak_memory
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.reports.export import markdown_table
from unlearnbench.storage.cache import Cache

METRICS = "{integrity: {_target_: unlearnbench.metrics.integrity.Integrity, distances: [classifier]}}"
SUITE = ("metrics=[forget_accuracy,retain_accuracy,fid_original]", f"+metrics={METRICS}")
TITLE = "## Metrics of many images"
TEXT = """Made by `make metrics-speed`: forget_accuracy, retain_accuracy, integrity (distance `classifier`) and fid_original on
images of 64 pixels, by Pictoworld's classifier on one thread of the CPU, beside other work. The time is linear in the images.
Features and records make the memory grow. d features (192 here, Inception's 2048) take 4 d bytes an image, the same again
while a metric reads them, and 16 d of one model's images in the Frechet distance. A record takes .5 KB, each list of files .3 KB.
KID and CMMD, over all pairs, are left out: their time grows with the square."""


def write_images(folder: Path, count: int, seed: int) -> Images:
    """Random images of 64 pixels with captions of Pictoworld; every tenth is of the concept."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    records = []
    for number in range(count):
        subject, split = ("church", "forget") if number % 10 == 0 else ("star", "far")
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png", compress_level=1)
        file, prompt = f"{number:05d}.png", f"a red {subject} number {number}"
        (folder / file).write_bytes(data.getvalue())
        records.append(ImageRecord(file, prompt, split, "", number, hashlib.sha256(data.getvalue()).hexdigest()))
    images = Images(folder, [])
    images.add(records)
    return images


def measure_once(folder: Path, count: int) -> dict[str, float]:
    """Write the images, measure them, and measure them again with the cache."""
    torch.set_num_threads(1)
    original, unlearned = (write_images(folder / name, count, seed) for seed, name in enumerate(("before", "after")))
    spec = RunSpec.of(compose("concept=church", *SUITE))
    row: dict[str, float] = {"images": count}
    for name in ("seconds", "again"):
        start = time.perf_counter()
        assert list(measure_images(spec, original, unlearned, Cache(folder / "cache"), torch.device("cpu"), folder))
        row[name] = round(time.perf_counter() - start, 1)
        row.setdefault("memory", round(peak_memory(torch.device("cpu"))))
    return row


def main() -> None:
    """Measure each number of images in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[3000, 30000])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure_once(Path(folder), options.one)))
        return
    rows = []
    for count in options.images:
        outcome = subprocess.run([sys.executable, __file__, "--one", str(count)], check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(outcome.stdout.splitlines()[-1])
        each = 1000 * row["seconds"] / (2 * count)
        rows.append([f"{count:,}", f"{row['seconds']}", f"{each:.1f}", f"{row['again']}", f"{row['memory']:,}"])
        print(*rows[-1], flush=True)
    if options.write:
        head = ["images of each model", "seconds", "ms an image", "seconds with the cache", "peak memory, MB"]
        write_section(options.write, TITLE, f"{TEXT}\n\n{markdown_table(head, rows)}")


if __name__ == "__main__":
    main()
