"""Converts DeepSeek models to llama.cpp's layout and back, after a check of all tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.layouts.layout import LayoutChange
from ...planning.llama_cpp.deepseek import PARTS, DeepseekSizes, check_tensors, joined, shapes_of, split, stored_as
from ...planning.llama_cpp.layout import check_known, to_llama_cpp, to_transformers
from ...planning.llama_cpp.names import ARCHITECTURES, DEEPSEEK, KEYS_AND_VALUES, ROUTER_BIAS
from ...planning.llama_cpp.regrouping import NOTHING
from ...util.text import count, escape, listing
from ..model_folder.folder import ModelFolder
from .deepseek import deepseek_entries, groups_note, sizes_in_config, sizes_in_metadata
from .rope import factors_of

__all__ = ["deepseek_to_gguf", "deepseek_to_transformers"]

LAYERS = "model.layers."
PREDICTS = "eh_proj.weight"
"""Only layers for multi-token prediction have this tensor; llama.cpp has no such layers for DeepSeek V2 and V3."""
_BIAS_OF_ROUTER = (ROUTER_BIAS.rpartition(".")[2], ARCHITECTURES[DEEPSEEK].names[ROUTER_BIAS].rpartition("}.")[2])


def deepseek_to_gguf(
    checkpoint: Checkpoint, folder: ModelFolder
) -> tuple[LayoutChange, Mapping[str, str], tuple[str, ...]]:
    """Return the change to llama.cpp's layout, the metadata that describe the changed model, and notes.

    Raises PlanError for a tensor that is missing or has another shape than config.json says.
    """
    config, keys = folder.config, list(checkpoint)
    sizes = sizes_in_config(config)
    factors_of(config, DEEPSEEK, sizes.rotary)
    metadata = deepseek_entries(config, sizes)
    without = _predicting(checkpoint, sizes)
    wanted = shapes_of(sizes)
    _check(checkpoint, wanted, "config.json", ["lm_head.weight"] if folder.is_tied else [])
    change = to_llama_cpp(DEEPSEEK, keys, None, tied=folder.is_tied, without=without, regrouping=split(sizes))
    check_known(keys, wanted, change, f"llama.cpp's architecture {DEEPSEEK}")
    return change, metadata, (*_notes_on_left(keys, without), *groups_note(config))


def _predicting(checkpoint: Checkpoint, sizes: DeepseekSizes) -> list[int]:
    """Return the indices of the layers for multi-token prediction: all indices from ``num_hidden_layers`` on.

    Raises PlanError if a layer with such an index is not for multi-token prediction.
    """
    numbers = {part for key in checkpoint if key.startswith(LAYERS) and (part := key.split(".")[2]).isdecimal()}
    behind = sorted(int(part) for part in numbers if len(part) < 9 and int(part) >= sizes.layers)
    for number in behind:
        if f"{LAYERS}{number}.{PREDICTS}" not in checkpoint:
            first = next(key for key in checkpoint if key.startswith(f"{LAYERS}{number}."))
            raise PlanError(
                f"config.json gives num_hidden_layers as {sizes.layers}, but {escape(checkpoint.path)} has "
                f"{escape(first)}, a tensor of a further layer.",
                hint="Correct config.json.",
            )
    return behind


def _notes_on_left(keys: Sequence[str], without: Sequence[int]) -> tuple[str, ...]:
    layers = [f"{LAYERS}{number}" for number in without]
    number = sum(key.startswith(f"{layer}.") for layer in layers for key in keys)
    if not layers:
        return ()
    return (
        f"left out: {listing(layers)} ({count(number, 'tensor')}), layers for multi-token prediction, which "
        f"llama.cpp's {DEEPSEEK} does not have; generated texts stay the same",
    )


def deepseek_to_transformers(checkpoint: Checkpoint) -> LayoutChange:
    """Return the change to the layout of transformers.

    Raises PlanError for a tensor that is missing or has another shape than the metadata say, and for quantised tensors.
    """
    if checkpoint.codes:
        raise PlanError(
            f"the weights of {escape(checkpoint.path)} are quantised in blocks, which cannot be split or joined.",
            hint="Decode the weights with --dequantize.",
        )
    rows = checkpoint["token_embd.weight"].shape[:1] if "token_embd.weight" in checkpoint else ()
    sizes = sizes_in_metadata(checkpoint.metadata, rows[0] if rows else 1)
    has_one = any(key.endswith(f"{KEYS_AND_VALUES_THERE}.weight") for key in checkpoint)
    wanted = stored_as(sizes, is_split=not has_one)
    _check(checkpoint, wanted, "its metadata", ["output.weight"])
    left, regrouping = (PARTS, NOTHING) if has_one else ((), joined(sizes))
    change = to_transformers(DEEPSEEK, list(checkpoint), None, left=left, regrouping=regrouping)
    check_known(list(checkpoint), wanted, change, "transformers")
    return change


KEYS_AND_VALUES_THERE = ARCHITECTURES[DEEPSEEK].names[KEYS_AND_VALUES].rpartition("}")[2]


def _check(
    checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]], described_by: str, optional: Sequence[str]
) -> None:
    found = {key: info.shape for key, info in checkpoint.items()}
    check_tensors(wanted, found, optional=(*optional, *_BIAS_OF_ROUTER), of=checkpoint.path, described_by=described_by)
