"""Owns the compiled training step: loss, gradient, all-reduce, clipping, AdamW, loss scale.

Must not draw random numbers, read files or know the spec: what changes from step to step is an
argument or a Parameter, since Python values are baked into the graph.

B samples, h x w latent pixels, d width of the embeddings, p of the pooled one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from numpy.typing import NDArray

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""AdamW's constants (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2; Kingma & Ba 2015,
arXiv 1412.6980, algorithm 1)."""
FIRST_SCALE, GROWTH_STEPS = 2.0**15, 2000.0
"""Dynamic loss scale: start, and good steps before it doubles (Micikevicius et al. 2018,
arXiv 1710.03740, section 3.2)."""


class NoiseLoss(nn.Cell):  # type: ignore[misc]
    """Mean squared error of the UNet's prediction, fp32; captions come as embeddings."""

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
        embeds: Tensor,
        pooled: Tensor,
    ) -> Tensor:
        """Return a scalar for noisy, target [B, 4, h, w]; time_ids [B, 6]; embeds [B, 77, d]."""
        conditions = {"text_embeds": pooled.astype(self.kind), "time_ids": time_ids}
        predicted = self.unet(
            noisy.astype(self.kind),
            timesteps,
            embeds.astype(self.kind),
            added_cond_kwargs=conditions,
        )[0]
        return ops.mean(ops.square(predicted.astype(ms.float32) - target))


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
        ids: Tensor,
        ids_2: Tensor,
    ) -> Tensor:
        """Return a scalar; ids, ids_2 [B, 77]."""
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids_2, output_hidden_states=True)
        embeds = ops.cat([one[-1][-2], two[-1][-2]], axis=-1)  # [B, 77, d1] + [B, 77, d2]
        return self.noise_loss(noisy, timesteps, time_ids, target, embeds, two[0])


_adamw = ops.MultitypeFuncGraph("adamw")


@_adamw.register(*("Tensor", "Number") + ("Tensor",) * 8)  # type: ignore[untyped-decorator]
def _adamw_one(
    lr: Tensor,
    weight_decay: float,
    shrink: Tensor,
    unbias1: Tensor,
    unbias2: Tensor,
    finite: Tensor,
    weight: Parameter,
    first: Parameter,
    second: Parameter,
    gradient: Tensor,
) -> Tensor:
    """Update one weight and its moments in place; a step that is not finite is left out."""
    gradient = gradient * shrink
    m = BETA1 * first + (1.0 - BETA1) * gradient
    v = BETA2 * second + (1.0 - BETA2) * ops.square(gradient)
    update = (m / unbias1) / (ops.sqrt(v / unbias2) + EPSILON)
    new = weight - lr * (update + weight_decay * weight)
    ops.assign(first, ops.select(finite, m, first))
    ops.assign(second, ops.select(finite, v, second))
    ops.assign(weight, ops.select(finite, new, weight))
    return finite


class TrainStep(nn.Cell):  # type: ignore[misc]
    """One optimiser step over all workers; weights, moments and loss scale are its Parameters."""

    def __init__(
        self,
        loss: nn.Cell,
        trained: Mapping[str, Parameter],
        *,
        workers: int,
        weight_decay: float,
        max_grad_norm: float,
        scaled: bool,
    ) -> None:
        super().__init__()
        # The top cell must own the network: a graph from the compile cache finds its weights in
        # the top cell's parameters, and computes on garbage where they are not (seen: NaN).
        self.loss = loss
        # MindSpore renames a Parameter whenever its cell is put into another; these names stay.
        self.names = tuple(trained)
        self.weights = ParameterTuple(trained.values())
        self.first = ParameterTuple([_zeros(p, f"adam_m.{n}") for n, p in trained.items()])
        self.second = ParameterTuple([_zeros(p, f"adam_v.{n}") for n, p in trained.items()])
        self.scaled = scaled
        self.scale = Parameter(
            Tensor(FIRST_SCALE if scaled else 1.0, ms.float32),
            name="loss_scale",
            requires_grad=False,
        )
        self.good = Parameter(Tensor(0.0, ms.float32), name="loss_scale_good", requires_grad=False)
        self.workers = workers
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM) if workers > 1 else ops.Identity()
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        # A Python loop with a branch in it exceeds the graph's call depth on a whole UNet (seen).
        self.hyper_map = ops.HyperMap()
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, self.weights)

    def scaled_loss(self, *inputs: Tensor) -> Tensor:
        """Return the loss times the loss scale."""
        return self.loss(*inputs) * self.scale

    def trained(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of the weights that are trained, by name."""
        return {name: p.asnumpy() for name, p in zip(self.names, self.weights, strict=True)}

    def state(self) -> dict[str, Parameter]:
        """Return every Parameter that a checkpoint must hold, by name."""
        found = {"loss_scale": self.scale, "loss_scale_good": self.good}
        rows = zip(self.names, self.weights, self.first, self.second, strict=True)
        for name, weight, first, second in rows:
            found |= {name: weight, f"adam_m.{name}": first, f"adam_v.{name}": second}
        return found

    def construct(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        time_ids: Tensor,
        target: Tensor,
        text: Tensor,
        text_2: Tensor,
        lr: Tensor,
        step: Tensor,
        stop: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do step number `step` (from 1); return mean loss, gradient norm before clipping, stops.

        `stop` is 1 on a worker that was asked to stop; the sum over the workers comes back, so
        that all of them stop after the same step.
        """
        value, gradients = self.value_and_grad(noisy, timesteps, time_ids, target, text, text_2)
        loss = self.all_reduce(value / self.scale) / self.workers
        stops = self.all_reduce(stop)
        share = self.scale * self.workers
        reduced: tuple[Tensor, ...] = ()
        total = Tensor(0.0, ms.float32)
        for gradient in gradients:
            mean = self.all_reduce(gradient.astype(ms.float32)) / share
            reduced = (*reduced, mean)
            total = total + ops.sum(ops.square(mean))
        norm = ops.sqrt(total)
        shrink = ops.minimum(self.max_grad_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
        finite = ops.isfinite(norm)
        unbias1 = 1.0 - ops.pow(Tensor(BETA1, ms.float32), step)
        unbias2 = 1.0 - ops.pow(Tensor(BETA2, ms.float32), step)
        update = ops.partial(_adamw, lr, self.weight_decay, shrink, unbias1, unbias2, finite)
        self.hyper_map(update, self.weights, self.first, self.second, reduced)
        if self.scaled:
            good = ops.select(finite, self.good + 1.0, ops.zeros_like(self.good))
            grow = good >= GROWTH_STEPS
            grown = ops.select(grow, self.scale * 2.0, self.scale)
            ops.assign(self.good, ops.select(grow, ops.zeros_like(good), good))
            ops.assign(
                self.scale,
                ops.select(finite, grown, ops.maximum(self.scale * 0.5, Tensor(1.0, ms.float32))),
            )
        return loss, norm, stops


def _zeros(parameter: Parameter, name: str) -> Parameter:
    value = Tensor(np.zeros(parameter.shape, np.float32))
    return Parameter(value, name=name, requires_grad=False)
