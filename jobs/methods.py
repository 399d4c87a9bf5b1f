"""Owns what each method trains: the model's parts -> a compiled step with fresh weights.

Must not read pictures or know how far a run is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mindspore import Parameter, nn

from jobs import dropout, lora, model
from jobs.environment import Worker
from jobs.losses import CaptionLoss, NoiseLoss
from jobs.specs import TrainSpec
from jobs.step import TrainStep
from jobs.update import Options

log = logging.getLogger("jobs.methods")


def build(
    folder: Path, kind: Any, spec: TrainSpec, worker: Worker
) -> tuple[TrainStep, Parameter | None]:
    """Return the step of a method, and the key of its dropout masks where it has dropout.

    Raises:
        BadSpec: a target of the LoRA is not in the model.
    """
    key = dropout.new_key(spec.batch_size) if spec.lora_dropout else None
    shape = lora.Shape(
        rank=spec.lora_rank, alpha=spec.lora_alpha, seed=spec.seed, dropout=spec.lora_dropout,
        key=key,
    )  # fmt: skip
    text: dict[str, Parameter] = {}
    if spec.method == "vanilla":
        unet = load_master(folder, kind, spec)
        trained = {f"unet.{name}": p for name, p in unet.parameters_and_names()}
    else:
        unet = model.load_unet(folder, kind, flash=spec.flash_attention is not False)
        trained = lora.inject(unet, "unet", spec.lora_targets, shape)
    loss: nn.Cell = NoiseLoss(unet, kind)
    if spec.method == "lora-te":
        cells = model.load_text_encoders(folder, kind).cells
        for name, cell in zip(("text_encoder", "text_encoder_2"), cells, strict=True):
            text |= lora.inject(cell, name, lora.TEXT_TARGETS, shape)
        loss = CaptionLoss(unet, cells, kind)
    loss.set_train(True)
    if spec.recompute:
        recompute(unet)
    sizes = [p.size for p in (*trained.values(), *text.values())]
    log.info("trained=%d parameters=%d", len(sizes), sum(sizes))
    return TrainStep(loss, trained, options(spec, worker), text), key


def load_master(folder: Path, kind: Any, spec: TrainSpec) -> nn.Cell:
    """Return the UNet with fp32 weights that are trained; its graph computes in `kind`."""
    flash = spec.flash_attention is not False
    unet = model.load_unet(folder, model.DTYPES["fp32"], flash=flash)
    if spec.precision != "fp32":
        unet.to_float(kind)
    for parameter in unet.get_parameters():
        parameter.requires_grad = True
    return unet


def recompute(unet: nn.Cell) -> None:
    """Have the activations of the UNet's blocks computed again when the gradient is."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for part in (*getattr(block, "resnets", ()), *getattr(block, "attentions", ())):
            part.recompute()


def options(spec: TrainSpec, worker: Worker) -> Options:
    """Return what a spec bakes into the optimiser's graph."""
    return Options(
        workers=worker.world,
        accumulate=spec.accumulate,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        beta1=spec.adam_beta1,
        beta2=spec.adam_beta2,
        epsilon=spec.adam_epsilon,
        scaled=spec.precision == "fp16",
        average=spec.ema_decay > 0,
    )


def constants(folder: Path, spec: TrainSpec) -> dict[str, object]:
    """Return every value that is baked into one of the training's graphs."""
    names = (
        "method", "precision", "resolution", "batch_size", "accumulate", "recompute",
        "flash_attention", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets",
        "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon",
    )  # fmt: skip
    found: dict[str, object] = {name: getattr(spec, name) for name in names}
    found["average"] = spec.ema_decay > 0
    found["validation"] = bool(spec.validation_prompts)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        found[part] = model.config(folder, part)
    return found
