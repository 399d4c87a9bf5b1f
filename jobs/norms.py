"""Owns the group norm of painting on CPU, where MindSpore's own kernel is slow.

MindSpore's takes 17 ns a number of one core, a quarter of a whole UNet call (measured, 2.7.2);
the same in reductions and multiplications takes less than half of that. Must not touch a device
that has a good kernel, nor a network that is trained: its numbers would change.
"""

from __future__ import annotations

import mindspore as ms
from mindone.diffusers.models.normalization import GroupNorm
from mindspore import Tensor, nn, ops


class Unrolled(GroupNorm):  # type: ignore[misc]
    """mindone's group norm (Wu & He 2018, arXiv 1803.08494, eqs. 1 and 2), in plain operators."""

    def construct(self, x: Tensor) -> Tensor:
        """Return [B, C, ...] of x's type for [B, C, ...]; computed in fp32."""
        batch, channels = x.shape[:2]
        groups, each = self.num_groups, channels // self.num_groups
        rows = x.astype(ms.float32).reshape(batch * groups, -1)
        mean = rows.mean(-1, True)
        centred = rows - mean
        spread = ops.rsqrt((centred * centred).mean(-1, True) + self.eps)
        # Weight and bias are a channel's, and go into one factor and one summand of it.
        factor = self.weight.astype(ms.float32).reshape(1, groups, each) * spread.reshape(
            batch, groups, 1
        )
        summand = self.bias.astype(ms.float32).reshape(1, groups, each) - factor * mean.reshape(
            batch, groups, 1
        )
        planes = x.astype(ms.float32).reshape(batch * channels, -1)
        out = planes * factor.reshape(-1, 1) + summand.reshape(-1, 1)
        return out.reshape(x.shape).astype(x.dtype)


def unroll(cell: nn.Cell) -> nn.Cell:
    """Make a network's group norms quick where they are slow; return it, with the same weights."""
    if ms.get_context("device_target") == "CPU":
        for _, child in cell.cells_and_names():
            if type(child) is GroupNorm and child.affine:
                child.__class__ = Unrolled
    return cell
