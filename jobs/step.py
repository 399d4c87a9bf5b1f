"""Owns the compiled training step: one graph, or, where gradients are summed up, two.

Must not draw random numbers, read files or know the spec: what changes from step to step is an
argument or a Parameter, since Python values are baked into the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from numpy.typing import NDArray

from jobs.update import Options, Update, zeros

_add = ops.MultitypeFuncGraph("add_up")


@_add.register("Tensor", "Tensor", "Tensor")  # type: ignore[untyped-decorator]
def _add_one(anew: Tensor, total: Parameter, gradient: Tensor) -> Tensor:
    """Add one gradient to its sum in place, or begin the sum with it."""
    gradient = gradient.astype(ms.float32)
    # Selected, not multiplied by 0: the sum of a step that overflowed is not finite.
    ops.assign(total, ops.select(anew, gradient, total + gradient))
    return anew


def _unpacked(scalars: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Take apart what `Scalars.packed` put together: each argument of a graph costs over 1 ms."""
    return scalars[0], scalars[1], scalars[2], scalars[3], scalars[4:6]


def _packed(outcome: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return loss, norm and the two counts in one tensor, [4] fp32: one copy to the host."""
    loss, norm, stops = outcome
    return ops.cat((loss.reshape(1), norm.reshape(1), stops))


class Gradient(nn.Cell):  # type: ignore[misc]
    """The scaled loss and its gradient."""

    def __init__(self, loss: nn.Cell, update: Update) -> None:
        super().__init__()
        # The top cell must own the network: a graph from the compile cache finds its weights in
        # the top cell's parameters, and computes on garbage where they are not (seen: NaN).
        self.loss = loss
        self.scale = update.scale
        self.weights = ParameterTuple([p for group in update.groups() for p in group.weights])
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, self.weights)

    def scaled_loss(self, *inputs: Tensor) -> Tensor:
        """Return the loss times the loss scale."""
        return self.loss(*inputs) * self.scale


class Whole(Gradient):
    """A step of one batch: gradient and update in one graph."""

    def __init__(self, loss: nn.Cell, update: Update) -> None:
        super().__init__(loss, update)
        self.update = update

    def construct(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        time_ids: Tensor,
        target: Tensor,
        weight: Tensor,
        keep: Tensor,
        text: Tensor,
        text_2: Tensor,
        scalars: Tensor,
    ) -> Tensor:
        """Return what `Update` does, packed; the first eight are the loss's."""
        value, gradients = self.value_and_grad(
            noisy, timesteps, time_ids, target, weight, keep, text, text_2
        )
        lr, text_lr, decay, step, stop = _unpacked(scalars)
        return _packed(self.update(value, gradients, lr, text_lr, decay, step, stop))


class Sums(Gradient):
    """The first part of a step of several batches: gradients are summed up, in fp32."""

    def __init__(self, loss: nn.Cell, update: Update) -> None:
        super().__init__(loss, update)
        names = [name for group in update.groups() for name in group.names]
        rows = zip(names, self.weights, strict=True)
        self.sums = ParameterTuple([zeros(p, f"sum.{name}") for name, p in rows])
        self.total = Parameter(Tensor(0.0, ms.float32), name="sum_of_losses", requires_grad=False)
        self.hyper_map = ops.HyperMap()

    def construct(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        time_ids: Tensor,
        target: Tensor,
        weight: Tensor,
        keep: Tensor,
        text: Tensor,
        text_2: Tensor,
        anew: Tensor,
    ) -> Tensor:
        """Add the loss's gradient to the sums; `anew` (bool) begins them."""
        value, gradients = self.value_and_grad(
            noisy, timesteps, time_ids, target, weight, keep, text, text_2
        )
        self.hyper_map(ops.partial(_add, anew), self.sums, gradients)
        ops.assign(self.total, ops.select(anew, value, self.total + value))
        return value


class Finish(nn.Cell):  # type: ignore[misc]
    """The second part: from the sums to new weights."""

    def __init__(self, sums: Sums, update: Update) -> None:
        super().__init__()
        self.sums, self.total = sums.sums, sums.total
        self.update = update

    def construct(self, scalars: Tensor) -> Tensor:
        """Return what `Update` does, packed."""
        lr, text_lr, decay, step, stop = _unpacked(scalars)
        return _packed(self.update(self.total, self.sums, lr, text_lr, decay, step, stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """What a step takes beside its samples."""

    number: int
    """Of the step, from 1."""
    lr: float
    text_lr: float
    decay: float = 0.0
    """Of the average."""
    stop: bool = False
    """This worker was asked to stop."""
    late: bool = False
    """The time is over."""

    def packed(self) -> Tensor:
        """Return them as the graph takes them, [6] fp32."""
        row = (self.lr, self.text_lr, self.decay, self.number, self.stop, self.late)
        return Tensor(np.asarray(row, np.float32))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step says, over all workers."""

    loss: float
    grad_norm: float
    """Before clipping."""
    stops: int
    """Workers that were asked to stop."""
    late: int
    """Workers that saw the time over."""
    scale: float
    """Loss scale of this step; an overflow has halved it for the next one."""


class TrainStep:
    """One optimiser step over all workers; weights, moments and loss scale are its Parameters."""

    def __init__(
        self,
        loss: nn.Cell,
        trained: Mapping[str, Parameter],
        options: Options,
        text: Mapping[str, Parameter] | None = None,
    ) -> None:
        self.update = Update(trained, text or {}, options)
        self.averaged = options.average
        self.scaled = options.scaled
        self.accumulate = options.accumulate
        if options.accumulate == 1:
            self.whole = Whole(loss, self.update)
        else:
            self.sums = Sums(loss, self.update)
            self.finish = Finish(self.sums, self.update)

    def __call__(self, batches: Iterable[tuple[Tensor, ...]], scalars: Scalars) -> Outcome:
        """Do a step with `accumulate` batches, each as the loss takes it.

        They are taken one by one: a batch may set what its graph reads just before (dropout).
        """
        # To read a Parameter is to wait for the device.
        last, scale = scalars.packed(), self.scale() if self.scaled else 1.0
        found: Any = None
        for place, batch in enumerate(batches):
            if self.accumulate == 1:
                found = self.whole(*batch, last)
            else:
                self.sums(*batch, Tensor(place == 0))
        if self.accumulate > 1:
            found = self.finish(last)
        loss, norm, stops, late = found.asnumpy().tolist()
        return Outcome(loss, norm, round(stops), round(late), scale)

    def scale(self) -> float:
        """Return the loss scale."""
        return float(self.update.scale.asnumpy())

    def count(self) -> int:
        """Return the number of Parameters that are trained."""
        return sum(len(group.names) for group in self.update.groups())

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return what is trained, by name: the average of it where one is kept.

        Valid until the next step: on CPU the arrays are the Parameters' own memory.
        """
        return {
            name: p.asnumpy()
            for group in self.update.groups()
            for name, p in zip(
                group.names, group.average if self.averaged else group.weights, strict=True
            )
        }

    def state(self) -> dict[str, Parameter]:
        """Return every Parameter that a checkpoint must hold, by name.

        The sums are none: a step begins them anew, and a checkpoint lies between two steps.
        """
        return self.update.state()
