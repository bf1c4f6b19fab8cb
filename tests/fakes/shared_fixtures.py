"""The fixtures: everything runs in a temporary folder, offline, on a tiny random pipeline that is made once."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
from typing import NamedTuple

import numpy as np
import pytest
import quick_hydra
import torch
from hub_server import hub  # noqa: F401
from omegaconf import OmegaConf
from PIL import Image
from quick_copy import copied, copies_of
from shared_examples import CHURCH, draws

from unlearnbench.algos.examples import Examples
from unlearnbench.cli.main import main
from unlearnbench.config.compose import compose
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.base import MetricInputs
from unlearnbench.models import tiny as tiny_module
from unlearnbench.models.tiny import make_pipeline
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline
from unlearnbench.models.weights import save_weights
from unlearnbench.storage.cache import Cache


class Outcome(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """One cache and one tiny pipeline for the whole session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_module, "make_pipeline", copies_of(make_pipeline))
        quick_hydra.install(patch)
        patch.setenv("UNLEARNBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _away(tmp_path, monkeypatch):
    """A working folder, sys.path and sys.argv of the test's own; output as wide as in a pipe, and no line for a slow start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unlearnbench"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("unlearnbench.console.SILENCE", 3600.0)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """The tiny pipeline as a folder in diffusers' layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """Gives the folder of a family's tiny checkpoint, which is written once; not to be changed."""
    folder = tmp_path_factory.mktemp("families")

    @functools.cache
    def write(family):
        make_tiny_pipeline(family).save_pretrained(folder / family, safe_serialization=True)
        return folder / family

    return write


@pytest.fixture(scope="session")
def loaded():
    """The tiny model; not to be changed."""
    return RunSpec.of(compose("experiment=smoke")).model.load(torch.device("cpu"))


@pytest.fixture
def tiny(loaded):
    """A tiny model of the test's own."""
    return copied(loaded)


@pytest.fixture(scope="session")
def original(loaded):
    """The tiny model as it was before an algorithm; not to be changed."""
    return loaded


@pytest.fixture
def model(tiny):
    """The tiny model that an algorithm changes."""
    return tiny


@pytest.fixture
def forget(original):
    """Forget examples of a church, with latents of their own."""
    prompts = ["a red church", "a blue church", "a church on the left"]
    latents, others = (torch.randn(3, *original.latent_shape(), generator=draws(seed)) for seed in (11, 13))
    return Examples(prompts, [CHURCH.substitute(prompt) for prompt in prompts], latents, anchor_latents=others)


@pytest.fixture
def retain(original):
    """Retain examples, with latents of their own."""
    prompts = ["a red star", "a tree", "a blue fish", "a yellow car"]
    return Examples(prompts, prompts, torch.randn(4, *original.latent_shape(), generator=draws(12)))


@pytest.fixture(scope="session")
def examples(loaded):
    """A few forget and retain examples, with latents of the model's shape."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for subjects in (("church", "chapel"), ("star", "tree", "fish")):
        prompts = [f"a red {subject} on the left" for subject in subjects]
        anchors = [prompt.replace("church", "house").replace("chapel", "house") for prompt in prompts]
        latents, others = (torch.randn(len(prompts), *loaded.latent_shape(), generator=generator) for _ in range(2))
        sides.append(Examples(prompts, anchors, latents, anchor_latents=others))
    return sides


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, shared_cache):
    """A finished smoke run, shared; not to be changed."""
    words = ["experiment=smoke"]
    return execute(RunSpec.of(compose(*words)), tmp_path_factory.mktemp("smoke") / "run", words)


@pytest.fixture
def run(tmp_path):
    """Do a run in this process with a few images and one metric, unless the words say otherwise; returns the Run."""

    def do(*words, folder="run"):
        small = ["experiment=smoke", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]", *words]
        return execute(RunSpec.of(compose(*small)), tmp_path / folder, small)

    return do


@pytest.fixture(scope="session")
def algo_spec(loaded, tmp_path_factory):
    """Makes the spec of a smoke run with an algorithm, which is composed once.

    Counts above 8 are cut to `few`; an algorithm that takes weights from a file is given some. Further settings are those of the
    algorithm, overrides apply to the rest of the run.
    """
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    other = copied(loaded)
    with torch.no_grad():
        for _, parameter in other.named_parameters():
            parameter.mul_(1.1)
    save_weights(other, path, [name for name, _ in other.named_parameters() if not name.startswith("vae.")])

    def make(name, *overrides, few=4, **settings):
        algo = compose("experiment=smoke", f"algo={name}").algo
        counts = {key: few for key, value in algo.items() if type(value) is int and value > 8}
        weights = {"weights": str(path)} if "weights" in algo else {}
        config = compose("experiment=smoke", *overrides)
        config.algo = OmegaConf.merge(algo, counts | weights | settings)
        return RunSpec.of(config)

    return make


@pytest.fixture
def command(capsys):
    """The command line in this process."""

    def do(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return do


@pytest.fixture
def write_images(tmp_path):
    """Make an image folder from uint8 pixels (n, h, w, 3)."""

    def write(name, pixels, prompts=None, split="far", labels=None, seeds=None):
        folder = tmp_path / name
        folder.mkdir()
        shots = []
        for i, image in enumerate(np.asarray(pixels)):
            data = io.BytesIO()
            Image.fromarray(image).save(data, "png")
            (folder / f"{i:05d}.png").write_bytes(data.getvalue())
            shots.append(
                ImageRecord(
                    file=f"{i:05d}.png",
                    prompt=prompts[i] if prompts else f"prompt {i}",
                    split=split if isinstance(split, str) else split[i],
                    label=labels[i] if labels else "",
                    seed=seeds[i] if seeds else i,
                    sha256=hashlib.sha256(data.getvalue()).hexdigest(),
                )
            )
        images = Images(folder, [])
        images.add(shots)
        return images

    return write


@pytest.fixture
def metric_inputs(tmp_path):
    """What a metric looks at: two image folders under the settings that the words give."""

    def collect(before, after, *words):
        spec = RunSpec.of(compose("experiment=smoke", *words))
        return MetricInputs(before, after, spec.evaluation_setting, Cache(tmp_path / "cache"), torch.device("cpu"), {})

    return collect


@pytest.fixture
def files():
    """The bytes of every file below a folder, by path."""
    return lambda folder: {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
