"""Owns what an inference job is asked to paint: its prompts and their settings.

Must not know where a job runs. Imports only pydantic and the standard library.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from jobs.documents import Frozen, Precision

Scheduler = Literal[
    "DDIM", "DDIMParallel", "LMS", "DPMSolverSinglestep", "DPMSolverMultistep", "EulerDiscrete",
    "EulerAncestral",
]  # fmt: skip


def _encodable(text: str) -> str:
    """Refuse what JSON can say and UTF-8 cannot: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair") from error
    return text


_Text = Annotated[str, AfterValidator(_encodable)]
_Images = Annotated[int, Field(ge=1, le=1000)]
_Steps = Annotated[int, Field(ge=1, le=1000)]
_Guidance = Annotated[float, Field(ge=1, le=100)]
_Rescale = Annotated[float, Field(ge=0, le=1)]
_Side = Annotated[int, Field(ge=32, le=4096, multiple_of=8)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_RUN = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LORA_KEY = r"cache/loras/[0-9a-f]{64}/[A-Za-z0-9._-]{1,80}\.safetensors"


class PromptRow(Frozen):
    """One line of a prompt file; what it does not say the spec says for all."""

    line: int = Field(ge=1, le=1_000_000_000)
    """Line number in the file, from 1; part of the identity of the picture's noise."""
    prompt: str = Field(min_length=1)
    """The text."""
    negative: _Text | None = None
    """What these pictures should not show."""
    seed: _Seed | None = None
    """Seed of these pictures' noise, instead of the spec's."""
    steps: _Steps | None = None
    """Denoising steps."""
    guidance: _Guidance | None = None
    """Classifier-free guidance scale."""
    width: _Side | None = None
    """Width in pixels."""
    height: _Side | None = None
    """Height in pixels."""
    images: _Images | None = None
    """Pictures of this prompt."""
    scheduler: Scheduler | None = None
    """Sampler."""
    guidance_rescale: _Rescale | None = None
    """Rescaling of the guided prediction."""

    @model_serializer(mode="wrap")
    def _what_is_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what the row does not say: an environment string is 128 KiB at most."""
        return {key: value for key, value in handler(self).items() if value is not None}


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
    model: str = Field(_SDXL, min_length=1)
    """Pipeline folder, single file (.safetensors), hub id, or `tiny` for the small SDXL that
    ships."""
    model_revision: str = Field("main", min_length=1)
    """Revision of a hub model; ignored for folders."""
    model_config_from: str = Field(_SDXL, min_length=1)
    """For a single file, which holds weights alone: the pipeline folder or hub id whose
    configuration and tokenizers it has."""
    vae: str | None = Field(None, min_length=1)
    """VAE in place of the model's own: its folder, single file or hub id."""
    vae_revision: str = Field("main", min_length=1)
    """Revision of a hub VAE; ignored for folders."""
    lora: str | None = Field(None, pattern=rf"^({_RUN}|{_LORA_KEY}|(s3:/)?/.+)$")
    """LoRA that is merged into the weights: a training run in the same store, or a file's key
    there, s3:// address or path."""
    lora_step: int | None = Field(None, ge=1)
    """Committed step of that run; none means its newest at the start of the job."""
    lora_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the file behind an address; another one is refused."""
    lora_weight: float = Field(1.0, ge=-10, le=10)
    """Factor on the LoRA's update; 0 paints with the base model."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts; none means what the LoRA's run or the model's scheduler says."""
    prompts: tuple[PromptRow, ...] | PromptFile
    """The rows themselves, or where they wait in the store."""
    only: str | None = Field(None, min_length=1)
    """Lines to paint, as `17,40-42`, or one picture, as `17.0`; the plan stays the whole file's."""
    negative: _Text | None = None
    """What the pictures should not show; none means zero embeddings, as SDXL's pipeline does."""
    images: _Images = 1
    """Pictures per prompt."""
    scheduler: Scheduler | None = None
    """Sampler, made from the model's own configuration; none means the model's own."""
    steps: _Steps = 30
    """Denoising steps per picture."""
    guidance: _Guidance = 7.5
    """Classifier-free guidance scale; 1 switches guidance off in effect."""
    guidance_rescale: _Rescale = 0.0
    """Share of the guided prediction that is rescaled to the spread of the unguided one, against
    overexposure (Lin et al. 2023, arXiv 2305.08891, section 3.4)."""
    width: _Side = 1024
    """Width of a picture in pixels."""
    height: _Side = 1024
    """Height of a picture in pixels."""
    batch_size: int = Field(1, ge=1, le=64)
    """Pictures per UNet call; part of a picture's bits, so it belongs to the spec."""
    first_slot: int = Field(0, ge=0, lt=64)
    """Place in its batch of the first picture of each size; also part of its bits. For making one
    picture of a larger file again."""
    seed: _Seed = 0
    """With the line and the image number it alone decides a picture's noise."""

    @model_validator(mode="after")
    def _has_prompts(self) -> InferSpec:
        if isinstance(self.prompts, tuple) and not self.prompts:
            raise ValueError("there is no prompt")
        if isinstance(self.prompts, tuple):
            lines = Counter(row.line for row in self.prompts)
            if len(lines) < len(self.prompts):
                line = max(lines, key=lines.__getitem__)
                raise ValueError(f"line {line} is given {lines[line]} times")
        if self.lora is None and self.lora_step is not None:
            raise ValueError("lora_step is set and lora is not")
        if self.lora_step is not None and self.lora is not None and "/" in self.lora:
            raise ValueError("lora_step is set and lora is a file")
        if self.first_slot >= self.batch_size:
            raise ValueError("first_slot lies behind the batch")
        return self
