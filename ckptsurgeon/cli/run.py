"""Runs one command line and turns its outcome into an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import typer

from ..util.collection import rare_collection
from .application import COMPLETION, GROUPS, TIMEOUT, application
from .failing import ReaderGoneError, failed, guarded_streams

__all__ = ["run"]

GLOBAL = ("--json", "-q", "--quiet", "-v", "--verbose")
SIGPIPE = 141
"""The exit code if the process that reads stdout has ended."""


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    as_json = "--json" in args
    with rare_collection(), guarded_streams(), ExitStack() as stack:
        try:
            args = _set_timeout(args, stack)
            code = _invoke(_verb_first(_search_of_merge(args)), as_json)
            sys.stdout.flush()
        except ReaderGoneError:
            return SIGPIPE
        except Exception as error:
            return failed(error, args, as_json=as_json)
        return code


def _invoke(args: list[str], as_json: bool) -> int:
    """Parse and run a command line, and return its exit code.

    click's own ``main`` is not used because it has its own exit codes.
    """
    args = _complete_wait_options(_complete_shell_options(args))
    command = typer.main.get_command(application(as_json=as_json, word="".join(args[:1])))
    if not args:
        with command.make_context("ckpt", [], resilient_parsing=True) as context:
            sys.stderr.write(command.get_help(context) + "\n")
        return 2
    try:
        with command.make_context("ckpt", args) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _set_timeout(args: Sequence[str], stack: ExitStack) -> list[str]:
    """Set the timeout for servers until ``stack`` closes; return the command line without ``--timeout``.

    ``--timeout`` may be anywhere on the line; if there are several, the last one wins.
    """
    end = args.index("--") if "--" in args else len(args)
    kept: list[str] = []
    at = 0
    while at < len(args):
        name, between, value = args[at].partition("=")
        if at >= end or name != TIMEOUT:
            kept.append(args[at])
        else:
            at += not between
            stack.enter_context(_timeout_of(value if between else "".join(args[at : at + 1])))
        at += 1
    return kept


def _timeout_of(seconds: str) -> AbstractContextManager[None]:
    from ..storage.read.http.timeouts import server_timeout

    return server_timeout(seconds)


def _search_of_merge(args: Sequence[str]) -> list[str]:
    """Return the command line with ``merge search RECIPE`` replaced by the verb ``search RECIPE``.

    If no recipe follows, ``search`` may be the name of a model to merge, and the command line is unchanged.
    """
    head = 0
    while head < len(args) and args[head] in GLOBAL:
        head += 1
    is_search = list(args[head : head + 2]) == ["merge", "search"]
    if is_search and "".join(args[head + 2 : head + 3]).lower().endswith((".yaml", ".yml")):
        return [*args[:head], *args[head + 1 :]]
    return list(args)


def _verb_first(args: Sequence[str]) -> list[str]:
    """Return the command line with global options moved after the verb, so that ``ckpt --json inspect x`` works."""
    head = 0
    while head < len(args) and args[head] in GLOBAL:
        head += 1
    if head == len(args) or args[head].startswith("-"):
        return list(args)
    words = 2 if args[head] in GROUPS and not "".join(args[head + 1 : head + 2]).startswith("-") else 1
    return [*args[head : head + words], *args[:head], *args[head + words :]]


def _complete_wait_options(args: Sequence[str]) -> list[str]:
    """Return the command line with each --wait without a number replaced by ``--wait=inf``: wait without limit."""
    found: list[str] = []
    for number, arg in enumerate(args):
        if arg == "--":
            return [*found, *args[number:]]
        following = args[number + 1] if number + 1 < len(args) else ""
        found.append("--wait=inf" if arg == "--wait" and not _is_number(following) else arg)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _complete_shell_options(args: Sequence[str]) -> list[str]:
    """Return the command line with '' added after each completion option that has no value.

    The value '' means the shell that runs ckpt.
    """
    found: list[str] = []
    for number, arg in enumerate(args):
        if not arg.startswith("-"):  # a verb or the name of a shell follows
            return [*found, *args[number:]]
        found.append(arg)
        following = args[number + 1 : number + 2]
        if arg in COMPLETION and (not following or following[0].startswith("-")):
            found.append("")
    return found
