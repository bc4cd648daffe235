"""Provides torch as an array library that merge methods can use like numpy.

torch has nearly all functions of the Python array API (https://data-apis.org/array-api/2024.12/), under the same names
and with the same arguments ``axis`` and ``keepdims``. Functions that differ in torch are defined here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

from ...errors import ConfigError
from ...util.text import escape

__all__ = ["check_device", "torch_arrays"]


def check_device(device: str) -> None:
    """Raise ConfigError if a device is neither "cpu" nor "cuda", or if it is "cuda" and torch finds no usable GPU."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {escape(device)} is unknown.", hint="Use cpu or cuda.")
    if not _is_there(device):
        raise ConfigError("--device cuda: torch finds no usable GPU.", hint="Leave --device out.")


def _is_there(device: str) -> bool:
    import torch

    return device != "cuda" or torch.cuda.is_available()


class _Namespace(ModuleType):
    """torch, with replacements for the functions of the array API that torch lacks or defines differently."""

    def __init__(self) -> None:
        import torch

        super().__init__("torch")
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def torch_arrays(device: str) -> ModuleType:
    """Return torch as an array library for the device in a plan; raises ConfigError if torch finds no such device."""
    if not _is_there(device):
        raise ConfigError(
            f"the plan merges on the device {device}, but torch finds no usable GPU.",
            hint="Make the plan again, on this machine and without --device.",
        )
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
