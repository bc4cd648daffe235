"""Strips prefixes that training wrappers put in front of every key: DDP's ``module``, torch.compile's ``_orig_mod``.

timm's ``clean_state_dict`` strips each once, which leaves one of ``_orig_mod.module``; here it goes on until
nothing is left to strip.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["INSIDE", "Unwrapping", "unwrap", "unwrap_as"]

WRAPPERS = ("module", "_orig_mod")
INSIDE = "**._orig_mod"
"""The form in ``stripped`` of a wrapper that was removed from the inside of keys."""

DEEPEST = 16
"""How many nested wrappers are checked against a destination; real keys have at most four."""

COUNTER = "n_averaged"
"""``torch.optim.swa_utils.AveragedModel`` keeps its counter next to the wrapped model."""


@dataclass(frozen=True)
class Unwrapping:
    """The stored key of each shown key, the wrappers stripped, and keys set aside.

    An entry of ``stripped`` is a wrapper at the front, or the path to one behind wrappers that stay
    (``_orig_mod.module``). ``lacking`` is the prefix that the keys would need to be those of the destination.
    """

    stored: dict[str, str]
    stripped: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    lacking: str = ""


def unwrap(keys: Iterable[str], destination: Collection[str] = ()) -> Unwrapping:
    """Return the keys with wrappers stripped to a fixed point, except those that the keys of ``destination`` have too.

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
    """Return the keys with exactly those wrappers stripped that were stripped when a plan was made."""
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
    """Return the wrappers in front of every key, outermost first, the counters of averaged models left aside."""
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
    """Return how many wrappers to strip so that most keys are the destination's; None if none ever is.

    This tells a wrapper from a submodule of the destination with the same name.
    """
    if not destination:
        return None
    prefixes = [""]
    for head in chain[:DEEPEST]:
        prefixes.append(f"{prefixes[-1]}{head}.")
    hits = [sum(key.startswith(p) and key[len(p) :] in destination for key in keys) for p in prefixes]
    return hits.index(max(hits)) if max(hits) else None


def _unshared(chain: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the wrappers of ``chain`` to strip: all except those that ``other`` has too, matched from the inside."""
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
    """Return the wrappers of the destination that the shown keys lack to be its own keys."""
    prefix = ".".join(_chain(destination))
    if not prefix or not destination.isdisjoint(shown):
        return ""
    return prefix if any(f"{prefix}.{key}" in destination for key in shown) else ""


def _beside(path: str, name: str) -> str:
    """Return the path of ``name`` next to ``path``, in the same module."""
    above = path.rpartition(".")[0]
    return f"{above}.{name}" if above else name


def _without(key: str, wrapper: str) -> str:
    """Return a key without the wrapper at the end of the path ``wrapper``."""
    if not key.startswith(f"{wrapper}."):
        return key
    return _beside(wrapper, key[len(wrapper) + 1 :])


def _without_inside(key: str) -> str:
    if "_orig_mod" not in key:
        return key
    first, *rest = key.split(".")
    return ".".join([first, *(part for part in rest if part != "_orig_mod")])
