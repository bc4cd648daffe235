"""Notes on tensors with names that no model of the type has, in place of those that it has.

Names are those of the table of ``required_parts``. The last three segments of a name are compared, since what is before
them depends on the class.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...planning.merge.layers import LayerList, layers_of, lists_with_gaps, numbered_lists
from ...planning.transplant.by_place import HEAD, is_embedding
from ...util.text import count, escape
from .config import TIES, untied_by_default
from .layer_holes import is_stack
from .required_parts import BUFFER, forms_of, known_patterns, pattern_of
from .shape_checks import DescribedTensor

__all__ = ["unknown_key_notes"]

ADAPTER = re.compile(r"\.(?:base_layer|lora_[AB])\.")
"""Names in models with adapters of PEFT that are not merged."""
MOSTLY = 0.8
"""The share of a class's names that weights must have before another name is compared with those that are missing."""
AND_SO = "transformers ignores the former and initialises the latter"


class _Renamed(NamedTuple):
    """A key that no model of the type has, and the one that is missing in its place."""

    found: str
    missing: str


def unknown_key_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on tensors that are there under another name than models of this type have for them."""
    kind = str(config.get("model_type"))
    patterns = known_patterns(kind)
    if not patterns or config.get("auto_map"):
        return
    known = set(map(_tail, patterns))
    unknown = [one for one in tensors if not BUFFER.search(one.key) and _tail(pattern_of(one.key)) not in known]
    adapters = [one.key for one in unknown if ADAPTER.search(one.key)]
    if adapters:
        others = f" and {count(len(adapters) - 1, 'other tensor')}" if len(adapters) > 1 else ""
        yield (
            f"{escape(adapters[0])}{others} are of an adapter that is not merged: transformers ignores them, and "
            "initialises the weights that they are in place of"
        )
        return
    for one in unknown and [*_in_layers(tensors, unknown, known), *_in_all(tensors, unknown, config)]:
        has = f"{escape(one.found)} is a name that no {escape(kind)} model has, but {escape(one.missing)} is missing"
        yield f"{has}: {AND_SO}"
        return


def _tail(pattern: str) -> str:
    return ".".join(pattern.split(".")[-3:])


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _in_layers(
    tensors: Sequence[DescribedTensor], unknown: Sequence[DescribedTensor], known: Collection[str]
) -> Iterator[_Renamed]:
    """Yield unknown names in layers that lack a tensor of the same shape which another layer has."""
    shapes = {one.key: one.shape for one in tensors}
    odd = {one.key for one in unknown}
    gaps = (LayerList(prefix, len(numbers)) for prefix, numbers in lists_with_gaps(shapes).items())
    for stack in (one for one in (*numbered_lists(shapes), *gaps) if is_stack(one.prefix)):
        layers = layers_of(stack, shapes)
        usual = {rest: stack.key(number, rest) for number, rests in layers.items() for rest in rests}
        for number, rests in layers.items():
            own = set(rests)
            for key in (stack.key(number, rest) for rest in rests if stack.key(number, rest) in odd):
                for rest, other in usual.items():
                    fits = shapes[other] == shapes[key] and _leaf(other) == _leaf(key)
                    if fits and rest not in own and _tail(pattern_of(other)) in known:
                        yield _Renamed(key, stack.key(number, rest))


def _in_all(
    tensors: Sequence[DescribedTensor], unknown: Sequence[DescribedTensor], config: Mapping[str, Any]
) -> Iterator[_Renamed]:
    """Yield names that no model of the class has, if it has all other names but ones with the same ending."""
    own = {pattern_of(one.key): one for one in tensors}
    odd = {pattern_of(one.key): one for one in unknown}
    tied = config.get(TIES, not untied_by_default(config)) is True
    words = {one.shape for one in tensors if is_embedding(one.key)}
    for form in forms_of(config):
        missing = [one for one in form if one not in own and not (tied and HEAD.search(one))]
        if len(missing) < len(odd) or len(form) - len(missing) < MOSTLY * len(form):
            continue
        for pattern, one in odd.items():
            for lost in missing:
                alike = _leaf(lost) == _leaf(pattern) and lost.partition("#")[0] == pattern.partition("#")[0]
                is_same = f".{pattern}".endswith(f".{lost}") or f".{lost}".endswith(f".{pattern}")
                fits = one.shape in words if HEAD.search(lost) else True
                if (alike if "#" in lost else _leaf(lost) == _leaf(pattern)) and fits and not is_same:
                    yield _Renamed(*(name.replace("#", "*") for name in (pattern, lost)))
