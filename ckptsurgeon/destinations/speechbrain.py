"""Destinations that are the modules of a ``hyperparams.yaml`` of SpeechBrain, built by hyperpyyaml.

The entry ``modules`` becomes one ``torch.nn.ModuleDict``, as in SpeechBrain's class ``Brain`` (with keys such as
``enc.weight``). The user can choose another entry, for example the ``model: !new:torch.nn.ModuleList`` that a
checkpointer saves (with keys such as ``0.weight``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..planning.target import TargetSpec
from ..util.text import brief_repr, escape, listing
from ._document import Document, check_fields, read_document
from ._hyperparams import (
    calls_kept,
    code_in,
    entry_names,
    error_text,
    has_hyperparams_tags,
    read_hyperparams,
    restored,
    toolkit,
)
from .torch_module.user_code import user_code

__all__ = ["CONFIG", "TOOLKIT"]

MODULES = "modules"
MOST_FEATURES = 1 << 20
"""The largest number of features of a module whose statistics become tensors; larger numbers are an error."""


class _Toolkit:
    """The toolkit SpeechBrain, whose destinations are the modules of a ``hyperparams.yaml``."""

    field = "speechbrain"

    def code(self, document: Document) -> Sequence[str]:
        """Return every tag of the file that imports or calls code, as it is written."""
        return code_in(document)

    def recognises(self, document: Document) -> bool:
        """Return whether a document has tags that only hyperpyyaml reads."""
        return document.content is None and has_hyperparams_tags(document.text)

    def training(self, document: Document) -> Mapping[str, Any]:
        """Return {}: a ``hyperparams.yaml`` has no fields for our ``train:`` section."""
        return {}

    def load(self, document: Document) -> TargetSpec:
        """Build the modules of a document without memory for their weights."""
        return _load(document, MODULES, {})


class _Named:
    """``model: {speechbrain: hyperparams.yaml, entry: model, overrides: {…}}``: a file in our format.

    The file refers to the SpeechBrain file ``hyperparams.yaml``.

    ``statistics: {normalize: 80}`` turns the running statistics of the module ``normalize`` into tensors of 80
    features.
    """

    field = "speechbrain"

    def code(self, document: Document) -> Sequence[str]:
        """Return every tag of the named SpeechBrain file that imports or calls code, as it is written."""
        return code_in(_inner(document))

    def load(self, document: Document) -> TargetSpec:
        """Load the chosen entry of the SpeechBrain file to which the document refers.

        Raises ConfigError for an unknown or malformed field.
        """
        check_fields(document, "model", document.model, ("speechbrain", "entry", "overrides", "statistics"))
        entry = document.model.get("entry", MODULES)
        overrides = document.model.get("overrides") or {}
        if not isinstance(entry, str) or not entry:
            raise document.fail(f"the field entry is {brief_repr(entry)}, not the name of an entry.")
        if not isinstance(overrides, dict):
            raise document.fail(
                f"the field overrides is {brief_repr(overrides)}, not a map.", "Write a map from entries to values."
            )
        inner = _inner(document)
        spec = _load(inner, entry, overrides, _sizes(document))
        return replace(spec, name=document.name, config=document.path, files=(inner.path, *spec.files))


def _sizes(document: Document) -> dict[str, int]:
    """Return the field ``statistics``: the number of features of each module whose statistics become tensors.

    Raises ConfigError if it is malformed.
    """
    sizes = document.model.get("statistics") or {}
    if not isinstance(sizes, dict) or not all(type(one) is int and 0 < one <= MOST_FEATURES for one in sizes.values()):
        raise document.fail(
            f"the field statistics is {brief_repr(sizes)}, not a map from modules to numbers from 1 to "
            f"{MOST_FEATURES}.",
            "Write a number of features for each module: {normalize: 80}.",
        )
    return {str(name): size for name, size in sizes.items()}


def _inner(document: Document) -> Document:
    """Return the SpeechBrain configuration that a document in ckpt's format names.

    Both documents share one list ``ran``, the names of the code that was run. Raises ConfigError if the field
    ``speechbrain`` is not a file name.
    """
    named = document.model["speechbrain"]
    if not isinstance(named, str):
        raise document.fail(f"the field speechbrain is {brief_repr(named)}, not a file name.")
    return replace(read_document(document.resolve(named)), ran=document.ran)


def _load(
    document: Document, entry: str, overrides: Mapping[str, Any], statistics: Mapping[str, int] = MappingProxyType({})
) -> TargetSpec:
    """Return the destination that an entry of a SpeechBrain file describes; no memory is used for its weights.

    ``statistics`` is the result of ``_sizes``. Raises ConfigError if the entry cannot be read or built.
    """
    from .torch_module.module import module_target

    with user_code(document):
        read = read_hyperparams(document, overrides, entry.partition(".")[0])
        toolkit(document)

    def build() -> Any:
        found = _module(document, entry, _made(document, read.text))
        built = found if not isinstance(found, dict) else _with_entries(document, overrides, found)
        for name, features in statistics.items():
            _keep_statistics(document, built, name, features)
        return built

    return module_target(
        build, kind="speechbrain", name=document.name, config=document.path, weights=document.constructor_weights,
        files=read.files, ran=read.ran, notes=read.notes,
    )  # fmt: skip


def _keep_statistics(document: Document, modules: Any, name: str, features: int) -> None:
    from ._brain_modules import has_statistics, keep_statistics

    module = dict(modules.named_modules()).get(name)
    if module is None or not has_statistics(module):
        names = [name for name, one in modules.named_modules() if has_statistics(one)]
        raise document.fail(
            f"the field statistics has {escape(name)}, which is not a module that collects statistics "
            "(norm_type: global).",
            f"Use one of these modules: {listing(names)}."
            if names
            else "No module of the file collects statistics: leave this field out.",
        )
    keep_statistics(module, features)


def _made(document: Document, text: str) -> dict[str, Any]:
    """Return {name of an entry: the object that hyperpyyaml builds}, from a YAML text with resolved references.

    Raises ConfigError if a call in the text has wrong arguments.
    """
    hyperpyyaml = toolkit(document)
    with user_code(document), restored(), calls_kept(hyperpyyaml, document.ran):
        try:
            return dict(hyperpyyaml.load_hyperpyyaml(io.StringIO(text)))
        except TypeError as error:
            raise document.fail(error_text(error)) from error


def _with_entries(document: Document, overrides: Mapping[str, Any], modules: dict[str, Any]) -> Any:
    """Return ``modules`` as a ``BrainModules``, which can make other entries of the file when the model is trained."""
    from ._brain_modules import BrainModules

    def make(names: Sequence[str]) -> dict[str, Any]:
        with user_code(document):
            read = read_hyperparams(document, overrides, MODULES, *names)
        return _made(document, read.text)

    return BrainModules(modules, entry_names(document), make)


def _module(document: Document, entry: str, made: Any) -> Any:
    """Return the entry with the dotted name ``entry``: a module, or a mapping of modules.

    The entry ``modules`` is returned as a dict, another mapping as a ModuleDict. ``made`` is {name of an entry: the
    object built from it}. Raises ConfigError if there is no such entry, or if it is not a module or such a mapping.
    """
    from torch import nn

    found = made
    for part in entry.split("."):
        if not isinstance(found, Mapping) or part not in found:
            is_map = isinstance(found, Mapping)
            there = (
                f"Use one of {', '.join(map(str, found))}." if is_map else f"A {type(found).__name__} has no entries."
            )
            raise document.fail(f"the file has no entry {escape(entry)}.", escape(there))
        found = found[part]
    if isinstance(found, nn.Module):
        return found
    if not isinstance(found, Mapping) or not found:
        raise document.fail(
            f"the entry {escape(entry)} is {brief_repr(found, 80)}, neither a module nor a map of modules."
        )
    others = [str(name) for name, value in found.items() if not isinstance(value, nn.Module)]
    if others:
        raise document.fail(f"the entry {escape(entry)} has values that are not modules: {listing(others)}.")
    return dict(found) if entry == MODULES else nn.ModuleDict(dict(found))


CONFIG = _Named()
TOOLKIT = _Toolkit()
