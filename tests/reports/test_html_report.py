"""The report: one file that is whole by itself, safe whatever the prompts say, and works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from unlearnbench.reports.html_report import veiled, write_report
from unlearnbench.reports.svg_plots import Axis, histograms, loss_curve, place_labels
from unlearnbench.results.run import Run, Value, load_run

VOID = {"meta", "img", "input", "br"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}&amp;'"


class Page(HTMLParser):
    """A parsed page: every element as (tag, attributes, the tags and classes around it), and the text by tag."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.around, self.words = text, [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), [*self.around]))
        if tag not in VOID:
            self.around.append((tag, dict(attributes).get("class") or ""))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), [*self.around]))

    def handle_endtag(self, tag):
        assert self.around.pop()[0] == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.around and data.strip():
            self.words.append((self.around[-1][0], " ".join(data.split())))

    def all(self, tag):
        return [(attributes, around) for name, attributes, around in self.elements if name == tag]

    def said(self, tag):
        return [words for name, words in self.words if name == tag]

    def veiled(self):
        return [any("veil" in names.split() for _, names in around) for _, around in self.all("img")]


def result(table, metric, split, unlearned, n, **more):
    """A value whose better side is that of its table."""
    better = "lower" if table == "Forgetting" else "higher"
    return Value(table=table, metric=metric, split=split, unlearned=unlearned, better=better, n=n, **more)


@pytest.fixture
def made(tmp_path, write_images):
    """Make a run's folder by hand: so many pictures of forget and retain prompts, the latter ever farther from the original's."""

    def make(name="run", algo="ga", concept=None, prompts=None, splits=None, status="done", lost=(), **algo_settings):
        prompts = prompts or ["a church", "a chapel", "a star", "a star", "a tree", "a fish"]
        splits = splits or ["forget", "forget", "far", "far", "near", "generic"]
        rng = np.random.default_rng(0)
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for side in ("before", "after"):
            write_images(f"{name}-{side}", rng.integers(0, 255, (len(prompts), 8, 8, 3), dtype=np.uint8), prompts, splits)
            (tmp_path / f"{name}-{side}").rename(folder / "images" / side)
        for file in lost:
            (folder / "images/after" / file).unlink()
        apart = {f"{i:05d}.png": i / 10 for i, split in enumerate(splits) if not split.startswith("forget")}
        (folder / "per_image.json").write_text(json.dumps({"lpips-alex": apart}))
        (folder / "train.csv").write_text("step,loss,seconds\n" + "".join(f"{i},{1 / i},{i}\n" for i in range(1, 301)))
        config = {
            "model": {"path": "tiny", "size": 64},
            "concept": concept or {"name": "church", "explicit": False},
            "algo": {"name": algo, **algo_settings},
            "seed": 0,
        }
        log = {
            "status": status,
            "algo": algo,
            "overrides": [f"algo={algo}"],
            "config": config,
            "fingerprint": "abc",
            "device": "cpu",
        }
        values = [
            result("Forgetting", "forget_accuracy", "forget", 0.25, 2, original=1.0, low=0.2, high=0.3, backbone="classifier"),
            result("Retention", "integrity", "retain", 0.8, 4, low=0.7, high=0.9, backbone="lpips-alex"),
        ]
        run = Run(folder, log, values)
        run.write()
        return run

    return make


