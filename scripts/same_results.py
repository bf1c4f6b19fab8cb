"""Check that weights and images stay the same, bit for bit: hashes of a short run of every algorithm, written or compared.

python scripts/same_results.py --write before.json      # on one version of the code
python scripts/same_results.py --against before.json    # on another, on the same machine and the same torch

Every count in an algorithm's settings is cut to at most 3, so all algorithms take a few minutes. Exit 1 if a hash differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import torch
from reduced_counts import reduced_counts

import unlearnbench

CONF = Path(__file__).parent.parent / "conf"
FEW = ("metrics=integrity", "sample.prompts=2", "sample.per_prompt=1")


def hashes(algo: str, model: str, cache: Path) -> dict[str, str]:
    """sha256 of a run's weights, and of all images of the unlearned model; the error if it cannot run."""
    overrides = [f"algo={algo}", f"model={model}", "concept=church", *FEW, f"cache={cache}"]
    overrides += reduced_counts(unlearnbench.compose(*overrides).algo)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            folder = unlearnbench.run(*overrides).folder
    except unlearnbench.UserError as error:
        return {"refused": str(error).partition(":")[0]}
    images = sorted((folder / "images" / "after").glob("*.png"))
    after = hashlib.sha256(b"".join(path.read_bytes() for path in images)).hexdigest()
    return {"weights": hashlib.sha256(tensors(folder / "weights.safetensors")).hexdigest(), "images": after}


def tensors(path: Path) -> bytes:
    """The tensors' bytes in the order of their names, without the header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = sorted(file.keys())
        parts = [name.encode() + file.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes() for name in names]
    return b"".join(parts)


def main() -> int:
    """Run all, write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", default=",".join(sorted(path.stem for path in (CONF / "algo").glob("*.yaml"))))
    parser.add_argument("--model", default="pictoworld")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    earlier = json.loads(options.against.read_text(encoding="utf-8")) if options.against else {}
    results, differing = {}, 0
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for algo in options.algos.split(","):
            results[algo] = hashes(algo, options.model, Path(work) / "cache")
            verdict = ""
            if options.against:
                same = earlier.get(algo) == results[algo]
                differing += not same
                verdict = "equal" if same else f"DIFFERS: {earlier.get(algo)} before, {results[algo]} now"
            print(algo, verdict or results[algo], flush=True)
    if options.write:
        options.write.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
