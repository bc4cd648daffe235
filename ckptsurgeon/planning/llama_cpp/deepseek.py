"""The tensors of DeepSeek V2 and V3, in transformers and in llama.cpp; keys and values share a latent vector.

In transformers one matrix makes keys and values from this vector. llama.cpp stores two matrices instead: the one for
the keys, transposed, and the one for the values (https://github.com/ggml-org/llama.cpp/pull/12801). Files of llama.cpp
from before April 2025 have one matrix, as in transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import PlanError
from ...util.text import count, escape, listing, shape_text
from .names import ARCHITECTURES, DEEPSEEK, KEYS_AND_VALUES, ROUTER_BIAS
from .regrouping import Regrouping

__all__ = ["PARTS", "DeepseekSizes", "check_tensors", "joined", "shapes_of", "split", "stored_as"]

KEYS_OF_HEADS, VALUES_OF_HEADS = PARTS = ("blk.{n}.attn_k_b", "blk.{n}.attn_v_b")
"""The two matrices that llama.cpp stores instead of the matrix of keys and values."""
LAYER = "model.layers.{n}."
MOST = 1_000_000
"""The most experts that all layers together may have."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class DeepseekSizes:
    """The sizes of a model, in numbers of rows and columns, and its numbers of layers, heads and experts.

    The first ``dense`` layers have no experts. Each head's key has ``plain`` elements without the rotary embedding and
    ``rotary`` elements with it; its value has ``value`` elements. ``query_rank`` is the length of the latent vector of
    the queries, 0 if they have none; ``rank`` is the length of the latent vector of keys and values. ``shared`` is the
    number of shared experts.
    """

    layers: int
    dense: int
    vocabulary: int
    width: int
    inner: int
    heads: int
    query_rank: int
    rank: int
    plain: int
    rotary: int
    value: int
    experts: int
    expert_inner: int
    shared: int

    def __post_init__(self) -> None:
        if self.layers * self.experts > MOST:
            raise PlanError(
                f"{self.layers} layers with {self.experts} experts each have more than {MOST} experts in total.",
                hint="Convert without changing the layout: --layout keep.",
            )


def _modules(sizes: DeepseekSizes, *, is_dense: bool) -> Shapes:
    """Return the shapes of a layer's weights by their modules in transformers; an expert is ``experts.{i}``.

    ``is_dense`` is true for a layer without experts.
    """
    key = sizes.heads * (sizes.plain + sizes.rotary)
    width, queries = sizes.width, sizes.query_rank
    found: Shapes = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    if queries:
        found |= {"self_attn.q_a_proj": (queries, width), "self_attn.q_a_layernorm": (queries,)}
    found["self_attn.q_b_proj" if queries else "self_attn.q_proj"] = (key, queries or width)
    found |= {
        "self_attn.kv_a_proj_with_mqa": (sizes.rank + sizes.rotary, width),
        "self_attn.kv_a_layernorm": (sizes.rank,),
        "self_attn.kv_b_proj": (sizes.heads * (sizes.plain + sizes.value), sizes.rank),
        "self_attn.o_proj": (width, sizes.heads * sizes.value),
    }
    if is_dense:
        return found | _perceptron("mlp", width, sizes.inner)
    found |= {"mlp.gate": (sizes.experts, width)} | _perceptron("mlp.experts.{i}", width, sizes.expert_inner)
    return found | _perceptron("mlp.shared_experts", width, sizes.shared * sizes.expert_inner)


def _perceptron(name: str, width: int, inner: int) -> Shapes:
    return {f"{name}.gate_proj": (inner, width), f"{name}.up_proj": (inner, width), f"{name}.down_proj": (width, inner)}


def _others(sizes: DeepseekSizes) -> Shapes:
    table = (sizes.vocabulary, sizes.width)
    return {"model.embed_tokens": table, "model.norm": (sizes.width,), "lm_head": table}


