"""Notes on weights of another model type than config.json says, recognised by the names of tensors in layers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....planning.transplant.by_place import is_of_labels
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape
from ..config import has_parts
from ..layers.experts import INITIALISED
from .shape_checks import DescribedTensor, is_plain

__all__ = ["LLAMA", "family_notes"]

LLAMA = (
    "cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2",
)  # fmt: skip
_FAMILIES = tuple(
    (re.compile(rf"(?:^|\.){pattern}\."), frozenset(kinds))
    for pattern, kinds in (
        (r"layers\.\d+\.self_attn\.o_proj", LLAMA),
        (r"layers\.\d+\.mlp\.(?:up|down|gate|gate_up)_proj", LLAMA),
        (r"layers\.\d+\.self_attn\.dense", ("phi",)),
        (r"layers\.\d+\.attention\.query_key_value", ("gpt_neox",)),
        (r"h\.\d+\.self_attention\.query_key_value", ("bloom", "falcon")),
        (r"h\.\d+\.attn\.c_attn", ("gpt2",)),
        (r"h\.\d+\.attn\.attention\.q_proj", ("gpt_neo",)),
        (r"h\.\d+\.attn\.q_proj", ("gptj",)),
        (r"encoder\.layer\.\d+\.attention\.self\.query", ("bert", "camembert", "electra", "roberta", "xlm-roberta")),
        (r"encoder\.layer\.\d+\.attention\.self\.query_proj", ("deberta-v2",)),
        (r"layer\.\d+\.attention\.q_lin", ("distilbert",)),
        (r"albert_layers\.\d+\.attention\.query", ("albert",)),
        (r"block\.\d+\.layer\.\d+\.SelfAttention\.q", ("mt5", "t5")),
        (r"(?:en|de)coder\.layers\.\d+\.self_attn\.out_proj", ("bart", "marian", "mbart", "opt", "whisper")),
        (r"encoder\.layers\.\d+\.attention\.out_proj", ("hubert", "wav2vec2", "wavlm")),
        (r"layers?\.\d+\.attention\.(?:attention\.query|q_proj)", ("deit", "vit")),
    )
)
"""(pattern of module names in layers, model types that have such modules; other types in this table have none)"""
_KNOWN = frozenset[str]().union(*(kinds for _, kinds in _FAMILIES))
_PARTS = tuple(
    (name, re.compile(pattern), frozenset(having), frozenset(lacking))
    for name, pattern, having, lacking in (
        ("self_attn.q_norm", r"\d\.self_attn\.q_norm\.weight$", ("gemma3_text", "olmo2", "qwen3", "qwen3_moe"),
         ("gemma", "gemma2", "granite", "llama", "mistral", "mixtral", "olmo", "phi3", "qwen2", "qwen2_moe")),
        ("pre_feedforward_layernorm", r"\d\.pre_feedforward_layernorm\.weight$", ("gemma2", "gemma3_text"),
         ("gemma", "granite", "llama", "mistral", "mixtral", "olmo", "phi3", "qwen2", "qwen3")),
        ("experts", r"\d\.(?:mlp|block_sparse_moe)\.(?:experts|switch_mlp)\.", ("mixtral",),
         ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2", "qwen3")),
        ("self_attn.qkv_proj", r"\d\.self_attn\.qkv_proj\.weight$", ("phi3",),
         ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2", "qwen2",
          "qwen3")),
        ("self_attn.q_proj.bias", r"\d\.self_attn\.q_proj\.bias$", ("qwen2",), ("mistral", "mixtral")),
    )
)  # fmt: skip
"""Tensors of layers: (short name, pattern, model types that always have them, model types that never have them)."""
_LAYER = re.compile(r"\d\.self_attn\.(q|qkv|o)_proj\.weight$")
"""Matches the weights by which layers are recognised: every layer of a Llama-like model has one of them."""
_BIASES = {
    "attention_bias": re.compile(r"\d\.self_attn\.q_proj\.weight$"),
    "mlp_bias": re.compile(r"\d\.mlp\.(?:up|down)_proj\.weight$"),
    "qkv_bias": re.compile(r"\d\.attention\.(?:\w+\.)?(?:q_proj|query)\.weight$"),
}
"""{field that says whether some modules have a bias: pattern of the weights of these modules}"""
_UNBIASED = frozenset((
    "cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "olmo", "olmo2", "qwen3", "qwen3_moe",
))  # fmt: skip
"""Model types whose attention has no biases unless the configuration sets ``attention_bias``."""
_OF_TOKENS = re.compile(r"(ForCausalLM|LMHeadModel|ForMaskedLM)$")
"""Matches names of transformers' classes whose output layer has a row for each token."""
_OF_LABELS = re.compile(r"For(Sequence|Token|Image|Audio)Classification$")
"""Matches names of transformers' classes whose output layer has a row for each label."""
_ELSEWHERE = (("deepseek_v2", "mlp_bias"), ("granite_speech5_encoder", "attention_bias"))
"""(model type, field) for fields that are about other modules in this model type than ``_BIASES`` says."""


