"""Notes on sizes in config.json that contradict the shapes of the tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from ....tensors.dtypes import DTYPES
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape, shape_text
from ..config import has_parts

__all__ = ["UNLOADED", "DescribedTensor", "follows", "is_number", "is_plain", "shape_notes"]

MLP = re.compile(r"\d\.(?:mlp\.(?:down_proj|dense_4h_to_h)|(intermediate)\.dense)\.weight$")
"""Matches MLP weights whose number of columns (for ``intermediate``: of rows) is the inner width of the MLP."""
EXPERT = re.compile(r"\.experts\.(?:\d+\.(?:down_proj|w2)\.weight|down_proj)$|\.switch_mlp\.down_proj\.weight$")
"""Matches weights of experts whose number of columns is the inner width.

If one tensor has all experts of a layer, the inner width is one of its last two dimensions.
"""
OUTPUT = re.compile(r"\d\.self_attn\.o_proj\.weight$")
"""Matches the weight whose number of columns is the number of heads times the size of a head.

``q_proj`` is not used for this, because some of its rows may be gates.
"""
INNER = ("intermediate", "hidden", "ffn", "inner", "feed_forward", "mlp")
"""Words in the names of fields with an inner width."""
EXPERT_SIZES = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
"""Fields with the inner width of experts, the most specific first."""
HEAD_SIZES = ("head_dim", "head_size", "kv_channels", "d_kv", "d_head")
KEY_HEADS = ("key_value_heads", "kv_heads", "query_groups")
USUAL = (64, 96, 128, 256)
"""The default sizes of attention heads in several classes."""
UNLOADED = "transformers cannot load this model"
UNFIT = "config.json or the weights are from another model"
BY_LAYER = ("block_configs", "multi_query", "per_layer_config")
"""Fields of config.json that show that layers of the model may have different sizes."""


class DescribedTensor(NamedTuple):
    """The key, dtype and shape of a tensor, without its values.

    ``tied_to`` is the first key that shares its memory; '' if the tensor is not tied. If ``is_quantised``, dtype and
    shape are those of the plain tensor to which the codes decode.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    tied_to: str = ""
    is_quantised: bool = False


def shape_notes(tensors: Iterable[DescribedTensor], config: Mapping[str, Any]) -> Iterator[Note]:
    """Yield notes on sizes in a configuration (of MLPs, experts, attention heads) that fit no layer.

    The layers of a model may differ, so there is no note if one layer fits. There are no notes if the configuration has
    nested configurations.
    """
    if has_parts(config) or any(name in config for name in BY_LAYER):
        return
    tensors = list(tensors)
    weights = {one.key: one for one in tensors if is_plain(one)}
    experts = {one.key: one for one in tensors if len(one.shape) in (2, 3) and is_number(one)}
    yield from _undivided(config)
    yield from _computed(tensors, config)
    yield from _convolutions(tensors, config)
    yield from _feed_forward(weights, config)
    yield from _experts(experts, config)
    yield from _attention(weights, config)


def follows(one: DescribedTensor, said: str) -> Note:
    """Return a note on a tensor whose size contradicts config.json: the text ``said``, followed by the consequence.

    The consequence is that transformers cannot load the model. For a quantised tensor, it is only that the two do not
    fit, because not all libraries compare its size.
    """
    if one.is_quantised:
        return Note(NoteKind.CONFIGURATION, f"{said}: {UNFIT}")
    return Note(NoteKind.CONFIGURATION_REFUSED, f"{said}: {UNLOADED}")


def is_plain(one: DescribedTensor) -> bool:
    """Return whether a tensor is a matrix (more than 1 row and column) of floating-point numbers of at least 8 bits."""
    return len(one.shape) == 2 and min(one.shape) > 1 and is_number(one)


def is_number(one: DescribedTensor) -> bool:
    """Return whether each element of a tensor is one floating-point number of at least 8 bits (not several, packed)."""
    dtype = DTYPES[one.dtype]
    return dtype.kind == "float" and dtype.values == 1 and dtype.bits >= 8


