"""The names under which tables and reports print metrics; files and Python keep their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unlearnbench.results.run import Value

DETECTION_RATE, UA = "detection rate", "UA"
NAMES = {
    "forget_accuracy": DETECTION_RATE, "ua": "UA (UnlearnCanvas)", "ira": "IRA", "cra": "CRA", "fid": "FID", "kid": "KID",
    "fid_original": "FID to the original", "cmmd": "CMMD", "clipscore": "CLIPScore",
}  # fmt: skip
INCEPTION_METRICS = ("fid", "fid_original", "kid")
CLIP_METRICS = ("clipscore", "cmmd")
HEADLINE = (
    ("forget_accuracy", "forget"), ("integrity_norm", "retain"), ("integrity", "retain"), ("fid", "retain"),
    ("clipscore", "retain"),
)  # fmt: skip


def printed_name(value: Value) -> str:
    """The printed name of a value's metric; it names the network where that is not the one of published numbers.

    Examples:
        >>> fid = Value(table="FID", metric="fid", split="retain", unlearned=9.0, better="lower", n=9, backbone="classifier")
        >>> printed_name(fid), printed_name(replace(fid, backbone="inception")), printed_name(replace(fid, metric="mine"))
        ('FID (classifier features)', 'FID', 'mine')
    """
    name = NAMES.get(value.metric, value.metric)
    if value.metric in INCEPTION_METRICS and value.backbone and not value.backbone.startswith("inception"):
        features = _world(value.backbone) or value.backbone
        return f"{name} ({'CLIP' if features.startswith('clip') else features} features)"
    if value.metric in CLIP_METRICS and (world := _world(value.backbone)):
        return f"{name} ({world})"
    return name


def _world(backbone: str) -> str:
    """The embedded world whose CLIP a backbone is: "Pictoworld" for clip-pictoworld; "" for all others."""
    kind, _, world = backbone.partition("-")
    return world.capitalize() if kind == "clip" else ""


def with_split(name: str, split: str) -> str:
    """A printed name with the split.

    Examples:
        >>> with_split("UA", "forget"), with_split("FID (classifier features)", "retain")
        ('UA (forget)', 'FID (classifier features, retain)')
    """
    return f"{name[:-1]}, {split})" if name.endswith(")") else f"{name} ({split})"


def distinct_names(values: Sequence[Value]) -> list[str]:
    """The printed names of values' metrics; where several networks measured one on one split, with the network."""
    networks: dict[tuple[str, str], set[str]] = {}
    for v in values:
        networks.setdefault((printed_name(v), v.split), set()).add(v.backbone)
    return [
        with_split(name, v.backbone) if v.backbone and len(networks[name, v.split]) > 1 else name
        for v in values
        for name in [printed_name(v)]
    ]


def unlearning_accuracy(value: Value) -> Value:
    """UA, the share of images in which the detector no longer finds the concept: 1 - detection rate."""
    low, high = (None if end is None else 1 - end for end in (value.high, value.low))
    original = None if value.original is None else 1 - value.original
    ua = replace(value, metric=UA, original=original, unlearned=1 - value.unlearned, low=low, high=high, better="higher")
    return replace(ua, note="", extras={})


def _is_whole(split: str, base: str) -> bool:
    """Whether a split is all of a base split, or of one of several concepts, not of one kind ("forget, company")."""
    return split.partition(": ")[0] == base and ", " not in split


def headline(values: Sequence[Value], tables: Sequence[str]) -> list[Value]:
    """The main values of a run in the order of `HEADLINE`: UA for the detection rate, of each concept if several were forgotten.

    The integrity of LPIPS itself stands only where it was not normalized.

    Args:
        values: of the run.
        tables: those whose values count; others belong to stages of sequential unlearning.
    """
    rows = []
    for metric, split in HEADLINE:
        rows += [v for v in values if v.metric == metric and v.table in tables and _is_whole(v.split, split)]
    if any(v.metric == "integrity_norm" for v in rows):
        rows = [v for v in rows if v.metric != "integrity"]
    return [unlearning_accuracy(v) if v.metric == "forget_accuracy" else v for v in rows]
