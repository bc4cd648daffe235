"""Finds the kind, rank and modules of an adapter that has no adapter_config.json, from its keys and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..tensors.info import TensorInfo
from .adapter_settings import AdapterSettings, adapter_settings

__all__ = ["adapter_by_keys"]

FACTORS = (
    (r"lora_(?:embedding_)?A(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?", "LORA"),
    (r"(?:lora\.|lora_|lora_linear_layer\.)down\.weight", "LORA"),
    (r"lora_a", "LORA"),
    (r"hada_w1_a", "LOHA"),
    (r"lokr_w[12]|lokr_w[12]_a", "LOKR"),
    (r"oft_(?:embedding_)?R(?:\.[^.]+)?|oft_(?:blocks|diag|r)", "OFT"),
    (r"boft_R(?:\.[^.]+)?", "BOFT"),
    (r"ia3_l(?:\.[^.]+)?", "IA3"),
    (r"vera_lambda_b(?:\.[^.]+)?", "VERA"),
    (r"a1\.weight", "GLORA"),
    (r"diff|set_weight|w_norm", "FULL"),
)
"""For each kind, the end of the key of a tensor that each module has. All ends in ``methods/lora/names.py`` are here.

The kinds are PEFT's names, and LyCORIS' names for those that PEFT does not have.
"""
MODULES = tuple((re.compile(rf"(.+?)(?:\.processor)?[._](?:{end})"), kind) for end, kind in FACTORS)
PARTS = re.compile(
    r"\.alpha$|dora_scale|magnitude|lora_|\.lora\.|_lora\.|hada_|lokr_|oft_|ia3_|vera_|"
    r"\.(?:diff|diff_b|set_weight|[wb]_norm)$|^(?:lora_[A-Za-z0-9]+|lycoris)_[^.]+\.(?:[ab][12]|bm)\.weight$"
)
"""Matches the keys of an adapter; other keys are tensors that it saves in full.

Other networks have layers with GLoRA's short names, so these keys count only in modules with LyCORIS' names.
"""
SIDES = (
    ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"), ("lora_a", "lora_b"), ("hada_w1_a", "hada_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"), ("down", "up"),
)  # fmt: skip
"""The names of the two factors whose product has the rank; ``down`` is last, because modules may have this name."""
TRANSPOSED = re.compile(r"[._](?:lora_a|hada_w1_a|lokr_w2_a)$")
"""Matches the first factors whose last dimension is the rank, (in, rank) or (out, rank); of others it is the first."""
CORES = (("hada_w1_a", "hada_t1"), ("lokr_w2_a", "lokr_t2"))
"""(factor, core of a Tucker decomposition): beside a core, both factors have the rank first."""
STACKED = re.compile(r"(?:^|\.)experts(?:\.base_layer)*$|\.block_sparse_moe\.(?:input|output)_linear$")
"""Matches modules whose experts are one tensor: PEFT stacks the factors of all, so no shape shows the rank of one."""
JOINED = re.compile(r"(?:lora_[A-Za-z0-9]+|lycoris)_[^.]+")
"""Matches the names of kohya's modules, whose names in the network cannot be told from them."""
ALPHA, BASES = "ss_network_alpha", ("ss_base_model_version", "ss_sd_model_name")
"""Entries of the metadata in which kohya's scripts record the alpha and the base of an adapter."""


def adapter_by_keys(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> AdapterSettings | None:
    """Return an adapter's settings, as far as keys and shapes show them; None if most tensors are not of an adapter.

    The result is also None for a whole model in which adapters are inserted (keys with ``base_layer``). Alpha and the
    base model are read from the ``metadata`` if kohya's scripts have written it.
    """
    parts = [key for key in tensors if PARTS.search(key)]
    is_model = any(".base_layer." in key and not PARTS.search(key) for key in tensors)
    if 2 * len(parts) <= len(tensors) or is_model:
        return None
    ranks, kinds = dict[str, int | None](), Counter[str]()
    for key in parts:
        found = _module(key)
        if found is None:
            continue
        module, kind = found
        kinds[kind] += module not in ranks
        ranks[module] = ranks.get(module) or (None if STACKED.search(module) else _rank(key, tensors))
    return _settings(kinds.most_common(1)[0][0], ranks, parts, metadata) if ranks else None


def _module(key: str) -> tuple[str, str] | None:
    """Return (module, kind of adapter) for a key such as ``a.q_proj.lora_A.weight``; None if it is another key."""
    found = ((pattern.fullmatch(key), kind) for pattern, kind in MODULES)
    return next(((match[1], kind) for match, kind in found if match is not None), None)


def _rank(key: str, tensors: Mapping[str, TensorInfo]) -> int | None:
    """Return the rank of a factor from its shape; None if ``key`` is not a factor, or the other factor's rank differs.

    The ranks of A and B differ in litgpt: queries, keys and values share one factor A, which has a rank for each of
    them.
    """
    first, second = next((pair for pair in SIDES if re.search(rf"[._]{pair[0]}(?=\.|$)", key)), ("", ""))
    shape = tensors[key].shape
    if not first or len(shape) < 2:
        return None
    head, _, tail = key.rpartition(first)
    other = tensors.get(f"{head}{second}{tail}")
    if any(first == factor and f"{head}{core}" in tensors for factor, core in CORES):
        axis, partner = 0, 0
    elif first == "lora_a" and len(shape) == 3:  # mlx-lm: (experts, rank, in) and (experts, out, rank)
        axis, partner = 1, 2
    else:
        axis, partner = (1, 0) if TRANSPOSED.search(key) else (0, 1)
    return shape[axis] if other is None or other.shape[partner : partner + 1] == (shape[axis],) else None


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
    """Return the entry of target_modules that selects a module: ``layers.0.q_proj`` -> ``q_proj``, ``to_out.0``."""
    head, _, last = module.removesuffix(".base_layer").rpartition(".")  # PEFT wraps a module once for each parameter
    return f"{head.rpartition('.')[2]}.{last}" if last.isdecimal() and head else last


def _recorded_alpha(metadata: Mapping[str, str]) -> float | None:
    try:
        return float(metadata.get(ALPHA, ""))
    except ValueError:
        return None
