"""Destinations that are a ``config.yaml`` of ESPnet; the model is built by the ESPnet task that would train it.

ESPnet's parser reads the file, and the ``build_model`` of the task (espnet2/tasks/abs_task.py) gets the parsed
arguments. As in ``asr_train --config conf/train_asr.yaml``, entries that the file lacks get their defaults, and strings
are converted to the types of their arguments (so ``init: none`` is None). No weights are loaded.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..planning.target import TargetSpec
from ..storage.yaml_text import read_yaml
from ..util.text import brief_repr, escape, listing
from ._document import Document, check_fields, read_document
from ._espnet_names import layers_of, vocabulary_of
from ._espnet_tasks import Task, chosen_classes, is_whole, task_of
from .torch_module.user_code import PROCESS_STATE, lacks_module, user_code

if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["CONFIG", "TOOLKIT"]

_LISTS = ("token_list", "src_token_list", "tgt_token_list", "unit_token_list", "transcript_token_list")
"""Entries that are lists of tokens, or paths of files with such lists."""
_RECIPE = "config"
"""The entry of a run's configuration with the path of the recipe's file; ESPnet's parser would read that file."""
_OF_RUNS = ("required", "version", "distributed")
"""Entries that a training run adds to the arguments of its configuration."""


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
    has_tasks = True

    def code(self, document: Document) -> Sequence[str]:
        """Return the name of ESPnet, whose code builds the model."""
        return ("ESPnet",)

    def recognises(self, document: Document) -> bool:
        """Return whether a document is an ESPnet configuration, judged by the entries that choose network parts."""
        content = document.content
        if not isinstance(content, dict) or "_target_" in content or ("model_type" in content and "svs" not in content):
            return False  # transformers' configurations have a model_type, and so has ESPnet's singing synthesis
        chosen = [part for part in chosen_classes() if part in content or f"{part}_conf" in content]
        told = [part for part in chosen if isinstance(content.get(f"{part}_conf"), dict)]
        plain = all(isinstance(content.get(part), (str, type(None))) for part in chosen)
        return plain and bool(told or (chosen and "token_list" in content))

    def training(self, document: Document) -> Mapping[str, Any]:
        """Return the fields for our section ``train:``; {} if the configuration freezes no parameters.

        ``freeze`` lists the names of the frozen parameters. If ``ckpt train`` can train the task, the section also
        contains that task, and the data files that the user has to provide. Raises ConfigError if ``freeze_param`` is
        not a list of names.
        """
        names = document.content.get("freeze_param") or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise document.fail(f"the field freeze_param is {brief_repr(names, 80)}, not a list of names.")
        if not names:
            return {}
        trained = task_of(document, document.content).name in TRAINED
        return {**(TRAIN if trained else {}), "freeze": names}

    def load(self, document: Document) -> TargetSpec:
        """Build the model without memory for its weights.

        Raises ConfigError if ESPnet is not installed or cannot build it.
        """
        from argparse import Namespace

        from .torch_module.module import module_target

        read = _read(document)
        given = Namespace()
        with user_code(document):
            task = _imported(document, read.task)  # import before tensors are recorded
            values, notes = _parsed(document, task.get_parser(), read.values)

        def build() -> Any:
            with user_code(document):
                given.__dict__.update(copy.deepcopy(values))
                return task.build_model(given)

        spec = module_target(
            build, kind="espnet", name=document.name, config=document.path, files=read.files,
            weights=document.constructor_weights, notes=(*read.notes, *notes),
            ran=(f"{read.task.module}.{read.task.cls}.build_model from ESPnet{_version()}",),
        )  # fmt: skip
        tokens = getattr(given, "token_list", None) or ()
        vocabulary = vocabulary_of(spec.tensors, len(tokens), getattr(given, "decoder", None))
        return replace(spec, vocabulary=vocabulary, layers=layers_of(spec.tensors))


TRAINED = ("asr", "asr_transducer", "slu", "st")
"""Tasks whose models need only speech and text: ``ckpt train`` trains them with ``task: espnet``."""
TRAIN = {
    "task": "espnet",
    "features": {"kind": "waves"},
    "data": {"train": "train.csv", "dev": "dev.csv", "tokens": "tokens.txt"},
}


class _Named:
    """``model: {espnet: config.yaml, task: asr}``: a file in our format that refers to an ESPnet configuration.

    Unlike ESPnet's own file, the file in our format can have a section ``train:``. ``task`` may be left out if the
    entries of ESPnet's file fit only one task.
    """

    field = "espnet"
    has_tasks = True

    def code(self, document: Document) -> Sequence[str]:
        """Return the name of ESPnet, whose code builds the model."""
        return TOOLKIT.code(document)

    def load(self, document: Document) -> TargetSpec:
        """Load the ESPnet configuration to which the document refers, by a path relative to its folder.

        Raises ConfigError if the file is not a configuration of ESPnet, or a field is malformed.
        """
        check_fields(document, "model", document.model, ("espnet", "task"))
        named = document.model["espnet"]
        if not isinstance(named, str):
            raise document.fail(f"the field espnet is {brief_repr(named)}, not a file name.")
        inner = read_document(document.resolve(named))
        if inner.fault is not None:
            raise inner.fault
        if not TOOLKIT.recognises(inner):
            raise inner.fail(
                "the file is not a configuration of ESPnet, which chooses the parts of a network by name, as in "
                "encoder: conformer."
            )
        spec = TOOLKIT.load(replace(inner, task=_task_name(document)))
        return replace(spec, name=document.name, config=document.path, files=(inner.path, *spec.files))


