"""The result of ``prove``: how far two networks are apart after each block, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ...util.notebook import InNotebooks
from ...util.text import count, escape
from .figures import Distance, Prediction

__all__ = ["DIFFERENT", "EQUIVALENT", "SAME", "BlockResult", "ChangedTensor", "Proof", "ProvedNetwork"]

SAME, EQUIVALENT, DIFFERENT = "SAME", "EQUIVALENT", "DIFFERENT"


@dataclass(frozen=True)
class ProvedNetwork:
    """One of the two networks: its ``path``, the ``kind`` of network, its parameters, and the dtypes of its weights."""

    path: str
    kind: str
    parameters: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class BlockResult:
    """The outputs of a block in both networks: their ``distance``, and the ``allowed`` error.

    The allowed error is what rounding of the weights may cause; NaN if it was not computed, because nothing differs.
    ``call`` counts the calls of a block that runs several times, ``part`` the tensors in an output, both from 0.
    """

    name: str
    call: int
    distance: Distance
    allowed: float = math.nan
    part: int = 0

    @property
    def drifts(self) -> bool:
        """Whether the outputs are farther apart than rounding of the weights explains."""
        return not self.distance.same and not (math.isfinite(self.allowed) and self.distance.error <= self.allowed)


@dataclass(frozen=True)
class ChangedTensor:
    """A tensor whose values differ: by ``error``, as a share of the first's norm; ``block`` is where it is used."""

    key: str
    block: str
    error: float


@dataclass(frozen=True, repr=False)
class Proof(InNotebooks):
    """What two networks compute of the same inputs.

    ``blocks`` are in the order in which they ran. ``output`` is the output of the whole network, ``prediction`` is
    given if that is logits. ``changed`` has the tensors of the first block that drifts whose values differ, and
    ``differing`` is the number of tensors that differ in all. ``unused`` are tensors that no block used, and those of
    them that differ are in ``unused_differing``.
    """

    first: ProvedNetwork
    second: ProvedNetwork
    inputs: str
    blocks: tuple[BlockResult, ...]
    output: BlockResult
    prediction: Prediction | None = None
    changed: tuple[ChangedTensor, ...] = ()
    differing: int = 0
    unused: tuple[str, ...] = ()
    unused_differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        names = f"{escape(self.first.path)} and {escape(self.second.path)}"
        return f"<Proof {names}: {self.verdict}, {count(len(self.blocks), 'block')}>"

    @property
    def verdict(self) -> str:
        """SAME if all outputs agree bit for bit, EQUIVALENT if rounding explains how far the output is, else DIFFERENT.

        Weights that the inputs did not reach, and that differ by more than rounding explains, make it DIFFERENT:
        nothing is known of what they do.
        """
        if self.unused_differing or self.drift is not None:
            return DIFFERENT
        return SAME if all(one.distance.same for one in (*self.blocks, self.output)) else EQUIVALENT

    @property
    def drift(self) -> BlockResult | None:
        """The first block whose outputs are farther apart than rounding explains; None if the output does not drift.

        Blocks may differ without effect on the output: if one scales what the next one scales back, say.
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
            "changed": [{"key": one.key, "block": one.block, "error": _number(one.error)} for one in self.changed],
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


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
