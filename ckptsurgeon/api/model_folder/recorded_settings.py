"""Compares config.json with settings in the metadata, which weights have if they were converted from a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import isclose
from typing import Any

from ...destinations.hf.files import CONFIG
from ...planning.llama_cpp.model_types import DEFAULTS, MODEL_TYPES
from ...planning.llama_cpp.names import DEEPSEEK
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import escape

__all__ = ["recorded_setting_notes"]

HEADS, FEW = "num_attention_heads", "num_key_value_heads"


@notes_of(NoteKind.CONFIGURATION)
def recorded_setting_notes(metadata: Mapping[str, str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if numbers of heads, the epsilon or the rotary base in config.json differ from ``metadata``.

    ``metadata`` are the metadata of the weights. If the weights were converted from a GGUF file, the metadata has the
    settings of this file. Metadata that name an architecture describe tensors in the layout of llama.cpp, and are not
    compared. Metadata of DeepSeek are not compared either: there, numbers of heads mean something else than in
    config.json.
    """
    model_type = str(config.get("model_type"))
    own = MODEL_TYPES.get(model_type, "")
    if not own or own == DEEPSEEK or "general.architecture" in metadata or f"{own}.block_count" not in metadata:
        return
    lines = [
        f"{field} is {escape(str(value), 40)}, not {escape(said, 40)} ({escape(entry)})"
        for field, value, entry in _stated(config, model_type, own)
        if (said := metadata.get(entry, "")) and _differ(value, said)
    ]
    if lines:
        other = f"{CONFIG} may be of another model than the weights"
        yield (
            f"{other}, whose metadata record the settings of the GGUF file that they were converted from: "
            f"{'; '.join(lines)}"
        )


def _stated(config: Mapping[str, Any], model_type: str, architecture: str) -> Iterator[tuple[str, Any, str]]:
    """Yield (field, value, entry) for each setting in config.json; ``entry`` is its name in the metadata."""
    norm = DEFAULTS[model_type].norm
    rope = config.get("rope_parameters")
    base = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    heads = config.get(HEADS)
    few = config.get(FEW)
    epsilon = "layer_norm_rms_epsilon" if norm.startswith("rms") else "layer_norm_epsilon"
    yield HEADS, heads, f"{architecture}.attention.head_count"
    yield FEW, heads if few is None else few, f"{architecture}.attention.head_count_kv"
    yield norm, config.get(norm), f"{architecture}.attention.{epsilon}"
    yield "rope_theta", config.get("rope_theta") if base is None else base, f"{architecture}.rope.freq_base"


def _differ(value: Any, said: str) -> bool:
    """Return whether ``value`` and the number in the text ``said`` (from the metadata) differ by more than rounding.

    GGUF files have such numbers in single precision. Values that are not numbers are not compared.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    with suppress(ValueError, OverflowError):
        return not isclose(float(value), float(said), rel_tol=1e-6)
    return False
