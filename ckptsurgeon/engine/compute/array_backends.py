"""The array library that a merge is computed with: numpy, or torch on a device.

torch has nearly all of the Python array API (https://data-apis.org/array-api/2024.12/) under its names, ``axis`` and
``keepdims`` included; what it names otherwise, or answers with pairs, is given here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

import numpy as np

from ...errors import ConfigError
from ...tensors.ops.boxes import Array
from ...util.text import escape

__all__ = ["Library", "check_device", "library"]


@dataclass(frozen=True)
class Library:
    """What computes: its array API, how values get to its device and come back."""

    xp: ModuleType
    device: str = ""

    def put(self, values: Array) -> Array:
        """Return an array as the library has it."""
        if not self.device:
            return values
        moved: Array = self.xp.asarray(np.ascontiguousarray(values), device=self.device)
        return moved

    def get(self, values: Any) -> Array:
        """Return an array of the library as numpy's."""
        return np.asarray(values.cpu() if self.device else values)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let arrays be made on the device, and computing make no fuss of NaN and infinity."""
        with np.errstate(all="ignore"):
            if not self.device:
                yield
                return
            with self.xp.device(self.device), self.xp.no_grad():
                yield


def check_device(device: str) -> None:
    """Raise ConfigError for a device that there is not."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {escape(device)} is unknown.", hint="Use cpu or cuda.")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: there is no GPU that torch can use.", hint="Leave it out.")


@lru_cache
def library(device: str) -> Library:
    """Return numpy for "", else torch on a device; raises ConfigError where there is no such."""
    if device:
        check_device(device)
    return Library(_torch(), device) if device else Library(np)


class _Namespace(ModuleType):
    """torch, where the array API has other names or answers."""

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
