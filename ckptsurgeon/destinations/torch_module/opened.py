"""Finds the files that a constructor opens and the hosts that it contacts, through Python's audit events (PEP 578).

safetensors and TorchScript open their files outside of Python, without an event. So their functions are replaced while
a constructor is watched. Files opened by threads that were already running before are not noticed.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import takewhile
from types import FunctionType
from typing import Any
from unittest import mock
from weakref import WeakSet

import safetensors
import torch

from .user_code import PROCESS_STATE

__all__ = ["Opened", "OwnThreads", "exchanged", "stand_in", "watched", "writes"]

_ORIGINAL = "_ckptsurgeon_original"
"""The attribute in which a replacement stores the function or class that it replaces."""

READERS: tuple[tuple[Any, str], ...] = ((safetensors, "safe_open"), (torch.jit, "load"))


class OwnThreads:
    """The threads whose reads of files and connections are recorded.

    At first, only the thread that makes this object is recorded. In a block ``with threads.starting():``, each thread
    that a recorded thread starts is added.
    """

    def __init__(self) -> None:
        self._own = WeakSet([threading.current_thread()])

    @property
    def is_here(self) -> bool:
        """Whether the current thread is one of the recorded threads."""
        return threading.current_thread() in self._own

    @contextmanager
    def starting(self) -> Iterator[None]:
        """During the block, add each thread that a recorded thread starts."""
        start = threading.Thread.start

        def started(thread: threading.Thread) -> None:
            if self.is_here:
                self._own.add(thread)
            start(thread)

        with mock.patch.object(threading.Thread, "start", started):
            yield


@dataclass(eq=False)
class Opened:
    """The files that the code in a block read and the hosts that it contacted, each in the order of first use.

    ``files`` are the paths of the files. A file that the code itself wrote before is left out, unless the code
    contacted a host before it read the file: then the file may be a download. ``hosts`` are the names of the hosts.
    ``unreachable`` is the first host that did not answer, '' if all answered. ``threads`` are the watched threads.
    """

    files: dict[str, None] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    unreachable: str = ""
    threads: OwnThreads = field(default_factory=OwnThreads)
    written: set[str] = field(default_factory=set)

    def read(self, path: Any) -> None:
        """Add the path of a file that a watched thread reads; does nothing if ``path`` is not a path."""
        if isinstance(path, (str, bytes, os.PathLike)) and self.threads.is_here:
            name = os.fsdecode(path)
            if self.hosts or os.path.abspath(name) not in self.written:
                self.files[name] = None

    def wrote(self, path: Any) -> None:
        """Add the path of a file that a watched thread writes; does nothing if ``path`` is not a path."""
        if isinstance(path, (str, bytes, os.PathLike)) and self.threads.is_here:
            self.written.add(os.path.abspath(os.fsdecode(path)))


_now: Opened | None = None
"""The record of the block of ``watched`` that is running; None if there is none."""


@cache
def _listen() -> None:
    """Add Python's audit hook, once in a process, because Python cannot remove a hook."""
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    seen = _now
    if seen is None or event not in ("open", "socket.getaddrinfo") or not isinstance(args[0], (str, bytes)):
        return
    if not seen.threads.is_here:
        return
    if event == "socket.getaddrinfo":
        seen.hosts[os.fsdecode(args[0])] = None
    elif writes(args[1], args[2]):
        seen.wrote(args[0])
    else:
        seen.read(args[0])


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
"""The flags of ``os.open`` with which a file may be changed or made."""


def writes(mode: object, flags: object) -> bool:
    """Return whether a file is opened for writing; ``mode`` and ``flags`` are arguments of the audit event "open"."""
    if isinstance(mode, str):
        return not {"w", "a", "x", "+"}.isdisjoint(mode)
    return isinstance(flags, int) and bool(flags & _WRITING)  # os.open gives no mode


@contextmanager
def watched() -> Iterator[Opened]:
    """Yield an ``Opened``, which collects the files and hosts that the code in the block uses.

    Only one thread at a time can be in such a block. If a host does not answer, huggingface_hub works offline until the
    end of the block: it uses only its cache, and fails immediately instead of retrying for a minute.
    """
    global _now
    _listen()
    with PROCESS_STATE, ExitStack() as stack:
        seen = Opened()
        before, _now = _now, seen
        stack.callback(_again, before)
        stack.enter_context(seen.threads.starting())
        readers = ((getattr(module, name), name, partial(_reading, seen)) for module, name in READERS)
        stack.enter_context(exchanged(*readers, (torch.save, "save", partial(_writing, seen))))
        stack.enter_context(_offline_after_failure(seen))
        yield seen


