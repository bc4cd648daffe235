"""The network of a configuration in our format (the user's code, or a bundled model), built with other field values."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConfigError
from ..planning.target import TargetSpec
from ..vocabulary.replacement import NewVocabulary
from ._document import Document, read_document
from ._load import check_parsed, loaded
from .bundled import defaults_of
from .factory import located
from .hf.resizable import Resizable

__all__ = ["ResizableModel", "resizable"]

_FACTORY, _BUNDLED = "_target_", "name"
"""The fields of ``model:`` that name the network: a function that builds it (``_target_``), or a bundled network."""


def resizable(path: str) -> Resizable:
    """Return the network of a configuration, which can be built with other values of some fields.

    The configuration is a config.json of transformers, or one in our format with ``_target_`` or ``name``. Raises
    ConfigError for any other file, and for one that cannot be parsed.
    """
    document = read_document(path, "configuration")
    check_parsed(document)
    if any(name in document.model for name in (_FACTORY, _BUNDLED)):
        return ResizableModel(document)
    return Resizable(path)


class ResizableModel(Resizable):
    """The network of a configuration in our format; its fields are the fields of the section ``model:``.

    The code of the user that the section names is run.
    """

    is_known = False

    def __init__(self, document: Document) -> None:
        self._document = document

    def target(self, changes: Mapping[str, Any], vocabulary: NewVocabulary | None = None) -> TargetSpec:
        """Return the destination: the network with the new values of fields in ``changes``."""
        return loaded(replace(self._document, overrides=dict(changes), read=[], ran=[]))

    def allow_undeclared(self, name: str, changes: Mapping[str, Any]) -> bool:
        """Return False: a function has only the arguments that it declares."""
        return False

    def fields(self, changes: Mapping[str, Any] = {}, vocabulary: NewVocabulary | None = None) -> dict[str, Any]:
        """Return all fields of the section ``model:`` with ``changes`` applied, also fields with default values."""
        document = self._document.changed(changes)
        given = {name: value for name, value in document.model.items() if name not in (_FACTORY, _BUNDLED)}
        return {**self._defaults(), **given}

    def main_name(self, path: str) -> str:
        """Return ``path`` itself: a field of a section ``model:`` has no second name."""
        return path

    def main_name_in(self, model_type: str, name: str) -> str:
        """Raise ConfigError: only networks of transformers have a model type."""
        raise self._no_types()

    def names_in(self, model_type: str) -> dict[str, Any]:
        """Raise ConfigError: only networks of transformers have a model type."""
        raise self._no_types()

    def as_type(self, model_type: str, changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Raise ConfigError: only networks of transformers have a model type."""
        raise self._no_types()

    def _no_types(self) -> ConfigError:
        return self._document.fail("--as works only for networks of transformers.", "Leave --as out.")

    def _defaults(self) -> dict[str, Any]:
        if _BUNDLED in self._document.model:
            return defaults_of(self._document)
        try:
            parameters = inspect.signature(located(self._document)).parameters
        except (TypeError, ValueError):  # a function without a signature
            return {}
        return {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}

    def said(self, changed: Sequence[str], overrides: Mapping[str, Any]) -> list[str]:
        """Return a list with one note: the changes that the user has to make in the configuration file.

        The note is needed because the output does not contain that file. ``changed`` are the names of the changed
        fields, ``overrides`` has their values.
        """
        name = os.path.basename(self.path)
        rows = ", ".join(f"{field}: {overrides[field]}" for field in changed if field in overrides)
        return [f"the output fits {name} with {rows}: write this into the section model: of your copy of the file"]
