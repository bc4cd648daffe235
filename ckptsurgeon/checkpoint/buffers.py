"""The bytes of tensors in memory, torch's and numpy's, where they lie; nothing is copied until it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ArrayBytes", "TensorBytes"]


class TensorBytes:
    """A run of bytes in a storage of torch's, on whatever device; of another than the CPU only what is read is copied.

    It holds the storage, not the tensor, which may get another one.
    """

    __slots__ = ("_begin", "_flat", "_storage", "nbytes")

    def __init__(self, storage: torch.UntypedStorage, begin: int, nbytes: int) -> None:
        self._storage = storage
        self._begin = begin
        self._flat: Any = None
        self.nbytes = nbytes

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises SourceError where the storage has shrunk."""
        begin = self._begin + offset
        if self._storage.nbytes() < begin + len(view):
            raise SourceError("a tensor in memory has lost its storage since it was looked at.")
        if self._flat is None or self._flat.numel() < begin + len(view):
            import torch

            flat = torch.empty(0, dtype=torch.uint8, device=self._storage.device)
            self._flat = flat.set_(self._storage)
        view[:] = self._flat[begin : begin + len(view)].cpu().numpy().data


class ArrayBytes:
    """The bytes that an array of numpy's reaches, as they lie in memory."""

    __slots__ = ("_flat", "nbytes")

    def __init__(self, flat: np.ndarray[Any, Any]) -> None:
        self._flat = flat
        self.nbytes = int(flat.nbytes)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``."""
        view[:] = self._flat[offset : offset + len(view)].data
