"""Finds the kind of a destination and loads it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, cast

from ..errors import ConfigError, FormatError
from ..registry import discover
from ..tensors import TargetSpec
from ..text import escape
from ._document import Document, read_document
from .checkpoint import checkpoint_target

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_target", "module_destination"]

_SUFFIXES = (".yaml", ".yml", ".json")


class _Kind(Protocol):
    """One kind of destination configuration: one file of this folder, as ``CONFIG``.

    ``field`` is the entry of the model section that marks it.
    """

    field: str

    def load(self, document: Document) -> TargetSpec: ...


class _Toolkit(Protocol):
    """A toolkit's own configuration: one file of this folder, as ``TOOLKIT``; asked where none is ours."""

    def recognises(self, document: Document) -> bool: ...

    def load(self, document: Document) -> TargetSpec: ...


def load_target(path: str | os.PathLike[str]) -> TargetSpec:
    """Return the destination that a configuration or checkpoint describes: keys, shapes, dtypes, ties, initial values.

    A configuration that names code (``_target_``) imports and runs it, and says so in ``ran``. Raises ConfigError
    where the configuration is wrong or a package it needs is missing, and what ``open_checkpoint`` raises for a
    checkpoint.
    """
    text = os.fspath(path)
    low = text.lower()
    if os.path.isdir(text):
        return _folder(text)
    if not low.endswith(_SUFFIXES) or low.endswith(".index.json"):
        return checkpoint_target(text)
    document = read_document(text)
    return _ours(document) if document.model or _is_empty(document) else _toolkits(document)


def _folder(path: str) -> TargetSpec:
    """Return the checkpoint that a folder is; where it is none and has a configuration, the error says so."""
    config = os.path.join(path, "config.json")
    try:
        return checkpoint_target(path)
    except FormatError as error:
        if error.rule == "no checkpoint" and os.path.isfile(config):
            error.hint = f"It has a configuration, which may be the destination: {escape(config)}."
        raise


def _is_empty(document: Document) -> bool:
    return isinstance(document.content, dict) and document.content.get("model") == {}


def _ours(document: Document) -> TargetSpec:
    kinds = cast("dict[str, _Kind]", discover("ckptsurgeon.configs", "CONFIG"))
    by_field = {kind.field: kind for kind in kinds.values()}
    marks = [name for name in by_field if name in document.model]
    if len(marks) != 1:
        having = f"both {' and '.join(marks)}" if marks else "none of them"
        raise document.fail(
            f"the model section has {having}.", f"Say the model by one of {', '.join(sorted(by_field))}."
        )
    return by_field[marks[0]].load(document)


def _toolkits(document: Document) -> TargetSpec:
    """Load what a toolkit recognises as its own; raises ConfigError where none does."""
    for toolkit in cast("dict[str, _Toolkit]", discover("ckptsurgeon.configs", "TOOLKIT")).values():
        if toolkit.recognises(document):
            return toolkit.load(document)
    if document.fault is not None:
        raise document.fault
    raise ConfigError(
        f"{escape(document.path)} says nothing of a model.",
        hint="It needs a section 'model:' with _target_, name, tensors or like; ckpt init writes one.",
    )


def module_destination(model: nn.Module) -> TargetSpec:
    """Return a live module as a destination; what no source gives it keeps.

    Raises ConfigError where it is no module, or one whose tensors cannot be written in place.
    """
    from ._live import live_target

    return live_target(model)
