"""Reports errors in one line, as text or JSON, with their exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..errors import CheckpointError, ConfigError, SourceError
from ..util.text import escape
from .stopping import output_in_place, stop_message

__all__ = ["failed", "is_for_memory"]

BUG = 70
LONGEST = 1200
"""The largest number of characters of a message or hint that are shown as text; --json shows all characters."""
RED, PLAIN = "\x1b[1;31m", "\x1b[0m"
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
"""Messages of the dynamic loader when memory runs out."""
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
"""The folder of ckptsurgeon. If memory runs out, compiling a sound module in it may raise SyntaxError."""


def failed(error: Exception, args: Sequence[str], *, as_json: bool) -> int:
    """Report ``error`` on stderr and return its exit code.

    Raises it again if a signal caused it; with CKPT_DEBUG=1, raises every error except those of the command line's
    parser. ``args`` is the command line.
    """
    usage = hasattr(error, "format_message")  # the parser's own errors
    if stop_message()[0] or (os.environ.get("CKPT_DEBUG") == "1" and not usage):
        raise error
    known = _usage(error, args) if usage else _known(error)
    code = BUG if known is None else known.exit_code
    shown = known or _bug(error)
    shown.hint = " ".join(part for part in (shown.hint, *getattr(error, "__notes__", ())) if part)
    _report(shown, code, as_json)
    return code


def _known(error: Exception) -> CheckpointError | None:
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, (OSError, ImportError)) and _is_out_of_descriptors():
        return SourceError("this process has too many open files.", hint="Raise the limit: ulimit -n.")
    if is_for_memory(error):
        return SourceError("not enough memory.")
    if isinstance(error, OSError):
        if not _has_folder():
            return SourceError("the working directory no longer exists.", hint="Change to a folder that exists.")
        about = f"{escape(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        return SourceError(f"{about}{error.strerror or error}.")
    return None


def is_for_memory(error: BaseException | None) -> bool:
    """Return whether an error or its cause shows that memory ran out (for an object, a thread or a shared library)."""
    if error is None:
        return False
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't start new thread" in text)
        or (isinstance(error, ImportError) and any(why in text for why in _NO_MEMORY))
        or (isinstance(error, SystemError) and "without exception set" in text)  # CPython, when an import lacks memory
        or (isinstance(error, SyntaxError) and _is_sound_module(error.filename))
        or is_for_memory(error.__cause__ or error.__context__)
    )


def _is_sound_module(path: str | None) -> bool:
    """Return whether a file is a module of ckptsurgeon without syntax errors; True if memory is too low to check it."""
    if not str(path).startswith(_PACKAGE):
        return False
    try:
        with open(str(path), "rb") as file:
            compile(file.read(), str(path), "exec", dont_inherit=True)
    except SyntaxError:
        return False
    except (MemoryError, OSError):
        pass
    return True


def _is_out_of_descriptors() -> bool:
    """Return whether the process cannot open any more files: then imports fail with many different errors."""
    try:
        os.close(os.dup(2))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _has_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _usage(error: Exception, args: Sequence[str]) -> ConfigError:
    """Return an error of the command line parser as a ConfigError, with a hint if the command is known."""
    message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    hint = f"See {context.command_path} -h." if context is not None else ""
    if context is not None and (taken := _option_as_value(context.command.params, args)):
        hint = f"Give {taken[0]} a value: {taken[1]} was taken as its value."
    for arg in args:
        if arg.startswith("-") and os.path.lexists(arg):
            hint = f"For the file {escape(arg)} write ./{escape(arg)}."
    return ConfigError(escape(message, 1000) + ("" if message.endswith("?") else "."), hint=hint)


def _option_as_value(params: Sequence[Any], args: Sequence[str]) -> tuple[str, str] | None:
    """Return an option without its value and the name of an option that stands in the value's place; else None."""
    options = [one for one in params if one.param_type_name == "option"]
    known = {name for one in options for name in one.opts}
    valued = {name for one in options for name in one.opts if not (one.is_flag or one.count)}
    return next((pair for pair in pairwise(args) if pair[0] in valued and pair[1] in known), None)


def _bug(error: Exception) -> CheckpointError:
    written = output_in_place()
    return CheckpointError(
        f"this is a bug in ckpt: {type(error).__name__}: {error}.",
        hint=f"{f'{written} is written. ' if written else ''}Set CKPT_DEBUG=1 to see where it happened.",
    )


def _report(error: CheckpointError, code: int, as_json: bool) -> None:
    """Write an error without importing or opening anything: memory or descriptors may have run out."""
    sys.stderr.write((_as_json(error, code) if as_json else _as_text(error)) + "\n")
    sys.stderr.flush()


def _as_json(error: CheckpointError, code: int) -> str:
    """Return an error as one line of JSON."""
    data = {
        "kind": "ckpt.error",
        "version": 1,
        "error": type(error).__name__,
        "exit_code": code,
        "message": error.message,
        "hint": error.hint,
        "rule": error.rule or None,
        "details": list(error.details),
    }
    return json.dumps(data, ensure_ascii=True)


def _as_text(error: CheckpointError) -> str:
    """Return an error as text, shortened, because it can repeat arguments and names of any length."""
    parts = [escape(part, LONGEST) for part in (error.message, error.hint) if part]
    return f"{RED}error:{PLAIN} {' '.join(parts)}" if _is_coloured() else f"error: {' '.join(parts)}"


def _is_coloured() -> bool:
    """Return whether errors are coloured, by the rules of rich.

    Errors are coloured on a terminal that can show colours; NO_COLOR and FORCE_COLOR override this.
    """
    if os.environ.get("NO_COLOR"):
        return False
    able = sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return able or bool(os.environ.get("FORCE_COLOR"))
