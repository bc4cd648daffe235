"""What CPython's unpicklers, that in C and that in Python, do with a stream: the reference for ours.

``find_class`` is only written down: no name is ever looked up. ``python -m tests.analysis.scan.readers NUMBER [SEED]`` holds
ours against them over that many streams.
"""

from __future__ import annotations

import collections
import io
import pickle
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import ckptsurgeon as cs
from ckptsurgeon.analysis.scan.context import InMemoryFile
from ckptsurgeon.analysis.scan.findings import Finding
from ckptsurgeon.analysis.scan.judge import look_at
from ckptsurgeon.analysis.scan.pickle.known import KNOWN
from ckptsurgeon.formats.pickle import machine as _pickle
from ckptsurgeon.formats.pickle.values import GlobalName, OpaqueResult, PickledSet, Unhashable

from ...helpers.pace import little_memory
from .streams import stream

__all__ = ["judged", "parting", "read", "streams"]

REAL = {("builtins", "str"): str, ("builtins", "set"): set, ("collections", "OrderedDict"): collections.OrderedDict}
"""What makes texts and containers of plain data, as it is: so a name can be computed."""
NARROW = 16
"""Bytes that a reader looks ahead: a frame of more is read apart, as one of 128 KiB is from a file."""


class Inert:
    """Stands for whatever is asked for: can be called, and be given anything."""

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __call__(self, *args: Any, **named: Any) -> Inert:
        return self

    append = extend = add = __setitem__ = __setstate__ = __call__


class Kept(OpaqueResult):
    """What a reader fetches from outside, as torch its storages: it is no class, and no function."""


@dataclass
class Told:
    """What a reader asked for, in order, and what came of it: a value, or an error, ``why``."""

    names: list[tuple[str, str]] = field(default_factory=list)
    value: Any = None
    why: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.why)


def _asking(base: Any, file: Callable[[bytes], Any]) -> Callable[[bytes], Told]:
    class Asking(base):  # type: ignore[misc]
        def __init__(self, data: bytes) -> None:
            super().__init__(file(data))
            self.told = Told()

        def find_class(self, module: str, name: str) -> Any:
            if module and not any(sign in module for sign in "/\0\\"):  # no file is called so
                self.told.names.append((module, name))
            return REAL.get((module, name), Inert)

        def persistent_load(self, pid: Any) -> Any:
            return Inert()

    def read(data: bytes) -> Told:
        reader = Asking(data)
        try:
            reader.told.value = reader.load()
        except Exception as error:
            reader.told.why = f"{type(error).__name__}: {error}"
        return reader.told

    return read


def _buffered(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data), NARROW)  # type: ignore[arg-type]


READERS = {
    "C, of bytes": _asking(pickle.Unpickler, io.BytesIO),
    "C, of a file": _asking(pickle.Unpickler, _buffered),
    "Python": _asking(pickle._Unpickler, io.BytesIO),  # type: ignore[attr-defined]
}


def read(data: bytes) -> dict[str, Told]:
    """Return what each reader does with a stream."""
    return {name: reader(data) for name, reader in READERS.items()}


def judged(data: bytes, name: str = "x.pkl") -> list[Finding]:
    """Return what a scan finds in a file of this name."""
    outer: Any = SimpleNamespace(uri=name, name=name)
    return look_at(name, InMemoryFile(outer, data)).found


def parting(data: bytes) -> str:
    """Return in what ours goes another way than CPython's readers without saying so; nothing if it does not."""
    told = read(data)
    return _of_scan(data, told) or _of_reader(data, told)


def _of_scan(data: bytes, told: dict[str, Told]) -> str:
    found = judged(data)
    if any(one.verdict is cs.Verdict.CODE for one in found):
        return ""
    if any(name not in KNOWN for one in told.values() for name in one.names):
        return "a name that is imported is not unknown code"
    first, *others = told.values()
    if all(one.failed for one in told.values()) and any(one.fault for one in found):
        return ""
    if any(one.names != first.names for one in others):
        return "readers import other names, and that is not unknown code"
    if any(one.failed != first.failed or not _same(first.value, one.value) for one in others):
        return "readers read other values, and that is not unknown code"
    return ""


def _of_reader(data: bytes, told: dict[str, Told]) -> str:
    machine = _pickle.PickleMachine(data, rebuild={}, persistent=lambda pid: Kept("persistent", pid))
    try:
        value = machine.run()
    except cs.CheckpointError:
        return ""
    names = {(name.module, name.name) for name in machine._names.values()}
    if any(set(one.names) - names for one in told.values()):
        return "inspect reads on where others import another name"
    # ours hashes nothing that could take long, and takes text of Python 2 for UTF-8 or Latin-1
    lenient = all("unhashable" in one.why or "codec can't decode" in one.why for one in told.values())
    if names or lenient or _is_opaque(value):
        return ""
    if any(one.failed or not _same(value, one.value) for one in told.values()):
        return "inspect reads another value"
    return ""


def _is_opaque(value: Any) -> bool:
    return any(isinstance(one, (GlobalName, OpaqueResult)) for one in _walked(value))


def _walked(value: Any) -> Iterator[Any]:
    seen: set[int] = set()
    rest = [value]
    while rest:
        one = rest.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, Unhashable):
            rest.append(one.value)
        if isinstance(one, (list, tuple, set, frozenset)):
            rest += one
        elif isinstance(one, dict):
            rest += [*one, *one.values()]


def _same(one: Any, other: Any) -> bool:
    return _shape(one, 0) == _shape(other, 0)


def _shape(value: Any, depth: int) -> Any:
    """Return a value as what can be compared: ours keeps sets in order, and byte arrays as bytes."""
    if depth > 12:
        return "…"
    if isinstance(value, (PickledSet, set, frozenset)):
        return "set", sorted({repr(_shape(one, depth + 1)) for one in _unequal(value)})
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [_shape(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return "dict", sorted((repr(_key(key)), repr(_shape(one, depth + 1))) for key, one in value.items())
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "bytes", bytes(value)
    return repr(value) if isinstance(value, (int, str, float, type(None))) else type(value).__name__


def _unequal(values: Iterable[Any]) -> list[Any]:
    """Return those that a set keeps: of equals, as False and 0 are, the first. Ours keeps all until they are shown."""
    kept: list[Any] = []
    for one in values:
        if not any(one == other for other in kept):
            kept.append(one)
    return kept


def _key(key: Any) -> Any:
    return _shape(getattr(key, "value", key), 0)


def streams(number: int, seed: int) -> Iterator[bytes]:
    """Yield so many streams."""
    source = random.Random(seed)
    return (stream(source) for _ in range(number))


def main(number: int, seed: int) -> int:
    """Return 1 where ours goes another way; the first ten such streams are shown."""
    began, ends = time.monotonic(), 0
    warnings.simplefilter("ignore")  # of escapes that are none
    with little_memory():
        for data in streams(number, seed):
            why = parting(data)
            if why and ends < 10:
                print(f"{why}:\n  {data!r}\n  {read(data)}\n  {judged(data)}", flush=True)
            ends += bool(why)
    print(f"{number} streams of seed {seed}: {ends} partings, {time.monotonic() - began:.0f} s")
    return int(ends > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())))
