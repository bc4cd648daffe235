"""Reads a configuration of mergekit: every field of version 0.1.5, and our ``layers``, ``keys`` and ``statistics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...util.text import brief_repr, escape
from ..keys.pattern import KeyPattern
from ..keys.pattern_hints import nearest
from ..plan.files import SourceView
from .fields import ModelReference, at, fault, items, reference, table, text
from .tokenizer import Tokenizer, read_tokenizer

__all__ = [
    "WHOLE",
    "Configuration",
    "ModelPart",
    "ModuleConfig",
    "SliceConfig",
    "SourceConfig",
    "parts_of",
    "read_configuration",
]

FIELDS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "layers",
)  # fmt: skip


@dataclass(frozen=True)
class SourceConfig:
    """A model of a merge, or only its layers from ``layers[0]`` to before ``layers[1]`` (None: all layers).

    ``where`` is the path of this entry in the configuration, such as ``slices[0].sources[1]``, for messages.
    ``statistics`` is the path of a file with statistics of the model.
    """

    where: str
    model: ModelReference
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    statistics: str = ""


@dataclass(frozen=True)
class SliceConfig:
    """Consecutive layers of the output: each is merged from one layer of every source."""

    where: str
    sources: tuple[SourceConfig, ...]
    base: ModelReference | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleConfig:
    """A part of the model, or all of it if ``name`` is empty: merged from whole ``models``, or from ``slices``.

    ``layers`` is the pattern of the module that contains the part's numbered layers, if it was given.
    """

    where: str
    name: str
    models: tuple[SourceConfig, ...] = ()
    slices: tuple[SliceConfig, ...] = ()
    layers: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """A mergekit configuration; ``notes`` are for the user."""

    method: str
    modules: tuple[ModuleConfig, ...]
    base: ModelReference | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""
    tokenizer: Tokenizer | None = None
    chat_template: str = ""
    notes: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[ModelReference, ...]:
        """Every model in the configuration, once each; the base comes last if it is not one of the other models."""
        return tuple(dict.fromkeys(self._named()))

    @property
    def statistics(self) -> Mapping[ModelReference, str]:
        """The paths of the models' statistics; raises ConfigError if two entries give different paths for one model."""
        found: dict[ModelReference, str] = {}
        for source in self._sources():
            if source.statistics and found.setdefault(source.model, source.statistics) != source.statistics:
                raise fault(
                    at(source.where, "statistics"), "is a different file than another entry gives for the same model"
                )
        return found

    def _sources(self) -> Iterator[SourceConfig]:
        for module in self.modules:
            yield from (*module.models, *(one for part in module.slices for one in part.sources))

    def _named(self) -> Iterator[ModelReference]:
        yield from (source.model for source in self._sources())
        yield from [part.base for module in self.modules for part in module.slices if part.base is not None]
        if self.base is not None:
            yield self.base


def read_configuration(data: Any) -> Configuration:
    """Return the configuration in a YAML document's data; raises ConfigError for unknown fields and wrong values."""
    given = table("", data, FIELDS, ("merge_method",))
    shapes = [one for one in ("models", "slices", "modules") if given.get(one)]
    if not shapes and (empty := [one for one in ("models", "slices", "modules") if one in data]):
        raise fault(empty[0], "is empty", "List models in it.")
    if len(shapes) != 1:
        why = f"has {' and '.join(shapes)}" if shapes else "has neither models nor slices"
        raise fault("", why, "Give one of models, slices and modules.")
    notes: list[str] = []
    if shapes == ["modules"]:
        named = given["modules"]
        if not isinstance(named, dict):
            raise fault("modules", f"is {brief_repr(named)}, not a map")
        modules = [_module(at("modules", str(name)), str(name), one, notes) for name, one in named.items()]
        if "layers" in given:
            raise fault("layers", "cannot be given together with modules", "Give it in each module instead.")
    else:
        modules = [_module("", "", {one: given[one] for one in (*shapes, "layers") if one in given}, notes)]
    base = reference("base_model", given["base_model"]) if "base_model" in given else None
    template = given.get("chat_template", "")
    return Configuration(
        method=text("merge_method", given["merge_method"]),
        modules=tuple(modules),
        base=base,
        parameters=_parameters("parameters", given),
        dtype=_dtype(given),
        tokenizer=read_tokenizer(given),
        chat_template=text("chat_template", template) if template else "",
        notes=tuple(notes),
    )


def _dtype(given: Mapping[str, Any]) -> str:
    """Return the dtype of the output: the field ``out_dtype``, else ``dtype``, else ''.

    mergekit also computes in ``dtype``; we do not.
    """
    named = [text(one, given[one]).removeprefix("torch.") for one in ("out_dtype", "dtype") if one in given]
    return named[0] if named else ""


def _module(where: str, name: str, data: Any, notes: list[str]) -> ModuleConfig:
    given = table(where, data, ("models", "slices", "parameters", "layers"))
    if bool(given.get("models")) == bool(given.get("slices")):
        raise fault(where, "has both models and slices" if given.get("models") else "has neither models nor slices")
    models = items(at(where, "models"), given["models"], "models") if given.get("models") else []
    slices = items(at(where, "slices"), given["slices"], "slices") if given.get("slices") else []
    return ModuleConfig(
        where,
        name,
        tuple(_source(at(at(where, "models"), i), one, whole=True) for i, one in enumerate(models)),
        tuple(_slice(at(at(where, "slices"), i), one, notes) for i, one in enumerate(slices)),
        text(at(where, "layers"), given["layers"]) if "layers" in given else "",
        _parameters(at(where, "parameters"), given),
    )


