"""Modules whose factors KnOTS makes from the factors of several adapters (https://arxiv.org/abs/2410.19735)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ...errors import ConfigError
from ...methods.lora.knots_merges import DARE_TIES, MERGES, SUM, TIES
from ...util.text import count, listing, percent_number
from ..plan.compute import KNOTS, Factor
from .modules import FactorSource, NewModule

__all__ = ["METHODS", "Knots", "knots_of"]

METHODS = ("sum", "knots")
"""How adapters are joined into one: by their weighted sum, or by KnOTS."""

DENSITIES = {SUM: 1.0, TIES: 0.2, DARE_TIES: 0.5}
"""{merge in the shared basis: its default share of kept values}; TIES has the default of ``knots_ties``."""


@dataclass(frozen=True)
class Knots:
    """The parameters of KnOTS: how it merges in the shared basis, the share of values that are kept, and the rank.

    ``rank`` is the largest rank of the result; None for the sum of all ranks. ``seed`` is for the values that DARE
    keeps.
    """

    merge: str = TIES
    density: float = DENSITIES[TIES]
    rank: int | None = None
    seed: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """The parameters of KnOTS that have an effect, as arguments of ``lora_concat``."""
        return {
            "method": "knots",
            **({"merge": self.merge} if self.merge != TIES else {}),
            **({"density": self.density} if self.merge != SUM else {}),
            **({"rank": self.rank} if self.rank is not None else {}),
            **({"seed": self.seed} if self.merge == DARE_TIES else {}),
        }

    def made(self, module: NewModule) -> NewModule:
        """Return ``module`` with other factors: KnOTS computes them from those that ``module`` would concatenate."""
        firsts, seconds = module.a.inputs, module.b.inputs
        inputs = tuple(one for pair in zip(firsts, seconds, strict=True) for one in pair)
        most = min(module.rank, seconds[0].shape[0], prod(firsts[0].shape[1:]))
        rank = min(self.rank or most, most)
        weights = module.b.weights or (1.0,) * len(firsts)
        a, b = (
            FactorSource(
                inputs,
                side.dtype,
                factor=Factor(
                    part, rank, seed=self.seed, of=KNOTS, weights=weights, density=self.density, merge=self.merge
                ),
            )
            for part, side in (("A", module.a), ("B", module.b))
        )
        return replace(module, rank=rank, a=a, b=b)

    def notes(self, modules: Sequence[NewModule], adapters: int) -> Iterator[str]:
        """Yield a note on values that are not kept, and a note on modules that only some of the adapters have.

        A module is merged from the adapters that have it.
        """
        if self.density < 1:
            kept = "the largest" if self.merge == TIES else "at random"
            loss = "; the loss due to the rank is relative to the merge of the kept values" if self.rank else ""
            yield f"{percent_number(self.density)} % of the values of each adapter's change are kept, {kept}{loss}"
        fewer = [one.name for one in modules if len(one.a.inputs) < 2 * adapters]
        if fewer and adapters > 1:
            yield (
                f"{count(len(fewer), 'module')} {'is' if len(fewer) == 1 else 'are'} in only some of the {adapters} "
                f"adapters: {listing(fewer, where='')}"
            )


def knots_of(method: str, merge: str | None, density: float | None, rank: int | None, seed: int | None) -> Knots | None:
    """Return the parameters of KnOTS, None for the sum; raises ConfigError for an unknown method or invalid values."""
    if method not in METHODS:
        raise ConfigError(f"--method {method} is unknown.", hint=f"Use {' or '.join(METHODS)}.")
    if method == "sum":
        options = {"--merge": merge, "--density": density, "--rank": rank, "--seed": seed}
        given = next((name for name, value in options.items() if value is not None), "")
        if given:
            raise ConfigError(
                f"{given} has no effect without --method knots: the sum of adapters has no parameters.",
                hint="Add --method knots. To reduce the rank of a sum, use ckpt lora resize.",
            )
        return None
    merge = TIES if merge is None else merge
    _check(merge, density, rank, seed)
    return Knots(merge, DENSITIES[merge] if density is None else density, rank, seed or 0)


def _check(merge: str, density: float | None, rank: int | None, seed: int | None) -> None:
    """Raise ConfigError for parameters of KnOTS that are invalid, or that its merge does not have."""
    if merge not in MERGES:
        raise ConfigError(f"--merge {merge} is unknown.", hint=f"Use one of {', '.join(MERGES)}.")
    if density is not None and not 0 < density <= 1:
        raise ConfigError(f"--density {density} is not a number above 0 and up to 1.", hint="Use a number such as 0.2.")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank} is not a valid rank.", hint="Use a whole number of 1 or more.")
    if density is not None and merge == SUM:
        raise ConfigError(f"--density has no effect with --merge {SUM}, which keeps all values.", hint="Leave it out.")
    if seed is not None and merge != DARE_TIES:
        raise ConfigError(
            f"--seed has no effect with --merge {merge}, which keeps no values at random.",
            hint=f"Leave --seed out, or use --merge {DARE_TIES}.",
        )
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed {seed} is negative.", hint="Use a whole number of 0 or more.")
