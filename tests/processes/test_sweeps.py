"""Sweeps whose runs are processes: joblib's, submitit's, and those of a Slurm that is played."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat

import pytest
from omegaconf import OmegaConf

from unlearnbench.config.paths import CONF
from unlearnbench.storage.cache_entries import list_entries

SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


def logs(folder):
    """The run.json of each run of a sweep, by its folder's name."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


@pytest.mark.thorough
def test_processes_share_one_cache_and_each_entry_is_made_once(typed, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `sweep` is not installed")
    outcome = typed(
        "run", "-m", *SMALL, "algo=none,uce", "hydra/launcher=processes", "hydra.sweep.dir=sweep", "cache=c", COLD_CHILDREN="1"
    )  # the workers are interpreters of their own
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert re.search(r"(?m)^0-none-church: done in [\d:]+, integrity_norm 1\.000$", outcome.stdout)
    assert "2 of 2 runs done" in outcome.stdout
    done = logs(tmp_path / "sweep")
    assert {name: log["status"] for name, log in done.items()} == {"0-none-church": "done", "1-uce-church": "done"}
    images = [entry for entry in list_entries(tmp_path / "c") if entry.kind == "images"]
    assert sum(log["cache"]["misses"] for log in done.values()) == len(images)
    assert sum(log["cache"]["hits"] for log in done.values()) > 0
    assert done["1-uce-church"]["command"] == shlex.join(["unlearnbench", "run", *SMALL, "algo=uce", "cache=c"])


KILLER = """
import os, signal
from unlearnbench.algos.none import NoTraining

class Killer(NoTraining):
    def unlearn(self, *given, **named):
        os.kill(os.getpid(), signal.SIGKILL)
"""
FORKED = """
import sys, warnings
from joblib.externals.loky.backend import context
warnings.filterwarnings("ignore", "`fork` start method")
context.set_start_method("fork", force=True)
from unlearnbench.cli.main import main
sys.exit(main())
"""  # joblib's workers are forked, and do not import everything anew


@pytest.fixture
def killer(tmp_path):
    """The words that let algo=killer end its own process, and algo=diverging fail."""
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "mine/algo").mkdir(parents=True)
    settings = OmegaConf.merge(OmegaConf.load(CONF / "algo/none.yaml"), {"_target_": "killer.Killer", "name": "killer"})
    OmegaConf.save(settings, tmp_path / "mine/algo/killer.yaml")
    settings = OmegaConf.merge(OmegaConf.load(CONF / "algo/ga.yaml"), {"name": "diverging", "lr": 1e30})
    OmegaConf.save(settings, tmp_path / "mine/algo/diverging.yaml")
    return [*SMALL, "hydra.sweep.dir=sweep", "--config-dir=mine"]


@pytest.mark.thorough
def test_a_process_that_is_killed_costs_its_own_run_alone(typed, killer, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `sweep` is not installed")
    outcome = typed(
        "run", "-m", *killer, "algo=killer,none,noise", "hydra/launcher=processes", command=("-c", FORKED), COLD_CHILDREN="1"
    )
    assert outcome.returncode == 1, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert lines[-1] == "failed: sweep/0-killer-church: its process was killed (out of memory?)"
    assert "Traceback" not in outcome.stderr  # joblib may warn, depending on what its workers do when one is killed
    gave_up = [line for line in lines if line.startswith("the launcher gave up: ")]
    assert len(gave_up) == 2, outcome.stderr  # beside another, then alone
    assert all("TerminatedWorkerError" in line for line in gave_up)
    assert "2 of 3 runs done" in outcome.stdout
    states = {name: log["status"] for name, log in logs(tmp_path / "sweep").items()}
    assert states == {"0-killer-church": "error", "1-none-church": "done", "2-noise-church": "done"}


@pytest.mark.thorough
def test_a_job_of_submitits_that_is_killed_and_one_that_fails_leave_the_other_done(typed, killer, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `sweep` is not installed")
    words = ["algo=killer,diverging,none", "hydra/launcher=submitit_local"]
    outcome = typed("run", "-m", *killer, *words)
    assert outcome.returncode == 1
    killed, *failed = outcome.stderr.splitlines()
    assert re.fullmatch(r"job [\d_]+ ended without an answer \(state \w+\)", killed)
    assert failed[0] == "failed: sweep/0-killer-church: its process was killed"
    assert re.fullmatch(r"failed: sweep/1-diverging-church: RunError: the loss became \w+ at step \d of 2; .*", failed[1])
    assert len(failed) == 2
    assert "1 of 3 runs done" in outcome.stdout
    states = {name: log["status"] for name, log in logs(tmp_path / "sweep").items()}
    assert states == {"0-killer-church": "started", "1-diverging-church": "error", "2-none-church": "done"}
    assert "run failed: the loss became" in (tmp_path / "sweep/1-diverging-church/log.txt").read_text()


SLURM = {
    "sbatch": """#!{python}
import os, re, shutil, subprocess, sys
shutil.copy(sys.argv[1], "asked.sh")
first, last = re.search(r"--array=(\\d+)-(\\d+)", open(sys.argv[1]).read()).groups()
for task in range(int(first), int(last) + 1):
    names = dict(SLURM_JOB_ID=f"10{{task}}", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(task), SLURM_NTASKS="1",
                 SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0")
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    subprocess.Popen(["bash", sys.argv[1]], env=os.environ | names, **quiet)
print("Submitted batch job 7")
""",
    "srun": """#!/bin/bash
while [[ $1 != *python* ]]; do shift; done
exec "$@"
""",
    "sacct": """#!/bin/sh
printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
""",
}


def test_slurm_is_asked_for_an_array_by_one_word(typed, python, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `sweep` is not installed")
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        path = tmp_path / "bin" / name
        path.write_text(text.format(python=python))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    words = [*SMALL, "algo=none", "algo.steps=-1,0", "hydra/launcher=slurm", "hydra.sweep.dir=sweep"]
    words += ["hydra.launcher.mem_gb=2", "hydra.launcher.array_parallelism=1"]
    outcome = typed("run", "-m", *words, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert outcome.returncode == 1
    assert outcome.stderr == "failed: sweep/0-none-church: algo.steps: -1 is less than 0\n"
    assert "1 of 2 runs done" in outcome.stdout
    asked = (tmp_path / "asked.sh").read_text()
    for line in (
        "--array=0-1%1",
        "--cpus-per-task=4",
        "--gpus-per-node=1",
        "--mem=2GB",
        "--time=240",
        "--job-name=unlearnbench",
    ):
        assert f"#SBATCH {line}\n" in asked
