"""What a model of transformers has beside its weights if its vocabulary is not the one of its folder any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...planning.target import Companion
from ...util.text import count, escape
from ...vocabulary.replacement import tokens_at
from ...vocabulary.token_ids import Renumbering
from ...vocabulary.vocabulary import Vocabulary
from .._document import Document
from .._hf_written import WrittenConfig
from .files import CONFIG, companions, is_of_tokenizer
from .tokens import IN_YAML, renumbered, renumbered_generation, renumbering_of, with_tokenizer_of

__all__ = ["files_of"]


def files_of(
    document: Document, written: WrittenConfig, fields: Mapping[str, Any], folder: str
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files that go beside the weights, and what there is to say of them.

    ``written`` is the configuration with the document's overrides, whose token ids are moved if the document asks for
    another vocabulary; ``fields`` and ``folder`` are those of the file. Raises ConfigError for an id without a place.
    """
    files, before = companions(folder), _size(type(written.config), fields)
    if document.vocabulary is None:
        files, said = _of_fewer_rows(document, files, written, before, folder)
    else:
        own = tokens_at(folder)
        files, said = with_tokenizer_of(files, document.vocabulary.paths[1], document.vocabulary.new, own)
        files, moved = _renumbered(document, files, written, own, fields, before)
        said = [*moved, *said]
    return (written.companion(), *files), said


def _renumbered(
    document: Document,
    files: tuple[Companion, ...],
    written: WrittenConfig,
    own: Vocabulary | None,
    fields: Mapping[str, Any],
    rows: int,
) -> tuple[tuple[Companion, ...], list[str]]:
    """Move the token ids of a configuration and of the files beside it; ``fields`` are those of the file."""
    change, given = document.vocabulary, dict(_given(document.model))
    assert change is not None
    fixed, told = frozenset(given), frozenset(name for name, _ in _given(fields))
    everything = written.everything
    numbers, new = renumbering_of(change, own, rows, everything, fixed), change.paths[1]
    if numbers is None:
        return files, []
    moved, notes = renumbered(CONFIG, everything, numbers, new, fixed=fixed, told=told)
    written.apply(moved)
    files, more = renumbered_generation(files, numbers, new, given)
    return files, [*notes, *more]


def _given(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a section gives, those in parts of the model too."""
    for name, value in section.items():
        yield name, value
        if isinstance(value, dict):
            yield from _given(value)


def _of_fewer_rows(
    document: Document, files: tuple[Companion, ...], written: WrittenConfig, before: int, folder: str
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return files without a tokeniser that has tokens beyond the rows, if the document made these fewer.

    Raises ConfigError for token ids beyond them.
    """
    rows = _rows(written.config)
    if not rows or rows >= before:
        return files, []
    numbers, given = Renumbering.first(rows, before), dict(_given(document.model))
    new, remedy = f"a vocabulary of {rows} rows", f"{IN_YAML}; or go by token: --vocab SRC_TOKENS:DST_TOKENS"
    moved, notes = renumbered(CONFIG, written.everything, numbers, new, remedy=remedy, fixed=frozenset(given))
    written.apply(moved)
    files, more = renumbered_generation(files, numbers, new, given, remedy=remedy)
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
