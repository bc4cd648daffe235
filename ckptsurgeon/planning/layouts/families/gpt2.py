"""GPT-2: transformers' layouts, with matrices (in, out), and nanoGPT's and Megatron-core's, with (out, in).

nanoGPT has the same names; it stores the tensor that the embedding and the output layer share under the names of both.
`../parts/megatron_gpt.py` describes Megatron-core's tensors.
https://github.com/openai/gpt-2, https://github.com/karpathy/nanoGPT
"""

from __future__ import annotations

from collections.abc import Callable

from ..changes import Transposed
from ..heads import equal_heads
from ..layout import Family, Layout, Tensors
from ..parts.megatron_gpt import Decoder, decoder_layouts, with_leaves
from ..parts.megatron_lm import megatron_lm_layouts
from ..row_changes import HeadsFromThirds

__all__ = ["FAMILY"]

_LAYER = "transformer.h.{n}"
_MATRICES = tuple(f"{_LAYER}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
_OTHERS = ("transformer.wte", "transformer.wpe", f"{_LAYER}.ln_1", f"{_LAYER}.ln_2", "transformer.ln_f")
_NAMES = with_leaves({name: name for name in (*_OTHERS, *_MATRICES, "lm_head")})
_BARE = with_leaves({name: name.removeprefix("transformer.") for name in (*_OTHERS, *_MATRICES)})
_FIRST = "transformer.h.0.attn.c_attn.weight"
_MASKS = (f"{_LAYER}.attn.bias", f"{_LAYER}.attn.masked_bias")
_BIASES = {**dict.fromkeys(_MATRICES, 1), **dict.fromkeys((f"{_LAYER}.ln_1", f"{_LAYER}.ln_2", "transformer.ln_f"), 0)}
"""{module whose bias nanoGPT may leave out: the dimension of its outputs in its weight}."""
_TIED = {"lm_head": "transformer.wte"}

_MEGATRON = Decoder(
    {
        "transformer.wte": "embedding.word_embeddings",
        "transformer.wpe": "embedding.position_embeddings",
        "transformer.ln_f": "decoder.final_layernorm",
        "lm_head": "output_layer",
    },
    _LAYER,
    norms=("ln_1", "ln_2"),
    attention=("attn.c_attn", "attn.c_proj"),
    mlp=("mlp.c_fc", "mlp.c_proj"),
)
_GELU = (
    "no tensor shows which GELU Megatron computes: an approximation with --openai-gelu or if it is fused with the bias "
    "(activation_function gelu_new in config.json), else the exact one (gelu)"
)


def _joined(key: str, dim: int) -> Callable[[Tensors], bool]:
    """Return a function that tests whether dimension ``dim`` of the matrix ``key`` is 3 times as long as the other.

    Such a matrix contains queries, keys and values.
    """

    def fits(tensors: Tensors) -> bool:
        shape = tensors[key].shape
        return len(shape) == 2 and shape[dim] == 3 * shape[1 - dim]

    return fits


def _ours(names: dict[str, str], prefix: str) -> Layout:
    """Return transformers' layout for keys with the prefix ``transformer.`` or, as in the first files, without it."""
    return Layout(
        "transformers", "transformers", "transformers 5.23.0", names,
        tuple(f"{prefix}{name}.weight" for name in ("wte", "wpe", "h.0.attn.c_attn")),
        computed=tuple(mask.replace("transformer.", prefix) for mask in _MASKS),
        tied=_TIED,
        fits=_joined(f"{prefix}h.0.attn.c_attn.weight", 1),
        biases=_BIASES,
    )  # fmt: skip


_CORE = decoder_layouts(
    _MEGATRON,
    (
        *(Transposed(f"{name}.weight") for name in _MATRICES),
        *(HeadsFromThirds(f"{_MATRICES[0]}.{leaf}", "heads") for leaf in ("weight", "bias")),
    ),
    has_positions=True,
    tied=_TIED,
    settings=_GELU,
    biases=_BIASES,
)

FAMILY = Family(
    "gpt2",
    (
        _ours(_NAMES, "transformer."),
        _ours(_BARE, ""),
        Layout(
            "nanogpt", "nanoGPT", "its network, written out", _NAMES,
            ("transformer.wte.weight", "transformer.wpe.weight", _FIRST),
            tuple(Transposed(f"{name}.weight") for name in _MATRICES),
            _MASKS[:1],
            doubled=_TIED,
            settings="nanoGPT has the exact GELU, transformers an approximation, unless config.json has "
            "activation_function: gelu",
            fits=_joined(_FIRST, 0),
        ),
        *_CORE,
        *megatron_lm_layouts(_CORE[1]),
    ),
    equal_heads,
)  # fmt: skip
