"""The steps of an adapter: the two factors of a weight, and tensors that go along whole. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...util.text import shape_text
from ..plan.lora import Factor
from ..plan.step import Input, Step
from .options import Extraction
from .sorting import Sorted, is_embedding, module_of

__all__ = [
    "PREFIX", "FactorName", "factor_name", "factor_steps", "lies_transposed", "rank_of", "saved_name", "saved_step",
    "unwrapped",
]  # fmt: skip

PREFIX = "base_model.model."

_FACTOR = re.compile(r"base_model\.model\.(.+)\.(?:(lora_[AB])\.weight|(lora_embedding_[AB]))")


@dataclass(frozen=True)
class FactorName:
    """What the name of a factor says: of which module it is, which part, and what PEFT calls it."""

    module: str
    part: str
    ending: str


def _scale(asked: Extraction) -> float:
    """Return what the product of the factors counts: alpha over the rank that was asked for."""
    return 1.0 if asked.alpha is None else asked.alpha / asked.rank


def rank_of(shape: Sequence[int], asked: Extraction) -> int:
    """Return the rank for a weight: no matrix has a higher one than its smaller side."""
    return min(asked.rank, shape[0], prod(shape[1:]))


def lies_transposed(key: str, shape: Sequence[int], asked: Extraction) -> bool:
    """Whether a weight is (in, out): that of an embedding always is, that of a convolution never."""
    if len(shape) != 2 or is_embedding(key):
        return len(shape) == 2
    return asked.model.has_conv1d(key) if asked.model and asked.model.conv1d else asked.transposed


def factor_steps(key: str, ours: Input, theirs: Input, asked: Extraction) -> list[Step]:
    """Return the steps of a weight's two factors, which follow each other: they are made at once."""
    rank, lies = rank_of(ours.shape, asked), lies_transposed(key, ours.shape, asked)
    return [
        _factor_step(key, ours, theirs, Factor(part, rank, _scale(asked), lies, asked.seed), dtype=asked.dtype)
        for part in "AB"
    ]


def _factor_step(key: str, ours: Input, theirs: Input, factor: Factor, *, dtype: str) -> Step:
    ending = f"lora_embedding_{factor.part}" if is_embedding(key) else f"lora_{factor.part}.weight"
    return Step(
        f"{PREFIX}{module_of(key)}.{ending}", "factor", dtype, factor.shape(ours.shape), *ours,
        rule=f"rank {factor.rank} of {shape_text(ours.shape)}", more=(theirs,), factor=factor,
    )  # fmt: skip


def saved_name(key: str, found: Sorted) -> str:
    """Return the name that PEFT gives a tensor that is saved: a layer with factors wraps what it was."""
    module, _, last = key.rpartition(".")
    wrapped = module in map(module_of, found.factored)
    return f"{PREFIX}{module}.base_layer.{last}" if wrapped else f"{PREFIX}{key}"


def saved_step(name: str, ours: Input) -> Step:
    """Return the step of a tensor that goes along as it is, under a name of PEFT's."""
    return Step(name, "copy", ours.dtype, ours.shape, *ours, rule="--save-modules")


def factor_name(key: str) -> FactorName | None:
    """Return what the key of a factor says, None for a key of anything else."""
    found = _FACTOR.fullmatch(key)
    ending = found and (found[2] or found[3])
    return FactorName(found[1], ending[-1], ending) if found and ending else None


def unwrapped(name: str) -> str:
    """Return the key in the network of what PEFT's wrapping renames."""
    module, _, last = name.rpartition(".")
    return f"{module.removesuffix('.base_layer')}.{last}" if module else name