def _task_name(document: Document) -> str | None:
    """Return the task that the user chose, else the task in the document; None if there is neither.

    Raises ConfigError if the field ``task`` is not a string.
    """
    named = document.model.get("task")
    if named is not None and not isinstance(named, str):
        raise document.fail(f"the field task is {brief_repr(named)}, not the name of a task of ESPnet.")
    return document.task or named


def _read(document: Document) -> _Read:
    """Read a configuration as ESPnet does, and find the files to which it refers.

    Raises ConfigError if ESPnet is not installed, no single task fits, or a file is missing.
    """
    # ESPnet's YAML rules: 1e5 in a list of tokens is a string. Our own rules would make it a number.
    values = read_yaml(document.text, document.name, exponents=False)
    if others := [name for name in values if not isinstance(name, str)]:
        raise document.fail(f"the name of an entry is {brief_repr(others[0])}, not a string.", "Write it in quotes.")
    task = task_of(document, values)
    with user_code(document):
        _imported(document, task)  # first, because without ESPnet a corrected file would only lead to the next error
    files: list[str] = []
    notes: list[str] = []
    for holder, name in _file_names(document, values, task):
        found = _found(document, name, holder[name])
        files.append(found)
        if found != os.path.normpath(holder[name]):
            said = f"the file {escape(holder[name])} (field {name} of {escape(document.name)})"
            notes.append(f"{said} was found at {escape(found)}")
        holder[name] = found
    if values.get("use_adapter"):
        notes.append(
            "the model is built without its adapters (use_adapter): ESPnet adds them after it has loaded the weights "
            "of init_param"
        )
    return _Read(task, values, tuple(files), tuple(notes))


def _parsed(
    document: Document, parser: ArgumentParser, values: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the arguments that ESPnet's parser makes of a configuration, and notes on entries that are ignored.

    Raises ConfigError if a recipe's file has an argument that the installed ESPnet lacks, because ESPnet would refuse
    the file. In a file that a run wrote, unknown arguments are ignored, because they may come from another version of
    ESPnet.
    """
    known = vars(parser.parse_args([])).keys()
    others = [name for name in values if name not in known]
    if others and not is_whole(values):
        near = difflib.get_close_matches(others[0], known, n=1)
        raise document.fail(
            f"the installed ESPnet has no argument {listing(others, 6, where='')}.",
            f"Did you mean {near[0]}?" if near else "",
        )
    parser.set_defaults(**{name: value for name, value in values.items() if name in known and name != _RECIPE})
    said = io.StringIO()
    try:
        with PROCESS_STATE, redirect_stderr(said):
            parsed = vars(parser.parse_args([]))
    except SystemExit:
        why = escape(said.getvalue().strip().rpartition("error: ")[2])
        raise document.fail(f"ESPnet refuses the arguments in the file: {why}") from None
    left = [name for name in others if name not in _OF_RUNS and values[name] not in (None, [], {})]
    note = f"the installed ESPnet has no argument {listing(left, 6, where='')}: ignored"
    return {**parsed, **{name: values[name] for name in others}}, (note,) if left else ()


def _file_names(document: Document, values: dict[str, Any], task: Task) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (dict, name of a field in the dict) for each field with the path of a file that the model is built from.

    Raises ConfigError for a token list that is missing or malformed.
    """
    for name in _LISTS:
        tokens = values.get(name)
        if tokens is None and name == _LISTS[0] and name in task.entries and task.name != "enh_s2t":
            raise document.fail(
                "the file has no token_list.",
                "Use the config.yaml that a run wrote into its folder, or add token_list: tokens.txt.",
            )
        if isinstance(tokens, str):
            yield values, name
        elif tokens is not None and not _are_texts(tokens):
            raise document.fail(
                f"the field {name} is neither a list of strings nor a file name.",
                "Put quotation marks around tokens that YAML reads as numbers or truth values.",
            )
    for name in sorted(values):
        conf = values.get(f"{name}_conf")
        if values[name] == "global_mvn" and isinstance(conf, dict) and isinstance(conf.get("stats_file"), str):
            yield conf, "stats_file"


def _are_texts(tokens: object) -> bool:
    return isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)


def _found(document: Document, what: str, path: str) -> str:
    """Return the path of an existing file that the field ``what`` of the configuration names as ``path``.

    ``path`` is looked up relative to the working directory, as in ESPnet, then to the folder of the configuration, then
    to each folder above that folder. Raises ConfigError if there is no such file.
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
        f"the file {escape(path)} (field {what}) does not exist, neither relative to the working directory nor to "
        f"{escape(folder)} or a folder above it.",
        "ESPnet's paths are relative to the recipe's folder: run the command there, or correct the path.",
    )


def _imported(document: Document, task: Task) -> Any:
    """Return the class of a task; raises ConfigError with the name of the missing package if it cannot be imported."""
    try:
        return getattr(importlib.import_module(task.module), task.cls)
    except ModuleNotFoundError as error:
        missing = error.name or task.module
        if missing == "espnet2":
            raise document.fail(
                "the model is built by ESPnet, and the package espnet is not installed.",
                "Run pip install espnet, or describe an ESPnet checkpoint without it: ckpt init CHECKPOINT -o "
                "dst.yaml.",
            ) from None
        if missing.startswith("espnet2."):
            raise document.fail(f"the installed ESPnet has no module {missing}.", "pip install -U espnet.") from None
        raise lacks_module(document, "ESPnet", missing) from error
    except Exception as error:
        raise document.fail(f"importing {task.module} failed: {type(error).__name__}: {escape(str(error))}") from error


def _version() -> str:
    version = getattr(importlib.import_module("espnet2"), "__version__", None)
    return f" {version}" if version else ""


CONFIG = _Named()
TOOLKIT = _Toolkit()
