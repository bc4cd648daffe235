"""Opens a Checkpoint from a path, or from tensors in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from ..errors import CheckpointError, ConfigError, SourceError
from ..formats._archive import open_member
from ..formats._open import read_header
from ..formats.base.format_table import has_weights
from ..formats.base.header import Header
from ..formats.unsupported.files import PIECE_OF_DCP, piece_of_dcp
from ..formats.unsupported.folders import PIPELINE
from ..formats.unsupported.text import not_a_checkpoint
from ..storage.read.base import File, Folder, Source
from ..storage.read.uri import open_source, page_notes, scheme_of
from ..tensors.info import TensorInfo
from ..util.text import brief_repr, escape, listing
from .checkpoint import Checkpoint
from .find_state_dict import find_root, optimizers_in
from .optimizer_states import has_moments, is_optimizer

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "CheckpointLike",
    "check_given",
    "checkpoint_of",
    "folder_of_model",
    "is_given",
    "is_live",
    "open_checkpoint",
    "open_optimizer",
    "path_of",
    "place_of",
]

# The types that functions accept as a checkpoint, and the name of such a checkpoint in messages.

CheckpointLike: TypeAlias = "str | os.PathLike[str] | Checkpoint | Mapping[str, object] | nn.Module"
"""A path or URI, an open checkpoint (which stays open), a dict of tensors as from ``torch.load``, or a module."""


def is_given(value: object) -> bool:
    """Return whether a value has a type that can be opened as a checkpoint: path, Checkpoint, dict or module."""
    if isinstance(value, (str, os.PathLike, Mapping)):
        return True
    torch = sys.modules.get("torch")  # not imported: without it, there is no module
    return torch is not None and isinstance(value, torch.nn.Module)


def is_live(value: object) -> bool:
    """Return whether a value is a module of transformers in memory."""
    kind = getattr(sys.modules.get("transformers"), "PreTrainedModel", None)  # not imported, as torch above
    return kind is not None and isinstance(value, kind)


def check_given(value: object) -> None:
    """Raise ConfigError if a value cannot be opened as a checkpoint."""
    if not is_given(value):
        raise ConfigError(f"{brief_repr(value)} is not a path, a checkpoint or a dict of tensors.")
    if isinstance(value, Checkpoint) or not isinstance(value, Mapping):
        return
    if isinstance(next(iter(value.values()), None), TensorInfo):  # headers have no open file
        raise ConfigError(
            "a dict of TensorInfo cannot be used as a checkpoint: it contains only headers, no values.",
            hint="Pass the Checkpoint that the headers come from.",
        )


def path_of(given: object) -> str:
    """Return the name of a checkpoint for messages: its path, ``<dict>``, or ``<Net>`` for a module of class Net."""
    if isinstance(given, Checkpoint):
        return given.path
    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given)
    return "<dict>" if isinstance(given, Mapping) else f"<{type(given).__name__}>"


def place_of(given: object) -> str:
    """Return the path of a checkpoint; '' if it is in memory."""
    if isinstance(given, Checkpoint):
        return "" if given.in_memory else given.path
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else ""


# Opening.

OF_RUN = "best.safetensors"
"""The file with the best weights of a run of ``ckpt train``; the run's folder is also a transformers model folder."""


def open_checkpoint(
    path: CheckpointLike, root: str | None = None, *, unwrap: bool = True, called: str = ""
) -> Checkpoint:
    """Open a checkpoint of any format by reading its header: no tensor is read, and no code in the file is run.

    ``path`` is one of these: a path or URI; a dict of torch or numpy tensors (which may be nested), or a module, whose
    tensors are not copied; an open Checkpoint, which stays open when the returned one is closed. ``root`` is the dotted
    path of the state dict inside the file, or a component of a diffusers pipeline; by default, the state dict is
    searched for. ``unwrap`` removes wrappers such as ``module.`` from the keys. ``called`` is how error messages call
    tensors in memory, such as "model 2".

    Raises SourceError if the file is missing or the checkpoint is closed; FormatError or UnsafeError if the file is not
    a valid checkpoint; ConfigError if an argument has another type, if ``root`` has no tensors, or if it is unclear
    which of several state dicts to use.
    """
    if not isinstance(root, (str, type(None))):
        raise ConfigError(f"open_checkpoint: the argument root is {brief_repr(root)}, not a string.")
    if isinstance(path, Checkpoint):
        return path.lent(root, unwrap=unwrap)
    if not isinstance(path, (str, os.PathLike)):
        return _in_memory(path, root, unwrap=unwrap, called=called)
    uri = os.fspath(path)
    source = _source(uri)
    notes = page_notes(uri)
    if scheme_of(uri) == "hf":
        from ..storage.read.hub import notes_on_cache

        notes += notes_on_cache(source.uri)
    return checkpoint_of(source, source.uri if "://" in uri else uri, root, unwrap=unwrap, notes=notes)


