"""Finds the kind of a destination and loads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ..checkpoint.opening import CheckpointLike, is_live
from ..errors import CheckpointError, ConfigError, FormatError
from ..planning.target import TargetSpec
from ..util.registry import discover, plugin
from ..util.text import brief_repr, escape, listing
from ._document import Document, read_document
from .checkpoint import checkpoint_target

if TYPE_CHECKING:
    from torch import nn

    from ..vocabulary.replacement import NewVocabulary

__all__ = [
    "adopt",
    "check_parsed",
    "code_named",
    "is_configuration",
    "load_target",
    "loaded",
    "module_destination",
    "target_with",
]

_SUFFIXES = (".yaml", ".yml", ".json")


class _Kind(Protocol):
    """A kind of destination in our format; each kind is the object ``CONFIG`` of a file in this folder.

    A configuration is of this kind if its section ``model:`` has the entry ``field``.
    """

    field: str

    def load(self, document: Document) -> TargetSpec: ...

    def code(self, document: Document) -> Sequence[str]:
        """Return the names of the code that loading a configuration would run; imports nothing."""
        ...


class _Toolkit(Protocol):
    """A toolkit whose own configurations are destinations; each is the object ``TOOLKIT`` of a file in this folder.

    ckpt asks each toolkit whether it recognises a configuration that has no section ``model:``.
    """

    def recognises(self, document: Document) -> bool: ...

    def load(self, document: Document) -> TargetSpec: ...

    def code(self, document: Document) -> Sequence[str]: ...


@runtime_checkable
class _Adoptable(_Toolkit, Protocol):
    """A toolkit whose configuration can be named in a file in our format, as ``model: {field: path}``."""

    field: str

    def training(self, document: Document) -> Mapping[str, Any]:
        """Return the toolkit's settings for training as fields for our ``train:`` section."""
        ...


def is_configuration(path: str) -> bool:
    """Return whether a path ends like the path of a configuration (``.yaml``), and not like a checkpoint's path."""
    low = path.lower()
    return low.endswith(_SUFFIXES) and ".index." not in os.path.basename(low) and not os.path.isdir(path)


def load_target(path: CheckpointLike, *, task: str | None = None, constructor_weights: bool = True) -> TargetSpec:
    """Return the destination that a configuration or checkpoint describes: keys, shapes, dtypes, ties, initial values.

    Imports and runs the code that a configuration refers to (``_target_``); the field ``ran`` of the result lists that
    code. ``task`` is the task of an ESPnet configuration (asr, st, tts and others), because an ESPnet configuration
    does not contain its task. Weights that the model's constructor loads from files are initial values. If
    ``constructor_weights`` is false, the model is built without these weights.

    Raises ConfigError if the configuration is wrong or a package is missing; the error lists the code that has already
    run. Raises SourceError if the constructor needs a host that cannot be reached. For a checkpoint, raises the errors
    of ``open_checkpoint``.
    """
    return target_with(path, None, task, constructor_weights=constructor_weights)


