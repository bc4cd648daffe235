"""The steps of an adapter: the two factors of a weight, and tensors that go along whole. Pure."""

from __future__ import annotations

from ..plan import Factor, Input, Step
from ..tensors import TensorInfo
from ..text import shape_text
from .extract_options import Extraction
from .extract_sorting import Sorted, is_embedding, module_of

__all__ = ["factor_steps", "saved_name", "saved_step", "scale_of"]

PREFIX = "base_model.model."


def scale_of(asked: Extraction) -> float:
    """Return what the product of the factors counts: alpha over the rank that was asked for."""
    return 1.0 if asked.alpha is None else asked.alpha / asked.rank


def _lies(key: str, asked: Extraction) -> bool:
    """Whether a weight is (in, out): that of an embedding always is."""
    return asked.transposed or is_embedding(key)


def factor_steps(key: str, ours: TensorInfo, theirs: TensorInfo, asked: Extraction) -> list[Step]:
    """Return the steps of a weight's two factors, which follow each other: they are made at once."""
    module, rank, embedding = module_of(key), min(asked.rank, *ours.shape), is_embedding(key)
    names = (
        {"A": "lora_embedding_A", "B": "lora_embedding_B"}
        if embedding
        else {"A": "lora_A.weight", "B": "lora_B.weight"}
    )
    made = []
    for part, name in names.items():
        factor = Factor(part, rank, scale_of(asked), _lies(key, asked), asked.seed)
        made.append(
            Step(
                f"{PREFIX}{module}.{name}", "factor", asked.dtype, factor.shape(ours.shape), 0, key, ours.dtype,
                ours.shape, rule=f"rank {rank} of {shape_text(ours.shape)}",
                more=(Input(1, key, theirs.dtype, theirs.shape),), factor=factor,
            )
        )  # fmt: skip
    return made


def saved_name(key: str, found: Sorted) -> str:
    """Return the name that PEFT gives a tensor that is saved whole: a layer with factors wraps what it was."""
    module, _, last = key.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if key in found.biases else f"{PREFIX}{key}"


def saved_step(key: str, name: str, info: TensorInfo) -> Step:
    """Return the step of a tensor that goes along as it is, under a name of PEFT's."""
    return Step(name, "copy", info.dtype, info.shape, 0, key, info.dtype, info.shape, rule="--save-modules")
