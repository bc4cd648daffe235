"""Weights that a constructor loads: finds the files that they come from, or leaves them out.

A tensor comes from a file if the file has a tensor of equal values, perhaps of another floating dtype. Tensors of one
repeated value, such as zero biases, count only if the names agree, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import CheckpointError
from ...planning.target import InitialFile, Undrawable
from ...tensors.info import TensorInfo
from ...util.text import escape

__all__ = ["RULE", "left_out", "loaded_files", "weights_left_out", "weights_opened"]

RULE = "loaded by its constructor"

_OTHERS = (
    ".py", ".pyc", ".pyi", ".so", ".json", ".yaml", ".yml", ".txt", ".toml", ".cfg", ".md", ".model", ".vocab", ".wav",
    ".flac", ".csv", ".tsv", ".lock", ".html", ".jinja",
)  # fmt: skip
"""Endings of files that constructors read and that hold no weights."""


def weights_opened(paths: Iterable[str]) -> Iterator[str]:
    """Yield those paths that could be files of weights, as the user would write them."""
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        if not path.lower().endswith(_OTHERS) and not path.startswith(("/proc/", "/sys/", "/dev/")) and _is_file(path):
            near = os.path.relpath(path)
            yield path if near.startswith("..") else near


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) > 0


def loaded_files(
    paths: Iterable[str], tensors: Mapping[str, TensorInfo], values: Callable[[str], Tensor | None]
) -> tuple[list[InitialFile], list[str]]:
    """Return the files whose tensors a model has, and the other checkpoints among ``paths``.

    ``values`` returns the initial values of a key, None if they are drawn. Files in one folder that is itself a
    checkpoint are given as that folder.
    """
    found: list[InitialFile] = []
    others: list[str] = []
    left = dict(tensors)
    for path, checkpoint in _opened(paths):
        with checkpoint:
            keys = _matched(checkpoint, left, values)
            if keys:
                found.append(InitialFile(path, checkpoint.root or ".", keys, "copy", RULE))
                left = {key: info for key, info in left.items() if key not in keys}
            else:
                others.append(path)
    return found, others


def _opened(paths: Iterable[str]) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the checkpoints among files: of several in one folder the folder, if it is a checkpoint."""
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    for folder, files in by_folder.items():
        for path in [folder] if len(files) > 1 and _checkpoint(folder) else files:
            checkpoint = _checkpoint(path)
            if checkpoint is not None:
                yield path, checkpoint


def _checkpoint(path: str) -> Checkpoint | None:
    with suppress(CheckpointError):
        return open_checkpoint(path, unwrap=False)
    return None


def _matched(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], values: Callable[[str], Tensor | None]
) -> dict[str, str]:
    """Return for each key of a model whose values a checkpoint has the key there with the most similar name."""
    shapes = {info.shape for info in checkpoint.values() if not info.opaque}
    wanted: dict[tuple[int, ...], dict[str, list[tuple[str, str, bool]]]] = {}
    for key, info in tensors.items():
        if info.shape in shapes and info.numel and (tensor := values(key)) is not None:
            constant = bool((tensor == tensor.flatten()[0]).all())
            wanted.setdefault(info.shape, {}).setdefault(info.dtype, []).append((key, _digest(tensor), constant))
    candidates: dict[str, list[str]] = {}
    for there, info in checkpoint.items():
        for dtype, rows in wanted.get(info.shape, {}).items() if not info.opaque else ():
            digest = _digest(checkpoint.tensor(there).to(getattr(torch, dtype)))
            for key, digest_here, constant in rows:
                if digest == digest_here and (not constant or _agree(key, there)):
                    candidates.setdefault(key, []).append(there)
    return {key: max(found, key=partial(_likeness, key)) for key, found in candidates.items()}


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _agree(key: str, there: str) -> bool:
    """Return whether one name is the end of the other."""
    return f".{key}".endswith(f".{there}") or f".{there}".endswith(f".{key}")


def _likeness(key: str, there: str) -> int:
    """Return how many segments two names have in common at their ends."""
    pairs = zip(reversed(key.split(".")), reversed(there.split(".")), strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(key))


def left_out(path: str) -> Undrawable:
    """Return the reason for a tensor that the constructor reads from a file although weights are left out."""
    return Undrawable(
        f"has a constructor that reads {{keys}} from {_braced(escape(path))}",
        "Take it from a source, or leave --no-constructor-weights out.",
    )


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


# Building a model without the weights that its constructor would load.


@contextmanager
def weights_left_out() -> Iterator[None]:
    """Let ``load_state_dict`` load nothing during the block, and ``from_pretrained`` build from the configuration."""
    loads_nothing = mock.patch.object(nn.Module, "load_state_dict", _loads_nothing)
    if find_spec("transformers") is None:
        with loads_nothing:
            yield
        return
    from transformers import PreTrainedModel

    with loads_nothing, mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(_from_configuration)):
        yield


def _loads_nothing(module: nn.Module, *_: object, **__: object) -> Any:
    return nn.modules.module._IncompatibleKeys([], [])


def _from_configuration(cls: Any, name: Any, /, *args: Any, config: Any = None, **kwargs: Any) -> Any:
    from transformers import PreTrainedConfig

    if not isinstance(config, PreTrainedConfig):
        config, kwargs = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **kwargs)
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    return cls._from_config(config, **({"dtype": dtype} if dtype not in (None, "auto") else {}))
