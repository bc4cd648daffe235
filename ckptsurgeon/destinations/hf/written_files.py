"""Makes the small files next to the weights of a transformers output: config.json, the tokeniser and others."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...planning.target import Companion
from ...util.text import count, escape
from ...vocabulary.renumbered_ids import MovedIds
from ...vocabulary.renumbering import Renumbering
from ...vocabulary.replacement import tokens_at
from ...vocabulary.vocabulary import Vocabulary
from .._document import Document
from .config_text import config_text
from .files import CONFIG, companions, is_of_tokenizer
from .overrides import config_of, merged_fields
from .tokens import IN_FIELDS, IN_YAML, renumbered, renumbered_generation, renumbering_of, with_tokenizer_of

__all__ = ["WrittenConfig", "files_of", "has_fewer_rows", "size_of"]

# config.json: the user's file, with the changes of the destination.

Fields = dict[str, Any]
_OF_THE_LIBRARY = "transformers_version"


class WrittenConfig:
    """The configuration of a destination, and the fields of the user's file; a change is made in both.

    The written file is usually made from the fields of the user's file, because ``to_json_string`` of the configuration
    leaves out fields such as ``suppress_tokens``.
    """

    def __init__(self, config: Any, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        self.config = config
        fields = merged_fields(type(config), given, overrides) if overrides else given
        self._fields: Fields = copy.deepcopy(dict(fields))
        if self._fields.get("model_type") is None:
            self._fields["model_type"] = config.model_type
        if "num_labels" in overrides:  # transformers writes the labels, not their number
            self._fields.pop("num_labels")
            self._fields.update({name: getattr(config, name) for name in ("id2label", "label2id")})
        self._fields["architectures"] = config.architectures

    @property
    def everything(self) -> Fields:
        """All fields of the configuration: the fields of its class, with defaults, and further fields of the file."""
        return _with_others(self.config.to_dict(), self._fields)

    def apply(self, moved: MovedIds) -> None:
        """Set the new token ids, both in the configuration and in the fields of the file."""
        for path, value in moved.changed.items():
            inner, written = self.config, self._fields
            for name in path[:-1]:
                inner = inner[name] if isinstance(inner, dict) else getattr(inner, name)
                if not isinstance(written.get(name), dict):
                    written[name] = {}
                written = written[name]
            if isinstance(inner, dict):
                inner[path[-1]] = value
            else:
                setattr(inner, path[-1], value)
            written[path[-1]] = value

    def companion(self) -> Companion:
        """Return the config.json to write: the user's fields with the changes.

        If transformers would read another configuration from these fields, the file gets all fields, with defaults.
        """
        text = config_text(self._fields)
        if not self._is_taken(text):
            text = config_text(_with_others(json.loads(self.config.to_json_string()), self._fields))
        return Companion(CONFIG, text=text)

    def _is_taken(self, text: str) -> bool:
        """Return whether transformers reads the JSON in ``text`` as a configuration equal to ``self.config``."""
        try:
            taken = config_of(type(self.config), json.loads(text)).to_dict()
        except Exception:  # a class of transformers may raise anything
            return False
        return {**taken, _OF_THE_LIBRARY: ""} == {**self.config.to_dict(), _OF_THE_LIBRARY: ""}


def _with_others(fields: Fields, others: Mapping[str, Any]) -> Fields:
    """Return ``fields`` and the fields that only ``others`` has, also inside nested configurations."""
    made = {**others, **fields}
    for name, value in fields.items():
        inner = others.get(name)
        if isinstance(value, dict) and isinstance(inner, dict) and name.endswith("_config"):
            made[name] = _with_others(value, inner)
    return made


# The other small files, if the model's vocabulary differs from the vocabulary of the folder.


def files_of(
    document: Document, written: WrittenConfig, fields: Mapping[str, Any], folder: str, made: Sequence[Companion] = ()
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files that go next to the weights, and notes on them.

    ``written`` is the config.json that is written, with the overrides of the user's destination file. If ``document``
    has a new vocabulary, each token id becomes the id that the same token has in the new vocabulary. ``fields`` and
    ``folder`` are the fields and the folder of the original config.json. ``made`` are the files of a tokeniser that was
    made for the trained tokens. Raises ConfigError for an id whose token is not in the new vocabulary.
    """
    files, before = companions(folder), size_of(type(written.config), fields)
    if document.vocabulary is None:
        files, said = _of_fewer_rows(document, files, written, before, folder)
    else:
        own = tokens_at(folder)
        change = document.vocabulary
        files, said = with_tokenizer_of(files, change.paths[1], change.new, own, change.files or made)
        files, moved = _renumbered(document, files, written, own, fields, before, has_blank=bool(made))
        said = [*moved, *said]
    return (written.companion(), *files), said


