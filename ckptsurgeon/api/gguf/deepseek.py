"""DeepSeek V2, DeepSeek V3 and Kimi K2 in llama.cpp's layout: their sizes, and the metadata that describe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import PlanError
from ...planning.llama_cpp.deepseek import DeepseekSizes
from ...planning.llama_cpp.names import DEEPSEEK
from ...util.text import brief_repr, escape
from .configuration import common_entries, entries_of
from .fields import check_only, number_in
from .rope import rope_entries

__all__ = ["DEFAULTS", "deepseek_entries", "groups_note", "sizes_in_config", "sizes_in_metadata"]

V2 = "deepseek_v2"
SOFTMAX, SIGMOID = 1, 2
"""llama.cpp's numbers for the functions that turn the router's outputs into scores of experts."""
GREEDY, OF_GROUPS, WITH_BIAS = "greedy", "group_limited_greedy", "noaux_tc"
DEFAULTS: Mapping[str, tuple[int, int]] = {
    "vocab_size": (102400, 129280), "first_k_dense_replace": (0, 3), "kv_lora_rank": (512, 512),
    "q_lora_rank": (1536, 1536), "qk_nope_head_dim": (128, 128), "qk_rope_head_dim": (64, 64),
    "v_head_dim": (128, 128), "n_routed_experts": (64, 256), "moe_intermediate_size": (1407, 2048),
    "n_shared_experts": (2, 1), "num_experts_per_tok": (0, 8),
}  # fmt: skip
"""transformers' defaults for fields that config.json lacks: the first for V2, the second for V3 and Kimi K2."""
_MAY_BE_ZERO = ("first_k_dense_replace", "q_lora_rank")


def sizes_in_config(config: Mapping[str, Any]) -> DeepseekSizes:
    """Return the sizes in config.json; raises PlanError for a field without a valid number."""
    return DeepseekSizes(
        layers=_number(config, "num_hidden_layers"),
        dense=_number(config, "first_k_dense_replace"),
        vocabulary=_number(config, "vocab_size"),
        width=_number(config, "hidden_size"),
        inner=_number(config, "intermediate_size"),
        heads=_number(config, "num_attention_heads"),
        query_rank=_number(config, "q_lora_rank") if config.get("q_lora_rank", 1) is not None else 0,
        rank=_number(config, "kv_lora_rank"),
        plain=_number(config, "qk_nope_head_dim"),
        rotary=_number(config, "qk_rope_head_dim"),
        value=_number(config, "v_head_dim"),
        experts=_number(config, "n_routed_experts"),
        expert_inner=_number(config, "moe_intermediate_size"),
        shared=_number(config, "n_shared_experts"),
    )


def _number(config: Mapping[str, Any], name: str) -> int:
    default = DEFAULTS[name][config.get("model_type") != V2] if name in DEFAULTS else None
    value = config.get(name, default)
    if type(value) is not int or not (name not in _MAY_BE_ZERO) <= value < 1 << 24:
        what = "a number" if name in _MAY_BE_ZERO else "a number above 0"
        raise PlanError(
            f"config.json gives {name} as {brief_repr(value, 40)}, but llama.cpp needs {what}.",
            hint="Correct config.json, or convert without changing the layout: --layout keep.",
        )
    return value


def deepseek_entries(config: Mapping[str, Any], sizes: DeepseekSizes) -> dict[str, str]:
    """Return the metadata entries for a DeepSeek model, with their values as strings.

    The entries describe attention as llama.cpp computes it: from the latent vector, which all heads share
    (``head_count_kv`` 1). The sizes of a head are in the entries that end with ``_mla``. Raises PlanError for fields
    whose values llama.cpp does not support.
    """
    _check(config, sizes)
    found = common_entries(config, sizes.layers) | {
        "vocab_size": str(sizes.vocabulary),
        "attention.head_count_kv": "1",
        "attention.key_length": str(sizes.rank + sizes.rotary),
        "attention.value_length": str(sizes.rank),
        "attention.key_length_mla": str(sizes.plain + sizes.rotary),
        "attention.value_length_mla": str(sizes.value),
        "attention.kv_lora_rank": str(sizes.rank),
        "rope.dimension_count": str(sizes.rotary),
        **({"attention.q_lora_rank": str(sizes.query_rank)} if sizes.query_rank else {}),
        **dict(rope_entries(config, of_deepseek=True)),
    }
    return entries_of(DEEPSEEK, found | _of_experts(config, sizes))


def _of_experts(config: Mapping[str, Any], sizes: DeepseekSizes) -> dict[str, str]:
    """Return the entries for the experts and for how the router chooses them; raises PlanError for invalid numbers."""
    is_v2 = config.get("model_type") == V2
    used = _number(config, "num_experts_per_tok")
    if used > sizes.experts:
        raise PlanError(
            f"config.json gives num_experts_per_tok as {used}, but there are only {sizes.experts} experts.",
            hint="Correct config.json.",
        )
    found = {
        "leading_dense_block_count": str(min(sizes.dense, sizes.layers)),
        "expert_feed_forward_length": str(sizes.expert_inner),
        "expert_count": str(sizes.experts),
        "expert_used_count": str(used),
        "expert_shared_count": str(sizes.shared),
        "expert_weights_scale": str(number_in(config, "routed_scaling_factor", 1.0 if is_v2 else 2.5)),
        "expert_gating_func": str(SOFTMAX if is_v2 else SIGMOID),
    }
    if config.get("norm_topk_prob", not is_v2):
        found["expert_weights_norm"] = "true"
    return found | _groups(config, sizes.experts)


