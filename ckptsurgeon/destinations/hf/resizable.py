"""The network that a config.json of transformers describes, built with other values of some fields."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ...planning.target import TargetSpec
from ...util.text import escape
from ...vocabulary.replacement import NewVocabulary
from .._document import read_document
from ..transformers import TOOLKIT
from .described_fields import DescribedFields, described_fields, fields_as_type, fields_of_type
from .stock_code import versions

__all__ = ["Resizable"]


class Resizable:
    """The network of a config.json, which can be built with other values of some fields.

    Raises ConfigError if the file is not a config.json of transformers, or if it has a quantization_config, which is
    only allowed if the weights have been decoded (``dequantized``).
    """

    is_known = True
    """Whether tests compare the outputs of such networks: then a note may say that outputs should stay equal."""

    def __init__(self, path: str, *, dequantized: bool = False) -> None:
        # The values that identify the installed code must be determined before anything imports that code.
        document = read_document(path, "configuration")
        self._document = replace(document, versions=versions(), dequantized=dequantized)
        if self._document.model or not TOOLKIT.recognises(self._document):
            raise self._document.fail(
                "only a network of transformers can be resized, and this is not a config.json of transformers: it has "
                "neither model_type nor architectures.",
                "Name the folder of a model, its config.json with --config, or a file with model: {_target_: ...}.",
            )
        if self._document.content.get("quantization_config") is not None and not dequantized:
            raise self._document.fail(
                "the weights are quantised: config.json has a quantization_config.",
                f"Decode the weights first: ckpt convert {escape(shlex.quote(os.path.dirname(path) or '.'))} "
                "--dequantize "
                "-o plain/.",
            )
        self._known: dict[str, DescribedFields] = {}

    @property
    def path(self) -> str:
        """The path of the config.json."""
        return self._document.path

    def declaring(self, fields: Mapping[str, Any]) -> Resizable:
        """Return the network as if its config.json also had ``fields``, which the class does not declare."""
        made = copy(self)
        made._document, made._known = replace(self._document, content=_merged(self._document.content, fields)), {}
        return made

    def target(self, changes: Mapping[str, Any], vocabulary: NewVocabulary | None = None) -> TargetSpec:
        """Return the destination: the network with the new values of fields in ``changes``.

        The new value of a nested configuration is a dict of its fields. ``vocabulary`` replaces the vocabulary of the
        model; its size must also be in ``changes``.
        """
        changed = replace(self._document, overrides=dict(changes), vocabulary=vocabulary, read=[], ran=[])
        return TOOLKIT.load(changed)

    def allow_undeclared(self, name: str, changes: Mapping[str, Any]) -> bool:
        """Return whether ``changes``, which set the undeclared field ``name``, change the shape of a tensor.

        If so, the field may be set from now on. Some networks of transformers read fields, such as the size of a head,
        that the class of their configuration does not declare.
        """
        trial = replace(self._document, undeclared=(*self._document.undeclared, name))
        try:
            with _without_log():
                other = TOOLKIT.load(replace(trial, overrides=dict(changes), read=[], ran=[])).tensors
        except ConfigError:
            return False
        own = self.target({}).tensors
        reads = any(key in other and other[key].shape != info.shape for key, info in own.items())
        if reads:
            self._document = trial
        return reads

    def fields(self, changes: Mapping[str, Any] = {}, vocabulary: NewVocabulary | None = None) -> dict[str, Any]:
        """Return all fields of the configuration with ``changes`` applied, including fields with default values."""
        return dict(self._described(changes, vocabulary).fields)

    def main_name(self, path: str) -> str:
        """Return the main name of a field that has several: ``hidden_size`` of T5 is ``d_model``."""
        inside, _, name = path.rpartition(".")
        main = self._described({}).names.get(inside, {}).get(name, name)
        return f"{inside}.{main}" if inside else main

    def _described(self, changes: Mapping[str, Any], vocabulary: NewVocabulary | None = None) -> DescribedFields:
        document = replace(self._document, overrides=dict(changes), vocabulary=vocabulary)
        if vocabulary is not None:
            return described_fields(document)
        if repr(changes) not in self._known:
            self._known[repr(changes)] = described_fields(document)
        return self._known[repr(changes)]

    def main_name_in(self, model_type: str, name: str) -> str:
        """Return the main name of a field of another model type; raises ConfigError if the type is not known."""
        return fields_of_type(self._document, model_type).names.get(name, name)

    def names_in(self, model_type: str) -> dict[str, Any]:
        """Return the fields of another model type with their default values."""
        return dict(fields_of_type(self._document, model_type).fields)

    def as_type(self, model_type: str, changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the fields of the configuration converted to another model type, and the names of fields left out.

        Each field that both types have is carried over; ``changes`` are fields of the new type with their values.
        Fields that the file does not set, so that they had default values, are not listed as left out. Raises
        ConfigError for a type or field that is not known.
        """
        return fields_as_type(self._document, self._described({}), model_type, changes)

    def said(self, changed: Sequence[str], overrides: Mapping[str, Any]) -> list[str]:
        """Return no notes: the output contains its own config.json, with the changes."""
        return []

    @property
    def folder(self) -> str:
        """The folder of the config.json."""
        return os.path.dirname(self.path)


@contextmanager
def _without_log() -> Iterator[None]:
    """During the block, keep transformers from logging the whole configuration if a field of it cannot be set."""
    logger = logging.getLogger("transformers.configuration_utils")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _merged(content: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: _merged(content.get(name) or {}, one) for name, one in fields.items() if isinstance(one, Mapping)}
    return {**content, **fields, **parts}
