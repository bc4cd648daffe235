"""Rules for the shapes of text encoders."""

from __future__ import annotations

from .fields import rules

__all__ = ["ALBERT", "BERT", "DISTILBERT", "ELECTRA", "EMBEDDED"]

BERT = rules({
    "layer.#.attention.self.query.weight layer.#.attention.self.key.weight layer.#.attention.self.value.weight "
    "layer.#.attention.output.dense.weight pooler.dense.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layer.#.attention.output.LayerNorm.weight layer.#.output.LayerNorm.weight": lambda c, _: (c["hidden_size"],),
    "layer.#.intermediate.dense.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "layer.#.output.dense.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
    "cls.predictions.transform.dense.weight lm_head.dense.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "cls.predictions.transform.LayerNorm.weight lm_head.layer_norm.weight": lambda c, _: (c["hidden_size"],),
    "cls.predictions.decoder.weight lm_head.decoder.weight": lambda c, _: (c["vocab_size"], c["hidden_size"]),
    "cls.predictions.bias lm_head.bias": lambda c, _: (c["vocab_size"],),
})  # fmt: skip
EMBEDDED = rules({"embeddings.LayerNorm.weight": lambda c, _: (c["hidden_size"],)})
ELECTRA = rules({
    "embeddings.LayerNorm.weight generator_predictions.LayerNorm.weight": lambda c, _: (c["embedding_size"],),
    "generator_predictions.dense.weight": lambda c, _: (c["embedding_size"], c["hidden_size"]),
})  # fmt: skip

ALBERT = rules({
    "embeddings.LayerNorm.weight predictions.LayerNorm.weight": lambda c, _: (c["embedding_size"],),
    "embedding_hidden_mapping_in.weight": lambda c, _: (c["hidden_size"], c["embedding_size"]),
    " ".join(f"albert_layers.#.attention.{one}.weight" for one in ("query", "key", "value", "dense")): (
        lambda c, _: (c["hidden_size"], c["hidden_size"])
    ),
    "albert_layers.#.attention.LayerNorm.weight albert_layers.#.full_layer_layer_norm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "albert_layers.#.ffn.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "albert_layers.#.ffn_output.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
    "predictions.dense.weight": lambda c, _: (c["embedding_size"], c["hidden_size"]),
    "predictions.decoder.weight": lambda c, _: (c["vocab_size"], c["embedding_size"]),
})  # fmt: skip
DISTILBERT = rules({
    "embeddings.LayerNorm.weight vocab_layer_norm.weight layer.#.sa_layer_norm.weight "
    "layer.#.output_layer_norm.weight": lambda c, _: (c["dim"],),
    "layer.#.attention.q_lin.weight layer.#.attention.k_lin.weight layer.#.attention.v_lin.weight "
    "layer.#.attention.out_lin.weight vocab_transform.weight": lambda c, _: (c["dim"], c["dim"]),
    "layer.#.ffn.lin1.weight": lambda c, _: (c["hidden_dim"], c["dim"]),
    "layer.#.ffn.lin2.weight": lambda c, _: (c["dim"], c["hidden_dim"]),
    "vocab_projector.weight": lambda c, _: (c["vocab_size"], c["dim"]),
})  # fmt: skip
