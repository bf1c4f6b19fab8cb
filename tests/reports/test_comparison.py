"""Runs side by side: the settings that distinguish them, means over seeds, paired tests, exports and plots."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unlearnbench.config.errors import UserError
from unlearnbench.reports.comparison import COMPARED, columns, compare, comparison, with_gaps
from unlearnbench.reports.export import export_comparison
from unlearnbench.reports.paired_test import paired_tests
from unlearnbench.reports.plots import Point, draw_leaderboard, read_losses, run_points, separate_labels
from unlearnbench.reports.tables import TABLES, table_rows
from unlearnbench.results.intervals import (
    bootstrap_interval,
    bootstrap_means,
    detectable_difference,
    detectable_share,
    holm,
    mean_interval,
    paired_difference,
)
from unlearnbench.results.metric_names import headline, printed_name
from unlearnbench.results.run import Run, Value


def a_run(folder, algo="ga", values=(), status="done", seed=0, **algo_settings):
    log = {
        "status": status,
        "algo": algo,
        "config": {"algo": {"name": algo, **algo_settings}, "concept": {"name": "church"}, "seed": seed, "cache": folder},
    }
    return Run(folder, log, list(values))


def value(metric="integrity", unlearned=0.5, better="higher", split="retain", table="Retention", **more):
    return Value(table=table, metric=metric, split=split, unlearned=unlearned, better=better, n=4, **more)


def forgot(unlearned, **more):
    return value("forget_accuracy", unlearned, "lower", "forget", "Forgetting", **more)


def test_runs_side_by_side_show_where_they_differ_and_star_the_best():
    left = a_run("l", "ga", [value(unlearned=0.9), forgot(0.3)], lr=1)
    right = a_run("r", "esd", [value(unlearned=0.8), forgot(0.1)], eta=2)
    failed = a_run("f", "ca", status="error")
    head, body = comparison([left, right, failed])
    assert head == ["algo", "status", "forget_accuracy (forget)", "integrity (retain)"]
    assert body == [["ga", "done", "0.300", "0.900*"], ["esd", "done", "0.100*", "0.800"], ["ca", "failed", "", ""]]


def test_runs_of_one_algorithm_show_its_settings_that_differ():
    head, body = comparison([a_run("l", lr=1, steps=5), a_run("r", lr=2, steps=5)])
    assert head == ["algo.lr", "status"]
    assert body == [["1", "done"], ["2", "done"]]


def test_runs_of_several_algorithms_show_the_settings_in_which_runs_of_one_differ():
    runs = [a_run(f"{algo}{lr}", algo, lr=lr, **own) for algo, own in (("ga", {}), ("esd_x", {"eta": 2})) for lr in (1, 2)]
    assert comparison(runs) == (
        ["algo", "algo.lr", "status"], [[algo, lr, "done"] for algo in ("ga", "esd_x") for lr in "12"]
    )  # fmt: skip
    assert comparison([runs[0], runs[3]])[0] == ["algo", "status"]


def test_runs_of_one_concept_show_its_settings_that_differ():
    runs = [a_run("l"), a_run("r"), a_run("n")]
    runs[1].log["config"]["concept"]["prompts"] = "mine.csv"
    runs[2].log["config"]["concept"] = {"name": "nudity", "prompts": "n.csv"}
    runs[0].log["config"]["concept"]["prompts"] = "church.csv"
    assert comparison(runs) == (
        ["concept.name", "concept.prompts", "status"],
        [["church", "church.csv", "done"], ["church", "mine.csv", "done"], ["nudity", "n.csv", "done"]],
    )
    assert comparison(runs[1:])[0] == ["concept.name", "status"]


def test_runs_with_equal_settings_are_distinguished_by_their_folder():
    runs = [a_run(Path("x/a")), a_run(Path("x/b")), a_run(Path("x/c"), "esd")]
    assert comparison(runs) == (
        ["algo", "folder", "status"], [["ga", "x/a", "done"], ["ga", "x/b", "done"], ["esd", "x/c", "done"]]
    )  # fmt: skip
    assert compare(runs).labels() == ["ga (a)", "ga (b)", "esd"]


# --- what is compared ---------------------------------------------------------------------------------------------------


def everything():
    """What the standard suite measures of two concepts, and other metrics."""
    kept = [value("binding"), value("binding_color_style"), value("binding", split="near"), value("kid"), value("ira")]
    forgotten = [forgot(0.5), value("forget_accuracy", 0.2, "lower", "forget: church"), value("ua", split="forget")]
    rest = [value("clipscore", split="forget"), value("mine", split="mine"), value("seconds", split="run", table="Cost")]
    return [*kept, *forgotten, *rest, value("forget_accuracy", 0.2, "lower", "paraphrase: church")]


def test_a_table_has_the_metrics_that_the_standard_suite_lacks_and_the_rows_of_each_concept():
    head, body = comparison([a_run("l", lr=1, values=[forgot(0.1)]), a_run("r", lr=2, values=everything())])
    others = ["binding (retain)", "ira (retain)", "forget_accuracy (forget: church)", "ua (forget)", "mine (mine)"]
    assert head[2:] == ["forget_accuracy (forget)", *others]
    assert [row[2:4] for row in body] == [["0.100*", ""], ["0.500", "0.500"]]
    for form in ("md", "tex"):
        assert export_comparison(form, [a_run("r", values=everything())]).count("UA (UnlearnCanvas, forget)") == 1


def test_printed_tables_have_the_headline_first_and_ua_for_the_detection_rate():
    fid = value("fid", 37.842, "lower", table="FID", backbone="classifier", original=12.5)
    left = a_run("l", "ga", [fid, value("integrity_norm", 0.9), forgot(0.25, low=0.125, high=0.5, original=1.0)])
    right = a_run("r", "esd", [replace(fid, unlearned=1116.8), value("integrity_norm", 0.8), forgot(0.5, original=1.0)])
    table = compare([left, right]).for_readers()
    assert table.head == ["algo", "status", "UA", "integrity_norm", "FID (classifier features)"]
    assert table.body == [["ga", "done", "0.750*", "0.900*", "37.8*"], ["esd", "done", "0.500", "0.800", "1116.8"]]
    assert table.rows[0].cells[0][1:3] == (0.5, 0.875)
    assert table.originals == (0.0, None, 12.5)
    [row, _] = csv.DictReader(io.StringIO(export_comparison("csv", [left, right])))
    assert (row["forget_accuracy (forget)"], row["fid (retain)"]) == ("0.25", "37.842")
    assert [v.metric for v in headline(left.values, TABLES)] == ["UA", "integrity_norm", "fid"]
    assert table_rows(left, "Headline")[0] == ["UA ↑", "forget", "0.000", "0.750", "+0.750", "0.500..0.875", "4"]
    assert table_rows(left, "Headline")[2] == ["FID (classifier features) ↓", "retain", "12.500", "37.842", "+25.342", "", "4"]
    assert table_rows(right, "FID")[0][2:5] == ["12.5", "1116.8", "+1104.3"]


@pytest.mark.parametrize(
    ("metric", "backbone", "name"),
    [
        ("fid", "inception-clean", "FID"), ("fid_original", "classifier", "FID to the original (classifier features)"),
        ("fid", "clip:a/b", "FID (CLIP features)"), ("clipscore", "clip-pictoworld", "CLIPScore (Pictoworld)"),
        ("clipscore", "clip:openai/clip-vit-base-patch16", "CLIPScore"), ("mine", "classifier", "mine"),
    ],
)  # fmt: skip
def test_a_name_says_when_features_are_not_those_of_published_numbers(metric, backbone, name):
    assert printed_name(value(metric, backbone=backbone)) == name


def test_a_table_has_what_descriptions_show_if_they_were_measured():
    implicit = value("forget_accuracy", 0.4, "lower", "implicit", "Forgetting")
    measured = columns([a_run("l", "ga", [forgot(0.1), implicit])])
    assert measured == [("forget_accuracy", "forget"), ("forget_accuracy", "implicit")]


def test_csv_and_json_have_every_metric_on_every_split():
    run = a_run("r", values=everything())
    [row] = csv.DictReader(io.StringIO(export_comparison("csv", [run])))
    names = [f"{v.metric} ({v.split})" for v in everything()]
    assert list(row) == ["status", "forget_accuracy (forget)", *(name for name in names if name != "forget_accuracy (forget)")]
    assert (row["kid (retain)"], row["seconds (run)"]) == ("0.5", "0.5")
    [row] = json.loads(export_comparison("json", [run], ["seed"]))
    assert set(names) < set(row)


def test_a_table_of_the_standard_suite_has_its_main_numbers_alone(run):
    done = run("metrics=standard", "retain.splits=[near,far]")
    assert columns([done]) == list(COMPARED)
    assert len(columns([done], whole=True)) == len(done.values)


def test_a_setting_that_an_earlier_version_did_not_have_is_no_difference():
    assert comparison([a_run("l", lr=1, new=True), a_run("r", lr=2)])[0] == ["algo.lr", "status"]


def test_runs_of_different_models_are_distinguished_by_the_models_hash_and_never_grouped():
    runs = [a_run(str(seed), seed=seed) for seed in range(3)]
    for run, fingerprint in zip(runs, ("a" * 64, "a" * 64, "b" * 64), strict=True):
        run.log["fingerprint"] = fingerprint
    assert comparison(runs, ["seed"]) == (
        ["model.hash", "status", "runs"], [["aaaaaaaa", "done", "2"], ["bbbbbbbb", "done", "1"]]
    )  # fmt: skip
    assert comparison(runs[:2])[0] == ["seed", "status"]


def test_a_setting_that_was_never_resolved_is_no_difference():
    refused = a_run("r", lr="${model.lr}", steps=-1)
    assert comparison([a_run("l", lr=1, steps=5), refused])[0] == ["algo.steps", "status"]


def by_two_networks():
    """Two runs with FID by different networks, of which the second also has a second distance, and an oracle."""
    lpips, dreamsim = (value(unlearned=x, backbone=name) for x, name in ((0.9, "lpips-alex"), (0.7, "dreamsim")))
    fid = value("fid", 40.0, "lower", table="FID", backbone="classifier", original=30.0)
    inception = replace(fid, unlearned=7.0, backbone="inception", original=6.0)
    return [a_run("l", "ga", [lpips, fid]), a_run("r", "esd", [lpips, dreamsim, inception]), a_run("o", "oracle", [fid])]


def test_numbers_by_different_networks_share_no_column_no_star_no_mean_and_no_gap():
    runs = by_two_networks()[:2]
    head, body = comparison(runs)
    assert head[2:4] == ["integrity (retain, lpips-alex)", "integrity (retain, dreamsim)"]
    assert head[4:] == ["fid (retain, classifier)", "fid (retain, inception)"]
    assert [row[2:] for row in body] == [["0.900*", "", "40.000", ""], ["0.900*", "0.700", "", "7.000"]]
    table = compare(runs).for_readers()
    assert table.head[2:] == ["integrity (lpips-alex)", "integrity (dreamsim)", "FID (classifier features)", "FID"]
    assert table.originals == (None, None, 30.0, 6.0)
    [row, _] = csv.DictReader(io.StringIO(export_comparison("csv", runs)))
    assert (row["fid (retain, classifier)"], row["fid (retain, inception)"], row["fid (retain, inception) n"]) == ("40.0", "", "")
    alike = [a_run(f"{i}", values=run.values, seed=i) for i, run in enumerate(runs)]
    assert [row[2:] for row in comparison(alike, ["seed"])[1]] == [["0.900", "0.700", "40.000", "7.000"]]


def test_the_tables_of_a_run_name_the_network_where_several_measured():
    _, run, _ = by_two_networks()
    assert [row[0] for row in table_rows(run, "Retention")] == ["integrity (lpips-alex) ↑", "integrity (dreamsim) ↑"]
    assert [row[0] for row in table_rows(run, "Headline")] == [
        "integrity (lpips-alex) ↑", "integrity (dreamsim) ↑", "FID ↓",
    ]  # fmt: skip


def test_a_gap_is_by_one_network_and_a_plane_by_one_distance():
    left, right, _ = runs = by_two_networks()
    gaps = [[v.unlearned for v in run.values if v.metric == "oracle_gap"] for run in with_gaps(runs)]
    assert gaps == [[0.0], [], [0.0]]
    other = a_run(Path("d"), "ca", [forgot(0.1), value(unlearned=0.2, backbone="dreamsim")])
    both = [a_run(Path(run.folder), values=[forgot(0.5), *run.values]) for run in (left, right)]
    assert [point.y for point in run_points([*both, other])[1]] == [0.9, 0.9]


def test_the_detectors_of_two_concepts_share_a_column():
    runs = [a_run(name, values=[forgot(0.5, backbone=f"classifier subject={name}")]) for name in ("church", "tree")]
    runs[1].log["config"]["concept"]["name"] = "tree"
    assert comparison(runs)[0] == ["concept.name", "status", "forget_accuracy (forget)"]


def test_a_rescaled_metric_is_no_part_of_the_metric():
    values = [value(metric) for metric in ("rest_integrity", "rest_integrity_norm", "binding", "binding_color_style")]
    assert [metric for metric, _ in columns([a_run("l", values=values)])] == ["rest_integrity", "rest_integrity_norm", "binding"]


# --- groups -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def seeds():
    runs = [a_run(f"a{i}", "ga", [value(unlearned=x, low=0.0, high=1.0)], seed=i) for i, x in enumerate((0.1, 0.2, 0.3))]
    return [*runs, a_run("b0", "esd", [value(unlearned=0.5)], seed=0), a_run("b1", "esd", status="error", seed=1)]


def test_a_group_is_one_row_with_mean_and_the_interval_of_student(seeds):
    result = compare(seeds, ["seed"])
    assert result.head == ["algo", "status", "runs", "integrity (retain)"]
    assert result.body == [["ga", "done", "3", "0.200 (-0.048..0.448)"], ["esd", "1 of 2 done", "2", "0.500*"]]
    cell = result.rows[0].cells[0]
    assert (cell.low, cell.high) == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))


def test_student_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    ends = [mean_interval(rng.normal(size=3))[1:] for _ in range(2000)]
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.015)


def test_grouping_over_a_setting_that_no_run_has_is_an_error(seeds):
    with pytest.raises(UserError, match=r"--group sed: no such setting in these runs; did you mean 'seed'\?"):
        compare(seeds, ["sed"])


def test_runs_that_differ_in_more_than_the_group_stay_apart(seeds):
    for run in seeds:
        run.log["config"]["algo"]["lr"] = 1
    other = a_run("c", "ga", [value(unlearned=0.9)], seed=1, lr=2)
    assert [len(row.runs) for row in compare([*seeds[:3], other], ["seed"]).rows] == [3, 1]


def test_a_group_of_shares_is_no_narrower_than_one_run_and_stays_in_range():
    def rate(unlearned, low, high, seed):
        measured = value("forget_accuracy", unlearned, "lower", "forget", "Forgetting", low=low, high=high)
        return a_run(f"r{seed}", values=[measured], seed=seed)

    none = [rate(0.0, 0.0, 0.324, seed) for seed in (0, 1)]
    assert compare(none, ["seed"]).body[0][-1] == "0.000 (0.000..0.324)"
    [row] = compare([rate(0.0, 0.0, 0.3, 0), rate(0.2, 0.1, 0.4, 1)], ["seed"]).rows
    assert row.cells[0][1:3] == (0.0, 1.0)


def test_a_group_whose_runs_are_equal_has_the_runs_own_interval():
    runs = [a_run(f"r{seed}", values=[value(unlearned=0.8, low=0.7, high=0.9)], seed=seed) for seed in (0, 1)]
    assert compare(runs, ["seed"]).body[0][-1] == "0.800 (0.700..0.900)"


def test_a_group_of_unmodified_models_has_no_interval_in_the_table_and_its_ends_in_files():
    runs = [a_run(f"r{seed}", "none", [value(unlearned=1.0, low=1.0, high=1.0)], seed=seed) for seed in (0, 1)]
    group = compare(runs, ["seed"])
    assert group.body[0][-1] == "1.000"
    assert group.records()[0]["integrity (retain) low"] == 1.0


def test_csv_has_the_interval_of_any_run_that_has_one():
    runs = [a_run("a", "ga", [value()]), a_run("b", "esd", [value(low=0.4, high=0.6)])]
    rows = list(csv.DictReader(io.StringIO(export_comparison("csv", runs))))
    assert [(row["integrity (retain) low"], row["integrity (retain) high"]) for row in rows] == [("", ""), ("0.4", "0.6")]


def test_the_star_stands_within_one_concept_and_n():
    runs = [a_run(name, values=[value(unlearned=x)], lr=x) for name, x in (("a", 0.5), ("b", 0.7), ("c", 0.9), ("d", 0.8))]
    runs[2].log["config"]["concept"]["name"] = "nudity"
    runs[3].values[0] = replace(runs[3].values[0], n=8)
    assert [row[-1] for row in comparison(runs)[1]] == ["0.500", "0.700*", "0.900", "0.800"]


def test_csv_of_several_runs_ends_with_n_and_the_folder():
    runs = [a_run(f"r{seed}", values=[value(), forgot(0.1)], seed=seed) for seed in (0, 1)]
    rows = list(csv.DictReader(io.StringIO(export_comparison("csv", runs))))
    assert list(rows[0])[-3:] == ["forget_accuracy (forget) n", "integrity (retain) n", "folder"]
    assert [list(row.values())[-3:] for row in rows] == [["4", "4", "r0"], ["4", "4", "r1"]]
    group = next(csv.DictReader(io.StringIO(export_comparison("csv", [*runs, a_run("e", "esd")], ["seed"]))))
    assert (group["folder"], group["integrity (retain) n"]) == ("r0; r1", "4")


# --- paired -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def imaged(tmp_path, write_images):
    """Make a run whose images have these distances to the original's."""

    def make(name, distances, prompts, seeds=None, splits="far"):
        pixels = np.zeros((len(prompts), 2, 2, 3), np.uint8)
        write_images(f"{name}-after", pixels, prompts, splits, seeds=seeds)
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / f"{name}-after").rename(tmp_path / name / "images/after")
        named = {f"{i:05d}.png": float(d) for i, d in enumerate(distances)}
        (tmp_path / name / "per_image.json").write_text(json.dumps({"lpips-alex": named}))
        run = a_run(tmp_path / name, name)
        run.write()
        return run

    return make


