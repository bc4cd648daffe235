"""A destination that is alive: an ``nn.Module`` whose tensors are written in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...planning.target import TargetSpec
from ...util.text import escape, listing
from .parts import own_part, whole
from .state import infos_of, state_of, ties_of

__all__ = ["live_target"]


def live_target(model: nn.Module) -> TargetSpec:
    """Return a live module's tensors as a destination that keeps what no source gives.

    Raises ConfigError where it has none, or some that cannot be written in place.
    """
    tensors, _ = state_of(model)
    name = type(model).__name__
    if not tensors:
        raise ConfigError(f"{escape(name)} has no tensors.", hint="There is nothing to load into.")
    infos = infos_of(tensors)
    _check_writable(model, {key: own_part(tensor) for key, tensor in tensors.items()})

    def current(keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
        for key in keys:
            values = whole(tensors[key]).detach().to("cpu", copy=True)
            yield key, values.contiguous().reshape(-1).view(torch.uint8).numpy().data

    return TargetSpec(
        kind="module",
        name=name,
        tensors=infos,
        initial=current,
        ties=ties_of(tensors),
        keeps=name,
    )


def _check_writable(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Writing into what ``state_dict`` gave must be writing into the module."""
    empty = [key for key, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ConfigError(
            f"{listing(empty)} of the module has no storage (meta).", hint="Give it one first: model.to_empty(…)."
        )
    shared = [key for key, tensor in tensors.items() if torch._debug_has_internal_overlap(tensor) == 1]
    if shared:
        raise ConfigError(
            f"elements of {listing(shared)} share memory (expand), so they cannot be written.",
            hint="Make it a tensor of its own: .contiguous().",
        )
    own = {own_part(tensor).untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    foreign = [key for key, tensor in tensors.items() if tensor.untyped_storage()._cdata not in own]
    if foreign:
        raise ConfigError(
            f"state_dict gives copies of {listing(foreign)}, not the module's own tensors.",
            hint="Apply a transplant, and load its output with load_state_dict.",
        )
