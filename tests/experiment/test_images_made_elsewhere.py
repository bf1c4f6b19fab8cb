"""`measure --original --unlearned --prompts`: images of another program become tables without a model."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from unlearnbench.config.errors import UserError
from unlearnbench.data.foreign_images import image_size, match_images
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt, read_prompts
from unlearnbench.experiment.measure_folders import measure_folders
from unlearnbench.results.run import load_run

SETTINGS = ("concept=church", "model.domain=pictoworld", "metrics=[quick]")


@pytest.fixture
def elsewhere(smoke, tmp_path):
    """The first images of a smoke run's prompts, under the names and with the csv that another program would write."""
    sides = [Images(smoke.folder / "images" / name) for name in ("before", "after")]
    first = sides[0].where("forget", "near", "far")
    first = Images(first.folder, [record for record in first if int(record.file[:5]) < 10])
    for side, name in zip(sides, ("sd14", "esd"), strict=True):
        (tmp_path / name).mkdir()
        for number, record in enumerate(first):
            shutil.copy(side.folder / record.file, tmp_path / name / f"{100 + number}_0.png")
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case_number", "prompt", "evaluation_seed", "split", "label", "hard"])
        rows.writerows([100 + i, r.prompt, r.seed, r.split, r.label, 0] for i, r in enumerate(first))
    return first


