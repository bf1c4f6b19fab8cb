"""The report: one self-contained file, safe for any prompt, that works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unlearnbench.reports.attack_report import attack_label, attack_title, stored_attacks
from unlearnbench.reports.commands import repeating_commands
from unlearnbench.reports.html_report import write_report
from unlearnbench.reports.report_images import is_explicit, thumbnail
from unlearnbench.reports.svg_plots import Axis, histograms, loss_curve, place_labels, planes
from unlearnbench.reports.tables import table_rows
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

    def texts(self, tag):
        return [words for name, words in self.words if name == tag]

    def blurred(self):
        return [any("blur" in names.split() for _, names in around) for _, around in self.all("img")]


def result(table, metric, split, unlearned, n, **more):
    """A value whose better side is that of its table."""
    better = "lower" if table == "Forgetting" else "higher"
    return Value(table=table, metric=metric, split=split, unlearned=unlearned, better=better, n=n, **more)


@pytest.fixture
def make_run(tmp_path, write_images):
    """Write a run's folder: images of forget and retain prompts, the latter ever more distant from the original's."""

    def write(name="run", algo="ga", concept=None, prompts=None, splits=None, status="done", lost=(), **algo_settings):
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

    return write


@pytest.fixture
def page(tmp_path):
    """Write the report of runs and parse it."""

    def write(*runs, **more):
        write_report(runs, tmp_path / "report.html", **more)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def test_the_page_is_well_formed_and_names_nothing_twice(make_run, page):
    parsed = page(make_run("a", lr=1), make_run("b", lr=2), make_run("c", "esd"))
    assert parsed.around == []
    assert parsed.text.startswith("<!doctype html>")
    ids = [attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"].removeprefix("#") for attributes, _ in parsed.all("a")}
    assert links == {"run-0", "run-1", "run-2"} <= set(ids)
    assert parsed.texts("h1") == ["church: 3 runs"]
    assert len([1 for attributes, _ in parsed.all("img") if not attributes.get("alt") and "blur" not in str(attributes)]) == 0


def test_the_summary_has_a_row_for_each_run_under_its_heads(make_run, page):
    parsed = page(make_run("a"), make_run("b", "esd"))
    rows = [(attributes, around) for attributes, around in parsed.all("tr") if ("table", "summary sortable") in around]
    assert len(rows) == 1 + 2 + 1
    cells = [tag for tag, _, around in parsed.elements if tag in ("td", "th") and ("table", "summary sortable") in around]
    heads = [1 for tag, _, around in parsed.elements if tag == "button" and ("table", "summary sortable") in around]
    assert len(cells) == 4 * len(heads)
    assert [attributes["data-value"] for attributes, _ in parsed.all("td") if "data-value" in attributes] == ["0.75", "0.8"] * 2
    assert "original" in parsed.texts("th")


def test_the_file_asks_for_nothing_from_outside(smoke, make_run, page):
    parsed = page(smoke, make_run("a"))
    for _, attributes, _ in parsed.elements:
        for name in ("src", "href", "srcset", "action", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,"))
    assert not re.search(r"url\(|@import|https?:|//[a-z]", re.sub(r'"data:[^"]*"', "", parsed.text))
    [policy] = [attributes["content"] for attributes, _ in parsed.all("meta") if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert [attributes for attributes, _ in parsed.all("link") + parsed.all("iframe")] == []


def test_text_from_users_is_escaped(make_run, page):
    runs = [
        make_run("a", HOSTILE, {"name": HOSTILE, "explicit": False}, [HOSTILE, HOSTILE, "a", "b", "c", "d"]),
        make_run("b", "ga", {"name": HOSTILE, "explicit": False}, status="error", train=HOSTILE),
    ]
    runs[1].log["error"] = HOSTILE
    parsed = page(*runs)
    assert len(parsed.all("script")) == 1
    assert all(not name.startswith("on") for _, attributes, _ in parsed.elements for name in attributes)
    assert all(attributes["src"].startswith("data:") for attributes, _ in parsed.all("img"))
    assert f"{HOSTILE}: 2 runs" in parsed.texts("h1")
    assert HOSTILE in parsed.texts("td")
    assert HOSTILE in " ".join(parsed.texts("p"))
    assert any(attributes["alt"] == f"original: {HOSTILE}" for attributes, _ in parsed.all("img"))


def test_the_largest_changes_come_first_each_prompt_once(make_run, page):
    parsed = page(make_run())
    outcome = [words for words in parsed.texts("figcaption") if not words.startswith("·")]
    assert outcome == ["a fish", "a tree", "a star", "a church", "a chapel"]
    assert [words for words in parsed.texts("b") if words.startswith("0.")] == ["0.500", "0.400", "0.300"]


def test_without_distances_the_images_are_evenly_spaced_and_the_page_says_so(make_run, page):
    run = make_run()
    (run.folder / "per_image.json").unlink()
    parsed = page(run)
    assert "no distance was measured" in parsed.text
    assert [words for words in parsed.texts("figcaption") if not words.startswith("·")][:3] == ["a star", "a tree", "a fish"]


@pytest.mark.parametrize(("images", "count"), [(0, 0), (1, 4), (2, 8), (9, 10)])
def test_images_sets_how_many_pairs_are_shown(images, count, make_run, page):
    assert len(page(make_run(), images=images).all("img")) == count


# --- explicit concepts --------------------------------------------------------------------------------------------------

NUDITY = {"name": "nudity", "explicit": True}


def test_images_of_explicit_prompts_are_blurred_until_clicked(make_run, page):
    parsed = page(make_run(concept=NUDITY))
    assert parsed.blurred() == [False] * 6 + [True] * 4
    boxes = [attributes for attributes, _ in parsed.all("input")]
    assert [box.get("id") for box in boxes] == ["unblur", "overlay", "cut", None, None]
    assert all("checked" not in box for box in boxes)
    assert [box["type"] for box in boxes if box.get("id") != "cut"] == ["checkbox"] * 4
    assert ".blur img { filter: blur(" in parsed.text


def test_unblur_shows_them_at_once_and_others_are_never_blurred(make_run, page):
    run = make_run(concept=NUDITY)
    assert not any(page(run, unblur=True).blurred())
    other = page(make_run("church"))
    assert not any(other.blurred())
    assert [box.get("id") for box, _ in other.all("input")] == ["overlay", "cut"]


@pytest.mark.parametrize(("side", "shown", "enlarged"), [(16, 128, True), (48, 96, True), (96, 96, False), (300, 128, False)])
def test_a_small_image_is_shown_at_a_whole_multiple_of_its_size_pixel_by_pixel(side, shown, enlarged, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = thumbnail(tmp_path / "a.png")
    assert (image.width, image.height, image.enlarged) == (shown, shown, enlarged)
    held = np.array(Image.open(io.BytesIO(base64.b64decode(image.url.partition(",")[2]))).convert("RGB"))
    assert np.array_equal(held, pixels) == (side <= 128)


def test_runs_side_by_side_are_blurred_too(make_run, page):
    parsed = page(make_run("a", concept=NUDITY), make_run("b", "esd", NUDITY), images=2)
    shared = [
        hidden for hidden, (_, around) in zip(parsed.blurred(), parsed.all("img"), strict=True) if ("table", "strip") in around
    ]
    assert shared == [True] * 6 + [False] * 9


def test_of_several_concepts_only_the_explicit_are_blurred(make_run):
    run = make_run(concept={"name": "church+nudity", "of": {"church": {"explicit": False}, "nudity": {"explicit": True}}})
    outcome = {split: is_explicit(run, split) for split in ("forget: church", "forget: nudity", "paraphrase: nudity", "near")}
    assert outcome == {"forget: church": False, "forget: nudity": True, "paraphrase: nudity": True, "near": False}


# --- incomplete runs ----------------------------------------------------------------------------------------------------


def test_a_failed_run_is_shown_as_failed_with_its_reason(make_run, page, tmp_path):
    (tmp_path / "failed").mkdir()
    log = {"status": "error", "algo": "ca", "error": "RunError: the loss became nan", "config": {"concept": {"name": "church"}}}
    failed = Run(tmp_path / "failed", log)
    failed.write()
    parsed = page(make_run(), load_run(failed.folder))
    assert "failed" in parsed.texts("span")
    assert "RunError: the loss became nan" in parsed.texts("p")
    assert page(load_run(failed.folder)).texts("h1") == ["ca on church"]


def test_missing_images_are_counted(make_run, page):
    parsed = page(make_run(lost=["00005.png"]))
    assert "1 of 6 images are missing from the run's folder." in parsed.texts("p")
    assert len(parsed.all("img")) == 8


def test_runs_with_equal_settings_are_distinguished_by_their_folders(make_run, page):
    parsed = page(make_run("a"), make_run("b"))
    assert parsed.texts("summary") == ["ga (a)", "ga (b)"]


def test_settings_that_differ_and_the_command_are_there(make_run, page):
    parsed = page(make_run("a", lr=1), make_run("b", lr=2))
    assert "algo.lr" in parsed.texts("th")
    assert parsed.texts("summary") == ["ga lr=1", "ga lr=2"]
    assert parsed.texts("code").count("unlearnbench run algo=ga") == 4


# --- the command -----------------------------------------------------------------------------------------------------------


def test_a_wrong_argument_is_an_error_of_one_line(smoke, command):
    assert command("report", smoke.folder, "--images", "-1").err == "error: --images -1: is less than 0\n"
    outcome = command("report", smoke.folder, "-o", "/dev/null/r.html")
    assert (outcome.code, outcome.err.count("\n")) == (2, 2)
    assert "error: /dev/null/r.html: cannot be written" in outcome.err


def test_a_truncated_image_is_named(make_run, command):
    image = make_run().folder / "images/after/00001.png"
    image.write_bytes(image.read_bytes()[:-40])
    outcome = command("report", image.parents[2])
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: {image}: not a readable image (")


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
  button("UA").click();
  seen.forget = column();
  button("run").click();
  seen.named = column();
  page.querySelector(".mark .hit").dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 50, clientY: 50 }));
  seen.tip = page.querySelector("#tip").textContent;
  seen.lit = [...page.querySelectorAll("tr.on th")].map((one) => one.textContent);
  seen.titles = page.querySelectorAll("svg title").length;
  seen.beside = page.querySelector(".pair").getBoundingClientRect().width;
  page.querySelector("#overlay").click();
  page.querySelector("#cut").value = 20;
  page.querySelector("#cut").dispatchEvent(new Event("input"));
  seen.over = [page.querySelector(".pair").getBoundingClientRect().width, sight(".pair img:last-child").clipPath];
  seen.blurred = sight(".cards .blur img").filter;
  page.querySelector(".cards .blur input").click();
  seen.shown = sight(".cards .blur img").filter;
  seen.others = sight(".strip .blur img").filter;
  page.querySelector("#unblur").click();
  seen.all = sight(".strip .blur img").filter;
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
frame.srcdoc = JSON.parse(document.querySelector("#page").textContent);
"""


