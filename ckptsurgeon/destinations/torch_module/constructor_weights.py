"""Finds the files from which a model's constructor loads weights; can also build the model without these weights.

A tensor is taken to come from a file if the file has a tensor of equal values, perhaps of another floating-point dtype.
If all values of a tensor are equal, as in a bias of zeros, its key must also agree with the key in the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import CheckpointError, ConfigError, FormatError
from ...planning.target import InitialFile, Undrawable
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape
from .changed_files import changed_values, digest_of
from .opened import Opened

__all__ = ["RULE", "confirmed", "holds_tensors", "left_out", "loaded_files", "weights_left_out"]

RULE = "loaded by its constructor"


def holds_tensors(path: str) -> bool:
    """Return whether a file is a checkpoint of some format, or at least has a tensor."""
    return _roots(path) is not None


def loaded_files(
    paths: Iterable[str], tensors: Mapping[str, TensorInfo], values: Callable[[str], Tensor | None]
) -> tuple[list[InitialFile], list[str]]:
    """Return the files that have the values of tensors of a model, and the paths of all other files with tensors.

    ``tensors`` are the tensors of the model. ``values`` is a function that returns the initial values of a key, or None
    if they are drawn at random. If a folder is a checkpoint and all of its files are in ``paths``, the folder is
    returned instead of the files. A file with several state dicts is returned once for each state dict with values of
    the model.
    """
    found: list[InitialFile] = []
    others: list[str] = []
    left = dict(tensors)
    for path, roots in _with_roots(paths):
        before = len(left)
        for root in roots:
            with open_checkpoint(path, root, unwrap=False) as checkpoint:
                keys = _matched(checkpoint, left, values)
                if keys:
                    found.append(InitialFile(path, checkpoint.root or ".", keys, "copy", RULE))
                    left = {key: info for key, info in left.items() if key not in keys}
        if len(left) == before:
            others.append(path)
    return found, others


def _with_roots(paths: Iterable[str]) -> Iterator[tuple[str, Sequence[str | None]]]:
    """Yield (path, names of its state dicts) for each file with tensors; ``_roots`` defines the names.

    If a folder is a checkpoint of several files, and all of them are in ``paths``, the folder is yielded instead of the
    files.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    for folder, files in by_folder.items():
        whole = _roots(folder) if len(files) > 1 and _files_of(folder) <= set(map(os.path.basename, files)) else None
        for path, roots in [(folder, whole)] if whole else ((path, _roots(path)) for path in files):
            if roots is not None:
                yield path, roots


def _files_of(folder: str) -> set[str]:
    """Return the names of the tensor files of a folder's checkpoint, without its JSON index."""
    try:
        with open_checkpoint(folder, unwrap=False) as checkpoint:
            return {name for name in checkpoint.open_files() if name and not name.endswith(".json")}
    except CheckpointError:
        return set()


def _roots(path: str) -> Sequence[str | None] | None:
    """Return the names of the state dicts in a file; the first is None if the file has a default state dict.

    Returns () if the file has tensors but no state dict, and None if it has no tensors.
    """
    try:
        with open_checkpoint(path, unwrap=False) as checkpoint:
            return (None, *checkpoint.passed)
    except ConfigError as error:
        return error.details
    except FormatError as error:
        return () if error.rule == "no state dict" else None
    except CheckpointError:
        return None


