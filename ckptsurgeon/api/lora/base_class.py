"""Finds adapters that were trained on a base of another model class than the present base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import CONFIG
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import escape
from ..model_folder.folder import model_folder

__all__ = ["other_class_notes"]

OF_TRANSFORMERS = "transformers.models."
_FAMILY = re.compile(r"(?:TF|Flax)?(.+?)(?:For[A-Z]|Model|LMHead|DoubleHeads|PreTrained|Encoder|Decoder|$)")
"""Matches the name of a class of transformers; group 1 is the family, such as Llama."""


@notes_of(NoteKind.OTHER_BASE)
def other_class_notes(base: Checkpoint, *adapters: Checkpoint) -> Iterator[str]:
    """Yield a note on each adapter whose ``auto_mapping`` names a class of another family than the base's config.json.

    Only classes of transformers are compared, because a class from other code may load any kind of model.
    """
    config = model_folder(base).config if base.folder is not None else {}
    types, classes = _types(config), config.get("architectures")
    if not types or not isinstance(classes, list):
        return
    for adapter in adapters:
        stated = model_folder(adapter).adapter.get("auto_mapping") if adapter.folder is not None else None
        name, library = _stated(stated)
        if not name or _family(name) in {_family(one) for one in classes if isinstance(one, str)}:
            continue
        if not any(one.startswith(library) or library.startswith(one) for one in types):
            base_type = f"{escape(str(config.get('model_type')), 80)} ({CONFIG})"
            yield f"the base of {escape(adapter.path)} is a {escape(name, 80)} (auto_mapping), not a {base_type}"


def _stated(stated: Any) -> tuple[str, str]:
    """Return the class of transformers that ``auto_mapping`` names, and the folder of its code in transformers.

    ``stated`` is the value of ``auto_mapping``. Returns two empty strings if it names no class of transformers.
    """
    if not isinstance(stated, Mapping):
        return "", ""
    name, library = stated.get("base_model_class"), stated.get("parent_library")
    if not isinstance(name, str) or not isinstance(library, str) or not library.startswith(OF_TRANSFORMERS):
        return "", ""
    folder = _plain(library.removeprefix(OF_TRANSFORMERS).partition(".")[0])
    return (name, folder) if folder and folder != "auto" else ("", "")


def _types(config: Mapping[str, Any]) -> list[str]:
    """Return the model types in config.json: that of the model, and those of its parts."""
    parts = [config, *(one for one in config.values() if isinstance(one, Mapping))]
    return [_plain(one["model_type"]) for one in parts if isinstance(one.get("model_type"), str) and one["model_type"]]


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())


def _family(name: str) -> str:
    found = _FAMILY.match(name)
    return found[1].lower() if found is not None else name.lower()
