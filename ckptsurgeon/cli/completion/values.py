"""Finds the possible values of options and arguments: known names, and keys of the checkpoints on the command line."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import fields
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from ...errors import CheckpointError
from ...util.text import natural_key
from .parsed import ParsedLine

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint

__all__ = ["destination_keys", "roots", "segments", "shorten_to_beginnings", "source_keys", "values_of"]

# Keys of the checkpoints on the line, module by module. Only headers are read.
#
# A file may contain any string as a key; only keys without special characters of shells and patterns are offered.

MAX_CANDIDATES = 400
"""The largest number of candidates that are offered; if there are more, common prefixes are offered instead."""
MAX_SOURCES = 4
"""The keys of at most this many sources are read: the sources of a merge or an average usually have the same keys."""
_PLAIN = re.compile(r"[\w/@%+-]+")
_CONFIGURATIONS = (".yaml", ".yml", ".json")


def source_keys(found: ParsedLine) -> list[str]:
    """Return the keys of the sources on the command line, in the form that the patterns of the verb match.

    For some verbs and options, this form is without wrapper prefixes such as ``module.``.
    """
    if found.name != "transplant":
        unwrap = "unwrap" in found.values or all(param.name != "unwrap" for param in found.command.params)
        return _keys(found.arguments[:MAX_SOURCES], found, unwrap=unwrap)
    named = found.values.get("source") or found.arguments[:1]
    return _keys([_existing(one) for one in named[:MAX_SOURCES]], found, unwrap=True, beside=destination_keys(found))


def destination_keys(found: ParsedLine) -> list[str]:
    """Return the keys of the destination on the command line if it is a checkpoint, else [].

    A configuration is not read, because that may run code.
    """
    place = 0 if found.values.get("source") else 1
    named = [one for one in found.arguments[place : place + 1] if not _is_configuration(one)]
    return _keys(named, ParsedLine(found.command), unwrap=False)


def roots(found: ParsedLine) -> list[str]:
    """Return the possible values of --root: the state dicts in the file of the first source on the command line."""
    for path in (found.values.get("source") or found.arguments)[:1]:
        with closing(_opened(_existing(path), None)) as checkpoint:
            return [root for root in (checkpoint.root, *checkpoint.passed) if _is_plain(root)]
    return []


def _keys(paths: Sequence[str], found: ParsedLine, *, unwrap: bool, beside: Sequence[str] = ()) -> list[str]:
    root = next(iter(found.values.get("root", ())), None)
    keys: dict[str, None] = {}
    for path in paths:
        with suppress(CheckpointError, OSError), closing(_opened(path, root)) as checkpoint:
            keys.update(dict.fromkeys(checkpoint.unwrapped(destination=beside) if unwrap else checkpoint))
    return list(keys)


def _opened(path: str, root: str | None) -> Checkpoint:
    """Open a local file; raises OSError for a URL, and for a file that may block when it is read, such as a pipe."""
    from ...checkpoint.opening import open_checkpoint

    local = os.path.expandvars(os.path.expanduser(path))
    if "://" in path or not (os.path.isfile(local) or os.path.isdir(local)) or _is_configuration(local):
        raise FileNotFoundError(path)
    return open_checkpoint(local, root, unwrap=False)


def _existing(source: str) -> str:
    """Return ``source`` if a file has this name; else FILE, if ``source`` is written as ``FILE:SRC_KEY:DST_KEY``."""
    return source if os.path.exists(source) else source.partition(":")[0]


def _is_configuration(path: str) -> bool:
    return path.lower().endswith(_CONFIGURATIONS) and ".index." not in os.path.basename(path)


def segments(keys: Iterable[str], text: str) -> dict[str, bool]:
    """Return {completion of ``text`` by one segment: true for a module, false for a complete key}.

    If ``text`` is a complete module name, the content of that module is included.
    """
    before, dot, last = text.rpartition(".")
    under = _under(keys, before + dot)
    found = {f"{before}{dot}{name}": more for name, more in under.items() if name.startswith(last)}
    if last and under.get(last):
        found |= {f"{text}.{name}": more for name, more in _under(keys, f"{text}.").items()}
    return {key: found[key] for key in sorted(found, key=natural_key)}


def _under(keys: Iterable[str], prefix: str) -> dict[str, bool]:
    """Return {segment that follows ``prefix`` in ``keys``: true if more segments follow the segment in a key}."""
    found: dict[str, bool] = {}
    if prefix and not all(map(_is_plain, prefix[:-1].split("."))):
        return found
    for key in keys:
        if key.startswith(prefix):
            name, dot, _ = key[len(prefix) :].partition(".")
            if dot or name not in found:
                found[name] = bool(dot) or found.get(name, False)
    return {name: more for name, more in found.items() if _is_plain(name)}


def _is_plain(segment: str) -> bool:
    """Return whether a segment has no characters that a shell or a pattern interprets."""
    return bool(_PLAIN.fullmatch(segment)) and not segment.startswith(("-", "%", "+")) and segment.isprintable()


def shorten_to_beginnings(words: Sequence[str]) -> list[str]:
    """Return ``words``, or their different beginnings of one length if there are more than ``MAX_CANDIDATES`` words.

    The length is the largest for which there are at most ``MAX_CANDIDATES`` different beginnings.
    """
    if len(words) <= MAX_CANDIDATES:
        return list(words)
    *_, found = takewhile(
        lambda found: len(found) <= MAX_CANDIDATES, map(partial(_cut, words), range(max(map(len, words))))
    )
    return found


def _cut(words: Sequence[str], length: int) -> list[str]:
    return list(dict.fromkeys(word[:length] for word in words))


_WORD = re.compile(r"[a-z][a-z0-9_]*")


def values_of(option: str, metavar: str) -> list[str]:
    """Return the known values of an option: the words in its metavar (``size|key``), or a list such as all dtypes."""
    named = [word for word in metavar.rpartition("]")[2].split("|") if _WORD.fullmatch(word)]
    found = _KNOWN.get(option if metavar not in ("DTYPE", "keep|DTYPE") else "dtype")
    named_ones = metavar in ("", "FORMAT", "NAME", "[GLOB=]POLICY", "DTYPE", "keep|DTYPE")
    return [*named, *(found() if found is not None and named_ones else ())]


def _formats() -> Iterable[str]:
    from ...api.apply import output_formats

    return sorted(output_formats())


def _policies() -> Iterable[str]:
    from ...planning.mismatch.policy_text import MISMATCH_POLICIES

    return MISMATCH_POLICIES


def _rulesets() -> Iterable[str]:
    from ...planning.keys.renaming import RULESETS

    return RULESETS


def _methods() -> Iterable[str]:
    from ...api.merge.methods import list_methods

    return sorted(list_methods().methods)


def _dtypes() -> Iterable[str]:
    from ...tensors.dtypes import DTYPES

    return [name for name, dtype in DTYPES.items() if dtype.is_floating and dtype.values == 1]


def _settings() -> Iterable[str]:
    from ...trainer.config.settings import Settings

    return [one.name for one in fields(Settings)]


def _tasks() -> Iterable[str]:
    """Return the names of the training tasks, by the names of their files: importing the tasks would import torch."""
    spec = importlib.util.find_spec("ckptsurgeon.trainer.tasks")
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(one.name for one in pkgutil.iter_modules(places or []) if not one.name.startswith("_"))


_KNOWN: dict[str, Callable[[], Iterable[str]]] = {
    "to": _formats,
    "on_mismatch": _policies,
    "ruleset": _rulesets,
    "method": _methods,
    "dtype": _dtypes,
    "set": _settings,
    "set task": _tasks,
}
