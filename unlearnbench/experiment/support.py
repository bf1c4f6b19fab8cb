"""Which algorithm runs on which family of models: computed from what the one needs and the other offers."""

from __future__ import annotations

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.paths import choices
from unlearnbench.models.base import CAPABILITIES
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.reports.export import markdown_table


def support_table() -> str:
    """A markdown table, one row an algorithm and one column a family, and what its words mean."""
    families: dict[str, list[str]] = {}
    offers = {}
    for name in choices("model"):
        model = build(compose(f"model={name}").model, DiffusersModel, "model")
        families.setdefault(model.pipeline_class, []).append(name)
        offers[model.pipeline_class] = model.capabilities
    kinds = sorted(families, key=lambda kind: -len(offers[kind]))
    head, rows = ["algo", *(", ".join(families[kind]) for kind in kinds)], []
    for name in choices("algo"):
        algo = build(compose(f"algo={name}", "model=sd14").algo, Unlearner, "algo")  # as it is where nothing is tuned
        lacks = [", ".join(sorted(algo.requires() - offers[kind])) for kind in kinds]
        rows.append([name, *(f"no {lack}" if lack else "runs" for lack in lacks)])
    words = [f"- {need}: {meaning}." for need, meaning in CAPABILITIES.items()]
    return markdown_table(head, rows) + "\n" + "\n".join(words) + "\n"
