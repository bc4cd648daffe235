"""Turns the token list inside a GGUF file into a model's folder, so that it can be compared with other tokenisers."""

from __future__ import annotations

from functools import cached_property

from ...vocabulary.vocabulary import Vocabulary
from .embedded import TOKENS
from .folder import ModelFolder

__all__ = ["with_embedded_tokens"]


class _EmbeddedFolder(ModelFolder):
    """A folder whose vocabulary file is the token list inside a GGUF file; it has no other files."""

    @property
    def vocabulary(self) -> str:
        return TOKENS

    @property
    def has_all_tokens(self) -> bool:
        return True

    @property
    def token_list(self) -> Vocabulary | None:
        return Vocabulary(TOKENS, self.embedded.tokens) if self.embedded is not None else None

    @cached_property
    def _digest(self) -> bytes:
        return self.embedded.digest(TOKENS) if self.embedded is not None else b""


def with_embedded_tokens(folder: ModelFolder) -> ModelFolder:
    """Return a folder whose only file is the token list inside its GGUF file; ``folder`` if there is no such list."""
    if folder.embedded is None or not folder.embedded.tokens:
        return folder
    return _EmbeddedFolder(folder.path, embedded=folder.embedded)
