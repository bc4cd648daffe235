"""Compares the keys and shapes of a model with those of the transformers class in its config.json."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..checkpoint.checkpoint import Checkpoint
from ..destinations._document import read_document
from ..destinations.hf.config import VALIDATOR
from ..destinations.hf.files import ADAPTER, CONFIG
from ..destinations.hf.ignored_keys import ignored_keys
from ..destinations.hf.module_counts import too_many_modules
from ..destinations.transformers import TOOLKIT as TRANSFORMERS
from ..errors import CheckpointError, PlanError
from ..planning.plan.plan import Plan
from ..planning.target import TargetSpec
from ..planning.transplant.plan_errors import NOTHING_LOADED
from ..storage.read.uri import scheme_of
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing, shape_text
from .layouts.mlx_form import is_of_mlx, is_transposed_by_mlx, without_other_forms
from .layouts.named_layout import KEEP
from .model_folder.folder import ModelFolder, model_folder
from .model_folder.weights.class_types import loaded_class
from .quantised_class import ClassFinding, Kind, has_names_of, quantised_findings
from .transplant.transplant import transplant

__all__ = ["class_findings", "class_notes", "class_without_codes", "comparison_notes", "not_compared", "ties_of_class"]

QUANTISATION = "quantization_config"
REFUSES = "refuses the fields of"
"""Words in the error message of ``hf.config.describe`` if the configuration class rejects a config.json."""
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
PACKAGES = ("torch", "transformers")


def class_notes(checkpoint: Checkpoint) -> list[Note]:
    """Return notes on the keys and shapes of a model that differ from those of the class in its config.json.

    The class is built on the meta device, as ``transplant`` builds a destination. If the model cannot be compared,
    there are no notes; ``not_compared`` returns the reason.
    """
    return [one.note for one in class_findings(checkpoint)]


def class_findings(checkpoint: Checkpoint) -> list[ClassFinding]:
    """Return the notes of ``class_notes`` as findings, each with its kind (such as "missing" or "shape")."""
    folder = model_folder(checkpoint)
    if not_compared(checkpoint, folder):
        return []
    try:
        if _is_quantised(checkpoint, folder):
            settings = folder.config.get(QUANTISATION)
            return quantised_findings(checkpoint, _plain_class(folder), _architecture(folder), settings)
        plan = _loaded(checkpoint, _configuration(folder))
    except CheckpointError as error:
        if isinstance(error, PlanError) and error.rule == NOTHING_LOADED:
            return [_nothing_of_class(checkpoint, folder, error.hint)]
        said = error.said.removeprefix("config.json: ").removeprefix("config.json cannot be built: ").removesuffix(".")
        is_of_installed = folder.config.get("transformers_version") == importlib.metadata.version("transformers")
        may_be_accepted = (error.rule == VALIDATOR and not is_of_installed) or _is_of_newer_version(folder)
        kind: Kind = "refused" if REFUSES in said and not may_be_accepted else "unbuilt"
        versions = f" ({_versions(folder)})" if REFUSES in said or "has no model_type" in said else ""
        return [ClassFinding(kind, f"the model that config.json describes cannot be built: {said}{versions}")]
    return list(_differences(plan, checkpoint, _architecture(folder)))


def _loaded(checkpoint: Checkpoint, path: str) -> Plan:
    """Return the plan that loads a checkpoint into the class of the configuration at ``path``.

    A checkpoint in another known layout is converted first. If the conversion fails, for example because a tensor is
    missing, the checkpoint is loaded as it is: missing tensors are then reported under the names that they have in
    the class.
    """
    try:
        return transplant(checkpoint, path, on_mismatch="init")
    except PlanError as error:
        try:
            return transplant(checkpoint, path, on_mismatch="init", layout=KEEP)
        except PlanError:
            raise error from None


def _versions(folder: ModelFolder) -> str:
    """Return a phrase with two versions of transformers: the installed version, and the one that wrote config.json."""
    installed, wrote = importlib.metadata.version("transformers"), folder.config.get("transformers_version")
    by = f"transformers {escape(wrote, 20)} wrote" if isinstance(wrote, str) else "no version of transformers is in"
    return f"transformers {installed} is installed, {by} config.json"


def _is_of_newer_version(folder: ModelFolder) -> bool:
    """Return whether a newer transformers than the installed version wrote config.json.

    The class in the newer version may accept fields that the installed class refuses.
    """
    versions = (str(folder.config.get("transformers_version")), importlib.metadata.version("transformers"))
    found = [_VERSION.match(one) for one in versions]
    wrote, installed = ([int(number) for number in one.groups()] if one is not None else [] for one in found)
    return wrote > installed


def ties_of_class(checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """Return the groups of keys that a model's class ties, and that are stored separately in the checkpoint."""
    folder = model_folder(checkpoint)
    try:
        known = class_without_codes(checkpoint, folder)
    except CheckpointError:
        return []
    groups: dict[str, list[str]] = {}
    for key, first in known[0].ties.items() if known is not None else ():
        groups.setdefault(first, [first]).append(key)
    stored = ([key for key in group if key in checkpoint] for group in groups.values())
    return [tuple(group) for group in stored if len({checkpoint.ties.get(key, key) for key in group}) > 1]


def _is_quantised(checkpoint: Checkpoint, folder: ModelFolder) -> bool:
    return bool(checkpoint.codes.tensors) or QUANTISATION in folder.config


def class_without_codes(checkpoint: Checkpoint, folder: ModelFolder) -> tuple[TargetSpec, str] | None:
    """Return the tensors of a model's class without quantisation, and the name of the class.

    Returns None if the model cannot be compared with its class (see ``not_compared``). Raises CheckpointError if the
    class cannot be built.
    """
    if not_compared(checkpoint, folder):
        return None
    return _plain_class(folder), _architecture(folder)


