"""Destinations that ESPnet trains: its ``config.yaml``, built by the ESPnet task that would train it.

It is built as by ``build_model_from_file`` (espnet2/tasks/abs_task.py), without weights: ``build_model`` gets the
entries of the file, and the parser's defaults for the entries that the file lacks, as ``conf/train_*.yaml`` of a
recipe does.
"""

from __future__ import annotations

import copy
import importlib
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..planning.target import TargetSpec
from ..storage.yaml_text import read_yaml
from ..util.text import brief_repr, escape
from ._document import Document, check_fields, read_document
from ._espnet_names import Task, layers_of, task_of, vocabulary_of
from .torch_module.user_code import user_code

__all__ = ["CONFIG", "TOOLKIT"]

_PARTS = ("frontend", "specaug", "normalize", "preencoder", "encoder", "postencoder", "decoder", "model", "lm", "tts")
"""The parts of a model that an ESPnet configuration chooses by name, each with its ``…_conf``."""


@dataclass(frozen=True)
class _Read:
    """A configuration as ESPnet reads it, with resolved paths and notes for the user."""

    task: Task
    values: dict[str, Any]
    files: tuple[str, ...]
    notes: tuple[str, ...]


class _Toolkit:
    """The toolkit ESPnet, whose destinations are ``config.yaml`` files."""

    field = "espnet"

    def code(self, document: Document) -> Sequence[str]:
        """Return the name of ESPnet, whose code builds the model."""
        return ("ESPnet",)

    def recognises(self, document: Document) -> bool:
        """Return whether a document chooses the parts of a network as ESPnet's configurations do."""
        content = document.content
        if not isinstance(content, dict) or "_target_" in content or "model_type" in content:
            return False
        chosen = [part for part in _PARTS if part in content or f"{part}_conf" in content]
        told = [part for part in chosen if isinstance(content.get(f"{part}_conf"), dict)]
        plain = all(isinstance(content.get(part), (str, type(None))) for part in chosen)
        return plain and bool(told or (chosen and "token_list" in content))

    def training(self, document: Document) -> Mapping[str, Any]:
        """Return the fields for our ``train:`` section: ``freeze``, the names to freeze."""
        names = document.content.get("freeze_param") or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise document.fail(f"freeze_param is {brief_repr(names, 80)}, not a list of names.")
        return {"freeze": names} if names else {}

    def load(self, document: Document) -> TargetSpec:
        """Build the model without storage; raises ConfigError if ESPnet is not installed or cannot build it."""
        from .torch_module.module import module_target

        read = _read(document)
        given = Namespace()
        with user_code(document):
            task = _imported(document, read.task)  # import before tensors are recorded
            values = {**vars(task.get_parser().parse_args([])), **read.values}

        def build() -> Any:
            with user_code(document):
                given.__dict__.update(copy.deepcopy(values))
                return task.build_model(given)

        spec = module_target(
            build, kind="espnet", name=document.name, config=document.path, files=read.files, notes=read.notes,
            ran=(f"{read.task.module}.{read.task.name}.build_model from ESPnet{_version()}",),
        )  # fmt: skip
        vocabulary = vocabulary_of(spec.tensors, len(given.token_list), getattr(given, "decoder", None))
        return replace(spec, vocabulary=vocabulary, layers=layers_of(spec.tensors))


class _Named:
    """``model: {espnet: config.yaml}``: a file in our format that names ESPnet's, and can have ``train:`` as well."""

    field = "espnet"

    def code(self, document: Document) -> Sequence[str]:
        """Return the name of ESPnet, whose code builds the model, as above."""
        return TOOLKIT.code(document)

    def load(self, document: Document) -> TargetSpec:
        """Load the configuration that the document names relative to its own folder."""
        check_fields(document, "model", document.model, ("espnet",))
        named = document.model["espnet"]
        if not isinstance(named, str):
            raise document.fail(f"espnet is {brief_repr(named)}, not a file name.")
        inner = read_document(document.resolve(named))
        if inner.fault is not None:
            raise inner.fault
        if not TOOLKIT.recognises(inner):
            raise inner.fail("it is not a configuration of ESPnet: it has neither token_list nor encoder.")
        spec = TOOLKIT.load(inner)
        return replace(spec, name=document.name, config=document.path, files=(inner.path, *spec.files))


