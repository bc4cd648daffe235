"""Notes on token lists that have changed since ckpt wrote them, or whose tokens seem to have new ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from operator import lt

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....formats.base.sharded_writer import RECIPE_FILE
from ....storage.small_files import SMALL_BYTES
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import escape
from ....vocabulary.huggingface import byte_letters, is_byte
from ....vocabulary.rule_order import RuleOrder
from ..documents import VOCABULARIES
from ..folder import ModelFolder
from .tokenizer_files import SPECIAL, WHOLE, added_tokens, brief_token, local_tokens

__all__ = ["are_mixed", "are_sorted", "byte_order_notes", "changed_list_notes", "listed_order_notes", "order_notes",
           "score_notes"]  # fmt: skip

_MOST = 4 * SMALL_BYTES
"""The largest token list, in bytes, that is read."""
_FEWEST, _FIRST = 100, 500
"""The smallest number of tokens whose order is judged, and the number of tokens that are compared first."""
_SORTED, _FALLS = 0.95, 0.25
"""A list is sorted if at least ``_SORTED`` of all pairs of neighbouring tokens are in alphabetical order.

A fall is a merge rule whose token has a smaller id than the token of the rule before. If fewer than ``_FALLS`` of all
rules are falls, the ids follow the order of the rules. In lists that the library tokenizers trained on texts, at most
0.69 of the neighbours are in alphabetical order. In lists trained on random letters, 0.94 of the pairs are, but their
ids follow the order of the rules. The ids of RoBERTa and BART follow the frequency of the tokens.
"""
_MANY, _AT_RANDOM = 300, 0.6
"""Ids are random if ``RuleOrder.rising`` is below ``_AT_RANDOM``. Lists of fewer than ``_MANY`` rules are not judged.

In 300 draws of 300 random ids, ``rising`` was 0.37 to 0.62; for 1000 ids, it was 0.44 to 0.55. If ids follow the
frequency of tokens, ``rising`` is far larger, because early rules make the frequent tokens.
"""
_SPACE = "Ġ"
"""The first character of tokens that follow a space, in byte-level BPE."""
_BYTES, _RISING = 64, 0.75
"""The smallest number of byte tokens that are judged, and the smallest share of rising neighbours in a known order.

Byte tokens are the tokens for single bytes. Two of them with successive ids are neighbours. They rise if the letter of
the second has the larger code point. The library tokenizers numbers byte tokens by code point. GPT-2's table does so
too, and has the printable bytes first. If byte tokens are numbered by the value of the byte, as in tekken, all
neighbours but three rise. Of 256 byte tokens in random order, 44 to 56 % of the neighbours rise (1000 draws); of 64
byte tokens, 37 to 64 % (5000 draws).
"""


@notes_of(NoteKind.VOCABULARY)
def changed_list_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each token list in a folder that is not the file that was written together with the weights.

    The recipe of the weights has the digests of the written files. The settings of a tokeniser (tokenizer_config.json,
    chat templates) are left out, as they are often edited.
    """
    if checkpoint.recipe is None or not folder.files:
        return
    from ...inputs.stored_recipes import stored_recipe  # imported here, because most checkpoints have no recipe

    recipe = stored_recipe(checkpoint)
    written = {one.name: one.sha256 for one in recipe.target.companions} if recipe is not None else {}
    for name in [one.name for one in folder.files if one.name in VOCABULARIES and one.name in written]:
        with suppress(CheckpointError, OSError):
            if hashlib.sha256(folder.read(name, _MOST)).hexdigest() != written[name]:
                is_not = f"{escape(name)} is not the list that was written with these weights ({RECIPE_FILE})"
                yield f"{is_not}: if its tokens differ, embedding rows belong to other tokens"