def shapes_of(sizes: DeepseekSizes) -> Shapes:
    """Return the shape of each tensor of the model, by its key in transformers."""
    found = {f"{name}.weight": shape for name, shape in _others(sizes).items()}
    for layer in range(sizes.layers):
        for module, shape in _modules(sizes, is_dense=layer < sizes.dense).items():
            name = f"{LAYER}{module}.weight".replace("{n}", str(layer))
            many = range(sizes.experts) if "{i}" in module else (0,)
            found |= {name.replace("{i}", str(number)): shape for number in many}
        if layer >= sizes.dense:
            found[ROUTER_BIAS.replace("{n}", str(layer))] = (sizes.experts,)
    return found


def stored_as(sizes: DeepseekSizes, *, is_split: bool) -> Shapes:
    """Return the shape of each tensor of the model, by its key in llama.cpp.

    ``is_split`` is true if keys and values have separate matrices.
    """
    names, experts = ARCHITECTURES[DEEPSEEK].names, ARCHITECTURES[DEEPSEEK].experts
    found = {f"{names[name]}.weight": shape for name, shape in _others(sizes).items()}
    for layer in range(sizes.layers):
        here: Shapes = {}
        for module, shape in _modules(sizes, is_dense=layer < sizes.dense).items():
            name = f"{LAYER}{module}"
            if name == KEYS_AND_VALUES and is_split:
                here |= {f"{KEYS_OF_HEADS}.weight": (sizes.heads, sizes.rank, sizes.plain)}
                here |= {f"{VALUES_OF_HEADS}.weight": (sizes.heads, sizes.value, sizes.rank)}
            elif name in experts:
                here[f"{experts[name]}.weight"] = (sizes.experts, *shape)
            else:
                here[f"{names[name]}.weight"] = shape
        if layer >= sizes.dense:
            here[names[ROUTER_BIAS]] = (sizes.experts,)
        found |= {name.replace("{n}", str(layer)): shape for name, shape in here.items()}
    return found


def check_tensors(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    optional: Collection[str],
    of: str,
    described_by: str,
) -> None:
    """Raise PlanError if a tensor in ``wanted`` is missing from the model or has another shape.

    ``wanted`` and ``found`` map keys to shapes; ``found`` has the tensors of the model. ``optional`` are endings of
    keys that a model may lack. ``of`` is the model's name in messages. ``described_by`` is the name of the sizes'
    origin in messages, such as ``config.json``.
    """
    missing = [key for key in wanted if key not in found and not key.endswith(tuple(optional))]
    if missing:
        raise PlanError(
            f"{escape(of)} lacks {count(len(missing), 'tensor')} that {described_by} describes: {listing(missing)}.",
            hint=f"Complete the model, correct {described_by}, or convert without changing the layout: --layout keep.",
            details=missing,
        )
    for key, shape in wanted.items():
        if found.get(key, shape) != shape:
            raise PlanError(
                f"{escape(key)} of {escape(of)} is {shape_text(found[key])}, but must be {shape_text(shape)} by the "
                f"sizes in {described_by}.",
                hint=f"Correct {described_by}, or convert without changing the layout: --layout keep.",
            )


def split(sizes: DeepseekSizes) -> Regrouping:
    """Return the operations that make llama.cpp's matrices of keys and of values from transformers' one matrix."""
    key, parts = f"{KEYS_AND_VALUES}.weight", [sizes.plain, sizes.value]
    into = [f"{name}.weight" for name in PARTS]
    operations: tuple[Mapping[str, Any], ...] = (
        {"reshape": key, "shape": [sizes.heads, sum(parts), sizes.rank]},
        {"split": key, "into": into, "dim": 1, "sizes": parts},
        {"permute": into[0], "dims": [0, 2, 1]},
    )
    return Regrouping(operations, (key,))


def joined(sizes: DeepseekSizes) -> Regrouping:
    """Return the operations that make transformers' one matrix from llama.cpp's matrices of keys and of values."""
    key, parts = f"{KEYS_AND_VALUES}.weight", [f"{name}.weight" for name in PARTS]
    operations: tuple[Mapping[str, Any], ...] = (
        {"permute": parts[0], "dims": [0, 2, 1]},
        {"concat": parts, "into": key, "dim": 1},
        {"reshape": key, "shape": [sizes.heads * (sizes.plain + sizes.value), sizes.rank]},
    )
    return Regrouping(operations, tuple(parts))
