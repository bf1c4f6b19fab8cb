"""The command `convert`: a pickle of weights as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlearnbench.cli.command import Commands, add_command
from unlearnbench.config.errors import UserError


def add_convert(commands: Commands) -> None:
    """Add the command `convert`."""
    parser = add_command(
        commands, "convert", convert, "write the tensors of a pickle (.pt, .pth, .bin, .ckpt) as safetensors",
        "convert esd-nudity.pt esd-nudity.safetensors",
    )  # fmt: skip
    parser.add_argument("old", metavar="OLD.pt", help="the pickle; opened by torch.load(weights_only=True), which runs no code")
    parser.add_argument("new", metavar="NEW.safetensors", help="the file to write; it must not exist yet")


def convert(options: argparse.Namespace) -> int:
    """Convert a pickle and print what was taken and what was left out."""
    from unlearnbench.storage.pickles import convert_pickle
    from unlearnbench.storage.units import format_size

    old, new = Path(options.old), Path(options.new)
    if new.suffix != ".safetensors":
        raise UserError(f"{new}: must end in .safetensors")
    if new.exists():
        raise UserError(f"{new}: exists already; name another file")
    conversion = convert_pickle(old, new)
    print(f"{new}: {conversion.tensors} tensors, {format_size(conversion.size)}")
    if conversion.left_out:
        shown = ", ".join(conversion.left_out[:5]) + (", ..." if len(conversion.left_out) > 5 else "")
        print(f"left out, no tensors: {shown}")
    return 0
