"""What a model of transformers has beside its weights if its vocabulary is not the one of its folder any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..target import Companion
from ..text import count, escape
from ..vocabulary import MovedIds, Renumbering, Vocabulary, tokens_at
from ._document import Document
from ._hf_files import CONFIG, companions, is_of_tokenizer
from ._hf_tokens import IN_YAML, renumbered, renumbered_generation, renumbering_of, with_tokenizer_of

__all__ = ["files_of"]


def files_of(
    document: Document, config: Any, config_class: Any, fields: Mapping[str, Any], folder: str
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files that go beside the weights, and what there is to say of them.

    ``config`` is the configuration with the document's overrides, whose token ids are moved if the document asks for
    another vocabulary; ``fields`` and ``folder`` are those of the file. Raises ConfigError for an id without a place.
    """
    files, before = companions(config, folder), _size(config_class, fields)
    if document.vocabulary is None:
        return _of_fewer_rows(document, files, config, before, folder)
    own = tokens_at(folder)
    files, said = with_tokenizer_of(files, document.vocabulary.paths[1], document.vocabulary.new, own)
    files, moved = _renumbered(document, files, config, own, fields, before)
    return files, [*moved, *said]


def _renumbered(
    document: Document,
    files: tuple[Companion, ...],
    config: Any,
    own: Vocabulary | None,
    fields: Mapping[str, Any],
    rows: int,
) -> tuple[tuple[Companion, ...], list[str]]:
    """Move the token ids of a configuration and of the files beside it; ``fields`` are those of the file."""
    change, given = document.vocabulary, dict(_given(document.model))
    assert change is not None
    fixed, told = frozenset(given), frozenset(name for name, _ in _given(fields))
    numbers, new = renumbering_of(change, own, rows, config.to_dict(), fixed), change.paths[1]
    if numbers is None:
        return files, []
    moved, notes = renumbered(CONFIG, config.to_dict(), numbers, new, fixed=fixed, told=told)
    files, more = renumbered_generation(_applied(moved, config, files), numbers, new, given)
    return files, [*notes, *more]


def _given(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a section gives, those in parts of the model too."""
    for name, value in section.items():
        yield name, value
        if isinstance(value, dict):
            yield from _given(value)


def _applied(moved: MovedIds, config: Any, files: Sequence[Companion]) -> tuple[Companion, ...]:
    """Set ids in a configuration, and return the files with it as it is now."""
    for path, value in moved.changed.items():
        inner = config
        for name in path[:-1]:
            inner = inner[name] if isinstance(inner, dict) else getattr(inner, name)
        if isinstance(inner, dict):
            inner[path[-1]] = value
        else:
            setattr(inner, path[-1], value)
    text = config.to_json_string()
    return tuple(Companion(CONFIG, text=text) if one.name == CONFIG else one for one in files)


def _of_fewer_rows(
    document: Document, files: tuple[Companion, ...], config: Any, before: int, folder: str
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return files without a tokeniser that has tokens beyond the rows, if the document made these fewer.

    Raises ConfigError for token ids beyond them.
    """
    rows = _rows(config)
    if not rows or rows >= before:
        return files, []
    numbers, given = Renumbering.first(rows, before), dict(_given(document.model))
    new, remedy = f"a vocabulary of {rows} rows", f"{IN_YAML}; or go by token: --vocab SRC_TOKENS:DST_TOKENS"
    moved, notes = renumbered(CONFIG, config.to_dict(), numbers, new, remedy=remedy, fixed=frozenset(given))
    files, more = renumbered_generation(_applied(moved, config, files), numbers, new, given, remedy=remedy)
    own = tokens_at(folder) if any(is_of_tokenizer(one.name) for one in files) else None
    if own is None or len(own.tokens) <= rows:
        return files, [*notes, *more]
    note = (
        f"the tokeniser beside {escape(folder or '.')} has {count(len(own.tokens), 'token')}, the model {rows} rows: "
        "it is not copied; --vocab SRC_TOKENS:DST_TOKENS goes by token"
    )
    return tuple(one for one in files if not is_of_tokenizer(one.name)), [*notes, *more, note]


def _size(config_class: Any, fields: Mapping[str, Any]) -> int:
    """Return how many rows the file itself gives the vocabulary, 0 for a model that has none."""
    text = fields.get("text_config")
    for one in (fields, text if isinstance(text, dict) else {}):
        if type(one.get("vocab_size")) is int:
            return int(one["vocab_size"])
    return _rows(config_class())


def _rows(config: Any) -> int:
    try:
        size = getattr(config.get_text_config(), "vocab_size", None)
    except ValueError:  # two vocabularies, and none of them comes first
        return 0
    return size if type(size) is int else 0
