"""Owns loading SDXL from its pipeline folder: its parts and their types, captions to embeddings.

Must not train or sample, nor know where the folder comes from (see pipelines).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from jobs.compat import eager
from jobs.errors import BadSpec
from jobs.pipelines import config as config
from jobs.pipelines import locate as locate
from jobs.specs import Precision

DTYPES = {"fp16": ms.float16, "bf16": ms.bfloat16, "fp32": ms.float32}
TOKENS = 77
"""Length of a caption in tokens: CLIP's context (Radford et al. 2021, arXiv 2103.00020, 2.4)."""


def dtype(precision: Precision, device: str) -> Any:
    """Return MindSpore's type for a precision.

    Raises:
        BadSpec: the device cannot compute in it.
    """
    if precision == "bf16" and device == "CPU":
        raise BadSpec("precision bf16: MindSpore cannot compute in it on CPU; choose fp32 or fp16")
    return DTYPES[precision]


def load_unet(folder: Path, kind: Any, *, flash: bool = True) -> nn.Cell:
    """Return the UNet, frozen, with weights of type `kind`.

    Args:
        folder: of the pipeline.
        kind: MindSpore's type.
        flash: whether it has flash attention where the device has it.

    Raises:
        BadSpec: the folder lacks some of its weights, or they are of another shape.
    """
    from mindone.diffusers import UNet2DConditionModel

    cell = _loaded(UNet2DConditionModel.from_pretrained, folder, "unet", kind)
    return _attending(cell, flash=flash)


def attention(wanted: bool | None, kind: Any, device: str) -> str:
    """Return how a UNet of that type attends on a device: flash, or math.

    Args:
        wanted: what the spec says; none means flash where the device has it.
        kind: MindSpore's type.
        device: Ascend or CPU.

    Raises:
        BadSpec: flash is wanted, and the device has none for that type.
    """
    has = device == "Ascend" and kind in (ms.float16, ms.bfloat16)
    if wanted and not has:
        raise BadSpec(
            f"flash_attention: {device} has none in {kind}; leave it out, or choose fp16 on Ascend"
        )
    return "flash" if has and wanted is not False else "math"


def _attending(cell: nn.Cell, *, flash: bool) -> nn.Cell:
    """Decide how a part attends: by itself mindone would compute fp32's attention in fp16."""
    for _, child in cell.cells_and_names():
        if hasattr(child, "enable_flash_sdp"):
            child.enable_flash_sdp(flash)
            child.set_flash_attention_force_cast_dtype(None)
    return cell


def load_vae(folder: Path) -> nn.Cell:
    """Return the VAE in fp32 whatever the run's precision: SDXL's overflows in fp16.

    Raises:
        BadSpec: as `load_unet` does.
    """
    from mindone.diffusers import AutoencoderKL

    cell = _loaded(AutoencoderKL.from_pretrained, folder, "vae", ms.float32)
    return _attending(cell, flash=False)


def _loaded(read: Callable[..., Any], folder: Path, part: str, kind: Any) -> nn.Cell:
    """Return a part of a pipeline; what mindone only warns of is an error: random weights."""
    try:
        found = read(str(folder), subfolder=part, mindspore_dtype=kind, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "shape" not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise BadSpec(f"model {folder}: its {part} cannot be loaded ({reason})") from error
    # Without a report where the weights are in several files.
    cell, report = found if isinstance(found, tuple) else (found, {})
    if missing := sorted(report.get("missing_keys", ())):
        raise BadSpec(f"model {folder}: its {part} lacks {len(missing)} weights, as {missing[0]}")
    return _frozen(cell)


def _frozen(cell: nn.Cell) -> nn.Cell:
    cell.set_train(False)
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
    return cell


def load_tokenizers(folder: Path) -> tuple[Any, Any]:
    """Return both tokenizers of a pipeline folder."""
    from transformers import CLIPTokenizer

    first, second = (
        CLIPTokenizer.from_pretrained(str(folder), subfolder=name)
        for name in ("tokenizer", "tokenizer_2")
    )
    return first, second


def token_ids(
    tokenizers: tuple[Any, Any], text: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the token ids for each encoder, [77] each; longer captions are cut."""
    first, second = (
        np.asarray(
            tokenizer(text, padding="max_length", max_length=TOKENS, truncation=True).input_ids,
            np.int32,
        )
        for tokenizer in tokenizers
    )
    return first, second


def is_long(tokenizers: tuple[Any, Any], text: str) -> bool:
    """Say whether a caption has more tokens, marks included, than the encoders read."""
    return any(len(tokenizer(text, verbose=False).input_ids) > TOKENS for tokenizer in tokenizers)


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """Both tokenizers and both encoders."""

    tokenizers: tuple[Any, Any]
    cells: tuple[nn.Cell, nn.Cell]

    def tokens(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the token ids for each encoder, [77] each; longer captions are cut."""
        return token_ids(self.tokenizers, text)

    def encode(self, text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return embeddings [77, d] and pooled embedding [p] of one caption, fp32."""
        ids = self.tokens(text)
        with eager():
            outputs = [
                cell(ms.Tensor(row[None]), output_hidden_states=True)
                for cell, row in zip(self.cells, ids, strict=True)
            ]
        # SDXL reads the last but one layer (Podell et al. 2023, arXiv 2307.01952, section 2.1).
        hidden = [out[-1][-2].astype(ms.float32).asnumpy()[0] for out in outputs]
        pooled = outputs[1][0].astype(ms.float32).asnumpy()[0]
        return np.concatenate(hidden, axis=-1), pooled


def load_text_encoders(folder: Path, kind: Any) -> TextEncoders:
    """Return tokenizers and encoders with weights of type `kind`, frozen.

    Raises:
        BadSpec: as `load_unet` does.
    """
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = _loaded(CLIPTextModel.from_pretrained, folder, "text_encoder", kind)
    second = _loaded(CLIPTextModelWithProjection.from_pretrained, folder, "text_encoder_2", kind)
    return TextEncoders(load_tokenizers(folder), (first, second))
