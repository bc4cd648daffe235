"""The key-value store by which the processes of ``torchrun`` agree, and errors as they are sent through it."""

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
"""Seconds of one try to reach the store, in which signals wait."""
_CALLS = itertools.count()
"""Numbers for the outputs of a process, so that each has its own keys in the store."""


def store_of_processes(wait_s: float) -> Any:
    """Return the store of the processes: that of ``torchrun``, or one that the first process opens.

    Raises ConfigError if it cannot be reached within ``wait_s`` seconds. Torch's own ``env://`` would wait half an hour
    in C++, without looking at signals.
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
                f"process {rank_of_process()} cannot reach the others: {why}.",
                hint="Start all processes with torchrun, which sets MASTER_ADDR and MASTER_PORT too.",
            ) from error


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise OutputError if the block finds that the store is gone: that of the first process, or of ``torchrun``."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__ != "torch.distributed":  # where the errors of the store are
            raise
        raise OutputError("the processes have lost each other: the first one has ended, or its machine.") from error


def row_of(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data, for another process."""
    if isinstance(error, CheckpointError):
        return {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, MemoryError):
        return {"type": "OutputError", "message": "there is not enough memory."}
    if isinstance(error, OSError):
        return {"type": "OutputError", "message": f"{error.strerror or error}."}
    if not isinstance(error, Exception):
        return {"type": "OutputError", "message": "it was stopped by a signal."}
    return {"type": "CheckpointError", "message": f"this is a bug in ckpt: {type(error).__name__}: {error}"[:500]}


def error_of(row: Mapping[str, Any], name: str) -> CheckpointError:
    """Return the error of another process, from what ``row_of`` gave; ``name`` says which process it was."""
    kind = getattr(errors, str(row.get("type")), CheckpointError)
    found = kind if isinstance(kind, type) and issubclass(kind, CheckpointError) else CheckpointError
    message = str(row.get("message"))
    return found(message if message.startswith("process ") else f"{name}: {message}", hint=str(row.get("hint", "")))
