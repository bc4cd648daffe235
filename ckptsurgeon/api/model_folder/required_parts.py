"""Notes on tensors that every model of a class has and the weights lack, by a table recorded from transformers.

The table is ``required_parts.jsonl``: patterns of keys by model type and class, without those that a field of the
configuration can turn off (``tests/api/model_folder/record_required_parts.py`` makes it).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

from ...planning.merge.layers import LayerList, all_lists, layers_of
from ...planning.transplant.by_place import HEAD, is_embedding
from ...util.text import NUMBER_IN_KEY, count, escape, listing
from .config import TIES, untied_by_default
from .layers.experts import INITIALISED, of_first_expert
from .layers.holes import is_stack
from .shape_checks import DescribedTensor

__all__ = ["BUFFER", "TABLE", "is_known_type", "pattern_of", "required_part_notes", "unknown_key_notes"]

TABLE = "required_parts.jsonl"
_INNER_NUMBER = re.compile(r"\.\d+(?=\.)")
BUFFER = re.compile(
    r"(?:^|\.)(?:position_ids|token_type_ids|(?:original_)?inv_freq|masked_bias|(?:attn|attention)\.bias|num_batches_tracked|version)$"
)
"""Buffers that some versions of transformers save, and others do not."""
PROJECTION = ".embeddings_project."
"""A layer between an embedding and layers of another width, in ELECTRA, ConvBERT and RoFormer."""
_FEWEST = 4
"""A layer with fewer patterns is not taken for a whole one."""


def pattern_of(key: str) -> str:
    """Return a key with ``#`` instead of each number between dots: ``layers.#.bias`` for ``layers.0.bias``."""
    if key[:1].isdecimal() or key[-1:].isdecimal():
        return NUMBER_IN_KEY.sub("#", key)
    return _INNER_NUMBER.sub(".#", key)  # in half the time


