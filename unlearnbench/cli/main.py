"""The command `unlearnbench`: run, resume, list, check, measure, show, report, cache, world."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.__about__ import __version__
from unlearnbench.config.compose import join_concepts, translate
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import CONF, GROUPS, at_home
from unlearnbench.storage.atomic import claim_folder, remove_empty_folders

if TYPE_CHECKING:
    from unlearnbench.results.run import Run
    from unlearnbench.storage.cache_entries import CacheEntry


RUN_HELP = """usage: unlearnbench run [key=value ...] [-m] [--cfg job] [--config-dir FOLDER]

Unlearn a concept and measure what it cost. Every word is a Hydra override:

  unlearnbench run algo=ga concept=nudity          choose from the groups; `unlearnbench list` shows them
  unlearnbench run 'concept=[nudity,church]'       several at once; concept.continual=true: one after another
  unlearnbench run algo=esd_x algo.lr=1e-5         set any field; `unlearnbench run --cfg job` prints them all
  unlearnbench run -m algo=ga,substitute seed=0,1  sweep: one run for each combination; hydra/launcher=processes|slurm
  unlearnbench run model=sd14 device=cuda          a checkpoint of the hub; model.path=FOLDER for your own
  unlearnbench run algo=ga resume=true             go on with the newest unfinished run of these words, if there is one
  unlearnbench run experiment=smoke                everything once on a tiny random model, for CI
  unlearnbench run --config-dir my-conf algo=mine  your own yaml files, in groups as in conf/

Results go to outputs/<algo>-<concept>/<time>/: run.json, images/, weights.safetensors, metrics.json, tables.md.
Tab completion: eval "$(unlearnbench -sc install=bash)"
"""


# Hydra's options that take the word after them
VALUED = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp",
          "--experimental-rerun")  # fmt: skip
VERBS = ("run", "resume", "list", "check", "measure", "attack", "show", "report", "cache", "world")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a run that failed under way, 2 for a mistake of the user's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.path.append(str(Path.cwd()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what a terminal cannot show
    try:
        if arguments[:1] == ["run"]:
            return _run(arguments[1:])
        if arguments[:1] == ["-sc"]:
            return _complete(arguments)
        known = _parser().parse_args(arguments)
        return known.verb(known)
    except (UserError, RunError) as error:
        from unlearnbench.cli.hydra_job import print_error

        return print_error(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except Exception as error:
        told = translate(error)
        if not isinstance(told, UserError):
            raise
        from unlearnbench.cli.hydra_job import print_error

        return print_error(told)


def _run(words: list[str]) -> int:
    if any(word in ("-h", "--help") for word in words):
        print(RUN_HELP, end="")
        return 0
    _refuse_shadowing(words)
    from unlearnbench.sweeps.retries import KilledRunRetries

    words = join_concepts(words)
    sweep = _sweep_folder(words)
    if sweep:
        words = [*words, f"hydra.sweep.dir={sweep}"]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    patience = KilledRunRetries(Path(sweep)) if sweep else None
    try:
        killed = _launched(words, sweep)
        while patience and patience.again(killed):
            killed = _launched([*words, "resume=true"], sweep)
    finally:
        if patience:
            patience.end()
        if sweep:
            remove_empty_folders(Path(sweep))  # where nothing began
    return _summary(Path(sweep)) if sweep else 0


def _launched(words: list[str], sweep: str | None) -> bool:
    """Let Hydra do one run or a sweep; returns whether a process of its launcher was killed."""
    from unlearnbench.cli.hydra_job import run_job
    from unlearnbench.sweeps.launchers import all_jobs_awaited
    from unlearnbench.sweeps.monitor import monitored

    sys.argv = ["unlearnbench run", *_options_last(words)]
    try:
        with all_jobs_awaited() if sweep else nullcontext(), monitored(Path(sweep)) if sweep else nullcontext():
            run_job()
    except (UserError, RunError, KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        told = translate(error)
        if told is not error:
            raise told from error
        if sweep is None or not any(Path(sweep).rglob("run.json")):
            raise
        reason = next(iter(str(error).strip().splitlines()), "")
        print(f"the launcher gave up: {type(error).__name__}: {reason}", file=sys.stderr)
        return type(error).__name__ == "TerminatedWorkerError"
    return False


def _options_last(words: list[str]) -> list[str]:
    """The same words, what starts with a dash at the end: Hydra's parser knows no option between two overrides."""
    overrides: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        (options if word.startswith("-") else overrides).append(word)
        if word in VALUED:
            options.extend(islice(rest, 1))
    return [*overrides, *options]


