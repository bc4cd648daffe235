"""Describes a folder without a checkpoint for an error message, and finds subfolders that have checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

from ...errors import CheckpointError
from ...storage.read.base import Folder
from ...util.text import escape, listing, natural_key
from ..base.format_table import RELEASE, TRACKER, has_weights, is_weights, tracked_folder
from ..base.limits import BESIDE_BYTES
from ..base.untrusted import parse_json
from .text import UnreadableFile, argument

__all__ = ["PIPELINE", "folder_kind", "lost_step", "object_in", "pipeline_index"]

PIPELINE = "model_index.json"
"""The index of a diffusers pipeline: a list of its components; each has a folder with the same name."""
_FIRST = ("unet", "transformer", "prior")
"""The components of a pipeline with the main model, which most users want to read."""
_LOOKED_INTO = 16
"""The most subfolders that are searched, since each may cost a request over the network."""
_OTHERS = (
    ".nemo", ".pte", ".tflite", ".mlmodel", ".engine",
    ".plan", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".pkl",
)  # fmt: skip
"""Suffixes of files that are not looked for in a folder: opening one reads it, or says which format it has."""
_ITERATION = re.compile(r"iter_\d{7,}")
_LATEST = "latest"
_TAG = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,100}(?:/(?!\.)[^/\\\x00-\x1f]{1,100}){0,4}")
_POINTERS = {
    _LATEST: ("a folder", re.compile(r"global_step\d+")),
    "latest_universal": ("a folder", re.compile(r"global_step\d+(_universal)?")),
    TRACKER: ("a run of Megatron", re.compile(rf"{_ITERATION.pattern}|{RELEASE}")),
}
"""{file that names the subfolder of the last step: (kind of the folder, pattern of such subfolders)}.