def required_part_notes(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on tensors that each model of the class in ``config`` has, but that are missing in all layers here.

    There is no note if a key is unknown to the class: then the names may differ, and nothing may be missing. An output
    layer, which may be tied, is left to ``head_notes``.
    """
    name, kind = _class_of(config), str(config.get("model_type"))
    if not name or config.get("auto_map") or any("experts" in field and not config[field] for field in config):
        return
    known, forms, ties = _of_class(kind, name)
    patterns = {pattern_of(key) for key in set(map(of_first_expert, keys))}
    own = {pattern for pattern in patterns if not BUFFER.search(pattern)}
    if not forms or own - known:
        return
    own |= {source for key, source in ties if key in own}
    missing = min(({one for one in form - own if not HEAD.search(one)} for form in forms), key=len)
    if config.get("embedding_size") == config.get("hidden_size"):  # as in electra-base: nothing is projected
        missing = {one for one in missing if PROJECTION not in one}
    if missing and any(_has_whole_layer(own, form) for form in forms):
        spelled = listing([escape(one.replace("#", "*")) for one in sorted(missing)], 3, where="")
        yield f"every {escape(name)} has {spelled}, but these weights do not: {INITIALISED}"


def _class_of(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""


def _has_whole_layer(own: Collection[str], form: Collection[str]) -> bool:
    """Whether the weights have at least half of the tensors of a layer, so that they are a model and not a fragment.

    ``own`` has the patterns of their keys, and ``form`` those of a model.
    """
    wanted, there = (
        Counter(one.partition("#")[0] for one in some if "#" in one) for some in (form, set(own) & set(form))
    )
    return any(number >= _FEWEST and 2 * there[layer] >= number for layer, number in wanted.items())


@lru_cache(maxsize=4)
def _of_class(kind: str, name: str) -> tuple[frozenset[str], list[frozenset[str]], list[tuple[str, str]]]:
    """Return what the table has on the class ``name`` of a model type; all is empty for a type that is not in it.

    Returns all patterns of the type; for each variant of the class, the patterns that it always has; and the tied pairs
    of patterns: (key, source).
    """
    if kind not in _table():
        return frozenset(), [], []
    found = json.loads(_table()[kind])
    keys = _decoded(found["keys"])
    forms = [
        frozenset(key for begin, end in _pairs(form) for key in keys[begin:end])
        for form in found["classes"].get(name, ())
    ]
    return frozenset(keys), forms, [(keys[key], keys[source]) for key, source in found["ties"]]


def is_known_type(kind: str) -> bool:
    """Return whether the table has a model type, as it has nearly all of transformers."""
    return kind in _table()


def _decoded(coded: Sequence[Any]) -> list[str]:
    """Return keys from their compact form: for each, how many first letters the key before it shares, and the rest."""
    keys = [""]
    for shared, rest in _pairs(coded):
        keys.append(keys[-1][:shared] + rest)
    return keys[1:]


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


@cache
def _table() -> dict[str, str]:
    """Return the lines of the table by model type, as text: only the line that is needed is parsed."""
    lines = resources.files(__package__).joinpath(TABLE).read_text("utf-8").splitlines()[1:]
    return {line[9 : line.index('"', 9)]: line for line in lines}


# Tensors with names that no model of the type has, in place of those that it has.
#
# The last three segments of a name are compared, since what is before them depends on the class.

ADAPTER = re.compile(r"\.(?:base_layer|lora_[AB])\.")
"""Names in models with adapters of PEFT that are not merged."""
WRAPPERS = ("_orig_mod.", "module.")
"""The beginnings of names in a model that torch.compile or data parallelism wraps."""
MOSTLY = 0.8
"""The share of a class's names that weights must have before another name is compared with those that are missing."""
IGNORED = "transformers ignores them, and initialises the weights that they are in place of"
AND_SO = "transformers ignores the former and initialises the latter"


class _Renamed(NamedTuple):
    """A key that no model of the type has, and the one that is missing in its place."""

    found: str
    missing: str


def unknown_key_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on tensors that are there under another name than models of this type have for them."""
    kind = str(config.get("model_type"))
    patterns, forms, _ = _of_class(kind, _class_of(config))
    if not patterns or config.get("auto_map"):
        return
    known = set(map(_tail, patterns))
    tails = {one.key: _tail(one.key) for one in tensors}
    odd = {tail for tail in set(tails.values()) if pattern_of(tail) not in known}
    unknown = [one for one in tensors if tails[one.key] in odd and not BUFFER.search(one.key)] if odd else []
    adapters = [one.key for one in unknown if ADAPTER.search(one.key)]
    if adapters:
        others = f" and {count(len(adapters) - 1, 'other tensor')}" if len(adapters) > 1 else ""
        yield (f"{escape(adapters[0])}{others} are of an adapter that is not merged: {IGNORED}")
        return
    wrapped = [one.key for one in tensors if one.key.startswith(WRAPPERS)] if unknown else []
    if 0 < len(wrapped) < len(tensors):
        prefix = wrapped[0].partition(".")[0]
        are = f"{len(wrapped)} of {count(len(tensors), 'tensor')} begin with {prefix}"
        yield f"{are}, as {escape(wrapped[0])}: {IGNORED}"
        return
    is_few = 2 * len(unknown) <= len(tensors)  # of more, the whole model is spelled in another way
    in_layers = _in_layers(tensors, unknown, known) if unknown and is_few else ()
    renamed = [*in_layers, *(_in_all(tensors, unknown, forms, config) if unknown else ())]
    for found, missing in renamed[:1]:
        has = f"{escape(found)} is a name that no {escape(kind)} model has, but {escape(missing)} is missing"
        yield f"{has}: {AND_SO}"


def _tail(key: str) -> str:
    return ".".join(key.rsplit(".", 3)[-3:])


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _in_layers(
    tensors: Sequence[DescribedTensor], unknown: Sequence[DescribedTensor], known: Collection[str]
) -> Iterator[_Renamed]:
    """Yield unknown names in layers that lack a tensor of the same shape which another layer has."""
    shapes = {one.key: one.shape for one in tensors}
    whole, with_gaps = all_lists(shapes)
    gaps = (LayerList(prefix, len(numbers)) for prefix, numbers in with_gaps.items())
    for stack in (one for one in (*whole, *gaps) if is_stack(one.prefix)):
        odd = layers_of(stack, [one.key for one in unknown])
        layers = layers_of(stack, shapes) if odd else {}
        last = {rest: number for number, rests in layers.items() for rest in rests}
        usual = {rest: stack.key(number, rest) for rest, number in last.items()}
        usual = {rest: key for rest, key in usual.items() if pattern_of(_tail(key)) in known}
        for number in (one for one in layers if one in odd):
            lost = sorted(usual.keys() - layers[number])
            for key in (key for rest in odd[number] if (key := stack.key(number, rest)) in shapes):
                for rest in lost:
                    if shapes[usual[rest]] == shapes[key] and _leaf(rest) == _leaf(key):
                        yield _Renamed(key, stack.key(number, rest))


def _in_all(
    tensors: Sequence[DescribedTensor],
    unknown: Sequence[DescribedTensor],
    forms: Sequence[Collection[str]],
    config: Mapping[str, Any],
) -> Iterator[_Renamed]:
    """Yield names that no model of the class has, if it has all other names but ones with the same ending.

    ``forms`` are the patterns that the class always has, for each form in which it is saved.
    """
    own = {pattern_of(key) for key in {of_first_expert(one.key) for one in tensors}}
    odd = {pattern_of(one.key): one for one in unknown}
    tied = config.get(TIES, not untied_by_default(config)) is True
    for form in forms:
        missing = [one for one in form if one not in own and not (tied and HEAD.search(one))]
        if len(missing) < len(odd) or len(form) - len(missing) < MOSTLY * len(form):
            continue
        for pattern, one in odd.items():
            for lost in missing:
                alike = _leaf(lost) == _leaf(pattern) and lost.partition("#")[0] == pattern.partition("#")[0]
                is_same = f".{pattern}".endswith(f".{lost}") or f".{lost}".endswith(f".{pattern}")
                is_like = alike if "#" in lost else _leaf(lost) == _leaf(pattern)
                if is_like and not is_same and _fits(lost, one, tensors):
                    yield _Renamed(*(name.replace("#", "*") for name in (pattern, lost)))


def _fits(missing: str, one: DescribedTensor, tensors: Sequence[DescribedTensor]) -> bool:
    """Whether a tensor could be the missing one: an output layer has the shape of an embedding."""
    if not HEAD.search(missing):
        return True
    return any(other.shape == one.shape and is_embedding(other.key) for other in tensors)
