"""Owns the cells that painting compiles: text encoders, guided UNet, VAE's decoder.

Must not draw, step or load. B pictures, h x w latent pixels.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops


class Denoise(nn.Cell):  # type: ignore[misc]
    """The UNet with classifier-free guidance (Ho & Salimans, arXiv 2207.12598, eq. 6)."""

    def __init__(self, unet: nn.Cell, kind: Any) -> None:
        super().__init__()
        self.unet = unet
        self.kind = kind

    def construct(
        self,
        x: Tensor,
        timestep: Tensor,
        embeds: Tensor,
        pooled: Tensor,
        time_ids: Tensor,
        guidance: Tensor,
        rescale: Tensor,
    ) -> Tensor:
        """Return the guided prediction [B, 4, h, w] fp32; embeds [2B, 77, d], negatives first.

        `guidance` and `rescale` are [B, 1, 1, 1]. The guided prediction's spread over a picture
        is brought back to that of the prediction for the prompt alone, mixed by `rescale` (Lin et
        al. 2023, arXiv 2305.08891, section 3.4, eqs. 15 and 16).
        """
        twice = ops.cat([x, x]).astype(self.kind)  # [B, 4, h, w] -> [2B, 4, h, w]
        conditions = {"text_embeds": pooled.astype(self.kind), "time_ids": time_ids}
        out = self.unet(twice, timestep, embeds.astype(self.kind), added_cond_kwargs=conditions)[0]
        without, given = out.astype(ms.float32).chunk(2)
        guided = without + guidance * (given - without)
        # The ratio of variances, and 1e-12 in it, so that a constant prediction stays a number.
        ratio = ops.sqrt((_variance(given) + 1e-12) / (_variance(guided) + 1e-12))
        return guided * (1.0 + rescale * (ratio - 1.0))


def _variance(x: Tensor) -> Tensor:
    """Return the variance over everything but the batch, [B, 1, 1, 1]."""
    centred = x - x.mean((1, 2, 3), True)
    return (centred * centred).mean((1, 2, 3), True)


class Decode(nn.Cell):  # type: ignore[misc]
    """The VAE's decoder, fp32."""

    def __init__(self, vae: nn.Cell) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, z: Tensor) -> Tensor:
        """Return pictures [B, 3, H, W] in about -1..1 for latents [B, 4, h, w]."""
        return self.vae.decode(z)[0]


class Encode(nn.Cell):  # type: ignore[misc]
    """Both text encoders, as jobs.model.TextEncoders runs them operation by operation."""

    def __init__(self, cells: tuple[nn.Cell, nn.Cell]) -> None:
        super().__init__()
        self.first, self.second = cells

    def construct(self, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [1, 77, d] and pooled embedding [1, p] for token ids [1, 77], fp32."""
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids_2, output_hidden_states=True)
        # SDXL reads the last but one layer (Podell et al. 2023, arXiv 2307.01952, section 2.1).
        embeds = ops.cat([one[-1][-2], two[-1][-2]], -1)
        return embeds.astype(ms.float32), two[0].astype(ms.float32)
