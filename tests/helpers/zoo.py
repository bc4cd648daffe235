"""Small models, quantised as each method stores them: names, dtypes and shapes are theirs, values are random."""

from __future__ import annotations

import torch

from .quantised import IN, LAYERS, OUT, PLAIN, Quantised, eight_bits, exponents, fp8, scales, words

__all__ = ["BY_NAME", "IN", "LAYERS", "OUT", "PLAIN", "ZOO", "Quantised"]

HALF = torch.float16

ZOO = (
    Quantised(
        "fp8-block", "fp8 with block scales",
        lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale_inv": scales(g, 2, 2)},
        {"quant_method": "fp8", "weight_block_size": [32, 64]},
    ),
    Quantised(
        "fp8-experts", "fp8 with block scales",
        lambda g: {"": fp8(g, 4, OUT, IN), "_scale_inv": scales(g, 4, 2, 2)},
        {"quant_method": "fp8"}, ("model.layers.0.mlp.experts.gate_up_proj",), 4 * OUT * IN,
    ),
    Quantised(
        "fp8-tensor", "fp8 with one scale",
        lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale": scales(g), ".input_scale": scales(g)},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
    ),
    Quantised(
        "fp8-channel", "fp8 with channel scales",
        lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale": scales(g, OUT, 1)},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ),
    Quantised(
        "fp8-comfy", "fp8 with one scale",
        lambda g: {".weight": fp8(g, OUT, IN), ".scale_weight": scales(g), ".scale_input": scales(g)},
    ),
    Quantised(
        "fp8-descale", "fp8 with one scale",
        lambda g: {".weight": fp8(g, OUT, IN), ".weight_descale": scales(g), ".input_descale": scales(g)},
    ),
    Quantised(
        "mxfp8", "mxfp8", lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale": eight_bits(g, OUT, IN // 32)},
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
    ),
    Quantised(
        "mxfp4", "mxfp4",
        lambda g: {"_blocks": eight_bits(g, 4, OUT, IN // 32, 16), "_scales": eight_bits(g, 4, OUT, IN // 32),
                   "_bias": scales(g, 4, OUT, dtype=torch.bfloat16)},
        {"quant_method": "mxfp4"}, ("model.layers.0.mlp.experts.gate_up_proj",), 4 * OUT * IN,
    ),
    Quantised(
        "nvfp4-packed", "nvfp4",
        lambda g: {".weight_packed": eight_bits(g, OUT, IN // 2), ".weight_scale": fp8(g, OUT, IN // 16),
                   ".weight_global_scale": 1 / scales(g, 1), ".input_global_scale": scales(g, 1)},
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    ),
    Quantised(
        "nvfp4-modelopt", "nvfp4",
        lambda g: {".weight": eight_bits(g, OUT, IN // 2), ".weight_scale": fp8(g, OUT, IN // 16),
                   ".weight_scale_2": scales(g), ".input_scale": scales(g)},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ),
    Quantised(
        "int8", "int8 with scales",
        lambda g: {".weight": eight_bits(g, OUT, IN, dtype=torch.int8), ".weight_scale": scales(g, OUT, 1, dtype=HALF)},
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
    ),
    Quantised(
        "int4-packed", "int4 packed (compressed-tensors)",
        lambda g: {".weight_packed": words(g, OUT, IN // 8), ".weight_scale": scales(g, OUT, 4, dtype=HALF),
                   ".weight_zero_point": words(g, OUT // 8, 4), ".weight_shape": torch.tensor([OUT, IN])},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
    ),
    Quantised(
        "gptq", "GPTQ, 4 bits",
        lambda g: {".qweight": words(g, IN // 8, OUT), ".qzeros": words(g, 4, OUT // 8),
                   ".scales": scales(g, 4, OUT, dtype=HALF), ".g_idx": torch.arange(IN, dtype=torch.int32) // 32},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
    ),
    Quantised(
        "gptq-3bit", "GPTQ, 3 bits",
        lambda g: {".qweight": words(g, IN * 3 // 32, OUT), ".qzeros": words(g, 4, OUT * 3 // 32),
                   ".scales": scales(g, 4, OUT, dtype=HALF)},
        {"quant_method": "gptq", "bits": 3},
    ),
    Quantised(
        "awq", "AWQ, 4 bits",
        lambda g: {".qweight": words(g, IN, OUT // 8), ".qzeros": words(g, 4, OUT // 8),
                   ".scales": scales(g, 4, OUT, dtype=HALF)},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
    ),
    Quantised(
        "bnb-nf4", "bitsandbytes nf4",
        lambda g: {".weight": eight_bits(g, OUT * IN // 2, 1), ".weight.absmax": eight_bits(g, OUT * IN // 64),
                   ".weight.quant_map": scales(g, 16), ".weight.nested_absmax": scales(g, 1),
                   ".weight.nested_quant_map": scales(g, 256),
                   ".weight.quant_state.bitsandbytes__nf4": eight_bits(g, 90)},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ),
    Quantised(
        "bnb-fp4-bf16", "bitsandbytes fp4",
        lambda g: {".weight": torch.randn(OUT * IN // 4, 1, generator=g).bfloat16(),
                   ".weight.absmax": scales(g, OUT * IN // 64), ".weight.quant_map": scales(g, 16),
                   ".weight.quant_state.bitsandbytes__fp4": eight_bits(g, 90)},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
    ),
    Quantised(
        "bnb-int8", "bitsandbytes int8",
        lambda g: {".weight": eight_bits(g, OUT, IN, dtype=torch.int8), ".SCB": scales(g, OUT),
                   ".weight_format": torch.tensor(0, dtype=torch.uint8)},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
    Quantised(
        "mlx", "MLX, 4 bits",
        lambda g: {".weight": words(g, OUT, IN // 8).view(torch.uint32), ".scales": scales(g, OUT, 2, dtype=HALF),
                   ".biases": scales(g, OUT, 2, dtype=HALF)},
        {"group_size": 64, "bits": 4},
    ),
    Quantised(
        "aqlm", "AQLM",
        lambda g: {".codes": eight_bits(g, OUT, IN // 8, 2, dtype=torch.int8), ".codebooks": scales(g, 2, 256, 1, 8),
                   ".scales": scales(g, OUT, 1, 1, 1)},
        {"quant_method": "aqlm"},
    ),
    Quantised(
        "bitnet", "BitNet", lambda g: {".weight": eight_bits(g, OUT // 4, IN), ".weight_scale": scales(g, 1)},
        {"quant_method": "bitnet"},
    ),
    Quantised(
        "eetq", "EETQ int8",
        lambda g: {".weight": eight_bits(g, IN, OUT, dtype=torch.int8), ".weight_scales": scales(g, OUT, dtype=HALF)},
        {"quant_method": "eetq"},
    ),
    Quantised(
        "quanto", "Quanto",
        lambda g: {".weight._data": eight_bits(g, OUT, IN, dtype=torch.int8), ".weight._scale": scales(g, OUT, 1)},
    ),
    Quantised(
        "mxfp4-quark", "mxfp4",
        lambda g: {".weight": eight_bits(g, OUT, IN // 2), ".weight_scale": eight_bits(g, OUT, IN // 32)},
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
    ),
    Quantised(
        "fp4-deepseek-v4", "mxfp4",
        lambda g: {".weight": eight_bits(g, OUT, IN // 2, dtype=torch.int8), ".scale": exponents(g, OUT, IN // 32)},
    ),
    Quantised(
        "fp4-experts", "mxfp4",
        lambda g: {"": eight_bits(g, 4, OUT, IN // 2, dtype=torch.int8), "_scale_inv": exponents(g, 4, OUT, IN // 32)},
        {"quant_method": "fp8"}, ("model.layers.0.mlp.experts.gate_up_proj",), 4 * OUT * IN,
    ),
    Quantised(
        "nvfp4-awq", "nvfp4",
        lambda g: {".weight": eight_bits(g, OUT, IN // 2), ".weight_scale": fp8(g, OUT, IN // 16),
                   ".weight_scale_2": scales(g), ".pre_quant_scale": scales(g, IN), ".input_scale": scales(g)},
        {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"},
    ),
    Quantised(
        "int8-comfy", "int8 with scales",
        lambda g: {".weight": eight_bits(g, OUT, IN, dtype=torch.int8), ".weight_scale": scales(g, OUT // 32, IN // 32),
                   ".input_scale": scales(g), ".pre_quant_scale": scales(g, IN), ".comfy_quant": eight_bits(g, 40)},
    ),
    Quantised(
        "int8-awq", "int8 with scales",
        lambda g: {".weight": eight_bits(g, OUT, IN, dtype=torch.int8), ".weight_scale": scales(g, OUT),
                   ".pre_quant_scale": scales(g, IN)},
        {"quant_method": "modelopt", "quant_algo": "W8A8_SQ_PER_CHANNEL"},
    ),
    Quantised(
        "gemma-int4", "packed integers with scales",
        lambda g: {".weight": eight_bits(g, OUT, IN // 2), ".weight_scale": scales(g, OUT, 1),
                   ".input_activation_scale": scales(g), ".output_activation_scale": scales(g)},
        {"quant_method": "gemma"}, parameters=None,
    ),
    Quantised(
        "int4-or-8", "packed integers (compressed-tensors)",
        lambda g: {".weight_packed": words(g, OUT, IN // 8), ".weight_scale": scales(g, OUT, 1, dtype=HALF),
                   ".weight_shape": torch.tensor([OUT, IN])},
        {"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"weights": {"num_bits": 8, "group_size": None}},
            "group_1": {"weights": {"num_bits": 4, "group_size": None}}}},
        parameters=None,
    ),
    Quantised(
        "int4-second-group", "int4 packed (compressed-tensors)",
        lambda g: {".weight_packed": words(g, OUT, IN // 8), ".weight_scale": scales(g, OUT, IN // 32, dtype=HALF),
                   ".weight_shape": torch.tensor([OUT, IN])},
        {"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"weights": {"num_bits": 8, "group_size": None}, "input_activations": {"num_bits": 8}},
            "group_1": {"weights": {"num_bits": 4, "group_size": 32}}}},
    ),
    Quantised(
        "marlin-24", "2:4 packed (compressed-tensors)",
        lambda g: {".weight_packed": words(g, IN // 32, OUT * 2), ".scale_packed": scales(g, 1, OUT, dtype=HALF),
                   ".meta": torch.zeros(IN, OUT // 16, dtype=torch.int16)},
        {"quant_method": "compressed-tensors", "format": "marlin-24"}, parameters=None,
    ),
    Quantised(
        "mlx-other-bits", "MLX, 8 bits",
        lambda g: {".weight": words(g, OUT, IN // 4).view(torch.uint32), ".scales": scales(g, OUT, 2, dtype=HALF),
                   ".biases": scales(g, OUT, 2, dtype=HALF)},
        {"group_size": 64, "bits": 4},
    ),
    Quantised(
        "mlx-other-groups", "MLX, 8 bits",
        lambda g: {".weight": words(g, OUT, IN // 4).view(torch.uint32), ".scales": scales(g, OUT, 4, dtype=HALF),
                   ".biases": scales(g, OUT, 4, dtype=HALF)},
        {"group_size": 64, "bits": 4, **{layer: {"group_size": 32, "bits": 8} for layer in LAYERS}},
    ),
    Quantised(
        "gptq-plain", "GPTQ, 8 bits",
        lambda g: {".qweight": words(g, IN // 4, OUT), ".scales": scales(g, 4, OUT, dtype=HALF)},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"x": {"bits": 8, "group_size": 32}},
         "sym": True, "checkpoint_format": "gptq_v2"},
    ),
    Quantised(
        "hqq", "HQQ",
        lambda g: {".W_q": eight_bits(g, OUT // 2, IN), ".scale": scales(g, OUT, 1), ".zero": scales(g, OUT, 1),
                   ".shape": torch.tensor([OUT, IN]), ".nbits": torch.tensor([4])},
        {"quant_method": "hqq"}, parameters=None,
    ),
    Quantised(
        "exl2", "EXL2",
        lambda g: {".q_weight": words(g, IN // 8, OUT), ".q_scale": words(g, 4, OUT // 8),
                   ".q_scale_max": scales(g, 4, dtype=HALF), ".q_groups": torch.zeros(8, dtype=torch.int16),
                   ".q_invperm": torch.zeros(IN, dtype=torch.int32)},
        {"quant_method": "exl2"},
    ),
    Quantised(
        "exl3", "EXL3",
        lambda g: {".trellis": words(g, IN // 16, OUT // 16, 64).to(torch.int16),
                   ".suh": scales(g, IN, dtype=HALF), ".svh": scales(g, OUT, dtype=HALF)},
        {"quant_method": "exl3"},
    ),
    Quantised(
        "higgs", "HIGGS",
        lambda g: {".weight": words(g, OUT * 4 // 16, IN).to(torch.int16), ".tables": scales(g, 16, dtype=HALF),
                   ".tables2": scales(g, 16, 16, 2), ".scales": scales(g, OUT, 1, dtype=HALF)},
        {"quant_method": "higgs"},
    ),
    Quantised(
        "vptq", "VPTQ",
        lambda g: {".indices": words(g, 1, OUT // 8, IN // 4), ".centroids.weight": scales(g, 1, 64),
                   ".res_centroids.weight": scales(g, 1, 64), ".weight_scale": scales(g, IN),
                   ".weight_bias": scales(g, IN), ".perm": torch.zeros(IN, dtype=torch.int16)},
        {"quant_method": "vptq"}, parameters=None,
    ),
    Quantised(
        "spqr", "SpQR",
        lambda g: {".dense_weights": torch.zeros(OUT * IN // 16, dtype=torch.int64),
                   ".row_offsets": torch.zeros(OUT + 1, dtype=torch.int32), ".col_vals": words(g, 9),
                   ".in_perm": torch.arange(IN)},
        {"quant_method": "spqr"}, parameters=None,
    ),
    Quantised(
        "quanto-int4", "Quanto",
        lambda g: {".weight._data": eight_bits(g, OUT // 2, IN), ".weight._scale": scales(g, OUT, 1),
                   ".weight._shift": scales(g, OUT, 1)},
        parameters=None,
    ),
    Quantised(
        "torchao-fp8", "torchao",
        lambda g: {"._weight_qdata": fp8(g, OUT, IN), "._weight_scale": scales(g, OUT, 1)},
        {"quant_method": "torchao"},
    ),
    Quantised(
        "torchao-int4", "torchao",
        lambda g: {"._weight_qdata": eight_bits(g, OUT, IN // 2), "._weight_scale": scales(g, 4, OUT),
                   "._weight_zero_point": scales(g, 4, OUT)},
        {"quant_method": "torchao"}, parameters=None,
    ),
    Quantised(
        "bytes-of-llama.cpp", "an unknown encoding, without scales",
        lambda g: {".weight": eight_bits(g, OUT, IN // 32 * 18)}, parameters=None,
    ),
    Quantised(
        "nunchaku", "an unknown encoding",
        lambda g: {".qweight": eight_bits(g, OUT, IN // 2, dtype=torch.int8), ".wscales": scales(g, 2, OUT)},
        parameters=None,
    ),
    Quantised(
        "awq-16", "an unknown encoding",
        lambda g: {".qweight": words(g, OUT // 4, IN).to(torch.int16), ".scales": scales(g, 4, OUT),
                   ".scaled_zeros": scales(g, 4, OUT)},
        parameters=None,
    ),
    Quantised(
        "fp8-tensorrt", "fp8 with one scale",
        lambda g: {".weight": fp8(g, OUT, IN), ".weights_scaling_factor": scales(g, 1),
                   ".activation_scaling_factor": scales(g, 1)},
    ),
    Quantised(
        "int8-tensorrt", "an unknown encoding",
        lambda g: {".weight": eight_bits(g, OUT, IN, dtype=torch.int8), ".weights_scaling_factor": scales(g, OUT)},
        parameters=None,
    ),
    Quantised(
        "nvfp4-transformers", "nvfp4",
        lambda g: {".weight": eight_bits(g, OUT, IN // 2), ".weight_sf": words(g, 2, 32),
                   ".weight_sf_rowmajor": eight_bits(g, OUT, IN // 16), ".weight_global_scale": scales(g, 1)},
        {"quant_method": "nvfp4"},
    ),
    Quantised(
        "sparse", "sparse with a bitmask",
        lambda g: {".compressed": torch.randn(OUT * IN // 2, generator=g).bfloat16(),
                   ".bitmask": eight_bits(g, OUT, IN // 8), ".row_offsets": torch.arange(OUT),
                   ".shape": torch.tensor([OUT, IN])},
        {"quant_method": "compressed-tensors"}, parameters=None,
    ),
    Quantised(
        "unknown", "an unknown encoding (secret)",
        lambda g: {".weight": eight_bits(g, OUT, IN), ".row_scale": scales(g, OUT)},
        {"quant_method": "secret"}, parameters=None,
    ),
    Quantised(
        "unknown-alone", "an unknown encoding (secret), without scales",
        lambda g: {".mystery": words(g, OUT, IN)}, {"quant_method": "secret"}, parameters=None,
    ),
    Quantised(
        "marlin", "Marlin, 4 bits",
        lambda g: {".B": words(g, IN // 16, OUT * 2), ".s": scales(g, 1, OUT, dtype=HALF),
                   ".workspace": torch.zeros(16, dtype=torch.int32), ".bias": scales(g, OUT)},
        {"quant_method": "marlin", "group_size": -1},
    ),
    Quantised(
        "qqq", "Marlin, 4 bits",
        lambda g: {".B": words(g, IN // 16, OUT * 2), ".s_channel": scales(g, 1, OUT),
                   ".s_group": scales(g, 2, OUT, dtype=HALF), ".bias": scales(g, OUT)},
        {"quant_method": "qqq", "group_size": 64},
    ),
    Quantised(
        "quip", "QuIP#",
        lambda g: {".Qidxs": words(g, OUT, IN // 32).long(), ".SU": scales(g, IN, dtype=HALF),
                   ".SV": scales(g, OUT, dtype=HALF), ".Wscale": scales(g), ".codebook_id": torch.tensor(7)},
        {"quant_method": "quip"},
    ),
    Quantised(
        "qtip", "QTIP",
        lambda g: {".trellis": words(g, OUT * IN // 256, 32).to(torch.int16), ".SU": scales(g, IN, dtype=HALF),
                   ".SV": scales(g, OUT), ".tlut": scales(g, 512, 2, dtype=HALF), ".rcp": torch.tensor(0)},
    ),
    Quantised(
        "squeezellm", "SqueezeLLM, 4 bits",
        lambda g: {".qweight": words(g, IN // 8, OUT), ".lookup_table": scales(g, OUT, 16, dtype=HALF),
                   ".rows": torch.arange(OUT + 1, dtype=torch.int32), ".cols": words(g, 9), ".vals": scales(g, 9)},
    ),
    Quantised(
        "hqq-saved", "HQQ",
        lambda g: {".W_q": eight_bits(g, OUT // 2, IN), ".meta.scale": scales(g, OUT, 1), ".meta.zero": scales(g, OUT, 1)},
        parameters=None,
    ),
)  # fmt: skip
BY_NAME = {one.name: one for one in ZOO}
KEPT = frozenset({
    "fp8-block", "fp8-experts", "fp8-tensor", "fp8-channel", "fp8-comfy", "fp8-descale", "mxfp8", "mxfp4",
    "nvfp4-packed", "nvfp4-modelopt", "int8", "int4-packed", "gptq", "gptq-3bit", "awq", "mlx", "mxfp4-quark",
    "fp4-deepseek-v4", "fp4-experts", "int4-second-group", "mlx-other-bits", "mlx-other-groups", "gptq-plain",
    "fp8-tensorrt", "bnb-int8", "quanto",
})  # fmt: skip
"""Those in whose encoding new weights are stored; all others are copied, or refused."""
