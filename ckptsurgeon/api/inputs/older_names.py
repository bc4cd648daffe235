"""Says if a live module of transformers has other keys than a checkpoint of the same model.

transformers 5 saves some models under older names than their modules have in memory, and renames them when it loads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...checkpoint.opening import is_live, open_checkpoint
from ...errors import CheckpointError, PlanError
from ...util.text import count, escape

__all__ = ["older_name_notes", "older_names_said"]

_REMEDY = (
    "save the module with save_pretrained, which writes the older names, and give its folder; load_into and transplant "
    "into the module rename them"
)


def older_name_notes(given: Iterable[Any], root: str | None = None) -> list[str]:
    """Return a note on each checkpoint in ``given`` with keys that transformers renames for a live module in ``given``.

    ``root`` is the dotted path of the state dict in the checkpoints. Only headers are read, and only if there is such a
    module. A checkpoint that cannot be opened gets no note.
    """
    return [note for note, _ in _found(given, root)]


def _found(given: Iterable[Any], root: str | None) -> Iterator[tuple[str, Collection[str]]]:
    """Yield each note of ``older_name_notes``, with the keys before and after they are renamed."""
    models = list(given)
    for model in models:
        for other in models:
            if is_live(model) and not is_live(other):
                yield from _notes(model, other, root)


def _notes(model: Any, other: Any, root: str | None) -> Iterator[tuple[str, Collection[str]]]:
    """Yield the note on the live module ``model`` and the checkpoint ``other``, if any, and the keys.

    There is none if the keys differ only in the prefix of the base model: then the checkpoint is one of another class.
    """
    from ...destinations._load import load_target

    with suppress(CheckpointError), open_checkpoint(other, root) as opened:
        target = load_target(model)
        if target.recognise is None or all(key in target.tensors for key in opened):
            return
        names = {key: new for key, new in target.recognise(dict(opened.items())).names.items() if key != new}
        prefix = f"{model.base_model_prefix}."
        own = {key: new for key, new in names.items() if prefix + key != new and key != prefix + new}
        if own:
            old, new = next(iter(own.items()))
            said = (
                f"{escape(opened.path)} has other names than {escape(target.name)} for {count(len(names), 'tensor')}, "
                f"as transformers saves them ({escape(old)} is {escape(new)} in memory): {_REMEDY}"
            )
            yield said, {*own, *own.values()}


@contextmanager
def older_names_said(given: Iterable[Any], root: str | None = None) -> Iterator[None]:
    """Replace the hint of a PlanError raised in the ``with`` block if it names tensors that a live module renames."""
    try:
        yield
    except PlanError as error:
        said = "\n".join((error.message, *error.details))
        notes = [note for note, keys in _found(given, root) if any(key in said for key in keys)]
        if notes:
            error.hint = ""
            error.add_hint(f"The cause: {'; '.join(notes)}.")
        raise
