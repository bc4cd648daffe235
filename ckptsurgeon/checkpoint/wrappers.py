"""Prefixes that training wrappers put in front of every key: DDP's ``module``, torch.compile's ``_orig_mod``.

timm's ``clean_state_dict`` strips each once, which leaves one of ``_orig_mod.module``; here it goes on until
nothing is left to strip.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["INSIDE", "Unwrapping", "unwrap", "unwrap_as"]

WRAPPERS = ("module", "_orig_mod")
INSIDE = "**._orig_mod"
"""How a wrapper that was taken out from inside keys is written in ``stripped``."""

COUNTER = "n_averaged"
"""``torch.optim.swa_utils.AveragedModel`` keeps its counter beside the wrapped model."""


@dataclass(frozen=True)
class Unwrapping:
    """The stored key of every key that is shown, what was stripped, and keys set aside."""

    stored: dict[str, str]
    stripped: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()


def unwrap(keys: Iterable[str], destination: Collection[str] = ()) -> Unwrapping:
    """Strip wrappers to a fixed point, except where the keys of ``destination`` have them too."""
    stored = {key: key for key in keys}
    stripped: list[str] = []
    aside: tuple[str, ...] = ()
    while True:
        inner = [key for key in stored if key != COUNTER]
        head = _common_head(inner)
        if head not in WRAPPERS or _common_head(destination) == head:
            break
        if COUNTER in stored:
            del stored[COUNTER]
            aside = (COUNTER,)
        stored = {key.partition(".")[2]: value for key, value in stored.items()}
        stripped.append(head)
        if destination and _common_head(destination) in WRAPPERS:
            destination = [key.partition(".")[2] for key in destination]
    if not any("._orig_mod." in key for key in destination):
        plain = {_without_inside(key): value for key, value in stored.items()}
        if len(plain) == len(stored) and plain.keys() != stored.keys():
            stored = plain
            stripped.append(INSIDE)
    return Unwrapping(stored, tuple(stripped), aside)


def unwrap_as(keys: Iterable[str], stripped: Sequence[str]) -> Unwrapping:
    """Strip just what was stripped when a plan was made."""
    stored = {key: key for key in keys}
    aside: tuple[str, ...] = ()
    for wrapper in stripped:
        if wrapper == INSIDE:
            stored = {_without_inside(key): value for key, value in stored.items()}
            continue
        if COUNTER in stored:
            del stored[COUNTER]
            aside = (COUNTER,)
        stored = {key.removeprefix(f"{wrapper}."): value for key, value in stored.items()}
    return Unwrapping(stored, tuple(stripped), aside)


def _common_head(keys: Collection[str]) -> str:
    """Return the first segment that all keys share, if something follows it in each; else ''."""
    heads = {key.partition(".")[0] if "." in key else "" for key in keys}
    return heads.pop() if len(heads) == 1 else ""


def _without_inside(key: str) -> str:
    if "_orig_mod" not in key:
        return key
    first, *rest = key.split(".")
    return ".".join([first, *(part for part in rest if part != "_orig_mod")])
