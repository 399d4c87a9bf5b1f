"""Owns loading SDXL: where its folder is, its parts and their types, captions to embeddings.

Must not train or sample.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from jobs.compat import eager
from jobs.environment import Environment
from jobs.errors import BadSpec, Unavailable
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


def locate(model: str, revision: str, env: Environment) -> Path:
    """Return the pipeline folder of a model, fetched from the hub or built where needed.

    Raises:
        BadSpec: a folder without a pipeline, or a path that does not exist.
        Unavailable: the hub cannot be reached.
    """
    if model == "tiny":
        return _tiny(env)
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise BadSpec(
                f"model {model}: no model_index.json in it; name a diffusers pipeline folder"
            )
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise BadSpec(f"model {model}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise Unavailable(
            f"model {model}: the hub gave nothing ({reason}); name a folder"
        ) from error


def _tiny(env: Environment) -> Path:
    from jobs.tiny import pipeline

    folder = env.work / "models" / f"tiny-{pipeline.VERSION}"
    if not folder.is_dir():
        # Each worker builds its own and renames it; the first one wins.
        part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
        with eager():
            pipeline.write_folder(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def config(folder: Path, part: str) -> dict[str, Any]:
    """Return the configuration of one part of a pipeline folder, or of all of it for "".

    Raises:
        BadSpec: the part is missing.
    """
    names = {"": "model_index.json", "scheduler": "scheduler_config.json"}
    path = folder / part / names.get(part, "config.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSpec(
            f"model {folder}: {path.name} of {part or 'the pipeline'} cannot be read: {error}"
        ) from error
    return found


def load_unet(folder: Path, kind: Any) -> nn.Cell:
    """Return the UNet, frozen, with weights of type `kind`."""
    from mindone.diffusers import UNet2DConditionModel

    return _frozen(
        UNet2DConditionModel.from_pretrained(str(folder), subfolder="unet", mindspore_dtype=kind)
    )


def load_vae(folder: Path) -> nn.Cell:
    """Return the VAE in fp32 whatever the run's precision: SDXL's overflows in fp16."""
    from mindone.diffusers import AutoencoderKL

    return _frozen(
        AutoencoderKL.from_pretrained(str(folder), subfolder="vae", mindspore_dtype=ms.float32)
    )


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
    """Return tokenizers and encoders with weights of type `kind`, frozen."""
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextModel.from_pretrained(
        str(folder), subfolder="text_encoder", mindspore_dtype=kind
    )
    second = CLIPTextModelWithProjection.from_pretrained(
        str(folder), subfolder="text_encoder_2", mindspore_dtype=kind
    )
    return TextEncoders(load_tokenizers(folder), (_frozen(first), _frozen(second)))
