"""The arguments of verbs: their types, in one table for calls from Python and fields of recipes; and as plain data."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.in_memory import holds_tensors
from ...checkpoint.opening import CheckpointLike, is_given
from ...errors import CheckpointError, ConfigError
from ...storage.read.base import Progress
from ...util.text import brief_repr, escape

__all__ = [
    "KINDS",
    "OF_RECIPES",
    "AxisGroups",
    "CheckpointLike",
    "Files",
    "Given",
    "Mismatch",
    "Operations",
    "Parameters",
    "Path",
    "Patterns",
    "Progress",
    "Rules",
    "Sources",
    "Vocabularies",
    "check_seed",
    "check_types",
    "checked",
    "path_hint",
    "plain",
    "plain_arguments",
    "plain_checkpoints",
    "rules_as_text",
]

# Conversion to plain data: arrays and iterators become lists, torch dtypes and devices become their names.


def plain(value: Any) -> Any:
    """Return a value as plain data: arrays and iterators as lists, torch dtypes and devices as names.

    This imports neither numpy nor torch.
    """
    if isinstance(value, (str, bytes, type, os.PathLike)):
        return value
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, Iterable) else value


def plain_checkpoints(value: Any) -> Any:
    """Return one checkpoint unchanged; return an iterable of several checkpoints as a list."""
    if is_given(value) or isinstance(value, (bytes, type)):
        return value
    value = plain(value) if callable(getattr(value, "tolist", None)) else value
    return [one if is_given(one) else plain(one) for one in value] if isinstance(value, Iterable) else value


def plain_arguments(**given: Any) -> dict[str, Any]:
    """Return the given options that differ from their defaults, as plain data for the recipe."""
    defaults = {"on_missing": "init", "strict": False, "new_tokens": "init", "encoding": "keep"}
    kept: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(value, (str, int, float, type(None))):
            value = dict(value) if isinstance(value, Mapping) else list(value)
        if value and value != defaults.get(name):
            kept[name] = value
    return kept


def rules_as_text(rules: Rules) -> list[str]:
    """Return rules as a list of strings FROM=TO; ``rules`` is one string, several strings, or a map from FROM to TO."""
    if isinstance(rules, Mapping):
        return [_rule(pattern, target) for pattern, target in rules.items()]
    return [rules] if isinstance(rules, str) else list(rules or ())


def _rule(pattern: str, target: str) -> str:
    if not isinstance(target, str):
        raise ConfigError(
            f"a rule renames {brief_repr(pattern)} to {brief_repr(target)}, which is not a string.",
            hint="Write a string; '' removes the pattern from the key.",
        )
    return f"{pattern}={target}"


# Types of arguments that several verbs have.

Path: TypeAlias = str | os.PathLike[str]
Files: TypeAlias = "Path | Sequence[Path] | None"
"""One path, or several paths."""

Sources: TypeAlias = "CheckpointLike | Sequence[CheckpointLike]"
"""One or more sources; each is a path, a URI, a string PATH:SRC_KEY:DST_KEY, a dict of tensors or a checkpoint."""

Patterns: TypeAlias = Iterable[str] | None
"""One pattern as a string, or several patterns."""

Rules: TypeAlias = Iterable[str] | Mapping[str, str] | None
"""Rules as strings FROM=TO, or a map from FROM to TO."""

Operations: TypeAlias = Path | Sequence[Mapping[str, Any]] | None
"""Operations as plain data, or the path of a YAML file with them."""

Vocabularies: TypeAlias = str | Sequence[Path] | None
"""The token lists of the source and the destination, as "SRC:DST" or a pair of paths; or "place" (by row number)."""

AxisGroups: TypeAlias = Path | Mapping[str, Any] | None
"""Groups of axes: a map from the name of each group to its axes, or the path of a YAML file with this map."""

Mismatch: TypeAlias = str | Mapping[str, str] | Sequence[str] | None
"""One policy for all tensors, a map from pattern to policy, or strings as on the command line."""

Fields: TypeAlias = Mapping[str, Any] | Sequence[str]
"""New values of fields of a configuration: a map from dotted paths to values, or strings FIELD=VALUE."""

Kept: TypeAlias = Mapping[str, Any] | Sequence[str] | None
"""The indices to keep, by field: a map from fields to lists of numbers or text ("0..3,6"), or strings FIELD=LIST."""

Given: TypeAlias = bool | float | str | Sequence[float] | Mapping[str, Any]
"""A parameter of a merge: a value, a list with a value for each model, a map from patterns to these, or a gradient.

