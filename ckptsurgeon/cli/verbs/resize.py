"""The command ``ckpt resize``: another width, depth, or number of heads, experts or channels."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Root, SetMetadata, metadata_of
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
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Give a field of config.json this value, as num_hidden_layers=48. Repeatable.",
        ),
    ] = None,
    as_type: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="MODEL_TYPE",
            help="Write a model of this type, as mixtral: a dense network becomes one with experts, each a copy of the "
            "feed-forward layer; with --expert, one with experts becomes dense.",
        ),
    ] = None,
    expert: Annotated[
        int | None,
        typer.Option(
            "--expert", metavar="N", min=0, help="Take this expert of each layer, from 0, for a dense network."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="LIST|repeat|interleave|identity|first|evenly|influential",
            help="Take these layers of the source, as 0..23,8..31; repeat all in order, or each; add layers that only "
            "pass their input on; or take the first, evenly spaced ones, or those that change their input most (--by).",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="FIELD=LIST",
            help="Keep these heads, channels or experts, as num_local_experts=0..3,6, instead of those with the "
            "largest weights. Repeatable.",
        ),
    ] = None,
    new_channels: Annotated[
        str | None,
        typer.Option(
            "--new-channels",
            metavar="init|copy",
            help="Initialise new channels, which contribute nothing at first, or copy others. [default: init]",
        ),
    ] = None,
    new_width: Annotated[
        str | None,
        typer.Option(
            "--new-width",
            metavar="copy|init",
            help="Repeat the width, or add numbers that are 0 at first, and scale the norms. [default: copy; init if "
            "it is not a multiple of the old width]",
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise",
            metavar="SHARE",
            help="Change weights that read copies of a width, heads or channels by up to this share, at random, so "
            "that copies learn different things; what they contribute together stays the same.",
        ),
    ] = None,
    merge_experts: Annotated[
        str | None,
        typer.Option(
            "--merge-experts",
            metavar="similar|GROUPS",
            help="Merge experts in groups instead of leaving some out: each into the kept one with the most similar "
            "row of the router, or as in 0+4,1+5. With --by, each counts as often as it is used.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="STATS", help="Keep what contributes most in these statistics of ckpt stats."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR|FILE",
            help="Give the model this tokeniser: rows of tokens that the old one has are kept, whatever their index.",
        ),
    ] = None,
    trim: Annotated[
        list[str] | None,
        typer.Option(
            "--trim",
            metavar="FILE",
            help="Cut the vocabulary to the tokens that this text uses, and those that they are made of. Repeatable.",
        ),
    ] = None,
    keep_special: Annotated[
        bool,
        typer.Option(
            "--keep-special/--no-keep-special",
            help="With --trim, keep all special and added tokens, or those alone that are used or named.",
        ),
    ] = True,
    pad_to: Annotated[
        int,
        typer.Option("--pad-to", metavar="N", help="Round the number of rows of tokens up to a multiple of N."),
    ] = 1,
    new_tokens: Annotated[
        str,
        typer.Option(
            "--new-tokens",
            metavar="init|mean|zero|subword|omp",
            help="Fill the rows of new tokens: initial values, the mean of all rows, zeros, the mean of the pieces, or "
            "the sum of shared tokens' rows that makes the new token's row in a donor.",
        ),
    ] = "init",
    donor: Annotated[
        str | None,
        typer.Option(
            "--donor",
            metavar="DIR",
            help="With --new-tokens omp, the model that has the new tokens. [default: that of the tokeniser's folder]",
        ),
    ] = None,
    omp_k: Annotated[
        int | None,
        typer.Option("--omp-k", metavar="N", help="Make each new row of at most N shared tokens' rows. [default: 64]"),
    ] = None,
    token_map: Annotated[
        list[str] | None,
        typer.Option(
            "--token-map",
            metavar="OLD=NEW",
            help="Give the new token NEW the row of the old token OLD. Repeatable.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The config.json, if it is not beside the weights, or a file with model: (_target_ or name).",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="keep|DTYPE", help="Cast all floats to this dtype. [default: the source's]"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed the initialisers and the noise with this number.")
    ] = 0,
    set_metadata: SetMetadata = None,
    root: Root = None,
    *,
    writing: Writing,
) -> None:
    """Write a model of another size."""
    from ...api.resize.resize import resize

    writing.check()
    plan = resize(
        source, set=set or [], model_type=as_type, expert=expert, layers=layers, keep=keep, new_channels=new_channels,
        new_width=new_width, noise=noise, merge_experts=merge_experts, by=by, tokenizer=tokenizer, trim=trim or (),
        keep_special=keep_special, pad_to=pad_to, new_tokens=new_tokens, token_map=token_map or (), donor=donor,
        omp_k=omp_k, config=config, dtype=dtype, seed=seed, root=root, metadata=metadata_of(set_metadata),
    )  # fmt: skip
    writing.carry_out(plan)
