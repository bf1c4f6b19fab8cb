"""The pages of docs/ that are generated: algorithms.md, from conf/algo and its docstrings, and command-line.md, from the parsers.

python scripts/docs_pages.py [--check]

With --check nothing is written; the exit code is 1 if a page differs from what would be.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.checkpoint import Checkpoint
from unlearnbench.algos.noise import Noise
from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.oracle import Oracle
from unlearnbench.algos.rewritten_prompts import PromptFilter
from unlearnbench.cli.describe import cost_sentence, setting_meanings, setting_text
from unlearnbench.cli.main import COMMANDS, main
from unlearnbench.config.build import locate
from unlearnbench.config.paths import CONF, choices

DOCS = Path(__file__).parents[1] / "docs"
TRAINS = {"xattn": "cross-attention", "xattn_kv": "keys and values of cross-attention", "not_xattn": "all but cross-attention",
          "self_attn": "self-attention", "full": "the denoiser", "text_encoder": "the text encoder", "lora": "LoRA",
          "blocks": "all layers around attention", "none": "nothing"}  # fmt: skip
COMMON = ("train", "steps", "lr", "batch", "clip")
PAPER = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def page(title: str, command: str, *parts: str) -> str:
    """A page with its title and the command that makes it."""
    return "\n\n".join([f"# {title}", f"Made by `{command}`.", *parts]) + "\n"


def algorithms() -> str:
    """A table of all algorithms, and each with its docstring, its settings and its cost."""
    rows, sections, shared = [], [], setting_meanings(Unlearner)
    for name in choices("algo"):
        path = CONF / f"algo/{name}.yaml"
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        cls = locate(content["_target_"], Unlearner)
        paper = PAPER.search(inspect.getdoc(cls) or "")
        link = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else ""
        if "(ours)" in first:
            link = f"ours; compare {link}" if link else "ours"
        rows.append(f"| [{name}](#{name}) | {first} | {kind(cls, content)} | {trains(content)} | {link} |")
        sections.append(section(name, first, cls, content))
    head = "| id | what it does | kind | trains | paper |\n| --- | --- | --- | --- | --- |"
    notes = [
        "Which of them run on which family of models: [families.md](families.md); what each forgets and keeps on Pictoworld: "
        "[leaderboard.md](leaderboard.md); the same text for one of them: `unlearnbench list NAME`.",
        "Settings that every training has: " + "; ".join(f"`algo.{key}`: {shared[key].rstrip('.')}" for key in COMMON) + ".",
    ]
    return page("Algorithms", "python scripts/docs_pages.py", *notes, head + "\n" + "\n".join(rows), *sections)


def kind(cls: type[Unlearner], content: dict[str, Any]) -> str:
    """Training, closed-form edit, sampling, or a control."""
    if cls is NoTraining or issubclass(cls, PromptFilter | Noise | Oracle):
        return "control"
    if issubclass(cls, Checkpoint):
        return "weights of others"
    if issubclass(cls, NoTraining):
        return "guidance while sampling"
    if not content.get("steps"):
        return "closed-form edit"
    images = any(getattr(cls, name, False) is True for name in ("needs_images", "needs_anchor_images"))
    return "training on images" if images else "training on prompts"


def trains(content: dict[str, Any]) -> str:
    """What `train` selects, in words; a regular expression as it is."""
    train = content.get("train")
    if train is None or not content.get("steps", 1):
        return ""
    return TRAINS.get(str(train), f"`{train}`".replace("|", "\\|"))


def section(name: str, first: str, cls: type, content: dict[str, Any]) -> str:
    """One algorithm: sentence, docstring, settings, cost."""
    text = re.split(r"\n\n?(?=Attributes:\n|A family sets )", inspect.getdoc(cls) or "")[0].strip()
    meanings = setting_meanings(cls)
    values = {key: setting_text(value).replace("|", "\\|") for key, value in content.items() if key not in ("_target_", "name")}
    common = ", ".join(f"`algo.{key}={values[key]}`" for key in COMMON if key in values)
    own = [f"| `algo.{key}` | `{value}` | {meanings.get(key, '')} |" for key, value in values.items() if key not in COMMON]
    parts = [f"## {name}", first, f"```text\n{text}\n```"]
    if own:
        parts.append("\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *own]))
    if content.get("steps"):
        parts.append(f"Training: {common}.")
    return "\n\n".join([*parts, f"Cost: {cost_sentence(content)}."])


def command_line() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "100"
    sections = [f"## unlearnbench\n\n```text\n{help_text()}\n```"]
    sections += [f"## {command}\n\n```text\n{help_text(command)}\n```" for command in COMMANDS]
    return page("Command line", "python scripts/docs_pages.py", *sections)


def help_text(*words: str) -> str:
    """What `unlearnbench ... --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue().strip()


PAGES = {"algorithms.md": algorithms, "command-line.md": command_line}


def run(check: bool) -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    if check and stale:
        print(f"stale: {', '.join(stale)}; python scripts/docs_pages.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    sys.exit(run(parser.parse_args().check))