@pytest.fixture
def page(tmp_path):
    """Write the report of runs and parse it."""

    def write(*runs, **more):
        write_report(runs, tmp_path / "report.html", **more)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def test_the_page_is_well_formed_and_names_nothing_twice(made, page):
    seen = page(made("a", lr=1), made("b", lr=2), made("c", "esd"))
    assert seen.around == []
    assert seen.text.startswith("<!doctype html>")
    ids = [attributes["id"] for _, attributes, _ in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"].removeprefix("#") for attributes, _ in seen.all("a")}
    assert links == {"run-0", "run-1", "run-2"} <= set(ids)
    assert seen.said("h1") == ["church: 3 runs"]
    assert len([1 for attributes, _ in seen.all("img") if not attributes.get("alt") and "veil" not in str(attributes)]) == 0


def test_the_summary_has_a_row_for_each_run_under_its_heads(made, page):
    seen = page(made("a"), made("b", "esd"))
    rows = [(attributes, around) for attributes, around in seen.all("tr") if ("table", "summary sortable") in around]
    assert len(rows) == 1 + 2 + 1
    cells = [tag for tag, _, around in seen.elements if tag in ("td", "th") and ("table", "summary sortable") in around]
    heads = [1 for tag, _, around in seen.elements if tag == "button" and ("table", "summary sortable") in around]
    assert len(cells) == 4 * len(heads)
    assert [attributes["data-value"] for attributes, _ in seen.all("td") if "data-value" in attributes] == ["0.25", "0.8"] * 2
    assert "original" in seen.said("th")


def test_the_file_asks_for_nothing_from_outside(smoke, made, page):
    seen = page(smoke, made("a"))
    for _, attributes, _ in seen.elements:
        for name in ("src", "href", "srcset", "action", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,"))
    assert not re.search(r"url\(|@import|https?:|//[a-z]", re.sub(r'"data:[^"]*"', "", seen.text))
    [policy] = [attributes["content"] for attributes, _ in seen.all("meta") if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert [attributes for attributes, _ in seen.all("link") + seen.all("iframe")] == []


def test_what_users_write_stays_text(made, page):
    runs = [
        made("a", HOSTILE, {"name": HOSTILE, "explicit": False}, [HOSTILE, HOSTILE, "a", "b", "c", "d"]),
        made("b", "ga", {"name": HOSTILE, "explicit": False}, status="error", train=HOSTILE),
    ]
    runs[1].log["error"] = HOSTILE
    seen = page(*runs)
    assert len(seen.all("script")) == 1
    assert all(not name.startswith("on") for _, attributes, _ in seen.elements for name in attributes)
    assert all(attributes["src"].startswith("data:") for attributes, _ in seen.all("img"))
    assert f"{HOSTILE}: 2 runs" in seen.said("h1")
    assert HOSTILE in seen.said("td")
    assert HOSTILE in " ".join(seen.said("p"))
    assert any(attributes["alt"] == f"by the original: {HOSTILE}" for attributes, _ in seen.all("img"))


def test_what_was_damaged_most_comes_first_each_prompt_once(made, page):
    seen = page(made())
    told = [words for words in seen.said("figcaption") if not words.startswith("·")]
    assert told == ["a fish", "a tree", "a star", "a church", "a chapel"]
    assert [words for words in seen.said("b") if words.startswith("0.")] == ["0.500", "0.400", "0.300"]


def test_without_distances_the_pictures_are_not_sorted_and_that_is_said(made, page):
    run = made()
    (run.folder / "per_image.json").unlink()
    seen = page(run)
    assert "no distance was measured" in seen.text
    assert [words for words in seen.said("figcaption") if not words.startswith("·")][:3] == ["a star", "a tree", "a fish"]


@pytest.mark.parametrize(("images", "pictures"), [(0, 0), (1, 4), (2, 8), (9, 10)])
def test_so_many_pictures_are_shown_as_asked(images, pictures, made, page):
    assert len(page(made(), images=images).all("img")) == pictures


# --- explicit concepts --------------------------------------------------------------------------------------------------

NUDITY = {"name": "nudity", "explicit": True}


def test_pictures_that_explicit_prompts_ask_for_are_blurred_until_asked_for(made, page):
    seen = page(made(concept=NUDITY))
    assert seen.veiled() == [False] * 6 + [True] * 4
    boxes = [attributes for attributes, _ in seen.all("input")]
    assert [box.get("id") for box in boxes] == ["unveil", None, None]
    assert all(box["type"] == "checkbox" and "checked" not in box for box in boxes)
    assert ".veil img { filter: blur(" in seen.text


def test_unblur_shows_them_at_once_and_others_are_never_blurred(made, page):
    run = made(concept=NUDITY)
    assert not any(page(run, unblur=True).veiled())
    other = page(made("church"))
    assert not any(other.veiled())
    assert other.all("input") == []


def test_runs_side_by_side_are_blurred_too(made, page):
    seen = page(made("a", concept=NUDITY), made("b", "esd", NUDITY), images=2)
    shared = [veil for veil, (_, around) in zip(seen.veiled(), seen.all("img"), strict=True) if ("table", "strip") in around]
    assert shared == [True] * 6 + [False] * 9


def test_of_several_concepts_only_the_explicit_are_blurred(made):
    run = made(concept={"name": "church+nudity", "of": {"church": {"explicit": False}, "nudity": {"explicit": True}}})
    told = {split: veiled(run, split) for split in ("forget: church", "forget: nudity", "paraphrase: nudity", "near")}
    assert told == {"forget: church": False, "forget: nudity": True, "paraphrase: nudity": True, "near": False}


# --- runs that are not whole --------------------------------------------------------------------------------------------


def test_a_failed_run_is_shown_as_failed_with_its_reason(made, page, tmp_path):
    (tmp_path / "failed").mkdir()
    log = {"status": "error", "algo": "ca", "error": "RunError: the loss became nan", "config": {"concept": {"name": "church"}}}
    failed = Run(tmp_path / "failed", log)
    failed.write()
    seen = page(made(), load_run(failed.folder))
    assert "failed" in seen.said("span")
    assert "RunError: the loss became nan" in seen.said("p")
    assert page(load_run(failed.folder)).said("h1") == ["ca on church"]


def test_pictures_that_are_gone_are_told(made, page):
    seen = page(made(lost=["00005.png"]))
    assert "1 of 6 pictures are no longer in its folder." in seen.said("p")
    assert len(seen.all("img")) == 8


def test_runs_alike_are_told_apart_by_their_folders(made, page):
    seen = page(made("a"), made("b"))
    assert seen.said("summary") == ["ga (a)", "ga (b)"]


def test_settings_that_differ_and_the_command_are_there(made, page):
    seen = page(made("a", lr=1), made("b", lr=2))
    assert "algo.lr" in seen.said("th")
    assert seen.said("summary") == ["ga lr=1", "ga lr=2"]
    assert seen.said("code").count("unlearnbench run algo=ga") == 4


# --- the verb -----------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_report_without_torch_and_says_how_large(smoke, tmp_path):
    code = "import sys; from unlearnbench.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "report", str(smoke.folder), "-o", "r.html"]
    told = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert re.fullmatch(r"wrote r\.html, \d+\.\d kB\n", told.stdout)
    assert (tmp_path / "r.html").stat().st_size < 200_000


def test_a_mistake_is_told_in_one_line(smoke, command):
    assert command("report", smoke.folder, "--images", "-1").err == "error: --images -1: is less than 0\n"
    told = command("report", smoke.folder, "-o", "/dev/null/r.html")
    assert (told.code, told.err.count("\n")) == (2, 2)
    assert "error: /dev/null/r.html: cannot be written" in told.err


def test_a_picture_that_breaks_off_is_told(made, command):
    picture = made().folder / "images/after/00001.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    told = command("report", picture.parents[2])
    assert told.code == 2
    assert told.err.splitlines()[-1].startswith(f"error: {picture}: not a readable image (")


# --- what is drawn ------------------------------------------------------------------------------------------------------


def test_labels_stand_clear_of_points_of_each_other_and_inside():
    rng = np.random.default_rng(0)
    places = [tuple(p) for p in rng.uniform((50, 10), (430, 280), (40, 2))]
    spots = place_labels(places, ["substitute"] * 40, (46, 440), (6, 288))
    boxes = []
    for spot in filter(None, spots):
        left = spot[0] - {"start": 0, "end": 64, "middle": 32}[spot[2]]
        boxes.append((left, spot[1] - 10, left + 64, spot[1] + 3))
    assert len(boxes) > 15
    assert all(box[0] >= 46 and box[2] <= 440 for box in boxes)
    for i, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])
        assert not any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in places)


