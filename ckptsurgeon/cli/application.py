"""Builds the typer application from the verbs, in the order of the help, and from option groups that verbs share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from ..errors import ConfigError
from ..util.registry import module_names, modules
from ..util.text import escape
from ..util.version import __version__

__all__ = [
    "COMPLETION",
    "GROUPS",
    "SECTIONS",
    "TIMEOUT",
    "application",
    "install_option",
    "show_option",
    "verbs",
    "version_option",
    "with_groups",
]

# Groups of options that several verbs share, declared once as dataclasses whose fields are options.
#
# A verb has a group as one keyword-only parameter, ``def run(source: …, *, writing: Writing)``. On the command line,
# each field of the group is an option. If the verb has an option with the name of a field, it replaces that field.


def with_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a function like ``verb`` that has each option of its groups as a separate parameter, as typer needs it.

    A group is a dataclass whose fields are options; ``verb`` has one parameter for each group.
    """
    hints = get_type_hints(verb, include_extras=True)
    hints.pop("return", None)
    parameters = signature(verb).parameters
    own = [parameters[name].replace(annotation=hint) for name, hint in hints.items() if not is_dataclass(hint)]
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    shared = [one for group in groups.values() for one in _options(group, {one.name for one in own})]

    def run(**values: Any) -> None:
        given = {one.name: values[one.name] for one in own}
        verb(**given, **{name: _filled(group, values) for name, group in groups.items()})

    everything = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*own, *shared)]
    run.__signature__ = Signature(everything)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in everything}
    run.__doc__ = verb.__doc__
    return run


def _options(group: Any, taken: Collection[str]) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _options(hint, taken)
        elif field.name not in taken:
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hint)