def _sweep_folder(words: list[str]) -> str | None:
    """Where a sweep goes: the folder that the words name, or a new one; None if they ask for no sweep."""
    if not any(word in ("-m", "--multirun") for word in words) or any(word in ("-c", "--cfg", "--info") for word in words):
        return None
    given = [word.partition("=")[2] for word in words if word.startswith("hydra.sweep.dir=")]
    if not given and "resume=true" in words:
        raise UserError("resume=true: of which sweep? name it with hydra.sweep.dir=..., or `unlearnbench resume FOLDER`")
    try:
        folder = given[-1] if given else str(claim_folder(Path(time.strftime("outputs/sweeps/%Y-%m-%d_%H-%M-%S"))))
    except OSError as error:
        raise translate(error) from error
    if any(Path(folder).rglob("run.json")) and "resume=true" not in words:
        raise UserError(f"{folder}: holds runs already; choose another folder with hydra.sweep.dir=...")
    return folder


def _complete(words: list[str]) -> int:
    """Hydra's tab completion knows no verbs: complete them here, and show it the line of `run` without that word."""
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    verb, space, line = rest.lstrip().partition(" ")
    if words[1:] == ["query=bash"] and not (verb == "run" and space):
        print("" if space else " ".join(name for name in VERBS if name.startswith(verb)))
        return 0
    from unlearnbench.cli.hydra_job import run_job

    os.environ["COMP_LINE"] = f"{program} {line}"
    sys.argv = ["unlearnbench", *words]
    run_job()
    return 0


def _summary(sweep: Path) -> int:
    """The table of a sweep's runs, the front of one for two objectives, and what failed."""
    from unlearnbench.reports.plots import draw_front, front_table
    from unlearnbench.results.run import find_runs
    from unlearnbench.sweeps.hydra_settings import is_pareto_sweep, planned_runs

    runs = find_runs([str(sweep)])
    _print_comparison(runs)
    if is_pareto_sweep(sweep):
        head, body, texts = front_table(runs)
        _print_table(head, body, "the front: no other run forgets more without keeping less", texts)
        draw_front(runs, sweep / "pareto.svg")
        print(f"wrote {sweep / 'pareto.svg'}")
    failed = [run for run in runs if run.log["status"] != "done"]
    for run in failed:
        ended = run.log["status"] != "started"
        print(f"failed: {run.folder}: {run.log.get('error') if ended else 'killed, or still running'}", file=sys.stderr)
    total = max(planned_runs(sweep) or 0, len(runs))
    if total > len(runs):
        print(f"failed: {total - len(runs)} of {total} runs never started", file=sys.stderr)
    print(f"{len(runs) - len(failed)} of {total} runs done; `unlearnbench show {sweep}` prints this again")
    return 1 if failed or total > len(runs) else 0


def _refuse_shadowing(words: list[str]) -> None:
    """Hydra silently prefers its own file where the user's has the same name; say so instead."""
    parted = [part for word in words for part in (word.split("=", 1) if word.startswith("--config-dir=") else [word])]
    for value in (after for flag, after in pairwise(parted) if flag in ("--config-dir", "-cd")):
        if not Path(value).is_dir():
            raise UserError(f"--config-dir {value}: no such folder")
        for path in Path(value).rglob("*.yaml"):
            name = path.relative_to(value)
            if (CONF / name).is_file():
                raise UserError(f"{path}: conf/ has its own {name}, which would win; give yours another name")


def _searched(folder: str | None) -> list[str]:
    """The word by which Hydra finds the user's yaml files of --config-dir, too; none if it was not given."""
    if not folder:
        return []
    _refuse_shadowing(["--config-dir", folder])
    return [f"hydra.searchpath={[str(Path(folder).resolve())]}"]


def _list(known: argparse.Namespace) -> int:
    if known.support:
        from unlearnbench.experiment.support import support_table

        print(support_table(), end="")
        return 0
    if known.config_dir:
        _refuse_shadowing(["--config-dir", known.config_dir])
    folders = [CONF, *([Path(known.config_dir)] if known.config_dir else [])]
    for group in [known.group] if known.group else GROUPS:
        print(group)
        for path in sorted((path for folder in folders for path in (folder / group).glob("*.yaml")), key=lambda path: path.stem):
            lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines()[:2] if line.startswith("# ")]
            print(f"  {path.stem:<16} {next((line for line in lines if not line.startswith('@package')), '')}")
    return 0


