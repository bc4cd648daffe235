"""Sorts the tensors that differ: some become factors, others are saved. Makes the steps of both."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod

from ...errors import ConfigError
from ...methods.lora.conv1d import KnownModel
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import shape_text
from ..keys.pattern import OptionPattern
from ..keys.renaming import KeyMatcher
from ..plan.compute import Factor
from ..plan.step import Input, Step

__all__ = [
    "PREFIX",
    "ExtractOptions",
    "FactorName",
    "SortedKeys",
    "check_extraction",
    "chosen_by",
    "comparable",
    "factor_name",
    "factor_steps",
    "is_convolution",
    "is_embedding",
    "is_transposed",
    "module_of",
    "rank_of",
    "saved_name",
    "saved_step",
    "sorted_keys",
    "unwrapped",
]

# The options of ``lora extract``.

DTYPES_OF_FACTORS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ExtractOptions:
    """The options of ``lora_extract``; ``model`` is the type of the model by its config.json (None: no config.json)."""

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


def check_extraction(asked: ExtractOptions) -> None:
    """Raise ConfigError if the rank, alpha, dtype or seed is not a valid value."""
    if asked.rank < 1:
        raise ConfigError(f"--rank {asked.rank} is not a valid rank.", hint="Use a whole number of 1 or more.")
    if asked.alpha is not None and not (isfinite(asked.alpha) and asked.alpha > 0):
        raise ConfigError(
            f"--alpha {asked.alpha} is not a valid alpha.", hint="Use a number above zero; the default is the rank."
        )
    if asked.dtype not in DTYPES_OF_FACTORS:
        raise ConfigError(
            f"--dtype {asked.dtype} is not a valid dtype for factors.", hint=f"Use {', '.join(DTYPES_OF_FACTORS)}."
        )
    if not 0 <= asked.seed < 2**63:
        raise ConfigError(f"--seed {asked.seed} is not a valid seed.", hint="Use a whole number of 0 or more.")


# Sorts the tensors that differ: factors of an adapter, saved, left out.

_EMBEDDING = re.compile(
    r"(?:.*[._])?(?:(?:w[tp]e|shared|embed(?:ding)?s?(?:_\w+)?)(?:\.\w+)?|embs?|embedders?|lut|relative_attention_bias)",
    re.IGNORECASE,
)
"""Matches names of embedding modules: only names distinguish them from layers. ``emb_layers.1`` is a layer."""

KERNEL = 64
"""The longest side of a convolution's kernel; a tensor with a longer side contains the weights of experts."""


