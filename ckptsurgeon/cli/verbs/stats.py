"""The command ``ckpt stats``: stores statistics of a network's channels, heads, experts and layers."""

from __future__ import annotations

from typing import Annotated

import typer

from ..first_process import run_by_the_first
from ..options import Memory, Root
from ..writing import Writing

NAME = "stats"
HELP = """Run a network on inputs, and store statistics of its channels, heads, experts and layers.

Stores, for each linear layer, the mean square of each of its inputs; for each expert, how often it is used, and how
much it and its channels contribute; for each repeated layer, how much it changes its input. ckpt resize --by uses these
statistics to choose what to keep. Without --inputs, the inputs are random: then the statistics say little about the
real use of the model. Weights are in memory only while they are used.

--gram adds the Gram matrix of the inputs of each linear layer, for ckpt merge --method regmean: 4 bytes for each pair
of inputs of a layer in the output, and 8 in temporary files (TMPDIR). --fisher adds the Fisher information of each
parameter, for --method fisher: it takes 12 bytes of memory for each parameter. --magnitudes adds the mean magnitude of
each input of each linear layer; --method aim needs it for the base of a merge.

With --merged-with, --gram is for --method regmean_plusplus: the inputs of each layer are then computed with all earlier
layers already merged. The output has the Gram matrices of all models.
"""
EXAMPLES = """\b
Examples:
  ckpt stats llama/ --inputs texts.txt -o stats.safetensors
  ckpt stats vit/ --inputs photos/ -o stats.safetensors
  ckpt stats llama/ --inputs texts.txt --gram --exclude lm_head -o stats.safetensors
  ckpt stats math/ --inputs math.txt --gram --merged-with code/=code.txt -o merged.safetensors
  ckpt resize llama/ --set num_hidden_layers=24 --layers influential --by stats.safetensors -o smaller/
"""


@run_by_the_first
def run(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, or a folder with its model.")],
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs",
            metavar="FILE",
            help="Run on these inputs: named arguments (.safetensors), lines of text (.txt), audio (.wav, .flac, "
            ".ogg), an image (.png, .jpg, .webp, .bmp), or a folder of images or sounds.",
        ),
    ] = None,
    gram: Annotated[
        bool, typer.Option("--gram", help="Add the Gram matrix of the inputs of each linear layer.")
    ] = False,
    fisher: Annotated[
        bool, typer.Option("--fisher", help="Add the mean squared gradient of each parameter (Fisher information).")
    ] = False,
    magnitudes: Annotated[
        bool, typer.Option("--magnitudes", help="Add the mean magnitude of each input of each linear layer.")
    ] = False,
    merged_with: Annotated[
        list[str] | None,
        typer.Option(
            "--merged-with",
            metavar="MODEL=FILE",
            help="With --gram: also run this model on the inputs FILE; merge the models block by block. Repeatable.",
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="With --merged-with: a parameter of the merge. Repeatable."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Compute --gram, --fisher and --magnitudes only for these tensors. Repeatable.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="Do not compute --gram, --fisher and --magnitudes for these tensors. Repeatable.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="CONFIG", help="The configuration for a checkpoint without a config.json."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draw the inputs and labels with this seed.")] = 0,
    root: Root = None,
    memory: Memory = None,
    *,
    writing: Writing,
) -> None:
    """Run a network, collect statistics of its activations, and write them to a file."""
    from ...api.statistics.stats import stats
    from ...errors import ConfigError

    if writing.prove:
        raise ConfigError(
            "--prove runs the network of an output, but the output of ckpt stats is statistics, not a network.",
            hint="Leave it out.",
        )
    writing.check()
    with writing.printer.working("running", source) as progress:
        plan = stats(
            source, inputs=inputs, gram=gram, fisher=fisher, magnitudes=magnitudes,
            merged_with=merged_with or (), parameters=param or (), include=include or (), exclude=exclude or (),
            model=model, seed=seed, root=root, memory=memory, progress=progress,
        )  # fmt: skip
    writing.carry_out(plan)
