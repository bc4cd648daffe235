"""Makes the tokeniser's metadata for a GGUF output whose embedding rows are moved to the ids of a new token list."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from ...errors import CheckpointError, PlanError
from ...formats.ggml.values import UINT32, Typed, packed
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...vocabulary.vocabulary import vocabulary_of
from ..model_folder.embedded import EmbeddedModel
from ..model_folder.folder import ModelFolder
from .tokenizer import tokenizer_entries

__all__ = ["maps_by_token", "with_new_tokens"]

LISTS = ("tokens.txt", "vocab.json")
"""Names of files that have a token list, but do not count as the vocabulary of a tokeniser of transformers."""
VOCABULARY_SIZE = ".vocab_size"
REMEDY = (
    "Put the tokenizer.json of the new tokens next to their list, use a GGUF destination that has these tokens, or "
    "write another format."
)


def maps_by_token(plan: Plan) -> bool:
    """Return whether a plan reorders the rows of an embedding or output layer for a new token list.

    Each row moves to the id that its token has in the new list.
    """
    return any(step.op == "map" or step.vocabularies for step in plan.steps)


def with_new_tokens(
    found: Mapping[str, Typed], plan: Plan, embedded: EmbeddedModel, rows: int, *, is_kept: bool
) -> tuple[dict[str, Typed], tuple[str, ...]]:
    """Return (metadata entries of an output whose rows are moved to the ids of a new token list, notes).

    ``found`` are the entries of the GGUF file ``embedded``, and ``rows`` is the number of rows of the embedding. The
    entries of the tokeniser are made again from the plan's files, except in two cases, in which ``found`` is returned.
    In the first case, the plan's files have a token list, and ``embedded`` has the same tokens. In the second case,
    they have none, and ``embedded`` is the destination (``is_kept``). Raises PlanError if the entries cannot be made.
    """
    made = ModelFolder("", tuple(Companion(one.name, one.path, one.text) for one in plan.target.companions))
    tokens = _tokens_of(made)
    if embedded.tokens == tokens if tokens is not None else is_kept:
        return dict(found), ()
    entries, notes = tokenizer_entries(made, rows)
    if not entries:
        why = notes[0].partition(": ")[2]
        raise PlanError(
            f"rows are mapped to new tokens, but no GGUF tokeniser can be made for these tokens: {why}.", hint=REMEDY
        )
    rest = {key: one for key, one in found.items() if not key.startswith("tokenizer.")}
    sizes = {key: Typed(UINT32, packed(UINT32, rows)) for key in rest if rows and key.endswith(VOCABULARY_SIZE)}
    return {**rest, **sizes, **entries}, notes


def _tokens_of(folder: ModelFolder) -> tuple[str, ...] | None:
    """Return the token list in the files of a folder; None if there is none that can be read."""
    if folder.vocabulary:
        return folder.tokens
    with suppress(CheckpointError):
        for one in folder.files:
            if one.name in LISTS:
                return vocabulary_of(one.name, folder.read(one.name)).tokens
    return None
