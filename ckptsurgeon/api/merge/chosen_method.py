"""Finds a merge method by its name, and checks its parameters, the number of models and the base."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

from ...errors import ConfigError
from ...methods.merge._method import Method
from ...methods.merge._registry import MergeMethods, load_plugin, merge_methods
from ...util.text import count, escape
from ..inputs.argument_types import CheckpointLike, Path
from .settings import parameter_name

__all__ = ["check_names", "check_number", "list_methods", "method_named"]


def method_named(name: str, plugins: Sequence[Method]) -> Method:
    """Return the merge method with this name, built in or from plugins; raises ConfigError for an unknown name."""
    known = merge_methods(plugins)
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(sorted(known))}."
        raise ConfigError(f"there is no merge method {escape(name)}.", hint=hint)
    return known[name]


def check_names(method: Method, more: Iterable[str], arguments: Iterable[str]) -> None:
    """Raise ConfigError if a name in ``more`` is not a parameter of the method.

    ``arguments`` are the names of the arguments of ``merge``: the hint of the error may suggest one of them.
    """
    known = [one.name for one in method.parameters]
    for name in map(parameter_name, more):
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *arguments], n=1)
            its = f"The parameters of {method.name} are {', '.join(known) or 'none'}."
            raise ConfigError(
                f"{escape(name)} is neither an argument of merge nor a parameter of the method {method.name}.",
                hint=f"Did you mean {near[0]}?" if near else its,
            )


def check_number(method: Method, number: int, base: CheckpointLike | None) -> None:
    """Raise ConfigError if the number of models, or the presence of a base, is wrong for a method.

    ``number`` is the number of models without the base. ``base`` is None if the user gave none.
    """
    least, most = method.models
    if method.base == "required" and base is None:
        raise ConfigError(
            f"the method {method.name} needs the base, from which the other models were trained.",
            hint="Give it with --base.",
        )
    if method.base == "none" and base is not None:
        raise ConfigError(
            f"the method {method.name} does not use a base.",
            hint="Leave --base out, or add this model to the models that are merged.",
        )
    merged = number + (method.base == "model" and base is not None)
    if merged < least:
        raise ConfigError(
            f"the method {method.name} needs at least {count(least, 'model')}, but there is {merged or 'none'}.",
            hint="Give more models.",
        )
    if number == 1 and base is None and method.needs_others:
        hint = "Add a second model, or a base with --base." if method.base == "optional" else "Give another model."
        raise ConfigError("only one model is given, so there is nothing to merge it with.", hint=hint)
    if most is not None and merged > most:
        raise ConfigError(
            f"the method {method.name} merges at most {count(most, 'model')}, but there are {merged}.",
            hint="Use another method, or give fewer models.",
        )


def list_methods(plugin: Path | None = None) -> MergeMethods:
    """Return the merge methods, including those in the Python file ``plugin``, which is run."""
    return MergeMethods(merge_methods(load_plugin(os.fspath(plugin)) if plugin is not None else ()))