def _check(known: argparse.Namespace) -> int:
    from unlearnbench.config.compose import compose
    from unlearnbench.experiment.preflight import find_problems, select_device
    from unlearnbench.experiment.run_spec import RunSpec

    spec = RunSpec.of(compose(*_searched(known.config_dir), *known.words))
    lacks = find_problems(spec)
    if lacks:
        raise UserError("\n".join(lacks))
    counts: dict[str, int] = {}
    for prompt in spec.sample.limit(spec.prompts()):
        counts[prompt.split] = counts.get(prompt.split, 0) + 1
    images = sum(counts.values()) * spec.sample.per_prompt
    print(f"ready: {spec.algo.name} on {spec.concept.name}, model {spec.model.path}, on {select_device(spec.device)}")
    print("prompts: " + ", ".join(f"{n} {split}" for split, n in counts.items()) + f"; {images} images of each model")
    print(f"metrics: {', '.join(spec.metrics)}")
    return 0


def _measure(known: argparse.Namespace) -> int:
    from unlearnbench.experiment.measure import measure
    from unlearnbench.reports.tables import print_run

    print_run(measure(known.run, *known.words))
    return 0


def _attack(known: argparse.Namespace) -> int:
    from unlearnbench.experiment.attack import attack
    from unlearnbench.reports.attack_report import print_attack

    print_attack(attack(known.run, *_searched(known.config_dir), *known.words))
    return 0


def _resume(known: argparse.Namespace) -> int:
    from unlearnbench.cli.hydra_job import print_error
    from unlearnbench.experiment.run import resume
    from unlearnbench.reports.tables import print_run
    from unlearnbench.results.run import find_runs
    from unlearnbench.sweeps.hydra_settings import sweep_overrides

    if (words := sweep_overrides(Path(known.folder))) is not None:
        return _run([*words, "resume=true"])
    runs = find_runs([known.folder])
    if len(runs) == 1:
        print_run(resume(runs[0].folder))
        return 0
    worst = 0
    for run in runs:
        try:
            resume(run.folder)
        except (UserError, RunError) as error:
            worst = max(worst, print_error(error))
    _print_comparison(find_runs([known.folder]))
    return worst


def _show(known: argparse.Namespace) -> int:
    from unlearnbench.reports.tables import print_run, run_csv, run_markdown
    from unlearnbench.results.run import find_runs

    for one, other in (("plot", "group"), ("plot", "paired"), ("plot", "gap"), ("paired", "gap")):
        if getattr(known, one) and getattr(known, other):
            raise UserError(f"--{one} takes no --{other}; leave out one of the two")
    runs = find_runs(known.runs)
    if known.gap:
        from unlearnbench.reports.comparison import with_gaps

        runs = with_gaps(runs)
    form = next((name for name in ("md", "csv", "tex", "json") if getattr(known, name)), None)
    over = known.group.split(",") if known.group else []
    if known.paired and len(runs) != 2:
        raise UserError(f"--paired compares two runs, not {len(runs)}")
    if known.plot:
        from unlearnbench.reports.plots import draw_runs

        draw_runs(runs, Path(known.plot))
        print(f"wrote {known.plot}")
    elif form == "json" and not over and not known.paired:
        logs = [{**run.log, "folder": str(run.folder), "values": [asdict(v) for v in run.values]} for run in runs]
        print(json.dumps(logs, indent=1))
    elif len(runs) == 1 and not over and form in ("md", "csv"):
        print(run_markdown(runs[0]) if form == "md" else run_csv(runs[0]), end="")
    elif len(runs) == 1 and not over and form is None:
        print_run(runs[0])
    elif form:
        from unlearnbench.reports.export import export_comparison

        print(export_comparison(form, runs, over, known.paired), end="")
    elif known.paired:
        from unlearnbench.reports.paired_test import PAIRED_HEAD, paired_tests

        print(f"left: {runs[0].name}, {runs[0].folder}\nright: {runs[1].name}, {runs[1].folder}")
        remark = "mean distance to the original's image, lower keeps more; interval and p by bootstrap over prompts"
        _print_table(PAIRED_HEAD, [test.cells for test in paired_tests(*runs)], remark, 2)
    else:
        _print_comparison(runs, over)
    return 0


