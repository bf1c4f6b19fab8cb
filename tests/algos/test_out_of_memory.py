"""What algorithms, attacks and metrics do before and after training, on a GPU that holds few images or prompts at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shared_examples import begun, draws

from unlearnbench.algos.closed_form import text_hidden_states
from unlearnbench.algos.concept_prune import FEED_FORWARD, ConceptPrune
from unlearnbench.algos.duo import DUO
from unlearnbench.algos.eap import EAP
from unlearnbench.algos.mace import MACE
from unlearnbench.algos.negative_guidance import original_partial_samples
from unlearnbench.attacks.classifier_guidance import sample_in_parts
from unlearnbench.attacks.ring_a_bell import concept_vector
from unlearnbench.metrics.image_pass import ImagePass
from unlearnbench.metrics.readers import Reader
from unlearnbench.models.adapters.preconditioned import install_deltas, precondition
from unlearnbench.models.attention_maps import text_only_weights
from unlearnbench.models.parameters import select_parameters
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.sampling import encode_images
from unlearnbench.storage.cache import Cache

PROMPTS = [f"a {colour} church" for colour in ("red", "blue", "green", "yellow", "black")]
IMAGES = torch.randint(256, (5, 64, 64, 3), generator=draws(), dtype=torch.uint8)
HOUSES = [prompt.replace("church", "house") for prompt in PROMPTS]


@pytest.fixture
def holds(monkeypatch):
    """Let a method of the model run out of memory, after its work, with more than so many rows of its first argument."""

    def small(method, largest):
        work, sizes = getattr(StableDiffusion, method), []

        def limited(self, first, *others, **options):
            result = work(self, first, *others, **options)
            sizes.append(len(first))
            if len(first) > largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return result

        monkeypatch.setattr(StableDiffusion, method, limited)
        return sizes

    return small


def input_norms(model, forget, retain):
    algo, names = ConceptPrune(first=2, sample_steps=3), list(select_parameters(model, FEED_FORWARD))
    return [norm for steps in algo.input_norms(model, names, PROMPTS, [1, 2, 3, 4, 5]).values() for norm in steps]


def preconditioners(model, forget, retain):
    install_deltas(model, text_only_weights(model, "text_encoder"))
    precondition(model, PROMPTS, 0.1)
    return [buffer for name, buffer in model.text_encoder.named_buffers() if name.endswith(".preconditioner")]


def words(model, forget, retain):
    return begun(EAP(words=4, nearest=6), model, forget, retain).state.embeddings


@pytest.mark.parametrize(
    ("method", "largest", "result"),
    [
        ("predict", 6, lambda model, *_: [original_partial_samples(model, PROMPTS * 3, 2, 3.0, draws()).latents]),
        ("predict", 6, input_norms),
        ("predict", 1, lambda model, forget, _: [DUO(rank=2).edit_images(model, forget, draws())]),
        ("predict", 4, lambda model, forget, _: [MACE(name="mace", region=0.5).regions(model, forget, draws())]),
        ("predict", 4, lambda model, *_: [sample_in_parts(model, PROMPTS, 7)]),
        ("encode_prompts", 2, lambda model, *_: [text_hidden_states(model, PROMPTS)]),
        ("encode_prompts", 2, preconditioners),
        ("encode_prompts", 2, words),
        ("encode_tokens", 2, lambda model, *_: [concept_vector(model, list(zip(PROMPTS, HOUSES, strict=True)))]),
        ("encode_images", 2, lambda model, *_: [encode_images(model, IMAGES, PROMPTS)]),
    ],
    ids=["esd", "concept_prune", "duo", "mace", "probe", "retain", "preconditioner", "eap", "ring_a_bell", "images"],
)
def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(method, largest, result, model, forget, retain, holds):
    with torch.no_grad():
        expected = [value.clone() for value in result(model, forget, retain)]
        sizes = holds(method, largest)
        actual = result(model, forget, retain)
    assert max(sizes) > largest
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_part_of_the_images_that_is_not_finite_is_named(model, holds):
    images = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    holds("encode_images", 1)
    with torch.no_grad():
        model.vae.encoder.conv_in.weight.mul_(torch.nan)
    with pytest.raises(Exception, match="the image of 'a red church' cannot be encoded"):
        encode_images(model, images, PROMPTS[:4])


class Brightness(Reader):
    """The sum of an image's pixels, of at most two images at a time."""

    def __init__(self):
        self.sizes = []

    def key(self):
        return ["brightness"]

    def read(self, images, device):
        self.sizes.append(len(images[0]))
        if len(images[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images[0].flatten(1).sum(1)


def test_a_network_of_a_metric_reads_fewer_images_at_a_time(write_images, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images, reader = write_images("images", torch.from_numpy(pixels)), Brightness()
    rows = ImagePass(Cache(tmp_path / "cache"), torch.device("cpu")).rows(reader, images)
    assert rows.tolist() == pixels.reshape(5, -1).sum(1).tolist()
    assert reader.sizes == [5, 2, 2, 1]
