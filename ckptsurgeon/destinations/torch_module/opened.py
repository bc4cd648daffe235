"""Finds out which files a constructor opens and which hosts it asks, through Python's audit events (PEP 578).

safetensors opens its files outside of Python, without an event, so its ``safe_open`` is replaced meanwhile.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import safetensors

__all__ = ["Opened", "watched"]


@dataclass
class Opened:
    """What the code in a block opened, each in the order of first use.

    ``files`` are paths of files that were read, ``hosts`` are names of hosts that it looked up, and ``unreachable`` is
    the first host that did not answer, '' if all did.
    """

    files: dict[str, None] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    unreachable: str = ""


_watching: list[Opened] = []


@cache
def _listen() -> None:
    """Add the audit hook, once in a process: Python cannot remove one."""
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(args[0], (str, bytes)):
        written = args[1] is not None and not {"w", "a", "x", "+"}.isdisjoint(args[1])
        if not written:
            _watching[-1].files[os.fsdecode(args[0])] = None
    elif event == "socket.getaddrinfo" and isinstance(args[0], (str, bytes)):
        _watching[-1].hosts[os.fsdecode(args[0])] = None


@contextmanager
def watched() -> Iterator[Opened]:
    """Give what the code in the block opens.

    Once a host does not answer, the hub's library works offline until the end of the block: it looks into its cache,
    and fails at once instead of trying again for a minute.
    """
    _listen()
    seen = Opened()
    _watching.append(seen)
    with ExitStack() as stack:
        stack.callback(_watching.remove, seen)
        stack.enter_context(_safe_open_heard(seen))
        stack.enter_context(_offline_after_failure(seen))
        yield seen


@contextmanager
def _safe_open_heard(seen: Opened) -> Iterator[None]:
    """Hear of the files that ``safe_open`` of safetensors opens, by whatever module it was imported."""
    original = safetensors.safe_open

    def heard(filename: Any, *args: Any, **kwargs: Any) -> Any:
        seen.files[os.fsdecode(filename)] = None
        return original(filename, *args, **kwargs)

    _exchange(original, heard)
    try:
        yield
    finally:
        _exchange(heard, original)


def _exchange(old: object, new: object) -> None:
    """Replace ``safe_open`` in every imported module that has it."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if isinstance(names, dict) and names.get("safe_open") is old:
            names["safe_open"] = new


@contextmanager
def _offline_after_failure(seen: Opened) -> Iterator[None]:
    hub = _hub_constants()
    before = getattr(hub, "HF_HUB_OFFLINE", None)

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def tried(host: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(host, *args, **kwargs)
            except OSError:
                seen.unreachable = seen.unreachable or str(host[0] if isinstance(host, tuple) else host)
                constants = _hub_constants()
                if constants is not None:
                    constants.HF_HUB_OFFLINE = True
                raise

        return tried

    originals: tuple[Any, Any] = socket.getaddrinfo, socket.create_connection
    socket.getaddrinfo, socket.create_connection = map(failing, originals)
    try:
        yield
    finally:
        socket.getaddrinfo, socket.create_connection = originals
        if hub is not None and before is not None:
            hub.HF_HUB_OFFLINE = before


def _hub_constants() -> Any:
    return sys.modules.get("huggingface_hub.constants")
