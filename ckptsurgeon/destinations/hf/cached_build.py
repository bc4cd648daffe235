"""Stores the destination that a config.json describes in the user's cache, to skip torch and transformers next time.

A cache entry has the keys, shapes, dtypes and ties, and all other fields of a ``TargetSpec`` that are plain data. It
contains no path and no string of the user. Its key is a SHA-256 of the configuration and of the versions of the
installed packages. The written config.json is stored as changes to the user's config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...planning.target import Companion, Draw, Initial, KnownLayout, Pieces, Recognise, TargetSpec
from ...storage.cached_documents import cached_document, document_key, keep_document
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from .._document import Document
from .._initial_values import ZERO_DEVIATION
from .config_text import changed_fields, config_text, texts_in, with_changes
from .files import CONFIG, companions
from .given_fields import GivenFields
from .stock_code import versions

__all__ = [
    "cached_axes",
    "cached_initial",
    "cached_layouts",
    "cached_spec",
    "draws_of",
    "keep_spec",
    "kept_draws",
    "spec_key",
]

FORMAT = 2
"""The version of the format of the entries: increase it if the format changes."""
FILLS = {"normal_", "uniform_", "fill_", "zero_"}
"""The names of torch's operations that an entry may contain."""
WITH_STORAGE = "built with its weights in memory, which took "
"""The beginning of the note on the time and memory of a build. It is not cached, since it is true of one run only."""


def spec_key(document: Document, given: GivenFields) -> str:
    """Return the cache key of a destination; "" if it must not be cached.

    A destination must not be cached if it depends on anything except the fields of its config.json, the overrides and
    the installed packages.
    """
    features = document.train.get("features")
    is_trained = isinstance(features, Mapping) and features.get("kind") == "waves"
    if document.vocabulary is not None or is_trained:
        return ""
    known = dict(document.versions) if document.versions is not None else versions()
    asked = {"asked": document.model.get("architecture"), "fields": given.fields, "overrides": given.overrides}
    return document_key({"of": "transformers", "format": FORMAT, "versions": known, **asked}) if known else ""


def cached_spec(key: str, document: Document, given: GivenFields) -> TargetSpec | None:
    """Return the destination that is stored in the cache under ``key``; None if there is none.

    Fields of the destination that are functions are not set, because the cache cannot store functions.
    """
    document_found = cached_document(key)
    if document_found is None:
        return None
    try:
        found = _spec(document_found, document.name, given)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):  # an entry in another format
        return None
    return found


def _spec(kept: Any, name: str, given: GivenFields) -> TargetSpec:
    text = config_text(with_changes(kept["config"], _given(given)))
    tensors = {str(key): _info(dtype, shape) for key, dtype, shape in kept["tensors"]}
    ties = {str(key): str(owner) for key, owner in kept["ties"].items()}
    if not (ties.keys() | set(ties.values()) | set(kept["implied"]) | set(kept["undrawable"])) <= tensors.keys():
        raise ValueError(name)
    return TargetSpec(
        kind="transformers",
        name=name,
        tensors=tensors,
        draws=draws_of(kept, tensors),
        ties=ties,
        undrawable=dict.fromkeys(kept["undrawable"], ZERO_DEVIATION),
        ran=tuple(map(str, kept["ran"])),
        notes=tuple(map(str, kept["notes"])),
        companions=(Companion(CONFIG, text=text), *companions(given.folder)),
        implied=frozenset(kept["implied"]),
    )


def _info(dtype: str, shape: list[int]) -> TensorInfo:
    if dtype not in DTYPES or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(dtype)
    return TensorInfo(dtype, tuple(shape))


def draws_of(kept: Any, tensors: Mapping[str, TensorInfo]) -> dict[str, Draw]:
    """Return the operations that fill tensors, from a cache entry.

    Raises ValueError or IndexError for an invalid entry.
    """
    known = [Draw(str(how), tuple(numbers)) for how, numbers in kept["draws"]]
    are_numbers = all(type(one) in (int, float) for draw in known for one in draw.numbers)
    if not are_numbers or not {one.how for one in known} <= FILLS or len(kept["drawn"]) != len(tensors):
        raise ValueError(known)
    return {key: known[at] for key, at in zip(tensors, kept["drawn"], strict=True) if at >= 0}


def kept_draws(spec: TargetSpec) -> dict[str, Any]:
    """Return fields of a cache entry: the operations that fill tensors, and the index of each tensor's operation."""
    draws = {repr(one): one for one in spec.draws.values()}  # 0.0 equals -0.0, but has other bits
    places = {said: place for place, said in enumerate(draws)}
    return {
        "draws": [[one.how, list(one.numbers)] for one in draws.values()],
        "drawn": [places[repr(spec.draws[key])] if key in spec.draws else -1 for key in spec.tensors],
    }


