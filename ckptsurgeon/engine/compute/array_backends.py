"""Provides the array library that a merge uses: numpy, set up to reuse freed memory, or torch on a device.

torch has nearly all functions of the Python array API (https://data-apis.org/array-api/2024.12/), under the same names
and with the same arguments ``axis`` and ``keepdims``. Functions that differ in torch are defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, cast

import numpy as np

from ...errors import ConfigError
from ...tensors.ops.regions import Array
from ...util.text import escape

__all__ = ["ArrayLibrary", "check_device", "keep_freed_memory", "library"]


@dataclass(frozen=True)
class ArrayLibrary:
    """numpy, or torch on a device: its functions (``xp``), and methods that move arrays to the device and back."""

    xp: ModuleType
    device: str = ""

    def put(self, values: Array) -> Array:
        """Return a numpy array as an array of the library, on its device."""
        if not self.device:
            return values
        moved: Array = self.xp.asarray(np.ascontiguousarray(values), device=self.device)
        return moved

    def get(self, values: Any) -> Array:
        """Return an array of the library as a numpy array."""
        return np.asarray(values.cpu() if self.device else values)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the ``with`` block, create new arrays on the device, and turn off numpy's floating-point warnings."""
        with np.errstate(all="ignore"):
            if not self.device:
                yield
                return
            with self.xp.device(self.device), self.xp.no_grad():
                yield


def check_device(device: str) -> None:
    """Raise ConfigError if a device is neither "cpu" nor "cuda", or if it is "cuda" and torch finds no usable GPU."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {escape(device)} is unknown.", hint="Use cpu or cuda.")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch finds no usable GPU.", hint="Leave --device out.")


@lru_cache
def library(device: str) -> ArrayLibrary:
    """Return numpy if ``device`` is "", else torch on this device; raises ConfigError if there is no such device."""
    if device:
        check_device(device)
    return ArrayLibrary(_torch(), device) if device else ArrayLibrary(np)


class _Namespace(ModuleType):
    """torch, with replacements for the functions of the array API that torch lacks or defines differently."""

    def __init__(self) -> None:
        import torch

        super().__init__("torch")
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def _torch() -> ModuleType:
    import torch

    def extreme(whole: Callable[..., Any], along: Callable[..., Any]) -> Callable[..., Any]:
        def found(x: torch.Tensor, /, *, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
            return cast(torch.Tensor, whole(x) if axis is None else along(x, dim=axis, keepdim=keepdims))

        return found

    def sort(x: torch.Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> torch.Tensor:
        return torch.sort(x, dim=axis, descending=descending, stable=stable).values

    namespace = _Namespace()
    own = {
        "max": extreme(torch.max, torch.amax),
        "min": extreme(torch.min, torch.amin),
        "sort": sort,
        "astype": lambda x, dtype, /, *, copy=True: x.to(dtype, copy=copy),
        "permute_dims": lambda x, /, axes: x.permute(axes),
    }
    vars(namespace).update(own)
    return namespace


KEPT = 31 << 20
"""The bytes of the block that ``keep_freed_memory`` frees.

Blocks over 32 MB (DEFAULT_MMAP_THRESHOLD_MAX) have no effect.
"""


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed arrays of up to 31 MB; with other C libraries this has no effect.

    By default, glibc gets the memory for each array of more than 128 KB from the kernel, and returns it when the array
    is freed. The kernel must clear each page, which took a third of the time of a merge (400,000 page faults for each
    750 MB). After a larger block was freed, glibc keeps all freed blocks up to the size of that block, and up to twice
    as many bytes in total (see "dynamic mmap threshold" in mallopt(3)). So it is enough to free one block here; its
    pages are never used. If a user sets a threshold, for example with MALLOC_MMAP_THRESHOLD_, this has no effect.
    """
    with suppress(MemoryError):  # not essential: everything works without it, but slower
        np.empty(KEPT, "u1")  # not bytearray, which writes zeros into it
