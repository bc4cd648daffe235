"""The user's options for the vocabulary of a merge, and the models to merge."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...planning.transplant.by_place import PLACE
from ...planning.transplant.select import SourceView
from ..inputs.argument_types import Patterns, Rules
from ..model_folder.folder import ModelFolder

if TYPE_CHECKING:
    from .tokenizers import RowsRequest

__all__ = ["BASE", "UNION", "InputModel", "VocabularyRequest"]

UNION, BASE = "union", "base"


@dataclass(frozen=True)
class VocabularyRequest:
    """The user's arguments about vocabularies.

    ``vocab`` is the output's vocabulary (--vocab), ``tokens`` the models' token lists (--tokens), and ``keys`` the
    tensors with a row for each token (--vocab-keys). ``rows`` has the rows that a mergekit recipe chooses; if it is
    set, tokens that no model has get rows of zeros, as in mergekit.
    """

    vocab: str | None = None
    tokens: Rules = ()
    keys: Patterns = ()
    rows: RowsRequest | None = None

    @property
    def is_by_place(self) -> bool:
        """Whether row n of the output is merged from row n of each model, even if their tokens differ."""
        return self.vocab is not None and self.vocab.lower() == PLACE

    def is_by_token(self) -> bool:
        """Return whether rows are merged by token; raises ConfigError if other arguments then have no effect."""
        if self.vocab is not None and not self.is_by_place:
            return True
        if self.tokens or isinstance(self.keys, str) or self.keys:
            raise ConfigError(
                "--tokens and --vocab-keys have no effect without --vocab.",
                hint="Write --vocab union, --vocab base or --vocab FILE.",
            )
        return False

    @property
    def said(self) -> dict[str, Any]:
        """The arguments as the output's recipe records them; if ``vocab`` is a path, only the file name is recorded."""
        known = self.vocab is None or self.vocab.lower() in (UNION, BASE, PLACE)
        return {"vocab": self.vocab if known else os.path.basename(str(self.vocab)), "vocab_keys": self.keys}


@dataclass(frozen=True)
class InputModel:
    """One of the models to merge: its path, its tensors (``view``) and the files in its folder."""

    path: str
    view: SourceView
    folder: ModelFolder

    def size(self, tokens: int) -> int:
        """Return the number of rows of the model's embedding; ``tokens`` is the number of tokens in its list.

        The result is the vocabulary size in config.json if a tensor has a dimension of this size, else ``tokens``.
        """
        said = self.folder.rows
        long = said and any(said in info.shape for info in self.view.tensors.values())
        return said if long else tokens
