"""The command `world`: the models inside the package."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from unlearnbench.cli.command import Commands, add_command
from unlearnbench.config.errors import UserError, suggest

if TYPE_CHECKING:
    from unlearnbench.worlds import World

# The options that only one action reads
OPTIONS_OF = {
    "work": "train", "out": "train", "without": "train", "device": "train",
    "captions": "quality", "write": "quality", "sheet": "quality",
}  # fmt: skip


def add_world(commands: Commands) -> None:
    """Add the command `world`."""
    parser = add_command(
        commands, "world", world, "train a built-in model again, or measure its quality",
        "world train --without church", "world quality --captions 200", "world quality --world pictoscenes",
    )  # fmt: skip
    parser.add_argument("action", choices=("train", "quality"))
    parser.add_argument("--world", default="pictoworld", help="pictoworld (the default) or pictoscenes")
    parser.add_argument(
        "--work", help="folder for scenes and checkpoints, by default outputs/world, of Pictoscenes outputs/pictoscenes (train)"
    )
    parser.add_argument(
        "--out", help="folder for the trained weights, by default WORK/weights; oracles go to OUT/oracles (train)"
    )
    parser.add_argument("--without", help="leave out a concept, or several (church+nudity): the retrained oracle (train)")
    parser.add_argument("--device", help="where the denoiser trains: auto (the default), cpu, cuda, cuda:<number> (train)")
    parser.add_argument("--captions", type=int, help="number of held-out captions, by default 1000 (quality)")
    parser.add_argument("--write", help="also write the table to this file (quality)")
    parser.add_argument("--sheet", help="also write an image of the first twenty captions' samples to this file (quality)")


def world(options: argparse.Namespace) -> int:
    """Train an embedded world's model, or print its quality."""
    from unlearnbench.worlds import embedded_world, embedded_worlds

    chosen = embedded_world(options.world)
    if chosen is None:
        raise UserError(f"--world {options.world}: {suggest(options.world, [one.name for one in embedded_worlds()])}")
    for name, action in OPTIONS_OF.items():
        if action != options.action and getattr(options, name) is not None:
            raise UserError(f"--{name}: world {options.action} does not read it; it belongs to world {action}")
    return _train(options, chosen) if options.action == "train" else _print_quality(options, chosen)


def _train(options: argparse.Namespace, chosen: World) -> int:
    from unlearnbench.experiment.preflight import select_device

    device = select_device(options.device or "auto")
    for name in options.without.split("+") if options.without else []:
        if name not in chosen.concepts:
            raise UserError(f"--without {options.without}: {suggest(name, chosen.concepts)}")
    work = Path(options.work or chosen.work)
    out = Path(options.out or work / "weights")
    print(f"writes to {out}, checkpoints to {work}; the denoiser trains on {device}")
    _recipe(chosen, "training").train_world(work, out, options.without, device)
    return 0


def _print_quality(options: argparse.Namespace, chosen: World) -> int:
    from unlearnbench.data.image_reader import SUFFIXES, image_format

    captions = 1000 if options.captions is None else options.captions
    if captions < 1:
        raise UserError(f"--captions {captions}: is less than 1")
    sheet = Path(options.sheet or "sheet.png")
    if sheet.suffix.lower() not in SUFFIXES:
        raise UserError(f"--sheet {sheet}: the suffix must be one of {', '.join(SUFFIXES)}")
    for option in ("write", "sheet"):
        _make_room(getattr(options, option), option)
    from unlearnbench.metrics.backbones import backbone
    from unlearnbench.recipes.quality import caption_sheet, embedded_model, quality_page
    from unlearnbench.storage.atomic import atomic_path, write_text

    reasons = [embedded_model(chosen).unavailable_reason()]
    reasons += [backbone(name, chosen.name).unavailable_reason() for name in (chosen.judge, chosen.clip)]
    for reason in filter(None, reasons):
        raise UserError(reason)
    recipe = _recipe(chosen, "quality")
    scores = recipe.measure_quality(captions)
    text = quality_page(chosen, scores, "make world-quality")
    print(text, end="")
    if options.write:
        write_text(Path(options.write), text)
    if options.sheet:
        with atomic_path(sheet) as temporary:
            caption_sheet(chosen, recipe.captions(min(20, captions))).save(temporary, image_format(sheet))
    return 0


def _make_room(path: str | None, option: str) -> None:
    """Make the folder of a file that an option names, before what it gets takes minutes.

    Raises:
        UserError: the path is that of a folder.
    """
    if path is not None and Path(path).is_dir():
        raise UserError(f"--{option} {path}: is a folder; name a file")
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def _recipe(chosen: World, part: str) -> ModuleType:
    """The module of a world's training, or of its quality."""
    return import_module(f"unlearnbench.recipes.{chosen.name}_{part}")
