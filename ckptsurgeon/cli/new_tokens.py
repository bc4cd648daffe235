"""The options about rows of new tokens, which the verbs with another vocabulary share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

__all__ = ["NewTokenOptions"]


@dataclass(frozen=True)
class NewTokenOptions:
    """The group of options for the rows of tokens that the source lacks."""

    new_tokens: Annotated[
        str,
        typer.Option(
            "--new-tokens",
            metavar="init|mean|zero|subword|omp",
            help="Fill the rows of tokens that the source lacks: initial values, the mean of all rows, zeros, the mean "
            "of the rows of the token's pieces, or omp: a weighted sum of rows of other tokens, computed with a donor "
            "model (--donor).",
        ),
    ] = "init"
    donor: Annotated[
        str | None,
        typer.Option(
            "--donor",
            metavar="DIR",
            help="With --new-tokens omp, the model with the new tokens. [default: the one next to the new token list]",
        ),
    ] = None
    omp_k: Annotated[
        int | None,
        typer.Option(
            "--omp-k",
            metavar="N",
            help="With --new-tokens omp: compute each new row from at most N rows of other tokens. [default: 64]",
        ),
    ] = None
    token_map: Annotated[
        list[str] | None,
        typer.Option(
            "--token-map",
            metavar="SRC=DST",
            help="Treat a token of the source and a new token as one, as in '<blank>=[PAD]'. Repeatable.",
        ),
    ] = None