def test_paired_runs_are_matched_by_prompt_and_seed(imaged):
    left = imaged("left", [0.1, 0.2, 0.3, 9.0], ["a", "b", "c", "only left"], [1, 2, 3, 4], ["near", "near", "far", "far"])
    right = imaged("right", [0.6, 0.4, 0.2], ["c", "b", "a"], [3, 2, 1], ["far", "near", "near"])
    whole, near, far = paired_tests(left, right)
    assert (whole.split, near.split, far.split) == ("retain", "near", "far")
    assert (whole.left, whole.right, whole.difference) == pytest.approx((0.2, 0.4, 0.2))
    assert (whole.images, whole.prompts, near.images, far.images) == (3, 3, 2, 1)
    assert (far.low, far.high, far.p, far.corrected) == (None,) * 4
    assert far.cells[-5:] == ["", "", "", "1", "1"]  # one prompt has no sampling error to show


def test_a_clear_difference_is_significant_and_none_is_not(imaged):
    rng = np.random.default_rng(0)
    prompts, seeds = [f"p{i // 2}" for i in range(60)], list(range(60))
    base = rng.uniform(0.1, 0.4, 60)
    left = imaged("left", base, prompts, seeds)
    [worse] = paired_tests(left, imaged("right", base + rng.uniform(0, 0.1, 60), prompts, seeds))
    [same] = paired_tests(left, left)
    assert worse.low > 0
    assert worse.p == pytest.approx(2 / 10_001)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_p_of_several_runs_are_corrected_for_their_number_by_distance_and_split(imaged):
    rng = np.random.default_rng(0)
    prompts, seeds, base = [f"p{i // 2}" for i in range(60)], list(range(60)), rng.uniform(0.1, 0.4, 60)
    left = imaged("left", base, prompts, seeds)
    others = [
        imaged(name, base + rng.normal(mean, 0.05, 60), prompts, seeds) for name, mean in (("a", 0.015), ("b", 0.02), ("c", 0))
    ]
    tests = paired_tests(left, *others)
    assert [test.run for test in tests] == ["a", "b", "c"]
    assert [test.corrected for test in tests] == holm([test.p for test in tests])
    [alone] = paired_tests(left, others[0])
    assert alone.corrected == alone.p == tests[0].p < tests[0].corrected


