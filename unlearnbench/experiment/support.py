"""Which algorithm runs on which model family, from the capabilities that it requires and the family has."""

from __future__ import annotations

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.paths import choices
from unlearnbench.models.base import CAPABILITIES
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.reports.export import markdown_table


def support_rows() -> tuple[list[str], list[list[str]]]:
    """A head, and a row for each algorithm with a column for each family."""
    families: dict[str, list[str]] = {}
    capabilities = {}
    for name in choices("model"):
        model = build(compose(f"model={name}").model, DiffusersModel, "model")
        families.setdefault(model.pipeline_class, []).append(name)
        capabilities[model.pipeline_class] = model.capabilities
    kinds = sorted(families, key=lambda kind: -len(capabilities[kind]))
    head, rows = ["algo", *(", ".join(families[kind]) for kind in kinds)], []
    for name in choices("algo"):
        algo = build(compose(f"algo={name}", "model=sd14").algo, Unlearner, "algo")  # sd14: without tuned settings
        missing = [", ".join(sorted(algo.requires() - capabilities[kind])) for kind in kinds]
        rows.append([name, *(f"no {names}" if names else "runs" for names in missing)])
    return head, rows


def capability_lines() -> list[str]:
    """The meaning of each capability."""
    return [f"- {capability}: {meaning}." for capability, meaning in CAPABILITIES.items()]


def support_markdown() -> str:
    """The table and the meanings as markdown."""
    return markdown_table(*support_rows()) + "\n" + "\n".join(capability_lines()) + "\n"