def _read(document: Document) -> _Read:
    """Read a configuration as ESPnet does; raises ConfigError for a task that is not built here, or a missing file."""
    # With ESPnet's YAML rules: 1e5 in a list of tokens is a token, but our own reader makes it a number.
    values = read_yaml(document.text, document.name, exponents=False)
    task = task_of(document, values)
    with user_code(document):
        _imported(document, task)  # first, because without ESPnet a corrected file would only lead to the next error
    files: list[str] = []
    notes: list[str] = []
    for holder, name in _file_names(document, values):
        found = _found(document, name, holder[name])
        files.append(found)
        if found != os.path.normpath(holder[name]):
            notes.append(f"{name} {escape(holder[name])} of {escape(document.name)} was found at {escape(found)}")
        holder[name] = found
    if values.get("use_adapter"):
        notes.append("its adapters are left out: ESPnet adds them after it has loaded what init_param names")
    return _Read(task, values, tuple(files), tuple(notes))


def _file_names(document: Document, values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each field that names a file which the build reads, as the map that holds it and its name there."""
    tokens = values.get("token_list")
    if tokens is None:
        raise document.fail(
            "it has no token_list.",
            "Use the config.yaml that a run wrote into its folder, or add token_list: tokens.txt.",
        )
    if isinstance(tokens, str):
        yield values, "token_list"
    elif not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise document.fail("token_list is neither a list of texts nor a file.", "Quote tokens that look like numbers.")
    conf = values.get("normalize_conf")
    if values.get("normalize") == "global_mvn" and isinstance(conf, dict) and isinstance(conf.get("stats_file"), str):
        yield conf, "stats_file"


def _found(document: Document, what: str, path: str) -> str:
    """Return the path of a file: relative to the working directory, as in ESPnet, or to a folder above the document.

    Raises ConfigError if it is in neither.
    """
    folder = os.path.dirname(os.path.abspath(document.path))
    folders = [os.getcwd(), folder]
    while (above := os.path.dirname(folders[-1])) != folders[-1]:
        folders.append(above)
    for place in folders:
        full = os.path.join(place, path)
        if os.path.isfile(full):
            return path if os.path.isabs(path) else os.path.relpath(full)
    raise document.fail(
        f"{what} {escape(path)} does not exist, neither relative to the working directory nor to {escape(folder)} "
        "or a folder above it.",
        "ESPnet's paths are relative to the recipe's folder: run there, or correct the path.",
    )


def _imported(document: Document, task: Task) -> Any:
    """Return the class of a task; raises ConfigError if it cannot be imported, with the package that is missing."""
    try:
        return getattr(importlib.import_module(task.module), task.name)
    except ModuleNotFoundError as error:
        if error.name == "espnet2":
            raise document.fail(
                "it is built by ESPnet, and the package espnet is not installed.",
                "pip install espnet. Without it: ckpt init CHECKPOINT -o dst.yaml, with an ESPnet checkpoint.",
            ) from None
        if (error.name or "").startswith("espnet2."):
            raise document.fail(f"the installed ESPnet has no {error.name}.", "pip install -U espnet.") from None
        raise document.fail(f"ESPnet needs the package {error.name}.", f"pip install {error.name}.") from error
    except Exception as error:
        raise document.fail(f"importing {task.module} failed: {type(error).__name__}: {escape(str(error))}") from error


def _version() -> str:
    version = getattr(importlib.import_module("espnet2"), "__version__", None)
    return f" {version}" if version else ""


CONFIG = _Named()
TOOLKIT = _Toolkit()