@notes_of(NoteKind.OTHER)
def comparison_notes(checkpoint: Checkpoint) -> list[str]:
    """Return notes on how a model differs from its class, or one note on why the two cannot be compared."""
    folder = model_folder(checkpoint)
    why = not_compared(checkpoint, folder)
    if why:
        return [f"keys and shapes are not compared with a transformers class: {why}"]
    found, name = class_notes(checkpoint), escape(_architecture(folder))
    if found:
        return list(found)
    if _is_quantised(checkpoint, folder) and not has_names_of(checkpoint, _plain_class(folder)):
        return [f"modules are not compared with those of {name}: the weights have fewer than half of its modules"]
    return [f"{'modules' if checkpoint.codes.tensors else 'keys and shapes'} are those of {name} in transformers"]


def not_compared(checkpoint: Checkpoint, folder: ModelFolder) -> str:
    """Return the reason why a model cannot be compared with its transformers class; '' if it can."""
    names, config = {one.name for one in folder.files}, folder.config
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if ADAPTER in names:
        return "this is an adapter, not a whole model"
    if CONFIG not in names:
        return "there is no config.json in the folder of the weights"
    if checkpoint.elsewhere:
        return "this is one of several shards"
    if scheme_of(folder.path):
        return "the folder is not local"
    if "auto_map" in config:
        return "config.json refers to custom code (auto_map), which is not run"
    if not isinstance(config.get("model_type"), str) or not _architecture(folder):
        return "config.json does not contain exactly one class (model_type, architectures)"
    many = too_many_modules(config)
    if many:
        return f"config.json describes too many modules to build: {many}"
    return f"{lacking[0]} is not installed" if lacking else ""


def _architecture(folder: ModelFolder) -> str:
    """Return the name of the class that config.json describes; '' if it lists several classes or none."""
    return loaded_class(folder.config)


def _differences(plan: Plan, checkpoint: Checkpoint, name: str) -> Iterator[ClassFinding]:
    missing = [step.key for step in plan.steps if step.reason == "missing" and not step.tied_to]
    unused = sorted(key for _, key in plan.unexpected)
    ignored = ignored_keys(name) if missing or unused else ()  # this imports the class
    name = escape(name)
    missing = [key for key in missing if not any(re.search(pattern, key) for pattern in ignored)]
    unused = [key for key in unused if not any(re.search(pattern, key) for pattern in ignored)]
    others = {step.key: step.shape for step in plan.steps if step.reason == "mismatch" and not step.tied_to}
    if is_of_mlx(checkpoint.metadata):
        lost = {step.key: math.prod(step.shape) for step in plan.steps if step.key in missing}
        missing, unused = without_other_forms(lost, {key: _size(checkpoint, key) for key in unused})
        others = {
            key: shape
            for key, shape in others.items()
            if key not in checkpoint or not is_transposed_by_mlx(checkpoint[key].shape, shape)
        }
    if missing:
        is_optional = all("pooler" in key.split(".") for key in missing)  # many models are saved without their pooler
        has = f"{name} has {count(len(missing), 'tensor')} that the weights lack"
        said = f"{has}: {listing(missing, 3, where='')}: transformers initialises what is missing"
        yield ClassFinding("optional" if is_optional else "missing", said)
    if others:
        yield _of_other_shapes(checkpoint, others, name)
    if unused:
        said = f"{name} does not use {count(len(unused), 'tensor')} of the weights: {listing(unused, 3, where='')}"
        yield ClassFinding("unused", said)


def _size(checkpoint: Checkpoint, key: str) -> int:
    """Return the number of parameters of the tensor ``key``; 0 if the checkpoint has no tensor of this name."""
    return checkpoint[key].numel if key in checkpoint else 0


def _of_other_shapes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], name: str) -> ClassFinding:
    """Return the finding that tensors have other shapes in the checkpoint than in the transformers class ``name``.

    ``shapes`` maps the keys of these tensors to their shapes in the class.
    """
    key, shape = next(iter(shapes.items()))
    own = f"is {shape_text(checkpoint[key].shape)}" if key in checkpoint else "has another shape"
    others = listing([*shapes][1:], 3, where="")
    rest = f"; {count(len(shapes) - 1, 'other tensor differs', 'other tensors differ')} too: {others}" if others else ""
    has = f"but {name}, built from config.json, has {shape_text(shape)}{rest}"
    return ClassFinding("shape", f"{escape(key)} {own}, {has}")


def _nothing_of_class(checkpoint: Checkpoint, folder: ModelFolder, hint: str) -> ClassFinding:
    """Return the finding that no tensor of a model can be loaded into its class, because all keys or shapes differ.

    ``hint`` is the hint in the error of a planned transplant into the class; it says how the keys differ.
    """
    name = escape(_architecture(folder))
    shapes = {key: one.shape for key, one in _plain_class(folder).tensors.items() if key in checkpoint}
    if shapes:
        return _of_other_shapes(checkpoint, shapes, name)
    none = f"the weights have none of the keys of {name}: transformers initialises all tensors"
    return ClassFinding("missing", f"{none}. {hint.partition(' Rename')[0]}".rstrip(". "))


def _configuration(folder: ModelFolder) -> str:
    """Return the path of the config.json in a local model's folder; ``folder.path`` may be a file in this folder."""
    path = folder.path if os.path.isdir(folder.path) else os.path.dirname(folder.path)
    return os.path.join(path, CONFIG)


def _plain_class(folder: ModelFolder) -> TargetSpec:
    """Return the tensors of the class in a folder's config.json, built without its quantisation settings."""
    document = read_document(_configuration(folder))
    content = {name: value for name, value in document.content.items() if name != QUANTISATION}
    return TRANSFORMERS.load(replace(document, content=content))
