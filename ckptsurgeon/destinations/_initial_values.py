"""Makes the initial values of declared tensors: by an initialiser, or from the checkpoint of ``init: like``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint
from ..errors import CheckpointError, ConfigError
from ..planning.target import InitialFile, Undrawable
from ..tensors.info import TensorInfo
from ..util.text import brief_repr, escape, shape_text
from ._document import Document

if TYPE_CHECKING:
    import torch

__all__ = ["DEVIATION", "LIKE", "ZERO_DEVIATION", "Init", "file_with", "initial_values"]

LIKE = "like"
"""The value of the field ``init`` for a tensor that starts with its values in a checkpoint."""
ZERO_DEVIATION = Undrawable(
    "initialises {keys} with zeros, but models divide by standard deviations and variances",
    "Use a source that has this tensor, or pass --reinit {key} to start with zeros nevertheless.",
    allowed=True,
)
DEVIATION = re.compile(r"(.*[._])?(?<!log_)(std|stddev|stdev|istd|var|variance|deviation)")
"""Matches the usual names of standard deviations and variances, but not of their logarithms."""


@dataclass(frozen=True)
class Init:
    """An initialiser with its arguments, checked to fit its tensor."""

    name: str
    arguments: Mapping[str, Any]


def file_with(document: Document, kept: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> InitialFile:
    """Return the checkpoint that has the initial values of the tensors ``kept``.

    The field ``values`` has the path of the checkpoint, and the field ``root`` the path of its state dict. Raises
    ConfigError if these fields are missing or malformed; if a tensor cannot be read from the checkpoint or has another
    shape in it; or if tied tensors have different initialisers, or different values in the checkpoint. Raises the
    errors of ``open_checkpoint``.
    """
    values, root = document.model.get("values"), document.model.get("root")
    for key in kept:
        if ties.get(key, key) not in kept:
            raise document.fail(
                f"the tensor {escape(key)} is tied to {escape(ties[key])}, but has a different initialiser."
            )
    first = next(iter(kept))
    if not isinstance(values, str):
        is_value = "is missing" if values is None else f"is {brief_repr(values, 80)}, not a path"
        raise document.fail(
            f"the tensor {escape(first)} has 'init: like', but the field 'values' {is_value}.",
            "Add values: FILE, a checkpoint with the values of this tensor.",
        )
    if not isinstance(root, (str, type(None))):
        raise document.fail(f"the field 'root' is {brief_repr(root, 80)}, not the path of a state dict.")
    path = values if "://" in values else document.resolve(values)
    try:
        raw = open_checkpoint(path, root or ".", unwrap=False)
    except CheckpointError as error:
        error.message = f"{escape(document.name)}: values: {error.message}"
        raise
    with raw:
        checkpoint = raw.unwrapped(destination=list(kept))
        for key, info in kept.items():
            owner = ties.get(key, key)
            if owner != key and key not in checkpoint:
                continue
            _check_there(document, key, info, checkpoint)
            if owner in checkpoint and not checkpoint.tensor(key).equal(checkpoint.tensor(owner)):
                raise document.fail(
                    f"the tensor {escape(key)} is tied to {escape(owner)}, "
                    f"but has other values in {escape(checkpoint.path)}."
                )
    keys = {key: key for key in kept if key not in ties}
    return InitialFile(path, root or ".", keys, "keep", "init: like", checkpoint.stripped)


def _check_there(document: Document, key: str, info: TensorInfo, checkpoint: Checkpoint) -> None:
    there = checkpoint.get(key)
    name = escape(checkpoint.path)
    if there is None:
        raise document.fail(
            f"the tensor {escape(key)} should get its values from another file (init: like), but {name} has no "
            "tensor of that name."
        )
    if there.opaque:
        raise document.fail(
            f"the tensor {escape(key)} should get its values from another file (init: like), but the tensor in "
            f"{name} cannot be read: {there.opaque}."
        )
    if there.shape != info.shape:
        raise document.fail(
            f"the tensor {escape(key)} (init: like) has the shape {shape_text(info.shape)}, "
            f"but the shape {shape_text(there.shape)} in {name}."
        )


def initial_values(
    tensors: Mapping[str, TensorInfo],
    inits: Mapping[str, Init],
    given: Sequence[InitialFile],
    keys: Iterable[str],
    seed: int,
) -> Iterator[tuple[str, memoryview]]:
    """Yield each key with the bytes of its initial values, from a checkpoint in ``given`` or from an initialiser."""
    for key in keys:
        file = next((one for one in given if key in one.keys), None)
        if file is None:
            yield from _draw(tensors, inits, [key], seed)
            continue
        import torch

        with open_checkpoint(file.path, file.root, unwrap=False) as raw:
            checkpoint = raw.unwrapped(stripped=file.stripped)
            values = checkpoint.tensor(file.keys[key]).to(getattr(torch, tensors[key].dtype), copy=True)
        yield key, values.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _draw(
    tensors: Mapping[str, TensorInfo], inits: Mapping[str, Init], keys: Iterable[str], seed: int
) -> Iterator[tuple[str, memoryview]]:
    import torch

    from .torch_module.construction import drawing
    from .torch_module.recording.graph import derived_seed

    for key in keys:
        if key not in inits:
            raise ConfigError(f"the destination does not say how to initialise the tensor {escape(key)}.")
        with drawing():
            torch.default_generator.manual_seed(derived_seed(seed, key, 0))
            data = _drawn(tensors[key], inits[key])
        yield key, data


def _drawn(info: TensorInfo, init: Init) -> memoryview:
    """Return the bytes of a new tensor that ``init`` fills; random values come from torch's default generator."""
    if init.name == "zeros" or info.numel == 0:
        return memoryview(bytearray(info.nbytes))
    import torch

    dtype: torch.dtype = getattr(torch, info.dtype)
    wide = torch.complex64 if dtype.is_complex else torch.float32
    computed = dtype if info.dtype not in _NO_KERNELS and not info.dtype.startswith("float8") else wide
    tensor = torch.empty(info.shape, dtype=computed)
    _fill(tensor, init)
    return tensor.to(dtype).reshape(-1).view(torch.uint8).numpy().data


_NO_KERNELS = ("complex32", "uint16", "uint32", "uint64")
"""Dtypes for which torch has few operations, so that initial values are computed in a wider dtype."""


def _fill(tensor: torch.Tensor, init: Init) -> None:
    import torch

    if init.name == "arange":
        tensor.copy_(torch.arange(tensor.shape[-1]).expand(tensor.shape))
        return
    try:
        getattr(torch.nn.init, f"{init.name}_")(tensor, **init.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the initialiser {init.name} with {dict(init.arguments)} fails: {escape(str(error))}."
        ) from error
