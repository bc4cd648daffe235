"""Notes on fields of config.json with values that no version of transformers accepts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape
from ..config import AFTER_PADDING, DTYPE, PADDING
from ..layers.windows import WINDOW, uses_window
from ..weights.required_parts import is_known_type
from ..weights.shape_checks import UNLOADED
from .shapes import LLAMA_TYPES, is_of_family

__all__ = ["ACTIVATIONS", "ROPE_TYPES", "value_notes"]

ACTIVATIONS = frozenset({
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
})  # fmt: skip
"""The activation functions of transformers (``ACT2FN``)."""
ROPE_TYPES = frozenset({
    "axial", "default", "dynamic", "linear", "llama3", "longrope", "mrope", "ntk_alpha", "proportional", "su", "xdrope",
    "yarn",
})  # fmt: skip
"""The types of rotary embeddings of transformers (``ROPE_INIT_FUNCTIONS``), and further types of single models."""
_FUNCTIONS = ("hidden_act", "hidden_activation", "activation_function", "feat_extract_activation")
_GROUPED = (*LLAMA_TYPES, "gpt_oss", "phi", "phi3", "qwen3_next", "smollm3", "stablelm", "starcoder2")
"""Model types with grouped-query attention, in which the number of key heads must divide the number of query heads."""
_ROTATED = (*_GROUPED, "deepseek_v2", "deepseek_v3", "falcon", "gpt_neox")
_SIZES = (
    "d_ff", "d_model", "ffn_dim", "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings",
    "n_embd", "n_head", "n_layer", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size",
)  # fmt: skip
_COUNTS = ("n_layer", "num_hidden_layers")
"""Fields in ``_SIZES`` that may be 0."""
_NUMBERS = frozenset({
    *_SIZES, "decoder_attention_heads", "decoder_ffn_dim", "decoder_layers", "embedding_size",
    "encoder_attention_heads", "encoder_ffn_dim", "encoder_layers", "layer_norm_eps", "layer_norm_epsilon",
    "moe_intermediate_size", "n_heads", "n_layers", "num_decoder_layers", "num_heads", "num_layers", "rms_norm_eps",
    "type_vocab_size",
})  # fmt: skip
"""Fields that are numbers in every model type that has them; other fields are not checked."""
_EPSILON = re.compile(r"(?:^|_)eps(?:ilon)?$")
_LARGEST = 0.01
"""The largest plausible epsilon of a norm; those of transformers' models are 0.001 or less. It is added to squares."""
_DIVIDED = (
    (("gemma2", "gemma3_text", "gpt_neox", "llama", "opt", "phi", "stablelm"), "hidden_size", "num_attention_heads"),
    (("bloom",), "hidden_size", "n_head"),
)
"""(model types, field with a width, field with a number of heads)

If ``head_dim`` is not set, the number of heads must divide the width.
"""


def value_notes(config: Mapping[str, Any]) -> Iterator[Note]:
    """Yield notes on invalid values in a configuration and its ``text_config``, unless it refers to custom code."""
    if config.get("auto_map"):
        return
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        yield from _dtypes(part)
        kind = part.get("model_type")
        if isinstance(kind, str) and is_known_type(kind):
            yield from _unknown_names(part, kind)
            yield from _no_numbers(part)
            yield from _no_sizes(part, kind)
            yield from _heads(part, kind)
            yield from _no_padding(part, kind)
            yield from _no_window(part)


@notes_of(NoteKind.CONFIGURATION)
def _dtypes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if ``dtype`` and its older name, ``torch_dtype``, have different values."""
    new, old = (str(value).removeprefix("torch.") if (value := config.get(name)) else "" for name in DTYPE)
    if new and old and new != old and "auto" not in (new, old):
        said = f"config.json says {escape(new, 40)} ({DTYPE[0]}), but {escape(old, 40)} ({DTYPE[1]})"
        yield f"{said}: transformers 4.56 and later read the first, older versions the second"


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _unknown_names(config: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yield notes on activation functions and types of rotary embeddings that transformers does not know."""
    for field in _FUNCTIONS:
        name = config.get(field)
        if isinstance(name, str) and name not in ACTIVATIONS:
            yield f"config.json says {escape(json.dumps(name))} ({field}), which transformers does not know: {UNLOADED}"
    for section in ("rope_parameters", "rope_scaling"):
        rope = config.get(section)
        for one in (rope, *rope.values()) if isinstance(rope, dict) else ():
            name = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
            if isinstance(name, str) and name not in ROPE_TYPES and kind in _ROTATED:
                said = f"config.json says {escape(json.dumps(name))} (rope_type of {section})"
                yield f"{said}, which transformers does not know: {UNLOADED}"
                return


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _no_numbers(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on numbers that are stored as strings, and on epsilons (under square roots) below 0 or too large."""
    for field, value in config.items():
        if isinstance(value, str) and field in _NUMBERS and _is_number(value):
            said = f"config.json says {escape(json.dumps(value))} ({escape(field)})"
            yield f"{said}, which is a string and not a number: {UNLOADED}"
        elif isinstance(value, float) and _EPSILON.search(field) and not value >= 0:
            yield Note(
                NoteKind.CONFIGURATION,
                f"config.json says {value} ({escape(field)}), which is not 0 or more: square roots become NaN",
            )
        elif type(value) in (int, float) and "norm" in field and _EPSILON.search(field) and value > _LARGEST:
            said = f"config.json says {value} ({escape(field)}), but epsilons of norms are {_LARGEST:g} or less"
            yield Note(NoteKind.CONFIGURATION, f"{said}: the norms shrink what passes through them")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _no_sizes(config: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yield a note on the first size that is negative or, for well-known model types, 0."""
    for field in _SIZES:
        size = config.get(field)
        if type(size) is int and (size < 0 or (size == 0 and is_of_family(kind) and field not in _COUNTS)):
            yield f"config.json says {size} ({field}), which is not above 0: {UNLOADED}"
            return


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _no_padding(config: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yield a note if ``pad_token_id`` is null in a model that counts positions from this id on.

    If the field is missing, there is no note, because the class of the model has an id by default.
    """
    if kind in AFTER_PADDING and PADDING in config and config[PADDING] is None:
        yield f"config.json says null ({PADDING}), from which {kind} counts positions: the model cannot be run"


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _no_window(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if ``sliding_window`` is 0 or less, and used: transformers fails with its cache."""
    window = config.get(WINDOW)
    if type(window) is int and window < 1 and uses_window(config):
        said = f"config.json says {window} ({WINDOW}), which is not above 0 or null"
        yield f"{said}: transformers cannot run the model with its cache"


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _heads(config: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yield notes if the number of heads does not divide the width, or is not a multiple of the number of key heads."""
    for kinds, width, field in _DIVIDED:
        size, number = config.get(width), config.get(field)
        if kind not in kinds or type(size) is not int or type(number) is not int or config.get("head_dim") is not None:
            continue
        if number > 0 and size % number:
            said = f"config.json says {count(number, 'head')} ({field})"
            yield f"{said}, which do not divide {size} ({width}): {UNLOADED}"
    heads, keys = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if kind in _GROUPED and type(heads) is int and type(keys) is int and keys > 0 and heads % keys:
        said = f"config.json says {count(keys, 'head')} of keys and values (num_key_value_heads)"
        yield f"{said}, which do not divide {count(heads, 'head')} (num_attention_heads): the model cannot be run"
