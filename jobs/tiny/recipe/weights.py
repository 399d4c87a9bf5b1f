"""Owns the weights that a part is trained from: seeded, and small at the end of each branch."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

LAST = (
    "conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight", "conv_out.weight",
    "out_proj.weight", "fc2.weight",
)  # fmt: skip
"""The last matrix of each residual branch, and of the whole."""
DAMPED = 0.1


def fill(cell: Any, seed: int) -> None:
    """Set every weight from one generator: matrices by 1/sqrt(inputs), scales 1, shifts 0."""
    rng = np.random.Generator(np.random.Philox(seed))
    for parameter in cell.get_parameters():
        shape = parameter.shape
        if len(shape) > 1:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        elif parameter.name.endswith(("gamma", "weight")):
            value = np.ones(shape)
        else:
            value = np.zeros(shape)
        parameter.set_data(Tensor(value.astype(np.float32)))


def begin(cell: Any, seed: int) -> None:
    """Set every weight from one generator, so that blocks begin close to the identity.

    Source: Zhang et al. 2019, arXiv 1901.09321, section 3 (branches that begin at zero); a tenth
    instead of zero keeps all gradients alive from the first step.
    """
    fill(cell, seed)
    for name, parameter in cell.parameters_and_names():
        if name.endswith(LAST):
            parameter.set_data(Tensor(parameter.asnumpy() * DAMPED))


def pass_colours(vae: Any) -> None:
    """Let a VAE begin as one that blurs: what it says of colours is right, and shapes are learned.

    From random weights a thousand steps go by until it tells green from black: most of a drawing's
    error is in its brightness. So red, green and blue are handed on from block to block, each with
    its opposite, since silu(x) - silu(-x) = x; and a constant, by which the last norm divides
    whatever the picture. The other channels stay as they are.
    """
    for name, parameter in vae.parameters_and_names():
        value = parameter.asnumpy().copy()
        for end, change in PASSES.items():
            if name.endswith(end):
                change(value)
        parameter.set_data(Tensor(value))


_COLOURS, _CONSTANT = 3, 6
"""The first of the colours' opposites, and the channel of the constant."""


def _read(weight: Any) -> None:
    """Copy each of the first three inputs to a channel of its own, and to one of its opposites."""
    middle = weight.shape[-1] // 2
    weight[: _CONSTANT + 1] = 0.0
    for channel in range(_COLOURS):
        weight[channel, channel, middle, middle] = 1.0
        weight[_COLOURS + channel, channel, middle, middle] = -1.0


def _keep(weight: Any) -> None:
    """Hand channels on as they are."""
    middle = weight.shape[-1] // 2
    weight[: _CONSTANT + 1] = 0.0
    for channel in range(_CONSTANT + 1):
        weight[channel, channel, middle, middle] = 1.0


def _shrink(weight: Any) -> None:
    """Hand on the mean of each four pixels."""
    weight[: _CONSTANT + 1] = 0.0
    for channel in range(_CONSTANT + 1):
        weight[channel, channel, :2, :2] = 0.25


def _join(weight: Any) -> None:
    """Put the colours and their opposites together again."""
    middle = weight.shape[-1] // 2
    weight[:_COLOURS] = 0.0
    for channel in range(_COLOURS):
        weight[channel, channel, middle, middle] = 1.0
        weight[channel, _COLOURS + channel, middle, middle] = -1.0


def _constant(bias: Any) -> None:
    bias[_CONSTANT] = 4.0


def _same(weight: Any) -> None:
    weight[:, :, 0, 0] = np.eye(len(weight))


def _certain(bias: Any) -> None:
    """Let the latents' deviation, whose logarithms are the second half, begin as exp(-2)."""
    bias[len(bias) // 2 :] = -4.0


PASSES = {
    "coder.conv_in.weight": _read, "coder.conv_in.bias": _constant, "shortcut.weight": _keep,
    "downsamplers.0.conv.weight": _shrink, "upsamplers.0.conv.weight": _keep,
    "coder.conv_out.weight": _join, "quant_conv.weight": _same, "encoder.conv_out.bias": _certain,
}  # fmt: skip
"""What is done to which weights, by the ends of their names."""
