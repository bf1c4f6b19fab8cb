"""Which algorithm runs on which family of models: computed from what the one needs and the other offers."""

from __future__ import annotations

from unlearnbench.algos.base import Unlearner
from unlearnbench.config import build, choices, compose
from unlearnbench.forms import as_markdown
from unlearnbench.models.base import OFFERS
from unlearnbench.models.pipeline import Pipeline


def support() -> str:
    """A markdown table, one row an algorithm and one column a family, and what its words mean."""
    families: dict[str, list[str]] = {}
    offers = {}
    for name in choices("model"):
        model = build(compose(f"model={name}").model, Pipeline, "model")
        families.setdefault(model.kind, []).append(name)
        offers[model.kind] = model.offers
    kinds = sorted(families, key=lambda kind: -len(offers[kind]))
    head, rows = ["algo", *(", ".join(families[kind]) for kind in kinds)], []
    for name in choices("algo"):
        algo = build(compose(f"algo={name}", "model=sd14").algo, Unlearner, "algo")  # as it is where nothing is tuned
        lacks = [", ".join(sorted(algo.needs() - offers[kind])) for kind in kinds]
        rows.append([name, *(f"no {lack}" if lack else "runs" for lack in lacks)])
    words = [f"- {need}: {meaning}." for need, meaning in OFFERS.items()]
    return as_markdown(head, rows) + "\n" + "\n".join(words) + "\n"
