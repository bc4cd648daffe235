"""Derives lists such as ``layer_types``, with an entry for each layer, as transformers does if config.json lacks them.

Source: ``configuration_*.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

__all__ = ["ENDS_IN_FULL", "FULL", "LINEAR", "PERIODS", "RULES", "SLIDING", "Derive", "Fields", "positive"]

Fields = Mapping[str, Any]
Derive = Callable[[Fields, int], list[Any]]
"""A function (configuration, number of layers) that returns the entry of each layer."""

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
INDEXED, CONV, WINDOW = "indexed_attention", "conv", "window_attention"


def positive(config: Fields, *names: str, usual: int) -> int:
    """Return the value of the first field in ``names`` that is set.

    Returns ``usual`` if none is set, or if the value is not an integer above 0.
    """
    value = next((config[name] for name in names if config.get(name) is not None), usual)
    return value if type(value) is int and value > 0 else usual


def _last(usual: int, field: str = "", *, rare: str = FULL, common: str = SLIDING, at_end: bool = False) -> Derive:
    """Return a rule by which the last layer of each period is of the kind ``rare``, and the others are ``common``.

    ``usual`` is the period, unless the field ``field`` sets another one. With ``at_end``, the last layer of the model
    is of the kind ``rare`` too.
    """

    def derive(config: Fields, number: int) -> list[Any]:
        period = positive(config, *([field] if field else []), usual=usual)
        return [common if (one + 1) % period and not (at_end and one == number - 1) else rare for one in range(number)]

    return derive


def _first(usual: int, field: str = "") -> Derive:
    """Return a rule by which the first layer of each period has full attention, and the others a sliding window.

    ``usual`` is the period, unless the field ``field`` sets another one.
    """

    def derive(config: Fields, number: int) -> list[Any]:
        period = positive(config, *([field] if field else []), usual=usual)
        return [SLIDING if one % period else FULL for one in range(number)]

    return derive


def _where(is_rare: Callable[[int, int], bool], rare: str = FULL, common: str = SLIDING) -> Derive:
    """Return a rule by which a layer is ``rare`` if ``is_rare(index, number of layers)`` is true, else ``common``."""
    return lambda _, number: [rare if is_rare(one, number) else common for one in range(number)]


def _windowed(first: int = 28, *, switched: bool = True, window: int | None = 4096) -> Derive:
    """Return a rule for models whose layers have a sliding window if their index is at least ``max_window_layers``.

    ``first`` is the default of this field, ``window`` that of ``sliding_window``. If ``switched`` is true, layers have
    a window only if ``use_sliding_window`` is true.
    """

    def derive(config: Fields, number: int) -> list[Any]:
        is_on = bool(config.get("use_sliding_window")) or not switched
        begin = positive(config, "max_window_layers", usual=first) if config.get("max_window_layers") != 0 else 0
        is_on = is_on and config.get("sliding_window", window) is not None
        return [SLIDING if is_on and one >= begin else FULL for one in range(number)]

    return derive


def _qwen2_moe(config: Fields, number: int) -> list[Any]:
    most = config.get("max_window_layers", 28) if config.get("use_sliding_window") else 0
    return [SLIDING if one % 2 == 0 and one < most else FULL for one in range(number)]


PERIODS: Mapping[str, tuple[int, str]] = {
    **dict.fromkeys(("gemma2", "gpt_oss", "t5_gemma_module", "vaultgemma"), (2, "")),
    "ultrabert": (3, ""),
    "cohere2": (4, "sliding_window_pattern"),
    "afmoe": (4, "global_attn_every_n_layers"),
    **dict.fromkeys(("exaone4", "exaone_moe"), (4, "sliding_window_pattern")),
    "olmo3": (4, ""),
    **dict.fromkeys(("gemma3n_text", "kolibri1"), (5, "")),
    **dict.fromkeys(("gemma3_text", "t5gemma2_decoder", "t5gemma2_text"), (6, "sliding_window_pattern")),
}  # fmt: skip
"""{model type: (default period, field that overrides it)}, if the last layer of each period has full attention.

