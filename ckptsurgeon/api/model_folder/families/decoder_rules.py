"""Rules for the shapes of decoder-only language models."""

from __future__ import annotations

from .fields import Fields, rules

__all__ = ["FALCON", "GPT2", "LLAMA", "NEOX", "OPT", "PHI3"]


def _heads(c: Fields) -> tuple[int, int]:
    """Return (number of rows of all query heads together, number of rows of all key heads together).

    If the configuration ``c`` does not say otherwise, there are as many key heads as query heads.
    """
    heads = c["num_attention_heads"]
    size = c.get("head_dim", c["hidden_size"] // heads)
    return heads * size, c.get("num_key_value_heads", heads) * size


LLAMA = rules({
    "norm.weight layers.#.input_layernorm.weight layers.#.post_attention_layernorm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "lm_head.weight": lambda c, _: (None, c["hidden_size"]),
    "layers.#.self_attn.q_proj.weight layers.#.self_attn.k_proj.weight layers.#.self_attn.v_proj.weight "
    "layers.#.mlp.gate_proj.weight layers.#.mlp.up_proj.weight": lambda c, _: (None, c["hidden_size"]),
    "layers.#.self_attn.o_proj.weight layers.#.mlp.down_proj.weight": lambda c, _: (c["hidden_size"], None),
})  # fmt: skip
PHI3 = rules({
    "layers.#.self_attn.qkv_proj.weight": lambda c, _: (_heads(c)[0] + 2 * _heads(c)[1], c["hidden_size"]),
    "layers.#.self_attn.o_proj.weight": lambda c, _: (c["hidden_size"], _heads(c)[0]),
    "layers.#.mlp.gate_up_proj.weight": lambda c, _: (2 * c["intermediate_size"], c["hidden_size"]),
})  # fmt: skip
GPT2 = rules({  # weights of Conv1D have the shape (in, out)
    "ln_f.weight ln_f.bias h.#.ln_1.weight h.#.ln_1.bias h.#.ln_2.weight h.#.ln_2.bias h.#.attn.c_proj.bias": (
        lambda c, _: (c["n_embd"],)
    ),
    "h.#.attn.c_attn.weight": lambda c, _: (c["n_embd"], 3 * c["n_embd"]),
    "h.#.attn.c_attn.bias": lambda c, _: (3 * c["n_embd"],),
    "h.#.attn.c_proj.weight": lambda c, _: (c["n_embd"], c["n_embd"]),
    "h.#.mlp.c_fc.weight": lambda c, _: (c["n_embd"], c.get("n_inner", 4 * c["n_embd"])),
    "h.#.mlp.c_fc.bias": lambda c, _: (c.get("n_inner", 4 * c["n_embd"]),),
    "h.#.mlp.c_proj.weight": lambda c, _: (c.get("n_inner", 4 * c["n_embd"]), c["n_embd"]),
    "lm_head.weight wte.weight": lambda c, _: (None, c["n_embd"]),
}, has_biases=False)  # fmt: skip
OPT = rules({
    "layers.#.self_attn.q_proj.weight layers.#.self_attn.k_proj.weight layers.#.self_attn.v_proj.weight "
    "layers.#.self_attn.out_proj.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layers.#.self_attn_layer_norm.weight layers.#.final_layer_norm.weight decoder.final_layer_norm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "layers.#.fc1.weight": lambda c, _: (c["ffn_dim"], c["hidden_size"]),
    "layers.#.fc2.weight": lambda c, _: (c["hidden_size"], c["ffn_dim"]),
})  # fmt: skip
NEOX = rules({
    "final_layer_norm.weight layers.#.input_layernorm.weight layers.#.post_attention_layernorm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "embed_in.weight embed_out.weight lm_head.weight": lambda c, _: (None, c["hidden_size"]),
    "layers.#.attention.query_key_value.weight": lambda c, _: (3 * c["hidden_size"], c["hidden_size"]),
    "layers.#.attention.dense.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layers.#.mlp.dense_h_to_4h.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "layers.#.mlp.dense_4h_to_h.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
})  # fmt: skip
FALCON = rules({
    "transformer.ln_f.weight": lambda c, _: (c["hidden_size"],),
    "word_embeddings.weight lm_head.weight": lambda c, _: (None, c["hidden_size"]),
})  # fmt: skip
