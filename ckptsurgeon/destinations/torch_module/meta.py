"""Builds a module whose parameters have no memory yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...planning.target import TargetSpec
from ...util.text import escape
from .user_code import PROCESS_STATE

__all__ = ["build_on_meta", "network_on_meta"]


def network_on_meta(target: TargetSpec) -> nn.Module:
    """Return the network of a destination, built by its code, with parameters on the meta device.

    Raises ConfigError if the code needs the values of parameters.
    """
    assert target.build is not None
    try:
        return build_on_meta(target.build)  # type: ignore[arg-type]
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{escape(target.name)}: the network cannot be built without memory for its parameters: "
            f"{type(error).__name__}: {escape(str(error), 300).rstrip('.')}.",
            hint="Change the constructor: it must not compute with the values of parameters.",
        ) from error


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that ``build`` makes, with parameters on the meta device and with the constructor's buffers.

    The context ``torch.device("meta")`` would put the buffers on the meta device, too. Here each parameter is replaced
    as soon as it is registered, so that only one parameter has memory at a time. Only one thread at a time can build.
    """
    with PROCESS_STATE:
        return _built(build)


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    original, normal = nn.Module.register_parameter, Tensor.normal_

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty: Tensor = parameter.detach().to("meta")
            parameter = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    def draw(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        """Draw values for a tensor that has memory; return a tensor on the meta device unchanged.

        A tensor on the meta device has no values, but torch would take 0.2 ms to draw them.
        """
        return tensor if tensor.is_meta else normal(tensor, *args, **options)

    nn.Module.register_parameter = register  # type: ignore[assignment,method-assign]
    Tensor.normal_ = draw  # type: ignore[assignment,method-assign]
    try:
        return build()
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
        Tensor.normal_ = normal  # type: ignore[method-assign]
