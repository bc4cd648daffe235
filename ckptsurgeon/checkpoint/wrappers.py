"""Removes prefixes that training wrappers put in front of every key: DDP's ``module``, torch.compile's ``_orig_mod``.

timm's ``clean_state_dict`` removes each of the two once, in a fixed order, so a wrapper may remain if they are nested.
This module removes wrappers until none is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import escape

__all__ = ["DDP", "INSIDE", "NOT_WRAPPED", "WRAPPERS", "Unwrapping", "lacking_prefix_note", "unwrap", "unwrap_as"]

DDP = "module"
WRAPPERS = (DDP, "_orig_mod")
"""The first segments of keys that training wrappers add."""
INSIDE = "**._orig_mod"
"""The entry of ``stripped`` that means: ``_orig_mod`` was removed inside keys, as in ``layer._orig_mod.weight``."""

DEEPEST = 16
"""The most nested wrappers that are compared with the keys of a destination; real keys have at most four."""

COUNTER = "n_averaged"
"""The counter of ``torch.optim.swa_utils.AveragedModel``; its key has no prefix, unlike the keys of the model."""


@dataclass(frozen=True)
class Unwrapping:
    """The keys of a state dict without wrappers such as ``module``; ``stored`` maps each key to its key in the file.

    ``stripped`` has the wrappers that were removed. Each is the first segment of keys; if wrappers in front of it were
    kept, it is a path (``_orig_mod.module``). ``aside`` has keys that do not belong to the model, such as the counter
    of an averaged model. ``lacking`` is the prefix that is missing in the keys, compared with the keys of the
    destination, or ''.
    """

    stored: dict[str, str]
    stripped: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    lacking: str = ""


NOT_WRAPPED = Unwrapping({})
"""The result for a checkpoint whose keys stay as they are in the file."""


def lacking_prefix_note(lacking: str, path: str) -> Note:
    """Return the note on a prefix ``lacking`` that the keys of the destination have, but not the keys of ``path``."""
    begin = f"the keys of the destination begin with {lacking}., but the keys of {escape(path)} do not"
    return Note(NoteKind.REMARK, f"{begin}: --map ={lacking} adds this prefix")


def unwrap(keys: Iterable[str], destination: Collection[str] = ()) -> Unwrapping:
    """Return the keys without wrappers such as ``module.``; wrappers that the keys of ``destination`` have are kept.

    No prefix is ever added to a key.
    """
    stored = {key: key for key in keys}
    chain = _chain(stored)
    wanted = frozenset(destination)
    level = _best_level(stored, chain, wanted)
    stripped = list(chain[:level]) if level is not None else _unshared(chain, _chain(wanted))
    if "_orig_mod." in "\n".join(stored) and not any("._orig_mod." in key for key in wanted):
        stripped.append(INSIDE)
    done = _strip(stored, stripped)
    return Unwrapping(done.stored, done.stripped, done.aside, _lacking(done.stored, wanted))


def unwrap_as(keys: Iterable[str], stripped: Sequence[str]) -> Unwrapping:
    """Return the keys without the wrappers in ``stripped``, for example the wrappers that an earlier plan removed."""
    return _strip({key: key for key in keys}, stripped)


def _strip(stored: dict[str, str], stripped: Sequence[str]) -> Unwrapping:
    aside: list[str] = []
    done: list[str] = []
    for wrapper in stripped:
        if wrapper == INSIDE:
            plain = {_without_inside(key): value for key, value in stored.items()}
            if len(plain) == len(stored) and plain.keys() != stored.keys():
                stored = plain
                done.append(INSIDE)
            continue
        counter = _beside(wrapper, COUNTER)
        if counter in stored:
            aside.append(stored.pop(counter))
        stored = {_without(key, wrapper): value for key, value in stored.items()}
        done.append(wrapper)
    return Unwrapping(stored, tuple(done), tuple(aside))


def _chain(keys: Collection[str]) -> tuple[str, ...]:
    """Return the wrappers that all keys begin with, outermost first; the counter ``n_averaged`` need not have them."""
    found: list[str] = []
    prefix = ""
    while True:
        counter = prefix + COUNTER
        first = next((key for key in keys if key != counter), "")
        head, dot, _ = first[len(prefix) :].partition(".")
        prefix += head + dot
        if head not in WRAPPERS or not dot or not all(key.startswith(prefix) or key == counter for key in keys):
            return tuple(found)
        found.append(head)


def _best_level(keys: Collection[str], chain: Sequence[str], destination: frozenset[str]) -> int | None:
    """Return how many wrappers to remove, so that the most keys are in ``destination``; None if no key can be in it.

    ``chain`` are the wrappers of all keys, outermost first. If the destination has a submodule with the name of a
    wrapper, this wrapper is kept.
    """
    if not destination:
        return None
    prefixes = [""]
    for head in chain[:DEEPEST]:
        prefixes.append(f"{prefixes[-1]}{head}.")
    hits = [sum(key.startswith(p) and key[len(p) :] in destination for key in keys) for p in prefixes]
    return hits.index(max(hits)) if max(hits) else None


def _unshared(chain: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the wrappers to remove: the wrappers in ``chain`` that are not in ``other``.

    The two are compared from the innermost wrapper outwards. If wrappers around a removed wrapper are kept, it is
    returned as a path, such as ``_orig_mod.module``.
    """
    left = list(other)
    keep = []
    for wrapper in reversed(chain):
        keep.append(bool(left) and left[-1] == wrapper)
        if keep[-1]:
            left.pop()
    stripped: list[str] = []
    kept = ""
    for wrapper, stays in zip(chain, reversed(keep), strict=True):
        if stays:
            kept += f"{wrapper}."
        else:
            stripped.append(kept + wrapper)
    return stripped


def _lacking(shown: Mapping[str, str], destination: frozenset[str]) -> str:
    """Return the prefix of ``destination`` that the keys ``shown`` lack; '' if none is lacking, or none helps."""
    prefix = ".".join(_chain(destination))
    if not prefix or not destination.isdisjoint(shown):
        return ""
    return prefix if any(f"{prefix}.{key}" in destination for key in shown) else ""


def _beside(path: str, name: str) -> str:
    """Return ``path`` with its last segment replaced by ``name``: ``a.c`` for the path ``a.b`` and the name ``c``."""
    above = path.rpartition(".")[0]
    return f"{above}.{name}" if above else name


def _without(key: str, wrapper: str) -> str:
    """Return a key without the last segment of the prefix ``wrapper``; unchanged if the key has another prefix."""
    if not key.startswith(f"{wrapper}."):
        return key
    return _beside(wrapper, key[len(wrapper) + 1 :])


def _without_inside(key: str) -> str:
    if "_orig_mod" not in key:
        return key
    first, *rest = key.split(".")
    return ".".join([first, *(part for part in rest if part != "_orig_mod")])
