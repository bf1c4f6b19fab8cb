"""The settings of an algorithm that a search may vary, and Optuna's proposals for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from unlearnbench.config.paths import CONF

if TYPE_CHECKING:
    import optuna


DEFAULT = {"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "steps": [60, 120, 240]}


def search_space(algo: str) -> dict[str, Any]:
    """Names of settings, each with {low, high, log} or a list of choices: from conf/search/, else learning rate and steps."""
    path = CONF / "search" / f"{algo}.yaml"
    return OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else DEFAULT  # type: ignore[return-value]


def propose_value(trial: optuna.Trial, name: str, domain: Any) -> Any:
    """Optuna's value of one setting.

    Args:
        trial: Optuna's trial.
        name: of the setting.
        domain: a list of choices, or {low, high, log}. A float is rounded to three digits; two whole bounds give an int.
    """
    if isinstance(domain, list):
        return trial.suggest_categorical(name, domain)
    low, high, log = domain["low"], domain["high"], domain.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return float(f"{trial.suggest_float(name, low, high, log=log):.3g}")
