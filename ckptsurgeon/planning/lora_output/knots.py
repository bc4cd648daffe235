"""Modules whose factors are made by KnOTS from those of several adapters (https://arxiv.org/abs/2410.19735)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ...errors import ConfigError
from ...util.text import count, listing
from ..plan.compute import KNOTS, Factor
from .modules import FactorSource, NewModule

__all__ = ["METHODS", "Knots", "knots_of"]

METHODS = ("sum", "knots")
"""How adapters are joined into one: by their weighted sum, or by KnOTS with TIES."""

DENSITY = 0.2
"""The share of values that TIES keeps; that of the merge method ``knots_ties``."""


@dataclass(frozen=True)
class Knots:
    """The parameters of KnOTS: the share of values that are kept, and the largest rank (None: the sum of all ranks)."""

    density: float = DENSITY
    rank: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``lora_concat`` that these parameters are."""
        return {
            "method": "knots", "density": self.density, **({"rank": self.rank} if self.rank is not None else {})
        }  # fmt: skip

    def made(self, module: NewModule) -> NewModule:
        """Return a module whose factors are made by KnOTS, in place of those of ``module``, which are side by side."""
        firsts, seconds = module.a.inputs, module.b.inputs
        inputs = tuple(one for pair in zip(firsts, seconds, strict=True) for one in pair)
        most = min(module.rank, seconds[0].shape[0], prod(firsts[0].shape[1:]))
        rank = min(self.rank or most, most)
        weights = module.b.weights or (1.0,) * len(firsts)
        a, b = (
            FactorSource(inputs, side.dtype, factor=Factor(part, rank, of=KNOTS, weights=weights, density=self.density))
            for part, side in (("A", module.a), ("B", module.b))
        )
        return replace(module, rank=rank, a=a, b=b)

    def notes(self, modules: Sequence[NewModule], adapters: int) -> Iterator[str]:
        """Yield a note on modules that only some of the adapters have: each has a vote in its own modules alone."""
        fewer = [one.name for one in modules if len(one.a.inputs) < 2 * adapters]
        if fewer and adapters > 1:
            yield (
                f"{count(len(fewer), 'module')} merged from the adapters that have it, fewer than {adapters}: "
                f"{listing(fewer, where='')}"
            )


def knots_of(method: str, density: float | None, rank: int | None) -> Knots | None:
    """Return the parameters of KnOTS, None for the sum; raises ConfigError for an unknown method or invalid values."""
    if method not in METHODS:
        raise ConfigError(f"--method {method} is unknown.", hint=f"Use {' or '.join(METHODS)}.")
    if method == "sum":
        given = "--density" if density is not None else "--rank" if rank is not None else ""
        if given:
            raise ConfigError(
                f"{given} is for --method knots; the sum of the adapters has no such parameter.",
                hint="Add --method knots, or give the result a smaller rank with ckpt lora resize.",
            )
        return None
    if density is not None and not 0 < density <= 1:
        raise ConfigError(f"--density {density} is not a number above 0 and up to 1.", hint="Use a number such as 0.2.")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank} is not a valid rank.", hint="Use a whole number of 1 or more.")
    return Knots(DENSITY if density is None else density, rank)
