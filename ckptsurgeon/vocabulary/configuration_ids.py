"""Finds the token ids in a configuration and in its nested configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from .id_fields import is_of_ids, is_of_inputs, is_of_others, may_be_of_ids
from .renumbering import Renumbering

__all__ = ["Path", "fields_with_ids", "numbers_in", "sizes_for", "unsure_numbers"]

Path: TypeAlias = tuple[str, ...]

_PARTS = ("encoder", "decoder", "question_encoder", "generator", "visual")
"""Fields that are nested configurations although their names do not end in ``config``."""
_TASKS = "task_specific_params"
"""A field with generation settings for each task, such as translation with T5."""
_DEEPEST = 6


def numbers_in(value: Any) -> Iterator[int]:
    """Yield the whole numbers in the value of a field, also in nested lists and maps."""
    if type(value) is int:
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(one)


def sizes_for(fields: Mapping[str, Any], numbers: Renumbering) -> frozenset[int]:
    """Return the vocabulary sizes of those configurations, including nested ones, whose token ids are to be renumbered.

    These are the sizes of the whole configuration and of its ``text_config``. If neither has a vocabulary size, two
    sizes are returned: the size of the new vocabulary, and the smallest size in the other nested configurations that
    has room for all old tokens. If no nested configuration has room for them, the result is empty: then all ids are to
    be renumbered.
    """
    found = dict(_parts(fields))
    own = {found.get(path) for path in ((), ("text_config",))} - {None}
    if not own:
        large = sorted(size for size in found.values() if size is not None and size >= len(numbers.old))
        own = {*large[:1], len(numbers.new)} if large else set()
    return frozenset(size for size in own if size is not None)


def _parts(fields: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, int | None]]:
    """Yield (path, vocabulary size) of a configuration and of its nested configurations.

    The size is None if it is not set. ``above`` is the path of the configuration ``fields``.
    """
    size = fields.get("vocab_size")
    yield above, size if type(size) is int else None
    for name, value in fields.items():
        if isinstance(value, dict) and len(above) < _DEEPEST and _is_configuration(name):
            yield from _parts(value, (*above, name))


def fields_with_ids(fields: Mapping[str, Any], sizes: frozenset[int]) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value) of each field with token ids, but not in nested configurations for another vocabulary.

    ``sizes`` is the result of ``sizes_for``. There is one exception: the ids of tokens that mark images and other
    inputs are yielded if they are too large for the other vocabulary. For example, ``talker_config`` of Qwen2.5-Omni is
    for a smaller vocabulary of audio codes, but its ``image_token_index`` is the id of a text token.
    """
    for path, value, other in _fields(fields, sizes):
        if is_of_ids(path[-1]) and value is not None and (not other or _is_beyond(path[-1], value, other)):
            yield path, value


def unsure_numbers(fields: Mapping[str, Any], sizes: frozenset[int]) -> Iterator[tuple[Path, int]]:
    """Yield (path, number) of each number that may be, or may not be, a token id of this vocabulary.

    In a configuration for this vocabulary, these are the numbers in fields whose name does not tell whether they have
    token ids. In a configuration for another vocabulary, they are the ids of tokens that mark images or other inputs,
    if they are small enough for both vocabularies.
    """
    for path, value, other in _fields(fields, sizes):
        name = path[-1]
        if other:
            is_open = is_of_ids(name) and is_of_inputs(name) and not _is_beyond(name, value, other)
        else:
            is_open = may_be_of_ids(name)
        yield from ((path, one) for one in numbers_in(value)) if is_open else ()


def _is_beyond(name: str, value: Any, size: int) -> bool:
    return is_of_inputs(name) and type(value) is int and value >= size


def _fields(
    fields: Mapping[str, Any], sizes: frozenset[int], above: Path = (), other: int = 0
) -> Iterator[tuple[Path, Any, int]]:
    """Yield (path, value, other) of each field of a configuration and of its nested configurations.

    ``fields`` is a configuration, and ``above`` its path. A configuration is for this vocabulary if its vocabulary size
    is in ``sizes``. If it has no vocabulary size, or if ``sizes`` is empty, it is for the same vocabulary as the
    configuration that contains it. ``other`` is 0 in a configuration for this vocabulary; in any other, it is the size
    of the other vocabulary.
    """
    size = fields.get("vocab_size")
    if sizes and type(size) is int:
        other = 0 if size in sizes else size
    for name, value in fields.items():
        if is_of_others(name):
            continue
        if not isinstance(value, dict) or is_of_ids(name):
            yield (*above, name), value, other
        elif len(above) < _DEEPEST and _is_configuration(name):
            yield from _fields(value, sizes, (*above, name), other)
        elif name == _TASKS:
            for task, inner in value.items():
                yield from _fields(inner, sizes, (*above, name, task), other) if isinstance(inner, dict) else ()
        else:
            yield (*above, name), value, other


def _is_configuration(name: str) -> bool:
    return name in _PARTS or (name.endswith("_config") and name != "quantization_config")
