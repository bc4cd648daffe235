"""A config.json of transformers whose fields are changed: what the network is with other values of some fields."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from ...planning.target import TargetSpec
from ...vocabulary.replacement import NewVocabulary
from .._document import Document, read_document
from ..transformers import TOOLKIT

__all__ = ["Resizable"]

_OF_THE_FILE = ("model_type", "architectures", "transformers_version", "torch_dtype", "_name_or_path")
"""Fields that say of which type and version a config.json is."""
_UNDECLARED = ("head_dim",)
"""Fields that networks read although their configuration class does not declare them, as Qwen3-MoE's does."""


class Resizable:
    """The network of a config.json, which can be built with other values of some fields; raises ConfigError.

    ``dequantized`` is true for weights that are decoded: then a quantization_config is not an error.
    """

    def __init__(self, path: str, *, dequantized: bool = False) -> None:
        self._document = replace(read_document(path, "configuration"), dequantized=dequantized)
        if self._document.model or not TOOLKIT.recognises(self._document):
            raise self._document.fail(
                "only a network of transformers can be resized: this is not its config.json.",
                "Name the folder of a model, or its config.json with --config.",
            )
        if self._document.content.get("quantization_config") is not None and not dequantized:
            raise self._document.fail(
                "the weights are quantised: there is a quantization_config.",
                "Decode them first: ckpt convert DIR --dequantize -o plain/.",
            )

    @property
    def path(self) -> str:
        """The path of the config.json."""
        return self._document.path

    def declaring(self, fields: Mapping[str, Any]) -> Resizable:
        """Return the same network of a config.json that has ``fields``, too, which its class does not declare."""
        made = copy(self)
        made._document = replace(self._document, content=_merged(self._document.content, fields))
        return made

    def target(self, changes: Mapping[str, Any], vocabulary: NewVocabulary | None = None) -> TargetSpec:
        """Return the network with ``changes`` as a destination; a part of the configuration is a dict in it.

        ``vocabulary`` replaces the vocabulary of the model; its size is one of the ``changes``.
        """
        changed = replace(self._document, overrides=dict(changes), vocabulary=vocabulary, read=[], ran=[])
        return TOOLKIT.load(changed)

    def fields(self, changes: Mapping[str, Any] = {}, vocabulary: NewVocabulary | None = None) -> dict[str, Any]:
        """Return all fields of the configuration with ``changes``, those with default values included."""
        return dict(self._config(changes, vocabulary).to_dict())

    def main_name(self, path: str) -> str:
        """Return the main name of a field that has several: ``hidden_size`` of T5 is ``d_model``."""
        *parts, name = path.split(".")
        config = self._config({})
        for part in parts:
            config = getattr(config, part, None)
        return ".".join([*parts, getattr(config, "attribute_map", {}).get(name, name)])

    def _config(self, changes: Mapping[str, Any], vocabulary: NewVocabulary | None = None) -> Any:
        from .config import describe, library
        from .given import given_fields

        document: Document = replace(self._document, overrides=dict(changes), vocabulary=vocabulary)
        given = given_fields(document)
        return describe(document, library(document), given).config

    def main_name_in(self, model_type: str, name: str) -> str:
        """Return the main name of a field of another model type; raises ConfigError if the type is not known."""
        return str(self._class_of(model_type).attribute_map.get(name, name))

    def names_in(self, model_type: str) -> dict[str, Any]:
        """Return the fields of another model type with their default values."""
        return dict(self._class_of(model_type)().to_dict())

    def as_type(self, model_type: str, changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return all fields of the configuration as one of another model type, and the names of those left out.

        Each field that both types have is carried over; ``changes`` are fields of the new type with their values. Only
        fields that the file has are listed as left out. Raises ConfigError for a type or field that is not known.
        """
        from .config import describe, library
        from .given import given_fields
        from .overrides import check_overrides, own_fields

        config_class, content = self._class_of(model_type), self._document.content
        main_names = set(config_class.attribute_map.values())
        known = (own_fields(config_class) | main_names | set(_UNDECLARED)) - {*_OF_THE_FILE, "auto_map"}
        of_all = own_fields(library(self._document).PreTrainedConfig) - content.keys()  # with their defaults
        carried = {name: value for name, value in self.fields().items() if name in known - of_all}
        check_overrides(self._document, config_class, dict.fromkeys(main_names), changes)
        fields = {**carried, **changes, "model_type": model_type, "architectures": content.get("architectures")}
        document: Document = replace(self._document, overrides=fields)
        fields["architectures"] = [describe(document, library(document), given_fields(document)).name]
        names = {getattr(self._config({}), "attribute_map", {}).get(name, name) for name in content}
        return fields, sorted(names - known - set(_OF_THE_FILE))

    def _class_of(self, model_type: str) -> Any:
        from .config import class_of_config, library

        return class_of_config(self._document, library(self._document), {"model_type": model_type})

    @property
    def folder(self) -> str:
        """The folder of the config.json."""
        return os.path.dirname(self.path)


def _merged(content: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: _merged(content.get(name) or {}, one) for name, one in fields.items() if isinstance(one, Mapping)}
    return {**content, **fields, **parts}