def _again(before: Opened | None) -> None:
    global _now
    _now = before


def _reading(seen: Opened, original: Any) -> Any:
    """Return a version of the function ``original`` that also adds the file that it opens to ``seen``."""

    def heard(file: Any, *args: Any, **kwargs: Any) -> Any:
        if _now is seen:
            seen.read(file)
        return original(file, *args, **kwargs)

    return stand_in(original, heard)


def _writing(seen: Opened, original: Any) -> Any:
    def heard(content: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
        if _now is seen:
            seen.wrote(file)
        return original(content, file, *args, **kwargs)

    return heard


def stand_in(original: Any, call: Callable[..., Any]) -> Any:
    """Return a replacement for ``original`` that calls ``call``; for a class, the replacement is a class, too."""
    if not isinstance(original, type):
        return call

    class Same(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, original)

    return Same(original.__name__, (), {"__doc__": original.__doc__})


@contextmanager
def exchanged(*functions: tuple[Any, str, Callable[[Any], Any]]) -> Iterator[None]:
    """Replace each ``original`` by ``make(original)`` during the block, in all imported modules.

    ``functions`` are tuples of an original, its name and ``make``. Only modules that have an original under its name
    are changed. At the end the originals are put back. A module that was imported during the block may have a
    replacement under any name; there, too, the original is put back. There can be thousands of modules, so one pass
    replaces all functions. If code in the block stores a replacement in another place than a module, the replacement
    remains there after the block, and calls the original.
    """
    made = [(name, original, make(original)) for original, name, make in functions]
    last = next(reversed(sys.modules))
    for _, original, new in made:
        setattr(new, _ORIGINAL, original)
    changed = list(_exchange(made))
    try:
        yield
    finally:
        for names, name, found, new in changed:
            if names.get(name) is new:
                names[name] = found
        originals = {id(new): original for _, original, new in made}
        for module in takewhile(lambda name: name != last, reversed([*sys.modules])):  # in the order of their import
            names = getattr(sys.modules.get(module), "__dict__", {})
            for key, value in list(names.items()) if isinstance(names, dict) else ():
                if id(value) in originals:  # of many thousand names in modules of transformers, few or none
                    names[key] = originals[id(value)]


def _exchange(functions: Iterable[tuple[str, object, object]]) -> Iterator[tuple[dict[str, Any], str, object, object]]:
    """Replace functions in all imported modules; yield each replacement when it has been made.

    The caller must use up the generator: each module is changed only when the generator reaches it.

    ``functions`` are tuples (name, old function, new function). A module is changed only if it has the old function
    under this name. Yields (``__dict__`` of the module, name, function to put back at the end, new function).
    """
    named: dict[str, list[tuple[object, object]]] = {}
    for name, old, new in functions:
        named.setdefault(name, []).append((old, new))
    wanted = named.keys()
    for module in _imported():
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict) or wanted.isdisjoint(names.keys()):  # true of most modules
            continue
        for name, pairs in named.items():
            if name in names:
                found = names[name]
                new = next((new for old, new in pairs if _of(found) is _of(old)), None)
                if new is not None:
                    before = found if any(found is old for old, _ in pairs) else _of(found)
                    names[name] = new
                    yield names, name, before, new


def _imported() -> list[object]:
    """Return all imported modules."""
    return list(sys.modules.values())


def _of(function: object) -> object:
    """Return the original if ``function`` is a replacement that ``exchanged`` has made, else ``function`` itself."""
    while issubclass(type(function), (FunctionType, type)) and _ORIGINAL in vars(function):
        function = vars(function)[_ORIGINAL]
    return function


@contextmanager
def _offline_after_failure(seen: Opened) -> Iterator[None]:
    changed: list[tuple[Any, Any]] = []

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def tried(host: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(host, *args, **kwargs)
            except OSError:
                if seen.threads.is_here:
                    seen.unreachable = seen.unreachable or str(host[0] if isinstance(host, tuple) else host)
                    constants: Any = sys.modules.get("huggingface_hub.constants")
                    if constants is not None and not changed:
                        changed.append((constants, constants.HF_HUB_OFFLINE))
                        constants.HF_HUB_OFFLINE = True
                raise

        return tried

    originals: tuple[Any, Any] = socket.getaddrinfo, socket.create_connection
    socket.getaddrinfo, socket.create_connection = map(failing, originals)
    try:
        yield
    finally:
        socket.getaddrinfo, socket.create_connection = originals
        for constants, before in changed:
            constants.HF_HUB_OFFLINE = before
