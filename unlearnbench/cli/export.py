"""The command `export`: the model of a run for other programs, and for the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlearnbench.cli.command import Commands, add_command
from unlearnbench.cli.logs import starting
from unlearnbench.results.exported import FORMS


def add_export(commands: Commands) -> None:
    """Add the command `export`."""
    parser = add_command(
        commands, "export", export_model, "write the unlearned model of a run for other programs, with a model card",
        "export outputs/ga-nudity/2026-07-01_12-00-00 --as diffusers",
        "export outputs/ga-nudity/2026-07-01_12-00-00 --as unet -o for-comfy",
        "export RUN --as lora --kohya", "export RUN --as single-file --push me/sd14-without-nudity",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--as",
        dest="form",
        required=True,
        choices=FORMS,
        help="diffusers: a folder with the whole pipeline; unet: a file with the weights of the UNet (or transformer) that "
        "changed; lora: the adapter of a run with algo.train=lora, or of a low-rank method; single-file: the whole model in the "
        "original names of Stable Diffusion 1 and XL",
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="default: export-FORM in the run's folder")
    parser.add_argument("--whole", action="store_true", help="with --as unet: all weights, as a folder that diffusers loads")
    parser.add_argument("--kohya", action="store_true", help="with --as lora: the names that kohya's and web programs read")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload it to this repository of the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="with --push: everybody may read it; private otherwise")


def export_model(options: argparse.Namespace) -> int:
    """Export the model and print where it is."""
    from unlearnbench.storage.units import format_size

    with starting():
        from unlearnbench.experiment.export import ExportOptions, export

        chosen = ExportOptions(options.form, options.whole, options.kohya, options.push, options.public)
        folder, address = export(options.run, chosen, Path(options.output) if options.output else None)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"wrote {folder}, {format_size(size)}; {folder / 'README.md'} says how to load it")
    if address is not None:
        print(f"uploaded to {address}")
    return 0
