"""Makes a destination from an ``nn.Module`` in memory, whose tensors are written in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...planning.target import TargetSpec
from ...util.text import escape, listing
from .beyond_tensors import notes_beyond_tensors
from .tensors import infos_of, own_part, state_of, ties_of, whole

__all__ = ["live_target"]


def live_target(model: nn.Module) -> TargetSpec:
    """Return a module in memory as a destination; tensors that are in no source keep their values.

    Raises ConfigError if the module has no tensors, or has a tensor that cannot be written in place.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the model is a {escape(type(model).__name__)}, not an nn.Module.",
            hint="Call it, and pass the module that it returns." if callable(model) else "Pass the module itself.",
        )
    tensors, _ = state_of(model)
    name = type(model).__name__
    if not tensors:
        raise ConfigError(
            f"the module {escape(name)} has no tensors.", hint="Pass a module with parameters or buffers."
        )
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
        notes=tuple(notes_beyond_tensors(model)),
    )


def _check_writable(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise ConfigError if values that are written into the tensors of ``state_dict()`` would not change the module."""
    empty = [key for key, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ConfigError(
            f"tensors of the module have no storage (meta device): {listing(empty)}.",
            hint=_how_to_give_storage(model, tensors),
            details=empty,
        )
    shared = [key for key, tensor in tensors.items() if torch._debug_has_internal_overlap(tensor) == 1]
    if shared:
        raise ConfigError(
            f"elements of a tensor share memory (as after .expand()), so they cannot be written: {listing(shared)}.",
            hint="Copy the tensor to memory without shared elements: .contiguous().",
        )
    own = {own_part(tensor).untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    foreign = [key for key, tensor in tensors.items() if tensor.untyped_storage()._cdata not in own]
    if foreign:
        raise ConfigError(
            f"state_dict() returns copies of {listing(foreign)}: values written to them would not change the module.",
            hint="Write the transplant to a file instead (transplant, apply), and load it with load_state_dict.",
        )


def _how_to_give_storage(model: nn.Module, tensors: dict[str, Tensor]) -> str:
    """Return the hint for a module with tensors on the meta device; ``tensors`` are those of its ``state_dict()``.

    ``to_empty`` gives every tensor new storage with undefined values, and its own storage to each key of a tied tensor.
    """
    stored = [key for key, tensor in tensors.items() if not tensor.is_meta]
    unstored = [key for key, _ in model.named_buffers(remove_duplicate=False) if key not in tensors]
    ties = ties_of(tensors)
    harm = [
        f"{what} ({listing(keys, 3, where='')})"
        for what, keys in (
            ("leave buffers undefined that are in no checkpoint", unstored),
            ("untie tensors", list(ties)),
            ("discard the values of tensors that have storage", stored),
        )
        if keys
    ]
    if harm:
        return f"Build the module on the CPU instead. model.to_empty(…) would {' and '.join(harm)}."
    undefined = "tensors that are in no source would have undefined values"
    return f"Give these tensors storage first: model.to_empty(device='cpu'). Then use --on-missing error: {undefined}."
