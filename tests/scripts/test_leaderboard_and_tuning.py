"""The leaderboard and the tuning store results in a csv, and rank by the rule that they state."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import re
from types import SimpleNamespace

import boards
import check_rows
import gpu
import leaderboard
import leaderboard_page
import pytest
import stored_runs
import tune
import unseen_words
import variance

from unlearnbench.config.compose import compose
from unlearnbench.console.tables import format_number
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import Prompt
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline


def fake(algo, forget, integrity, concept="church", seed=0, status="done", device="cpu, 2 threads"):
    """A run as the scripts read it."""
    numbers = {("forget_accuracy", "forget"): forget, ("integrity_norm", "retain"): integrity}

    def find(metric, split):
        return SimpleNamespace(unlearned=numbers[metric, split], low=0.25, high=0.75, n=24, original=1.0)

    config = {"concept": {"name": concept}, "seed": seed}
    log = {"algo": algo, "config": config, "status": status, "git": "abc", "error": "no", "device": device}
    return SimpleNamespace(log=log, find=find, folder=algo)


@pytest.fixture
def runs(monkeypatch):
    """What would be run: the overrides, in order; each run forgets as its setting `lr` says."""
    requested = []

    def find_or_run(folder, overrides):
        requested.append(overrides)
        words = dict(word.split("=", 1) for word in overrides)
        forget = float(words.get("algo.lr", 0.0))
        return fake(words["algo"], min(forget, 1.0), 0.5 + forget / 10, words["concept"], words["seed"])

    monkeypatch.setattr(leaderboard, "find_or_run", find_or_run)
    monkeypatch.setattr(tune, "find_or_run", find_or_run)
    return requested


def test_what_the_csv_holds_is_not_run_again(runs, tmp_path):
    path = tmp_path / "rows.csv"
    words = [[f"algo={algo}", "concept=church", "seed=0"] for algo in ("none", "uce")]
    rows = leaderboard.run_all(words, tmp_path, path)
    assert [row["algo"] for row in rows] == ["none", "uce"]
    assert runs == words
    again = leaderboard.run_all(words, tmp_path, path)
    assert runs == words
    assert [leaderboard_page.cell([row], "forget") for row in again] == ["0.000 (0.250..0.750)"] * 2
    assert math.isnan(again[0]["fid"])
    assert leaderboard_page.cell(again, "fid") == ""


def test_depth_is_a_later_column_that_leaves_rows_valid_and_is_measured_where_it_is_asked(runs, tmp_path, monkeypatch):
    path, words = tmp_path / "rows.csv", [["algo=uce", "concept=church", "seed=0"]]
    leaderboard.run_all(words, tmp_path, path)
    rows = stored_runs.read_csv(path)
    stored_runs.write_csv(path, [{k: v for k, v in row.items() if k not in boards.PICTOWORLD.probes} for row in rows])
    [row] = leaderboard.run_all(words, tmp_path, path)
    assert len(runs) == 1
    assert math.isnan(row["depth"])
    interval = {"low": 0.1, "high": 0.3, "method": ""}
    report = {
        "oracle": "included in Pictoworld",
        "rows": [
            {"probe": "text_states", "unlearned": 0.5, "depth": 0.5, "n": 48, "interval": {}},
            {"probe": "text_states", "unlearned": 1.0, "depth": 0.0, "n": 48, "interval": {}},
            {"probe": "pooled", "unlearned": 0.4, "depth": 0.2, "n": 192, "interval": interval},
        ],
    }
    monkeypatch.setattr(leaderboard, "measure_depth", lambda folder: report)
    for _ in range(2):
        [row] = leaderboard.run_all(words, tmp_path, path, depth=True)
        assert len(runs) == 2
        assert [row[name] for name in boards.PICTOWORLD.probes] == [0.2, 0.5, 0.1, 0.3, 192]
    assert "0.200 (0.100..0.300) | 0.500 |" in leaderboard_page.page([row], "make leaderboard", "picture.png")


def test_a_call_keeps_the_rows_that_another_wrote_meanwhile(runs, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    find_or_run = leaderboard.find_or_run

    def beside(folder, overrides):
        if "algo=none" in overrides:
            leaderboard.run_all([["algo=uce", "concept=church", "seed=0"]], tmp_path, path)
        return find_or_run(folder, overrides)

    monkeypatch.setattr(leaderboard, "find_or_run", beside)
    leaderboard.run_all([["algo=none", "concept=church", "seed=0"]], tmp_path, path)
    assert [row["algo"] for row in leaderboard.read_rows(path)] == ["none", "uce"]


def test_every_concept_counts_alike_however_many_seeds_it_has():
    given = [("a", 0.0, 1.0, "church", 0), ("a", 0.0, 0.8, "church", 1), ("a", 0.0, 0.5, "nudity", 0)]
    rows = [leaderboard.row_of(fake(*numbers), "") for numbers in given]
    assert leaderboard_page.mean(rows, "integrity") == pytest.approx((0.9 + 0.5) / 2)
    assert math.isnan(leaderboard_page.mean(rows, "fid"))


def test_an_interval_stands_where_every_row_has_one_and_where_it_has_a_width():
    one, other = (leaderboard.row_of(fake("a", 0.0, 1.0, seed=seed), "") for seed in (0, 1))
    assert leaderboard_page.cell([one, other], "integrity") == "1.000 (0.250..0.750)"
    assert leaderboard_page.cell([one, other | {"integrity_low": math.nan, "integrity_high": math.nan}], "integrity") == "1.000"
    assert leaderboard_page.cell([one | {"integrity_low": 1.0, "integrity_high": 1.0}], "integrity") == "1.000"


def test_depths_are_drawn_of_the_concept_with_most_of_them_if_they_are_not_few(tmp_path):
    rows = [leaderboard.row_of(fake(f"a{i}", 0.02 * (i % 2), 1.0 - 0.1 * i), "") | {"depth": 0.1 * i} for i in range(10)]
    rows += [leaderboard.row_of(fake("a0", 0.0, 1.0, "nudity"), "") | {"depth": 1.0}]
    assert leaderboard_page.probed_concept(rows[1:]) == ("", {})
    leaderboard_page.draw_depth(rows[1:], tmp_path / "few.svg")
    assert not (tmp_path / "few.svg").exists()
    concept, by_algo = leaderboard_page.probed_concept(rows)
    assert (concept, set(by_algo)) == ("church", {f"a{i}" for i in range(10)})
    leaderboard_page.draw_depth(rows, tmp_path / "some.svg")
    drawn = (tmp_path / "some.svg").read_text()
    assert all(f"<!-- a{i} -->" in drawn for i in range(10))
    assert "![Depth against integrity on church](plot-depth.png)" in leaderboard_page.page(rows, "make x", "plot.png")
    assert "plot-depth.png" not in leaderboard_page.page(rows[1:], "make x", "plot.png")


def test_a_number_that_was_not_measured_has_no_distance_to_the_oracle():
    rows = [leaderboard.row_of(fake(*numbers), "") for numbers in (("oracle", 0.02, 0.7), ("ga", 0.5, 0.9))]
    rows[0] |= {"right": 0.9}
    lines = "\n".join(leaderboard_page.gaps(leaderboard_page.ranked(rows))).splitlines()
    assert lines[-1] == "| ga | 0.480 |  |"


def test_seconds_are_the_least_of_the_seeds_since_load_only_adds():
    rows = [
        leaderboard.row_of(fake("a", 0.0, 0.9, seed=seed), "") | {"seconds": s}
        for seed, s in ((0, 90.0), (1, 30.0), (2, math.nan))
    ]
    assert leaderboard_page.cell(rows, "seconds") == format_number(30.0)


def test_what_draws_nothing_runs_with_the_first_seed_alone():
    words = leaderboard.all_overrides(["uce", "ga"], ["church", "nudity"], ["1", "0"])
    actual = [tuple(word.partition("=")[2] for word in line) for line in words]
    assert actual[:4] == [("uce", "church", "1"), ("ga", "church", "1"), ("uce", "nudity", "1"), ("ga", "nudity", "1")]
    assert actual[4:] == [("ga", "church", "0"), ("ga", "nudity", "0")]


def test_what_the_csv_holds_is_shown_without_a_run(runs, tmp_path, monkeypatch):
    words = [[f"algo={algo}", f"concept={concept}", "seed=0"] for concept in ("van_gogh", "nudity") for algo in ("none", "uce")]
    words.append(["algo=uce", "concept=church", "seed=0", "algo.ridge=9"])
    leaderboard.run_all(words, tmp_path, tmp_path / "rows.csv")
    runs.clear()
    monkeypatch.setattr("sys.argv", ["leaderboard.py", "--render", "--write", str(tmp_path / "rows.md")])
    leaderboard.main()
    assert runs == []
    text = (tmp_path / "rows.md").read_text()
    assert text.index("## nudity") < text.index("## van_gogh")
    assert "church" not in text  # of other settings than today
    assert len(re.findall(r"(?m)^\| (none|uce) \|", text)) == 6  # of both concepts, and of their means
    assert (tmp_path / "rows.png").is_file()


def test_other_settings_or_weights_are_run_again(runs, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    words = ["algo=uce", "concept=church", "seed=0"]
    leaderboard.run_all([words], tmp_path, path)
    leaderboard.run_all([[*words, "algo.ridge=9"]], tmp_path, path)
    assert len(runs) == 2
    assert len(leaderboard.read_rows(path)) == 1
    leaderboard.run_all([[*words, "algo.ridge=9", "cache=elsewhere"]], tmp_path, path)
    assert len(runs) == 2
    monkeypatch.setattr(boards, "weights_hash", lambda folder: "f" * 64)
    leaderboard.run_all([[*words, "algo.ridge=9"]], tmp_path, path)
    assert len(runs) == 3


def test_those_that_forget_come_first_by_integrity_and_the_others_by_forgetting():
    given = [("a", 0.5, 0.99), ("b", 0.0, 0.6), ("c", 0.1, 0.9), ("d", 0.3, 1.0)]
    rows = [leaderboard.row_of(fake(*numbers), "") for numbers in given]
    assert list(leaderboard_page.ranked(rows)) == ["c", "b", "d", "a"]
    rows.append(leaderboard.row_of(fake("z", 0.0, 0.0, status="error"), ""))
    text = leaderboard_page.page(rows, "make leaderboard", "picture.png")
    assert "- z on church, seed 0: no" in text
    assert "| c | 1 |" in text
    assert "Without a row: adavd, adv_unlearn, age, blocklist, ca, " in text
    assert text.index("| c |") < text.index("| b |") < text.index("| d |") < text.index("| a |")


def test_the_page_says_how_many_images_and_explains_the_columns_that_it_has():
    rows = [leaderboard.row_of(fake("a", 0.5, 0.9, concept), "") for concept in ("church", "nudity", "fish")]
    text = leaderboard_page.page(rows, "make leaderboard", "picture.png")
    assert "n = 24 images of forget prompts and 24 of retain prompts a run." in text
    assert "retain_accuracy" not in text
    rows[0] |= {"integrity_n": 160.0, "right": 0.9}
    rows[1] |= {"integrity_n": 154.0}
    text = leaderboard_page.page(rows, "make leaderboard", "picture.png")
    assert "n = 24 images of forget prompts and 24 to 160 of retain prompts a run." in text
    assert "| retain_accuracy |" in text


def test_runs_that_are_done_before_an_earlier_one_have_their_rows(runs, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def last_first(jobs):
        def mapped(function, items):
            for item in reversed(items[1:]):
                function(item)
            raise KeyboardInterrupt  # before the first is done
            yield

        yield mapped

    monkeypatch.setattr(leaderboard, "process_map", last_first)
    words = [[f"algo={algo}", "concept=church", "seed=0"] for algo in ("none", "uce", "ga")]
    with pytest.raises(KeyboardInterrupt):
        leaderboard.run_all(words, tmp_path, tmp_path / "rows.csv", jobs=3)
    assert [row["algo"] for row in leaderboard.read_rows(tmp_path / "rows.csv")] == ["ga", "uce"]


def test_seconds_are_those_of_the_device_that_most_runs_had():
    rows = [
        leaderboard.row_of(fake(algo, 0.0, 0.9, device=d), "") | {"seconds": 7.5}
        for algo, d in (("a", "cpu, 1 threads"), ("b", "NVIDIA H100"))
    ]
    text = leaderboard_page.page([*rows, rows[1] | {"seed": "1"}], "make leaderboard", "picture.png")
    assert "seconds" in text
    assert "GPU and its load" in text
    assert [line.count("7.500") for line in text.splitlines() if line.startswith(("| a ", "| b "))] == [0, 1]
    assert "CPU and its load" in leaderboard_page.page([*rows, rows[0] | {"seed": "1"}], "make leaderboard", "picture.png")


def test_a_row_made_in_a_process_of_its_own_is_the_one_made_here(monkeypatch, tmp_path):
    monkeypatch.setattr(stored_runs, "get_context", lambda _: multiprocessing.get_context("fork"))  # what is imported stays so
    words = [["algo=noise", "concept=church", "experiment=smoke"]]
    there, here = (
        leaderboard.run_all(words, tmp_path / name, tmp_path / f"{name}.csv", jobs) for name, jobs in (("a", 2), ("b", 1))
    )
    assert [row["status"] for row in there] == ["done"]
    assert there[0]["integrity"] == pytest.approx(here[0]["integrity"], abs=1e-6)  # of fewer threads, so another rounding
    assert here[0]["integrity"] < 1.0


def search(tmp_path, trials=4):
    tmp_path.mkdir(exist_ok=True)
    return tune.Search(boards.PICTOWORLD, ["fish", "dotted"], 7, trials, tmp_path, tmp_path / "tuning.csv")


def test_a_search_goes_on_where_it_stopped(runs, tmp_path):
    first = search(tmp_path, 2).tune("ga")
    assert len(runs) == 4
    assert [trial.trial for trial in first] == ["0", "1"]
    assert {word for word in runs[0] if word.startswith("algo.")} == {f"algo.{word}" for word in first[0].settings.split()}
    more = search(tmp_path, 4).tune("ga")
    assert more[:2] == first
    assert len(runs) == 8
    assert search(tmp_path / "elsewhere", 4).tune("ga") == more


def test_the_trials_that_run_ahead_are_those_of_the_search(runs, tmp_path):
    search(tmp_path, 2).run_random_trials(["ga", "esd_x"], jobs=1)
    count = len(runs)
    actual = search(tmp_path, 2).tune("esd_x")
    assert len(runs) == count
    assert [trial.settings for trial in actual] == [trial.settings for trial in search(tmp_path / "alone", 2).tune("esd_x")]


def test_settings_that_were_tried_are_not_tried_again(runs, tmp_path):
    one = search(tmp_path)
    first, again, other = (one.run("ga", number, [f"lr={lr}", "steps=2"]) for number, lr in enumerate((0.01, 0.01, 0.02)))
    assert len(runs) == 4
    assert (again.trial, again.forget, again.integrity) == ("1", first.forget, first.integrity)
    assert other.forget != first.forget
    assert [trial.trial for trial in one.stored_trials().values()] == ["0", "1", "2"]


def test_a_trial_by_hand_is_one_more_and_can_win(runs, tmp_path):
    one = search(tmp_path, 2)
    one.tune("ga")
    by_hand = one.add("ga lr=0.03 steps=2")
    assert (by_hand.trial, by_hand.forget, one.add("ga lr=0.04 steps=2").trial) == ("100", "0.03", "101")
    assert [trial.trial for trial in one.added("ga")] == ["100", "101"]
    assert {word for word in runs[4] if word.startswith("algo.")} == {"algo.lr=0.03", "algo.steps=2"}
    assert [trial.trial for trial in one.tune("ga")] == ["0", "1"]
    assert one.added("esd_x") == []
    assert one.add("ga lr=0.03 steps=2").trial == "100"
    assert [trial.trial for trial in search(tmp_path, 4).tune("ga")] == ["0", "1", "2", "3"]
    assert [trial.trial for trial in one.added("ga")] == ["100", "101"]


def test_a_trial_that_failed_counts_for_nothing_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "find_or_run", lambda folder, overrides: None)
    actual = search(tmp_path, 2).tune("ga")
    assert [trial.forget for trial in actual] == ["", ""]
    assert tune.write_best("ga", "nowhere", actual, 2, "make tune") is None


def test_the_best_trial_forgets_and_keeps_most(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "CONF", tmp_path)
    numbers = [("0.04", "0.7"), ("0.05", "0.8"), ("0.06", "0.99"), ("", "")]
    actual = [tune.Trial("ga", str(i), f"lr={10**-i} steps=60", *pair, "", "fish dotted") for i, pair in enumerate(numbers)]
    best = tune.write_best("ga", "pictoworld", actual, 2, "make tune")
    assert best == actual[1]
    text = (tmp_path / "tuned/pictoworld/ga.yaml").read_text()
    assert text == (
        "# @package algo\n# By `make tune`: trial 1 of 4, forget accuracy 0.050, integrity_norm 0.800.\nlr: 0.1\nsteps: 60\n"
    )
    worse = tune.Trial("ga", "3", "lr=1 steps=9", "0.5", "1.0", "", "fish dotted")
    assert tune.write_best("ga", "pictoworld", [actual[2], worse], 2, "") == actual[2]


def test_a_trial_ends_where_its_last_concept_could_not_let_it_win(tmp_path, monkeypatch):
    numbers = iter([(0.0, 0.6), (0.0, 0.8), (0.2, 0.9), (0.0, 0.3), (0.0, 0.5), (0.08, 0.6), (0.0, 1.0), (0.0, 0.9)])
    monkeypatch.setattr(tune, "find_or_run", lambda folder, overrides: fake("ga", *next(numbers)))
    actual = search(tmp_path, 5).tune("ga")
    assert [trial.concepts for trial in actual] == ["fish dotted", "fish", "fish", "fish dotted", "fish dotted"]
    assert [round(trial.score(2), 3) for trial in actual] == [0.7, -10.1, 0.65, 0.55, 0.95]
    assert next(numbers, None) is None


def test_the_variance_is_split_by_source():
    values = [[0.1, 0.3], [0.5, 0.7]]  # a row for each unlearning seed, a column for each sampling seed

    def run(number):
        return SimpleNamespace(find=lambda metric, split: SimpleNamespace(unlearned=number, low=number - 0.2, high=number + 0.3))

    runs = [[run(number) for number in row] for row in values]
    mean, by_seed, by_sampling, by_original, by_prompts = variance.spread(runs, [run(0.2), run(0.3)], "fid", "retain")
    assert (mean, by_seed) == pytest.approx((0.4, 0.4 / math.sqrt(2)))
    assert (by_sampling, by_prompts) == pytest.approx((0.2 / math.sqrt(2), 0.25 / 1.96))
    assert by_original == pytest.approx(0.1)  # of .1, .2 and .3


@pytest.fixture
def requested(monkeypatch):
    """The overrides of every run that is requested; none is done."""
    overrides_of_each = []

    def find_or_run(folder, overrides):
        overrides_of_each.append(overrides)
        return SimpleNamespace(folder=folder, log={"status": "done"})

    monkeypatch.setattr(stored_runs, "find_or_run", find_or_run)
    return overrides_of_each


def test_every_pair_of_seeds_is_sampled_and_each_unlearning_is_done_once(requested, monkeypatch, tmp_path):
    rows = variance.pair_runs("ga", "church", ["0", "1"], ["5", "6"], tmp_path)
    assert [len(row) for row in rows] == [2, 2]
    assert [words[0] for words in requested] == ["algo=ga", "algo=oracle", "algo=ga", "algo=oracle"]
    weights = f"algo.weights={tmp_path / 'ga-church-1-5/weights.safetensors'}"
    assert requested[3][1:] == [weights, "concept=church", "seed=1", "sample.seed=6", "metrics=quick"]
    monkeypatch.setattr(stored_runs, "find_or_run", lambda folder, overrides: None)
    with pytest.raises(SystemExit, match="not done"):
        variance.pair_runs("ga", "church", ["0", "1"], ["5", "6"], tmp_path)


def test_another_original_is_one_that_was_retrained_without_another_concept(requested, tmp_path):
    assert len(variance.runs_on_other_originals("ga", "church", ["parachute", "van_gogh"], ["seed=3"], tmp_path)) == 2
    assert [words[:2] for words in requested[::2]] == [["algo=oracle", "concept=parachute"], ["algo=oracle", "concept=van_gogh"]]
    assert all("save_pipeline=true" in words for words in requested[::2])
    path = f"model.path={tmp_path / 'without-van_gogh/pipeline'}"
    assert requested[3] == ["algo=ga", "concept=church", "seed=3", path, "metrics=quick"]


def test_where_an_oracle_ran_the_distance_to_it_stands_below_the_table():
    rows = [leaderboard.row_of(fake(*numbers), "") for numbers in (("oracle", 0.02, 0.7), ("ga", 0.5, 0.9))]
    assert leaderboard_page.gaps(leaderboard_page.ranked(rows[1:])) == []
    text = leaderboard_page.page(rows, "make leaderboard", "picture.png")
    assert "| algorithm | UA, distance |" in text.partition("oracle_gap")[2]
    assert "| ga | 0.480 |" in text


def test_unseen_words_leave_the_training_and_are_measured_apart():
    listed = (
        ("a heart", "far", "train"), ("a red star", "far", "train"), ("two hearts", "far", "train"),
        ("a cross", "generic", "train"), ("a blue heart", "far", "measure"), ("a star", "generic", "measure"),
        ("a ring", "far", "measure"), ("a fish", "generic", "measure"),
    )  # fmt: skip
    prompts = [Prompt(*row) for row in listed]
    kept = [(p.text, p.split, p.use) for p in unseen_words.split_by_words(prompts, ["heart", "star"])]
    assert kept == [
        ("two hearts", "far", "train"), ("a cross", "generic", "train"), ("a blue heart", "generic", "measure"),
        ("a star", "generic", "measure"), ("a ring", "far", "measure"),
    ]  # fmt: skip


def test_the_table_of_unseen_words_has_the_numbers_of_the_run():
    run = SimpleNamespace(
        find=lambda metric, split: SimpleNamespace(unlearned=0.5, low=0.25 if split != "forget" else None, high=0.75)
    )
    assert unseen_words.row("ga", run) == ["ga", "0.500", *["0.500 (0.250..0.750)"] * 3]
    kept = unseen_words.split_by_words(load_prompts(str(unseen_words.RETAIN)), ["heart", "ring", "star"])
    assert {(p.split, p.use) for p in kept} == {(s, u) for s in ("far", "generic") for u in ("train", "measure")}


@pytest.mark.thorough
def test_what_a_gpu_takes_is_written_row_by_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "full_size", lambda family: make_tiny_pipeline("sd15"))
    monkeypatch.setattr(gpu, "FEW", (*gpu.FEW, "model.size=32", "sample.steps=2"))
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(
        gpu, "CASES", (("sd14", "ga", "lora", ("model.dtype=bf16",)), ("sd14", "ga", "xattn", ("model.dtype=fp32",)))
    )
    monkeypatch.setattr(gpu, "SPEEDS", (("sd14", ("model.dtype=fp32", "model.size=32"), 1),))
    path = tmp_path / "gpu.md"
    assert gpu.main(["--device", "cpu", "--parts", "speed", "--write", str(path)]) == 0
    speed = gpu.sections(path)["speed"]
    assert re.search(r"\| sd14 \| dtype=fp32, size=32 \| 1 \| \d+\.\d+ \| \d+\.\d+ \|", speed)

    def broken(*given):
        raise KeyboardInterrupt

    left = [gpu.quiet_run, broken]
    monkeypatch.setattr(gpu, "quiet_run", lambda *given: left.pop(0)(*given))
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu", "--parts", "memory", "--write", str(path)])
    actual = gpu.sections(path)
    assert actual["speed"] == speed
    assert re.search(r"\| sd14 \| ga \| lora \| dtype=bf16 \| 0\.0 \|", actual["memory"])
    assert "| xattn |" not in actual["memory"]


def test_means_over_concepts_are_of_algorithms_that_ran_on_each():
    pairs = [("uce", "church"), ("uce", "red_church"), ("ca", "church")]
    rows = [scenes_row(algo, concept, forget=0.1, integrity=0.9) for algo, concept in pairs]
    assert [*leaderboard_page.on_every_concept(rows)] == ["uce"]
    assert [*leaderboard_page.on_every_concept(rows[:1] + rows[2:])] == ["uce", "ca"]


def test_the_page_says_whose_settings_were_not_tuned(monkeypatch):
    files = {name: text for name, text in boards.tuned_files("pictoworld").items() if name != "hirm"}
    monkeypatch.setattr(boards, "tuned_files", lambda world: files)
    remark = boards.settings_remark({"esd_x", "redirect", "hirm", "none"})
    assert remark.startswith("redirect by hand")
    assert "; hirm not at all, with the defaults of conf/algo/" in remark
    assert "esd_x" not in remark
    assert "not at all" not in boards.settings_remark({"redirect", "uce"})


SCENES = boards.PICTOSCENES


def scenes_row(algo, concept="church", **numbers):
    """A row of Pictoscenes whose metrics are `numbers`, by column."""
    measures = {SCENES.columns[column]: number for column, number in numbers.items()}
    run = fake(algo, 0.0, 0.9, concept)
    run.find = lambda *measure: SimpleNamespace(unlearned=measures[measure], low=0.25, high=None, n=24, original=1.0)
    return leaderboard.row_of(run, "", SCENES)


def test_another_world_is_run_by_its_experiment_with_the_settings_for_it():
    [words] = leaderboard.all_overrides(["uce"], ["red_church"], ["0", "1"], SCENES)
    assert words == ["algo=uce", "concept=red_church", "seed=0", "experiment=pictoscenes"]
    config = compose(*words)
    assert (config.model.domain, config.concept.name) == ("pictoscenes", "red_church")
    assert {"company", "binding"} <= config.metrics.keys()
    assert config.algo.ridge == compose("algo=uce").algo.ridge != compose("algo=uce", "model=sd14").algo.ridge


def test_each_leaderboard_has_files_and_a_target_of_its_own(monkeypatch):
    names = [board.name for board in boards.BOARDS]
    targets = (check_rows.DOCS.parent / "Makefile").read_text()
    assert len({*names}) == len(names)
    assert all(f"\n{name}:" in targets for name in names)
    assert all({*board.algorithms} <= {*boards.choices("algo")} for board in boards.BOARDS)
    assert all({*board.summary} <= board.columns.keys() and {*board.intervals} <= board.columns.keys() for board in boards.BOARDS)
    assert {"none", "word_swap", "blocklist"} <= {*SCENES.algos}
    assert "oracle" in SCENES.algos
    assert boards.PICTOWORLD.weights != SCENES.weights
    monkeypatch.setattr("sys.argv", ["leaderboard.py", "--world", "pictoscenes", "--quick"])
    with pytest.raises(SystemExit):
        leaderboard.main()


def test_the_page_of_scenes_shows_the_rest_of_an_image_and_says_whose_settings_are_tuned(tmp_path, monkeypatch):
    rest = {"forget": 0.1, "company": 0.2, "unseen": 0.4, "integrity": 0.9, "rest_kept": 0.7, "binding": 0.6}
    rows = [scenes_row("uce", **rest), scenes_row("uce", "red_church", **rest)]
    path = tmp_path / "rows.csv"
    for row in rows:
        leaderboard.store_row(path, row, SCENES)
    assert leaderboard.read_rows(path) == [], "they lack the columns of Pictoworld"
    rows = leaderboard.read_rows(path, SCENES)
    assert (rows[0]["rest_kept_n"], rows[0]["rest_kept_low"]) == (24.0, 0.25)
    assert math.isnan(rows[0]["rest_kept_high"])
    text = leaderboard_page.page(rows, f"make {SCENES.name}", "picture.png", SCENES)
    assert text.startswith("# Leaderboard of Pictoscenes\n\nMade by `make leaderboard-pictoscenes`: Pictoscenes (weights sha256")
    assert "| UA in company | rest_kept | binding | UA of unseen words |" in text
    assert "| 0.800 | 0.700" in text
    assert "Settings (conf/tuned/pictoscenes/):\n" in text
    assert "detected under probes" not in text
    assert re.search(r"Without a row: none, oracle, blocklist, word_swap, .*esd_x\.\n", text)
    (tmp_path / "tuned/pictoscenes").mkdir(parents=True)
    (tmp_path / "tuned/pictoscenes/uce.yaml").touch()
    (tmp_path / "tuned/pictoscenes/esd_x.yaml").write_text("# @package algo\n# By `make tune (...)`: trial 2 of 4.\nlr: 0.1\n")
    monkeypatch.setattr(boards, "CONF", tmp_path)
    assert boards.scenes_settings({"uce", "esd_x", "none"}) == (
        "Settings (conf/tuned/pictoscenes/):\nfor esd_x chosen on another concept, by `make tune` ([tuning-pictoscenes.csv]"
        "(tuning-pictoscenes.csv));\nfor uce Pictoworld's;\nfor the others the defaults of conf/algo/."
    )


def test_a_mistyped_setting_of_a_trial_by_hand_is_one_line(tmp_path, monkeypatch, capsys):
    words = ["--algos", "ga", "--add", "ga lrr=0.1", "--out", str(tmp_path), "--memory", str(tmp_path / "trials.csv"), "--dry"]
    monkeypatch.setattr("sys.argv", ["tune.py", *words])
    with pytest.raises(SystemExit):
        tune.main()
    assert "--add 'ga lrr=0.1': " in capsys.readouterr().err


def test_tuning_on_another_world_runs_its_model_and_reads_its_settings(runs, tmp_path):
    scenes = tune.Search(SCENES, ["parachute"], 100, 1, tmp_path, tmp_path / "trials.csv")
    [trial] = scenes.tune("esd_x")
    assert "model=pictoscenes" in runs[0]
    assert trial.made != search(tmp_path, 1).trial_digest("esd_x", trial.settings.split())
    config = compose("algo=esd_x", "model=pictoscenes").algo
    assert scenes.first_settings("esd_x") == {"lr": config.lr, "eta": config.eta}
    assert not {*SCENES.tuned_on} & {*SCENES.concepts}


def test_only_the_runs_that_have_a_problem_are_left_out(capsys):
    church, fish = ([f"algo={algo}", f"concept={concept}"] for algo, concept in (("oracle", "church"), ("oracle", "fish")))
    assert leaderboard.possible([church, fish]) == [church]
    assert "left out: algo=oracle concept=fish" in capsys.readouterr().err


def probe_report(oracle):
    return {
        "oracle": oracle,
        "rows": [
            {"probe": "sdedit", "unlearned": 0.9, "original": 0.9, "depth": None, "n": 48, "interval": {}},
            {"probe": "text_states", "unlearned": 0.5, "original": 1.0, "depth": 0.5, "n": 48, "interval": {}},
            {"probe": "pooled", "unlearned": 0.4, "original": 0.8, "depth": 0.5, "n": 192, "interval": {"low": 0.1, "high": 0.3}},
        ],
    }


def test_the_probes_give_shares_and_a_depth_where_there_is_an_oracle():
    shares = {"probed": 0.4, "probed_original": 0.8, "text_states": 0.5, "probed_n": 192}
    numbers = leaderboard.probe_numbers(probe_report("included in Pictoscenes"), SCENES)
    assert numbers == shares | {"depth": 0.5, "depth_low": 0.1, "depth_high": 0.3}
    without = leaderboard.probe_numbers(probe_report(None), SCENES)
    assert {name: value for name, value in without.items() if not math.isnan(value)} == shares
    rows = [scenes_row("uce", forget=0.0, integrity=0.9) | numbers]
    rows += [scenes_row("uce", forget=0.0, integrity=0.9) | without | {"concept": "red_church"}]
    text = leaderboard_page.page(rows, "make it", "picture.png", SCENES)
    church, red_church = text.partition("## church")[2].split("## red_church")
    assert "| detected under probes | detected under probes, original | depth | text_states |" in church
    assert "| detected under probes | detected under probes, original | text_states |" in red_church


def test_rows_of_every_leaderboard_that_has_some_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(check_rows, "DOCS", tmp_path)
    assert list(check_rows.check_leaderboard(SCENES)) == []
    spec = leaderboard.spec_of({"algo": "uce", "concept": "church", "seed": "0"}, SCENES)
    row = scenes_row("uce", forget=0.0, integrity=0.9)
    rows = [row | {"settings": leaderboard.settings_digest(spec)}, row | {"concept": "red_church"}]
    for one in rows:
        leaderboard.store_row(tmp_path / f"{SCENES.name}.csv", one, SCENES)
    verdicts = dict(check_rows.check_leaderboard(SCENES))
    assert [*verdicts.values()] == [False, True]
    assert "experiment=pictoscenes" in next(iter(verdicts))
