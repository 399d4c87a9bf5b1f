"""Owns the optimiser as graph cells: all-reduce, clipping, AdamW, the average, the loss scale.

Must not know the network or the spec: gradients come in, Parameters change in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from jobs.reduction import Reduction

FIRST_SCALE, GROWTH_STEPS = 2.0**15, 2000.0
"""Dynamic loss scale: start, and good steps before it doubles (Micikevicius et al. 2018,
arXiv 1710.03740, section 3.2)."""

LARGE = 2**16
"""Elements from which a gradient's squares are summed up on its own. A LoRA has hundreds of
smaller ones, for which a kernel each takes longer than its arithmetic (seen)."""

ROW = 1024
"""Elements of a row into which the small ones are put for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is baked into the optimiser's graph."""

    workers: int
    accumulate: int = 1
    """Batches per worker and step."""
    weight_decay: float
    max_grad_norm: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    scaled: bool
    """Whether the loss scale moves (fp16)."""
    average: bool = False
    """Whether a moving average of the weights is kept."""


_adamw = ops.MultitypeFuncGraph("adamw")
_average = ops.MultitypeFuncGraph("average")


@_adamw.register("Function", *("Tensor",) * 10)  # type: ignore[untyped-decorator]
def _adamw_one(
    kernel: Any,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    epsilon: Tensor,
    weight_decay: Tensor,
    shrink: Tensor,
    weight: Parameter,
    first: Parameter,
    second: Parameter,
    gradient: Tensor,
) -> Tensor:
    gradient = gradient.astype(ms.float32) * shrink
    return ops.depend(
        shrink, kernel(weight, first, second, lr, beta1, beta2, epsilon, weight_decay, gradient)
    )


_finite = ops.MultitypeFuncGraph("finite")


@_finite.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]
def _finite_one(finite: Tensor, gradient: Tensor) -> Tensor:
    """Put zeros in place of a gradient that is not finite: 0 times it would be NaN."""
    return ops.select(finite, gradient, ops.zeros_like(gradient))


@_average.register("Tensor", "Tensor", "Tensor")  # type: ignore[untyped-decorator]
def _average_one(decay: Tensor, average: Parameter, weight: Parameter) -> Tensor:
    """Move one weight's average towards it, in place.

    Source: Polyak & Juditsky 1992, in the exponential form of Song et al. 2021,
    arXiv 2011.13456, appendix H.1.
    """
    ops.assign(average, decay * average + (1.0 - decay) * weight)
    return decay


class Group(nn.Cell):  # type: ignore[misc]
    """Weights that share a learning rate, their moments and, where it is kept, their average."""

    def __init__(self, trained: Mapping[str, Parameter], options: Options) -> None:
        super().__init__()
        # MindSpore renames a Parameter whenever its cell is put into another; these names stay.
        self.names = tuple(trained)
        self.weights = ParameterTuple(trained.values())
        self.first = ParameterTuple([zeros(p, f"adam_m.{n}") for n, p in trained.items()])
        self.second = ParameterTuple([zeros(p, f"adam_v.{n}") for n, p in trained.items()])
        self.averaged = options.average
        if self.averaged:
            self.average = ParameterTuple([_copy(p, f"ema.{n}") for n, p in trained.items()])
        self.weight_decay, self.epsilon = options.weight_decay, options.epsilon
        self.beta1, self.beta2 = options.beta1, options.beta2
        # A Python loop with a branch in it exceeds the graph's call depth on a whole UNet (seen).
        self.hyper_map = ops.HyperMap()
        self.kernel = ops.AdamWeightDecay()

    def state(self) -> dict[str, Parameter]:
        """Return every Parameter that a checkpoint must hold, by name."""
        kinds = {"": self.weights, "adam_m.": self.first, "adam_v.": self.second}
        if self.averaged:
            kinds["ema."] = self.average
        return {
            f"{kind}{name}": parameter
            for kind, parameters in kinds.items()
            for name, parameter in zip(self.names, parameters, strict=True)
        }

    def construct(
        self,
        gradients: tuple[Tensor, ...],
        lr: Tensor,
        decay: Tensor,
        shrink: Tensor,
        unbias1: Tensor,
        unbias2: Tensor,
        finite: Tensor,
    ) -> Tensor:
        """Change the weights in place; `decay` is the average's.

        A step that is not finite is left out: no pace, moments kept, and gradients of 0 by then.

        Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2, with the bias correction
        of Kingma & Ba 2015, arXiv 1412.6980, algorithm 1, in the form at the end of its section 2
        (the kernel has none: rate and epsilon carry it; weight decay is freed of it again).
        """
        one = Tensor(1.0, ms.float32)
        root = ops.sqrt(unbias2)
        pace = lr * root / unbias1
        adamw = ops.partial(
            _adamw, self.kernel, ops.select(finite, pace, ops.zeros_like(pace)),
            ops.select(finite, one * self.beta1, one), ops.select(finite, one * self.beta2, one),
            self.epsilon * root, self.weight_decay * unbias1 / root, shrink,
        )  # fmt: skip
        self.hyper_map(adamw, self.weights, self.first, self.second, gradients)
        if self.averaged:
            self.hyper_map(ops.partial(_average, decay), self.average, self.weights)
        return finite


