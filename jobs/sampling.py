"""Owns the way from text and noise to picture: compiled graphs and the sampler between them.

Must not read prompts or write files. The graphs are compiled at a fixed place in a program (see
graphs): for each size the UNet's and the VAE's, then the text encoders'. B pictures, h x w latent
pixels.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from jobs import draws, lora, model, norms, schedules
from jobs.batches import Request as Request
from jobs.batches import Size
from jobs.cells import Decode, Denoise, Encode

Floats = NDArray[np.float32]
_Embedding = tuple[Floats, Floats]

REMEMBERED = 512
"""Prompts whose embeddings are kept: at SDXL's size 630 KB each."""


class Painter:
    """A loaded pipeline that paints batches of one number of pictures."""

    def __init__(self, folder: Path, kind: Any, *, width: int, height: int, batch: int) -> None:
        vae = model.config(folder, "vae")
        self.factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.folder, self.batch, self.size = folder, batch, (width, height)
        self.channels = int(vae["latent_channels"])
        self.scaling = float(vae["scaling_factor"])
        self.encoders = model.load_text_encoders(folder, kind)
        self.unet = norms.unroll(model.load_unet(folder, kind))
        first, second = self.encoders.cells
        self.cells = {"unet": self.unet, "text_encoder": first, "text_encoder_2": second}
        self.denoise = Denoise(self.unet, kind)
        self.decode = Decode(norms.unroll(model.load_vae(folder)))
        self.encode: Encode | None = None
        self.zero_negative = bool(
            model.config(folder, "").get("force_zeros_for_empty_prompt", True)
        )
        self.prediction: str | None = None
        """What the UNet predicts, where it was trained for something else than the model's own."""
        self.pristine: dict[str, Floats] = {}
        self.tables: dict[tuple[str | None, int], schedules.Schedule] = {}
        self.embeddings: dict[str, _Embedding] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        """Time spent so far, by part: text, denoise, decode."""
        self.step_seconds: dict[str, tuple[float, int]] = {}
        """Time spent so far in the steps of each scheduler, and their number."""

    def set_lora(self, weights: lora.Weights, factor: float, what: str = "lora") -> int:
        """Make this the one LoRA in the weights, in place; return the number of modules.

        Raises:
            BadSpec: it does not fit the model.
        """
        self.embeddings.clear()
        lora.restore(self.cells, self.pristine)
        self.pristine = lora.merge(self.cells, weights, factor, what)
        return len(self.pristine)

    def set_unet(self, weights: Mapping[str, Floats]) -> None:
        """Replace the UNet's weights, in place."""
        for name, parameter in self.unet.parameters_and_names():
            parameter.set_data(Tensor(weights[f"unet.{name}"]).astype(parameter.dtype))

    def compile(self, sizes: Sequence[Size] = (), *, texts: bool = False) -> None:
        """Compile the graphs, in a fixed order.

        Args:
            sizes: those to be painted; none means the painter's.
            texts: whether there are enough texts to compile the encoders for: without, each new
                one takes ten times as long.
        """
        for size in sizes or (self.size,):
            x = np.zeros((self.batch, *self._shape(size)), np.float32)
            conditions = self._conditions([Request(1, 0, "", None, 0)] * self.batch)
            self._predict(x, 0.0, (*conditions, *self._settings(size, [0.0] * self.batch, [])))
            self._decoded(x)
        if texts:
            self.encode = Encode(self.encoders.cells)
            self.embeddings.clear()
            self._embedding("")
        self.seconds.clear()

    def paint(
        self,
        requests: Sequence[Request | None],
        *,
        steps: int,
        guidance: float | None = None,
        scheduler: str | None = None,
        size: Size | None = None,
    ) -> Floats:
        """Return pictures [len(requests), 3, H, W] in about -1..1; see `sample`."""
        latents = self.sample(
            requests, steps=steps, guidance=guidance, scheduler=scheduler, size=size
        )
        with _timed(self.seconds, "decode"):
            return self._decoded(latents)[: len(requests)]

    def sample(
        self,
        requests: Sequence[Request | None],
        *,
        steps: int,
        guidance: float | None = None,
        scheduler: str | None = None,
        size: Size | None = None,
    ) -> Floats:
        """Return the latents of a whole batch, [B, 4, h, w].

        Holes and the end of a short batch are filled up with the first request: a picture's bits
        depend on its place in a batch and on the batch's size, not on its neighbours (measured).

        Args:
            requests: at most a batch; None is a hole, whose picture means nothing.
            steps: denoising steps.
            guidance: of all of them; none means each request's own.
            scheduler: see schedules; none means the model's own.
            size: width and height in pixels; none means the painter's.
        """
        size = size or self.size
        filler = next(request for request in requests if request is not None)
        full = [request or filler for request in requests]
        full += [filler] * (self.batch - len(full))
        scales = [r.guidance if guidance is None else guidance for r in full]
        rescales = [r.rescale for r in full]
        with _timed(self.seconds, "text"):
            conditions = (*self._conditions(full), *self._settings(size, scales, rescales))
        table = self.table(scheduler, steps)
        shape = self._shape(size)
        noise = np.stack([draws.picture_noise(r.seed, r.line, r.image, shape) for r in full])
        began = time.monotonic()
        latents = table.run(
            noise,
            lambda x, moment: self._predict(x, moment, conditions),
            lambda step: np.stack([step_noise(r, step, shape) for r in full]),
        )
        self._count(table, time.monotonic() - began)
        return latents

    def cuts(self, text: str) -> bool:
        """Say whether a text has more tokens, marks included, than the encoders read."""
        return any(
            len(tokenizer(text, verbose=False).input_ids) > model.TOKENS
            for tokenizer in self.encoders.tokenizers
        )

    def table(self, scheduler: str | None, steps: int) -> schedules.Schedule:
        """Return a sampler's table; it is read off mindone's scheduler once.

        Raises:
            BadSpec: the model's configuration and the scheduler do not fit.
        """
        key = (scheduler, steps)
        if key not in self.tables:
            found = model.config(self.folder, "scheduler")
            if self.prediction:
                found["prediction_type"] = self.prediction
            self.tables[key] = schedules.table(scheduler, found, steps)
        return self.tables[key]

    def _count(self, table: schedules.Schedule, seconds: float) -> None:
        self.seconds["denoise"] += seconds
        before, steps = self.step_seconds.get(table.name, (0.0, 0))
        self.step_seconds[table.name] = (before + seconds, steps + len(table.steps))

    def _shape(self, size: Size) -> tuple[int, int, int]:
        return self.channels, size[1] // self.factor, size[0] // self.factor

    def _settings(
        self, size: Size, guidance: Sequence[float], rescale: Sequence[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        width, height = size
        ids = np.asarray([[height, width, 0, 0, height, width]] * (2 * self.batch), np.float32)
        columns = (
            np.asarray(values or [0.0] * self.batch, np.float32).reshape(-1, 1, 1, 1)
            for values in (guidance, rescale)
        )
        return (Tensor(ids), *map(Tensor, columns))

    def _predict(self, x: Floats, moment: float, conditions: tuple[Tensor, ...]) -> Floats:
        out = self.denoise(Tensor(x), Tensor(moment, ms.float32), *conditions)
        return np.asarray(out.asnumpy(), np.float32)

    def _decoded(self, latents: Floats) -> Floats:
        decoded = self.decode(Tensor(latents / np.float32(self.scaling)))
        return np.asarray(decoded.asnumpy(), np.float32)

    def _conditions(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        given = [self._embedding(request.prompt) for request in requests]
        without = []
        for request, (embeds, pooled) in zip(requests, given, strict=True):
            if request.negative is None and self.zero_negative:
                without.append((np.zeros_like(embeds), np.zeros_like(pooled)))
            else:
                without.append(self._embedding(request.negative or ""))
        rows = without + given
        return Tensor(np.stack([e for e, _ in rows])), Tensor(np.stack([p for _, p in rows]))

    def _embedding(self, text: str) -> _Embedding:
        """Return a text's embeddings; the newest ones are kept."""
        found = self.embeddings.pop(text, None) or self._encoded(text)
        self.embeddings[text] = found  # behind the others: what was not used for long goes first
        if len(self.embeddings) > REMEMBERED:
            del self.embeddings[next(iter(self.embeddings))]
        return found

    def _encoded(self, text: str) -> _Embedding:
        if self.encode is None:
            return self.encoders.encode(text)
        embeds, pooled = self.encode(*(Tensor(row[None]) for row in self.encoders.tokens(text)))
        return embeds.asnumpy()[0], pooled.asnumpy()[0]


def step_noise(request: Request, step: int, shape: tuple[int, ...]) -> Floats:
    """Return what a sampler adds to a picture after a step (from 0), fp32.

    The first noise's own stream has 0 at the third place (draws.picture_noise).
    """
    place = (request.line, request.image, step + 1)
    return draws.generator(request.seed, draws.PICTURE, *place).standard_normal(shape, np.float32)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[part] += time.monotonic() - began