def _print_comparison(runs: Sequence[Run], over: Sequence[str] = ()) -> None:
    from unlearnbench.reports.comparison import compare

    made = compare(runs, over)
    mean = f"; mean over {', '.join(over)}, with the 95 % interval of the mean (Student's t)" if over else ""
    _print_table(made.head, made.body, f"* best of the column{mean}", len(made.settings) + 1)


def _print_table(head: Sequence[str], body: Sequence[Sequence[str]], remark: str, text_columns: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from unlearnbench.console import table_console

    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < text_columns else "right", overflow="fold")
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    console = table_console()
    if body:
        console.print(table)
    console.print(remark, style="dim", highlight=False, markup=False, soft_wrap=True)


def _report(known: argparse.Namespace) -> int:
    from unlearnbench.reports.html_report import write_report
    from unlearnbench.results.run import find_runs
    from unlearnbench.storage.units import format_size

    if known.images is not None and known.images < 0:
        raise UserError(f"--images {known.images}: is less than 0")
    path = Path(known.output)
    write_report(find_runs(known.runs), path, known.images, known.unblur)
    print(f"wrote {path}, {format_size(path.stat().st_size)}")
    return 0


def _cache(known: argparse.Namespace) -> int:
    from unlearnbench.config.compose import compose
    from unlearnbench.storage.cache_entries import entries_over, is_damaged, list_entries, remove_entries
    from unlearnbench.storage.units import format_age, format_size, parse_size, parse_span

    for flag, deed in (("older", "prune"), ("yes", "clear")):
        if getattr(known, flag) and not getattr(known, deed):
            raise UserError(f"--{flag} does nothing without --{deed}; say both")
    folder = Path(at_home(compose(*known.words).cache))
    found = list_entries(folder)
    if known.prune:
        from unlearnbench.console import progress_bar

        age = parse_span(known.older) if known.older else None
        chosen = []
        with progress_bar("check the cache", len(found)) as shown:
            for entry in found:
                if (age is not None and time.time() - entry.used > age) or is_damaged(entry):
                    chosen.append(entry)
                shown.advance()
    elif known.clear:
        if not known.yes and found:
            if not sys.stdin.isatty():
                raise UserError("--clear asks before it removes; without a terminal say --yes")
            if input(f"remove {_told(found)} in {folder}? [y/N] ").strip().lower() not in ("y", "yes"):
                return 0
        chosen = found
    elif known.limit:
        chosen = list(entries_over(folder, parse_size(known.limit)))
    else:
        body = [[e.kind, e.holds, format_size(e.size), format_age(e.made), format_age(e.used), e.by] for e in found[::-1]]
        _print_table(["kind", "holds", "size", "made", "used", "made by"], body, f"{_told(found)} in {folder}", 2)
        return 0
    gone = remove_entries(chosen)
    busy = f", {len(chosen) - len(gone)} in use and kept" if len(gone) < len(chosen) else ""
    print(f"removed {_told(gone)}{busy}; {_told(list_entries(folder))} left in {folder}")
    return 0


def _told(found: Sequence[CacheEntry]) -> str:
    from unlearnbench.storage.units import format_size

    return f"{len(found)} {'entry' if len(found) == 1 else 'entries'}, {format_size(sum(entry.size for entry in found))}"


