"""Opens the key-value store through which the processes of ``torchrun`` communicate, and converts errors for it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from .. import errors
from ..errors import CheckpointError, ConfigError, OutputError
from ..util.text import escape
from ..util.torchrun import rank_of_process

__all__ = ["error_of", "row_of", "store_errors", "store_of_processes"]

TRY_S = 5.0
"""The timeout in seconds of one attempt to reach the store; signals are handled only between attempts."""
_CALLS = itertools.count()
"""Counts the outputs of this process, so that each output has separate keys in the store."""


def store_of_processes(wait_s: float) -> Any:
    """Return the store of the processes: the store of ``torchrun``, or a store that the first process opens.

    Raises ConfigError if the store cannot be reached within ``wait_s`` seconds. Torch's own ``env://`` is not used: it
    would wait for half an hour in C++, without handling signals.
    """
    from torch import distributed

    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    opens = rank_of_process() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    until = time.monotonic() + wait_s
    while True:
        try:
            found = distributed.TCPStore(  # type: ignore[attr-defined]
                host, int(port), is_master=opens, wait_for_workers=False, timeout=timedelta(seconds=TRY_S)
            )
            return distributed.PrefixStore(f"ckpt/output/{next(_CALLS)}", found)  # type: ignore[attr-defined]
        except (RuntimeError, ValueError) as error:
            if time.monotonic() < until and not opens and host and port:
                continue
            why = escape(str(error).splitlines()[0], 200)
            raise ConfigError(
                f"process {rank_of_process()} cannot reach the other processes: {why}.",
                hint="Start all processes with torchrun, which sets MASTER_ADDR and MASTER_PORT too.",
            ) from error


@contextmanager
def store_errors() -> Iterator[None]:
    """Convert an error of torch's store in the block to OutputError: such errors mean that the store is unreachable."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__ != "torch.distributed":  # the module of the store's errors
            raise
        raise OutputError(
            "the connection between the processes is lost: perhaps the first process or its torchrun has stopped.",
            hint="Read the messages of the first process.",
        ) from error


def row_of(error: BaseException) -> dict[str, Any]:
    """Return an error as a dict of strings, in which another process can receive it."""
    if isinstance(error, CheckpointError):
        known = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return {"type": known.__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, MemoryError):
        return {"type": "OutputError", "message": "there is not enough memory."}
    if isinstance(error, OSError):
        return {"type": "OutputError", "message": f"{error.strerror or error}."}
    if not isinstance(error, Exception):
        return {"type": "OutputError", "message": "it was stopped by a signal."}
    return {"type": "CheckpointError", "message": f"this is a bug in ckpt: {type(error).__name__}: {error}"[:500]}


def error_of(row: Mapping[str, Any], name: str) -> CheckpointError:
    """Return the error of the process ``name``; ``row`` is the result of ``row_of`` in that process."""
    kind = getattr(errors, str(row.get("type")), CheckpointError)
    found = kind if isinstance(kind, type) and issubclass(kind, CheckpointError) else CheckpointError
    message = str(row.get("message"))
    return found(message if message.startswith("process ") else f"{name}: {message}", hint=str(row.get("hint", "")))