def comparable(ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Return whether the values of two tensors can be compared.

    This is possible if the shapes are equal, and if the dtypes are equal or both are real floating-point dtypes.
    """
    kinds = [DTYPES[one.dtype] for one in (ours, theirs)]
    alike = ours.dtype == theirs.dtype or all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return alike and ours.shape == theirs.shape


@dataclass
class SortedKeys:
    """The keys whose values differ, in groups that the adapter treats differently.

    ``factored`` are weights that become factors. ``biases`` are saved biases of the layers of these weights, ``saved``
    the other keys that are saved unchanged. The keys in ``left`` are left out; ``savable`` are those among them that
    --save-modules would save.
    """

    factored: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    savable: list[str] = field(default_factory=list)


def chosen_by(asked: ExtractOptions) -> Callable[[str], bool]:
    """Return a function that says whether the options ``include`` and ``exclude`` choose a key."""
    include = KeyMatcher([flag.pattern for flag in asked.include])
    exclude = KeyMatcher([flag.pattern for flag in asked.exclude])
    return lambda key: (not asked.include or bool(include.match(key))) and not exclude.match(key)


def sorted_keys(
    tuned: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], differing: Collection[str], asked: ExtractOptions
) -> SortedKeys:
    """Return the keys in ``differing``, whose values differ, in groups that the adapter treats differently.

    ``asked`` are the options, ``tuned`` and ``base`` the headers of the two models.
    """
    is_chosen = chosen_by(asked)
    found, rest = SortedKeys(), []
    for key in differing:
        chosen = is_chosen(key)
        if chosen and _is_low_rank(key, tuned[key], base.get(key), asked):
            found.factored.append(key)
        elif chosen and asked.save_modules:
            rest.append(key)
        else:
            found.left.append(key)
            found.savable += [key] if chosen else []
    _save(found, rest, tuned)
    return found


def _is_low_rank(key: str, info: TensorInfo, base: TensorInfo | None, asked: ExtractOptions) -> bool:
    """Return whether PEFT can adapt a tensor: the weight of a layer, a convolution or, if asked for, an embedding."""
    if base is None or base.shape != info.shape or 0 in info.shape or not key.endswith(".weight"):
        return False
    kinds = [DTYPES[one.dtype] for one in (info, base)]
    if not all(kind.kind == "float" and not kind.is_packed for kind in kinds):
        return False
    if is_embedding(key):
        return asked.embeddings and len(info.shape) == 2
    return len(info.shape) == 2 or is_convolution(info.shape)


def is_convolution(shape: Sequence[int]) -> bool:
    """Return whether a shape is (out, in, *kernel) of a convolution that PEFT adapts and merges.

    A weight with one input channel and several outputs is treated as a depthwise convolution: PEFT does not merge
    grouped convolutions. peft 0.21 does not merge 3D kernels whose first two sides are 1 either. If a side of the
    kernel is longer than ``KERNEL``, the weight is treated as a stack of experts, (n, out, in).
    """
    kernel = tuple(shape[2:])
    depthwise = len(shape) > 2 and shape[1] == 1 < shape[0]
    return (
        1 <= len(kernel) <= 3 and max(kernel) <= KERNEL and not depthwise and not (kernel[:2] == (1, 1) and kernel[2:])
    )


def is_embedding(key: str) -> bool:
    """Return whether a key belongs to an embedding, judged by the name of its module."""
    return _EMBEDDING.fullmatch(module_of(key)) is not None


def module_of(key: str) -> str:
    """Return the module that contains a key, '' for a key at the top level."""
    return key.rpartition(".")[0]


def _save(found: SortedKeys, rest: Sequence[str], tuned: Mapping[str, TensorInfo]) -> None:
    """Add the keys in ``rest``, whose tensors are saved unchanged, to ``found``.

    These tensors are biases of layers with factors, single parameters, or parts of modules. For a part of a module, all
    keys of the module are added.
    """
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
    """The parts of a factor's name: its module, "A" or "B", and PEFT's ending (``lora_A``, ``lora_embedding_A``)."""

    module: str
    part: str
    ending: str


def _scale(asked: ExtractOptions) -> float:
    """Return the scale of the factors' product: alpha divided by the requested rank."""
    return 1.0 if asked.alpha is None else asked.alpha / asked.rank


def rank_of(shape: Sequence[int], asked: ExtractOptions) -> int:
    """Return the rank for a weight: the requested one, at most the weight's smaller side."""
    return min(asked.rank, shape[0], prod(shape[1:]))


def is_transposed(key: str, shape: Sequence[int], asked: ExtractOptions) -> bool:
    """Return whether a weight is stored as (in, out).

    An embedding always is, a convolution never. If config.json shows that the model has Conv1D layers, their weights
    are (in, out), and all other matrices are not. Otherwise ``asked.transposed`` decides.
    """
    if len(shape) != 2 or is_embedding(key):
        return len(shape) == 2
    return asked.model.has_conv1d(key) if asked.model and asked.model.conv1d else asked.transposed


def factor_steps(key: str, ours: Input, theirs: Input, asked: ExtractOptions) -> list[Step]:
    """Return the steps that make the factors A and B of a weight.

    ``ours`` is the weight of the tuned model, ``theirs`` the weight of the base. The two steps must stay next to each
    other in the plan, since both factors are computed together.
    """
    rank, lies = rank_of(ours.shape, asked), is_transposed(key, ours.shape, asked)
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


def saved_name(key: str, found: SortedKeys) -> str:
    """Return the name that PEFT gives a saved tensor, with ``base_layer`` in it if its layer has factors."""
    module, _, last = key.rpartition(".")
    wrapped = module in map(module_of, found.factored)
    return f"{PREFIX}{module}.base_layer.{last}" if wrapped else f"{PREFIX}{key}"


def saved_step(name: str, ours: Input, dtype: str) -> Step:
    """Return the step of a tensor that is copied, in ``dtype``, under a PEFT name."""
    return Step(name, "copy", dtype, ours.shape, *ours, rule="--save-modules")


def factor_name(key: str) -> FactorName | None:
    """Return the parts of a factor's key (see ``FactorName``); None for any other key."""
    found = _FACTOR.fullmatch(key)
    ending = found and (found[2] or found[3])
    return FactorName(found[1], ending[-1], ending) if found and ending else None


def unwrapped(name: str) -> str:
    """Return the key that a tensor has in the network without PEFT: its PEFT name ``name`` without ``base_layer``."""
    module, _, last = name.rpartition(".")
    return f"{module.removesuffix('.base_layer')}.{last}" if module else name