def target_with(
    path: CheckpointLike,
    vocabulary: NewVocabulary | None,
    task: str | None = None,
    *,
    constructor_weights: bool = True,
    train: Mapping[str, Any] | None = None,
    dequantized: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> TargetSpec:
    """Return the destination as ``load_target`` does, but with changes to the model that the configuration describes.

    ``vocabulary`` replaces the vocabulary of a model of transformers: each token id in the configuration becomes the id
    of the same token in the new vocabulary, and the new tokeniser is copied. ``train`` replaces the section ``train:``
    of the configuration; for a speech model, tokeniser and processor files are made from this section. With
    ``dequantized``, the destination of a quantised model has unquantised weights. ``overrides`` maps fields to new
    values: fields of a config.json, or of the section ``model:``. Raises the errors of ``load_target``.
    """
    if not constructor_weights:
        _check_built(path)
    if not isinstance(path, (str, os.PathLike)):
        if task is not None:
            raise ConfigError(
                "only configurations of ESPnet have a task, and the destination is not a configuration.",
                hint="Leave --task out.",
            )
        return _with_older_names(checkpoint_target(path), path)
    text = os.fspath(path)
    if task is not None and (os.path.isdir(text) or not is_configuration(text)):
        raise ConfigError(
            f"only configurations of ESPnet have a task, and {escape(text)} is not an ESPnet configuration.",
            hint="Leave --task out.",
        )
    if os.path.isdir(text):
        return _folder(text)
    if not is_configuration(text):
        return checkpoint_target(text)
    document = replace(
        read_document(text), vocabulary=vocabulary, task=task, constructor_weights=constructor_weights,
        dequantized=dequantized, overrides=overrides or {},
    )  # fmt: skip
    return loaded(replace(document, train=train) if train is not None else document)


def loaded(document: Document) -> TargetSpec:
    """Return the destination that a document describes.

    If loading fails, the error lists the user's code that has run.
    """
    if document.model and document.overrides:
        document = document.changed(document.overrides)
    try:
        return _checked_kind(document).load(document)
    except CheckpointError as error:
        if document.ran:
            ran = list(dict.fromkeys(document.ran))
            said = listing(ran, where="")
            if not error.hint:
                error.message = f"{error.message.rstrip('.')}."
            error.add_hint(f"This code had already run: {said}.")
            error.details = (*error.details, *(f"ran {code}" for code in ran))
        raise


def _check_built(path: CheckpointLike) -> None:
    """Raise ConfigError if the destination ``path`` is not built by code: then no constructor can load weights."""
    if not isinstance(path, (str, os.PathLike)) or not code_named(os.fspath(path)):
        raise ConfigError(
            "--no-constructor-weights needs a model that is built by code: a _target_, or a configuration of ESPnet or "
            "SpeechBrain.",
            hint="Leave --no-constructor-weights out.",
        )


def code_named(path: str) -> tuple[str, ...]:
    """Return the names of the classes and functions that loading a configuration would run; imports nothing.

    Returns () for bundled models, declared tensors, checkpoints and transformers' own models. Raises ConfigError if the
    configuration cannot be read.
    """
    if os.path.isdir(path) or not is_configuration(path):
        return ()
    document = read_document(path)
    return tuple(dict.fromkeys(_kind_of(document).code(document)))


def _kind_of(document: Document) -> _Kind | _Toolkit:
    return _ours(document) if document.model or _is_empty(document) else _toolkit_of(document)


def _checked_kind(document: Document) -> _Kind | _Toolkit:
    """Return the object that loads ``document``: a ``_Kind`` if the document is in our format, else a ``_Toolkit``.

    Raises ConfigError if the user passed ``--task`` but the document is not an ESPnet configuration.
    """
    kind = _kind_of(document)
    if document.task is not None and not getattr(kind, "has_tasks", False):
        raise document.fail(
            "only configurations of ESPnet have a task, and this file is not an ESPnet configuration.",
            "Leave --task out.",
        )
    return kind


def adopt(path: str, beside: str, task: str | None = None) -> tuple[dict[str, Any], TargetSpec]:
    """Return a document in our format that refers to a toolkit's configuration, and the destination that it describes.

    ``path`` is the path of the toolkit's configuration; in the document it is relative to the folder ``beside``. Raises
    ConfigError if ``path`` is not the configuration of a toolkit, or the destination cannot be loaded.
    """
    document = replace(read_document(path), task=task)
    if document.model:
        raise document.fail(
            "the file is already a destination configuration.", "Name a checkpoint, or the configuration of a toolkit."
        )
    toolkit = _checked_kind(document)
    if not isinstance(toolkit, _Adoptable):
        raise document.fail("there is nothing to write: the file is already a destination configuration.")
    target = toolkit.load(document)
    train = dict(toolkit.training(document))
    named = {"model": {toolkit.field: os.path.relpath(path, beside or os.curdir), **({"task": task} if task else {})}}
    return {**named, **({"train": train} if train else {})}, target


def _folder(path: str) -> TargetSpec:
    """Return the destination: the checkpoint in the folder ``path``.

    If the folder has no checkpoint but a config.json, the hint of the FormatError suggests that file.
    """
    config = os.path.join(path, "config.json")
    try:
        return checkpoint_target(path)
    except FormatError as error:
        if error.rule == "no checkpoint" and os.path.isfile(config):
            error.hint = f"The folder has a configuration, which may be the destination: {escape(config)}."
        raise


def _is_empty(document: Document) -> bool:
    return isinstance(document.content, dict) and document.content.get("model") == {}


FIELDS = {
    "_target_": "factory", "espnet": "espnet", "like": "checkpoint", "name": "bundled", "speechbrain": "speechbrain",
    "tensors": "declared", "transformers": "transformers",
}  # fmt: skip
"""{field of ``model:``: module that reads it}. If ``model:`` has one of these fields, only that module is imported."""

MODEL_TYPE, OTHERS = "model_type", {"_target_", "svs"}
"""The field of a config.json of transformers, and fields with which it belongs to another toolkit.

For such a file, the modules of the other toolkits are not imported: this takes as long as a small command.
"""


MODEL_FIELDS = (
    "Write `model:` with one of the fields `_target_`, `name`, `tensors` and `like`, or let ckpt init write such a "
    "file."
)


def _ours(document: Document) -> _Kind:
    named = [name for field, name in FIELDS.items() if field in document.model]
    if len(named) == 1:
        return cast("_Kind", plugin("ckptsurgeon.destinations", named[0], "CONFIG"))
    kinds = cast("dict[str, _Kind]", discover("ckptsurgeon.destinations", "CONFIG"))
    by_field = {kind.field: kind for kind in kinds.values()}
    marks = [name for name in by_field if name in document.model]
    if len(marks) != 1:
        both = "both " if len(marks) == 2 else ""
        having = f"{both}{' and '.join(marks)}" if marks else "no field that defines the model"
        raise document.fail(
            f"the section model: has {having}.", f"Define the model by one of {', '.join(sorted(by_field))}."
        )
    return by_field[marks[0]]


def check_parsed(document: Document) -> None:
    """Raise the error of a document that cannot be parsed, unless a toolkit recognises it by its text."""
    if document.fault is not None and _recognising(document) is None:
        raise document.fault


def _recognising(document: Document) -> _Toolkit | None:
    content = document.content
    if isinstance(content, dict) and MODEL_TYPE in content and not OTHERS & content.keys():
        theirs = cast("_Toolkit", plugin("ckptsurgeon.destinations", "transformers", "TOOLKIT"))
        if theirs.recognises(document):
            return theirs
    toolkits = cast("dict[str, _Toolkit]", discover("ckptsurgeon.destinations", "TOOLKIT")).values()
    return next((toolkit for toolkit in toolkits if toolkit.recognises(document)), None)


def _toolkit_of(document: Document) -> _Toolkit:
    """Return the toolkit that recognises a document as its configuration; raises ConfigError if no toolkit does."""
    check_parsed(document)
    toolkit = _recognising(document)
    if toolkit is not None:
        return toolkit
    if isinstance(document.content, dict) and "model" in document.content:
        found = document.content["model"]
        is_not = "is empty" if found is None else f"is {brief_repr(found, 40)}, not a map of fields"
        raise document.fail(f"the section model: {is_not}.", MODEL_FIELDS)
    raise ConfigError(
        f"{escape(document.path)} has no `model:` section.",
        hint=MODEL_FIELDS,
    )


def module_destination(model: nn.Module) -> TargetSpec:
    """Return a module in memory as a destination; tensors that are in no source keep their values.

    Raises ConfigError if ``model`` is not a module, or its tensors cannot be written in place.
    """
    from .torch_module.live_module import live_target

    return _with_older_names(live_target(model), model)


def _with_older_names(target: TargetSpec, model: object) -> TargetSpec:
    """Return a destination that knows the older keys of its tensors, if ``model`` is a live model of transformers."""
    if not is_live(model) or getattr(model, "hf_quantizer", None) is not None:
        return target
    from .hf.names import KeyConversions

    with suppress(ImportError):  # transformers before 5 has no table of renamed keys
        return replace(
            target, recognise=KeyConversions.of(model, sys.modules["transformers"]).of_targets(target.tensors)
        )
    return target
