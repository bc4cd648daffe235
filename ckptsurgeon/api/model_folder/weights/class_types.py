"""A note on a class in ``architectures`` that belongs to another model type than ``model_type`` in config.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape
from .required_parts import classes_of, types_with

__all__ = ["class_type_notes", "loaded_class"]

_PURPOSE = re.compile(r"(?:For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|(?<!LMHead)Model)$")
"""Matches the end of a class's name that says what the class is for, such as ForCausalLM."""
_TEXTS = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of classes that generate texts."""


@notes_of(NoteKind.CONFIGURATION)
def class_type_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the class in ``architectures`` does not belong to the model type in ``model_type``.

    transformers' Auto classes choose a class by ``model_type``; runtimes such as vLLM choose by ``architectures``.
    There is no note on a class or a type that is not in the table of transformers' classes. There is none on a class
    for a part of the model either, such as CLIPTextModel (of ``clip_text_model``) in a configuration of ``clip``.
    """
    kind, name = config.get("model_type"), _class_of(config)
    other = _other_type(config)
    if not other:
        return
    loaded = _counterpart(name, classes_of(str(kind))) or f"a class of {escape(str(kind))}"
    said = f"config.json says {escape(str(kind))} (model_type), but {escape(name)} (architectures), a class of {other}"
    yield f"{said}: transformers' Auto classes load {loaded}, while other programs choose the class by architectures"


def loaded_class(config: Mapping[str, Any]) -> str:
    """Return the class that transformers' Auto classes load; '' if ``architectures`` does not have one class.

    This is the class in ``architectures``, unless it is of another model type.
    """
    name = _class_of(config)
    return (_counterpart(name, classes_of(str(config.get("model_type")))) if _other_type(config) else "") or name


def _class_of(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""


def _other_type(config: Mapping[str, Any]) -> str:
    """Return the model type of the class in ``architectures`` if it differs from ``model_type``, else ''."""
    kind, name = config.get("model_type"), _class_of(config)
    own = classes_of(kind) if isinstance(kind, str) and name and not config.get("auto_map") else ()
    others = types_with(name) if own and name not in own else ()
    return "" if any(_is_part(str(kind), other) for other in others) else next(iter(others), "")


def _is_part(kind: str, other: str) -> bool:
    """Return whether one of two model types is a part of the other, as ``clip_text_model`` is a part of ``clip``.

    The name of a part begins with the name of the whole.
    """
    one, longer = sorted((re.sub(r"\W", "_", kind), re.sub(r"\W", "_", other)), key=len)
    return longer.startswith(f"{one}_")


def _counterpart(name: str, own: Collection[str]) -> str:
    """Return the class in ``own`` that has the same purpose as the class ``name``; '' if there is none."""
    purpose = _PURPOSE.search(name)
    ends = () if purpose is None else (_TEXTS if purpose[0] in _TEXTS else (purpose[0],))
    found = [one for one in own if (match := _PURPOSE.search(one)) and match[0] in ends]
    return min(found, key=len, default="")
