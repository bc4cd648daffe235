"""Parakeet, FastConformer with a CTC head: transformers and NeMo (https://github.com/NVIDIA/NeMo)."""

from __future__ import annotations

from ..layout import Family, Layout

__all__ = ["FAMILY", "NOT_ESPNET"]

NOT_ESPNET = (
    "ESPnet's conformer is another network: its subsampling has convolutions without padding, and a norm follows its "
    "last layer"
)
"""A hint. The layers are alike, with two half feed-forward blocks, relative positions and a batch norm. But NeMo pads
its subsampling by 1, so that the sequence and the input of the linear layer have other sizes.

https://github.com/espnet/espnet/blob/master/espnet/nets/pytorch_backend/transformer/subsampling.py
"""
_LAYER = "encoder.layers.{n}."
_SAME = (
    *(f"feed_forward{n}" for n in (1, 2)),
    *(f"conv.{name}" for name in ("pointwise_conv1", "depthwise_conv", "pointwise_conv2")),
    *(f"norm_{name}" for name in ("feed_forward1", "self_att", "conv", "feed_forward2", "out")),
)
_NEMO = {
    "encoder.subsampling.layers": "encoder.pre_encode.conv",
    "encoder.subsampling.linear": "encoder.pre_encode.out",
    **{f"{_LAYER}{name}": f"{_LAYER}{name}" for name in _SAME},
    f"{_LAYER}conv.norm": f"{_LAYER}conv.batch_norm",
    f"{_LAYER}self_attn.q_proj": f"{_LAYER}self_attn.linear_q",
    f"{_LAYER}self_attn.k_proj": f"{_LAYER}self_attn.linear_k",
    f"{_LAYER}self_attn.v_proj": f"{_LAYER}self_attn.linear_v",
    f"{_LAYER}self_attn.o_proj": f"{_LAYER}self_attn.linear_out",
    f"{_LAYER}self_attn.relative_k_proj": f"{_LAYER}self_attn.linear_pos",
    f"{_LAYER}self_attn.bias_u": f"{_LAYER}self_attn.pos_bias_u",
    f"{_LAYER}self_attn.bias_v": f"{_LAYER}self_attn.pos_bias_v",
    "ctc_head": "decoder.decoder_layers.0",
}

FAMILY = Family(
    "parakeet",
    (
        Layout(
            "transformers", "transformers", "transformers 5.23.0", {ours: ours for ours in _NEMO},
            ("encoder.subsampling.linear.weight", "encoder.layers.0.self_attn.relative_k_proj.weight"),
        ),
        Layout(
            "nemo", "NeMo", "nemo_toolkit 3.0.0", _NEMO,
            ("encoder.pre_encode.out.weight", "encoder.layers.0.self_attn.linear_pos.weight"),
            computed=("preprocessor.featurizer",),
        ),
    ),
)  # fmt: skip