def test_holm_corrects_by_rank_and_never_reverses_an_order():
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    rng = np.random.default_rng(0)
    false = [min(holm(rng.uniform(size=10).tolist())) < 0.05 for _ in range(2000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.02)


def test_a_difference_that_counts_as_detectable_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    spread, n = 0.1, 40
    difference = detectable_difference(spread, n)
    found = [abs(x.mean() / (x.std(ddof=1) / n**0.5)) > 1.96 for x in rng.normal(difference, spread, (3000, n))]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    rise = detectable_share(0.1, 48)
    counts = rng.binomial(48, [[0.1], [0.1 + rise]], (2, 3000)) / 48
    spread = np.sqrt(2 * counts.mean(0) * (1 - counts.mean(0)) / 48)
    assert np.mean((counts[1] - counts[0]) / spread > 1.96) == pytest.approx(0.8, abs=0.05)
    assert math.isnan(detectable_share(1.0, 10))


def test_the_bootstrap_over_prompts_covers_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(3)
    groups, covered = [i // 2 for i in range(96)], []
    for _ in range(300):
        values = np.repeat(rng.normal(0.3, 0.1, 48), 2) + rng.normal(0, 0.05, 96)
        low, high = bootstrap_interval(groups, values, draws=400)
        covered.append(low <= 0.3 <= high)
    assert np.mean(covered) == pytest.approx(0.94, abs=0.035)


def test_p_is_small_as_seldom_as_it_should_be_where_there_is_no_difference():
    rng = np.random.default_rng(1)
    groups = [i // 2 for i in range(80)]
    ps = [paired_difference(groups, *rng.normal(size=(2, 80)), draws=1000)[2] for _ in range(400)]
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.035)


@pytest.mark.parametrize(("prompts", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625), (20, 2 / 10_001)])
def test_few_prompts_have_no_small_p(prompts, p):
    difference = np.linspace(0.1, 0.2, prompts)
    assert paired_difference(range(prompts), np.zeros(prompts), difference)[2] == pytest.approx(p)
    assert paired_difference(np.repeat(range(prompts), 2), np.zeros(2 * prompts), np.repeat(difference, 2))[2] == pytest.approx(p)


def test_columns_see_the_same_draws():
    one, same = bootstrap_means(range(5), np.arange(5.0), np.arange(5.0), draws=50)
    assert np.array_equal(one, same)
    assert one.shape == (50,)


def test_runs_without_shared_prompts_are_an_error(imaged):
    left, right = imaged("left", [0.1], ["a"]), imaged("right", [0.1], ["b"])
    with pytest.raises(UserError, match=r"left and .*right share no prompt and seed; compare runs with the same ones"):
        paired_tests(left, right)
    (right.folder / "per_image.json").write_text("{}")
    with pytest.raises(UserError, match=r"share no per-image distance \(per_image.json, by metrics=integrity\)"):
        paired_tests(left, right)


def test_a_failed_run_is_left_out_of_a_paired_test(imaged, command, tmp_path):
    left, right = (imaged(name, [0.1, 0.2], ["a", "b"]).folder for name in ("left", "right"))
    (tmp_path / "failed").mkdir()
    a_run(tmp_path / "failed", status="error").write()
    both = command("show", left, right, "--paired")
    outcome = command("show", left, tmp_path / "failed", right, "--paired")
    assert (outcome.code, outcome.out) == (0, both.out)
    assert outcome.err == f"left out, failed: {tmp_path / 'failed'}\n"
    first = command("show", tmp_path / "failed", left, right, "--paired", "--csv")
    assert first.code == 2
    assert first.err == f"error: --paired compares {tmp_path / 'failed'} with the others, and it is not done (failed)\n"


def test_a_run_with_an_incomplete_index_is_an_error(imaged, command):
    left, right = (imaged(name, [0.1, 0.2], ["a", "b"]).folder for name in ("left", "right"))
    index = right / "images/after/index.jsonl"
    index.write_text(index.read_text().splitlines()[0])
    outcome = command("show", left, right, "--paired")
    assert outcome.code == 2
    assert outcome.err == f"error: {right}: incomplete; 1 images of per_image.json are missing in images/after/index.jsonl\n"


def test_a_paired_test_of_one_prompt_has_no_interval_and_no_p(imaged):
    left, right = imaged("left", [0.1, 0.2], "aa", [0, 1]), imaged("right", [0.3, 0.5], "aa", [0, 1])
    [row] = json.loads(export_comparison("json", [left, right], pair=True))
    assert [row[name] for name in ("prompts", "low", "high", "p", "corrected")] == [1, None, None, None, None]
    assert paired_tests(left, right)[0].cells[6:9] == ["", "", ""]


def test_equal_runs_have_no_paired_interval(imaged):
    left, right = (imaged(name, [0.0, 0.0], "ab") for name in ("none", "word_swap"))
    [test] = paired_tests(left, right)
    assert (test.low, test.high, test.p) == (0, 0, 1)
    assert test.cells[5:8] == ["+0.000", "", "1.0000"]


def test_a_paired_test_takes_two_runs_or_more(imaged, command, monkeypatch):
    folder = imaged("left", [0.1], ["a"]).folder
    outcome = command("show", folder, "--paired")
    assert (outcome.code, outcome.err) == (2, "error: --paired compares a run with others; name two runs or more\n")
    outcome = command("show", folder, folder, "--paired")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == f"left: left on church, {folder}"
    monkeypatch.setenv("COLUMNS", "60")
    blocks = [line.split() for line in command("show", folder, folder, "--paired").out.splitlines() if line.startswith("run ")]
    assert [block[:3] for block in blocks] == 2 * [["run", "distance", "on"]], "each row of a narrow table says its split"
    [row] = csv.DictReader(io.StringIO(command("show", folder, folder, "--paired", "--csv").out))
    assert (row["distance"], float(row["left"]), row["p"]) == ("lpips-alex", 0.1, "")  # of one prompt
    folder = imaged("two", [0.1, 0.3], ["a", "b"]).folder
    [row] = csv.DictReader(io.StringIO(command("show", folder, folder, "--paired", "--csv").out))
    assert (row["distance"], float(row["left"]), float(row["p"])) == ("lpips-alex", 0.2, 1.0)


# --- forms --------------------------------------------------------------------------------------------------------------


def test_csv_and_json_are_unrounded_without_stars(seeds):
    rows = list(csv.DictReader(io.StringIO(export_comparison("csv", seeds))))
    assert rows[0]["integrity (retain)"] == "0.1"
    assert rows[0]["integrity (retain) high"] == "1.0"
    assert rows[4]["integrity (retain)"] == ""
    [ga, esd] = json.loads(export_comparison("json", seeds, ["seed"]))
    assert (ga["algo"], ga["runs"], ga["integrity (retain)"]) == ("ga", 3, pytest.approx(0.2))
    assert esd["integrity (retain) low"] is None


def test_markdown_keeps_its_columns_whatever_the_cells_say():
    text = export_comparison("md", [a_run("l", train="a|b"), a_run("r", train="c")])
    assert text.splitlines()[2] == "| a\\|b | done |"


def test_tex_is_escaped_and_the_best_is_bold():
    runs = [a_run("l", "ga", [value(unlearned=0.9)], train="attn*_{1}"), a_run("r", "ga", [value()], train="50% & \\x^~$")]
    text = export_comparison("tex", runs)
    assert text.splitlines()[:3] == [r"\begin{tabular}{llr}", r"\toprule", r"algo.train & status & integrity \\"]
    assert r"attn*\_\{1\} & done & \textbf{0.900} \\" in text
    assert r"50\% \& \textbackslash{}x\textasciicircum{}\textasciitilde{}\$ & done & 0.500 \\" in text
    assert text.count("*") == 1


# --- plots --------------------------------------------------------------------------------------------------------------


def test_points_take_the_integrity_that_every_run_has():
    with_norm = a_run(Path("l"), values=[forgot(0.25, low=0.2, high=0.4), value(), value("integrity_norm", 0.3)])
    name, [point] = run_points([with_norm, a_run(Path("failed"), status="error")])
    assert (name, point.x, point.y, point.y_interval) == ("integrity_norm", 0.75, 0.3, (0.3, 0.3))
    assert point.x_interval == pytest.approx((0.6, 0.8))
    assert run_points([with_norm, a_run(Path("r"), values=[forgot(0.0), value()])])[0] == "integrity"


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_plot_of_a_run_is_written(ending, smoke, command, tmp_path):
    outcome = command("show", smoke.folder, "--plot", f"plot.{ending}")
    assert (outcome.code, outcome.out) == (0, f"wrote plot.{ending}\n")
    written = (tmp_path / f"plot.{ending}").read_bytes()
    assert (b"<svg" in written) if ending == "svg" else written.startswith(b"\x89PNG")


def test_overlapping_labels_are_spread_around_their_mean():
    assert separate_labels([0.5, 1.0, 1.0], 0.2) == pytest.approx([0.5, 0.9, 1.1])
    assert separate_labels([0.52, 0.0, 0.5, 0.51], 0.1) == pytest.approx([0.61, 0.0, 0.41, 0.51])
    assert separate_labels([0.0, 0.1, 0.19, 0.5], 0.1) == pytest.approx([-0.0033, 0.0967, 0.1967, 0.5], abs=1e-4)
    assert separate_labels([], 0.1) == []


def test_a_plot_that_cannot_be_written_leaves_the_earlier_one(smoke, command, tmp_path, monkeypatch):
    (tmp_path / "plot.svg").write_text("the earlier one")

    def fill_the_disk(figure, path, **settings):
        Path(path).write_text("<svg")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_the_disk)
    outcome = command("show", smoke.folder, "--plot", "plot.svg")
    assert (outcome.code, outcome.err) == (2, "error: plot.svg: cannot be written (No space left on device)\n")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("plot.svg", "the earlier one")]


