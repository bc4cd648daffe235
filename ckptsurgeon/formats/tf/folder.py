"""Chooses the checkpoint to read in a TensorFlow folder, and sorts its variables into model and training state."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from ...errors import FormatError, SourceError
from ...storage.read.base import File, Folder
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from ..base import limits
from ..base.format_table import is_weights
from ..base.header import FilePrint
from ..base.untrusted import parse_json
from .coqui import MOMENTS

__all__ = [
    "LAST",
    "STATES",
    "chosen",
    "is_folder",
    "key_of",
    "named_in",
    "place_of",
    "small_file",
    "training_files",
    "tree_of",
]

# Sorts TensorFlow's variables by their names into variables of the model and of training.
#
# The variable ``layer_1/weights`` gets the key ``layer_1.weights``. TensorFlow 2 appends
# ``/.ATTRIBUTES/VARIABLE_VALUE`` to the name of every variable of an object graph; this suffix is removed.

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_SLOTS: Mapping[str, tuple[str, ...]] = {
    "Adam": ("optimizer", "adam_m"),
    "Adam_1": ("optimizer", "adam_v"),
    "Momentum": ("optimizer", "momentum"),
    "ExponentialMovingAverage": ("model_ema",),
}
"""{suffix: path}: under this suffix, TensorFlow 1 stores a further value of a variable, such as a moment of Adam.

The path leads to the state dict that gets these values in the result of ``tree_of``.
"""
_TRAINING = frozenset({"beta1_power", "beta2_power", "global_step", "learning_rate", "save_counter"})
"""Scalars of the training state, such as the number of steps."""


def key_of(name: str) -> str:
    """Return the key for the name of a variable: ``layer_1.bias`` for ``layer_1/bias``."""
    return name.removesuffix(_VALUE).strip("/").replace("/", ".")


def tree_of(variables: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return variables as a dict of state dicts: ``model``, ``model_ema``, and ``optimizer`` for the training state.

    Raises FormatError if two variables would get the same key.
    """
    tree: dict[str, Any] = {}
    for name, info in variables.items():
        *path, key = place_of(name, info.shape, variables)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        if key in node:
            raise FormatError(
                f"the variable {escape(name)} and another variable would both get the key {escape(key)}.", rule="keys"
            )
        node[key] = info
    return tree


def place_of(name: str, shape: tuple[int, ...], names: Collection[str]) -> tuple[str, ...]:
    """Return the keys that lead to a variable in the result of ``tree_of``, such as ("model", "layer_1.bias").

    ``names`` has the names of all variables.
    """
    owner, _, slot = name.rpartition("/")
    # if both moments exist, they belong to Adam, even without the variable: cuDNN's LSTM is saved under other names
    if slot in _SLOTS and (owner in names or all(f"{owner}/{moment}" in names for moment in MOMENTS)):
        return (*_SLOTS[slot], key_of(owner))
    key = key_of(name)
    if _SLOT in name:
        owner, _, slot = name.removesuffix(_VALUE).partition(_SLOT)
        return ("optimizer", slot.replace("/", "."), key_of(owner))
    if key.startswith("optimizer.") and name.endswith(_VALUE):
        return ("optimizer", key.removeprefix("optimizer."))
    if key in _TRAINING and not shape:
        return ("optimizer", key)
    return ("model", key)


LAST = "checkpoint"
STATES = ("best_dev_checkpoint", LAST)
"""Files that name the checkpoint to read, in the order in which Coqui STT looks for them: best, then last."""
_NAMED = re.compile(rb'^\s*model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)*)"', re.M)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.S)
_DATA = re.compile(r"\.data-\d{5,}-of-\d{5,}$")
_INDEX = ".index"
_FLAGS, _ALPHABET = "flags.txt", "alphabet.txt"


def is_folder(folder: Folder) -> bool:
    """Return whether a folder has TensorFlow checkpoints: an index with data files, and no other weights.

    A valid file ``checkpoint`` or ``best_dev_checkpoint`` is enough, too.
    """
    names = folder.names()
    if _prefixes(names) and not any(map(is_weights, names)):
        return True
    return any(name in names and _named(folder, name) is not None for name in STATES)