def _slice(where: str, data: Any, notes: list[str]) -> SliceConfig:
    given = table(where, data, ("sources", "base_model", "residual_weight", "parameters"), ("sources",))
    rows = items(at(where, "sources"), given["sources"], "sources")
    sources = tuple(_source(at(at(where, "sources"), i), one, whole=False) for i, one in enumerate(rows))
    lengths = [last - first for one in sources if one.layers is not None for first, last in [one.layers]]
    if len(set(lengths)) > 1:
        raise fault(
            where, f"has sources of {' and '.join(map(str, lengths))} layers", "Give each the same number of layers."
        )
    if "residual_weight" in given:
        if type(given["residual_weight"]) not in (int, float):
            raise fault(at(where, "residual_weight"), f"is {brief_repr(given['residual_weight'])}, not a number")
        notes.append(f"{where}.residual_weight has no effect, as in mergekit")
    base = reference(at(where, "base_model"), given["base_model"]) if "base_model" in given else None
    return SliceConfig(where, sources, base, _parameters(at(where, "parameters"), given))


def _source(where: str, data: Any, *, whole: bool) -> SourceConfig:
    needed = ("model",) if whole else ("model", "layer_range")
    given = table(where, data, (*needed, "parameters", "statistics"), needed)
    layers = None if whole else _range(at(where, "layer_range"), given["layer_range"])
    model = reference(at(where, "model"), given["model"])
    statistics = text(at(where, "statistics"), given["statistics"]) if "statistics" in given else ""
    return SourceConfig(where, model, layers, _parameters(at(where, "parameters"), given), statistics)


def _range(where: str, data: Any) -> tuple[int, int]:
    if not isinstance(data, list) or len(data) != 2 or not all(type(one) is int for one in data):
        raise fault(where, f"is {brief_repr(data)}, not two whole numbers", "Write [0, 16] for layers 0 to 15.")
    first, last = data
    if first < 0 or last < 0:
        raise fault(where, f"is [{first}, {last}], below the first layer", "Count from 0; the end is not included.")
    if last <= first:
        raise fault(where, f"is [{first}, {last}], which is empty", "Count from 0; the end is not included.")
    return first, last


def _parameters(where: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    data = given.get("parameters", {})
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise fault(where, f"is {brief_repr(data)}, not a map of parameters")
    return data


# The parts of a model that the field ``modules`` lists, and the keys that belong to each part.

WHOLE = ("", "default")
"""The names of a part that is the whole model; mergekit calls it default."""


@dataclass(frozen=True)
class ModelPart:
    """A part of the model in a configuration, and the modules that it consists of (``homes``).

    ``others`` are the modules of all other parts. If the modules of several parts contain a key, it belongs to the part
    with the innermost module.
    """

    module: ModuleConfig
    homes: tuple[str, ...]
    others: tuple[str, ...] = field(default=(), repr=False)

    def owns(self, key: str) -> bool:
        """Return whether a key belongs to the part."""
        return _depth(self.homes, key) > _depth(self.others, key)


def _depth(homes: Sequence[str], key: str) -> int:
    """Return the length of the longest of the module names ``homes`` that contain the key; -1 if none."""
    fits = [len(home) for home in homes if not home or key == home or key.startswith(f"{home}.")]
    return max(fits, default=-1)


def parts_of(modules: Sequence[ModuleConfig], views: Sequence[SourceView]) -> list[ModelPart]:
    """Return each part of the model with its modules: all modules with the name of the part.

    If the part has a pattern ``layers``, its modules are instead the modules that contain these layers. Keys in no part
    belong to the last part. Raises ConfigError for a part that the models do not have.
    """
    if len(modules) == 1 and modules[0].name in WHOLE:
        return [ModelPart(modules[0], ("",))]
    keys = dict.fromkeys(key for view in views for key in view.tensors)
    homes = {one.name: _homes(one, list(keys)) for one in modules}
    homes[modules[-1].name] += ("",)
    return [
        ModelPart(
            one, homes[one.name], tuple(home for name, other in homes.items() if name != one.name for home in other)
        )
        for one in modules
    ]


def _homes(module: ModuleConfig, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the modules of a part: the outermost modules with its name or, if given, with its ``layers``.

    Raises ConfigError if there are none.
    """
    found: dict[str, None] = {}
    pattern = KeyPattern.given(module.layers, "layers: ") if module.layers else None
    for key in keys:
        segments = key.split(".")
        for place in range(1, len(segments)):
            path = ".".join(segments[:place])
            if pattern.matches(path) if pattern is not None else segments[place - 1] == module.name:
                found[path.rpartition(".")[0] if pattern is not None else path] = None
                break
    if not found and pattern is not None:
        raise fault(
            at(module.where, "layers"),
            f"is {brief_repr(module.layers)}, which matches no module of the models",
            "Give the module that contains the numbered layers, as in layers: model.layers.",
        )
    if not found:
        near = nearest(module.name, keys)
        hint = f"Did you mean {escape(near[0][0])}? " if near else ""
        raise fault(
            module.where,
            "is not the name of a module of the models",
            f"{hint}Add the field layers: GLOB, which matches the module that contains its layers.",
        )
    return tuple(found)
