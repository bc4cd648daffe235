"""The command ``ckpt convert``: writes a checkpoint in another format, sharding or dtype."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Heads, Layout
from ..writing import StateDictAndExtras, Writing

NAME = "convert"
HELP = """Write a checkpoint in another format, sharding or dtype.

The suffix of the output gives the format: .safetensors, .pth, or a folder of shards; --to dcp writes a folder that
torch.distributed.checkpoint loads, --to tensorflow a folder that TensorFlow loads. --dtype casts all real floats and
leaves integers as they are; a note counts values that become infinite. --dequantize decodes quantised tensors;
--quantize rounds the weights of linear layers to codes, and shows the error of each. If the output is a GGUF file and
the architecture is known, --layout is gguf by default. Metadata is copied; --set-metadata sets or removes entries.
"""
EXAMPLES = """\b
Examples:
  ckpt convert pytorch_model.bin -o model.safetensors
  ckpt convert DeepSeek-V3/ --dequantize --dtype bf16 -o DeepSeek-V3-bf16/
  ckpt convert Llama-3.1-8B/ --quantize fp8-block -o Llama-3.1-8B-fp8/
  ckpt convert model.safetensors --dtype bf16 --max-shard-size 2GB -o shards/
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint to convert.")],
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Cast real floating tensors to this dtype, such as bf16."),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Decode quantised tensors, and write them in --dtype or the dtype of config.json."
        ),
    ] = False,
    layout: Layout = None,
    heads: Heads = None,
    gguf_type: Annotated[
        str | None,
        typer.Option(
            "--gguf-type",
            metavar="TYPE",
            help="Quantise the matrices of a GGUF output to this type: q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, "
            "q3_k, q2_k or mxfp4; or to a mixture of types: q5_k_m or q4_k_m.",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="SCHEME",
            help="Quantise the weights of linear layers, by rounding to nearest: fp8-block, fp8-channel, int8, "
            "int4-group128, mxfp4 or nvfp4.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Quantise only these weights. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="GLOB", help="Do not quantise these weights, even if --include matches. Repeatable."
        ),
    ] = None,
    *,
    state_dict: StateDictAndExtras,
    writing: Writing,
) -> None:
    """Write a checkpoint in another format, sharding or dtype."""
    from ...api.edit import convert

    writing.check()
    plan = convert(
        source,
        dtype=dtype,
        dequantize=dequantize,
        gguf_type=gguf_type,
        layout=layout or ("auto" if writing.is_gguf else None),
        heads=heads,
        quantize=quantize,
        include=include,
        exclude=exclude,
        **state_dict.arguments,
    )
    writing.carry_out(plan)
