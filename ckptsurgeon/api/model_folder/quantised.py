"""Checks that quantised weights in an output keep the quantisation settings with which they must be decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.quantisation import configuration
from ...destinations.hf.files import CONFIG
from ...errors import CheckpointError
from ...planning.target import Companion
from ...util.text import count, listing
from .documents import json_text
from .folder import ModelFolder, model_folder

__all__ = [
    "decoded_dtype",
    "dtype_beside_codes",
    "dtype_of_weights",
    "folder_of",
    "parts_elsewhere",
    "without_quantisation",
]

OF_QUANTISATION = ("hf_quant_config.json", "quant_config.json", "quantize_config.json", "quanto_qmap.json")
"""Files of ModelOpt, AutoAWQ, AutoGPTQ and Quanto that have only quantisation settings."""
SECTIONS = ("quantization_config", "compression_config", "quantization")
"""Sections of config.json with quantisation settings."""


def folder_of(checkpoint: Checkpoint) -> ModelFolder:
    """Return the configuration and tokeniser files in a checkpoint's folder.

    If the checkpoint's weights are decoded while they are read, quantisation settings are removed from these files.
    """
    folder = model_folder(checkpoint)
    return folder if checkpoint.stored is None else without_quantisation(folder)


def without_quantisation(folder: ModelFolder) -> ModelFolder:
    """Return a folder without any quantisation settings in its files, for an output with dequantised weights."""
    with suppress(CheckpointError):  # an unreadable file is reported when it is needed
        folder.fingerprint(CONFIG, *OF_QUANTISATION)
    files = tuple(one for one in folder.files if one.name not in OF_QUANTISATION)
    fields = {name: value for name, value in folder.config.items() if name not in SECTIONS}
    fields = {name: _plain(value) if isinstance(value, dict) else value for name, value in fields.items()}
    if fields != folder.config:
        files = (Companion(CONFIG, text=json_text(fields)), *(one for one in files if one.name != CONFIG))
    return replace(folder, files=files).knowing(folder.prints)


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in SECTIONS}


def dtype_of_weights(config: Mapping[str, Any], default: str = "bfloat16") -> str:
    """Return the dtype that config.json states for a model's weights; ``default`` if it states none."""
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    stated = (part.get(name) for part in parts for name in ("dtype", "torch_dtype"))
    return next((one for one in stated if one in ("float16", "bfloat16", "float32")), default)


def dtype_beside_codes(checkpoint: Checkpoint) -> str:
    """Return the dtype in which decoded weights are written if config.json states none.

    This is bfloat16 or, for CTranslate2, the dtype of the norms. CTranslate2's converter gives one dtype to all weights
    that it does not quantise, and the file does not state this dtype elsewhere.
    """
    if checkpoint.header.format != "ctranslate2":
        return "bfloat16"
    norms = (info.dtype for key, info in checkpoint.items() if key.endswith("/gamma"))
    return next((one for one in norms if one in ("float16", "float32")), "bfloat16")


def decoded_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype in which the decoded weights of a checkpoint are written; '' if weights are not decoded."""
    if checkpoint.stored is None:
        return ""
    config = configuration(checkpoint.folder) if checkpoint.folder is not None else {}
    return dtype_of_weights(config, dtype_beside_codes(checkpoint))


def parts_elsewhere(checkpoint: Checkpoint) -> list[str]:
    """Return a note if a single shard was opened, and other shards have codes or scales of its quantised tensors."""
    if not checkpoint.codes or not checkpoint.elsewhere:
        return []
    names = {one.name.removesuffix(".weight"): one.name for one in checkpoint.codes.tensors}
    found = {one for key in checkpoint.elsewhere if not key.endswith(".bias") for one in _stems(key) if one in names}
    split = [name for stem, name in names.items() if stem in found]
    if not split:
        return []
    return [f"codes or scales of {count(len(split), 'quantised tensor')} are in other shards: {listing(split, 3)}"]


def _stems(key: str) -> Iterator[str]:
    """Yield the possible names of the quantised tensor to which the part ``key`` belongs.

    For ``a.b.weight_scale``, these are its module ``a.b``, the parent module ``a``, and ``a.b.weight``.
    """
    module, _, leaf = key.rpartition(".")
    yield module
    yield module.rpartition(".")[0]
    while "_" in leaf:
        leaf = leaf.rpartition("_")[0]
        yield f"{module}.{leaf}"
