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
Schedule = Literal["constant", "linear", "cosine", "cosine-restarts"]
Prediction = Literal["epsilon", "v_prediction"]

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
TINY = "tiny"
"""The small SDXL that ships."""
SHIPPED_DATA = (TINY, "tiny-hatched")
"""Captioned drawings, half of them in a style to learn: neon lights, and hatched shapes."""
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Attention projections, the modules that diffusers' SDXL LoRA script trains in the UNet."""

NEAR_1 = 0.99999
"""Largest decay: what is nearer to 1 loses itself in fp32, whose steps below 1 are 6e-8, and 1
itself would divide 0 by 0 in AdamW's bias correction."""

INLINE_PROMPT_BYTES = 64 * 1024
"""Prompts past this travel through the store: Linux limits one environment string to 128 KiB."""


class TrainSpec(Frozen):
    """Fine-tune Stable Diffusion XL on captioned pictures."""

    kind: Literal["train"] = "train"
    method: Method = "lora"
    """What is trained: the whole UNet, LoRA on the UNet, or LoRA on UNet and both text encoders."""
    precision: Precision = "fp16"
    """Type of the frozen weights and activations; what is trained is kept in fp32 all the same."""
    model: str = Field(SDXL, min_length=1)
    """Pipeline folder, single file (.safetensors), hub id, or `tiny` for the small SDXL that
    ships."""
    model_revision: str = Field("main", min_length=1)
    """Revision of a hub model; ignored for folders."""
    model_config_from: str = Field(SDXL, min_length=1)
    """For a single file, which holds weights alone: the pipeline folder or hub id whose
    configuration and tokenizers it has."""
    vae: str | None = Field(None, min_length=1)
    """VAE in place of the model's own: its folder, single file or hub id."""
    vae_revision: str = Field("main", min_length=1)
    """Revision of a hub VAE; ignored for folders."""
    data: str = Field("YaYaB/onepiece-blip-captions", min_length=1)
    """Image folder, parquet file, hub id, or drawings that ship: `tiny` or `tiny-hatched`."""
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
    accumulate: int = Field(1, ge=1, le=1024)
    """Batches whose gradients are summed up for one optimiser step: a larger batch in no more
    memory. Steps count the optimiser's."""
    learning_rate: float = Field(1e-4, gt=0, le=1)
    """Learning rate of AdamW, the highest one of its schedule."""
    text_encoder_learning_rate: float | None = Field(None, gt=0, le=1)
    """Learning rate of what is trained in the text encoders; none means learning_rate."""
    lr_schedule: Schedule = "constant"
    """How the learning rate goes after the warm-up: linear and cosine end near 0 at the last
    step, cosine-restarts does so `lr_cycles` times."""
    lr_cycles: int = Field(1, ge=1, le=1000)
    """Number of cosines of cosine-restarts."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises linearly."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = Field(0.9, ge=0, le=NEAR_1)
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = Field(0.999, ge=0, le=NEAR_1)
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """Added to AdamW's divisor; at least 1e-16, since fp32 has no room for the squares of what is
    smaller, and a weight without a gradient would be 0 divided by 0."""
    max_grad_norm: float = Field(1.0, ge=1e-6, le=1e30)
    """Gradients whose global L2 norm is larger are scaled down to it."""
    ema_decay: float = Field(0.0, ge=0, le=NEAR_1)
    """Decay of a moving average of the weights (vanilla), which is what is painted with and saved
    as the result; 0 keeps none. It takes 4 bytes a weight."""
    snr_gamma: float | None = Field(None, ge=1e-3, le=1e6)
    """Min-SNR weighting of the loss: limit of the signal-to-noise ratio, such as 5; none weighs
    all time steps the same."""
    noise_offset: float = Field(0.0, ge=0, le=1)
    """Strength of noise that is constant over a latent channel: lets the model learn pictures
    darker and brighter than the average, such as 0.05."""
    prediction_type: Prediction | None = None
    """What the UNet predicts; none means what the model's scheduler says."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Part of the samples that are trained without their caption, which classifier-free guidance
    needs, such as 0.1."""
    lora_rank: int = Field(4, ge=1, le=512)
    """Rank of the LoRA matrices; the size of the result grows with it."""
    lora_alpha: float = Field(4.0, ge=1e-3, le=1e4)
    """The LoRA update is scaled by alpha / rank."""
    lora_dropout: float = Field(0.0, ge=0, le=0.99)
    """Part of the inputs of the LoRA matrices that is left out in training, in steps of
    1 / 4091: from 0.001, or 0 for none."""
    lora_targets: tuple[Annotated[str, Field(min_length=1)], ...] = LORA_TARGETS
    """Linear modules and convolutions of the UNet that get LoRA matrices, by the end of their
    names."""
    recompute: bool = False
    """Compute the activations of the UNet's blocks again for the gradient: less memory, more
    time."""
    flash_attention: bool | None = None
    """Whether the UNet attends without keeping the table of attention; none means where the device
    has it (Ascend, in fp16 and bf16)."""
    max_minutes: float | None = Field(None, gt=0)
    """Training time over all attempts, after which the run saves and succeeds with the steps it
    has done; a whole step is the unit."""
    fork: bool = False
    """Go on from the run's last checkpoint with other values than it was made with, which are
    told and recorded; else a changed value is refused."""
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
    validation_guidance: float = Field(7.5, ge=1, le=100)
    """Classifier-free guidance scale of a validation picture."""

    @model_validator(mode="after")
    def _crops_differ(self) -> TrainSpec:
        if self.crop == "centre" and self.crops_per_picture > 1:
            raise ValueError("crops_per_picture is set and crop is centre; set crop to random")
        return self

    @model_validator(mode="after")
    def _fits_its_method(self) -> TrainSpec:
        wrong = []
        if self.method != "vanilla" and self.ema_decay:
            wrong.append(f"ema_decay is for method vanilla, not {self.method}")
        if self.method == "vanilla" and self.lora_dropout:
            wrong.append("lora_dropout is for the LoRA methods, not vanilla")
        rates = (self.learning_rate, self.text_encoder_learning_rate or 1.0, self.adam_epsilon)
        names = ("learning_rate", "text_encoder_learning_rate", "adam_epsilon")
        wrong += [
            f"{name} ({value:g}) is below 1e-16, which fp32 loses"
            for name, value in zip(names, rates, strict=True)
            if value < 1e-16
        ]
        if 0 < self.lora_dropout < 0.001:
            wrong.append(f"lora_dropout ({self.lora_dropout:g}) is below 0.001; set 0 for none")
        if self.method != "lora-te" and self.text_encoder_learning_rate is not None:
            wrong.append(f"text_encoder_learning_rate is for method lora-te, not {self.method}")
        if not self.lora_targets:
            wrong.append("lora_targets names no module")
        if self.warmup_steps >= self.steps:
            wrong.append(f"warmup_steps ({self.warmup_steps}) must be less than steps")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def graphs(spec: TrainSpec) -> tuple[str, ...]:
    """Return what each worker of a training compiles, in that order; minutes each on an NPU."""
    painting = ("validation's UNet", "validation's VAE") if spec.validation_prompts else ()
    step = ("step",) if spec.accumulate == 1 else ("gradient", "update")
    return (*painting, *step)


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
