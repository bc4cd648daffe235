"""Finds the tokens that are in the vocabularies of both networks, if their token lists differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...vocabulary.replacement import tokens_at

__all__ = ["SharedTokens", "shared_tokens", "tokens_of"]


@dataclass(frozen=True)
class SharedTokens:
    """The tokens that two networks share, as row numbers of their embeddings.

    ``first`` has the row of each shared token in the first network, ``second`` its row in the second network, in the
    same order of tokens. ``sizes`` are the numbers of rows of the two embeddings or, of recognisers, output layers.
    """

    first: Tensor
    second: Tensor
    sizes: tuple[int, int]

    def translated(self, ids: Tensor) -> Tensor:
        """Return token ids of the first network, converted to the ids of the same tokens in the second network.

        Raises ConfigError if the second network lacks a token.
        """
        table = torch.full((self.sizes[0],), -1, dtype=torch.int64)
        table[self.first] = self.second
        is_known = bool((ids >= 0).all() and (ids < self.sizes[0]).all())
        if not is_known or bool((table[ids] < 0).any()):
            raise ConfigError(
                "the inputs have tokens that only one of the networks has in its token list.",
                hint="Use tokens that both networks have, or a text file (.txt).",
            )
        return table[ids]

    def columns(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of two outputs that belong to the shared tokens, in the same order.

        Outputs whose last axes are not the vocabularies are returned unchanged.
        """
        if (first.shape[-1], second.shape[-1]) != self.sizes:
            return first, second
        return first[..., self.first], second[..., self.second]


def tokens_of(own: tuple[str, ...], folder: str) -> tuple[str, ...]:
    """Return the token list of a network: ``own``, the list in its GGUF file, or else the list in its ``folder``.

    The result is empty if there is none.
    """
    found = tokens_at(folder) if folder and not own else None
    return own or (found.tokens if found is not None else ())


def shared_tokens(modules: Sequence[nn.Module], lists: Sequence[tuple[str, ...]]) -> SharedTokens | None:
    """Return the tokens that two networks share; None if their rows can be compared by position.

    Rows can be compared by position if both networks have the same number of tokens, and their token lists are equal or
    one of the lists is missing. ``lists`` has the token list of each network, () if it has none. Raises ConfigError if
    the numbers of tokens differ and a token list is missing, or if no token is in both lists.
    """
    sizes = [_rows(module) for module in modules]
    if not (lists[0] and lists[1]):
        if sizes[0] == sizes[1]:
            return None
        raise ConfigError(
            f"the networks have {sizes[0]} and {sizes[1]} tokens, but at least one has no token list, so the tokens "
            "cannot be compared.",
            hint="Put the tokenisers into the folders of the models, or give tensors: --inputs FILE.safetensors.",
        )
    if lists[0] == lists[1] and sizes[0] == sizes[1]:
        return None
    second = {token: row for row, token in enumerate(lists[1][: sizes[1]])}
    both = [(row, second[token]) for row, token in enumerate(lists[0][: sizes[0]]) if token in second]
    if not both:
        raise ConfigError("the networks have no token in common.", hint="Give tensors: --inputs FILE.safetensors.")
    rows = torch.tensor(both)
    return SharedTokens(rows[:, 0], rows[:, 1], (sizes[0], sizes[1]))


def _rows(module: nn.Module) -> int:
    """Return the number of rows of a model's input embedding or, if it has none, of its ``lm_head``; else 0."""
    get = getattr(module, "get_input_embeddings", None)
    try:
        found = get() if callable(get) else None
    except NotImplementedError:  # transformers raises this if there is none
        found = None
    if isinstance(found, nn.Embedding):
        return int(found.num_embeddings)
    head = getattr(module, "lm_head", None)
    return int(head.out_features) if isinstance(head, nn.Linear) else 0
