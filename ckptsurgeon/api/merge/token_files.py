"""The token list of a merged model, or its tokeniser, as files beside the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...planning.target import Companion
from ...storage.small_files import read_file
from ...vocabulary.read import VOCABULARY_BYTES
from ...vocabulary.writing import token_file, with_added_tokens
from ..model_folder.folder import ModelFolder
from .vocabulary import ModelTokens

__all__ = ["config_for", "token_files"]

TOKENIZER = "tokenizer.json"


def token_files(
    chosen: ModelTokens, files: Sequence[Companion], folders: Sequence[ModelFolder], donor: int
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the ``files`` of an output folder that has another vocabulary than its donor, and what is to be said.

    The tokeniser is that of the model whose vocabulary the output has; of a union, the donor's with the added tokens of
    the others, where that is all there is to it, and with those that were asked for. Else there is the list alone.
    """
    own = {one.name for one in folders[donor].tokenizer}
    rest = tuple(one for one in files if one.name not in own or one.text)  # a chat template that was asked for stays
    if chosen.of is not None and folders[chosen.of].tokenizer:
        theirs = [one for one in folders[chosen.of].tokenizer if one.name not in {other.name for other in rest}]
        return (*rest, *theirs), []
    if chosen.path:
        if any(one.path == chosen.path for one in files):  # of a model that was named for its tokeniser
            return tuple(files), []
        return (*rest, Companion(os.path.basename(chosen.path), chosen.path)), _without(own)
    text = _extended(chosen)
    if text is not None and any(one.name == TOKENIZER for one in files):
        kept = tuple(one for one in files if one.name != TOKENIZER)
        return (*kept, Companion(TOKENIZER, text=text)), []
    name, text = token_file(chosen.output.tokens)
    return (*rest, Companion(name, text=text)), _without(own)


def _without(own: set[str]) -> list[str]:
    if not own:
        return []
    return ["the output has a token list and no tokeniser: make one that gives these tokens these numbers"]


def _extended(chosen: ModelTokens) -> str | None:
    """Return the tokeniser whose tokens the output has first with those of the others, None where that is not right."""
    paths = dict.fromkeys((chosen.begins, *chosen.paths))
    if any(os.path.basename(path) != TOKENIZER for path in paths):
        return None
    first, *others = map(_read, paths)
    return with_added_tokens(first, others, chosen.output.tokens, chosen.added)


def _read(path: str) -> bytes:
    return read_file(path, VOCABULARY_BYTES)  # it was read as a vocabulary before


def config_for(config: Mapping[str, Any], size: int) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration with another number of rows, and a note where it does not say how many there are."""
    changed = dict(config)
    if not config:
        return changed, []
    if isinstance(changed.get("text_config"), dict) and "vocab_size" in changed["text_config"]:
        changed["text_config"] = {**changed["text_config"], "vocab_size": size}
    elif "vocab_size" not in changed:
        return changed, [f"config.json does not say how many rows the vocabulary has: {size} now"]
    if "vocab_size" in changed:
        changed["vocab_size"] = size
    return changed, []