def _filled(group: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(group, include_extras=True)
    return group(**{
        field.name: _filled(hints[field.name], values) if is_dataclass(hints[field.name]) else values[field.name]
        for field in fields(group)
    })  # fmt: skip


EXIT_CODES = """Exit status: 0 done; 1 the answer is no (differs, does not fit, verification failed, scan found code);
2 usage, a pattern that matches nothing, a bad configuration; 3 an input is missing, corrupt or unsafe; 4 the plan is
impossible; 5 the output cannot be written; 70 a bug; 129 hung up; 130 interrupted; 141 the reader of stdout is gone;
143 terminated."""

SECTIONS = {
    "Look": ("inspect", "diff", "match", "layouts", "view", "scan"),
    "Change": (
        "transplant", "init", "resize", "rename", "filter", "convert", "apply",
        "patch make", "patch apply", "patch show",
    ),
    "Merge": (
        "merge", "search", "average", "stats",
        "lora merge", "lora extract", "lora concat", "lora convert", "lora resize",
    ),
    "Prove": ("fits", "check", "verify", "prove"),
    "Fetch and train": ("fetch", "train", "transcribe", "demo-data"),
}  # fmt: skip
"""The verbs of each section of the help. A verb that is in none comes last, under ``MORE``."""
MORE = "More"
GROUPS = {
    "lora": "Merge low-rank adapters into their base, extract, join or convert them, or reduce their ranks.",
    "patch": "Store what changed between two checkpoints, bit for bit, and apply it.",
}
TIMEOUT = "--timeout"
PACKAGE = "ckptsurgeon.cli.verbs"


class Verbs(TyperGroup):
    """The command ``ckpt``, whose help shows its verbs in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs with their summaries into the help text; all summaries begin in one column."""
        left = dict(self.commands)
        width = max(map(len, left))
        for title, names in (*SECTIONS.items(), (MORE, tuple(left))):
            shown = [
                (word, left.pop(word)) for word in dict.fromkeys(name.split()[0] for name in names) if word in left
            ]
            if shown:
                with formatter.section(title):
                    formatter.write_dl([(word.ljust(width), one.get_short_help_str(200)) for word, one in shown])


class Verb(TyperCommand):
    """A command whose usage line shows the names of arguments without their types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line: ``[OPTIONS]`` and the names of the arguments."""
        arguments = [param.metavar or param.name or "" for param in self.params if isinstance(param, TyperArgument)]
        return ["[OPTIONS]", *arguments]

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; raises ConfigError for an empty value, which often comes from an unset shell variable."""
        for param in self.params:
            given = ctx.params.get(param.name)
            if "" in (given if isinstance(given, (list, tuple)) else [given]):
                name = str(param.metavar) if isinstance(param, TyperArgument) else max(param.opts, key=len)
                hint = "Give it a value, or leave it out." if name.startswith("-") else "Give it a value."
                raise ConfigError(f"{name} is empty.", hint=hint)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options, into the help text."""
        arguments, options = [], []
        for param in self.get_params(ctx):
            if isinstance(param, TyperArgument):
                arguments.append((param.metavar or param.name or "", param.help or ""))
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                options.append(record)
        for title, records in (("Arguments", arguments), ("Options", options)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def application(*, as_json: bool, word: str = "") -> typer.Typer:
    """Return the typer application, which has all verbs with their options.

    With ``as_json``, --version and the options for completion print JSON. ``word`` is the first word of the command
    line. If it is a verb, or the first word of a verb such as ``lora merge``, only the verbs that begin with it are
    loaded, to save time.
    """
    app = typer.Typer(
        name="ckpt",
        cls=Verbs,
        help="Put the weights of one network into another, and know exactly what happened.",
        epilog=EXIT_CODES,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback()
    def root(
        version: bool = version_option(as_json=as_json),
        install: str | None = install_option(as_json=as_json),
        show: str | None = show_option(as_json=as_json),
        json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
        quiet: Annotated[bool, typer.Option("-q", "--quiet", hidden=True)] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", hidden=True)] = False,
        timeout: Annotated[
            float | None,  # only for the help: run.py has already removed this option
            typer.Option(
                TIMEOUT, metavar="SECONDS", help="Give up on a server that sends nothing for this long. [default: 60]"
            ),
        ] = None,
    ) -> None:
        pass

    _add_verbs(app, word)
    return app


def _add_verbs(app: typer.Typer, word: str) -> None:
    groups: dict[str, typer.Typer] = {}
    for verb in verbs(word):
        summary = verb.HELP.partition("\n")[0]
        *group, name = verb.NAME.split()
        within = _group(app, groups, group[0]) if group else app
        within.command(name, cls=Verb, help=verb.HELP, epilog=verb.EXAMPLES, short_help=summary)(with_groups(verb.run))


def _group(app: typer.Typer, groups: dict[str, typer.Typer], name: str) -> typer.Typer:
    """Return the group of verbs called ``name``, such as ``lora`` (of ``lora merge``); if it is new, add it to ``app``.

    ``groups`` has the groups by name.
    """
    if name not in groups:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        groups[name] = typer.Typer(rich_markup_mode=None, no_args_is_help=False, context_settings=settings)
        app.add_typer(groups[name], name=name, help=GROUPS[name], short_help=GROUPS[name], epilog=EXIT_CODES)
    return groups[name]


def verbs(word: str = "") -> list[Any]:
    """Return the modules of ``cli/verbs`` and its folders, one for each verb, in the order of the help.

    If ``word`` is a verb, or the first word of a verb such as ``lora merge``, only the verbs that begin with it are
    imported and returned.
    """
    chosen = word.replace("-", "_") if word in (name.replace("_", "-") for name in module_names(PACKAGE)) else ""
    found = {module.NAME: module for module in _modules(PACKAGE, chosen)}
    order = [name for names in SECTIONS.values() for name in names]
    return [
        found[name]
        for name in sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    ]


def _modules(package: str, chosen: str = "") -> Iterator[Any]:
    for module in (import_module(f"{package}.{chosen}"),) if chosen else modules(package):
        yield from _modules(module.__name__) if hasattr(module, "__path__") else (module,)


COMPLETION = ("--install-completion", "--show-completion")
SHELLS = "[bash|zsh|fish]"


def version_option(*, as_json: bool) -> Any:
    """Return the option ``--version``, which prints the version, as JSON with ``as_json``."""

    def show(wanted: bool) -> None:
        if wanted:
            data = {"kind": "ckpt.version", "version": 1, "ckptsurgeon": __version__}
            _answer(data if as_json else f"ckpt {__version__}\n")

    return typer.Option(False, "--version", callback=show, is_eager=True, help="Print the version.")


def install_option(*, as_json: bool) -> Any:
    """Return the option ``--install-completion``; its value '' means the shell from which ckpt was started."""

    def install(shell: str | None) -> None:
        if shell is None:
            return
        from .completion.installing import install, shell_in_use

        shell = shell_in_use(shell)
        path, start = install(shell)
        read = f", which {start} reads" if start else ""
        text = f"wrote {escape(path)}{escape(read)}; it works in every {shell} that is started from now on\n"
        _answer(_completion(shell, path=path, start=start) if as_json else text)

    return typer.Option(
        None, COMPLETION[0], metavar=SHELLS, callback=install, is_eager=True,
        help="Install Tab completion of verbs, options, files and keys for the given shell. [default: this shell]",
    )  # fmt: skip


def show_option(*, as_json: bool) -> Any:
    """Return the option ``--show-completion``; its value '' means the shell from which ckpt was started."""

    def show(shell: str | None) -> None:
        if shell is None:
            return
        from .completion.installing import program, script, shell_in_use

        shell = shell_in_use(shell)
        _answer(_completion(shell) if as_json else script(shell, program()))

    return typer.Option(
        None, COMPLETION[1], metavar=SHELLS, callback=show, is_eager=True,
        help="Print the script that --install-completion would write.",
    )  # fmt: skip


def _completion(shell: str, *, path: str = "", start: str = "") -> dict[str, Any]:
    """Return the completion script of a shell as plain data, and the files that were written.

    ``path`` is the file of the script, ``start`` the shell's start-up file; '' if the file was not written.
    """
    from .completion.installing import program
    from .completion.installing import script as script_completion

    script = script_completion(shell, program())
    return {
        "kind": "ckpt.completion", "version": 1, "shell": shell, "script": script,
        "path": path or None, "read_by": start or None,
    }  # fmt: skip


def _answer(answer: dict[str, Any] | str) -> None:
    """Print a text, or plain data as JSON, and exit. Paths keep their bytes, even if they are not UTF-8."""
    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())
    stream.write(answer if isinstance(answer, str) else f"{json.dumps(answer)}\n")
    raise typer.Exit