def test_a_histogram_counts_every_image():
    axis, [far, near] = histograms({"far": [0.0, 0.1, 0.1, 0.4], "near": [0.2]}, bins=4)
    assert far.bars[0][3] == "far: 1 of 4 images, 0.000 to 0.100"
    assert [height for _, _, height, _ in far.bars] == [0.5, 1, 0.5]
    assert near.mean == 0.2
    assert (axis.low, axis.high) == (0, 0.4)
    assert histograms({"far": [0.0, 0.0]}) is None


def test_a_long_curve_is_drawn_by_means():
    _, y, places = loss_curve([(i, float(i % 2)) for i in range(1, 241)])
    assert len(places) == 120
    assert places[0][2] == "steps 1 to 2: mean loss 0.5"
    assert y.low < 0.5 < y.high
    assert loss_curve([(1, 0.5)]) is None
    assert len(loss_curve([(1, 0.5), (2, 0.5)])[2]) == 2


@pytest.mark.parametrize("span", [(0, 1), (-0.3, 1.04), (3, 3.0001), (0, 12345), (1, 2)])
def test_ticks_are_few_round_and_inside(span):
    ticks = Axis(*span, 0, 100).ticks()
    assert 2 <= len(ticks) <= 6
    assert all(-1e-6 <= place <= 100 + 1e-6 for place, _ in ticks)