def _prefixes(names: Sequence[str]) -> list[str]:
    """Return the names, without ``.index``, of the checkpoints in a folder: they have both an index and data files."""
    data = {_DATA.sub("", name) for name in names if _DATA.search(name)}
    return [name.removesuffix(_INDEX) for name in names if name.endswith(_INDEX) and name.removesuffix(_INDEX) in data]


class Chosen(NamedTuple):
    """The checkpoint to read: its name without suffix, a note, and the fingerprint of the file that names it."""

    prefix: str
    note: str
    file: FilePrint


def chosen(folder: Folder) -> Chosen:
    """Return the checkpoint that ``best_dev_checkpoint`` names; if it names none, the one that ``checkpoint`` names.

    These files contain a path on the machine that trained, so only the last part of the path is used. Raises
    FormatError if neither file names a checkpoint, or if the checkpoint is missing.
    """
    names = folder.names()
    prefixes = _prefixes(names)
    invalid = ""
    for state in STATES:
        if state not in names:
            continue
        named = _named(folder, state)
        if named is None:
            invalid = f", since {state} names no checkpoint"
            continue
        if named + _INDEX not in names:
            raise FormatError(
                f"{escape(folder.uri)}: {state} refers to {escape(named)}, "
                f"but the file {escape(named + _INDEX)} is missing.",
                hint=_which(folder, prefixes),
                rule="missing index",
            )
        others = [prefix for prefix in prefixes if prefix != named]
        also = f"; also in the folder: {listing(others, where='')}" if others else ""
        return Chosen(named, f"read {escape(named)}, as {state} says{invalid}{also}", _print_of(folder, state))
    raise FormatError(
        f"{escape(folder.uri)} has no valid {STATES[0]} or {STATES[1]}: one of them must say which checkpoint to read.",
        hint=_which(folder, prefixes),
        rule="no checkpoint",
    )


def _print_of(folder: Folder, name: str) -> FilePrint:
    with closing(folder.file(name)) as file:
        return FilePrint.of(file, hashlib.sha256(file.read(0, file.size)).hexdigest(), name)


def _which(folder: Folder, prefixes: Sequence[str]) -> str:
    return f"Pass one of these: {listing([f'{folder.uri}/{prefix}' for prefix in prefixes])}." if prefixes else ""


def _named(folder: Folder, state: str) -> str | None:
    """Return the name, without folders, of the checkpoint that the file ``state`` names; None if it names none."""
    return named_in(small_file(folder, state) or b"")


def named_in(text: bytes) -> str | None:
    """Return the name, without folders, of the checkpoint in the text of a file ``checkpoint``; None if it has none."""
    found = _NAMED.search(text)
    if found is None:
        return None
    path = _ESCAPE.sub(_unescaped, found[1]).decode("utf-8", "replace")
    return re.split(r"[/\\]", path)[-1] or None


def _unescaped(found: re.Match[bytes]) -> bytes:
    text = found[1]
    return bytes([int(text, 8) & 0xFF]) if text[:1].isdigit() else text


def small_file(folder: Folder, name: str) -> bytes | None:
    """Return the bytes of a file of a folder; None if it cannot be read or is larger than 1 MiB."""
    try:
        file = folder.file(name)
        try:
            return file.read(0, file.size) if file.size <= limits.BESIDE_BYTES else None
        finally:
            file.close()
    except SourceError:
        return None


def training_files(file: File) -> Iterator[tuple[str, Any]]:
    """Yield (name, content) of the flags and the alphabet that Coqui STT saves next to a checkpoint."""
    folder = file.folder()
    try:
        names = folder.names()
    except SourceError:
        return
    for name in (_FLAGS, _ALPHABET):
        raw = small_file(folder, name) if name in names else None
        if raw is None:
            continue
        try:
            yield name, parse_json(raw) if name == _FLAGS else raw.decode("utf-8")
        except ValueError:
            yield name, f"{len(raw)} bytes that are not valid {'JSON' if name == _FLAGS else 'UTF-8'}"
