"""Fields of config.json: their effects on results, their defaults, and the dtype, labels and modules in them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.files import PlanCompanion
from ...planning.transplant.by_place import is_of_labels
from ...tensors.dtypes import DTYPES
from ...tensors.quantised.modules import Modules
from ...tensors.quantised.renamed_modules import renamed_modules
from ...util.text import count, escape
from .config import cast_note, float_dtypes

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan
    from ...planning.target import TargetSpec

__all__ = [
    "IGNORED_PARTS",
    "base_of_rope",
    "is_derived",
    "is_ignored",
    "is_usual",
    "label_differences",
    "label_notes",
    "renamed_settings",
    "with_dtype_said",
    "with_left_out_said",
]

# Sets the dtype in the output's configuration to that of the planned weights.

_OF_MODELS = ("float32", "bfloat16", "float16", "float64")
"""Dtypes that a model can be created in, the default first."""


def with_dtype_said(plan: Plan, target: TargetSpec) -> Plan:
    """Return a plan whose config.json has the dtype of its weights, so that from_pretrained does not cast them.

    If the weights have several dtypes, or a dtype that no model can be created in, config.json is not changed and the
    plan gets a note.
    """
    config = next((one for one in plan.target.companions if one.name == "config.json" and one.text), None)
    floating = [step for step in plan.steps if DTYPES[step.dtype].kind == "float"]
    if config is None or all(step.dtype == target.tensors[step.key].dtype for step in floating):
        return plan
    fields = json.loads(config.text)
    declared = fields.get("dtype") or _OF_MODELS[0]
    planned = float_dtypes(plan, fields)
    if planned in ([], [declared]):
        return plan
    if len(planned) > 1 or planned[0] not in _OF_MODELS:
        return replace(plan, notes=(*plan.notes, cast_note(planned, fields)))
    text = json.dumps({**_renamed(fields, planned[0]), "dtype": planned[0]}, indent=2, sort_keys=True) + "\n"
    data = text.encode()
    changed = PlanCompanion(config.name, len(data), hashlib.sha256(data).hexdigest(), text=text)
    files = tuple(changed if one is config else one for one in plan.target.companions)
    return replace(plan, target=replace(plan.target, companions=files))


def _renamed(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration in which each field named "dtype" is set to ``dtype``, also in nested configurations."""
    changed = {key: _renamed(value, dtype) if isinstance(value, dict) else value for key, value in fields.items()}
    return {**changed, "dtype": dtype} if str(fields.get("dtype")) in DTYPES else changed


