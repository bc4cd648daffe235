"""Builds a module whose parameters have no memory yet."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .user_code import PROCESS_STATE

__all__ = ["build_on_meta"]


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that ``build`` makes, with parameters on the meta device and with the constructor's buffers.

    The context ``torch.device("meta")`` would put the buffers on the meta device, too. Here each parameter is replaced
    as soon as it is registered, so that only one parameter has memory at a time. Only one thread at a time can build.
    """
    with PROCESS_STATE:
        return _built(build)


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty: Tensor = parameter.detach().to("meta")
            parameter = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[assignment,method-assign]
    try:
        return build()
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
