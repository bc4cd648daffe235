"""The command ``ckpt lora merge``: adds low-rank adapters to their base."""

from __future__ import annotations

from typing import Annotated

import typer

from ...options import Encoding, Memory, Root, Unwrap
from ...writing import Writing, numbers
from ._options import Adapters, Weights

NAME = "lora merge"
HELP = """Add low-rank adapters to the base that they were trained on.

An adapter is a folder that PEFT wrote (ranks and alphas per module, rslora, DoRA, saved modules and biases have the
same meaning as in PEFT), a folder of mlx-lm, or one file with kohya's or diffusers' key names. ckpt merges LoRA, DoRA,
LoHa and LoKr, also LoCon, LoHa and LoKr with a core (Tucker decomposition), and PEFT's OFT. A LoRA is added to 16-bit
weights in single precision, everything else in double precision; the results are rounded once. Tensors without an
adapter are copied. If the base is a folder of transformers, its configuration and tokeniser are copied too.
"""
EXAMPLES = """\b
Examples:
  ckpt lora merge base.safetensors adapter/ -o merged.safetensors
  ckpt lora merge llama/ en/ ru/ --weights 0.7,0.3 -o merged/
  ckpt lora merge unet.safetensors style.safetensors --exclude 'lora_te_*' -o styled.safetensors

\b
Exit status: 2 an adapter of another kind, a pattern that matches nothing; 3 an adapter is missing or damaged; 4 an
adapter does not fit the base; 5 the output cannot be written.
"""


def run(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the adapters were trained on.")],
    adapters: Adapters,
    weights: Weights = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Leave these modules of the adapters out. Repeatable."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Write floating tensors, except quantised ones, in this dtype. [default: the base's]",
        ),
    ] = None,
    memory: Memory = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            "--vocab",
            metavar="place",
            help="Add the adapter's row n to the base's row n even if the tokenisers differ.",
        ),
    ] = None,
    encoding: Encoding = "keep",
    root: Root = None,
    unwrap: Unwrap = False,
    *,
    writing: Writing,
) -> None:
    """Add low-rank adapters to the base that they were trained on, and write the result."""
    from ....api.lora.merge import lora_merge

    writing.check()
    plan = lora_merge(
        base, adapters, weights=numbers("--weights", weights), exclude=exclude or (), vocab=vocab, encoding=encoding,
        dtype=dtype, memory=memory, unwrap=unwrap, root=root,
    )  # fmt: skip
    writing.carry_out(plan)
