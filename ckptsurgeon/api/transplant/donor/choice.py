"""Chooses the donor: a model that has the new tokens, and from which their rows are made (``--new-tokens omp``)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ....checkpoint.opening import open_checkpoint
from ....destinations.hf.files import CONFIG
from ....errors import ConfigError
from ....planning.plan.rows import OMP
from ....util.text import escape

__all__ = ["DonorChoice", "donor_choice"]

PICKS = 64
"""By default, at most this many rows of shared tokens are summed to make a new row, as in mergekit."""


@dataclass(frozen=True)
class DonorChoice:
    """The folder of the donor (``path``), a model whose tokeniser has the new tokens.

    At most ``picks`` rows of shared tokens are summed to make the row of a new token.
    """

    path: str
    picks: int


def donor_choice(way: str, tokenizer: str, donor: str, picks: int | None) -> DonorChoice | None:
    """Return the donor that ``--donor`` names; without ``--donor``, the model in the folder of the new tokeniser.

    Returns None if the ``way`` of filling rows needs no donor. Raises ConfigError if a donor is needed but missing, or
    if one is given but not needed.
    """
    if way != OMP:
        if donor or picks is not None:
            option = "--donor" if donor else "--omp-k"
            raise ConfigError(f"{option} is only for --new-tokens omp.", hint=f"Leave {option} out.")
        return None
    if not tokenizer:
        raise ConfigError(
            "--new-tokens omp needs a new tokeniser: it fills the rows of new tokens with the help of a donor model "
            "that has them.",
            hint="Name the tokeniser: --tokenizer of ckpt resize, or --vocab SRC:DST of ckpt transplant.",
        )
    if picks is not None and picks < 1:
        raise ConfigError(f"--omp-k {picks} is not a number above 0.")
    folder = donor or (tokenizer if os.path.isdir(tokenizer) else os.path.dirname(tokenizer) or os.curdir)
    if not os.path.isfile(os.path.join(folder, CONFIG)):
        what = f"there is no {CONFIG} in {escape(folder)}"
        if donor:
            open_checkpoint(donor).close()  # if it does not exist, that is the error
        raise ConfigError(
            f"--new-tokens omp needs a donor, a model that has the new tokens: {what}.",
            hint="Name the folder of a model of transformers with this tokeniser: --donor DIR.",
        )
    return DonorChoice(folder, picks or PICKS)
