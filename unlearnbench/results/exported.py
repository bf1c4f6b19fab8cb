"""The forms in which a run's model can be exported, and an exported model as its card describes it."""

from __future__ import annotations

from dataclasses import dataclass

FORMS = ("diffusers", "unet", "lora", "single-file")


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        form: one of `FORMS`.
        file: the name of its file of weights; "" if diffusers loads the folder.
        whole: with the form unet, whether the folder holds the whole denoiser, or one file with what the run changed.
        pipeline_class: the class of the pipeline in diffusers.
        denoiser: the name of the part that predicts: unet or transformer.
        dtype: of the model in the run: fp32, bf16 or fp16.
        repository: the hub's name of the repository that it is uploaded to; "" if it stays on this machine.
    """

    form: str
    file: str
    whole: bool
    pipeline_class: str
    denoiser: str
    dtype: str
    repository: str = ""
