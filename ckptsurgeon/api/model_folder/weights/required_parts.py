"""Notes on tensors that every model of a class has but the weights lack.

They use ``required_parts.jsonl``, a table of transformers' classes. For each model type and class, it has patterns of
the keys that every such model has. Tensors that a field of the configuration can turn off are not in the table.
``tests/api/model_folder/record_required_parts.py`` makes this table.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

from ....checkpoint.wrappers import WRAPPERS
from ....planning.merge.layers import LayerList, all_lists, layers_of
from ....planning.transplant.by_place import HEAD, is_embedding
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import NUMBER_IN_KEY, count, escape, listing
from ..config import TIES, untied_by_default
from ..layers.expert_layers import DENSE_NAMES, has_dense_layers
from ..layers.experts import INITIALISED, of_first_expert
from ..layers.holes import is_stack
from .shape_checks import DescribedTensor

__all__ = [
    "BUFFER",
    "TABLE",
    "classes_of",
    "is_known_type",
    "known_patterns",
    "pattern_of",
    "prefixed_key_notes",
    "required_part_notes",
    "types_with",
    "unknown_key_notes",
]

TABLE = "required_parts.jsonl"
_INNER_NUMBER = re.compile(r"\.\d+(?=\.)")
BUFFER = re.compile(
    r"(?:^|\.)(?:position_ids|token_type_ids|(?:original_)?inv_freq|masked_bias|(?:attn|attention)\.bias|num_batches_tracked|version)$"
)
"""Matches buffers that only some versions of transformers save."""
PROJECTION = ".embeddings_project."
"""A part of the keys of the linear layer after a narrow embedding, in ELECTRA, ConvBERT and RoFormer."""
_FEWEST = 4
"""The smallest number of tensors in a layer by which weights can be recognised as a whole model, not a fragment."""


def pattern_of(key: str) -> str:
    """Return a key with ``#`` instead of each number between dots: ``layers.#.bias`` for ``layers.0.bias``."""
    if key[:1].isdecimal() or key[-1:].isdecimal():
        return NUMBER_IN_KEY.sub("#", key)
    return _INNER_NUMBER.sub(".#", key)  # twice as fast


