"""Makes the masks of transformers' models without reading values from the GPU, to avoid GPU synchronisations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["masks_on_cpu", "unchecked_padding", "unchecked_positions"]

PADDING_MASK = "create_bidirectional_mask"


@contextmanager
def masks_on_cpu(body: Any, frame_mask: Tensor | None) -> Iterator[None]:
    """Inside the block, let ``body``, a model without its head, draw masks (SpecAugment) without reading from the GPU.

    transformers sums the padding mask on the GPU, copies the drawn mask to the GPU, and searches this mask for true
    elements. It also copies a number from the CPU into the padding mask of the frames. Each of these operations makes
    the CPU wait for all work that is queued on the GPU. ``frame_mask`` (batch, frames), on the CPU, is true for frames
    that are not padding; it is None if the model gets no padding mask. The random numbers are the same as the numbers
    that transformers would draw.
    """
    original = getattr(body, "_mask_hidden_states", None)
    draw = getattr(sys.modules[type(body).__module__], "_compute_mask_indices", None)
    if original is None or draw is None or not body.training:
        yield
        return
    body._mask_hidden_states = partial(_masked, body, draw, original, frame_mask)
    body._get_feature_vector_attention_mask = partial(_frame_mask, body)
    try:
        with unchecked_padding(body):
            yield
    finally:
        del body._mask_hidden_states, body._get_feature_vector_attention_mask


def _frame_mask(body: Any, frames: int, attention_mask: Tensor, **given: Any) -> Tensor:
    """Return a mask (batch, frames) that is true for frames that are not padding; ``attention_mask`` is for samples.

    For a clip that is too short for one frame, the mask is all false; transformers' own mask would be all true.
    """
    lengths = body._get_feat_extract_output_lengths(attention_mask.sum(-1), **given)
    mask: Tensor = torch.arange(frames, device=attention_mask.device) < lengths[:, None]
    return mask


def _masked(
    body: Any, draw: Any, original: Any, frame_mask: Tensor | None, hidden: Tensor,
    mask_time_indices: Tensor | None = None, attention_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    config = body.config
    if mask_time_indices is not None or not getattr(config, "apply_spec_augment", True):
        return original(hidden, mask_time_indices=mask_time_indices, attention_mask=attention_mask)  # type: ignore[no-any-return]
    clips, frames, size = hidden.shape
    if config.mask_time_prob > 0:
        spans = draw(
            (clips, frames), mask_prob=config.mask_time_prob, mask_length=config.mask_time_length,
            attention_mask=frame_mask, min_masks=config.mask_time_min_masks,
        )  # fmt: skip
        hidden = torch.where(_uploaded(spans, hidden)[..., None], body.masked_spec_embed.to(hidden.dtype), hidden)
    if config.mask_feature_prob > 0:
        bands = draw(
            (clips, size), mask_prob=config.mask_feature_prob, mask_length=config.mask_feature_length,
            min_masks=config.mask_feature_min_masks,
        )  # fmt: skip
        hidden = hidden.masked_fill(_uploaded(bands, hidden)[:, None], 0)
    return hidden


def _uploaded(mask: Any, like: Tensor) -> Tensor:
    """Return a numpy mask as a tensor on the device of ``like``; the copy is queued, and nothing waits for it."""
    made = torch.from_numpy(mask)
    if like.is_cuda:
        made = made.pin_memory()
    return made.to(like.device, non_blocking=True)


@contextmanager
def unchecked_padding(body: Any) -> Iterator[None]:
    """Inside the block, keep transformers from checking on the GPU whether a padding mask is true everywhere.

    transformers makes this check to drop a mask that is not needed. Without the check, the caller must itself pass no
    mask if the batch has no padding.
    """
    module = sys.modules[type(body).__module__]
    original: Any = getattr(module, PADDING_MASK, None)
    known = original is not None and "allow_is_bidirectional_skip" in _signature(original).parameters
    with _replaced(module, PADDING_MASK, partial(_unchecked, original) if known else None):
        yield


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _unchecked(original: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """Call transformers' function ``original``, but keep it from checking the values of a padding mask.

    A call without a padding mask is not changed, so that it returns None. Any mask as the result, even one that is true
    everywhere, would prevent fast attention kernels: with such a mask, a run on an H200 took twice the memory.
    """
    bound = _signature(original).bind(*args, **given)
    if bound.arguments.get("attention_mask") is not None:
        given["allow_is_bidirectional_skip"] = False  # t5gemma2 passes another value
    return original(*args, **given)


@contextmanager
def unchecked_positions() -> Iterator[None]:
    """Inside the block, keep transformers from checking on the GPU whether position ids restart within a row.

    If the model is called without position ids, they do not restart: the model then counts each row from 0.
    """
    with _replaced(sys.modules.get("transformers.masking_utils"), "find_packed_sequence_indices", _no_sequences):
        yield


def _no_sequences(position_ids: Tensor) -> None:
    """Return None for all position ids; for transformers, this means that each row is a single sequence."""


@contextmanager
def _replaced(module: Any, name: str, function: Callable[..., Any] | None) -> Iterator[None]:
    """Inside the block, replace the function ``name`` of a Python module.

    Do nothing if the module has no such function, or while torch.compile traces.
    """
    original = getattr(module, name, None)
    if original is None or function is None or torch.compiler.is_compiling():
        yield
        return
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)
