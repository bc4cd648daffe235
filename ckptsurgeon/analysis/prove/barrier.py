"""The result of ``loss_barrier``: the losses of networks between two networks, and the height of the barrier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...util.notebook import InNotebooks
from ...util.text import escape
from .proof import ProvedNetwork

__all__ = ["BarrierPoint", "LossBarrier"]


@dataclass(frozen=True)
class BarrierPoint:
    """A network between two networks. Its weights are (1 - ``alpha``) * first + ``alpha`` * second.

    ``loss`` is its loss; it is infinite or NaN if the outputs are. ``above`` is the loss minus the linear interpolation
    of the losses of the two networks.
    """

    alpha: float
    loss: float
    above: float


@dataclass(frozen=True, repr=False)
class LossBarrier(InNotebooks):
    """The losses of networks on the line between two networks, ``points``, in ascending order of ``alpha``.

    ``inputs`` describes the inputs of all networks, and ``loss`` is the name of the loss. ``aligned`` is true if the
    second network was first permuted to match the first one.
    """

    first: ProvedNetwork
    second: ProvedNetwork
    inputs: str
    loss: str
    points: tuple[BarrierPoint, ...]
    aligned: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        names = f"{escape(self.first.path)} and {escape(self.second.path)}"
        return f"<LossBarrier {names}: {self.barrier:.3g} at alpha {self.alpha:g}>"

    @property
    def highest(self) -> BarrierPoint:
        """The point that is highest above the linear interpolation; if a loss is not finite, the point with it."""
        return max(self.points, key=lambda one: one.above if math.isfinite(one.above) else math.inf)

    @property
    def barrier(self) -> float:
        """The maximum of the loss minus the linear interpolation of the losses of both networks; 0 or more.

        Definition 1 of Entezari et al., https://arxiv.org/abs/2110.06296.
        """
        return self.highest.above

    @property
    def alpha(self) -> float:
        """The ``alpha`` at which the barrier was found."""
        return self.highest.alpha

    @property
    def highest_loss(self) -> BarrierPoint:
        """The point with the largest loss; if the loss at a point is not finite, this point."""
        return max(self.points, key=lambda one: one.loss if math.isfinite(one.loss) else math.inf)

    @property
    def above_mean(self) -> float:
        """The largest loss minus the mean of the losses of both networks; 0 or more.

        Definition 2.2 of Git Re-Basin (https://arxiv.org/abs/2209.04836), after Frankle et al.
        (https://arxiv.org/abs/1912.05671). It is equal to ``barrier`` if both networks have the same loss.
        """
        most = self.highest_loss.loss
        return most - (self.points[0].loss + self.points[-1].loss) / 2 if math.isfinite(most) else most

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data; numbers that are not finite are null."""
        return {
            "kind": "ckpt.barrier",
            "version": 1,
            "first": _network(self.first),
            "second": _network(self.second),
            "inputs": self.inputs,
            "loss": self.loss,
            "aligned": self.aligned,
            "barrier": _number(self.barrier),
            "alpha": self.alpha,
            "above_mean": _number(self.above_mean),
            "points": [
                {"alpha": one.alpha, "loss": _number(one.loss), "above": _number(one.above)} for one in self.points
            ],
            "notes": list(self.notes),
        }


def _network(one: ProvedNetwork) -> dict[str, Any]:
    return {"path": one.path, "network": one.kind, "parameters": one.parameters, "dtypes": list(one.dtypes)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