@notes_of(NoteKind.MISSING_TENSORS)
def required_part_notes(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on tensors that every model of the class in ``config`` has, but that are not in ``keys``.

    ``keys`` are the keys of a model's weights. A tensor in layers is reported only if all layers lack it. There is no
    note if the weights have a key that the class does not have, because then the missing tensors may have other names.
    Missing output layers, which may be tied, are reported by ``head_notes`` instead.
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
    if config.get("embedding_size") == config.get("hidden_size"):  # then there is no projection, as in electra-base
        missing = {one for one in missing if PROJECTION not in one}
    if missing and any(_has_whole_layer(own, form) for form in forms):
        spelled = listing([escape(one.replace("#", "*")) for one in sorted(missing)], 3, where="")
        yield f"every {escape(name)} has {spelled}, but these weights do not: {INITIALISED}"


def _class_of(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""


def _has_whole_layer(own: Collection[str], form: Collection[str]) -> bool:
    """Return whether the weights are more than a fragment: they have at least half of the tensors of some layer.

    ``own`` has the patterns of the weights' keys, and ``form`` the patterns of a complete model.
    """
    wanted, there = (
        Counter(one.partition("#")[0] for one in some if "#" in one) for some in (form, set(own) & set(form))
    )
    return any(number >= _FEWEST and 2 * there[layer] >= number for layer, number in wanted.items())


@lru_cache(maxsize=4)
def _of_class(kind: str, name: str) -> tuple[frozenset[str], list[frozenset[str]], list[tuple[str, str]]]:
    """Return three entries of the table for the class ``name`` of the model type ``kind``; empty for an unknown type.

    The first has the patterns of all keys of the type. The second has, for each variant of the class, the patterns that
    it always has. The third has the pairs of tied patterns, as (key, source).
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


def known_patterns(kind: str) -> frozenset[str]:
    """Return the patterns of all keys that models of the type ``kind`` have; empty for an unknown type."""
    return _of_class(kind, "")[0]


def is_known_type(kind: str) -> bool:
    """Return whether a model type is in the table, which has nearly all types of transformers."""
    return kind in _table()


def classes_of(kind: str) -> frozenset[str]:
    """Return the names of the classes of a model type; empty for an unknown type."""
    return frozenset(json.loads(_table()[kind])["classes"]) if kind in _table() else frozenset()


def types_with(name: str) -> list[str]:
    """Return the model types with a class of this name; first the type after which the class is named.

    The table (1 MB) is searched as text, which takes about 1 ms.
    """
    mark = f"{json.dumps(name)}:"
    found = [kind for kind, line in _table().items() if mark in line]
    return sorted(found, key=lambda kind: not name.lower().startswith(re.sub(r"\W|_", "", kind.lower())))


def _decoded(coded: Sequence[Any]) -> list[str]:
    """Return the keys in a compressed list, which has two entries for each key.

    The first entry is the number of characters that the key shares with the beginning of the previous key. The second
    entry is the rest of the key.
    """
    keys = [""]
    for shared, rest in _pairs(coded):
        keys.append(keys[-1][:shared] + rest)
    return keys[1:]


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


@cache
def _table() -> dict[str, str]:
    """Return {model type: its line of the table, as text}, so that only the needed line is parsed."""
    lines = resources.files(__package__).joinpath(TABLE).read_text("utf-8").splitlines()[1:]
    return {line[9 : line.index('"', 9)]: line for line in lines}


# Notes on tensors with a name that no model of the type has, if the expected name is missing.
#
# Only the last three segments of a name are compared, because the segments before them depend on the class.

ADAPTER = re.compile(r"\.(?:base_layer|lora_[AB])\.")
"""Matches names in models with adapters of PEFT that are not merged."""
PREFIXES = tuple(f"{wrapper}." for wrapper in WRAPPERS)
"""The beginnings of keys of a model that was wrapped by torch.compile or DataParallel."""
_OTHERS = re.compile(rf"{BUFFER.pattern}|\.(?:switch_mlp|embed_q|unembed_out)\.")
"""Matches buffers, and modules of mlx-lm that have other names in transformers (``mlx_form``)."""
MOSTLY = 0.8
"""Unknown and missing names are compared only if the weights have at least this share of the class's names."""
IGNORED = "transformers ignores them, and initialises the missing weights"
AND_SO = "transformers ignores the unknown tensor and initialises the missing one"


class _Renamed(NamedTuple):
    """A key or pattern of keys that no model of the type has, and the missing one that it seems to replace."""

    found: str
    missing: str


@notes_of(NoteKind.MISSING_TENSORS)
def unknown_key_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on tensors whose name no model of this type has, although the expected name is missing."""
    kind = str(config.get("model_type"))
    patterns, forms, _ = _of_class(kind, _class_of(config))
    if not patterns or config.get("auto_map"):
        return
    known = {*map(_tail, patterns), *(DENSE_NAMES if has_dense_layers(kind) else ())}
    tails = {one.key: _tail(one.key) for one in tensors}
    odd = {tail for tail in set(tails.values()) if pattern_of(tail) not in known}
    unknown = [one for one in tensors if tails[one.key] in odd and not _OTHERS.search(one.key)] if odd else []
    adapters = [one.key for one in unknown if ADAPTER.search(one.key)]
    if adapters:
        others = f" and {count(len(adapters) - 1, 'other tensor')}" if len(adapters) > 1 else ""
        yield (f"{escape(adapters[0])}{others} are of an adapter that is not merged: {IGNORED}")
        return
    wrapped = [one.key for one in tensors if one.key.startswith(PREFIXES)] if unknown else []
    if 0 < len(wrapped) < len(tensors):
        prefix = wrapped[0].partition(".")[0]
        are = f"the keys of {len(wrapped)} of {count(len(tensors), 'tensor')} begin with {prefix}"
        yield f"{are}, for example {escape(wrapped[0])}: {IGNORED}"
        return
    is_few = 2 * len(unknown) <= len(tensors)  # if most names are unknown, the model has another naming scheme
    in_layers = _in_layers(tensors, unknown, known) if unknown and is_few else ()
    renamed = [*in_layers, *(_in_all(tensors, unknown, forms, config) if unknown else ())]
    for found, missing in renamed[:1]:
        has = f"{escape(found)} is a name that no {escape(kind)} model has, but {escape(missing)} is missing"
        yield f"{has}: {AND_SO}"


@notes_of(NoteKind.PREFIXED_KEYS)
def prefixed_key_notes(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if all keys of a transformers model begin with one of ``PREFIXES``, such as ``module.``.

    ``keys`` are the keys in the file, and ``config`` is the config.json beside it. ``from_pretrained`` does not find
    tensors with such keys.
    """
    if "auto_map" in config or not ("model_type" in config or "architectures" in config):
        return
    for prefix in PREFIXES:
        if keys and all(key.startswith(prefix) for key in keys):
            yield f"every key begins with {prefix}: from_pretrained loads none of these tensors"


def _tail(key: str) -> str:
    return ".".join(key.rsplit(".", 3)[-3:])


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _in_layers(
    tensors: Sequence[DescribedTensor], unknown: Sequence[DescribedTensor], known: Collection[str]
) -> Iterator[_Renamed]:
    """Yield (key of a tensor in a layer with an unknown name, missing key that it seems to replace).

    A name is missing if another layer has a tensor of this name; both tensors must have the same shape. ``unknown`` are
    the tensors whose name no model of the type has. ``known`` are the patterns of all known names, of which only the
    last three segments are kept.
    """
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
    forms: Sequence[frozenset[str]],
    config: Mapping[str, Any],
) -> Iterator[_Renamed]:
    """Yield (pattern of a tensor with an unknown name, missing pattern with the same last segment); numbers are ``*``.

    ``unknown`` are the tensors whose name no model of the type has. ``forms`` has, for each variant of the class, the
    patterns that it always has. Nothing is yielded if the weights have all patterns of one variant.
    """
    own = {pattern_of(key) for key in {of_first_expert(one.key) for one in tensors}}
    odd = {pattern_of(one.key): one for one in unknown}
    tied = config.get(TIES, not untied_by_default(config)) is True
    missing = [{one for one in form - own if not (tied and HEAD.search(one))} for form in forms]
    if not all(missing):
        return
    for lost, form in zip(missing, forms, strict=True):
        if len(lost) < len(odd) or len(form) - len(lost) < MOSTLY * len(form):
            continue
        for pattern, one in odd.items():
            for other in sorted(lost):
                alike = _leaf(other) == _leaf(pattern) and other.partition("#")[0] == pattern.partition("#")[0]
                is_same = f".{pattern}".endswith(f".{other}") or f".{other}".endswith(f".{pattern}")
                is_like = alike if "#" in other else _leaf(other) == _leaf(pattern)
                if is_like and not is_same and _fits(other, one, tensors):
                    yield _Renamed(*(name.replace("#", "*") for name in (pattern, other)))


def _fits(missing: str, one: DescribedTensor, tensors: Sequence[DescribedTensor]) -> bool:
    """Return whether the tensor ``one`` could be the tensor with the key ``missing``.

    An output layer must have the shape of an embedding. The shapes of other tensors are not known, so they always fit.
    """
    if not HEAD.search(missing):
        return True
    return any(other.shape == one.shape and is_embedding(other.key) for other in tensors)