def _renumbered(
    document: Document,
    files: tuple[Companion, ...],
    written: WrittenConfig,
    own: Vocabulary | None,
    fields: Mapping[str, Any],
    rows: int,
    *,
    has_blank: bool,
) -> tuple[tuple[Companion, ...], list[str]]:
    """Change the token ids in ``written``; return the files next to it, which also have the new ids, and notes.

    ``fields`` are the fields of the original config.json, ``own`` is the token list next to that file, and ``rows`` is
    its vocabulary size. If ``has_blank`` is true, the padding token already is the blank of the new tokens.
    """
    change, given = document.vocabulary, dict(_given({**document.model, **document.overrides}))
    assert change is not None
    fixed = frozenset((*given, "pad_token_id") if has_blank else given)
    told = frozenset(name for name, _ in _given(fields))
    everything = written.everything
    remedy = IN_FIELDS if document.overrides else IN_YAML
    numbers, new = renumbering_of(change, own, rows, everything, fixed, remedy), change.paths[1]
    if numbers is None:
        return files, []
    moved, notes = renumbered(CONFIG, everything, numbers, new, remedy=remedy, fixed=fixed, told=told)
    written.apply(moved)
    files, more = renumbered_generation(files, numbers, new, given, remedy=remedy)
    return files, [*notes, *more]


def _given(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of all fields, including the fields of nested configurations."""
    for name, value in section.items():
        yield name, value
        if isinstance(value, dict):
            yield from _given(value)


def _of_fewer_rows(
    document: Document, files: tuple[Companion, ...], written: WrittenConfig, before: int, folder: str
) -> tuple[tuple[Companion, ...], list[str]]:
    """Remove token ids that no longer have a row, if the model has fewer rows than before; return the files, and notes.

    ``before`` is the number of rows of the vocabulary in the original config.json, and ``folder`` its folder. The
    tokeniser is left out of the files if it has more tokens than the model has rows. Raises ConfigError for a token id
    that the model needs but that has no row any more. If the number of rows is not smaller, nothing is changed.
    """
    rows = _rows(written.config)
    if not rows or rows >= before:
        return files, []
    numbers, given = Renumbering.first(rows, before), dict(_given({**document.model, **document.overrides}))
    new, remedy = f"a vocabulary of {rows} rows", f"{IN_YAML}; or match rows by token: --vocab SRC_TOKENS:DST_TOKENS"
    moved, notes = renumbered(CONFIG, written.everything, numbers, new, remedy=remedy, fixed=frozenset(given))
    written.apply(moved)
    files, more = renumbered_generation(files, numbers, new, given, remedy=remedy)
    own = tokens_at(folder) if any(is_of_tokenizer(one.name) for one in files) else None
    if own is None or len(own.tokens) <= rows:
        return files, [*notes, *more]
    note = (
        f"the tokeniser in {escape(folder or '.')} is not copied: it has {count(len(own.tokens), 'token')}, but the "
        f"model has {rows} rows; --vocab SRC_TOKENS:DST_TOKENS matches rows by token"
    )
    return tuple(one for one in files if not is_of_tokenizer(one.name)), [*notes, *more, note]


def has_fewer_rows(written: WrittenConfig, fields: Mapping[str, Any]) -> bool:
    """Return whether a destination's embedding has fewer rows than the vocabulary size in its config.json."""
    rows = _rows(written.config)
    return bool(rows) and rows < size_of(type(written.config), fields)


def size_of(config_class: Any, fields: Mapping[str, Any]) -> int:
    """Return the vocabulary size of the configuration with these ``fields``, or 0 if it has none.

    If ``fields`` lack ``vocab_size``, a configuration of ``config_class`` is made from them.
    """
    text = fields.get("text_config")
    for one in (fields, text if isinstance(text, dict) else {}):
        if type(one.get("vocab_size")) is int:
            return int(one["vocab_size"])
    try:
        return _rows(config_of(config_class, fields))  # in a field with another name, or in a nested configuration
    except Exception:  # a class of transformers may raise anything
        return 0


def _rows(config: Any) -> int:
    try:
        size = getattr(config.get_text_config(), "vocab_size", None)
    except ValueError:  # two vocabularies, and neither is the main one
        return 0
    return size if type(size) is int else 0
