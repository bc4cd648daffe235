"""Which merged tensors are computed again, where not all of them are asked for."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ConfigError
from ...planning.plan.step import MERGES
from ...planning.recipe.recipe import Made

__all__ = ["left_out"]


def left_out(tensors: Mapping[str, Made], sample: int | None) -> Mapping[str, str]:
    """Return the merged tensors that are not computed again, with the reason; ``sample`` of them, evenly spread, are.

    What is copied is always compared: that costs no more than reading it.
    """
    if sample is None:
        return {}
    if sample < 0:
        raise ConfigError(f"--sample {sample} is no number of tensors.", hint="Use 0 or more.")
    merged = [key for key, made in tensors.items() if made.op in MERGES]
    number = min(sample, len(merged))
    chosen = {merged[place * len(merged) // number] for place in range(number)}
    why = f"not among the {number} merged tensors that were computed again (--sample {sample})"
    return {key: why for key in merged if key not in chosen}