def test_in_a_browser_the_table_sorts_points_have_tooltips_and_images_unblur(make_run, page, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium here")
    runs = [make_run(name, name, NUDITY) for name in ("ga", "esd", "ca", "none")]
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
    outcome = subprocess.run(words, capture_output=True, text=True, timeout=300)
    [recorded] = [json.loads(words) for words in Page(outcome.stdout).texts("pre") if words.startswith("{")]
    assert recorded["width"] <= 390
    assert recorded["first"] == ["ga", "esd", "ca", "none"]
    assert (recorded["best"], recorded["order"]) == (["ca", "ga", "esd", "none"], "descending")
    assert recorded["worst"] == ["esd", "ga", "ca", "none"]
    assert recorded["forget"] == ["esd", "ga", "ca", "none"]
    assert recorded["named"] == ["ca", "esd", "ga", "none"]
    assert recorded["tip"].splitlines()[:2] == ["ga", "forgotten 0.500"]
    assert (recorded["lit"], recorded["titles"]) == (["ga"], 0)
    assert recorded["over"] == [(recorded["beside"] - 3) / 2, "inset(0px 0px 0px 20%)"]
    assert (recorded["blurred"], recorded["shown"]) == ("blur(14px) saturate(0.6)", "none")
    assert (recorded["others"], recorded["all"]) == ("blur(14px) saturate(0.6)", "none")


def test_points_below_the_plot_are_held_or_marked_with_their_value(make_run):
    runs = []
    for name, integrity, low in (("fmn", -1.14, -1.5), ("deep", -4.939, -6.0), ("wide", -1.9, -3.0), ("good", 0.9, 0.8)):
        folder = make_run(name, algo=name).folder
        values = [
            result("Forgetting", "forget_accuracy", "forget", 0.2, 8),
            result("Retention", "integrity", "retain", 0.5, 8),
            result("Retention", "integrity_norm", "retain", integrity, 8, low=low, high=integrity + 0.1),
        ]
        runs.append(Run(folder, load_run(folder).log, values))
    [plane] = planes(runs, [run.log["algo"] for run in runs])
    fmn, deep, wide, _ = plane.marks
    assert [(m.off_scale, m.cut) for m in plane.marks] == [(False, False), (True, True), (False, True), (False, False)]
    assert (fmn.y, fmn.y_interval[0]) == pytest.approx((plane.y.at(-1.14), plane.y.at(-1.5)))
    assert wide.y == pytest.approx(plane.y.at(-1.9))
    assert (deep.label, deep.y) == ("deep -4.94, off the scale", plane.y.start)
    write_report(runs, folder.parent / "report.html", images=0)
    page = (folder.parent / "report.html").read_text()
    assert page.count('<path class="dot"') == 1
    assert page.count('<path class="span"') == 1
    assert "Wilson's" in page


def test_an_unmodified_model_has_no_interval_of_integrity(make_run, page):
    run = make_run("none", algo="none")
    run.values = [
        result("Forgetting", "forget_accuracy", "forget", 0.25, 8, low=0.125, high=0.5),
        *(result("Retention", name, "retain", 1.0, 8, low=1.0, high=1.0) for name in ("integrity", "integrity_norm")),
    ]
    run.write()
    [plane] = planes([run], ["none"])
    assert plane.marks[0].tooltip == "none\nforgotten 0.750 (0.500 to 0.875)\nintegrity_norm 1.000"
    text = page(run).text
    assert "0.500 to 0.875" in text
    assert "1.000 to 1.000" not in text
    assert ["integrity_norm ↑", "retain", "", "1.000", "", "", "8"] in table_rows(run, "Retention")


def test_attacks_and_probes_stand_in_the_report(make_run, page):
    run = make_run()
    row = {"kind": "synonym", "original": True, "control": False, "found": True, "first": None, "last": None}
    shares = [{"kind": HOSTILE, "n": 4, "original": 4, "control": 0, "attacked": 3, "back": 3, "interval": [0.3, 0.95]}]
    report = {"attack": "paraphrases", "run": run.name, "shares": shares, "images": [row], "detectors": {"church": "classifier"}}
    report |= {"settings": {"name": "paraphrases", "seed": 0}, "sample": {"steps": 20}, "device": "cpu", "seconds": 1.0}
    (run.folder / "attack-paraphrases.json").write_text(json.dumps(report))
    (run.folder / "attack-cut.json").write_text(json.dumps(report)[:-9])
    parsed = page(run)
    assert len([1 for attributes, _ in parsed.all("table") if attributes.get("class") == "attack"]) == 1
    assert {"4", "1.000", "0.000", "0.750", "0.301..0.954", "3 of 4"} <= {text.strip() for text in parsed.texts("td")}
    assert "<script>alert(1)" not in parsed.text


def test_depth_and_its_sheet_stand_in_the_report(make_run, page):
    run = make_run()
    row = {"probe": "completion", "kind": HOSTILE, "n": 8, "original": 0.75, "unlearned": 0.5, "oracle": 0.25, "depth": 0.5}
    row |= {"interval": {"low": 0.25, "high": 0.875}}
    (run.folder / "depth.json").write_text(json.dumps({"rows": [row, row | {"depth": None, "oracle": None}]}))
    parsed = page(run)
    assert len([attributes for attributes, _ in parsed.all("table") if attributes.get("class") == "depth"]) == 1
    assert {"8", "0.750", "0.500", "0.250", "0.50", "0.25..0.88"} <= {text.strip() for text in parsed.texts("td")}
    assert "<script>alert(1)" not in parsed.text
    assert "sheet" not in [attributes.get("class") for attributes, _ in parsed.all("img")]
    Image.new("RGB", (300, 40), "red").save(run.folder / "depth.png")
    [sheet] = [attributes for attributes, _ in page(run).all("img") if attributes.get("class") == "sheet"]
    image = Image.open(io.BytesIO(base64.b64decode(sheet["src"].partition(",")[2])))
    assert (image.size, image.format) == ((300, 40), "WEBP")
    (run.folder / "depth.json").write_text("{")
    assert "depth" not in [attributes.get("class") for attributes, _ in page(run).all("table")]


def test_the_commands_of_a_run_are_whole_and_quoted(tmp_path):
    overrides = ["algo=ga", "concept.words=[a b]", "cache=c"]
    run = Run(tmp_path, {"algo": "ga", "overrides": overrides, "measured": [["metrics=cmmd"]]})
    own, later = repeating_commands(run, "my run", without=("cache",))
    assert shlex.split(own) == ["unlearnbench", "run", "algo=ga", "concept.words=[a b]"]
    assert later == "unlearnbench measure 'my run' metrics=cmmd"
    sources = {"original": "a/sd", "unlearned": "a/uce", "prompts": "p.csv"}
    overrides = ["model.domain=photo", "concept=church", "model.size=64", "algo=none"]
    for name, expected in (("uce", ""), ("UCE", " --name UCE")):
        run = Run(tmp_path, {"algo": name, "overrides": overrides, "images_from": sources})
        folders = "--original a/sd --unlearned a/uce --prompts p.csv"
        assert repeating_commands(run, "r") == [f"unlearnbench measure {folders}{expected} model.domain=photo concept=church"]


@pytest.mark.parametrize("marks", [{"oracle": True}, {}])  # earlier versions marked the file's name alone
def test_probes_of_the_oracle_are_named_as_such(marks, tmp_path):
    report = {"attack": "completion", "run": "project on parachute", "shares": [], "images": []}
    (tmp_path / "attack-completion-oracle.json").write_text(json.dumps(report | marks))
    (tmp_path / "attack-completion.json").write_text(json.dumps(report))
    reports = stored_attacks(tmp_path)
    assert list(map(attack_label, reports)) == ["completion", "completion, of the oracle"]
    assert list(map(attack_title, reports)) == [
        "completion against project on parachute", "completion against the oracle beside project on parachute",
    ]  # fmt: skip


def test_a_file_that_exists_is_replaced_only_if_it_is_named(command, smoke, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    refused = command("report", smoke.folder)
    assert (refused.code, refused.err) == (
        2,
        "error: report.html exists; -o report.html replaces it, -o FILE writes another file\n",
    )
    assert (tmp_path / "report.html").read_text() == "mine"
    assert command("report", smoke.folder, "-o", "report.html").code == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("output", [".", "..", "runs"])
def test_a_report_never_replaces_a_folder(output, make_run, command, tmp_path):
    make_run().folder.rename(tmp_path / "runs")
    outcome = command("report", "runs", "-o", output)
    repair = f"name a file, such as {Path(output, 'report.html')}"
    assert (outcome.code, outcome.err) == (2, f"error: -o {output}: is a folder; {repair}\n")
    assert (tmp_path / "runs/run.json").is_file()
