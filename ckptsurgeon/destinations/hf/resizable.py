"""A config.json of transformers whose fields are changed: what the network is with other values of some fields."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...planning.target import TargetSpec
from ...vocabulary.replacement import NewVocabulary
from .._document import Document, read_document
from ..transformers import TOOLKIT

__all__ = ["Resizable"]


class Resizable:
    """The network of a config.json, which can be built with other values of some fields; raises ConfigError."""

    def __init__(self, path: str) -> None:
        self._document = read_document(path, "configuration")
        if self._document.model or not TOOLKIT.recognises(self._document):
            raise self._document.fail(
                "only a network of transformers can be resized: this is not its config.json.",
                "Name the folder of a model, or its config.json with --config.",
            )
        self._described: Any = None

    @property
    def path(self) -> str:
        """The path of the config.json."""
        return self._document.path

    def target(self, changes: Mapping[str, Any], vocabulary: NewVocabulary | None = None) -> TargetSpec:
        """Return the network with ``changes`` as a destination; a part of the configuration is a dict in it.

        ``vocabulary`` replaces the vocabulary of the model; its size is one of the ``changes``.
        """
        changed = replace(self._document, overrides=dict(changes), vocabulary=vocabulary, read=[], ran=[])
        return TOOLKIT.load(changed)

    def fields(self, changes: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Return all fields of the configuration with ``changes``, those with default values included."""
        config = self._config(changes)
        return dict(config.to_dict())

    def main_name(self, path: str) -> str:
        """Return the main name of a field that has several: ``hidden_size`` of T5 is ``d_model``."""
        *parts, name = path.split(".")
        config = self._config({})
        for part in parts:
            config = getattr(config, part, None)
        return ".".join([*parts, getattr(config, "attribute_map", {}).get(name, name)])

    def _config(self, changes: Mapping[str, Any]) -> Any:
        from .config import describe, library
        from .given import given_fields

        document: Document = replace(self._document, overrides=dict(changes))
        given = given_fields(document)
        return describe(document, library(document), given).config

    @property
    def folder(self) -> str:
        """The folder of the config.json."""
        return os.path.dirname(self.path)
