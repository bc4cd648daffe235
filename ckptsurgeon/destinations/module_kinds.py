"""Finds facts that shapes do not show: the kind of module of a tensor, and the constants of modules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..planning.resizing.fused import GROUPED as OF_EACH_GROUP
from ..planning.resizing.fused import KIND as QUERIES_KEYS_VALUES
from ..planning.target import TargetSpec
from .hf.cached_answers import cached_answer

__all__ = ["ModuleFacts", "module_facts", "module_kinds"]

SCALE = "embed_scale"
"""The attribute with the number by which some embeddings multiply their rows."""


class ModuleFacts(NamedTuple):
    """Facts about the modules of a network: the kind of the module of each tensor, and the constants of each module.

    ``kinds`` maps each key to a kind; ``planning.resizing.axes.Network`` lists the kinds. ``constants`` maps the path
    of each attribute that is a number, a boolean, None or a string to its value (for a string: a digest). ``constants``
    also maps the path of each buffer that is not saved to a summary: its only value, or its shape and a sum over its
    values.
    """

    kinds: Mapping[str, str]
    constants: Mapping[str, object]


def module_facts(target: TargetSpec) -> ModuleFacts:
    """Return facts about the modules of a network, from the user's cache if it has them; empty if no code builds it.

    The network is built without memory for its parameters. For 94 layers with 128 experts, this takes 1.3 s; making the
    network's ``TargetSpec`` would take 14 s.
    """
    if target.build is None:
        return ModuleFacts({}, {})
    asked = {"of": "modules", "destination": target.cache_key} if target.cache_key else {}
    return cached_answer(asked, lambda: _facts(target), _plain, _read)


def module_kinds(target: TargetSpec) -> dict[str, str]:
    """Return a map from each key to the kind of its module; {} if the destination is not built by code."""
    return dict(module_facts(target).kinds)


def _plain(found: ModuleFacts) -> Any:
    """Return facts about modules as JSON data, in which a tuple becomes a list."""
    values = [[name, list(one) if isinstance(one, tuple) else one] for name, one in found.constants.items()]
    return {"kinds": dict(found.kinds), "constants": values}


def _read(kept: Any) -> ModuleFacts:
    kinds = {str(key): str(kind) for key, kind in kept["kinds"].items()}
    return ModuleFacts(
        kinds, {str(name): tuple(one) if isinstance(one, list) else one for name, one in kept["constants"]}
    )


def _facts(target: TargetSpec) -> ModuleFacts:
    from .torch_module.meta import network_on_meta

    model: Any = network_on_meta(target)
    modules = dict(model.named_modules())
    found: dict[str, object] = {}
    for path, module in modules.items():
        plain = {name: _value(one) for name, one in vars(module).items() if one is None or type(one) in _PLAIN}
        unsaved = {name: _summary(module._buffers.get(name)) for name in module._non_persistent_buffers_set}
        found.update({f"{path}.{name}": one for name, one in {**plain, **unsaved}.items()})
        if any("alibi" in name for name in dir(type(module))) or getattr(module, "use_alibi", False):
            found[f"{path}.slopes of ALiBi"] = (getattr(module, "num_heads", None),)
    return ModuleFacts({key: _kind(key, modules) for key in target.tensors}, found)


def _value(one: object) -> object:
    """Return a plain value unchanged; for a string return its digest, since it may come from the user's file."""
    return hashlib.sha256(one.encode()).hexdigest()[:16] if isinstance(one, str) else one


_FUSED = ("Phi3Attention", "Phi4MultimodalAttention")
"""Classes whose ``qkv_proj`` has first all rows of queries, then all rows of keys, then all rows of values."""
_SHARING = {
    "FalconAttention": "query_key_value",
    "FalconFlashAttention2": "query_key_value",
    "GPTBigCodeAttention": "c_attn",
}
"""Maps classes with optional multi-query attention to the name of their layer with queries, keys and values."""
_PLAIN = (bool, int, float, str)


def _summary(buffer: Any) -> object:
    """Return a short value to compare in place of a buffer's values: its only value, or its shape and a sum.

    The sum is weighted by position. The summary of a buffer on the meta device is its shape alone.
    """
    if buffer is None or buffer.is_meta:
        return None if buffer is None else tuple(buffer.shape)
    values = buffer.double()
    if values.numel() == 1:
        return float(values)
    weights = values.new_tensor(range(1, values.numel() + 1)).sqrt().reshape(values.shape)
    return (*buffer.shape, float((values.nan_to_num() * weights).sum()))


def _fused_kind(name: str, parent: Any) -> str:
    """Return the kind of a linear layer that computes queries, keys and values together; "" for any other layer.

    ``name`` is the name of the layer in the attention module ``parent``.
    """
    owner = type(parent).__name__
    if name == "qkv_proj" and owner in _FUSED:
        return QUERIES_KEYS_VALUES
    if _SHARING.get(owner) != name:
        return ""
    if getattr(parent, "new_decoder_architecture", False):  # of Falcon
        return OF_EACH_GROUP
    if parent.multi_query:
        return QUERIES_KEYS_VALUES
    return OF_EACH_GROUP if name == "c_attn" else ""  # then Falcon's rows have the order of GPT-NeoX


def _kind(key: str, modules: dict[str, Any]) -> str:
    from torch import nn

    path = key.partition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]
    module, name = modules.get(path), ""
    if module is None:
        return "other"
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        parent, _, last = path.rpartition(".")
        return _fused_kind(last, modules[parent]) or "linear"
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
