"""Which tensors that differ become factors of an adapter, which are saved, and the steps that make them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod

from ...errors import ConfigError
from ...methods.lora.conv1d import KnownModel
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import shape_text
from ..keys.matcher import KeyMatcher
from ..keys.pattern import OptionPattern
from ..plan.compute import Factor
from ..plan.step import Input, Step

__all__ = [
    "PREFIX",
    "Extraction",
    "FactorName",
    "Sorted",
    "check_extraction",
    "comparable",
    "factor_name",
    "factor_steps",
    "is_convolution",
    "is_embedding",
    "lies_transposed",
    "module_of",
    "rank_of",
    "saved_name",
    "saved_step",
    "sorted_keys",
    "unwrapped",
]

# What is asked of ``lora extract``. Pure.

DTYPES_OF_FACTORS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Extraction:
    """What was asked for: see ``lora_extract``; and what is known of the model."""

    rank: int = 16
    alpha: float | None = None
    include: tuple[OptionPattern, ...] = ()
    exclude: tuple[OptionPattern, ...] = ()
    embeddings: bool = False
    transposed: bool = False
    save_modules: bool = False
    dtype: str = "float32"
    seed: int = 0
    model: KnownModel | None = None


def check_extraction(asked: Extraction) -> None:
    """Raise ConfigError for what no adapter can be."""
    if asked.rank < 1:
        raise ConfigError(f"--rank {asked.rank} is no rank.", hint="Use a whole number from 1 on, as in 16.")
    if asked.alpha is not None and not (isfinite(asked.alpha) and asked.alpha > 0):
        raise ConfigError(
            f"--alpha {asked.alpha} is no alpha.", hint="Use a number above zero; by default it is the rank."
        )
    if asked.dtype not in DTYPES_OF_FACTORS:
        raise ConfigError(f"--dtype {asked.dtype} is none of factors.", hint=f"Use {', '.join(DTYPES_OF_FACTORS)}.")
    if not 0 <= asked.seed < 2**63:
        raise ConfigError(f"--seed {asked.seed} is no seed.", hint="Use a whole number from 0 on.")


# Which of the tensors that differ become factors of an adapter, which are saved, which are left. Pure.

_EMBEDDING = re.compile(
    r"(?:.*[._])?(?:(?:w[tp]e|shared|embed(?:ding)?s?(?:_\w+)?)(?:\.\w+)?|embs?|embedders?|lut|relative_attention_bias)",
    re.IGNORECASE,
)
"""The names of modules that look rows up: nothing else tells them from layers. ``emb_layers.1`` is one of these."""

KERNEL = 64
"""The longest side of a kernel."""


def comparable(ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Whether the values of two tensors can be held against each other."""
    kinds = [DTYPES[one.dtype] for one in (ours, theirs)]
    alike = ours.dtype == theirs.dtype or all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return alike and ours.shape == theirs.shape


@dataclass
class Sorted:
    """The keys that differ: those that become factors, those that are saved, and those that are named.

    Of the latter, ``savable`` are those that --save-modules would take.
    """

    factored: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    savable: list[str] = field(default_factory=list)


def sorted_keys(
    tuned: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], differing: Collection[str], asked: Extraction
) -> Sorted:
    """Sort the keys that differ, as patterns and options ask for."""
    include = KeyMatcher([flag.pattern for flag in asked.include])
    exclude = KeyMatcher([flag.pattern for flag in asked.exclude])
    found, rest = Sorted(), []
    for key in differing:
        chosen = (not asked.include or include.match(key)) and not exclude.match(key)
        if chosen and _is_low_rank(key, tuned[key], base.get(key), asked):
            found.factored.append(key)
        elif chosen and asked.save_modules:
            rest.append(key)
        else:
            found.left.append(key)
            found.savable += [key] if chosen else []
    _save(found, rest, tuned)
    return found


def _is_low_rank(key: str, info: TensorInfo, base: TensorInfo | None, asked: Extraction) -> bool:
    """Whether a tensor is a weight that PEFT adapts: of a layer, a convolution, or, if asked for, an embedding."""
    if base is None or base.shape != info.shape or 0 in info.shape or not key.endswith(".weight"):
        return False
    kinds = [DTYPES[one.dtype] for one in (info, base)]
    if not all(kind.kind == "float" and not kind.is_packed for kind in kinds):
        return False
    if is_embedding(key):
        return asked.embeddings and len(info.shape) == 2
    return len(info.shape) == 2 or is_convolution(info.shape)


def is_convolution(shape: Sequence[int]) -> bool:
    """Whether a shape is (out, in, *kernel) of a convolution that PEFT adapts and merges.

    With one channel in and several out it is a depthwise one, whose groups PEFT does not merge; nor does peft 0.21
    merge three dimensions whose first two are 1. What has a longer side than a kernel is of experts, as (n, out, in).
    """
    kernel = tuple(shape[2:])
    depthwise = len(shape) > 2 and shape[1] == 1 < shape[0]
    return (
        1 <= len(kernel) <= 3 and max(kernel) <= KERNEL and not depthwise and not (kernel[:2] == (1, 1) and kernel[2:])
    )


def is_embedding(key: str) -> bool:
    """Whether a key is of a module that looks rows up, as far as its name tells."""
    return _EMBEDDING.fullmatch(module_of(key)) is not None


def module_of(key: str) -> str:
    """Return the module that a key is of, '' at the top."""
    return key.rpartition(".")[0]


def _save(found: Sorted, rest: Sequence[str], tuned: Mapping[str, TensorInfo]) -> None:
    """Sort what is saved: biases of layers that have factors, whole modules, parameters of modules that have others."""
    layers = {module_of(key) for key in found.factored}
    inner = {module_of(module) for module in map(module_of, tuned)} | {""}
    whole = dict.fromkeys(module for module in map(module_of, rest) if module not in layers | inner)
    found.biases = [key for key in rest if module_of(key) in layers and key.endswith(".bias")]
    alone = [key for key in rest if module_of(key) in layers | inner and key not in set(found.biases)]
    found.saved = [*alone, *(key for key in tuned if module_of(key) in whole)]


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
