"""A note on a ``dtype`` in config.json that is not the dtype of the weights in the same folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.dtypes import DTYPES
from ....tensors.quantised.settings import quantisation_of
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape
from ..config import DTYPE, OF_MODELS

__all__ = ["declared_dtype_notes"]

LOADED = {"safetensors", "torch zip", "torch legacy", "torch tar"}
"""The formats whose weights transformers casts to ``dtype``. (Weights of Flax and TensorFlow often stay float32.)"""
NEARLY = 0.99
"""There is a note only if at least this share of all floating-point bytes has the same dtype.

Norms, routers and states may be float32 in any model.
"""


@notes_of(NoteKind.DECLARED_DTYPE)
def declared_dtype_notes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if config.json states a dtype, but (nearly) all weights have one other dtype.

    The ``dtype`` of a quantised model is the dtype of its computations, so such models get no note. Nested
    configurations are not compared: transformers takes the outer ``dtype`` for all parts. Only headers are read.
    """
    field = next((name for name in DTYPE if config.get(name)), "")
    stated = str(config.get(field)).removeprefix("torch.")
    of_transformers = "model_type" in config or "architectures" in config
    formats = checkpoint.format.removeprefix("sharded ").split(" and ")
    if stated not in OF_MODELS or not of_transformers or not set(formats) <= LOADED:
        return
    if checkpoint.codes or checkpoint.stored is not None or quantisation_of(config):
        return
    sizes = Counter[str]()
    for info in checkpoint.values():
        if DTYPES[info.dtype].kind == "float":
            sizes[info.dtype] += prod(info.shape) * DTYPES[info.dtype].bits
    ((dtype, size),) = sizes.most_common(1) or [("", 0)]
    if size and dtype in OF_MODELS and dtype != stated and size >= NEARLY * sizes.total():
        said = (
            f"config.json says {escape(stated)} ({field}), but {'all' if len(sizes) == 1 else 'nearly all'} weights are"
        )
        yield f"{said} {dtype}: transformers casts them to {stated}"
