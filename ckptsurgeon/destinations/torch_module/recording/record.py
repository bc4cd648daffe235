"""Records the construction of a module without memory for values.

Each recorded tensor is a ghost: it is on the meta device, but claims to be on the CPU. Each operation that makes or
changes values becomes a node; ``replay`` later runs only the nodes on which the requested tensors depend. If a
constructor reads a value (``linspace(…).tolist()`` for drop-path rates), the nodes on which the value depends are run
immediately. Operations that cannot be recorded raise Unrecordable, and the module is built with storage instead.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .dispatch import CPU, Dispatch
from .graph import Node, Recording, StorageView, Unrecordable, behind, covers, replay

__all__ = ["recording", "release"]

# Tensors that outlive the recording get values, so that the caller never has a tensor without values.
#
# A constructor may keep a tensor in a cache or in an attribute of its class. A recorded tensor has no values, and
# would have none for the rest of the process.

MAX_BYTES = 256 << 20
"""If the tensors that the constructor keeps outside of the module have more bytes than this, none gets values."""

logger = logging.getLogger(__name__)


def release(record: Recording, seed: int) -> None:
    """Give storage and values to recorded tensors that still exist outside of the module, for example in a cache."""
    if any(ghost() is not None for ghost in record.ghosts):
        gc.collect()  # usually only reference cycles keep these tensors
    kept = [tensor for ghost in record.ghosts if (tensor := ghost()) is not None]
    record.ghosts.clear()
    if sum(tensor.untyped_storage().nbytes() for tensor in kept) > MAX_BYTES:
        logger.warning("%d tensors that the constructor keeps outside of the module stay without values", len(kept))
        return
    for tensor in kept:
        _fill(record, tensor, seed)


def _fill(record: Recording, tensor: Tensor, seed: int) -> None:
    ref = record.ref(tensor)
    nodes = behind(record, [ref.storage])
    streams = {node.index: ("", node.index) for node in nodes if node.random}
    values = replay(record, nodes, ref, seed=seed, streams=streams).requires_grad_(tensor.requires_grad)
    try:
        torch.utils.swap_tensors(tensor, values)  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # torch itself still refers to it
        logger.warning("a tensor that the constructor keeps outside of the module stays without values: %s", error)


_LOOKS = {
    torch.Tensor.is_meta.__get__: False,  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: True,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__: CPU,
}
"""The device of a ghost (a recorded tensor without values), as Python sees it: the CPU.

This is necessary because constructors do not initialise tensors on the meta device.
"""

_SHOWS = {torch.Tensor.tolist, torch.Tensor.__repr__, torch.Tensor.__format__}
_ARRAYS: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}
_INDEXED: set[Any] = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
_BYTES: set[Any] = {
    torch.Tensor.data_ptr,
    torch.Tensor.storage,
    torch.Tensor.untyped_storage,
    torch.Tensor.__reduce_ex__,
}
"""Methods that a ghost cannot have, because they return the memory of its values."""
_SETS_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


class _Disguise(TorchFunctionMode):
    """Makes recorded tensors look like CPU tensors, and computes their values if Python asks for the values."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _LOOKS:
            return _LOOKS[func]
        if func is torch.Tensor.__deepcopy__:
            return self._copy(*args)
        if (func in _SHOWS or func in _ARRAYS or func in _BYTES) and isinstance(args[0], Tensor):
            return self._shown(func, *args, **kwargs)
        if func == _SETS_DATA:
            return self._rebound(*args)
        if func in _INDEXED:
            args = (args[0], _index(args[1]), *args[2:])
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs, "device": CPU})
        if func is torch.Tensor.new and not all(isinstance(arg, int) for arg in args[1:]):
            return torch.tensor(args[1], dtype=args[0].dtype, device=CPU)
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        if func is torch.Tensor.to:
            args = tuple(CPU if _is_device(arg) else arg for arg in args)
        if kwargs.get("out") is not None:  # the default device must not be added
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _rebound(self, tensor: Tensor, data: Tensor) -> None:
        """Set ``.data`` of a tensor to ``data``.

        If ``data`` is a recorded meta tensor and ``tensor`` is not on the meta device, the CPU tensor of
        ``Recording.face`` is used instead of ``data``.
        """
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            if data.is_meta and not tensor.is_meta and self._dispatch.record.knows(data):
                data = self._dispatch.record.face(data)
            tensor.data = data

    def _copy(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copied: Tensor = memo[id(tensor)]
        return copied

    def _shown(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the result of ``func``, which reads the values of ``tensor``.

        If ``tensor`` is a recorded tensor, which has no values yet, its values are computed for ``func``. If ``func``
        asks for the memory of a recorded tensor, the recording fails, because changes in that memory could not be
        recorded.
        """
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            if not self._dispatch.is_ghost(tensor):
                if func in _ARRAYS:
                    self._dispatch.shown.add(tensor.untyped_storage()._cdata)
                return func(tensor, *args, **kwargs)
            if func in _BYTES:
                raise self._dispatch.record.lost("asks for the memory of a tensor")
            value = func(self._dispatch.value(tensor), *args, **kwargs)
        if func in _ARRAYS:
            value.flags.writeable = False  # writes to it would not be recorded
        return value


def _index(index: Any) -> Any:
    """Return an index with lists and arrays converted to tensors; torch's own conversion would not be recorded."""
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    if not isinstance(index, (list, numpy.ndarray)):
        return index
    positions = torch.as_tensor(index)
    return positions.nonzero(as_tuple=True)[0] if positions.dtype == torch.bool and positions.ndim == 1 else positions


def _is_device(arg: Any) -> bool:
    if isinstance(arg, torch.device):
        return True
    return isinstance(arg, str) and arg.partition(":")[0] in ("cuda", "cpu", "mps", "xpu", "meta")


@contextmanager
def recording(evaluate: Callable[[Recording, StorageView], Tensor]) -> Iterator[Recording]:
    """Record the operations on tensors during the block; ``evaluate`` computes values if the code reads them.

    Raises Unrecordable at the end if an operation could not be recorded, even if the constructor caught the exception.
    """
    record = Recording()
    dispatch = Dispatch(record, evaluate)
    with _whole_draws(dispatch), _Disguise(dispatch), dispatch:
        yield record
    if record.failure:
        raise Unrecordable(record.failure)


@contextmanager
def _whole_draws(dispatch: Dispatch) -> Iterator[None]:
    """Record ``trunc_normal_`` as one operation, because its loop reads values that it has just drawn."""
    init = torch.nn.init
    original = getattr(init, "_no_grad_trunc_normal_", None)
    if original is None:
        yield
        return

    def recorded(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("generator", None)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            ref = dispatch.record.ref(tensor) if dispatch.is_ghost(tensor) else dispatch.record.adopt(tensor)
        whole = covers(ref, dispatch.record)
        reads = frozenset() if whole else frozenset({ref.storage})
        dispatch.record.add(
            Node(
                len(dispatch.record.nodes),
                original,
                (ref, *args),
                kwargs,
                reads,
                frozenset({ref.storage}),
                random=True,
                overwrites=whole,
            )
        )
        return tensor

    init._no_grad_trunc_normal_ = recorded
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original