def _source(uri: str) -> Source:
    """Return the file or folder at a path or URI, or the archive member at a path such as ``models.zip/a.pth``."""
    try:
        return open_source(uri)
    except SourceError:
        member = open_member(uri)
        if member is None:
            raise
        return member


def checkpoint_of(
    source: Source, uri: str, root: str | None = None, *, unwrap: bool = True, notes: tuple[str, ...] = ()
) -> Checkpoint:
    """Return the Checkpoint in an open file or folder; ``uri`` is the path for messages.

    ``root``, ``unwrap`` and the errors are the same as for ``open_checkpoint``. ``notes`` are put in front of the notes
    of the header.
    """
    if isinstance(source, File) and source.name.endswith(PIECE_OF_DCP):
        piece = piece_of_dcp(source.name, os.path.dirname(uri) or ".")
        if piece is not None:
            raise not_a_checkpoint(uri, piece)
    component = _component(source, root)
    source = component or source
    header = read_header(source)
    header = replace(header, notes=(*notes, *header.notes)) if notes else header
    header = replace(header, tree={root: header.tree}) if component else header
    folder, around = folder_of_model(source), _folder_around(source)
    return _of_header(uri, header, root, unwrap=unwrap, folder=folder, around=around)


def _component(source: Source, root: str | None) -> Folder | None:
    """Return the folder of the component ``root`` if ``source`` is a diffusers pipeline; else None."""
    if root in (None, ".") or not isinstance(source, Folder) or PIPELINE not in source.names():
        return None
    from ..formats.exported.diffusers_pipeline import component_folder

    return component_folder(source, str(root))


def folder_of_model(source: Source) -> Folder | None:
    """Return ``source`` if it is a folder.

    If ``source`` is a file with a usual name of model weights, such as model.safetensors, return its folder; else None.
    """
    if isinstance(source, Folder):
        return source
    return source.folder() if has_weights([source.name]) or source.name == OF_RUN else None


def _folder_around(source: Source) -> Folder | None:
    """Return ``source`` if it is a folder, or the folder of the file ``source``; None if the folder cannot be read."""
    if isinstance(source, Folder):
        return source
    with suppress(CheckpointError):
        return source.folder()
    return None


def open_optimizer(path: str) -> Checkpoint:
    """Open the state of an optimizer in a file: a file of its own, or an entry of a training's checkpoint.

    The keys are ``state.PARAMETER.NAME``. Raises ConfigError if the file has no state of an optimizer, several states,
    or a state without moments, and the errors of ``open_checkpoint``.
    """
    header = read_header(_source(path))
    found = optimizers_in(header.tree)
    paths = list(found)
    if len(paths) != 1:
        what = f"the states of several optimizers: {listing(paths, where='')}" if paths else "no state of an optimizer"
        raise ConfigError(
            f"{escape(path)} has {what}.",
            hint="Save optimizer.state_dict() in a file of its own, as torch.save does, and name that file.",
        )
    if not has_moments(found[paths[0]]):
        raise ConfigError(
            f"{escape(path)} has no moments: SGD without momentum stores none, nor does an optimizer before its first "
            "step.",
            hint="Make a new optimizer for the new network.",
        )
    return _of_header(path, header, paths[0], unwrap=False)


def _in_memory(given: object, root: str | None, *, unwrap: bool, called: str) -> Checkpoint:
    from .in_memory import header_in_memory

    check_given(given)
    name = path_of(given)
    said = f"{called}, a {name.strip('<>')}," if called else name
    return _of_header(name, header_in_memory(given, said), root, unwrap=unwrap, called=said)


def _has_language_model(tree: object) -> bool:
    """Return whether a file has the entry in which Megatron-LM nests the parts of a model."""
    model = tree.get("model") if isinstance(tree, dict) else None
    return isinstance(model, dict) and isinstance(model.get("language_model"), dict)


def _of_header(
    uri: str,
    header: Header,
    root: str | None,
    *,
    unwrap: bool,
    folder: Folder | None = None,
    around: Folder | None = None,
    called: str = "",
) -> Checkpoint:
    if root is None and header.recipe is not None and is_optimizer(header.tree):
        root = "."  # ckpt resize wrote it, so it is no mistake
    if root in (None, "model") and _has_language_model(header.tree):
        from ..formats.megatron import with_flat_model

        header = with_flat_model(header)
    if isinstance(header.tree, dict) and ("args" in header.tree or "param_shapes" in header.tree):
        from ..formats.ranks.single_ranks import single_rank_notes

        header = replace(header, notes=(*header.notes, *single_rank_notes(header.tree)))
    found, passed = find_root(header.tree, root, called or uri)
    return Checkpoint(uri, header, found, passed, unwrapped=unwrap, folder=folder, around=around)
