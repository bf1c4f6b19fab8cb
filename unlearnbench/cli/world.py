"""The command `world`: Pictoworld, the model inside the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlearnbench.cli.command import Commands, add_command
from unlearnbench.config.errors import UserError, suggest


def add_world(commands: Commands) -> None:
    """Add the command `world`."""
    parser = add_command(
        commands, "world", world, "train the built-in model Pictoworld again, or measure its quality",
        "world train --without church", "world quality --captions 200",
    )  # fmt: skip
    parser.add_argument("action", choices=("train", "quality"))
    parser.add_argument("--work", default="outputs/world", help="folder for scenes and checkpoints (train)")
    parser.add_argument("--out", default="outputs/world/weights", help="folder for the trained weights (train)")
    parser.add_argument("--without", help="leave out a concept, or several (church+nudity): the retrained oracle (train)")
    parser.add_argument("--device", default="auto", help="where the denoiser trains: auto, cpu, cuda, cuda:<number> (train)")
    parser.add_argument("--captions", type=int, default=1000, help="number of held-out captions (quality)")
    parser.add_argument("--write", help="also write the table to this file (quality)")


def world(options: argparse.Namespace) -> int:
    """Train Pictoworld, or print its quality."""
    return _train(options) if options.action == "train" else _print_quality(options)


def _train(options: argparse.Namespace) -> int:
    from unlearnbench.experiment.preflight import select_device
    from unlearnbench.pictoworld.scenes import CONCEPTS
    from unlearnbench.recipes.pictoworld_training import train_pictoworld

    device = select_device(options.device)
    for name in options.without.split("+") if options.without else []:
        if name not in CONCEPTS:
            raise UserError(f"--without {options.without}: {suggest(name, CONCEPTS)}")
    print(f"writes to {options.out}, checkpoints to {options.work}; the denoiser trains on {device}")
    train_pictoworld(Path(options.work), Path(options.out), options.without, device)
    return 0


def _print_quality(options: argparse.Namespace) -> int:
    if options.captions < 1:
        raise UserError(f"--captions {options.captions}: is less than 1")
    from unlearnbench.recipes.pictoworld_quality import measure_quality, quality_table

    text = quality_table(measure_quality(options.captions))
    print(text, end="")
    if options.write:
        Path(options.write).write_text(text, encoding="utf-8")
    return 0
