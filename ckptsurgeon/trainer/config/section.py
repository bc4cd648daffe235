"""Reads a ``train:`` section, in which ``--set KEY=VALUE`` may replace values, and resolves its paths."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from ...errors import ConfigError
from ...storage.yaml_text import read_yaml
from ...util.text import brief_repr, escape
from ...vocabulary.vocabulary import BYTES
from .bounds import find_fault
from .settings import CHOICES, DATASET, Augment, Data, Features, Lora, Named, Pretrain, Settings

__all__ = ["apply_overrides", "check_section", "parse_settings", "resolve_paths"]


LENGTHS = ("steps", "epochs")
"""Fields that set the length of a run; only one of them may be set."""


def apply_overrides(section: Any, sets: Sequence[str]) -> Any:
    """Return a ``train:`` section in which the ``KEY=VALUE`` strings ``sets`` replace values.

    A key may have dots, as in ``data.workers``; a value is YAML. Raises ConfigError for a string that is not of this
    form, and for an unknown field.
    """
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not path or not all(path.split(".")):
            raise ConfigError(f"--set {escape(text)} is not KEY=VALUE.", hint="Write it as in --set lr=1e-3.")
        flag = f"--set {escape(text)}"
        names = path.removeprefix("train.").split(".")
        check_section(_nested(names, _value(value, flag)), flag)
        section = _merged({} if section is None else section, _nested(names, _value(value, flag)))
        if names[0] in LENGTHS and isinstance(section, Mapping):  # the last one that is set wins
            section = {name: one for name, one in section.items() if name == names[0] or name not in LENGTHS}
    return section


def _value(text: str, flag: str) -> Any:
    return read_yaml(f"value: {text}\n", flag)["value"]


def _nested(names: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def _merged(old: Any, new: Mapping[str, Any]) -> Any:
    """Return the section ``old`` with the values of ``new``; nested sections are merged, other values are replaced."""
    if not isinstance(old, Mapping):
        return old  # not a section: parse_settings raises for it
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both and name in _SECTIONS else value
    return merged


def parse_settings(section: Any, where: str) -> Settings:
    """Return the settings of a ``train:`` section; ``where`` is the name of its file, for messages.

    Raises ConfigError for an unknown field (the hint has the nearest name), for a value of a wrong type or out of
    bounds, and for settings that contradict each other.
    """
    made: Settings = _read(Settings, {} if section is None else section, where, "train")
    why = find_fault(made)
    if section is not None and made.epochs is not None and section.get("steps") is not None:
        why = f"train.steps is {made.steps} and train.epochs is {made.epochs}; leave one of the two out"
    if why:
        raise ConfigError(f"{escape(where)}: {why}.")
    return made


def check_section(section: Any, where: str) -> None:
    """Raise ConfigError for an unknown field or a value of a wrong type in a ``train:`` section.

    ``where`` is the name of the file, or of the option, for messages. Bounds and contradictions are not checked.
    """
    _read(Settings, section, where, "train")


def _read(kind: Callable[..., Any], section: Any, where: str, path: str) -> Any:
    """Return an object of the dataclass ``kind`` with the values of a section.

    ``where`` is the name of the file, and ``path`` the path of the section in the file, for messages. Raises
    ConfigError for an unknown field or a wrong type.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"{escape(where)}: {path} is {brief_repr(section, 80)}, not a section.",
            hint="Write the fields of the section below its name, each as NAME: VALUE.",
        )
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in section.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known fields are {', '.join(known)}."
            raise ConfigError(f"{escape(where)}: {path} has no field {brief_repr(name)}.", hint=hint)
        given[name] = _value_section(known[name], value, where, f"{path}.{name}")
    return kind(**given)


