"""The operations and rules that turn a network of transformers into llama.cpp's layout, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..keys.pattern import KeyPattern
from ..keys.renaming import KeyMatcher
from ..layouts.layout import LayoutChange
from .checks import check_named
from .names import ARCHITECTURES, ROUTERS, SHARED_GATE
from .regrouping import NOTHING, Regrouping

__all__ = [
    "COMPUTED_THERE",
    "EMBEDDING",
    "HEAD",
    "KEYS",
    "QUERIES",
    "Heads",
    "check_known",
    "experts_of",
    "routers",
    "to_llama_cpp",
    "to_transformers",
]

QUERIES, KEYS = ("model.layers.{n}.self_attn.q_proj", "model.layers.{n}.self_attn.k_proj")
NORMS = "norm"
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
COMPUTED_HERE = ("model.layers.*.self_attn.rotary_emb", "model.rotary_emb")
"""Buffers of transformers that it computes from the configuration; they are left out."""
COMPUTED_THERE = ("rope_freqs", "rope_factors_long", "rope_factors_short", "blk.*.rope_freqs", "blk.*.attn_rot_embd")
"""Tensors of llama.cpp that transformers computes from the configuration; they are left out."""


@dataclass(frozen=True)
class Heads:
    """The number of query heads, and of key heads (and value heads); each has ``size`` rows and ``width`` columns."""

    queries: int
    keys: int
    size: int
    width: int


def to_llama_cpp(
    architecture: str,
    keys: Collection[str],
    heads: Heads | None,
    *,
    tied: bool,
    factors: Mapping[str, Sequence[float]] | None = None,
    without: Sequence[int] = (),
    regrouping: Regrouping = NOTHING,
) -> LayoutChange:
    """Return the change from transformers' layout to llama.cpp's; PlanError if llama.cpp has no name for a tensor.

    ``heads`` may be None if the rows of queries and keys keep their order. ``tied`` is true if the output layer is tied
    to the embedding; llama.cpp then stores only the embedding. ``factors`` maps names of tensors to divisors of the
    frequencies of the rotary embedding. ``without`` are the indices of the layers that are left out.
    """
    left = (*COMPUTED_HERE, *((HEAD,) if tied and _matched(EMBEDDING, keys) else ()))
    left = (*left, *(f"model.layers.{number}" for number in without))
    taken = list(regrouping.takes)
    names = {
        ours: theirs for ours, theirs in ARCHITECTURES[architecture].names.items() if f"{ours}.weight" not in taken
    }
    operations = list(regrouping.operations)
    if ARCHITECTURES[architecture].pairs and heads is not None:
        operations += _turned(keys, {QUERIES: heads.queries, KEYS: heads.keys}, (2, heads.size // 2), heads.width)
    if ARCHITECTURES[architecture].one_more:
        operations += [{"shift": key, "by": 1} for key in names if key.endswith(NORMS) and _matched(key, keys)]
    if _matched(SHARED_GATE, keys):
        operations.append({"reshape": f"{SHARED_GATE}.weight", "shape": [-1]})
    experts = [name for name in ARCHITECTURES[architecture].experts if _matched(f"{name}.weight", keys)]
    for name in experts:
        into = ARCHITECTURES[architecture].experts[name]
        operations.append({"stack": f"{name}.weight", "into": f"{into}.weight"})
    operations += [{"constant": name, "values": list(values)} for name, values in (factors or {}).items()]
    taken += [f"{name}.weight" for name in experts]
    change = _change(keys, names, left, operations, taken, f"llama.cpp's architecture {architecture}")
    made = tuple(f"blk.{n}" for n in without if any(_matched(_in_layer(name, n), keys) for name in taken))
    return replace(change, exclude=(*change.exclude, *made))


def to_transformers(
    architecture: str,
    keys: Collection[str],
    heads: Heads | None,
    *,
    left: Sequence[str] = (),
    regrouping: Regrouping = NOTHING,
) -> LayoutChange:
    """Return the change from llama.cpp's layout to transformers'; PlanError if transformers has no name for a tensor.

    ``left`` are patterns of tensors that are left out, in addition to those that transformers computes.
    """
    names = {theirs: ours for ours, theirs in ARCHITECTURES[architecture].names.items()}
    operations = list(regrouping.operations)
    if ARCHITECTURES[architecture].pairs and heads is not None:
        turned = {ARCHITECTURES[architecture].names[QUERIES]: heads.queries}
        turned[ARCHITECTURES[architecture].names[KEYS]] = heads.keys
        operations += _turned(keys, turned, (heads.size // 2, 2), heads.width)
    if ARCHITECTURES[architecture].one_more:
        operations += [{"shift": key, "by": -1} for key in names if key.endswith(NORMS) and _matched(key, keys)]
    shared = ARCHITECTURES[architecture].names.get(SHARED_GATE, "")
    if shared and _matched(shared, keys):
        operations.append({"reshape": f"{shared}.weight", "shape": [1, -1]})
    taken = list(regrouping.takes)
    for ours, theirs in ARCHITECTURES[architecture].experts.items():
        if _matched(f"{theirs}.weight", keys):
            operations.append({"unstack": f"{theirs}.weight", "into": f"{ours}.weight"})
            taken.append(f"{theirs}.weight")
    return _change(keys, names, (*COMPUTED_THERE, *left), operations, taken, "transformers")


def experts_of(architecture: str, keys: Collection[str]) -> set[int]:
    """Return the numbers of experts in the layers of a transformers model; a valid model has only one number."""
    found: Counter[tuple[str, str]] = Counter()
    for name in ARCHITECTURES[architecture].experts:
        found.update((name, key.split(".experts.")[0]) for key in _matched(f"{name}.weight", keys))
    return set(found.values())


def routers(keys: Collection[str]) -> list[str]:
    """Return the keys, in either layout, of the weights of routers, which are the layers that choose experts."""
    return [key for name in ROUTERS for key in _matched(f"{name}.weight", keys)]


def _turned(
    keys: Collection[str], modules: Mapping[str, int], sizes: tuple[int, int], width: int
) -> Iterable[Mapping[str, Any]]:
    """Yield operations that reorder the rows of each head: they are arranged in the shape ``sizes`` and transposed.

    ``modules`` maps the name of each module to its number of heads, ``width`` is the number of columns of the
    weights. Each reshape sets all sizes, so that an operation fails for a weight of another shape.
    """
    for module, heads in modules.items():
        for key, dims in ((f"{module}.weight", [0, 2, 1, 3]), (f"{module}.bias", [0, 2, 1])):
            if _matched(key, keys):
                rest = [width] if len(dims) == 4 else []
                yield {"reshape": key, "shape": [heads, *sizes, *rest]}
                yield {"permute": key, "dims": dims}
                yield {"reshape": key, "shape": [heads * sizes[0] * sizes[1], *rest]}


def _in_layer(name: str, number: int) -> str:
    return name.replace("{n}", str(number))


def _matched(text: str, keys: Collection[str]) -> list[str]:
    return list(KeyMatcher([KeyPattern.given(text, "")]).hits(keys)[0])


def _change(
    keys: Collection[str],
    names: Mapping[str, str],
    left: Sequence[str],
    operations: Sequence[Mapping[str, Any]],
    stacked: Sequence[str],
    there: str,
) -> LayoutChange:
    known = {name: _matched(name, keys) for name in names}
    exclude = tuple(name for name in left if _matched(name, keys))
    covered = {key for found in known.values() for key in found} | {
        key for name in (*exclude, *stacked) for key in _matched(name, keys)
    }
    check_named([key for key in keys if key not in covered], there)
    rules = tuple(
        f"{name}={names[name]}" for name, found in known.items() if found and not set(found) <= _all(exclude, keys)
    )
    return LayoutChange(tuple(operations), rules, exclude)


def check_known(keys: Collection[str], known: Collection[str], change: LayoutChange, there: str) -> None:
    """Raise PlanError for a tensor that is neither in ``known`` nor left out by ``change``.

    ``there`` is the name of the program whose layout has no name for the tensor.
    """
    left = _all(change.exclude, keys)
    check_named([key for key in keys if key not in known and key not in left], there)


def _all(patterns: Sequence[str], keys: Collection[str]) -> set[str]:
    return {key for text in patterns for key in _matched(text, keys)}