def keep_spec(key: str, spec: TargetSpec, given: GivenFields, known: tuple[str, ...]) -> bool:
    """Store a destination in the cache under ``key``, and return whether the cache now has it.

    ``known`` are the strings of the user's file that may be stored. Nothing is stored if the entry would contain
    another string of that file, if the destination has no config.json, or if a tensor cannot be drawn for another
    reason than ``ZERO_DEVIATION``.
    """
    config = next((one for one in spec.companions if one.name == CONFIG), None)
    if config is None or not set(spec.undrawable.values()) <= {ZERO_DEVIATION}:
        return False
    changes = _changes(config.text, given, known)
    if changes is None:
        return False
    kept = {
        **kept_draws(spec),
        "config": changes,
        "tensors": [[name, info.dtype, list(info.shape)] for name, info in spec.tensors.items()],
        "ties": dict(spec.ties),
        "implied": sorted(spec.implied),
        "undrawable": list(spec.undrawable),
        "ran": list(spec.ran),
        "notes": [note for note in spec.notes if not note.startswith(WITH_STORAGE)],
    }
    return keep_document(key, kept)


def cached_initial(spec: TargetSpec, otherwise: Initial) -> tuple[Initial, Pieces]:
    """Return the functions ``initial`` and ``pieces`` of a cached destination; they draw the same values as the model.

    The tensors in ``spec.draws`` are drawn without the model. For all other tensors, the function ``otherwise`` builds
    the model and draws the values.
    """

    def initial(keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
        from ..torch_module.simple_draws import drawn_whole

        for key in keys:
            if key in spec.draws:
                yield key, drawn_whole(spec.draws[key], spec.tensors[key], key, seed)
            else:
                yield from otherwise([key], seed)

    def pieces(key: str, seed: int, had: Sequence[int] | None = None) -> Iterator[memoryview]:
        from ..torch_module.missing_draws import drawn_pieces

        return drawn_pieces(spec.draws[key], spec.tensors[key], key, seed, had)

    return initial, pieces


def _given(given: GivenFields) -> dict[str, Any]:
    """Return the user's fields with the overrides applied.

    The cache stores only the differences between the written config.json and these fields.
    """

    def over(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
        both = {name: first[name] for name in second if isinstance(first.get(name), dict)}
        inner = {name: over(both[name], one) for name, one in second.items() if name in both and isinstance(one, dict)}
        return {**first, **second, **inner}

    return over(given.fields, given.overrides)


def _changes(text: str, given: GivenFields, known: tuple[str, ...]) -> list[Any] | None:
    """Return the changes that turn the fields of the user into the config.json ``text``, for the cache.

    Returns None if the changes would contain a string of the user that is not in ``known``.
    """
    from ...storage.json_text import read_json

    base = _given(given)
    changes = changed_fields(read_json(text), base)
    own = {one for one in texts_in(base) if one not in known}
    if config_text(with_changes(changes, base)) != text or not own.isdisjoint(texts_in(changes)):
        return None
    return changes


def cached_layouts(key: str, recognise: Callable[[], Recognise]) -> Recognise:
    """Return a function that looks up the layout of a source (renamings and operations for its keys) in the cache.

    If the cache does not have the layout, the function computes it with ``recognise()`` and stores it.
    """

    def found(tensors: Mapping[str, TensorInfo]) -> KnownLayout:
        rows = [[name, list(info.shape)] for name, info in tensors.items()]
        own = document_key({"of": "layout", "destination": key, "source": rows})
        known = _layout(cached_document(own))
        if known is None:
            known = recognise()(tensors)
            plain = asdict(known)
            plain.update(operations=list(plain["operations"]), notes=list(plain["notes"]))
            if _layout(plain) == known:
                keep_document(own, plain)
        return known

    return found


def _layout(kept: Any) -> KnownLayout | None:
    try:
        lists = {"operations": tuple(kept["operations"]), "notes": tuple(kept["notes"])}
        return KnownLayout(**{**kept, **lists})
    except (TypeError, LookupError):
        return None


def cached_axes(key: str, find: Callable[[], Mapping[str, int]]) -> Callable[[], Mapping[str, int]]:
    """Return a function that looks up the vocabulary axes in the cache.

    If the cache does not have the axes, the function computes them with ``find()`` and stores them.
    """

    def found() -> Mapping[str, int]:
        own = document_key({"of": "vocabulary", "destination": key})
        known = cached_document(own)
        if not (isinstance(known, dict) and all(type(axis) is int for axis in known.values())):
            known = dict(find())
            keep_document(own, known)
        return known

    return found