The other layers have a sliding window.
"""


def _exaone(config: Fields, number: int) -> list[Any]:
    if config.get("sliding_window", 4096) is None or not config.get("sliding_window_pattern", 4):
        return [FULL] * number
    return _last(*PERIODS["exaone4"])(config, number)


def _cohere2_moe(config: Fields, number: int) -> list[Any]:
    first = min(positive(config, "first_k_dense_replace", usual=0), number)
    dense = _last(1, "prefix_dense_sliding_window_pattern")(config, first)
    return [*dense, *_last(4, "sliding_window_pattern")(config, number - first)]


def _of_rotation(config: Fields, number: int) -> list[bool]:
    """Return, for each of ``number`` layers of Llama 4 or SmolLM3, whether it has rotary embeddings."""
    given, step = config.get("no_rope_layers"), positive(config, "no_rope_layer_interval", usual=4)
    return [bool(one) for one in given][:number] if given else [(one + 1) % step != 0 for one in range(number)]


def _llama4(config: Fields, number: int) -> list[Any]:
    return ["chunked_attention" if one else FULL for one in _of_rotation(config, number)]


def _smollm3(config: Fields, number: int) -> list[Any]:
    slides = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    return [SLIDING if slides and not one else FULL for one in _of_rotation(config, number)]


def _dots3(config: Fields, number: int) -> list[Any]:
    full = FULL if config.get("use_dsa") is False else INDEXED
    slides = config.get("use_sliding_window", True)
    return [SLIDING if slides and one > 1 and one % 4 != 1 else full for one in range(number)]


def _lfm2(config: Fields, number: int) -> list[Any]:
    full = config.get("full_attn_idxs")
    return [FULL if full is None or one in full else CONV for one in range(number)]


def _lfm3(_: Fields, number: int) -> list[Any]:
    return [FULL if one % 4 == 2 else SLIDING if one % 4 == 0 and one else CONV for one in range(number)]


def _inkling(config: Fields, number: int) -> list[Any]:
    local = config.get("local_layer_ids")
    sliding = [(one + 1) % 6 != 0 if local is None else one in local for one in range(number)]
    return ["hybrid_sliding" if one else "hybrid" for one in sliding]


def _kimi(config: Fields, number: int) -> list[Any]:
    given = config.get("linear_attn_config")
    full = given.get("full_attn_layers") if isinstance(given, Mapping) else None
    if isinstance(given, Mapping) and isinstance(full, list):
        if max((*full, *given.get("kda_layers", ()))) > number:
            raise IndexError  # the class raises an error for these values, too
        return [FULL if one + 1 in full else LINEAR for one in range(number)]
    return [FULL if one and one % 4 == 0 else LINEAR for one in range(number)]


def _olmo_hybrid(_: Fields, number: int) -> list[Any]:
    return [FULL if one % 4 == 3 or (number < 4 and one == number - 1) else LINEAR for one in range(number)]


def _deepseek_v4(_: Fields, number: int) -> list[Any]:
    kinds = ("heavily_compressed_attention", "compressed_sparse_attention")
    return [kinds[one % 2 if one > 1 else 0] for one in range(number)]


def _minimax_m3(config: Fields, number: int) -> list[Any]:
    given = config.get("sparse_attention_config")
    sparse = given.get("sparse_attention_freq") if isinstance(given, Mapping) else None
    return ["minimax_m3_sparse" if one else FULL for one in sparse] if sparse else [FULL] * number


def _zamba(config: Fields, number: int) -> list[Any]:
    period, offset = positive(config, "attn_layer_period", usual=6), config.get("attn_layer_offset", 4)
    later = ["hybrid" if one % period == offset else "mamba" for one in range(number - 3)]
    return ["mamba", "mamba", "hybrid", *later][:number]


_INTERVAL = _last(4, "full_attention_interval", common=LINEAR)
_LAYER_TYPES: Mapping[str, Derive] = {
    **{kind: _last(*period) for kind, period in PERIODS.items()},
    **dict.fromkeys(("beam", "diffusion_gemma_text", "gemma4_text", "gemma4_unified_text", "neomme"),
                    _last(6, at_end=True)),
    "embedding_gemma2_text": _last(6, "sliding_window_pattern", at_end=True),
    **dict.fromkeys(("muse_glimmer_vision", "muse_spark_vision"), _last(4, common=WINDOW, at_end=True)),
    "bailing_hybrid": _last(6, "layer_group_size", common=LINEAR),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), _INTERVAL),
    "qwen4_exp_text": _last(4, "full_attention_interval", rare=INDEXED, common=LINEAR),
    "glm5_next_text": _last(4, rare=INDEXED, common=LINEAR),
    "minimax": _last(2, rare=LINEAR, common=FULL),
    "inkling2_text": _last(6, rare="hybrid", common="hybrid_sliding"),
    **dict.fromkeys(("cwm", "granite_swa", "granitemoe_swa"), _first(4)),
    **dict.fromkeys(("modernbert", "modernbert-decoder"), _first(3, "global_attn_every_n_layers")),
    **dict.fromkeys(("muse_glimmer_text", "muse_spark_text"), _where(lambda one, number: (number - 1 - one) % 4 == 0)),
    "flint": _where(lambda one, number: one < 2 or one % 4 == 1 or one == number - 1),
    "mimo_v2_flash": _where(lambda one, _: one == 0 or (one + 1) % 6 == 0),
    "lfm3_vl_vision": _where(lambda one, _: one < 2 or one % 2 == 1, CONV, FULL),
    **dict.fromkeys(("deepseek_ocr2_encoder", "qwen2", "qwen2_5_omni_talker", "qwen2_5_omni_text", "qwen3"),
                    _windowed()),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_vl_text", "qwen2_vl", "qwen2_vl_text"), _windowed(80)),
    "dots1": _windowed(62, switched=False),
    "qwen3_omni_moe_talker_code_predictor": _windowed(switched=False, window=None),
    "qwen2_moe": _qwen2_moe,
    **dict.fromkeys(("exaone4", "exaone_moe"), _exaone),
    "cohere2_moe": _cohere2_moe,
    "llama4_text": _llama4,
    "smollm3": _smollm3,
    "dots3_note_text": _dots3,
    "lfm2": _lfm2,
    "lfm3": _lfm3,
    "inkling_text": _inkling,
    "kimi_linear": _kimi,
    "olmo_hybrid": _olmo_hybrid,
    "deepseek_v4": _deepseek_v4,
    "minimax_m3_vl_text": _minimax_m3,
}  # fmt: skip
"""{model type: rule by which its class derives ``layer_types``}"""

ENDS_IN_FULL = ("diffusion_gemma_text", "embedding_gemma2_text", "gemma4_text", "gemma4_unified_text")
"""Model types whose last layer always has full attention, even if ``layer_types`` says otherwise."""


def _dense(usual: int, field: str = "first_k_dense_replace", first: str = "dense", rest: str = "sparse") -> Derive:
    """Return a rule by which the first layers have no experts. The field ``field`` has the number of these layers.

    ``usual`` is the default of this field. ``first`` and ``rest`` are the entries for the first layers and the others.
    """

    def derive(config: Fields, number: int) -> list[Any]:
        dense = config.get(field, usual)
        return [first if one < dense else rest for one in range(number)]

    return derive


def _stepped(usual: int) -> Derive:
    """Return a rule by which ``first_k_dense_replace`` and ``moe_layer_freq`` determine the layers with experts.

    The first ``first_k_dense_replace`` layers have no experts; ``usual`` is the default of this field. Of the other
    layers, some have experts. If ``moe_layer_freq`` is a number, these are the layers whose index is a multiple of it.
    If it is a list with an entry for each layer, they are the layers whose entry is not 0.
    """

    def derive(config: Fields, number: int) -> list[Any]:
        step, dense = config.get("moe_layer_freq"), config.get("first_k_dense_replace", usual)
        has = step if isinstance(step, list) else [one % (step or 1) == 0 for one in range(number)]
        return ["sparse" if one >= dense and has[one] else "dense" for one in range(number)]

    return derive


def _step3(config: Fields, number: int) -> list[Any]:
    given = config.get("moe_layers_enum")
    items = given.split(",") if isinstance(given, str) else given
    sparse = range(3, number) if items is None else {int(one) for one in items if str(one).strip()}
    return ["sparse" if one in sparse else "dense" for one in range(number)]


_MLP_TYPES: Mapping[str, Derive] = {
    "cohere2_moe": _dense(0),
    **dict.fromkeys(("axk1", "axk2", "dots3_note_text"), _stepped(1)),
    "minimax_m3_vl_text": _stepped(0),
    **dict.fromkeys(("exaone_moe", "kimi_linear", "mistral_large4_text", "unlimited_ocr_text"), _dense(1)),
    **dict.fromkeys(("ernie4_5_vl_moe_text", "glm4_moe_lite", "hy_v3", "hy_v4", "laguna", "mimo_v2_flash"),
                    _dense(1, field="")),
    "bailing_hybrid": _dense(2),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _dense(3)),
    **dict.fromkeys(("beam", "glm5_next_text"), _dense(3, field="")),
    "deepseek_v4": _dense(3, "num_hash_layers", "hash_moe", "moe"),
    "inkling_text": _dense(0, "dense_mlp_idx"),
    "step3p5": _step3,
}  # fmt: skip
"""{model type: rule by which its class derives ``mlp_layer_types``, that is, which layers have experts}"""


def _unrotated(config: Fields, number: int) -> list[int]:
    step = positive(config, "no_rope_layer_interval", usual=4)
    return [int((one + 1) % step != 0) for one in range(number)]


def _indexers(config: Fields, number: int) -> list[str]:
    pattern = config.get("index_topk_pattern")
    if pattern is not None:
        return [{"F": "full", "S": "shared"}.get(one, one) for one in pattern][:number]
    step, offset = positive(config, "index_topk_freq", usual=1), config.get("index_skip_topk_offset", 2)
    return ["shared" if max(one - offset + 1, 0) % step else "full" for one in range(number)]


def _muse_bases(usual: float, config: Fields, number: int) -> list[float]:
    given = config.get("rope_parameters") or {}
    base = given.get("rope_theta", config.get("rope_theta", usual)) or usual
    return [base if (number - 1 - one) % 4 else 0 for one in range(number)]


RULES: Mapping[str, Mapping[str, Derive]] = {
    "no_rope_layers": dict.fromkeys(("llama4_text", "mistral_large4_text", "smollm3"), _unrotated),
    "layer_types": _LAYER_TYPES,
    "layers_block_type": {"zamba": _zamba},
    "mlp_layer_types": _MLP_TYPES,
    "indexer_types": {
        **dict.fromkeys(("glm5_next_text", "glm_moe_dsa", "mistral_large4_text"), _indexers),
        "hy_v4": lambda _, number: ["shared" if one and (one - 1) % 4 else "full" for one in range(number)],
    },
    "layer_rope_theta": {
        "muse_glimmer_text": partial(_muse_bases, 10000.0), "muse_spark_text": partial(_muse_bases, 500000.0),
    },
    "activation_sparsity_pattern": {
        "gemma3n_text": lambda _, number: [0.95 if number > 10 and one < 10 else 0.0 for one in range(number)],
    },
}  # fmt: skip
"""{field: {model type: rule}} for fields with an entry for each layer that classes derive if config.json lacks them.

``no_rope_layers`` comes first, because in llama4 and SmolLM3 ``layer_types`` is derived from it.
"""
