"""Says of each tensor of a network what kind of module it is of, which its shape cannot tell."""

from __future__ import annotations

from typing import Any

from ..planning.target import TargetSpec

__all__ = ["module_kinds"]


def module_kinds(target: TargetSpec) -> dict[str, str]:
    """Return, by key, the kind of a tensor's module, as ``planning.resizing.axes.Network`` lists them.

    The network is built without memory for its parameters. Returns {} if the destination is not built by code.
    """
    if target.build is None:
        return {}
    from .torch_module.meta import build_on_meta

    model: Any = build_on_meta(target.build)  # type: ignore[arg-type]
    modules = dict(model.named_modules())
    return {key: _kind(key, modules) for key in target.tensors}


def _kind(key: str, modules: dict[str, Any]) -> str:
    from torch import nn

    path = key.partition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]
    module, name = modules.get(path), ""
    if module is None:
        return "other"
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed conv"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Embedding):
        return "scaled embedding" if "Scaled" in name else "embedding"
    if name == "Conv1D":  # of transformers.pytorch_utils
        return "transposed linear"
    if name.endswith("Experts"):
        return "interleaved experts" if name.startswith("GptOss") else "experts"
    if "Router" in name or name.endswith("Gate"):
        return "router"
    return "norm" if "Norm" in name else "other"
