"""Class paths of earlier versions lead to today's classes."""

from __future__ import annotations

import importlib

import pytest

from unlearnbench.config.build import locate
from unlearnbench.config.renamed import RENAMED

VERSION_0_1_0 = [
    "algos.adv_unlearn.AdvUnlearn",
    "algos.ca.ConceptAblation",
    "algos.duo.DUO",
    "algos.erase_diff.EraseDiff",
    "algos.esd.ESD",
    "algos.eupmu.EUPMU",
    "algos.fmn.ForgetMeNot",
    "algos.ga.GradientAscent",
    "algos.grad_diff.GradientDifference",
    "algos.mace.MACE",
    "algos.noise.Noise",
    "algos.none.Nothing",
    "algos.oracle.Oracle",
    "algos.push_away.PushAway",
    "algos.random_label.RandomLabel",
    "algos.rece.RECE",
    "algos.receler.Receler",
    "algos.redirect.Redirect",
    "algos.sa.SelectiveAmnesia",
    "algos.saddle.Saddle",
    "algos.safree.SAFREE",
    "algos.salun.SalUn",
    "algos.scissorhands.Scissorhands",
    "algos.sld.SLD",
    "algos.spm.SPM",
    "algos.substitute.Substitute",
    "algos.surgery.Surgery",
    "algos.uce.UCE",
    "attacks.p4d.P4D",
    "attacks.paraphrases.Paraphrases",
    "attacks.ring_a_bell.RingABell",
    "attacks.soft_prefix.SoftPrefix",
    "attacks.unlearndiffatk.UnlearnDiffAtk",
    "data.Concept",
    "data.Retain",
    "data.TrainingSource",
    "listed.Listed",
    "metrics.binding.Binding",
    "metrics.clipscore.CLIPScore",
    "metrics.cmmd.CMMD",
    "metrics.detectors.Attribute",
    "metrics.detectors.NudeNet",
    "metrics.detectors.ZeroShot",
    "metrics.fid.FID",
    "metrics.fid.FIDOriginal",
    "metrics.fid.KID",
    "metrics.forget_accuracy.ForgetAccuracy",
    "metrics.geneval.GenEval",
    "metrics.integrity.Integrity",
    "metrics.pinpointness.Pinpointness",
    "metrics.retain_accuracy.RetainAccuracy",
    "metrics.unlearn_canvas.UnlearnCanvas",
    "models.flux.Flux",
    "models.pictoworld.Pictoworld",
    "models.sd.StableDiffusion",
    "models.sd3.StableDiffusion3",
    "models.sdxl.StableDiffusionXL",
    "models.tiny.Tiny",
    "sampling.Sampling",
    "sets.PromptSet",
    "several.Several",
]


@pytest.mark.parametrize("path", VERSION_0_1_0)
def test_every_class_that_the_configuration_of_0_1_0_names_is_found(path):
    assert isinstance(locate(f"unlearnbench.{path}", object), type)


@pytest.mark.parametrize("path", RENAMED)
def test_a_renamed_class_is_no_longer_at_its_old_path(path):
    module, _, name = path.rpartition(".")
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        getattr(importlib.import_module(module), name)
