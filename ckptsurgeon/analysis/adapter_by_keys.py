"""The kind, rank and modules of an adapter without an adapter_config.json, as its keys and shapes show them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..tensors.info import TensorInfo
from .adapter_settings import AdapterSettings, adapter_settings

__all__ = ["adapter_by_keys"]

FACTORS = (
    (r"lora_(?:embedding_)?A(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?", "LORA", 0),
    (r"(?:lora\.|lora_|lora_linear_layer\.)down\.weight", "LORA", 0),
    (r"lora_a", "LORA", -1),
    (r"hada_w1_a", "LOHA", -1),
    (r"lokr_w2_a", "LOKR", -1),
    (r"lokr_w[12]|lokr_w1_a", "LOKR", None),
    (r"oft_(?:embedding_)?R(?:\.[^.]+)?|oft_(?:blocks|diag|r)", "OFT", None),
    (r"boft_R(?:\.[^.]+)?", "BOFT", None),
    (r"ia3_l(?:\.[^.]+)?", "IA3", None),
    (r"vera_lambda_b(?:\.[^.]+)?", "VERA", None),
)  # fmt: skip
"""For each kind, the end of the key of a tensor that each module has, and the axis of its rank (None without one)."""
MODULES = tuple((re.compile(rf"(.+?)(?:\.processor)?[._](?:{end})"), kind, axis) for end, kind, axis in FACTORS)
PARTS = re.compile(r"\.alpha$|dora_scale|magnitude|lora_|\.lora\.|_lora\.|hada_|lokr_|oft_|ia3_|vera_")
"""Matches the keys of an adapter; other keys are tensors that it saves in full."""
JOINED = re.compile(r"(?:lora_[A-Za-z0-9]+|lycoris)_[^.]+")
"""Matches the names of kohya's modules, whose names in the network cannot be told from them."""
ALPHA, BASES = "ss_network_alpha", ("ss_base_model_version", "ss_sd_model_name")
"""Entries of the metadata in which kohya's scripts record the alpha and the base of an adapter."""


def adapter_by_keys(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> AdapterSettings | None:
    """Return the settings that the keys and shapes of an adapter show; None if most tensors are not of an adapter.

    A model whose layers still have their adapters (``base_layer``) is not an adapter. Alpha and base are those of the
    ``metadata`` of kohya's scripts.
    """
    parts = [key for key in tensors if PARTS.search(key)]
    if 2 * len(parts) <= len(tensors) or any(".base_layer." in key for key in tensors):
        return None
    ranks, kinds = dict[str, int | None](), Counter[str]()
    for key in parts:
        found = _module(key)
        if found is None:
            continue
        module, kind, axis = found
        shape = tensors[key].shape
        kinds[kind] += module not in ranks
        ranks[module] = ranks.get(module) or (shape[axis] if axis is not None and len(shape) > 1 else None)
    return _settings(kinds.most_common(1)[0][0], ranks, parts, metadata) if ranks else None


def _module(key: str) -> tuple[str, str, int | None] | None:
    """Return the module of an adapter's tensor, the kind of the adapter and the axis of the rank, if it has one."""
    found = ((pattern.fullmatch(key), kind, axis) for pattern, kind, axis in MODULES)
    return next(((match[1], kind, axis) for match, kind, axis in found if match is not None), None)


def _settings(
    kind: str, ranks: Mapping[str, int | None], parts: list[str], metadata: Mapping[str, str]
) -> AdapterSettings | None:
    rank = next((one for one, _ in Counter(filter(None, ranks.values())).most_common()), None)
    said = {
        "peft_type": kind,
        "r": rank,
        "lora_alpha": _recorded_alpha(metadata),
        "rank_pattern": {module: one for module, one in ranks.items() if one not in (rank, None)},
        "base_model_name_or_path": next((metadata[name] for name in BASES if metadata.get(name)), None),
        "target_modules": list(dict.fromkeys(_target(module) for module in ranks if not JOINED.fullmatch(module))),
        "use_dora": any("dora_scale" in key or "lora_magnitude_vector" in key for key in parts),
    }
    found = adapter_settings(said)  # limits the length of what the file contains
    return found and replace(found, modules=len(ranks))


def _target(module: str) -> str:
    """Return the end of a module's name that target_modules would have: ``q_proj``, or ``to_out.0``."""
    head, _, last = module.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdecimal() and head else last


def _recorded_alpha(metadata: Mapping[str, str]) -> float | None:
    try:
        return float(metadata.get(ALPHA, ""))
    except ValueError:
        return None