def _value_section(one: Any, value: Any, where: str, path: str) -> Any:
    """Return ``value``, from a section, converted to the type of the dataclass field ``one``.

    ``where`` is the name of the file, and ``path`` the path of the field in the file, for messages. Raises ConfigError
    for a value of another type.
    """
    if one.name in _SECTIONS:
        return _read(_SECTIONS[one.name], value, where, path)
    reader = _READERS[one.name if one.name in _READERS else str(one.type).replace(" | None", "")]
    optional = str(one.type).endswith("| None")
    try:
        made = None if value is None and optional else reader(value)
    except (TypeError, ValueError, OverflowError):
        hint = "" if one.default is MISSING else f"The default is {one.default!r}."
        meant = _MEANT[str(one.type).partition(" | ")[0]]
        said = "empty" if value == "" else f"{brief_repr(value, 80)}, not {meant}"
        raise ConfigError(f"{escape(where)}: {path} is {said}.", hint=hint) from None
    if one.name in CHOICES and made not in CHOICES[one.name]:
        raise ConfigError(
            f"{escape(where)}: {path} is {brief_repr(value, 80)}, which is not allowed.",
            hint=f"Use one of {', '.join(CHOICES[one.name])}.",
        )
    return made


def _whole(value: Any) -> int:
    if type(value) is float and value.is_integer():  # as in 1e3
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or math.isnan(value):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _switch(value: Any) -> str:
    """Return a setting as a string: ``on`` for true and ``off`` for false, because YAML reads both as booleans."""
    return _text({True: "on", False: "off"}[value] if isinstance(value, bool) else value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, [value] if isinstance(value, str) else _sequence(value)))


def _named(value: Any) -> tuple[Named, ...]:
    """Return the value of ``train``, ``dev`` or ``test`` in ``data`` as a tuple of the sources of the split.

    A source is a path, or a mapping with a field ``hf_dataset`` or ``_target_``.
    """
    several = [value] if isinstance(value, (str, Mapping)) else _sequence(value)
    return tuple(_factory(one) if isinstance(one, Mapping) else _text(one) for one in several)


def _factory(value: Mapping[Any, Any]) -> dict[str, Any]:
    _text(value.get(DATASET, value.get("_target_")))
    return {_text(name): one for name, one in value.items()}


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(_number, _sequence(value)))


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return value


def _freeze(value: Any) -> dict[str, int | None]:
    """Return the setting ``freeze`` as a dict from key pattern to the step from which its tensors are trained.

    None means that they are never trained. If the setting is a list of patterns, each pattern gets None.
    """
    if isinstance(value, Mapping):
        return {_text(pattern): None if step is None else _whole(step) for pattern, step in value.items()}
    return dict.fromkeys(_texts(value))


def _scales(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError
    return {_text(pattern): _number(scale) for pattern, scale in value.items()}


_SECTIONS: dict[str, Callable[..., Any]] = {
    "data": Data,
    "features": Features,
    "augment": Augment,
    "lora": Lora,
    "pretrain": Pretrain,
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _whole,
    "float": _number,
    "str": _text,
    "bool": _truth,
    "tuple[str, ...]": _texts,
    "tuple[float, ...]": _numbers,
    "tuple[Named, ...]": _named,
    "compile": _switch,
    "freeze": _freeze,
    "lr_scale": _scales,
}
_MEANT = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "tuple[str, ...]": "a string or a list of strings",
    "tuple[float, ...]": "a list of numbers",
    "tuple[Named, ...]": "a string, a map with hf_dataset or _target_, or a list of these",
    "Mapping[str, int": "a list of patterns, or a map from pattern to step",
    "Mapping[str, float]": "a map from pattern to number",
}


def resolve_paths(settings: Settings, folder: str) -> Settings:
    """Return settings with full paths: the paths in a configuration are relative to its ``folder``."""
    data, augment = settings.data, settings.augment

    def path(name: str) -> str:
        return os.path.normpath(os.path.join(folder, name))

    def paths(several: Sequence[Named]) -> tuple[Named, ...]:
        return tuple(path(one) if isinstance(one, str) else dataset(one) for one in several)

    def dataset(one: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**one, DATASET: path(str(one[DATASET]))} if DATASET in one else one

    tokens = data.tokens
    if tokens is not None and tokens != BYTES:
        tokens = path(tokens) if path(tokens) != BYTES else os.path.join(os.curdir, BYTES)
    data = replace(
        data,
        train=paths(data.train),
        dev=paths(data.dev),
        test=paths(data.test),
        tokens=tokens,
        segmenter=path(data.segmenter) if data.segmenter is not None else None,
        cache=path(data.cache) if data.cache is not None else None,
    )
    lm = path(settings.lm) if settings.lm is not None else None
    return replace(settings, data=data, lm=lm, augment=replace(augment, noise=tuple(map(path, augment.noise))))