@notes_of(NoteKind.CONFIGURATION)
def family_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on tensors that contradict the model type in a configuration.

    There are no notes if the configuration has nested configurations or refers to custom code (``auto_map``).
    """
    if has_parts(config) or config.get("auto_map"):
        return
    kind = config.get("model_type")
    keys = [one.key for one in tensors]
    yield from _classifiers(keys, config)
    if isinstance(kind, str) and kind in _KNOWN:
        other = next(_of_others(keys, kind), "")
        if other:
            has = f"no {kind} model has {escape(other)}"
            yield f"config.json says {kind} (model_type), but {has}: the weights are not loaded"
            return
        yield from _parts(keys, kind)
    yield from _biases(tensors, config)
    yield from _switched(keys, config)


@notes_of(NoteKind.MISSING_TENSORS)
def _classifiers(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the class in ``architectures`` has a classifier and the weights have none, or the reverse."""
    names = config.get("architectures")
    classes = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
    found = next((key for key in keys if is_of_labels(key) and not any(map(str.isdigit, key.split(".")))), "")
    if not classes:
        return
    stated = f"config.json says {escape(classes[0])} (architectures)"
    if found and all(map(_OF_TOKENS.search, classes)):
        ignores = "transformers ignores this tensor, unless a classification class loads it"
        yield f"{stated}, which has no {escape(found)}: {ignores}"
    are_known = config.get("model_type") in _KNOWN and all(map(_OF_LABELS.search, classes))
    if not found and are_known and any(map(_is_of_known, keys)):
        yield f"{stated}, but there is no classifier: transformers initialises it"


def _is_of_known(key: str) -> bool:
    return any(pattern.search(key) for pattern, _ in _FAMILIES)


def _of_others(keys: Sequence[str], kind: str) -> Iterator[str]:
    """Yield the keys that are typical of other model types than ``kind``; nothing if a key is typical of ``kind``."""
    own = [pattern for pattern, kinds in _FAMILIES if kind in kinds]
    if any(pattern.search(key) for key in keys for pattern in own):
        return
    yield from filter(_is_of_known, keys)


@notes_of(NoteKind.MISSING_TENSORS)
def _parts(keys: Sequence[str], kind: str) -> Iterator[str]:
    """Yield notes on layers with tensors that no ``kind`` model has, or without tensors that every such model has."""
    layer = next((key for key in keys if _LAYER.search(key)), "")
    for name, pattern, having, lacking in _PARTS:
        found = next((key for key in keys if pattern.search(key)), "") if kind in (*having, *lacking) else ""
        if found and kind in lacking:
            has = f"no {kind} model has {escape(found)}"
            yield f"config.json says {kind} (model_type), but {has}: transformers ignores this tensor"
        elif layer and not found and kind in having:
            yield f"config.json says {kind} (model_type), but the layers have no {name}: transformers initialises it"


@notes_of(NoteKind.MISSING_TENSORS)
def _biases(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on biases that exist although the configuration turns them off, or the reverse."""
    kind, keys = config.get("model_type"), {one.key for one in tensors}
    for field, pattern in _BIASES.items():
        flag = config.get(field, False if field == "attention_bias" and kind in _UNBIASED else None)
        biases = [
            f"{one.key.removesuffix('weight')}bias" for one in tensors if pattern.search(one.key) and is_plain(one)
        ]
        if not isinstance(flag, bool) or not biases or (kind, field) in _ELSEWHERE:
            continue
        there = next((key for key in biases if key in keys), "")
        if there and not flag:
            spoken = f"says {field}: false" if field in config else f"does not set {field}"
            yield f"config.json {spoken}, but there is {escape(there)}: transformers ignores this tensor"
        elif flag and not there:
            yield f"config.json says {field}: true, but there is no {escape(biases[0])}: transformers initialises it"


# Fields that turn modules on: (model types, the field, pattern of the values that turn the module on, the module,
# another module that every model of these types has).

_SOUND = ("hubert", "wav2vec2", "wavlm")
_LATENT = ("deepseek_v2", "deepseek_v3")
_SWITCHES = (
    (("mt5", "t5", "umt5"), "feed_forward_proj", r"gated", r"DenseReluDense\.wi_0\.", r"DenseReluDense\.wo\."),
    (_SOUND, "feat_extract_norm", r"layer$", r"conv_layers\.1\.layer_norm\.", r"conv_layers\.1\.conv\."),
    (_LATENT, "q_lora_rank", r"[1-9]", r"self_attn\.q_a_proj\.", r"self_attn\.kv_a_proj_with_mqa\."),
)


@notes_of(NoteKind.MISSING_TENSORS)
def _switched(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a module exists although its field in config.json does not turn it on, or the reverse."""
    for kinds, field, on, module, base in _SWITCHES:
        if config.get("model_type") not in kinds or field not in config:
            continue
        is_on = re.match(on, str(config[field])) is not None
        there, beside = (next(filter(re.compile(rf"(?:^|\.){one}").search, keys), "") for one in (module, base))
        if beside and is_on != bool(there):
            said = f"config.json says {field}: {escape(json.dumps(config[field]))}"
            name = module.replace("\\", "").rstrip(".")
            but = (
                f"there is {escape(there)}: transformers ignores this tensor"
                if there
                else f"there is no {name}: {INITIALISED}"
            )
            yield f"{said}, but {but}"
