"""Finds the numbers of heads, and the order of rows of queries and keys, in the files that describe a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....planning.llama_cpp.model_types import MODEL_TYPES
from ....planning.llama_cpp.names import ARCHITECTURES
from ....storage.json_text import read_json
from ....storage.small_files import read_file
from ....tensors.info import TensorInfo
from ....util.text import number_in
from ..folder import model_folder

__all__ = ["Settings", "architecture_of", "has_own_order", "heads_of", "rotates_pairs", "settings_of", "stated_heads"]

PARAMETERS = "params.json"
"""The file in which Meta and Mistral describe a model."""
ARCHITECTURE = "general.architecture"
IN_PAIRS = frozenset((
    "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "glm", "glm4", "glm4v",
    "glm_ocr", "helium", "llama4", "llama4_text", "moonshine", "moonshine_streaming",
))  # fmt: skip
"""Model types for which transformers' own code rotates pairs of adjacent values."""
_HEADS = {
    "q": ("n_heads", "num_attention_heads", "head_count"), "k": ("n_kv_heads", "num_key_value_heads", "head_count_kv"),
}  # fmt: skip
"""{"q" or "k": names of the field with the number of query or key heads, for Meta, transformers and llama.cpp}"""
Settings = Mapping[str, Any]


def settings_of(source: Checkpoint) -> Settings:
    """Return all fields that describe a source's model: from config.json, params.json and GGUF's metadata."""
    start = f"{source.metadata.get(ARCHITECTURE, '')}.attention."
    stored = {name.removeprefix(start): value for name, value in source.metadata.items()}
    return {**_parameters(source.path), **stored, **model_folder(source).config}


def _parameters(path: str) -> dict[str, Any]:
    """Return the fields of the params.json next to local weights; {} if there is none."""
    folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    with suppress(OSError, ValueError, CheckpointError):
        fields = read_json(read_file(os.path.join(folder, PARAMETERS))) if os.path.exists(path) else {}
        return fields if isinstance(fields, dict) else {}
    return {}


def architecture_of(settings: Settings) -> str:
    """Return llama.cpp's architecture of a model; '' if it is not known."""
    stated = settings.get(ARCHITECTURE) or MODEL_TYPES.get(str(settings.get("model_type")), "")
    return stated if isinstance(stated, str) and stated in ARCHITECTURES else ""


def has_own_order(libraries: Sequence[str], settings: Sequence[Settings]) -> bool:
    """Return whether two libraries are known to store rows of queries and keys in the same order for this model.

    ``libraries`` are their names. ``settings`` are the known settings of the destination and of the source.
    """
    architectures = [ARCHITECTURES[name] for name in map(architecture_of, settings) if name]
    in_llama_cpp = "llama.cpp" in libraries and any(not one.pairs for one in architectures)
    return in_llama_cpp or rotates_pairs(settings)


def rotates_pairs(settings: Sequence[Settings]) -> bool:
    """Return whether transformers rotates adjacent rows of a head as pairs for this model type.

    For most types, a pair has one row in the first half of the head, and one in the second half.
    """
    return any(str(one.get("model_type")) in IN_PAIRS for one in settings)


def heads_of(
    modules: Mapping[str, str], source: Mapping[str, TensorInfo], settings: Sequence[Settings]
) -> dict[str, int]:
    """Return the numbers of query heads ("q") and of key heads ("k"); {} if they are unknown or do not fit the rows.

    ``modules`` maps patterns of modules, such as ``layers.{n}.attention.wq``, to "q" or "k". Both numbers must divide
    the rows of their module into heads of the same even size.
    """
    if len(modules) > 2:
        return {}
    stated = stated_heads(settings)
    rows = {kind: _rows(source, module) for module, kind in modules.items()}
    sizes = {rows[kind] / number for kind, number in stated.items() if kind in rows}
    if len(sizes) != 1 or sizes.pop() % 2:
        return {}
    return stated


def stated_heads(settings: Sequence[Settings]) -> dict[str, int]:
    """Return the numbers of query heads ("q") and key heads ("k"), from the first of ``settings`` that states them."""
    stated = {kind: number for kind, names in _HEADS.items() if (number := _number(names, settings))}
    if "q" in stated:
        stated.setdefault("k", stated["q"])
    return stated


def _number(names: Sequence[str], settings: Sequence[Settings]) -> int:
    for fields in settings:
        for name in names:
            value = fields.get(name)
            value = number_in(value) if isinstance(value, str) else value
            if type(value) is int and value > 0:
                return value
    return 0


def _rows(source: Mapping[str, TensorInfo], module: str) -> int:
    before, after = module.split("{n}")
    keys = (key for key in source if key.startswith(before) and f"{after}." in key)
    return next((source[key].shape[0] for key in keys if source[key].shape), 0)