def _world(known: argparse.Namespace) -> int:
    if known.what == "train":
        from unlearnbench.experiment.preflight import select_device
        from unlearnbench.pictoworld.scenes import CONCEPTS
        from unlearnbench.recipes.pictoworld_training import train_pictoworld

        device = select_device(known.device)
        unknown = [name for name in (known.without or "church").split("+") if name not in CONCEPTS]
        if unknown:
            from unlearnbench.config.errors import suggest

            raise UserError(f"--without {known.without}: {suggest(unknown[0], CONCEPTS)}")
        print(f"writes to {known.out}, checkpoints to {known.work}; the denoiser trains on {device}")
        train_pictoworld(Path(known.work), Path(known.out), known.without, device)
    else:
        if known.captions < 1:
            raise UserError(f"--captions {known.captions}: is less than 1")
        from unlearnbench.recipes.pictoworld_quality import measure_quality, quality_table

        text = quality_table(measure_quality(known.captions))
        print(text, end="")
        if known.write:
            Path(known.write).write_text(text, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "unlearnbench", description="Unlearn concepts from text-to-image models, and measure what it cost."
    )
    parser.add_argument("--version", action="version", version=f"unlearnbench {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="verb", title="verbs")
    verbs.add_parser("run", help="unlearn, sample, measure: `unlearnbench run algo=ga concept=nudity`", add_help=False)
    verb = verbs.add_parser("list", help="what there is to choose from")
    verb.add_argument("group", nargs="?", choices=GROUPS)
    verb.add_argument("--support", action="store_true", help="which algorithm runs on which family of models")
    verb.add_argument("--config-dir", metavar="FOLDER", help="your own yaml files, too, in groups as in conf/")
    verb.set_defaults(verb=_list)
    verb = verbs.add_parser("check", help="compose and build everything, say what is missing; load no model")
    verb.add_argument("words", nargs="*", metavar="key=value")
    verb.add_argument("--config-dir", metavar="FOLDER", help="your own yaml files, in groups as in conf/")
    verb.set_defaults(verb=_check)
    verb = verbs.add_parser("measure", help="measure a finished run again, from its images")
    verb.add_argument("run")
    verb.add_argument("words", nargs="*", metavar="key=value")
    verb.set_defaults(verb=_measure)
    verb = verbs.add_parser("attack", help="attack a finished run's model: `unlearnbench attack RUN attack=unlearndiffatk`")
    verb.add_argument("run")
    verb.add_argument("words", nargs="*", metavar="key=value")
    verb.add_argument("--config-dir", metavar="FOLDER", help="your own yaml files, in groups as in conf/")
    verb.set_defaults(verb=_attack)
    verb = verbs.add_parser("resume", help="go on with a run that was killed, or with every such run of a sweep")
    verb.add_argument("folder", metavar="RUN|SWEEP")
    verb.set_defaults(verb=_resume)
    verb = verbs.add_parser("show", help="the tables of a run; or several runs side by side")
    verb.add_argument("runs", nargs="+", metavar="RUN")
    form = verb.add_mutually_exclusive_group()
    for name in ("md", "csv", "tex", "json"):
        form.add_argument(f"--{name}", action="store_true")
    form.add_argument("--plot", metavar="FILE", help="draw forgetting against integrity, and the loss, as .svg, .png or .pdf")
    way = verb.add_mutually_exclusive_group()
    way.add_argument("--group", metavar="SETTING", help="one row for runs that differ in it alone: --group seed")
    way.add_argument("--paired", action="store_true", help="two runs, image by image: difference, interval, p")
    verb.add_argument("--gap", action="store_true", help="each number's distance to the run of algo=oracle that is among them")
    verb.set_defaults(verb=_show)
    verb = verbs.add_parser("report", help="runs as one HTML file: tables, plots, pictures sorted by damage")
    verb.add_argument("runs", nargs="+", metavar="RUN")
    verb.add_argument("-o", "--output", default="report.html", metavar="FILE")
    verb.add_argument(
        "--images", type=int, metavar="N", help="so many retain and so many forget prompts a run: 12, fewer of many runs"
    )
    verb.add_argument("--unblur", action="store_true", help="show the pictures of explicit prompts at once")
    verb.set_defaults(verb=_report)
    verb = verbs.add_parser("cache", help="what the cache holds; remove what is damaged, old or too much")
    verb.add_argument("words", nargs="*", metavar="key=value", help="cache=FOLDER, where it is not the usual one")
    deed = verb.add_mutually_exclusive_group()
    deed.add_argument("--prune", action="store_true", help="remove what is damaged, and with --older what is old")
    deed.add_argument("--clear", action="store_true", help="remove everything; asks first")
    deed.add_argument("--limit", metavar="SIZE", help="remove what was least recently used, down to this size: 20GB")
    verb.add_argument("--older", metavar="SPAN", help="with --prune: what was not used for so long: 30d")
    verb.add_argument("--yes", action="store_true", help="with --clear: do not ask")
    verb.set_defaults(verb=_cache)
    verb = verbs.add_parser("world", help="the embedded model: train it again, or print its quality")
    verb.add_argument("what", choices=("train", "quality"))
    verb.add_argument("--work", default="outputs/world", help="scenes and checkpoints (train)")
    verb.add_argument("--out", default="outputs/world/weights", help="what is trained (train)")
    verb.add_argument("--without", help="a concept to leave out, or several (church+nudity): the retrained oracle (train)")
    verb.add_argument("--device", default="auto", help="where the denoiser trains: auto, cpu, cuda, cuda:<number> (train)")
    verb.add_argument("--captions", type=int, default=1000, help="held-out captions (quality)")
    verb.add_argument("--write", help="a file for the table (quality)")
    verb.set_defaults(verb=_world)
    return parser