DeepSpeed writes the first two files, Megatron the third one.
"""
_POINTER_BYTES = 256


def folder_kind(folder: Folder, names: Sequence[str]) -> UnreadableFile | None:
    """Return a description of a folder without a checkpoint, and advice; None if the folder is unknown."""
    inside = folder.folders()
    if PIPELINE in names:
        return _pipeline(folder, inside)
    if "saved_model.pb" in names:
        advice = f"Pass its variables: ckpt inspect {_argument(folder, 'variables/variables')}"
        return UnreadableFile("a SavedModel of TensorFlow", advice if "variables" in inside else "")
    if "Manifest.json" in names and "Data" in inside:
        return UnreadableFile("a Core ML model", "Use the checkpoint that it was converted from.")
    lost = lost_step(folder, names, inside)
    if lost is not None:
        return lost
    weights = list(_with_weights(folder, inside))
    if weights:
        kind = "a run of Lightning" if "checkpoints" in weights and "hparams.yaml" in names else "a folder"
        said = _text(folder, _LATEST) if _LATEST in names else None
        is_lost = said and _TAG.fullmatch(said) and said.partition("/")[0] not in (*inside, *names)
        missing = (
            f"; its file {_LATEST} says {escape(said or '', 60)}, but there is no such subfolder" if is_lost else ""
        )
        return UnreadableFile(
            f"{kind} with checkpoints in its subfolders: {listing(weights, where='')}{missing}",
            _command(folder, weights[0]),
        )
    steps = _steps(inside, _ITERATION)
    if steps and TRACKER not in names:
        what = f"a run of Megatron without {TRACKER}; the folder has {listing(steps, 3, where='')}"
        return UnreadableFile(what, _command(folder, steps[-1]))
    others = [name for name in names if name.lower().endswith(_OTHERS)]
    if others:
        what = f"a folder with {listing(others, 2, where='')}"
        return UnreadableFile(what, f"To see what this file is: ckpt inspect {_argument(folder, others[0])}")
    return _tagged(folder) if _LATEST in names else None


def lost_step(folder: Folder, names: Sequence[str], inside: Sequence[str]) -> UnreadableFile | None:
    """Return a description of a folder in which a file of ``_POINTERS`` names a subfolder that is missing; else None.

    ``inside`` has the names of the subfolders. Since other tools write a file ``latest`` too, DeepSpeed's files
    count only if they name a step, or are empty and there are steps.
    """
    for name, (kind, pattern) in _POINTERS.items():
        said = _text(folder, name) if name in names else None
        if said is None:
            continue
        step = tracked_folder(said) if name == TRACKER else ""
        steps = _steps(inside, pattern)
        if (step or said) in inside or (name != TRACKER and not (pattern.fullmatch(said) if said else steps)):
            continue
        lost = f"subfolder {step}" if step else "subfolder of this name"
        lacks = f"says {escape(said, 60)}, but there is no {lost}" if said else "is empty"
        there = f"; the folder has {listing(steps, 3, where='')}" if steps else ""
        return UnreadableFile(f"{kind} whose {name} {lacks}{there}", _command(folder, steps[-1]) if steps else "")
    return None


def _tagged(folder: Folder) -> UnreadableFile | None:
    """Return a description of a folder whose file ``latest`` names a folder with weights further inside; else None.

    DeepSpeed takes any text for a tag, also a path such as ``run/3``. Other tools write other texts into ``latest``.
    """
    said = _text(folder, _LATEST) or ""
    with suppress(CheckpointError):
        names = folder.inside(said).names() if _TAG.fullmatch(said) else []
        if has_weights(names) or any(map(is_weights, names)):
            advice = f"Pass that folder: ckpt inspect {_argument(folder, said)}"
            return UnreadableFile(f"a folder whose {_LATEST} says {escape(said, 60)}", advice)
    return None


def _steps(inside: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    return sorted(filter(pattern.fullmatch, inside), key=lambda name: (name != RELEASE, natural_key(name)))


def _text(folder: Folder, name: str) -> str | None:
    """Return the text of a short file without spaces around it; None if the file cannot be read."""
    with suppress(CheckpointError), closing(folder.file(name)) as file:
        return file.read(0, min(file.size, _POINTER_BYTES)).decode("utf-8", "replace").strip()
    return None


def _pipeline(folder: Folder, inside: Sequence[str]) -> UnreadableFile:
    """Return a description of a diffusers pipeline, and advice on which component to read.

    ``inside`` has the names of the subfolders.
    """
    index = pipeline_index(folder)
    named = [name for name in index if name in inside]
    weights = list(_with_weights(folder, named or inside))
    kind = index.get("_class_name")
    what = f"a diffusers pipeline{f' ({escape(kind, 60)})' if isinstance(kind, str) and kind else ''}"
    if not weights:
        return UnreadableFile(f"{what} without weights", "Fetch the folders of its components too.")
    first = next((name for name in _FIRST if name in weights), weights[0])
    return UnreadableFile(f"{what}; its weights are in {listing(weights, 12, where='')}", _command(folder, first))


def pipeline_index(folder: Folder) -> dict[str, Any]:
    """Return the entries of the index of a pipeline; empty if it cannot be read or is not a JSON object."""
    return object_in(folder, PIPELINE)


def object_in(folder: Folder, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of a folder; empty if the file cannot be read or has no JSON object."""
    with suppress(CheckpointError, ValueError):
        file = folder.file(name)
        try:
            found = parse_json(file.read(0, file.size)) if file.size <= BESIDE_BYTES else None
            return found if isinstance(found, dict) else {}
        finally:
            file.close()
    return {}


def _with_weights(folder: Folder, inside: Sequence[str]) -> Iterator[str]:
    """Yield the names of subfolders that have weights; ``inside`` are the names of all subfolders.

    Only the first ``_LOOKED_INTO`` subfolders are searched.
    """
    for name in inside[:_LOOKED_INTO]:
        with suppress(CheckpointError):
            names = folder.inside(name).names()
            if has_weights(names) or any(map(is_weights, names)):
                yield name


def _command(folder: Folder, inner: str) -> str:
    return f"Pass one of them: ckpt inspect {_argument(folder, inner)}"


def _argument(folder: Folder, inner: str) -> str:
    return argument(f"{folder.uri.rstrip('/')}/{inner}")
