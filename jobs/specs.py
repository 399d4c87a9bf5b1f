"""Owns what a job is asked to do: the documents that launcher and container both read.

Must not know where a job runs (image, cluster, number of NPUs): the same spec runs on a laptop and
on 64 NPUs. Imports only pydantic and the standard library.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from jobs.documents import Frozen as Frozen
from jobs.documents import Precision as Precision
from jobs.documents import problems as problems
from jobs.errors import BadSpec
from jobs.inferspec import InferSpec as InferSpec
from jobs.inferspec import PromptFile as PromptFile
from jobs.inferspec import PromptRow as PromptRow

Method = Literal["vanilla", "lora", "lora-te"]

INLINE_PROMPT_BYTES = 64 * 1024
"""Prompts past this travel through the store: Linux limits one environment string to 128 KiB."""


class TrainSpec(Frozen):
    """Fine-tune Stable Diffusion XL on captioned pictures."""

    kind: Literal["train"] = "train"
    method: Method = "lora"
    """What is trained: the whole UNet, LoRA on the UNet, or LoRA on UNet and both text encoders."""
    precision: Precision = "fp16"
    """Type of the frozen weights and activations; what is trained is kept in fp32 all the same."""
    model: str = Field("stabilityai/stable-diffusion-xl-base-1.0", min_length=1)
    """Pipeline folder, hub id, or `tiny` for the small SDXL that ships."""
    model_revision: str = Field("main", min_length=1)
    """Revision of a hub model; ignored for folders."""
    data: str = Field("YaYaB/onepiece-blip-captions", min_length=1)
    """Image folder, parquet file, hub id, or `tiny` for the drawings that ship."""
    data_revision: str = Field("main", min_length=1)
    """Revision of a hub data set; ignored for folders."""
    image_column: str = Field("image", min_length=1)
    """Column that holds the picture."""
    caption_column: str = Field("text", min_length=1)
    """Column that holds the caption."""
    resolution: int = Field(1024, ge=32, le=2048, multiple_of=8)
    """Side of the square training picture in pixels; memory and time grow with its square."""
    crop: Literal["centre", "random"] = "centre"
    """Which square of a picture is seen: its centre, or places drawn from the seed."""
    crops_per_picture: int = Field(1, ge=1, le=64)
    """Places drawn for each picture; each is encoded once, and each sample draws one of them."""
    flip: bool = False
    """Whether mirror images are seen as often as the pictures themselves."""
    batch_size: int = Field(1, ge=1, le=256)
    """Pictures per NPU and step; the global batch is this times the number of NPUs."""
    steps: int = Field(10_000, ge=1)
    """Optimiser steps in all, over all attempts."""
    learning_rate: float = Field(1e-4, gt=0, le=1)
    """Constant learning rate of AdamW."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients whose global L2 norm is larger are scaled down to it."""
    lora_rank: int = Field(4, ge=1, le=512)
    """Rank of the LoRA matrices; the size of the result grows with it."""
    lora_alpha: float = Field(4.0, gt=0)
    """The LoRA update is scaled by alpha / rank."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of data order, noise and time steps; execution settings never enter it."""
    save_every: int = Field(500, ge=1)
    """Steps between checkpoints; also the most work a preemption can cost."""
    keep_last: int = Field(0, ge=0)
    """Committed checkpoints that stay in the store, the newest ones; 0 keeps all."""
    keep_every: int = Field(0, ge=0)
    """Checkpoints at multiples of this step stay as well; pinned ones always do."""
    log_every: int = Field(10, ge=1)
    """Steps between log lines and metrics rows."""
    validation_prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Prompts painted at the end with the trained weights, and every `validate_every` steps."""
    validate_every: int = Field(0, ge=0)
    """Steps between validation pictures; 0 paints at the end only."""
    validation_steps: int = Field(30, ge=1, le=1000)
    """Denoising steps of a validation picture."""

    @model_validator(mode="after")
    def _crops_differ(self) -> TrainSpec:
        if self.crop == "centre" and self.crops_per_picture > 1:
            raise ValueError("crops_per_picture is set and crop is centre; set crop to random")
        return self


Spec = TrainSpec | InferSpec
_SPEC: TypeAdapter[Spec] = TypeAdapter(Annotated[Spec, Field(discriminator="kind")])


def parse(document: dict[str, object]) -> Spec:
    """Return the spec a document holds.

    Raises:
        BadSpec: an unknown key, a missing one, or a value out of range; all of them are named.
    """
    try:
        return _SPEC.validate_python(document)
    except ValidationError as error:
        raise BadSpec(problems(error)) from error


def parse_json(text: str) -> Spec:
    """Return the spec of JSON text, as `JOB_SPEC` carries it.

    Raises:
        BadSpec: the text is not JSON, or not a spec.
    """
    try:
        return _SPEC.validate_json(text)
    except ValidationError as error:
        raise BadSpec(problems(error)) from error


def to_json(spec: Spec) -> str:
    """Return the spec as one line of JSON with `$` escaped.

    The kubelet expands `$(NAME)` in an environment value, and a prompt may hold it
    (Kubernetes API reference, EnvVar.value); JSON reads the escape back as `$`.
    """
    return spec.model_dump_json().replace("$", "\\u0024")
