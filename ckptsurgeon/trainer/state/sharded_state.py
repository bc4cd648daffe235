"""Optimizer moments and averages of a sharded model, which are as large as the weights: each rank writes its own.

torch.distributed.checkpoint writes and reads them, and fits them to another number of ranks
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...destinations.torch_module.parts import is_distributed, own_part, part_of
from ...errors import FormatError, OutputError
from ...util.text import escape
from ..parallel.ranks import Ranks
from .ema import EMA
from .model_tensors import state_tensors
from .optimizer import Optimizer

__all__ = ["load_moments", "save_moments", "shard_state", "state_without_moments"]


def state_without_moments(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer as a state dict without its moments: step counters and parameter groups."""
    state = optimizer.inner.state_dict()
    small = {
        index: {name: value for name, value in entries.items() if not _is_moment(value)}
        for index, entries in state["state"].items()
    }
    return {**state, "state": small}


def save_moments(path: str, model: nn.Module, optimizer: Optimizer, average: EMA | None, ranks: Ranks) -> None:
    """Write the moments and the average of this rank's shards into the folder ``path``; every rank must call this."""
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
    """Return an optimizer's state and an average of weights, with the shards that this rank has.

    ``path`` is the folder of the moments and the average, ``small`` the optimizer's state without moments. Raises
    FormatError.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    reader: Any = checkpoint.FileSystemReader(path)  # type: ignore[attr-defined]
    names = reader.read_metadata().state_dict_metadata
    tensors = state_tensors(model)
    found = {name: _as_dtensor(tensors[_key_of(name)], _empty_part(tensors[_key_of(name)])) for name in names}
    load: Any = checkpoint.load  # type: ignore[attr-defined]
    alone = not any(map(is_distributed, found.values()))  # without shards every rank reads for itself
    # In torch 2.6, which cannot be told, all ranks read together: each calls this.
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
    """Return this rank's shards of a complete optimizer state and of a complete average of weights."""
    tensors = state_tensors(model)

    def part(key: str, value: Tensor) -> Tensor:
        return part_of(value, tensors[key]) if _is_moment(value) else value

    parts = {
        index: {name: part(optimizer.order[index], value) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": parts}, {key: part(key, value) for key, value in average.items()}


def _first_failure(error: Any) -> str:
    """Return a text on the error of the first rank that failed, from an error of torch.distributed.checkpoint."""
    return next((escape(str(failure[0]), 300) for failure in error.failures.values()), "no reason given")


def _is_moment(value: object) -> bool:
    """Whether a value is as large as a parameter; step counters are 0-d tensors."""
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
