"""Depth: how much of what the original still shows under probes is gone from the unlearned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearnbench.results.intervals import NO_INTERVAL, Interval, bootstrap_interval, has_width, share_interval

TEXT_PROBE = "text_states"
POOLED = "pooled"
AUTOENCODER = ("sdedit", "0")  # the probe that leaves the autoencoder alone: a control, no part of the depth


class ProbeRow(NamedTuple):
    """The detections of one probe, each a share of n images.

    Attributes:
        probe: the name of the attack.
        kind: the variant of the probe.
        n: images of each model.
        original: the original under the probe.
        unlearned: the unlearned model under the probe.
        oracle: the model retrained without the concept under the probe; None if there is none.
        depth: (original - unlearned) / (original - oracle), with 0 for an oracle that is not there; None where nothing can go.
        interval: its 95 % interval, by bootstrap over prompts; none where every draw gives the same.
        share_interval: the 95 % interval of `unlearned`.
    """

    probe: str
    kind: str
    n: int
    original: float
    unlearned: float
    oracle: float | None
    depth: float | None
    interval: Interval
    share_interval: Interval

    @property
    def title(self) -> str:
        """The probe and its variant in words."""
        if self.probe == POOLED:
            return self.kind
        return f"{self.probe} {'0, the autoencoder alone' if is_autoencoder(self.probe, self.kind) else self.kind}".strip()


Row = Mapping[str, Any]


class Probed(NamedTuple):
    """The rows of the images of each probe, by its name, of the unlearned model and of the oracle (see `depth_rows`)."""

    unlearned: Mapping[str, Sequence[Row]]
    oracle: Mapping[str, Sequence[Row]] | None


def depth_rows(unlearned: Mapping[str, Sequence[Row]], oracle: Mapping[str, Sequence[Row]] | None) -> list[ProbeRow]:
    """A row for each kind of each probe, and a last one that pools the probes of images.

    The pooled depth is the sum of what the unlearned model lost over the sum of what the oracle does not show: a mean of
    ratios would be noise where that is little. The text probe stands apart, since it alone asks the denoiser by words.

    Args:
        unlearned: by probe, one row an image: kind, prompt, seed, and original and found, what the detector says of the
            original and of the unlearned model.
        oracle: the same of a run of the oracle on the same prompts and seeds.

    Raises:
        ValueError: the oracle's images are of other prompts or seeds.
    """
    rows, pooled = [], []
    for probe, images in unlearned.items():
        for kind in dict.fromkeys(image["kind"] for image in images):
            here = [image for image in images if image["kind"] == kind]
            there = None if oracle is None else [image for image in oracle.get(probe, ()) if image["kind"] == kind]
            if there is not None and [_key(image) for image in there] != [_key(image) for image in here]:
                raise ValueError(f"{probe}: the oracle was probed with other prompts, seeds or kinds")
            triples = _triples(here, there)
            rows.append(_row(probe, kind, triples, oracle is not None))
            if probe != TEXT_PROBE and not is_autoencoder(probe, kind):
                pooled += triples
    return [*rows, _row(POOLED, "image probes", pooled, oracle is not None)] if pooled else rows


def is_autoencoder(probe: str, kind: str) -> bool:
    """Whether the probe leaves the autoencoder alone; the kind may begin with the name of a concept."""
    return (probe, kind.rpartition(", ")[2]) == AUTOENCODER


def _key(image: Row) -> tuple[str, int]:
    return image["prompt"], image["seed"]


def _triples(here: Sequence[Row], there: Sequence[Row] | None) -> list[tuple[str, float, float, float]]:
    """Prompt, and the detections in the images of the original, the unlearned model and the oracle."""
    others = [float(image["found"]) for image in there] if there is not None else [0.0] * len(here)
    return [(x["prompt"], float(x["original"]), float(x["found"]), other) for x, other in zip(here, others, strict=True)]


def _row(probe: str, kind: str, triples: Sequence[tuple[str, float, float, float]], has_oracle: bool) -> ProbeRow:
    prompts = [prompt for prompt, *_ in triples]
    original, unlearned, oracle = np.array([numbers for _, *numbers in triples]).T

    def depth(before: Any, after: Any, without: Any) -> Any:
        return (before - after) / np.where(before - without > 0, before - without, np.nan)

    value = float(depth(original.mean(), unlearned.mean(), oracle.mean()))
    if np.isnan(value) or is_autoencoder(probe, kind):
        number, interval = None, NO_INTERVAL
    else:
        low, high = bootstrap_interval(
            prompts, original, unlearned, oracle, of=lambda *means: np.nan_to_num(depth(*means), nan=value)
        )
        interval = Interval(low, high, f"bootstrap over {len(set(prompts))} prompts") if has_width(low, high) else NO_INTERVAL
        number = value
    shares = float(original.mean()), float(unlearned.mean()), float(oracle.mean()) if has_oracle else None
    return ProbeRow(probe, kind, len(triples), *shares, number, interval, share_interval(prompts, unlearned))