@notes_of(NoteKind.CONFIGURATION)
def _feed_forward(weights: Mapping[str, DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    width = config.get("intermediate_size")
    found = {key: match for key in weights if (match := MLP.search(key)) is not None}
    known = set(_numbers(config, INNER))
    if type(width) is not int or not found:
        return
    sizes = {key: weights[key].shape[0 if match[1] else 1] for key, match in found.items()}
    if known.isdisjoint(sizes.values()) and not _fits_up(weights, found, known):
        key, size = next(iter(sizes.items()))
        has = count(size, "row" if found[key][1] else "column")
        yield follows(weights[key], f"config.json says {width} (intermediate_size), but {escape(key)} has {has}")


def _fits_up(weights: Mapping[str, DescribedTensor], keys: Iterable[str], known: Collection[int]) -> bool:
    """Return whether an ``up_proj`` next to a quantised ``down_proj`` has a number of rows that config.json allows.

    The number of rows of ``up_proj`` is the inner width, as is the number of columns of ``down_proj``; but if
    ``down_proj`` is quantised, its number of columns may be only a guess. ``keys`` are the keys of ``down_proj`` in all
    layers (in some models, it is called ``w2``), and ``known`` has the inner widths in config.json.
    """
    names = [key for key in keys if weights[key].is_quantised]
    others = (weights.get(key.replace("down_proj", "up_proj").replace(".w2.", ".w3.")) for key in names)
    return any(one is not None and one.shape[-2] in known for one in others)


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _experts(weights: Mapping[str, DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if no expert has the inner width (``moe_intermediate_size``) that the configuration states."""
    field = next((name for name in EXPERT_SIZES if type(config.get(name)) is int), "")
    sizes = {key: one.shape[1:] for key, one in weights.items() if EXPERT.search(key)}
    others = {name: value for name, value in config.items() if name != "hidden_size"}
    known = set(_numbers(others, INNER))
    if not field or config.get("auto_map") or _fits_up(weights, sizes, known):
        return
    if sizes and all(known.isdisjoint(one) for one in sizes.values()):
        key, size = next(iter(sizes.items()))
        has = f"has {count(size[0], 'column')}" if len(size) < 2 else f"is {shape_text(weights[key].shape)}"
        yield follows(weights[key], f"config.json says {config[field]} ({field}), but {escape(key)} {has}")


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _attention(weights: Mapping[str, DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if ``o_proj``, or else ``k_proj``, fits the declared number or size of heads in no layer.

    The columns of ``o_proj``, or the rows of a quantised ``q_proj``, must fit the attention heads; the rows of
    ``k_proj`` must fit the heads of keys and values. Layers without ``q_proj`` or ``k_proj`` are not compared: they
    share or compress queries or keys.
    """
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    layers = [key.removesuffix("o_proj.weight") for key in weights if OUTPUT.search(key)]
    layers = [one for one in layers if f"{one}k_proj.weight" in weights and f"{one}q_proj.weight" in weights]
    if type(heads) is not int or type(width) is not int or heads < 1 or not layers:
        return
    stated = [size for size in _numbers(config, HEAD_SIZES) if size > 0]
    is_stated = type(config.get("head_dim")) is int
    sizes = {*stated, *(USUAL if not stated else ()), *(() if is_stated else (width // heads,))}
    together = {f"{one}o_proj.weight": weights[f"{one}o_proj.weight"].shape[1] for one in layers}
    rows_of_queries = {one.shape[0] for key in layers if (one := weights[f"{key}q_proj.weight"]).is_quantised}
    if {heads * size for size in sizes}.isdisjoint({*together.values(), *rows_of_queries}):
        key, columns = next(iter(together.items()))
        of = f" of {config['head_dim']} (num_attention_heads, head_dim)" if is_stated else " (num_attention_heads)"
        has = f"{escape(key)} has {count(columns, 'column')}"
        yield follows(weights[key], f"config.json says {count(heads, 'head')}{of}, but {has}")
        return
    own = config.get("num_key_value_heads", 0)
    groups = {*_numbers(config, KEY_HEADS), *([heads] if own is None else [])}
    keys = {f"{one}k_proj.weight": weights[f"{one}k_proj.weight"].shape[0] for one in layers}
    if groups and {group * size for group in groups for size in sizes}.isdisjoint(keys.values()):
        key, rows = next(iter(keys.items()))
        said = f"config.json says {count(own or heads, 'head')} of keys and values (num_key_value_heads)"
        yield follows(weights[key], f"{said}, but {escape(key)} has {count(rows, 'row')}")


def _numbers(config: Mapping[str, Any], words: Sequence[str]) -> Iterator[int]:
    """Yield the integers in fields whose name contains one of the words, including integers in lists."""
    for name, value in config.items():
        if any(word in name for word in words):
            yield from (one for one in (value if isinstance(value, list) else [value]) if type(one) is int)


# Sizes that are the product of several fields, and numbers of heads that must divide a width.


class _Product(NamedTuple):
    """Tensors in which the size of axis ``axis`` is the product of ``factors``; each factor is the sum of some fields.

    ``kinds`` has the model types with such tensors, and ``pattern`` matches the end of the tensors' keys.
    """

    kinds: tuple[str, ...]
    pattern: str
    axis: int
    factors: tuple[tuple[str, ...], ...]


_LATENT = ("deepseek_v2", "deepseek_v3")
_T5 = ("mt5", "t5", "umt5")
_SOUND = ("hubert", "wav2vec2", "wavlm")
_BERT = ("bert", "camembert", "roberta", "vit", "xlm-roberta", *_SOUND)
_BART = ("bart", "marian", "mbart", "pegasus", "whisper")
_STATES = ("falcon_mamba", "mamba")
_HEADS = ("num_attention_heads",)
_PRODUCTS = (
    _Product(_LATENT, r"self_attn\.kv_b_proj\.weight", 1, (("kv_lora_rank",),)),
    _Product(_LATENT, r"self_attn\.kv_b_proj\.weight", 0, (_HEADS, ("qk_nope_head_dim", "v_head_dim"))),
    _Product(_LATENT, r"self_attn\.kv_a_proj_with_mqa\.weight", 0, (("kv_lora_rank", "qk_rope_head_dim"),)),
    _Product(_LATENT, r"self_attn\.q_b_proj\.weight", 1, (("q_lora_rank",),)),
    _Product(_LATENT, r"self_attn\.q_b_proj\.weight", 0, (_HEADS, ("qk_nope_head_dim", "qk_rope_head_dim"))),
    _Product(_LATENT, r"shared_experts\.down_proj\.weight", 1, (("n_shared_experts",), ("moe_intermediate_size",))),
    _Product(_T5, r"(?:SelfAttention|EncDecAttention)\.q\.weight", 0, (("num_heads",), ("d_kv",))),
    _Product(("gpt2",), r"attn\.c_attn\.weight", 0, (("n_embd",),)),
    _Product(("gpt_oss",), r"experts\.gate_up_proj", 1, (("hidden_size",),)),
    _Product(("gpt_oss",), r"experts\.down_proj", 1, (("intermediate_size",),)),
    _Product(
        _SOUND,
        r"pos_conv_embed\.conv\.(?:weight_v|parametrizations\.weight\.original1)",
        2,
        (("num_conv_pos_embeddings",),),
    ),
    _Product(_STATES, r"mixer\.A_log", 0, (("hidden_size",), ("expand",))),
    _Product(_STATES, r"mixer\.A_log", 1, (("state_size",),)),
    _Product(_STATES, r"mixer\.dt_proj\.weight", 1, (("time_step_rank",),)),
    _Product((*_STATES, "mamba2", "nemotron_h"), r"mixer\.conv1d\.weight", 2, (("conv_kernel",),)),
    _Product(("jamba",), r"mamba\.A_log", 0, (("hidden_size",), ("mamba_expand",))),
    _Product(("jamba",), r"mamba\.A_log", 1, (("mamba_d_state",),)),
    _Product(("jamba",), r"mamba\.dt_proj\.weight", 1, (("mamba_dt_rank",),)),
    _Product(("bamba", "granitemoehybrid", "jamba", "zamba2"), r"mamba\.conv1d\.weight", 2, (("mamba_d_conv",),)),
    _Product(("qwen3_next",), r"linear_attn\.conv1d\.weight", 2, (("linear_conv_kernel_dim",),)),
    _Product(("lfm2", "lfm2_moe"), r"conv\.conv\.weight", 2, (("conv_L_cache",),)),
)
_DIVIDED = (
    (_BERT, "hidden_size", "num_attention_heads"),
    (("gpt2", "gpt_bigcode", "gptj"), "n_embd", "n_head"),
    (("distilbert",), "dim", "n_heads"),
    (_BART, "d_model", "encoder_attention_heads"),
    (_BART, "d_model", "decoder_attention_heads"),
)
"""(model types, field of a width, field of a number of heads that must divide this width)"""
_CONVOLUTION = re.compile(r"(?:^|\.)feature_extractor\.conv_layers\.(\d{1,9})\.conv\.weight$")


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _undivided(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the number of heads does not divide a width that it divides in every valid model of this type."""
    for kinds, width, heads in _DIVIDED:
        size, number = config.get(width), config.get(heads)
        if config.get("model_type") not in kinds or type(size) is not int or type(number) is not int:
            continue
        if number > 0 and size % number:
            said = f"config.json says {count(number, 'head')} ({heads})"
            yield f"{said}, which do not divide {size} ({width}): {UNLOADED}"


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _computed(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a size that is computed from several fields fits no layer.

    For quantised matrices, only the number of rows is compared.
    """
    for one in _PRODUCTS:
        fields = [name for factor in one.factors for name in factor]
        if config.get("model_type") not in one.kinds or any(type(config.get(name)) is not int for name in fields):
            continue
        wanted = prod(sum(config[name] for name in factor) for factor in one.factors)
        pattern = re.compile(rf"(?:^|\.){one.pattern}$")
        found = [
            tensor for tensor in tensors
            if pattern.search(tensor.key) and len(tensor.shape) > max(one.axis, 1) and is_number(tensor)
            and not (tensor.is_quantised and one.axis and len(tensor.shape) == 2)
        ]  # fmt: skip
        if found and all(_size(tensor, one.axis) != wanted for tensor in found):
            first = found[0]
            said = f"config.json says {wanted} ({', '.join(fields)}), but"
            is_row = one.axis == 0 or len(first.shape) > 2
            has = f"is {shape_text(first.shape)}" if is_row else f"has {count(first.shape[1], 'column')}"
            yield follows(first, f"{said} {escape(first.key)} {has}")
            return


def _size(tensor: DescribedTensor, axis: int) -> int:
    """Return the size of an axis of a tensor; for axis 2 of a convolution of shape (channels, kernel, 1), the kernel.

    MLX stores a convolution in this shape. In files that MLX did not write, this shape is a fault, which ``ckpt check``
    reports when it compares the weights with the model's class.
    """
    is_of_mlx = axis == 2 and len(tensor.shape) == 3 and tensor.shape[2] == 1 < tensor.shape[1]
    return tensor.shape[1 if is_of_mlx else axis]


@notes_of(NoteKind.CONFIGURATION)
def _convolutions(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the convolutions of an audio model do not fit ``conv_dim`` and ``conv_kernel``."""
    sizes, widths = config.get("conv_dim"), config.get("conv_kernel")
    found = {int(match[1]): one for one in tensors if (match := _CONVOLUTION.search(one.key)) and len(one.shape) == 3}
    if config.get("model_type") not in _SOUND or not found or not isinstance(sizes, list):
        return
    if len(sizes) != len(found):
        there = count(len(found), "convolution")
        yield f"config.json has {count(len(sizes), 'size')} (conv_dim), but there are {there}: {UNFIT}"
        return
    for number, one in sorted(found.items()):
        for field, values, axis in (("conv_dim", sizes, 0), ("conv_kernel", widths, 2)):
            value = values[number] if isinstance(values, list) and number < len(values) else None
            if type(value) is int and value != one.shape[axis]:
                is_ = f"{escape(one.key)} is {shape_text(one.shape)}"
                yield Note(
                    NoteKind.CONFIGURATION_REFUSED,
                    f"config.json says {value} ({field}, entry {number}), but {is_}: {UNLOADED}",
                )
                return
