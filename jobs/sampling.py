"""Owns the way from noise to picture: two compiled graphs and the scheduler between them.

Must not read prompts or write files. The graphs are compiled at a fixed place in a program, the
UNet's first, then the VAE's (see graphs). B pictures, h x w latent pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

from jobs import lora, model
from jobs.draws import picture_noise

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Request:
    """One picture that is asked for; the noise depends on seed, line and image alone."""

    line: int
    image: int
    prompt: str
    negative: str | None
    seed: int


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
    ) -> Tensor:
        """Return the guided prediction [B, 4, h, w] fp32; embeds [2B, 77, d], negatives first."""
        twice = ops.cat([x, x]).astype(self.kind)  # [B, 4, h, w] -> [2B, 4, h, w]
        conditions = {"text_embeds": pooled.astype(self.kind), "time_ids": time_ids}
        out = self.unet(twice, timestep, embeds.astype(self.kind), added_cond_kwargs=conditions)[0]
        without, given = out.astype(ms.float32).chunk(2)
        return without + guidance * (given - without)


class Decode(nn.Cell):  # type: ignore[misc]
    """The VAE's decoder, fp32."""

    def __init__(self, vae: nn.Cell) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, z: Tensor) -> Tensor:
        """Return pictures [B, 3, H, W] in about -1..1 for latents [B, 4, h, w]."""
        return self.vae.decode(z)[0]


class Painter:
    """A loaded pipeline that paints batches of one shape."""

    def __init__(self, folder: Path, kind: Any, *, width: int, height: int, batch: int) -> None:
        vae = model.config(folder, "vae")
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.folder, self.batch = folder, batch
        self.shape = (int(vae["latent_channels"]), height // factor, width // factor)
        self.scaling = float(vae["scaling_factor"])
        self.encoders = model.load_text_encoders(folder, kind)
        self.unet = model.load_unet(folder, kind)
        self.denoise = Denoise(self.unet, kind)
        self.decode = Decode(model.load_vae(folder))
        self.zero_negative = bool(
            model.config(folder, "").get("force_zeros_for_empty_prompt", True)
        )
        ids = [height, width, 0, 0, height, width]
        self.time_ids = Tensor(np.asarray([ids] * (2 * batch), np.float32))
        self.pristine: dict[str, Floats] = {}

    def set_lora(self, weights: Mapping[str, Floats], factor: float) -> int:
        """Make this the one LoRA in the weights, in place; return the number of modules."""
        cells = {
            "unet": self.unet,
            "text_encoder": self.encoders.cells[0],
            "text_encoder_2": self.encoders.cells[1],
        }
        named = {
            f"{part}.{name}": parameter
            for part, cell in cells.items()
            for name, parameter in cell.parameters_and_names()
        }
        for name, value in self.pristine.items():
            named[name].set_data(Tensor(value).astype(named[name].dtype))
        touched = {
            f"{key.removesuffix('.lora_A.weight')}.weight" for key in weights if ".lora_A." in key
        }
        self.pristine = {n: named[n].astype(ms.float32).asnumpy() for n in touched if n in named}
        return lora.merge(cells, weights, factor)

    def set_unet(self, weights: Mapping[str, Floats]) -> None:
        """Replace the UNet's weights, in place."""
        for name, parameter in self.unet.parameters_and_names():
            parameter.set_data(Tensor(weights[f"unet.{name}"]).astype(parameter.dtype))

    def compile(self) -> None:
        """Compile both graphs, in their fixed order."""
        self._paint([Request(1, 0, "", None, 0)] * self.batch, steps=1, guidance=1.0)

    def paint(self, requests: Sequence[Request], *, steps: int, guidance: float) -> Floats:
        """Return pictures [len(requests), 3, H, W] in about -1..1.

        A short batch is filled up with its last request: a picture's bits depend on its place in
        a batch and on the batch's size, not on its neighbours (measured).
        """
        full = [*requests, *[requests[-1]] * (self.batch - len(requests))]
        return self._paint(full, steps=steps, guidance=guidance)[: len(requests)]

    def _paint(self, requests: Sequence[Request], *, steps: int, guidance: float) -> Floats:
        embeds, pooled = self._conditions(requests)
        scheduler = self._scheduler()
        scheduler.set_timesteps(steps)
        noise = np.stack([picture_noise(r.seed, r.line, r.image, self.shape) for r in requests])
        x = Tensor(noise) * scheduler.init_noise_sigma
        strength = Tensor(guidance, ms.float32)
        for time in scheduler.timesteps:
            step = Tensor(float(time), ms.float32)
            scaled = scheduler.scale_model_input(x, time).astype(ms.float32)
            predicted = self.denoise(scaled, step, embeds, pooled, self.time_ids, strength)
            x = scheduler.step(predicted, time, x)[0]
        decoded = self.decode(x.astype(ms.float32) / self.scaling)
        return np.asarray(decoded.asnumpy(), np.float32)

    def _conditions(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        given = [self.encoders.encode(request.prompt) for request in requests]
        without = []
        for request, (embeds, pooled) in zip(requests, given, strict=True):
            if request.negative is None and self.zero_negative:
                without.append((np.zeros_like(embeds), np.zeros_like(pooled)))
            else:
                without.append(self.encoders.encode(request.negative or ""))
        rows = without + given
        return Tensor(np.stack([e for e, _ in rows])), Tensor(np.stack([p for _, p in rows]))

    def _scheduler(self) -> Any:
        import mindone.diffusers as diffusers

        found = model.config(self.folder, "scheduler")
        return getattr(diffusers, found["_class_name"]).from_config(found)
