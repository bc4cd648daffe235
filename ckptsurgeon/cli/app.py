"""The program ``ckpt``: finds the verbs, runs one, and turns whatever happens into an exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Annotated, Any

import typer

from ..util.registry import modules
from . import alone
from .command import Verb
from .failing import failed
from .streams import ReaderGoneError, guarded_streams

__all__ = ["application", "run"]

EXIT_CODES = """Exit status: 0 done; 1 the answer is no (differs, verification failed, scan found code); 2 usage,
a pattern that matches nothing, a bad configuration; 3 an input is missing, corrupt or unsafe; 4 the plan is impossible;
5 the output cannot be written; 70 a bug; 129 hung up; 130 interrupted; 141 nobody reads the answer; 143 terminated."""

ORDER = (
    "inspect", "diff", "match", "transplant", "rename", "filter", "convert", "average", "merge", "lora_merge",
    "lora_extract", "apply", "verify", "scan", "view", "init", "fetch", "train", "demo_data",
)  # fmt: skip
GROUPS = {"lora": "Low-rank adapters: merge them into their base, or extract one from what was tuned."}
GLOBAL = ("--json", "-q", "--quiet", "-v", "--verbose")
TIMEOUT = "--timeout"
SIGPIPE = 141


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    as_json = "--json" in args
    with _few_collections(), guarded_streams(), ExitStack() as stack:
        try:
            args = _limited(args, stack)
            code = _invoke(_verb_first(args), as_json)
            sys.stdout.flush()
        except ReaderGoneError:
            return SIGPIPE
        except Exception as error:
            return failed(error, args, as_json=as_json)
        return code


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage seldom: two headers of 92,000 tensors are a million small objects, that live until the end."""
    thresholds = gc.get_threshold()
    gc.set_threshold(10_000_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _invoke(args: list[str], as_json: bool) -> int:
    """Parse and run. Not by the parser's own ``main``, which has exit codes of its own."""
    args = _with_waits(_with_shells(args))
    command = typer.main.get_command(application(as_json=as_json))
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


def application(*, as_json: bool) -> typer.Typer:
    """Return all verbs and options, to be parsed by."""
    app = typer.Typer(
        name="ckpt",
        help="Put the weights of one network into another, and know exactly what happened.",
        epilog=EXIT_CODES,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback()
    def root(
        version: bool = alone.version_option(as_json=as_json),
        install: str | None = alone.install_option(as_json=as_json),
        show: str | None = alone.show_option(as_json=as_json),
        json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
        quiet: Annotated[bool, typer.Option("-q", "--quiet", hidden=True)] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", hidden=True)] = False,
        timeout: Annotated[
            float | None,  # which was taken out before
            typer.Option(
                TIMEOUT, metavar="SECONDS", help="Give up a server after so long without progress, 60 if unsaid."
            ),
        ] = None,
    ) -> None:
        pass

    _add_verbs(app)
    return app


def _add_verbs(app: typer.Typer) -> None:
    groups: dict[str, typer.Typer] = {}
    for verb in _verbs():
        summary = verb.HELP.partition("\n")[0]
        *group, name = verb.NAME.split()
        within = _group(app, groups, group[0]) if group else app
        within.command(name, cls=Verb, help=verb.HELP, epilog=verb.EXAMPLES, short_help=summary)(verb.run)


def _group(app: typer.Typer, groups: dict[str, typer.Typer], name: str) -> typer.Typer:
    """Return the group of verbs of a name, as ``lora`` in ``lora merge``."""
    if name not in groups:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        groups[name] = typer.Typer(rich_markup_mode=None, no_args_is_help=False, context_settings=settings)
        app.add_typer(groups[name], name=name, help=GROUPS[name], epilog=EXIT_CODES)
    return groups[name]


def _verbs() -> list[Any]:
    found = {module.__name__.rpartition(".")[2]: module for module in modules("ckptsurgeon.cli.verbs")}
    names = sorted(found, key=lambda verb: (ORDER.index(verb) if verb in ORDER else len(ORDER), verb))
    return [found[name] for name in names]


def _limited(args: Sequence[str], stack: ExitStack) -> list[str]:
    """Take ``--timeout`` out of a command line, wherever it stands, and let it hold; the last one counts."""
    end = args.index("--") if "--" in args else len(args)
    kept: list[str] = []
    at = 0
    while at < len(args):
        name, between, value = args[at].partition("=")
        if at >= end or name != TIMEOUT:
            kept.append(args[at])
        else:
            at += not between
            stack.enter_context(_allowing(value if between else "".join(args[at : at + 1])))
        at += 1
    return kept


def _allowing(seconds: str) -> AbstractContextManager[None]:
    from ..api.network import allowing

    return allowing(seconds)


def _verb_first(args: Sequence[str]) -> list[str]:
    """Let global options stand before the verb as well as behind it: ``ckpt --json inspect x``."""
    head = 0
    while head < len(args) and args[head] in GLOBAL:
        head += 1
    if head == len(args) or args[head].startswith("-"):
        return list(args)
    words = 2 if args[head] in GROUPS and not "".join(args[head + 1 : head + 2]).startswith("-") else 1
    return [*args[head : head + words], *args[:head], *args[head + words :]]


def _with_waits(args: Sequence[str]) -> list[str]:
    """Let --wait that says no seconds be as long as it takes; what follows it may be an argument."""
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


def _with_shells(args: Sequence[str]) -> list[str]:
    """Name the shell that runs this, by '', behind an option of completion that names none."""
    found: list[str] = []
    for number, arg in enumerate(args):
        if not arg.startswith("-"):  # a verb, or a shell
            return [*found, *args[number:]]
        found.append(arg)
        following = args[number + 1 : number + 2]
        if arg in alone.COMPLETION and (not following or following[0].startswith("-")):
            found.append("")
    return found