def test_a_leaderboard_is_drawn_whatever_lies_below_the_plot(tmp_path):
    points = [Point(i, f"m{i}", x, y, (x, x), (y, y)) for i, (x, y) in enumerate([(0.9, 0.5), (0.1, -7.0), (0.95, 0.5)])]
    points[2] = replace(points[2], depth=0.25)
    draw_leaderboard(points, [True, False, True], ("forgets", "does not"), tmp_path / "board.svg")
    text = (tmp_path / "board.svg").read_text()
    assert [text.count(f"<!-- {words} -->") for words in ("m0", "m1", "m2, depth 0.25", "forgets")] == [1, 1, 1, 1]
    assert text.count("<!-- -7.00, off the scale -->") == 1


def test_a_loss_that_is_no_number_is_left_out(tmp_path):
    (tmp_path / "train.csv").write_text("step,loss,seconds\n1,0.5,0.1\n2,inf,0.2\n")
    assert read_losses(tmp_path) == [(1, 0.5)]
    assert read_losses(tmp_path / "none") == []


def test_the_reason_why_nothing_can_be_plotted_is_one_line(smoke, command, tmp_path, monkeypatch):
    assert command("show", smoke.folder, "--plot", "plot.gif").err.startswith("error: --plot plot.gif: the suffix must be")
    (tmp_path / "empty").mkdir()
    a_run(tmp_path / "empty", status="error").write()
    assert command("show", "empty", "--plot", "plot.svg").err.startswith("error: nothing to draw: ")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("unlearnbench.reports.plots.find_spec", lambda name: None)
    outcome = command("show", smoke.folder, "--plot", "plot.svg")
    assert (outcome.code, outcome.err) == (2, "error: --plot needs matplotlib: pip install 'unlearnbench[plot]'\n")


