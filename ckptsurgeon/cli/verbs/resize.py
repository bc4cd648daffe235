"""The command ``ckpt resize``: another width, depth, or number of heads, experts or channels."""

from __future__ import annotations

from typing import Annotated

import typer

from ..resizing import NetworkOptions, SizeOptions, VocabularyOptions
from ..writing import Writing

NAME = "resize"
HELP = """Change the size of a model by the fields of its configuration.

Width, depth, heads, heads of keys and values, channels of feed-forward layers, experts and the vocabulary can be
changed. To find the tensors that a field changes, the network of transformers is built, without storage, with the old
and with the new value. The note on each field says whether the outputs stay equal; --prove runs both networks and
compares the outputs.
Configuration, tokeniser and weights are written to a folder that from_pretrained opens.
"""
EXAMPLES = """\b
Examples:
  ckpt resize llama/ --set num_key_value_heads=2 -o gqa/
  ckpt resize llama/ --set num_hidden_layers=48 --layers 0..23,8..31 -o deep/
  ckpt resize small/ --set hidden_size=2048 --set intermediate_size=8192 -o wide/
  ckpt resize moe/ --set num_local_experts=4 --keep num_local_experts=0,2,5,7 -o smaller/
  ckpt resize llama/ --as mixtral --set num_local_experts=8 -o moe/
  ckpt resize bert/ --tokenizer german/ --new-tokens subword --pad-to 64 -o bert-de/
  ckpt resize llama/ --trim letters.txt --trim books.txt -o small/
"""


def run(
    source: Annotated[str, typer.Argument(metavar="DIR", help="The folder of the model.")],
    *,
    sizes: SizeOptions,
    vocabulary: VocabularyOptions,
    network: NetworkOptions,
    writing: Writing,
) -> None:
    """Write a model of another size."""
    from ...api.resize.resize import resize

    writing.check()
    plan = resize(source, **sizes.arguments, **vocabulary.arguments, **network.arguments)
    writing.carry_out(plan)