A gradient is ``{"gradient": [0, 1]}``: values from the first layer to the last.
"""

Parameters: TypeAlias = Mapping[str, Given] | Sequence[str] | None
"""The parameters of a merge: a map from names to values, or strings as on the command line."""


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class _Kind:
    """A type of arguments: ``wanted`` describes it in messages, and a value has it if one of ``checks`` accepts it.

    With ``items``, a list also has the type if this check accepts each of its items.
    """

    wanted: str
    checks: tuple[Callable[[Any], bool], ...] = ()
    items: Callable[[Any], bool] | None = None

    def accepts(self, value: Any) -> bool:
        """Return whether a value has the type."""
        if any(check(value) for check in self.checks):
            return True
        return self.items is not None and isinstance(value, list) and all(map(self.items, value))

    def hint(self, value: Any) -> str:
        """Return a hint if ``value`` is a single item of the list that is wanted, else ''."""
        return f"Give a list: [{brief_repr(value)}]." if self.items is not None and self.items(value) else ""


def _is_none(value: Any) -> bool:
    return value is None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_plan(value: Any) -> bool:
    from ...planning.plan.plan import Plan  # not at the top: verbs without a plan start faster

    return isinstance(value, Plan)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _is_checkpoint(value: Any) -> bool:
    if isinstance(value, Mapping) and all(map(_is_text, value)):
        return True  # a dict without tensors gets the error of ``open_checkpoint``
    return isinstance(value, (str, os.PathLike, Checkpoint)) or (is_given(value) and holds_tensors(value))


def _are_checkpoints(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(_is_checkpoint, value.values()))


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_value(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, list)) or _are_named(value)


def _is_fields(value: Any) -> bool:
    return isinstance(value, dict)


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


def _is_map(value: Any) -> bool:
    return _are_named(value) and all(map(_is_path, value.values()))


CHECKPOINT = "a path, a checkpoint or a dict of tensors"

KINDS: Mapping[str, _Kind] = {
    "str": _Kind("a string", (_is_text,)),
    "str | None": _Kind("a string", (_is_none, _is_text)),
    "str | torch.dtype": _Kind("the name of a dtype", (_is_text,)),
    "str | torch.dtype | None": _Kind("the name of a dtype", (_is_none, _is_text)),
    "str | int | None": _Kind("a size, as in 512MB", (_is_none, _is_text, _is_whole)),
    "bool": _Kind("true or false", (_is_truth,)),
    "int": _Kind("a whole number", (_is_whole,)),
    "float": _Kind("a number", (_is_number,)),
    "int | None": _Kind("a whole number", (_is_none, _is_whole)),
    "float | None": _Kind("a number", (_is_none, _is_number)),
    "bool | None": _Kind("true or false", (_is_none, _is_truth)),
    "Sequence[str]": _Kind("a list of strings", items=_is_text),
    "Collection[str]": _Kind("a string or a list of strings", (_is_text,), items=_is_text),
    "Sequence[str] | None": _Kind("a list of strings", (_is_none, _is_text), items=_is_text),
    "Sequence[float] | None": _Kind("a list of numbers", (_is_none,), items=_is_number),
    "Given": _Kind("a number, a string, a list of numbers or a map from patterns to these", (_is_value,)),
    "Parameters": _Kind("a map of parameters or strings NAME=VALUE", (_is_none, _are_named, _is_text), items=_is_text),
    "Mapping[str, str] | None": _Kind("a map from strings to strings", (_is_none, _is_map)),
    "Path": _Kind("a path", (_is_path,)),
    "Plan": _Kind("a plan", (_is_plan,)),
    "Plan | Path | None": _Kind("a plan or a path", (_is_none, _is_plan, _is_path)),
    "Progress | None": _Kind("a function", (_is_none, callable)),
    "Observer | None": _Kind("a function", (_is_none, callable)),
    "Plan | Path": _Kind("a plan or a path", (_is_plan, _is_path)),
    "Path | None": _Kind("a path", (_is_none, _is_path)),
    "Files": _Kind("a path or a list of paths", (_is_none, _is_path), items=_is_path),
    "Path | Sequence[Path]": _Kind("a path or a list of paths", (_is_path,), items=_is_path),
    "Sequence[Path]": _Kind("a list of paths", items=_is_path),
    "CheckpointLike": _Kind(CHECKPOINT, (_is_checkpoint,)),
    "CheckpointLike | None": _Kind(CHECKPOINT, (_is_none, _is_checkpoint)),
    "CheckpointLike | Plan": _Kind(f"{CHECKPOINT}, or a plan", (_is_checkpoint, _is_plan)),
    "Sequence[CheckpointLike]": _Kind("a list of paths, checkpoints or dicts of tensors", items=_is_checkpoint),
    "Iterable[CheckpointLike]": _Kind("a list of paths, checkpoints or dicts of tensors", items=_is_checkpoint),
    "Mapping[str, CheckpointLike] | None": _Kind(
        "a map from names to paths, checkpoints or dicts of tensors", (_is_none, _are_checkpoints)
    ),
    "Sources": _Kind(f"{CHECKPOINT}, or a list of these", (_is_checkpoint,), items=_is_checkpoint),
    "Patterns": _Kind("a pattern or a list of patterns", (_is_none, _is_text), items=_is_text),
    "Rules": _Kind("rules FROM=TO or a map from strings to strings", (_is_none, _is_text, _is_map), items=_is_text),
    "Fields": _Kind("a map of fields or strings FIELD=VALUE", (_is_none, _are_named, _is_text), items=_is_text),
    "Kept": _Kind("a map of lists or strings FIELD=LIST", (_is_none, _are_named, _is_text), items=_is_text),
    "Operations": _Kind("a path or a list of maps", (_is_none, _is_path), items=_is_fields),
    "AxisGroups": _Kind("a path or a map of groups", (_is_none, _is_path, _are_named)),
    "Vocabularies": _Kind("a string SRC:DST or two paths", (_is_none, _is_text), items=_is_path),
    "Mismatch": _Kind(
        "a policy, a list, or a map from patterns to policies", (_is_none, _is_text, _is_map), items=_is_text
    ),
}
"""The types of arguments, by the annotations of the arguments in the code."""

OF_RECIPES: Mapping[str, _Kind] = {
    **KINDS,
    "CheckpointLike": KINDS["Path"],
    "CheckpointLike | None": KINDS["Path | None"],
    "Sequence[CheckpointLike]": _Kind("a list of paths", items=_is_path),
    "Sources": _Kind("a path or a list of paths", (_is_path,), items=_is_path),
}
"""The types of arguments in recipes: there, a checkpoint is always a path."""


_CHECKPOINTS = (
    "CheckpointLike", "CheckpointLike | None", "CheckpointLike | Plan", "Sequence[CheckpointLike]",
    "Iterable[CheckpointLike]", "Sources",
)  # fmt: skip
"""The annotations of arguments that are checkpoints."""
_UNCHANGED = ("Path", "Path | None", "Mapping[str, CheckpointLike] | None", "nn.Module")
"""The annotations of arguments that are not converted to plain data."""


def checked(verb: Callable[P, T]) -> Callable[P, T]:
    """Decorate a verb: its arguments are converted to plain data, and checked against its annotations.

    Arrays and iterators become lists, and torch dtypes become their names; checkpoints are not changed. The decorated
    verb raises ConfigError, with the argument's name, for a wrong type, and Python's TypeError for an unknown or a
    missing argument.
    """
    signature = inspect.signature(verb)

    def ready(name: str, value: Any, of: inspect.Parameter) -> Any:
        said = of.annotation
        value = value if said in _UNCHANGED else plain_checkpoints(value) if said in _CHECKPOINTS else plain(value)
        check_types(verb.__name__, verb, {name: value})
        return value

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            one = signature.parameters[name]
            if one.kind is one.VAR_POSITIONAL:
                value = tuple(ready(name, other, one) for other in value)
            elif one.kind is one.VAR_KEYWORD:
                value = {field: ready(field, other, one) for field, other in value.items()}
            else:
                value = ready(name, value, one)
            given.arguments[name] = value
        try:
            return verb(*given.args, **given.kwargs)
        except CheckpointError as error:
            error.arguments |= signature.parameters.keys()
            raise

    return cast("Callable[P, T]", call)


def check_types(
    name: str, call: Callable[..., Any], given: Mapping[str, Any], kinds: Mapping[str, _Kind] = KINDS
) -> None:
    """Raise ConfigError if one of the ``given`` arguments has another type than the function ``call`` declares.

    ``name`` is the name of the verb or recipe in the message. ``kinds`` maps the annotations of parameters to types.
    """
    known = inspect.signature(call).parameters
    rest = next((one for one in known.values() if one.kind is one.VAR_KEYWORD), None)
    for field, value in given.items():
        parameter = known.get(field, rest)
        kind = kinds.get(parameter.annotation) if parameter is not None else None
        if kind is None or kind.accepts(value):
            continue
        _check_complete(name, field, value)
        said = f"{escape(name)}: the argument {field} is {brief_repr(value)}, not {kind.wanted}."
        raise ConfigError(
            said, hint=path_hint(value, name) if kind.wanted == KINDS["Path"].wanted else kind.hint(value)
        )


def path_hint(value: Any, verb: str = "") -> str:
    """Return a hint if a checkpoint was given although a path is needed; '' for any other value.

    ``verb`` is the name of the called function: some need config.json next to the weights.
    """
    if isinstance(value, Checkpoint):
        return "This function is about files, not tensors: give the path of the checkpoint."
    if not holds_tensors(value):
        is_configuration = verb == "train" and isinstance(value, Mapping)
        return "Write the configuration to a YAML file, and give its path." if is_configuration else ""
    if callable(getattr(value, "save_pretrained", None)):
        return "This function is about files, not tensors: write the model to a folder first, save_pretrained('model')."
    beside = " in a folder that has the config.json of the model" if verb in ("resize", "stats") else ""
    write = "cs.apply(cs.convert(tensors), 'model.safetensors')"
    return f"This function is about files, not tensors: write the tensors to a file first{beside}, {write}."


def _check_complete(name: str, field: str, value: Any) -> None:
    """Raise ConfigError if ``value`` is a map and one of its values is None: YAML parses ``{module: }`` in this way."""
    empty = [key for key, target in value.items() if target is None] if isinstance(value, dict) else []
    if empty:
        key = brief_repr(empty[0])
        raise ConfigError(
            f"{escape(name)}: in the argument {field}, {key} has no value.",
            hint=f"Write '' for an empty value, as in {{{key}: ''}}.",
        )


def check_seed(seed: int) -> None:
    """Raise ConfigError if ``seed`` is not a whole number from 0 to 2^63 - 1."""
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(
            f"--seed {brief_repr(seed, 40)} is not a valid seed.", hint="Use a whole number from 0 to 2^63 - 1."
        )
