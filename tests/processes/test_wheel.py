"""The wheel holds all that the package needs, and runs where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unlearnbench.config.paths import CONF

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_config_and_weight_and_no_test(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"unlearnbench/conf/{path.relative_to(CONF).as_posix()}" for path in CONF.rglob("*.*") if path.is_file()}
    package = ROOT / "unlearnbench"
    kinds = ("py", "safetensors", "json", "j2")
    expected |= {path.relative_to(ROOT).as_posix() for kind in kinds for path in package.rglob(f"*.{kind}")}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "hydra_plugins").glob("*.py")}
    assert expected - held == set()
    assert not [name for name in held if name.startswith(("tests/", "conf/", "scripts/"))]


@pytest.mark.thorough
def test_the_wheel_installed_elsewhere_lists_and_checks(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site", str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path)
    elsewhere = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def call(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=elsewhere, check=True, capture_output=True, text=True
        ).stdout

    where = Path(call("-c", "import unlearnbench.config.compose as c; print(c.__file__); print(c.CONF)").splitlines()[1])
    assert where == tmp_path / "site/unlearnbench/conf"
    here = subprocess.run([sys.executable, "-m", "unlearnbench", "list"], check=True, capture_output=True, text=True)
    assert call("-m", "unlearnbench", "list") == here.stdout
    assert call("-m", "unlearnbench", "check", "experiment=smoke").startswith("ready: substitute on church, model tiny")
    assert (tmp_path / "site/bin/unlearnbench").is_file()
