"""Owns the weights that a part is trained from: seeded, and small at the end of each branch."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from jobs.tiny import pipeline

LAST = (
    "conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight", "conv_out.weight",
    "out_proj.weight", "fc2.weight",
)  # fmt: skip
"""The last matrix of each residual branch, and of the whole."""
DAMPED = 0.1


def begin(cell: Any, seed: int) -> None:
    """Set every weight from one generator, so that blocks begin close to the identity.

    Source: Zhang et al. 2019, arXiv 1901.09321, section 3 (branches that begin at zero); a tenth
    instead of zero keeps all gradients alive from the first step.
    """
    pipeline.fill(cell, seed)
    for name, parameter in cell.parameters_and_names():
        if name.endswith(LAST):
            parameter.set_data(Tensor(parameter.asnumpy() * DAMPED))