IGNORED_PARTS = frozenset((
    "auto_map", "compression_config", "generation_config", "id2label", "label2id", "pruned_heads",
    "quantization_config",
    "rope_parameters", "rope_scaling", "task_specific_params",
))  # fmt: skip
"""Fields with a dict whose entries ``config_differences`` does not compare one by one.

Such a dict is not the configuration of a nested model, or another function compares it.
"""
_NAMES = frozenset((
    # about the file, and about loading and running the model
    "architectures", "attn_impl", "attn_implementation", "dtype", "finetuning_task", "framework", "freeze",
    "gradient_checkpointing", "init_device", "is_encoder_decoder", "low_cpu_mem_usage", "name", "fast_qkv",
    "output_attentions", "output_hidden_states", "output_past", "output_router_logits", "output_scores",
    "pretraining_tp", "reorder_and_upcast_attn", "return_dict", "slow_but_exact", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache", "use_mambapy", "verbose",
    # about training, losses and initialisation
    "apply_spec_augment", "ctc_zero_infinity", "gradient_clipping", "input_jitter_noise", "init_std", "init_xavier_std",
    "initializer", "label_smoothing", "num_denoising", "num_negatives",
    "num_logits_to_keep", "time_step_max", "time_step_min", "train_num_points", "use_auxiliary_head",
    "rescale_prenorm_residual", "router_jitter_noise",
    # about generation
    "do_sample", "diversity_penalty", "early_stopping", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "prefix", "remove_invalid_values",
    "repetition_penalty", "temperature", "top_k", "top_p", "typical_p", "encoder_no_repeat_ngram_size",
    # sizes that follow from the shapes of the weights
    "decoder_layers", "depth", "depths", "d_ff", "d_inner", "d_model", "encoder_layers", "hidden_sizes", "in_channels",
    "in_chans", "intermediate_sizes", "n_ctx", "n_embd", "n_inner", "n_layer", "n_layers", "n_positions",
    "num_channels", "num_conv_pos_embeddings", "num_decoder_layers", "num_encoder_layers", "num_experts",
    "num_hidden_layers", "num_labels", "num_layers", "num_local_experts", "n_routed_experts", "n_shared_experts",
    "relative_attention_num_buckets", "tie_word_embeddings", "tie_encoder_decoder",
    "num_nextn_predict_layers", "seq_length", "max_seq_len", "max_sequence_length", "model_max_length",
    "context_length", "num_blocks", "num_codevector_groups", "num_codevectors_per_group", "num_filters", "num_queries",
    "num_query_tokens", "num_register_tokens", "first_k_dense_replace", "time_step_rank",
    # derived from other fields
    "dense_act_fn", "is_gated_act", "num_feat_extract_layers",
))  # fmt: skip
"""Names of fields that are not compared. The comments above say why."""
_WORDS = re.compile(
    r"(^|_)(dropout|drop|layerdrop|pdrop|loss|losses|coef|coefficient|cost|initializer|vocab|vocabulary|labels?)(_|$)"
    r"|^_|^freeze_|^mask_(time|feature|channel)_|^use_(flash|fused|kernel|memory_efficient|xformers)"
    r"|^(summary|finetuned|unsloth|init)_|_token$|_token_(id|ids|index)$|_(id|ids)$|^suppress_|^begin_suppress_"
    r"|_weight$|_init_value$|_momentum$|^(focal|matcher)_|(^|_)bias$|_lora_rank$|_channels?$|(^|_)kernel(_|$)"
    r"|^num_.*layers$"
    r"|_position_embeddings$|^max_.*positions?$|_seq_len(gth)?$|_version$"
)
"""Matches names of fields that are not compared.

These fields are about training, generation or tokenisers, contain sizes that the shapes of tensors show, or are limits.
"""
_SIZE = re.compile(r"_(size|sizes|dim|dims)$")
_NOT_SHAPES = re.compile(r"(^|_)(head|heads|rotary|rope|window|chunk|block|local|global|nope|group|attention)_")
"""Matches names of sizes that are not visible in shapes, for instance because one matrix contains all heads."""
_DERIVED = re.compile(
    r"(^|_)(head_dim|head_size|heads?_kv|kv_channels|d_head|key_value_heads|kv_heads|layer_types|hidden_activation)$"
    r"|^no_rope_layers?(_interval)?$|^problem_type$|^_?sliding_window_pattern$|^layers_block_type$|^num_kv_heads$"
)
"""Matches names of fields that a class derives from other fields if a configuration does not set them."""
_USUAL: dict[str, tuple[Any, ...]] = {
    "activation": ("gelu", "silu"), "activation_function": ("gelu", "gelu_pytorch_tanh"),
    "hidden_act": ("gelu", "silu"),
    "attn_type": ("bi",), "embedding_multiplier": (1,), "attention_multiplier": (1,), "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "feed_forward_proj": ("relu",), "layer_norm_eps": (1e-5, 1e-12), "layer_norm_epsilon": (1e-5, 1e-6),
    "layernorm_epsilon": (1e-5,), "moe_layer_freq": (1,), "norm_topk_prob": (True, False),
    "partial_rotary_factor": (1,), "parallel_attn": (True,), "residual_in_fp32": (True,),
    "position_embedding_type": ("absolute",), "relative_attention_max_distance": (128,), "rms_norm_eps": (1e-6,),
    "rope_interleave": (True,), "rope_local_base_freq": (10000,), "routed_scaling_factor": (1,),
    "scale_attn_weights": (True,), "scale_decoder_outputs": (True,), "sliding_window": (4096,),
    "swiglu_limit": (7,), "rope_theta": (10000,), "use_parallel_residual": (True, False),
    "do_layer_norm_before": (True,),
}  # fmt: skip
"""Default values of fields, which may depend on the class; the default of any other field is 0, false or null."""
_BASES = {
    "mixtral": 1e6, "qwen2_vl": 1e6, "qwen2_5_vl": 1e6, "phimoe": 1e6, "lfm2": 1e6, "minimax": 1e6, "smollm3": 2e6,
    "cohere": 5e5, "llama4_text": 5e5, "mllama_text_model": 5e5, "bitnet": 5e5, "flex_olmo": 5e5, "olmo3": 5e5,
    "csm": 5e5, "ernie4_5": 5e5, "ernie4_5_moe": 5e5, "gpt_oss": 150000, "helium": 1e5, "apertus": 12e6,
    "longcat_flash": 1e7, "nomic_bert": 1000, "modernbert": 160000, "cwm": 1e6, "gemma3_text": 1e6, "gemma3": 1e6,
}  # fmt: skip
"""Default ``rope_theta`` of the model types whose default is not 10000."""
_ACTIVATIONS = {
    kind: activation
    for activation, kinds in {
        "relu": ("fsmt", "m2m_100", "mobilebert", "nllb-moe", "opt", "seamless_m4t", "speech_to_text"),
        "gelu_pytorch_tanh": ("albert", "big_bird", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "phi",
                              "starcoder2"),
        "gelu": ("bart", "bert", "camembert", "deberta", "deberta-v2", "deit", "distilbert", "electra", "falcon",
                 "gpt_neox", "hubert", "marian", "mbart", "mpnet", "pegasus", "roberta", "vit", "wav2vec2", "wavlm",
                 "whisper", "xlm-roberta"),
        "silu": ("cohere", "deepseek_v2", "deepseek_v3", "glm", "glm4", "gpt_oss", "granite", "llama", "mistral",
                 "mixtral", "olmo", "olmo2", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"),
    }.items()
    for kind in kinds
}  # fmt: skip
"""Default activation of each model type."""
_OF_ACTIVATION = ("activation", "activation_function", "hidden_act")


def is_ignored(field: str) -> bool:
    """Return whether a field of config.json need not be compared between two models.

    It need not if it does not change results, or if it is a size that the shapes of the tensors show anyway.
    """
    is_size = _SIZE.search(field) is not None and _NOT_SHAPES.search(field) is None
    return field in _NAMES or is_size or _WORDS.search(field) is not None


def is_derived(field: str) -> bool:
    """Return whether transformers, if a field is not set, computes its value from other fields."""
    return _DERIVED.search(field) is not None


def is_usual(field: str, value: Any, kind: object) -> bool | None:
    """Return whether a value is the default of a field for the model type ``kind``; None if that is not known."""
    if field in _OF_ACTIVATION and isinstance(kind, str) and kind in _ACTIVATIONS:
        return bool(value == _ACTIVATIONS[kind])
    if field in _USUAL:
        return value in _USUAL[field]
    return None if value else True


def base_of_rope(model_type: object) -> float:
    """Return the default base of rotary embeddings (``rope_theta``) of a model type."""
    return _BASES.get(model_type, 10000.0) if isinstance(model_type, str) else 10000.0


# Notes on classifier rows that have different labels in two models.

_NUMBERED = re.compile(r"LABEL_\d+")
"""Matches the names that transformers gives to labels without a name."""
LONGEST = 10
"""A text of this many digits or more is not read as the index of a row."""


def label_notes(
    plan: Plan, source: int, theirs: Mapping[str, Any], name: str, ours: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a note on the first classifier whose rows are copied by position although the order of labels differs.

    ``theirs`` is the configuration of the source at index ``source``. ``ours`` is the output's configuration, which
    comes from the model ``name``.
    """
    shapes = [(step.key, one.shape) for step in plan.steps for one in step.inputs if one.source == source]
    yield from label_differences(shapes, (plan.sources[source].name, theirs), (name, ours))


def label_differences(
    shapes: Iterable[tuple[str, Sequence[int]]],
    one: tuple[str, Mapping[str, Any]],
    other: tuple[str, Mapping[str, Any]],
) -> Iterator[str]:
    """Yield a note on the first classifier whose rows have different labels in two models.

    ``shapes`` has (key, shape) of each tensor that may be a classifier. ``one`` and ``other`` are the models, each as
    (name, configuration).
    """
    there, here = _labels(one[1]), _labels(other[1])
    rows = [row for row in sorted(there.keys() & here.keys()) if there[row].casefold() != here[row].casefold()]
    keys = [key for key, shape in shapes if is_of_labels(key) and tuple(shape[:1]) == (len(there),)]
    keys.sort(key=lambda key: not key.endswith("weight"))
    if rows and keys:
        row, more = rows[0], len(rows) - 1
        also = f"; {count(more, 'other row')} too" if more else ""
        their_label, our_label = (
            f"{escape(labels[row])} in {escape(name)}" for labels, name in ((there, one[0]), (here, other[0]))
        )
        yield f"row {row} of {escape(keys[0])} has different labels (id2label): {their_label}, {our_label}{also}"


def _labels(config: Mapping[str, Any]) -> dict[int, str]:
    """Return the label of each classifier row, from ``id2label``; empty if all labels have default names."""
    given = config.get("id2label")
    labels = given.items() if isinstance(given, dict) else ()
    rows = {row: label for row, label in labels if row.isdecimal() and len(row) < LONGEST and isinstance(label, str)}
    found = {int(row): label for row, label in rows.items()}
    return {} if all(map(_NUMBERED.fullmatch, found.values())) else found


# Renames modules in quantisation settings as the plan renames them.


def renamed_settings(plan: Plan, place: int, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return quantisation ``settings`` of the source at index ``place``, with module names renamed as in the plan."""
    pairs = [(one.key, step.key) for step in plan.steps for one in step.inputs if one.source == place]
    if all(old == new for old, new in pairs):
        return settings
    names: dict[str, dict[str, None]] = {}
    for old, new in pairs:
        module, now = old, new
        while module and now and module.rpartition(".")[2] == now.rpartition(".")[2]:
            module, now = module.rpartition(".")[0], now.rpartition(".")[0]
            names.setdefault(module, {})[now] = None
    return renamed_modules(settings, lambda name: list(names.get(name, ())))


def with_left_out_said(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return the plan of an edit, with notes on renamed plain weights that quantisation settings no longer exclude.

    The settings exclude the old name of such a weight, but not the new name, so a loader would read it as quantised.
    """
    settings = checkpoint.quantisation if checkpoint.codes else {}
    if not settings or all(step.key == step.source_key for step in plan.steps):
        return plan
    before, now = Modules(settings), Modules(renamed_settings(plan, 0, settings))
    lost: dict[str, list[str]] = {}
    for step in plan.steps:
        if len(step.shape) == 2 and step.key.endswith(".weight") and step.source_key not in checkpoint.codes.by_key:
            by = before.left_out(step.source_key.removesuffix(".weight"))
            if by and not now.left_out(step.key.removesuffix(".weight")):
                lost.setdefault(by, []).append(step.key)
    notes = [
        f"the quantisation settings exclude {count(len(keys), 'tensor')} by the old name ({escape(by)}), but not by "
        f"the new name, so a loader expects quantised codes in {escape(keys[0])}"
        for by, keys in lost.items()
    ]
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan
