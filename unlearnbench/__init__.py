"""Unlearn concepts from text-to-image diffusion models, and measure what it cost.

The public names, loaded when first used so that importing the package imports no torch:
`run`, `compose`, `load_run`, `comparison`; `Unlearner`, `Metric`, `TextToImage`; `Concept`, `Images`, `Value`, `UserError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearnbench.algos.base import Unlearner as Unlearner
    from unlearnbench.compare import comparison as comparison
    from unlearnbench.config import UserError as UserError
    from unlearnbench.config import compose as compose
    from unlearnbench.data import Concept as Concept
    from unlearnbench.data import Images as Images
    from unlearnbench.execution import run as run
    from unlearnbench.metrics.base import Metric as Metric
    from unlearnbench.models.base import TextToImage as TextToImage
    from unlearnbench.results import Value as Value
    from unlearnbench.results import load_run as load_run

__version__ = "0.1.0"

_HOMES = {
    "run": "execution", "compose": "config", "UserError": "config", "load_run": "results", "comparison": "compare",
    "Value": "results", "Concept": "data", "Images": "data", "Unlearner": "algos.base", "Metric": "metrics.base",
    "TextToImage": "models.base",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"unlearnbench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
