"""Groups of options that several verbs share, declared once as dataclasses whose fields are options.

A verb takes a group as one keyword-only parameter, ``def run(source: …, *, writing: Writing)``, and the command line
shows its fields one by one. A verb's own option with the name of a field replaces that field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

__all__ = ["with_groups"]


def with_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb whose signature lists the options of its groups one by one, as typer needs it."""
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