class Update(nn.Cell):  # type: ignore[misc]
    """The end of a step over all workers: from scaled gradients to new weights."""

    def __init__(
        self, trained: Mapping[str, Parameter], text: Mapping[str, Parameter], options: Options
    ) -> None:
        super().__init__()
        self.count = len(trained)
        self.main = Group(trained, options)
        self.with_text = bool(text)
        if text:
            self.text = Group(text, options)
        self.scaled = options.scaled
        self.scale = Parameter(
            Tensor(FIRST_SCALE if options.scaled else 1.0, ms.float32),
            name="loss_scale",
            requires_grad=False,
        )
        self.good = Parameter(Tensor(0.0, ms.float32), name="loss_scale_good", requires_grad=False)
        # Steps that moved the weights: those that the scale has left out do not count (the bias
        # correction would fall short of moments that have not moved either).
        self.moved = Parameter(Tensor(0.0, ms.float32), name="adam_steps", requires_grad=False)
        self.many = options.workers > 1
        shapes = [tuple(p.shape) for p in (*trained.values(), *text.values())]
        sizes = [math.prod(shape) for shape in shapes]
        if self.many:
            self.reduction = Reduction(shapes, 3)
        self.hyper_map = ops.HyperMap()
        self.small = [n for n, size in enumerate(sizes) if size < LARGE]
        self.large = [n for n, size in enumerate(sizes) if size >= LARGE]
        few = sum(sizes[n] for n in self.small)
        self.rows = few // ROW + 1
        self.filling = Tensor(np.zeros(self.rows * ROW - few, np.float32))
        self.share = float(options.workers * options.accumulate)
        self.max_grad_norm, self.beta1, self.beta2 = (
            options.max_grad_norm, options.beta1, options.beta2,
        )  # fmt: skip

    def groups(self) -> tuple[Group, ...]:
        """Return the groups of weights."""
        return (self.main, self.text) if self.with_text else (self.main,)

    def state(self) -> dict[str, Parameter]:
        """Return every Parameter that a checkpoint must hold, by name."""
        found = {"loss_scale": self.scale, "loss_scale_good": self.good}
        if self.scaled:
            found["adam_steps"] = self.moved
        for group in self.groups():
            found |= group.state()
        return found

    def construct(
        self,
        value: Tensor,
        gradients: tuple[Tensor, ...],
        lr: Tensor,
        text_lr: Tensor,
        decay: Tensor,
        step: Tensor,
        stop: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do optimiser step number `step` (from 1).

        Args:
            value: this worker's scaled loss, summed over its batches.
            gradients: the same of the gradients, in the order of the weights.
            lr: learning rate.
            text_lr: that of the second group.
            decay: of the average.
            step: fp32.
            stop: fp32 [2]: 1 on a worker that was asked to stop; 1 where the time is over.

        Returns:
            Mean loss, gradient norm before clipping, and the sum of `stop` over the workers, so
            that all of them stop after the same step.
        """
        share = self.scale * self.share
        if self.many:
            numbers, gradients = self.reduction(ops.cat((value.reshape(1), stop)), gradients)
            value, stop = numbers[0], numbers[1:]
        norm = self.norm(gradients) / share
        shrink = ops.minimum(self.max_grad_norm / (norm + 1e-6), Tensor(1.0, ms.float32)) / share
        finite = ops.isfinite(norm)
        if self.scaled:  # without a scale to halve, the run ends at such a step
            gradients = self.hyper_map(ops.partial(_finite, finite), gradients)
            shrink = ops.select(finite, shrink, ops.zeros_like(shrink))
            # At least 1: before the first move the correction would be a division by 0.
            moved = ops.select(finite, self.moved + 1.0, self.moved)
            ops.assign(self.moved, moved)
            step = ops.maximum(moved, Tensor(1.0, ms.float32))
        unbias1 = 1.0 - ops.pow(Tensor(self.beta1, ms.float32), step)
        unbias2 = 1.0 - ops.pow(Tensor(self.beta2, ms.float32), step)
        first, second = gradients[: self.count], gradients[self.count :]
        self.main(first, lr, decay, shrink, unbias1, unbias2, finite)
        if self.with_text:
            self.text(second, text_lr, decay, shrink, unbias1, unbias2, finite)
        if self.scaled:
            good = ops.select(finite, self.good + 1.0, ops.zeros_like(self.good))
            grow = good >= GROWTH_STEPS
            grown = ops.select(grow, self.scale * 2.0, self.scale)
            ops.assign(self.good, ops.select(grow, ops.zeros_like(good), good))
            ops.assign(
                self.scale,
                ops.select(finite, grown, ops.maximum(self.scale * 0.5, Tensor(1.0, ms.float32))),
            )
        return value / share, norm, stop

    def norm(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Return the norm of all gradients as one vector."""
        # Summed up by rows: of one long vector it takes four times as long on CPU (measured), and
        # the kernel for it (L2Loss) is off by 1 % at 8 million elements.
        rows: tuple[Tensor, ...] = ()
        flat: tuple[Tensor, ...] = (self.filling,)
        for place in self.large:
            rows = (*rows, squares(gradients[place], gradients[place].shape[0]))
        for place in self.small:
            flat = (*flat, gradients[place].astype(ms.float32).reshape(-1))
        return ops.sqrt(ops.sum(ops.concat((*rows, squares(ops.concat(flat), self.rows)))))


def squares(tensor: Tensor, rows: int) -> Tensor:
    """Return the sums of the squares of `rows` equal parts, fp32 [rows]."""
    return ops.sum(ops.square(tensor.astype(ms.float32)).reshape(rows, -1), 1)


def zeros(parameter: Parameter, name: str) -> Parameter:
    """Return an fp32 Parameter of the same shape that is not trained."""
    value = Tensor(np.zeros(parameter.shape, np.float32))
    return Parameter(value, name=name, requires_grad=False)


def _copy(parameter: Parameter, name: str) -> Parameter:
    value = Tensor(parameter.astype(ms.float32).asnumpy())
    return Parameter(value, name=name, requires_grad=False)
