"""Concepts one after another, bound to the start: L2, selective fine-tuning, merging by TIES."""

from __future__ import annotations

import pytest
import torch
from shared_examples import begun
from torch import nn

from unlearnbench.algos.base import SELECTION_BATCHES
from unlearnbench.algos.continual import Constraint, ties
from unlearnbench.algos.ga import GradientAscent
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.experiment import forget
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run import resume
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.storage.tensors import read_tensors

IN_TURN = ("concept=[church,parachute]", "concept.continual=true")


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in (("a", (3, 2)), ("b", (4,)))}


def with_gradients(parameters):
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}


def test_l2_adds_the_gradient_of_the_mean_squared_distance_to_the_start(parameters):
    start = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    before = with_gradients(parameters)
    Constraint(start, l2=50.0).shape_gradients(parameters)
    penalty = 50.0 * sum(((p - start[name]) ** 2).sum() for name, p in parameters.items()) / 10
    expected = torch.autograd.grad(penalty, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, before[name] + gradient)


def test_selective_fine_tuning_moves_the_weights_with_the_largest_product_of_value_and_gradient(parameters):
    gradients = with_gradients(parameters)
    scores = torch.cat([(p * gradients[name]).abs().detach().flatten() for name, p in parameters.items()])
    constraint = Constraint({}, selective=0.3)
    constraint.select(parameters)
    masks = torch.cat([constraint.masks[name].flatten() for name in parameters])
    assert masks.nonzero().flatten().tolist() == sorted(scores.topk(3).indices.tolist())
    assert all(parameter.grad is None for parameter in parameters.values())
    gradients = with_gradients(parameters)
    constraint.shape_gradients(parameters)
    for name, parameter in parameters.items():
        assert torch.equal(parameter.grad, gradients[name] * constraint.masks[name])


def test_the_weights_are_selected_at_the_start_of_the_concept_by_the_gradients_of_all_batches(tiny, examples):
    class Halving(GradientAscent):
        """Halves the weights when it begins; each batch has a gradient of 1, assigned and not added."""

        def begin(self, training):
            for parameter in training.parameters.values():
                parameter.data.mul_(0.5)

        def backward(self, training, step):
            for parameter in training.parameters.values():
                parameter.grad = torch.ones_like(parameter)

    class Recorder(Constraint):
        def select(self, parameters):
            sums.extend(parameter.grad.unique().item() for parameter in parameters.values())

    sums = []
    algo = Halving(train="xattn_kv", batch=1)
    training = begun(algo, tiny, *examples)
    training.constraint = Recorder({}, selective=0.5)
    algo._select_weights(training)
    assert set(sums) == {SELECTION_BATCHES}
    for name, parameter in training.parameters.items():
        assert torch.equal(parameter, training.original.parameters[name] * 0.5)


def test_ties_trims_elects_signs_and_takes_the_mean_of_those_that_agree():
    first = {"w": torch.tensor([5.0, -4.0, 0.1, 2.0]), "v": torch.tensor([0.2])}
    second = {"w": torch.tensor([3.0, 1.0, 0.3, -2.0])}
    merged = ties([first, second], 1.0)
    torch.testing.assert_close(merged["w"], torch.tensor([4.0, -4.0, 0.2, 0.0]))  # 2 - 2 elects no sign
    torch.testing.assert_close(merged["v"], torch.tensor([0.2]))
    trimmed = ties([first, second], 0.5)  # of the first 2 of 5 (round half to even), of the second 2 of 4
    torch.testing.assert_close(trimmed["w"], torch.tensor([4.0, -4.0, 0.0, -2.0]))
    assert trimmed["v"] == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["concept.l2_to_start=1"], "set continual=true"),
        (["concept.continual=true", "concept.selective=0"], "concept.selective: 0"),
        (["concept.continual=true", "concept.merge=mean"], "concept.merge: 'mean'; known: , ties"),
        (["concept.continual=true", "concept.selective=0.1", "algo=uce"], "algo=uce trains in no steps; leave it out, or set"),
        (["concept.continual=true", "concept.l2_to_start=1", "algo=esd_x", "algo.train=lora"], "algo.train=lora trains adapters"),
        (
            ["concept.continual=true", "concept.l2_to_start=1", "algo=redirect"],
            "algo=redirect trains adapters; set algo.whiten=0",
        ),
        (["concept.continual=true", "concept.selective=0.1", "algo=project"], "algo=project trains adapters; take another"),
        (["concept.continual=true", "concept.merge=ties", "algo=spm"], "algo=spm trains parameters of its own"),
    ],
)
def test_what_cannot_be_bound_to_the_start_is_refused(words, problem):
    try:
        problems = find_problems(RunSpec.of(compose("experiment=smoke", IN_TURN[0], *words)))
    except UserError as error:
        problems = [str(error)]
    assert any(problem in line for line in problems), problems


def changes(done, loaded):
    original = dict(loaded.named_parameters())
    return {name: value - original[name] for name, value in read_tensors(done.folder / "weights.safetensors")[0].items()}


def test_a_run_bound_to_its_start_changes_few_weights_and_less(run, loaded):
    words = (*IN_TURN, "algo=ga", "algo.train=xattn_kv", "algo.steps=2", "algo.batch=2", "algo.lr=1e-3", "algo.clip=0")
    free = changes(run(*words, folder="free"), loaded)
    few = changes(run(*words, "concept.selective=0.05", "concept.l2_to_start=1e9", folder="few"), loaded)
    count = sum(change.numel() for change in free.values())
    assert sum(int((change != 0).sum()) for change in free.values()) > 0.9 * count
    assert 0 < sum(int((change != 0).sum()) for change in few.values()) <= 0.11 * count
    distance = {name: sum(float(c.square().sum()) for c in of.values()) for name, of in (("free", free), ("few", few))}
    assert distance["few"] < 0.11 * distance["free"]


def test_merging_unlearns_each_concept_alone_and_a_resumed_run_merges_the_same(run, loaded, monkeypatch):
    words = (*IN_TURN, "algo=uce", "concept.merge=ties", "concept.density=0.5", "concept.scale=2")
    merged = run(*words, folder="merged")
    original = dict(loaded.named_parameters())
    alone = [read_tensors(merged.folder / f"alone/{i}.safetensors")[0] for i in (1, 2)]
    for i, concept in enumerate(("church", "parachute")):
        single = run("algo=uce", f"concept={concept}", f"seed={i}", folder=concept)
        weights = read_tensors(single.folder / "weights.safetensors")[0]
        assert all(torch.equal(weights[name], alone[i][name]) for name in weights)
    vectors = [{name: value - original[name] for name, value in each.items()} for each in alone]
    for name, value in read_tensors(merged.folder / "weights.safetensors")[0].items():
        torch.testing.assert_close(value, original[name] + 2 * ties(vectors, 0.5)[name], rtol=0, atol=1e-6)
    sample = forget.sample
    with monkeypatch.context() as patch:
        patch.setattr(forget, "sample", lambda name, *rest: 1 / 0 if name == "sample after church" else sample(name, *rest))
        with pytest.raises(RunError):
            run(*words, folder="again")
    again = resume("again")
    assert again.log["unlearned"][-1]["weights"] == merged.log["unlearned"][-1]["weights"]
