"""The steps of an adapter: the two factors of a weight, and tensors that go along whole. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..plan import Factor, Input, Step
from ..tensors import TensorInfo
from ..text import shape_text
from .extract_options import Extraction
from .extract_sorting import Sorted, is_embedding, module_of

__all__ = ["PREFIX", "FactorName", "factor_name", "factor_steps", "saved_name", "saved_step", "unwrapped"]

PREFIX = "base_model.model."
WRAPPED = "base_layer."

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


def _lies(key: str, asked: Extraction) -> bool:
    """Whether a weight is (in, out): that of an embedding always is."""
    return asked.transposed or is_embedding(key)


def factor_steps(key: str, ours: TensorInfo, theirs: TensorInfo, asked: Extraction) -> list[Step]:
    """Return the steps of a weight's two factors, which follow each other: they are made at once."""
    module, rank, embedding = module_of(key), min(asked.rank, *ours.shape), is_embedding(key)
    names = (
        {"A": "lora_embedding_A", "B": "lora_embedding_B"}
        if embedding
        else {"A": "lora_A.weight", "B": "lora_B.weight"}
    )
    made = []
    for part, name in names.items():
        factor = Factor(part, rank, _scale(asked), _lies(key, asked), asked.seed)
        made.append(
            Step(
                f"{PREFIX}{module}.{name}", "factor", asked.dtype, factor.shape(ours.shape), 0, key, ours.dtype,
                ours.shape, rule=f"rank {rank} of {shape_text(ours.shape)}",
                more=(Input(1, key, theirs.dtype, theirs.shape),), factor=factor,
            )
        )  # fmt: skip
    return made


def saved_name(key: str, found: Sorted) -> str:
    """Return the name that PEFT gives a tensor that is saved whole: a layer with factors wraps what it was."""
    module, _, last = key.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if key in found.biases else f"{PREFIX}{key}"


def saved_step(key: str, name: str, info: TensorInfo) -> Step:
    """Return the step of a tensor that goes along as it is, under a name of PEFT's."""
    return Step(name, "copy", info.dtype, info.shape, 0, key, info.dtype, info.shape, rule="--save-modules")


def factor_name(key: str) -> FactorName | None:
    """Return what the key of a factor says, None for a key of anything else."""
    found = _FACTOR.fullmatch(key)
    ending = found and (found[2] or found[3])
    return FactorName(found[1], ending[-1], ending) if found and ending else None


def unwrapped(name: str) -> str:
    """Return the key in the network of what PEFT's wrapping renames."""
    module, _, last = name.rpartition(".")
    return f"{module.removesuffix('.base_layer')}.{last}" if module else name
