"""Owns the training losses: noisy latents and captions in, one number out, as graph cells.

Must not draw random numbers, read files or know the spec: what changes from step to step is an
argument, since Python values are baked into the graph.

B samples, h x w latent pixels, d width of the embeddings, p of the pooled one.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops


class NoiseLoss(nn.Cell):  # type: ignore[misc]
    """Weighted mean squared error of the UNet's prediction, fp32; captions are embeddings."""

    def __init__(self, unet: nn.Cell, kind: Any) -> None:
        super().__init__()
        self.unet = unet
        self.kind = kind

    def construct(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        time_ids: Tensor,
        target: Tensor,
        weight: Tensor,
        keep: Tensor,
        embeds: Tensor,
        pooled: Tensor,
    ) -> Tensor:
        """Return the mean over the samples of each one's weight times its mean squared error.

        Args:
            noisy: [B, 4, h, w].
            timesteps: [B].
            time_ids: [B, 6].
            target: [B, 4, h, w], what the UNet should predict.
            weight: [B].
            keep: [B], 1 where the caption is shown and 0 where it is dropped: SDXL's pipeline
                takes zeros for what an empty prompt means.
            embeds: [B, 77, d].
            pooled: [B, p].
        """
        shown = keep.reshape(-1, 1)
        conditions = {"text_embeds": (pooled * shown).astype(self.kind), "time_ids": time_ids}
        predicted = self.unet(
            noisy.astype(self.kind),
            timesteps,
            (embeds * shown.reshape(-1, 1, 1)).astype(self.kind),
            added_cond_kwargs=conditions,
        )[0]
        errors = ops.square(predicted.astype(ms.float32) - target)
        return ops.mean(weight.reshape(-1, 1, 1, 1) * errors)


class CaptionLoss(nn.Cell):  # type: ignore[misc]
    """The same with both text encoders in the graph; captions come as token ids."""

    def __init__(self, unet: nn.Cell, encoders: tuple[nn.Cell, nn.Cell], kind: Any) -> None:
        super().__init__()
        self.noise_loss = NoiseLoss(unet, kind)
        self.first, self.second = encoders

    def construct(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        time_ids: Tensor,
        target: Tensor,
        weight: Tensor,
        keep: Tensor,
        ids: Tensor,
        ids_2: Tensor,
    ) -> Tensor:
        """Return a scalar; ids, ids_2 [B, 77]."""
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids_2, output_hidden_states=True)
        embeds = ops.cat([one[-1][-2], two[-1][-2]], axis=-1)  # [B, 77, d1] + [B, 77, d2]
        return self.noise_loss(noisy, timesteps, time_ids, target, weight, keep, embeds, two[0])