def _groups(config: Mapping[str, Any], experts: int) -> dict[str, str]:
    """Return the entries for groups of experts; {} if the router does not choose groups first.

    Raises PlanError for invalid numbers of groups.
    """
    is_v2 = config.get("model_type") == V2
    groups, chosen = (config.get(name, None if is_v2 else 8 // n) for n, name in ((1, "n_group"), (2, "topk_group")))
    if groups is None or chosen is None or (is_v2 and not _is_of_groups(config) and groups != 1):
        return {}
    if type(groups) is not int or type(chosen) is not int or not 0 < chosen <= groups or experts % groups:
        raise PlanError(
            f"config.json gives n_group as {brief_repr(groups, 40)} and topk_group as {brief_repr(chosen, 40)}, but "
            f"n_group must divide the number of experts, {experts}, and topk_group must be from 1 to n_group.",
            hint="Correct config.json.",
        )
    return {"expert_group_count": str(groups), "expert_group_used_count": str(chosen)}


def _is_of_groups(config: Mapping[str, Any]) -> bool:
    return config.get("topk_method") == OF_GROUPS


def _check(config: Mapping[str, Any], sizes: DeepseekSizes) -> None:
    """Raise PlanError for a field with a value that llama.cpp's implementation of DeepSeek does not support."""
    is_v2 = config.get("model_type") == V2
    check_only(config, "scoring_func", "softmax" if is_v2 else "sigmoid")
    check_only(config, "topk_method", *((GREEDY, OF_GROUPS) if is_v2 else (WITH_BIAS,)))
    check_only(config, "num_key_value_heads", sizes.heads)
    check_only(config, "moe_layer_freq", 1)
    check_only(config, "rope_interleave", True)
    for name in ("attention_bias", "mlp_bias"):
        check_only(config, name, False)


def groups_note(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note if llama.cpp chooses groups of experts by another rule than the model; else ()."""
    if config.get("model_type") != V2 or not _is_of_groups(config) or config.get("n_group") in (None, 1):
        return ()
    return (
        "the model chooses the groups of experts with the highest score, but llama.cpp chooses the groups whose two "
        "highest scores have the highest sum: generated texts may differ a little",
    )


_CORRECT = (
    "Write a corrected file, and convert that: ckpt convert FILE.gguf "
    f"--set-metadata {DEEPSEEK}.{{}}=NUMBER -o NEW.gguf."
)


def sizes_in_metadata(stored: Mapping[str, str], vocabulary: int) -> DeepseekSizes:
    """Return the sizes in the metadata of a GGUF file; raises PlanError if one is missing or not valid.

    ``vocabulary`` is the number of tokens. Files from before April 2025 have the sizes of a head in entries without
    ``_mla``.
    """
    key = _entry(stored, "attention.key_length_mla", "attention.key_length")
    rotary = _entry(stored, "rope.dimension_count")
    if key <= rotary:
        raise PlanError(
            f"rope.dimension_count in the metadata is {rotary}, but it must be less than the length of an attention "
            f"key, {key} (attention.key_length_mla, or attention.key_length).",
            hint=_CORRECT.format("rope.dimension_count"),
        )
    return DeepseekSizes(
        layers=_entry(stored, "block_count"),
        dense=_entry(stored, "leading_dense_block_count", default=0),
        vocabulary=vocabulary,
        width=_entry(stored, "embedding_length"),
        inner=_entry(stored, "feed_forward_length"),
        heads=_entry(stored, "attention.head_count"),
        query_rank=_entry(stored, "attention.q_lora_rank", default=0),
        rank=_entry(stored, "attention.kv_lora_rank"),
        plain=key - rotary,
        rotary=rotary,
        value=_entry(stored, "attention.value_length_mla", "attention.value_length"),
        experts=_entry(stored, "expert_count"),
        expert_inner=_entry(stored, "expert_feed_forward_length"),
        shared=_entry(stored, "expert_shared_count"),
    )


def _entry(stored: Mapping[str, str], *names: str, default: int | None = None) -> int:
    """Return the number in the first of the entries ``names`` that the metadata has; ``default`` if it has none.

    Raises PlanError if it has none of them and there is no default, or if the entry is not a number above 0.
    """
    key = next((key for name in names if (key := f"{DEEPSEEK}.{name}") in stored), "")
    if not key and default is not None:
        return default
    if not key:
        raise PlanError(
            f"the metadata has no {' or '.join(f'{DEEPSEEK}.{name}' for name in names)}.",
            hint=_CORRECT.format(names[0]),
        )
    said = stored[key]
    if not (said.isascii() and said.isdigit() and len(said) < 9) or (int(said) == 0 and default is None):
        raise PlanError(
            f"{key} in the metadata is {escape(said, 40)}, but it must be a number"
            f"{' above 0' if default is None else ''}.",
            hint=_CORRECT.format(key.removeprefix(f"{DEEPSEEK}.")),
        )
    return int(said)