@pytest.mark.parametrize(
    ("one", "other"), [("plot", "group"), ("plot", "paired"), ("plot", "gap"), ("paired", "gap"), ("interference", "gap")]
)
def test_options_that_exclude_each_other_are_refused(one, other, command, tmp_path):
    words = [f"--{name}" + {"plot": "=x.svg", "group": "=seed"}.get(name, "") for name in (one, other)]
    outcome = command("show", "a", *words)
    assert (outcome.code, outcome.err) == (2, f"error: --{one} takes no --{other}; leave out one of the two\n")


def test_the_gap_is_the_distance_to_the_oracle_of_the_same_concept_and_sampling():
    oracle = a_run("o", "oracle", [forgot(0.25), value("fid", 3.0, "lower"), value(unlearned=0.7)])
    runs = with_gaps([a_run("l", "ga", [forgot(0.0), value("fid", 5.0, "lower"), value(unlearned=0.9)]), oracle])
    head, body = comparison(runs)
    assert head[-2:] == ["oracle_gap (forget_accuracy)", "oracle_gap (fid)"]
    assert [row[-2:] for row in body] == [["0.250", "2.000"], ["0.000*", "0.000*"]]
    assert oracle.values == [forgot(0.25), value("fid", 3.0, "lower"), value(unlearned=0.7)]


