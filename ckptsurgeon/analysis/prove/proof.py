"""The result of ``prove``: the difference of two networks' outputs after each block, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ...util.notebook import InNotebooks
from ...util.text import count, escape
from .figures import Distance, Prediction

__all__ = ["DIFFERENT", "EQUIVALENT", "SAME", "BlockResult", "ChangedTensor", "MovedExpert", "Proof", "ProvedNetwork"]

SAME, EQUIVALENT, DIFFERENT = "SAME", "EQUIVALENT", "DIFFERENT"


@dataclass(frozen=True)
class ProvedNetwork:
    """One of the two networks.

    ``path`` is its checkpoint, ``kind`` the class of the network, ``parameters`` the number of its parameters, and
    ``dtypes`` are the dtypes of its weights.
    """

    path: str
    kind: str
    parameters: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class BlockResult:
    """The comparison of one output tensor of a block in both networks.

    ``distance`` is the measured difference. ``allowed`` is the largest error that rounding of the weights may cause;
    NaN if it was not computed, because nothing differs. ``call`` is the index of the call if the block is called
    several times; ``part`` is the index of the tensor if an output consists of several tensors. ``name`` is '' for the
    whole network.
    """

    name: str
    call: int
    distance: Distance
    allowed: float = math.nan
    part: int = 0

    @property
    def drifts(self) -> bool:
        """True if the outputs differ by more than rounding of the weights explains."""
        return not self.distance.same and not (math.isfinite(self.allowed) and self.distance.error <= self.allowed)


@dataclass(frozen=True)
class MovedExpert:
    """An expert of the second network whose weights differ from the expert with the same ``index`` in the first.

    ``equals`` is the index of the first network's expert with the same weights; None if there is none.
    """

    index: int
    equals: int | None = None


@dataclass(frozen=True)
class ChangedTensor:
    """A weight whose values differ. ``error`` is the norm of the difference divided by the norm of the first weight.

    ``error`` is NaN if values are NaN or infinite in only one of the two. ``block`` is the name of the block that uses
    the weight. ``equals`` is the key of another weight of the first
    network that has the values of this weight in the second one; '' if there is none. ``order`` is "transposed" if the
    second weight is the first one transposed, "rows" or "columns" if it has the rows or columns of the first weight in
    another order; '' otherwise. ``shapes`` are its shapes in both networks if they differ; then ``error`` is infinite.
    ``experts`` are the experts that differ, if the weight has a slice for each expert of a layer.
    """

    key: str
    block: str
    error: float
    equals: str = ""
    order: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    experts: tuple[MovedExpert, ...] = ()


@dataclass(frozen=True, repr=False)
class Proof(InNotebooks):
    """The comparison of the outputs of two networks for the same inputs.

    ``blocks`` are in the order in which the blocks finished. ``output`` compares the output of the whole network;
    ``prediction`` is set if that output is logits. A block drifts if its outputs differ by more than rounding explains.
    ``changed`` lists the differing weights of the first block that drifts. ``changed_elsewhere`` lists weights of the
    rest of the network that differ in their shapes, or by more than rounding explains. ``differing`` is the number of
    differing weights in the whole network. ``unused`` are the weights that no block used. ``unused_differing`` are
    weights that differ by more than rounding explains and that had no effect on the outputs with these inputs; if no
    output drifts, ``changed`` lists the first 16 of them, with ``block`` ''.
    """

    first: ProvedNetwork
    second: ProvedNetwork
    inputs: str
    blocks: tuple[BlockResult, ...]
    output: BlockResult
    prediction: Prediction | None = None
    changed: tuple[ChangedTensor, ...] = ()
    changed_elsewhere: tuple[str, ...] = ()
    differing: int = 0
    unused: tuple[str, ...] = ()
    unused_differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        names = f"{escape(self.first.path)} and {escape(self.second.path)}"
        return f"<Proof {names}: {self.verdict}, {count(len(self.blocks), 'block')}>"

    @property
    def verdict(self) -> str:
        """SAME if all outputs agree bit for bit, EQUIVALENT if rounding explains the differences, else DIFFERENT.

        The verdict is also DIFFERENT if ``unused_differing`` is not empty, because the effect of these weights with
        other inputs is unknown.
        """
        if self.unused_differing or self.drift is not None:
            return DIFFERENT
        return SAME if all(one.distance.same for one in (*self.blocks, self.output)) else EQUIVALENT

    @property
    def drift(self) -> BlockResult | None:
        """The first block that drifts: its outputs differ by more than rounding explains.

        None if the output of the whole network does not drift. Blocks may differ without effect on that output, for
        example if one block multiplies by a factor and the next divides by it.
        """
        every = (*self.blocks, self.output)
        if not any(one.drifts for one in every if not one.name):
            return None
        return next(one for one in every if one.drifts)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data; numbers that are not finite are null."""
        drift, seen = self.drift, self.prediction
        return {
            "kind": "ckpt.prove",
            "version": 1,
            "verdict": self.verdict,
            "first": _network(self.first),
            "second": _network(self.second),
            "inputs": self.inputs,
            "drift": drift.name if drift is not None else None,
            "output": _block(self.output),
            "prediction": None
            if seen is None
            else {"divergence": _number(seen.divergence), "agreement": _number(seen.agreement), "places": seen.places},
            "blocks": [_block(one) for one in self.blocks],
            "changed": [_changed(one) for one in self.changed],
            "changed_elsewhere": list(self.changed_elsewhere),
            "differing": self.differing,
            "unused": list(self.unused),
            "unused_differing": list(self.unused_differing),
            "notes": list(self.notes),
        }


def _network(one: ProvedNetwork) -> dict[str, Any]:
    return {"path": one.path, "network": one.kind, "parameters": one.parameters, "dtypes": list(one.dtypes)}


def _block(one: BlockResult) -> dict[str, Any]:
    found = one.distance
    return {
        "block": one.name,
        "call": one.call,
        "part": one.part,
        "error": _number(found.error),
        "allowed": _number(one.allowed),
        "cosine": _number(found.cosine),
        "largest": _number(found.largest),
        "same": found.same,
        "drifts": one.drifts,
    }


def _changed(one: ChangedTensor) -> dict[str, Any]:
    return {
        "key": one.key,
        "block": one.block,
        "error": _number(one.error),
        "equals": one.equals or None,
        "order": one.order or None,
        "shapes": [list(shape) for shape in one.shapes],
        "experts": [{"expert": moved.index, "equals": moved.equals} for moved in one.experts],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