def listed_order_notes(folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on ids in tokenizer.json that do not follow merge rules or scores, and on byte tokens in disorder."""
    found = folder.token_list if folder.has_all_tokens and local_tokens(folder) else None
    if found is None:
        return
    if found.kind == "Unigram":
        yield from score_notes(WHOLE, found.order)
        return
    if found.kind == "BPE" and any(one[:1] == _SPACE != one for one in found.tokens):
        yield from byte_order_notes(WHOLE, found.tokens, found.order)
    added = added_tokens(folder) if found.order.falls else set()
    longer = (one for one in found.tokens if len(one) > 1 and not is_byte(one) and one not in added)
    made = (one for one in longer if not SPECIAL.fullmatch(one))
    yield from order_notes(WHOLE, made, found.rules, found.order)


@notes_of(NoteKind.VOCABULARY)
def order_notes(name: str, made: Iterable[str], rules: int, order: RuleOrder) -> Iterator[str]:
    """Yield a note if the tokens of merge rules are in alphabetical or random order, which no training produces.

    ``made`` are these tokens in the order of their ids, and ``rules`` is the number of merge rules. ``order`` says how
    well the ids follow the order of the rules; if they follow it well, there is no note, even if tokens and rules are
    in alphabetical order. For most lists, ``made`` is not read at all, and for most of the others, only its first 500
    tokens are read.
    """
    if rules < _FEWEST or order.falls < rules * _FALLS:
        return
    rest = iter(made)
    tokens = list(islice(rest, _FIRST))
    if are_sorted(tokens):
        tokens += rest
    if are_sorted(tokens):
        examples = " and ".join(map(brief_token, tokens[:2]))
        yield (
            f"the {len(tokens)} tokens of {name} that merge rules make are in alphabetical order, such as "
            f"{examples}: no training of a tokeniser produces this order, so perhaps the tokens were renumbered, and "
            "each token has the embedding row of another token"
        )
    elif rules >= _MANY and order.rising < _AT_RANDOM:
        yield Note(
            NoteKind.TOKEN_ORDER,
            f"the ids in {name} of the tokens that {rules} merge rules make do not follow the order of the rules at "
            "all: no training of a tokeniser produces this, so perhaps the tokens were renumbered, and each token has "
            "the embedding row of another token",
        )


@notes_of(NoteKind.TOKEN_ORDER)
def byte_order_notes(name: str, tokens: Iterable[str], order: RuleOrder) -> Iterator[str]:
    """Yield a note if the byte tokens of byte-level BPE have an unknown order, although other ids follow the rules.

    ``tokens`` has all tokens in the order of their ids. ``order`` says how well the ids of longer tokens follow the
    order of the merge rules; there is no note if they do not, as in RoBERTa, whose ids follow the frequency of tokens.
    """
    if order.number < _FEWEST or order.falls >= order.number * _FALLS:
        return
    letters = [one for one in tokens if one in byte_letters()]
    if are_mixed(letters):
        yield (
            f"the ids in {name} of its {len(letters)} tokens for single bytes are in no known order, although the ids "
            "of longer tokens follow the merge rules: training numbers bytes by value or by code point, so perhaps the "
            "tokens were renumbered, and each token has the embedding row of another token"
        )


def are_mixed(letters: list[str]) -> bool:
    """Return whether ``letters`` are many byte tokens in an order that no training produces.

    ``letters`` are in the order of their ids.
    """
    return len(letters) >= _BYTES and sum(map(lt, letters, letters[1:])) < _RISING * (len(letters) - 1)


@notes_of(NoteKind.TOKEN_ORDER)
def score_notes(name: str, order: RuleOrder) -> Iterator[str]:
    """Yield a note if the pieces of a Unigram list are not in the order of their scores, as training sorts them."""
    if order.number >= _MANY and order.falls >= order.number * _FALLS and order.rising < _AT_RANDOM:
        yield (
            f"the ids in {name} of its {order.number} pieces have nothing to do with their scores: training numbers "
            "pieces by falling score, so perhaps the tokens were renumbered, and each token has the embedding row of "
            "another token"
        )


def are_sorted(tokens: list[str]) -> bool:
    """Return whether there are many tokens, and nearly all neighbouring tokens are in alphabetical order."""
    return len(tokens) >= _FEWEST and sum(map(lt, tokens, tokens[1:])) >= _SORTED * (len(tokens) - 1)