def _matched(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], values: Callable[[str], Tensor | None]
) -> dict[str, str]:
    """Return a map from keys of a model to keys of a checkpoint with the same values.

    If several keys of the checkpoint have these values, the key with the most similar name is used.
    """
    shapes = {info.shape for info in checkpoint.values() if not info.opaque}
    wanted: dict[tuple[int, ...], dict[str, list[tuple[str, str, bool]]]] = {}
    for key, info in tensors.items():
        if info.shape in shapes and info.numel and (tensor := values(key)) is not None:
            constant = bool((tensor == tensor.flatten()[0]).all())
            wanted.setdefault(info.shape, {}).setdefault(info.dtype, []).append((key, digest_of(tensor), constant))
    candidates: dict[str, list[str]] = {}
    for there, info in checkpoint.items():
        for dtype, rows in wanted.get(info.shape, {}).items() if not info.opaque else ():
            if dtype != info.dtype and {DTYPES[dtype].kind, DTYPES[info.dtype].kind} != {"float"}:
                continue
            digest = digest_of(checkpoint.tensor(there).to(getattr(torch, dtype)))
            for key, digest_here, constant in rows:
                if digest == digest_here and (not constant or _agree(key, there)):
                    candidates.setdefault(key, []).append(there)
    return {key: max(found, key=partial(_likeness, key)) for key, found in candidates.items()}


def _agree(key: str, there: str) -> bool:
    """Return whether one key ends with the parts of the other key, as ``encoder.fc`` ends with ``fc``."""
    return f".{key}".endswith(f".{there}") or f".{there}".endswith(f".{key}")


def _likeness(key: str, there: str) -> int:
    """Return the similarity of two keys: the number of equal parts (separated by dots) at their ends.

    If one key is the end of the other key, a higher number is returned.
    """
    pairs = zip(reversed(key.split(".")), reversed(there.split(".")), strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(key))


def left_out(path: str) -> Undrawable:
    """Return the reason why a tensor has no initial values: --no-constructor-weights left out the file ``path``."""
    return Undrawable(
        f"has a constructor that reads {{keys}} from {_braced(escape(path))}, but --no-constructor-weights leaves "
        "the values of this file out",
        "Use a source that has this tensor, or leave --no-constructor-weights out.",
    )


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def confirmed(
    found: Iterable[InitialFile],
    values: Callable[[str], Tensor | None],
    build: Callable[[], Mapping[str, Tensor]],
) -> list[InitialFile]:
    """Return the files, each with only the keys whose values the constructor really reads from this file.

    Other keys, such as position ids or the weights of a new norm (all 1), have the same values by chance. To find these
    keys, ``build`` constructs the module again while the loading functions return changed values: tensors that stay the
    same are not read from a file. If this second construction fails, the result has all keys.
    """
    found = list(found)
    made = changed_values(build) if found else None
    if made is None:
        return found
    changed, readers = made

    def is_read(one: InitialFile, key: str) -> bool:
        before = values(key)
        if before is None or key not in changed or not readers.knows(one.path):
            return True
        digest, is_float = changed[key]
        return (not is_float and not readers.integers) or digest != digest_of(before)

    kept = (replace(one, keys={key: there for key, there in one.keys.items() if is_read(one, key)}) for one in found)
    return [one for one in kept if one.keys]


# Building a model without the weights that its constructor would load.


@contextmanager
def weights_left_out(seen: Opened) -> Iterator[None]:
    """During the block, make ``load_state_dict`` load nothing, and ``from_pretrained`` build from the configuration.

    Only the threads that ``seen`` watches are affected.
    """
    load = nn.Module.load_state_dict

    def loads_nothing(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not seen.threads.is_here:
            return load(module, *args, **kwargs)
        return nn.modules.module._IncompatibleKeys([], [])

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "load_state_dict", loads_nothing))
        if find_spec("transformers") is not None:
            from transformers import PreTrainedModel

            original = PreTrainedModel.__dict__["from_pretrained"].__func__

            def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
                return (_from_configuration if seen.threads.is_here else original)(cls, *args, **kwargs)

            stack.enter_context(mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)))
        yield


def _from_configuration(cls: Any, name: Any, /, *args: Any, config: Any = None, **kwargs: Any) -> Any:
    from transformers import PreTrainedConfig

    if not isinstance(config, PreTrainedConfig):
        config, kwargs = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **kwargs)
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    return cls._from_config(config, **({"dtype": dtype} if dtype not in (None, "auto") else {}))
