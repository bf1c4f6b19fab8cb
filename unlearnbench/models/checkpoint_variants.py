"""The weights of a pipeline's parts, which a repository may hold in several variants, such as fp16: which of them are loaded.

The names are those of diffusers and transformers: `model.safetensors`, `diffusion_pytorch_model.fp16.safetensors`, and in shards
`model.fp16-00001-of-00002.safetensors` (older: `model-00001-of-00002.fp16.safetensors`). Of a part without files of a variant the
plain ones are loaded beside the others' variant, as diffusers does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from unlearnbench.config.errors import UserError, suggest

WEIGHTS_FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?(?:\.(?P<old>\w+))?\.safetensors"
)
INDEX_FILE = re.compile(r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
FULL = "full"  # the setting that means plain names
PRECISIONS = ("", "fp32", "fp16", "bf16")  # the variants that differ in precision alone; "" is the plain name
DOWNLOAD_ORDER = {
    "fp32": ("", "fp32", "fp16", "bf16"),
    "fp16": ("fp16", "", "bf16", "fp32"),
    "bf16": ("bf16", "fp16", "", "fp32"),
}


def weights_by_variant(names: Collection[str], part: str) -> dict[str, list[str]]:
    """The files of a part's weights, by variant; "" is the plain name.

    Args:
        names: of all files, relative to the pipeline.
        part: such as "unet".
    """
    files: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if folder == part and (match := WEIGHTS_FILE.fullmatch(file)):
            files.setdefault(match["variant"] or match["old"] or "", []).append(name)
    return files


def missing_weights(names: Collection[str], part: str, variant: str) -> list[str]:
    """The files that are missing for a part's weights in a variant; plain ones do where the part has none of the variant.

    Args:
        names: of all files that are there, relative to the pipeline.
        part: such as "unet".
        variant: such as "fp16"; "" for plain names.
    """
    files = weights_by_variant(names, part)
    present = files.get(variant) or files.get("", [])
    if not present:
        return [f"{part}/*{f'.{variant}' * bool(variant)}.safetensors"]
    matches = [(name, match) for name in present if (match := WEIGHTS_FILE.fullmatch(name.rpartition("/")[2]))]
    if any(match["number"] is None for _, match in matches):
        return []
    name, first = matches[0]
    numbers = {match["number"] for _, match in matches}
    expected = [f"{number:05d}" for number in range(1, int(first["count"]) + 1)]
    return [name.replace(f"-{first['number']}-of-", f"-{number}-of-") for number in expected if number not in numbers]


def variant_names(names: Collection[str], parts: Sequence[str]) -> list[str]:
    """The variants that any part has, plain names first."""
    return sorted({variant for part in parts for variant in weights_by_variant(names, part)})


def local_variant(names: Collection[str], parts: Sequence[str], setting: str | None) -> tuple[str, list[str]]:
    """The variant of a folder that is loaded, and the weights that are missing for it.

    Args:
        names: of all files of the folder, relative to it.
        parts: the parts that have weights.
        setting: the variant that the user names; None takes plain names, or else a precision that is whole.
    """
    if setting is None:
        present = variant_names(names, parts)
        variants = [variant for variant in PRECISIONS if variant in present] or [""]
    else:
        variants = ["" if setting == FULL else setting]
    missing = {variant: [name for part in parts for name in missing_weights(names, part, variant)] for variant in variants}
    variant = min(missing, key=lambda name: len(missing[name]))
    if setting is not None and variant and not any(variant in weights_by_variant(names, part) for part in parts):
        return variant, missing_weights((), parts[0], variant)
    return variant, missing[variant]


def offered_variant(names: Collection[str], parts: Sequence[str], setting: str | None, dtype: str) -> str:
    """The variant to download: the smallest that suffices for a dtype, or the one that the user names.

    Args:
        names: of all files that the hub has of the pipeline.
        parts: the parts that have weights.
        setting: the variant that the user names, or None.
        dtype: fp32, fp16 or bf16.

    Raises:
        UserError: the repository has no weights as safetensors, or not in this variant.
    """
    if setting is not None:
        variant = "" if setting == FULL else setting
        if (variant and variant not in variant_names(names, parts)) or not _is_whole(names, parts, variant):
            known = [name or FULL for name in variant_names(names, parts)]
            raise UserError(f"the hub has no variant {setting} of it; {suggest(setting, known)}")
        return variant
    present = variant_names(names, parts)
    for variant in DOWNLOAD_ORDER[dtype]:
        if variant in present and _is_whole(names, parts, variant):
            return variant
    part = next((part for part in parts if not weights_by_variant(names, part)), None)
    if part is not None and any(name.startswith(f"{part}/") and name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        raise UserError(
            f"its {part} is there only as a pickle, which is not opened; "
            "convert it where you trust it: https://huggingface.co/spaces/safetensors/convert opens a pull request, "
            "then model.revision=refs/pr/NUMBER"
        )
    if part is not None:
        raise UserError(f"it has no {part}/*.safetensors; choose another model.path")
    whole = ", ".join(name for name in present if name)
    raise UserError(f"no precision of it is whole; name one of its variants: model.variant={whole}")


def weights_of(names: Collection[str], part: str, variant: str) -> list[str]:
    """The files of a part's weights in a variant, with the index of shards; plain ones where the part has none of it."""
    files = weights_by_variant(names, part)
    chosen = variant if variant in files else ""
    indices = [
        name
        for name in names
        if name.rpartition("/")[0] == part
        and (match := INDEX_FILE.fullmatch(name.rpartition("/")[2]))
        and (match["variant"] or "") == chosen
    ]
    weights = files.get(chosen, [])
    single = [name for name in weights if not re.search(r"-\d{5}-of-", name)]
    return single or [*weights, *indices]


def _is_whole(names: Collection[str], parts: Sequence[str], variant: str) -> bool:
    return not any(missing_weights(names, part, variant) for part in parts)