def folders_of(tmp_path, names, size=8, other=None):
    """Two folders with images of these names."""
    for folder, stems in (("a", names), ("b", names if other is None else other)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number, name in enumerate(stems):
            Image.fromarray(np.full((size, size, 3), number, np.uint8)).save(tmp_path / folder / name)
    return tmp_path / "a", tmp_path / "b"


def test_images_made_elsewhere_have_the_numbers_of_the_run_that_made_them(elsewhere, command, smoke, tmp_path):
    outcome = command("measure", "--original", "sd14", "--unlearned", "esd", "--prompts", "prompts.csv", *SETTINGS)
    assert (outcome.code, outcome.err) == (0, "copy images: 6 to do\nmeasure: 2 to do\n")
    [folder] = (tmp_path / "outputs" / "esd-church").iterdir()
    run = load_run(folder)
    assert run.name == "esd on church"
    assert "images made elsewhere: unlearned esd, original sd14, prompts prompts.csv, 64 px" in outcome.out
    files = {record.file for record in elsewhere}
    distances = json.loads((smoke.folder / "per_image.json").read_text())["lpips-alex"]
    kept = [distances[record.file] for record in elsewhere.where("near", "far") if record.file in files]
    assert run.find("integrity", "retain").unlearned == pytest.approx(1 - np.mean(kept), abs=1e-6)
    assert run.find("forget_accuracy", "forget").n == len(elsewhere.where("forget"))
    assert (folder / "grid.png").is_file()
    images = Images(folder / "images" / "after")
    assert [(r.prompt, r.seed) for r in images] == [(r.prompt, r.seed) for r in elsewhere]
    assert images[0].columns == {"case_number": "100", "hard": "0"}


def test_what_follows_a_run_works_on_it_or_says_why_not(elsewhere, command, tmp_path):
    run = measure_folders("sd14", "esd", "prompts.csv", *SETTINGS, name="ESD", output=tmp_path / "run")
    assert command("measure", run.folder, "metrics=integrity").code == 0
    assert "which it probes; remove it with '~metrics.depth'" in command("measure", run.folder, "metrics=deep").err
    assert "ESD on church" in command("show", run.folder).out
    report = command("report", run.folder, "-o", "r.html")
    assert report.code == 0
    assert "images made elsewhere" in (tmp_path / "r.html").read_text()
    for words in (["attack", run.folder, "attack=paraphrases"], ["export", run.folder, "--as", "unet"]):
        outcome = command(*words)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "has no model; run its weights" in outcome.err


def test_metrics_that_probe_the_model_are_refused_before_anything_is_copied(elsewhere, tmp_path):
    message = (
        "metrics.depth: the images come without the weights of their model, which it probes; remove it with '~metrics.depth'"
    )
    for metrics in ("metrics=depth", "metrics=deep"):
        with pytest.raises(UserError, match=message):
            measure_folders("sd14", "esd", "prompts.csv", *SETTINGS[:2], metrics)
    assert not (tmp_path / "outputs").exists()


def test_metrics_that_have_no_number_are_left_out_with_one_line(elsewhere, tmp_path, caplog):
    rows = [line for line in (tmp_path / "prompts.csv").read_text().splitlines() if "near" not in line and "far" not in line]
    (tmp_path / "prompts.csv").write_text("\n".join(rows))
    for folder in ("sd14", "esd"):
        for path in sorted((tmp_path / folder).iterdir())[len(rows) - 1 :]:
            path.unlink()
    run = measure_folders("sd14", "esd", "prompts.csv", "concept=church", "model.domain=pictoworld", output=tmp_path / "run")
    assert {value.metric for value in run.values} == {"forget_accuracy", "clipscore"}
    assert "integrity, retain_accuracy, fid, fid_original, kid left out" in run.log["warnings"][0]
    with pytest.raises(UserError, match="integrity: needs at least 1 image of retain prompts"):
        measure_folders("sd14", "esd", "prompts.csv", *SETTINGS, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("names", "cases", "expected"),
    [
        (["10.png", "9.png"], None, [("9.png", 0, 0), ("10.png", 1, 0)]),  # in the order of their numbers
        (["b.png", "a.png"], None, [("a.png", 0, 0), ("b.png", 1, 0)]),
        (["9.png", "3.png"], [9, 3], [("3.png", 1, 0), ("9.png", 0, 0)]),
        (["7_1.png", "8_1.png", "7_5.png", "8_2.png"], [7, 8],
         [("7_1.png", 0, 0), ("8_1.png", 1, 0), ("7_5.png", 0, 1), ("8_2.png", 1, 1)]),
        (["0_0.png", "0_1.png", "1_0.png", "1_1.png"], None,
         [("0_0.png", 0, 0), ("1_0.png", 1, 0), ("0_1.png", 0, 1), ("1_1.png", 1, 1)]),
    ],
)  # fmt: skip
def test_names_lead_to_rows(tmp_path, names, cases, expected):
    columns = [(("case_number", str(case)),) for case in cases] if cases else [(), ()]
    prompts = [Prompt(f"p{i}", "forget", columns=extra) for i, extra in enumerate(columns)]
    rows = match_images(*folders_of(tmp_path, names), prompts, "x.csv")
    assert [(row.original.name, prompts.index(row.prompt), row.repeat) for row in rows] == expected


@pytest.mark.parametrize(
    ("names", "other", "cases", "message"),
    [
        (["0.png", "1.png"], ["0.png", "2.png"], None, "a: no image for 2 of .*b; both folders must hold the same names"),
        (["0.png", "1.png", "x.png"], None, None, "3 images, 2 rows in x.csv; one image a row, or name several"),
        (["0.png", "1.jpg"], ["0.png"], None, "b: no image for 1 of"),
        (["0.png", "0.jpg", "1.png"], None, None, "several images are called 0; remove one"),
        (["0_0.png", "0_1.png", "1_0.png"], None, None, "0 has 2 images, 1 has 1; every row needs equally many"),
        (["0_0.png", "0_1.png", "5_0.png", "5_1.png"], None, None, "no row, counted from 0, of x.csv for 5_0, 5_1"),
        (["7.png", "9.png"], None, [7, 8], "no case_number of x.csv for 9; 2 images, 2 rows"),
        (["7_0.png", "7_1.png"], None, [7, 8], "no image of case_number 8 of x.csv"),
        (["7.png", "8.png"], None, [7, 7], "case_number 7 stands twice"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_refused_in_one_line(tmp_path, names, other, cases, message):
    columns = [(("case_number", str(case)),) for case in cases] if cases else [(), ()]
    prompts = [Prompt(f"p{i}", "forget", columns=extra) for i, extra in enumerate(columns)]
    with pytest.raises(UserError, match=message) as error:
        match_images(*folders_of(tmp_path, names, other=other), prompts, "x.csv")
    assert "\n" not in str(error.value)


def test_sizes_that_differ_and_images_that_are_not_square_are_refused(tmp_path):
    folders = folders_of(tmp_path, ["0.png", "1.png"])
    rows = match_images(*folders, [Prompt("a"), Prompt("b")], "x.csv")
    assert image_size(rows) == 8
    Image.new("RGB", (9, 8)).save(folders[1] / "1.png")
    with pytest.raises(UserError, match=r"0.png has 8 x 8 pixels and .*1.png has 9 x 8 pixels; all images of both folders"):
        image_size(rows)
    for path in (path for folder in folders for path in folder.iterdir()):
        Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(UserError, match="9 x 8 pixels; images must be square"):
        image_size(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--original", "a"], "--unlearned, --prompts must be given, too"),
        (["--original", "a", "--unlearned", "b", "--prompts", "x.csv", "run"], "it takes overrides (key=value) beside"),
        ([], "it takes RUN, then overrides"),
        (["--original", "a", "--unlearned", "b", "--prompts", "x.csv"], "a: no such folder"),
        (["--original", "a", "--unlearned", "b", "--prompts", "x.csv", "sample.steps=5"], "5: nothing is generated here"),
        (["--original", "a", "--unlearned", "b", "--prompts", "y.csv"], "y.csv: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused_in_one_line(command, tmp_path, words, message):
    (tmp_path / "x.csv").write_text("prompt\na church\n")
    outcome = command("measure", *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["../../x", "a/b", "", " "])
def test_a_name_that_leads_to_another_folder_is_refused(name, elsewhere, tmp_path):
    with pytest.raises(UserError, match=r"--name '.*': the folder of the run is called by it; choose a name without a slash"):
        measure_folders("sd14", "esd", "prompts.csv", *SETTINGS, name=name)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("size", "is_enough"), [(30, False), (31, True)])
def test_images_that_are_too_small_for_a_distance_are_refused(size, is_enough, tmp_path):
    folders = folders_of(tmp_path, ["0.png", "1.png"], size)
    (tmp_path / "p.csv").write_text("prompt,split\na church,forget\na dog,far\n")
    words = ("concept=church", "model.domain=pictoworld", "metrics=integrity")
    if is_enough:
        assert measure_folders(*folders, "p.csv", *words).find("integrity", "retain").n == 1
        return
    with pytest.raises(UserError, match="distance lpips-alex: needs images of at least 31 px, and these have 30"):
        measure_folders(*folders, "p.csv", *words)
    assert not (tmp_path / "outputs").exists()


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch):
    folders = folders_of(tmp_path, ["0.png", "1.png"], 32)
    (tmp_path / "p.csv").write_text("prompt,split\na church,forget\na dog,far\n")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unlearnbench.experiment.measure_folders.measure_images", fail)
    with pytest.raises(OSError, match="No space left"):
        measure_folders(*folders, "p.csv", "concept=church", "model.domain=pictoworld", "metrics=integrity")
    assert [*(tmp_path / "outputs").iterdir()] == []


def test_several_concepts_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("prompt\na church\n")
    folders = folders_of(tmp_path, ["0.png"])
    with pytest.raises(UserError, match="one concept at a time"):
        measure_folders(*folders, "x.csv", "concept=[church,nudity]", "model.domain=pictoworld", "metrics=quick")


def test_other_columns_stay_with_the_prompt(tmp_path):
    (tmp_path / "x.csv").write_text("Unnamed: 0,case_number,prompt,evaluation_seed,artist,hard\n0,7.0,a church,3,,1\n")
    [prompt] = read_prompts("x.csv", "forget")
    assert (prompt.columns, prompt.case_number, prompt.seed) == ((("case_number", "7.0"), ("hard", "1")), 7, 3)
