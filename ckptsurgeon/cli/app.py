"""The program ``ckpt``: finds the verbs, runs one, and turns whatever happens into an exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

from ..errors import CheckpointError, ConfigError, SourceError
from ..registry import modules
from ..version import __version__
from .command import Verb
from .sink import error_json, error_text

__all__ = ["main"]

EXIT_CODES = """Exit status: 0 done; 1 the answer is no (differs, verification failed); 2 usage, a pattern that matches
nothing, a bad configuration; 3 an input is missing, corrupt or unsafe; 4 the plan is impossible; 5 the output cannot
be written; 70 a bug; 130 interrupted; 143 terminated."""

ORDER = ("inspect", "transplant", "apply", "verify", "init")
INTERNAL = 70


class _Terminated(BaseException):
    """SIGTERM, so that whatever is being written is cleaned up."""


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ckpt {__version__}\n")
        raise typer.Exit


def _app() -> typer.Typer:
    app = typer.Typer(
        name="ckpt",
        help="Put the weights of one network into another, and know exactly what happened.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    found = {module.__name__.rpartition(".")[2]: module for module in modules("ckptsurgeon.cli.verbs")}
    for name in sorted(found, key=lambda verb: (ORDER.index(verb) if verb in ORDER else len(ORDER), verb)):
        verb = found[name]
        summary = verb.HELP.partition("\n")[0]
        app.command(verb.NAME, cls=Verb, help=verb.HELP, epilog=verb.EXAMPLES, short_help=summary)(verb.run)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ckpt`` and return its exit code; never a traceback, unless CKPT_DEBUG=1 asks for it."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    previous, thresholds = signal.signal(signal.SIGTERM, _terminate), gc.get_threshold()
    gc.set_threshold(200_000, 50, 50)  # a command makes many small objects that live until it ends
    try:
        return _run(args, as_json)
    finally:
        signal.signal(signal.SIGTERM, previous)
        gc.set_threshold(*thresholds)


def _terminate(*_: object) -> None:
    raise _Terminated


def _run(args: list[str], as_json: bool) -> int:
    debug = os.environ.get("CKPT_DEBUG") == "1"
    try:
        code = _app()(_verb_first(args), prog_name="ckpt", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # the parser turns an interrupt into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except _Terminated:
        return _failed(CheckpointError("terminated; nothing was left half done."), as_json, 143)
    except KeyboardInterrupt:
        return _failed(CheckpointError("interrupted; nothing was left half done."), as_json, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except CheckpointError as error:
        if debug:
            raise
        return _failed(error, as_json, error.exit_code)
    except MemoryError:
        return _failed(SourceError("there is not enough memory."), as_json, SourceError.exit_code)
    except Exception as error:
        if debug and not hasattr(error, "format_message"):
            raise
        return _unexpected(error, as_json)


def _verb_first(args: list[str]) -> list[str]:
    """Let global options stand before the verb as well as behind it: ``ckpt --json inspect x``."""
    head = 0
    while head < len(args) and args[head] in ("--json", "-q", "--quiet", "-v", "--verbose"):
        head += 1
    return [*args[head : head + 1], *args[:head], *args[head + 1 :]] if head < len(args) else args


def _unexpected(error: Exception, as_json: bool) -> int:
    """Report an error of usage, which the parser raises, or a bug."""
    describe = getattr(error, "format_message", None)
    if describe is not None:
        context = getattr(error, "ctx", None)
        hint = f"See {context.command_path} -h." if context is not None else ""
        message = str(cast(Any, describe)()).rstrip(".")
        return _failed(ConfigError(f"{message}.", hint=hint), as_json, 2)
    if type(error).__name__ == "Exit":
        return int(getattr(error, "exit_code", 0))
    if isinstance(error, OSError):
        return _failed(SourceError(f"{error.strerror or error}."), as_json, SourceError.exit_code)
    bug = CheckpointError(
        f"this is a bug: {type(error).__name__}: {error}.", hint="CKPT_DEBUG=1 shows where it happened."
    )
    return _failed(bug, as_json, INTERNAL)


def _failed(error: CheckpointError, as_json: bool, code: int) -> int:
    if as_json:
        error.exit_code = code
        sys.stderr.write(error_json(error) + "\n")
        return code
    from .sink import _console

    _console(sys.stderr).print(error_text(error), soft_wrap=True)
    return code
