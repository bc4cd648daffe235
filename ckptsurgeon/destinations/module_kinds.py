"""Says what shapes cannot tell: of what kind of module a tensor is, and with which numbers a module computes."""

from __future__ import annotations

from typing import Any

from ..planning.resizing.fused import KIND as QUERIES_KEYS_VALUES
from ..planning.target import TargetSpec

__all__ = ["constants", "module_kinds"]

SCALE = "embed_scale"
"""The attribute of an embedding whose rows are multiplied by a number."""


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


def constants(target: TargetSpec) -> dict[str, object]:
    """Return, by the path of a module and a name, each value that a module has beside its weights.

    These are the attributes that are numbers, strings, booleans or None, and the buffers that are not saved. A buffer
    with one value is returned as this number, any other as its shape and the sum of its values. The network is built
    as for ``module_kinds``: this takes 1.3 s for 94 layers with 128 experts, and ``load_target`` would take 14 s.
    """
    if target.build is None:
        return {}
    from .torch_module.meta import build_on_meta

    model: Any = build_on_meta(target.build)  # type: ignore[arg-type]
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        plain = {name: one for name, one in vars(module).items() if one is None or type(one) in _PLAIN}
        unsaved = {name: _summary(module._buffers.get(name)) for name in module._non_persistent_buffers_set}
        found.update({f"{path}.{name}": one for name, one in {**plain, **unsaved}.items()})
        if any("alibi" in name for name in dir(type(module))) or getattr(module, "use_alibi", False):
            found[f"{path}.slopes of ALiBi"] = (getattr(module, "num_heads", None),)
    return found


_FUSED = ("Phi3Attention", "Phi4MultimodalAttention")
"""Classes whose ``qkv_proj`` has the rows of all queries, then those of keys, then those of values."""
_PLAIN = (bool, int, float, str)


def _summary(buffer: Any) -> object:
    """Return a summary of a buffer that differs for other values: its number, or its shape and a weighted sum."""
    if buffer is None or buffer.is_meta:
        return None if buffer is None else tuple(buffer.shape)
    values = buffer.double()
    if values.numel() == 1:
        return float(values)
    weights = values.new_tensor(range(1, values.numel() + 1)).sqrt().reshape(values.shape)
    return (*buffer.shape, float((values.nan_to_num() * weights).sum()))


def _kind(key: str, modules: dict[str, Any]) -> str:
    from torch import nn

    path = key.partition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]
    module, name = modules.get(path), ""
    if module is None:
        return "other"
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        parent, _, last = path.rpartition(".")
        is_fused = last == "qkv_proj" and type(modules[parent]).__name__ in _FUSED
        return QUERIES_KEYS_VALUES if is_fused else "linear"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed conv"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Embedding):
        return "scaled embedding" if hasattr(module, SCALE) else "embedding"
    if name == "Conv1D":  # of transformers.pytorch_utils
        return "transposed linear"
    if name.endswith("Experts"):
        return "interleaved experts" if name.startswith("GptOss") else "experts"
    if "Router" in name or name.endswith("Gate"):
        return "router"
    return "norm" if "Norm" in name else "other"