@pytest.mark.parametrize("change", ["concept", "sample", "none", "two"])
def test_a_gap_without_exactly_one_oracle_is_an_error(change):
    left, oracle = a_run("left"), a_run("o", "oracle")
    if change == "concept":
        oracle.log["config"]["concept"] = {"name": "nudity"}
    if change == "sample":
        oracle.log["config"]["sample"] = {"seed": 1}
    runs = [left, *([] if change == "none" else [oracle]), *([a_run("p", "oracle")] if change == "two" else [])]
    with pytest.raises(
        UserError, match=f"--gap: left: needs one run of algo=oracle .*; {'these are 2' if change == 'two' else 'there is none'}"
    ):
        with_gaps(runs)


@pytest.mark.parametrize("cut", ["3", "3,", "3,0.2", "3,0."])
def test_a_line_of_losses_that_a_full_disk_cut_off_is_left_out(cut, tmp_path):
    (tmp_path / "train.csv").write_text(f"step,loss,seconds\n1,0.5,0.1\n2,0.25,0.2\n{cut}")
    assert read_losses(tmp_path) == [(1, 0.5), (2, 0.25)]


def test_show_prints_the_gap(smoke, command):
    outcome = command("show", smoke.folder, "--gap")
    assert outcome.code == 2
    assert f"error: --gap: {smoke.folder}: needs one run of algo=oracle" in outcome.err
