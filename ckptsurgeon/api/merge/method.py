"""The choice of a merge method: by its name, and whether it takes so many models, a base and what else was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from ...errors import ConfigError
from ...methods.merge._method import Method
from ...methods.merge._registry import merge_methods
from ...util.text import count, escape
from ..inputs.types import CheckpointLike
from .settings import parameter_name

__all__ = ["check_names", "check_number", "method_named"]


def method_named(name: str, plugins: Sequence[Method]) -> Method:
    """Return a method, of ours or a plugin's; raises ConfigError with the nearest name for one that there is not."""
    known = merge_methods(plugins)
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(sorted(known))}."
        raise ConfigError(f"there is no merge method {escape(name)}.", hint=hint)
    return known[name]


def check_names(method: Method, more: Iterable[str], arguments: Iterable[str]) -> None:
    """Raise ConfigError for an argument that is neither the verb's nor a parameter of the method."""
    known = [one.name for one in method.parameters]
    for name in map(parameter_name, more):
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *arguments], n=1)
            hint = f"Did you mean {near[0]}?" if near else f"{method.name} takes {', '.join(known) or 'none'}."
            raise ConfigError(f"merge has no argument {escape(name)}, and {method.name} no such parameter.", hint=hint)


def check_number(method: Method, number: int, base: CheckpointLike | None) -> None:
    """Raise ConfigError where a method takes more models than there are, or fewer, or a base."""
    least, most = method.models
    if method.base == "required" and base is None:
        raise ConfigError(f"{method.name} needs the model that all others come from.", hint="Name it with --base.")
    if method.base == "none" and base is not None:
        raise ConfigError(f"{method.name} takes no base.", hint="Leave it out, or name it among the models.")
    merged = number + (method.base == "model" and base is not None)
    if merged < least:
        raise ConfigError(
            f"{method.name} needs {count(least, 'model')}, and there is {merged or 'none'}.", hint="Name others."
        )
    if number == 1 and base is None and method.needs_others:
        hint = "Name another, or a base with --base." if method.base == "optional" else "Name another."
        raise ConfigError("there is one model, and nothing to merge it with.", hint=hint)
    if most is not None and merged > most:
        raise ConfigError(
            f"{method.name} merges {count(most, 'model')}, and there are {merged}.", hint="Use another method for more."
        )
