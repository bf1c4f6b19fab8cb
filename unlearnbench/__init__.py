"""Unlearn concepts from text-to-image diffusion models, and measure what it cost.

The public names, loaded when first used so that importing the package imports no torch:
`run`, `compose`, `load_run`, `comparison`; `Unlearner`, `denoising_loss`, `Metric`, `TextToImage`; `Concept`, `Images`,
`Value`, `UserError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unlearnbench.__about__ import __version__ as __version__

if TYPE_CHECKING:
    from unlearnbench.algos.base import Unlearner as Unlearner
    from unlearnbench.algos.losses import denoising_loss as denoising_loss
    from unlearnbench.config.compose import compose as compose
    from unlearnbench.config.errors import UserError as UserError
    from unlearnbench.data.concept import Concept as Concept
    from unlearnbench.data.images import Images as Images
    from unlearnbench.experiment.run import run as run
    from unlearnbench.metrics.base import Metric as Metric
    from unlearnbench.models.base import TextToImage as TextToImage
    from unlearnbench.reports.comparison import comparison as comparison
    from unlearnbench.results.run import Value as Value
    from unlearnbench.results.run import load_run as load_run

_HOMES = {
    "run": "experiment.run", "compose": "config.compose", "UserError": "config.errors", "load_run": "results.run",
    "comparison": "reports.comparison", "Value": "results.run", "Concept": "data.concept", "Images": "data.images",
    "Unlearner": "algos.base", "denoising_loss": "algos.losses", "Metric": "metrics.base", "TextToImage": "models.base",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"unlearnbench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
