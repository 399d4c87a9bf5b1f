"""Owns what a job is asked to do: the documents that launcher and container both read.

Must not know where a job runs (image, cluster, number of NPUs): the same spec runs on a laptop and
on 64 NPUs. Imports only pydantic and the standard library.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jobs.errors import BadSpec

Method = Literal["vanilla", "lora", "lora-te"]
Precision = Literal["fp16", "bf16", "fp32"]

INLINE_PROMPT_BYTES = 64 * 1024
"""Prompts past this travel through the store: Linux limits one environment string to 128 KiB."""


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, never a silent no-op."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


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


class PromptRow(Frozen):
    """One line of a prompt file."""

    line: int = Field(ge=1)
    """Line number in the file, from 1; part of the identity of the picture's noise."""
    prompt: str = Field(min_length=1)
    """The text."""


class PromptFile(Frozen):
    """Prompts that are too long for the spec and wait in the store."""

    key: str = Field(pattern=r"^cache/prompts/[0-9a-f]{64}\.jsonl$")
    """Key in the store, relative to its root; JSON lines of PromptRow."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of those bytes; a file that differs is refused."""


class InferSpec(Frozen):
    """Paint every prompt of a file with Stable Diffusion XL."""

    kind: Literal["infer"] = "infer"
    precision: Precision = "fp16"
    """Type of weights and activations; the VAE decodes in fp32 all the same."""
    model: str = Field("stabilityai/stable-diffusion-xl-base-1.0", min_length=1)
    """Pipeline folder, hub id, or `tiny` for the small SDXL that ships."""
    model_revision: str = Field("main", min_length=1)
    """Revision of a hub model; ignored for folders."""
    lora: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Name of a training run in the same store whose LoRA is merged into the weights."""
    lora_step: int | None = Field(None, ge=1)
    """Committed step of that run; none means its newest at the start of the job."""
    lora_weight: float = Field(1.0, ge=-10, le=10)
    """Factor on the LoRA's update; 0 paints with the base model."""
    prompts: tuple[PromptRow, ...] | PromptFile
    """The rows themselves, or where they wait in the store."""
    negative: str | None = None
    """What the pictures should not show; none means zero embeddings, as SDXL's pipeline does."""
    images: int = Field(1, ge=1, le=1000)
    """Pictures per prompt."""
    steps: int = Field(30, ge=1, le=1000)
    """Denoising steps per picture."""
    guidance: float = Field(7.5, ge=1, le=100)
    """Classifier-free guidance scale; 1 switches guidance off in effect."""
    width: int = Field(1024, ge=32, le=4096, multiple_of=8)
    """Width of a picture in pixels."""
    height: int = Field(1024, ge=32, le=4096, multiple_of=8)
    """Height of a picture in pixels."""
    batch_size: int = Field(1, ge=1, le=64)
    """Pictures per UNet call; part of a picture's bits, so it belongs to the spec."""
    seed: int = Field(0, ge=0, lt=2**63)
    """With the line and the image number it alone decides a picture's noise."""

    @model_validator(mode="after")
    def _has_prompts(self) -> InferSpec:
        if isinstance(self.prompts, tuple) and not self.prompts:
            raise ValueError("there is no prompt")
        if self.lora is None and self.lora_step is not None:
            raise ValueError("lora_step is set and lora is not")
        return self


Spec = TrainSpec | InferSpec
_SPEC: TypeAdapter[Spec] = TypeAdapter(Annotated[Spec, Field(discriminator="kind")])


def problems(error: ValidationError) -> str:
    """Return pydantic's findings on one line: `key: what is wrong; key: what is wrong`."""
    rows = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"] if part not in ("train", "infer"))
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "unknown key"
        elif item["type"] != "missing":
            what = f"{what}, not {item['input']!r:.80}" if where else what
        rows.append(f"{where or 'spec'}: {what}")
    return "; ".join(rows)


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