# --- in a browser -------------------------------------------------------------------------------------------------------

STEPS = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, seen = {};
  const column = () => [...page.querySelectorAll(".summary tbody th")].map((one) => one.textContent);
  const button = (name) => [...page.querySelectorAll(".summary button")].find((one) => one.textContent.startsWith(name));
  const sight = (selector) => frame.contentWindow.getComputedStyle(page.querySelector(selector));
  seen.width = page.documentElement.scrollWidth;
  seen.first = column();
  button("integrity").click();
  seen.best = column();
  seen.order = button("integrity").closest("th").getAttribute("aria-sort");
  button("integrity").click();
  seen.worst = column();
  button("forget_accuracy").click();
  seen.forget = column();
  button("run").click();
  seen.named = column();
  page.querySelector(".mark .hit").dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 50, clientY: 50 }));
  seen.tip = page.querySelector("#tip").textContent;
  seen.lit = [...page.querySelectorAll("tr.on th")].map((one) => one.textContent);
  seen.titles = page.querySelectorAll("svg title").length;
  seen.veiled = sight(".cards .veil img").filter;
  page.querySelector(".cards .veil input").click();
  seen.shown = sight(".cards .veil img").filter;
  seen.others = sight(".strip .veil img").filter;
  page.querySelector("#unveil").click();
  seen.all = sight(".strip .veil img").filter;
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
frame.srcdoc = JSON.parse(document.querySelector("#page").textContent);
"""


def test_in_a_browser_the_table_sorts_points_tell_and_pictures_unblur(made, page, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium here")
    runs = [made(name, name, NUDITY) for name in ("ga", "esd", "ca", "none")]
    runs[3].values = []
    for run, (forget, kept) in zip(runs, [(0.5, 0.3), (0.1, -0.4), (0.9, 0.95)], strict=False):
        run.values = [
            result("Forgetting", "forget_accuracy", "forget", forget, 4, original=1.0),
            result("Retention", "integrity", "retain", kept, 4),
        ]
    text = json.dumps(page(*runs).text).replace("<", "\\u003c")
    (tmp_path / "steps.html").write_text(
        '<!doctype html><iframe width="390" height="800"></iframe><pre></pre>'
        f'<script type="application/json" id="page">{text}</script><script>{STEPS}</script>',
        encoding="utf-8",
    )
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "steps.html").as_uri()]
    told = subprocess.run(words, capture_output=True, text=True, timeout=300)
    [seen] = [json.loads(words) for words in Page(told.stdout).said("pre") if words.startswith("{")]
    assert seen["width"] <= 390
    assert seen["first"] == ["ga", "esd", "ca", "none"]
    assert (seen["best"], seen["order"]) == (["ca", "ga", "esd", "none"], "descending")
    assert seen["worst"] == ["esd", "ga", "ca", "none"]
    assert seen["forget"] == ["esd", "ga", "ca", "none"]
    assert seen["named"] == ["ca", "esd", "ga", "none"]
    assert seen["tip"].splitlines()[:2] == ["ga", "forgotten 0.500 (0.500 to 0.500)"]
    assert (seen["lit"], seen["titles"]) == (["ga"], 0)
    assert (seen["veiled"], seen["shown"]) == ("blur(14px) saturate(0.6)", "none")
    assert (seen["others"], seen["all"]) == ("blur(14px) saturate(0.6)", "none")
