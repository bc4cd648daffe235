"""Saves and loads the optimizer moments and averaged weights of a sharded model; each rank writes its own shards.

torch.distributed.checkpoint writes and reads them, and redistributes them if the number of ranks has changed
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...destinations.torch_module.tensors import is_distributed, own_part, part_of
from ...errors import FormatError, OutputError
from ...util.text import escape
from ..parallel.ranks import Ranks
from .ema import EMA
from .model_tensors import state_tensors
from .optimizer import Optimizer

__all__ = ["load_moments", "save_moments", "shard_state", "state_without_moments"]


def state_without_moments(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state dict of an optimizer without the moments: it has step counters and parameter groups."""
    state = optimizer.inner.state_dict()
    small = {
        index: {name: value for name, value in entries.items() if not _is_moment(value)}
        for index, entries in state["state"].items()
    }
    return {**state, "state": small}


def save_moments(path: str, model: nn.Module, optimizer: Optimizer, average: EMA | None, ranks: Ranks) -> None:
    """Write this rank's shards of moments and averaged weights into the folder ``path``; every rank must call this.

    Raises OutputError if the folder cannot be written.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    tensors = state_tensors(model)
    parts = {
        f"optimizer.{name}.{optimizer.order[index]}": value
        for index, entries in optimizer.inner.state_dict()["state"].items()
        for name, value in entries.items() if _is_moment(value)
    }  # fmt: skip
    parts |= {f"average.{key}": value for key, value in (average.tensors if average is not None else {}).items()}
    found = {name: _as_dtensor(tensors[_key_of(name)], part) for name, part in parts.items()}
    try:
        checkpoint.save(found, checkpoint_id=path, process_group=ranks.control)  # type: ignore[attr-defined]
    except CheckpointException as error:  # it is a BaseException
        raise OutputError(f"{escape(path)} cannot be written: {_first_failure(error)}.") from error


def load_moments(
    path: str, small: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, ranks: Ranks
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the optimizer's state and the averaged weights, both as shards of this rank.

    ``path`` is the folder that ``save_moments`` wrote, ``small`` the result of ``state_without_moments``. Raises
    FormatError if the folder cannot be read.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    reader: Any = checkpoint.FileSystemReader(path)  # type: ignore[attr-defined]
    names = reader.read_metadata().state_dict_metadata
    tensors = state_tensors(model)
    found = {name: _as_dtensor(tensors[_key_of(name)], _empty_part(tensors[_key_of(name)])) for name in names}
    load: Any = checkpoint.load  # type: ignore[attr-defined]
    alone = not any(map(is_distributed, found.values()))  # without shards, every rank reads alone
    # torch 2.6 has no option ``no_dist``: with this version, all ranks read together.
    how = {"no_dist": True} if alone and "no_dist" in inspect.signature(load).parameters else {}
    try:
        load(found, checkpoint_id=path, process_group=ranks.control, **how)
    except CheckpointException as error:
        raise FormatError(f"{escape(path)} cannot be read: {_first_failure(error)}.") from error
    state = {index: dict(entries) for index, entries in small["state"].items()}
    average = {}
    for name, value in found.items():
        kind, _, rest = name.partition(".")
        if kind == "average":
            average[rest] = own_part(value)
        else:
            moment, _, key = rest.partition(".")
            state[optimizer.order.index(key)][moment] = own_part(value)
    return {**small, "state": state}, average


def shard_state(
    state: Mapping[str, Any], average: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return this rank's shards of the optimizer's state and of the averaged weights.

    ``state`` and ``average`` are unsharded; ``model`` and ``optimizer`` show how they must be sharded.
    """
    tensors = state_tensors(model)

    def part(key: str, value: Tensor) -> Tensor:
        return part_of(value, tensors[key]) if _is_moment(value) else value

    parts = {
        index: {name: part(optimizer.order[index], value) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": parts}, {key: part(key, value) for key, value in average.items()}


def _first_failure(error: Any) -> str:
    """Return the message of one failed rank from ``error``, an error of torch.distributed.checkpoint."""
    return next((escape(str(failure[0]), 300) for failure in error.failures.values()), "no reason given")


def _is_moment(value: object) -> bool:
    """Return whether a value of an optimizer's state is a moment, and not a step counter, which is a 0-d tensor."""
    return isinstance(value, Tensor) and value.dim() > 0


def _key_of(name: str) -> str:
    kind, _, rest = name.partition(".")
    return rest if kind == "average" else rest.partition(".")[2]


def _empty_part(tensor: Tensor) -> Tensor:
    return torch.empty_like(own_part(tensor))


def _as_dtensor(tensor: Tensor, part: Tensor) -> Tensor:
    """Return this rank's ``part`` as a DTensor that is sharded like ``tensor``."""
    if not is_distributed(tensor):
        return part
    from torch.distributed.tensor import DTensor

    of: Any = tensor
    return DTensor.from_local(
        part, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride()
    )  # fmt: skip
