"""A note on a token list that the user gave for a model without a tokeniser, if the model's ids contradict it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ....destinations.hf.files import CONFIG
from ....util.text import escape, listing
from ....vocabulary.renumbered_ids import ids_by_field
from ....vocabulary.renumbering import Renumbering
from ....vocabulary.spoken import BLANKS
from ..documents import GENERATION
from ..folder import ModelFolder
from .roles import OF_GENERATION, SHARED, SPELLED, START, generates
from .special_ids import BYTE, OLD, SEPARATED
from .tokenizer_files import SPECIAL, brief_token, is_ctc, object_in

__all__ = ["given_list_notes"]

ENDS = r"[\[<|｜_]+(/s|eos|end|end[_▁]?of[_▁]?(text|sentence))[\]>|｜_]+"
"""Matches tokens that end a text: ``</s>``, ``[EOS]``, ``<|endoftext|>``."""
LIKE = {role: re.compile(pattern, re.IGNORECASE) for role, pattern in {**SPELLED, "eos_token": ENDS}.items()}
OTHERS = {
    **SHARED,
    "bos_token": (*SHARED["bos_token"], "pad_token"),
    "cls_token": ("bos_token",),
    "unk_token": ("bos_token", "eos_token", "pad_token"),
    "mask_token": (),
}
"""{role of a field (pad_token for ``pad_token_id``): other roles whose token is also valid in this field}"""
WEAK = {"bos_token_id", "unk_token_id"}
"""Fields that valid models often leave at the default of their class. If only these are wrong, there is no note."""
FIRST = "[<|｜_"
"""The characters with which special tokens begin."""
SPACES = frozenset(" \t\r\nĠĉčĊ▁")
"""Characters that represent spaces and line ends. Valid models may end a text with tokens of these characters."""
LINES = ("<0x0A>", "<0x0D>")
"""Byte tokens of line ends."""
TEXT = "text_config."


def given_list_notes(folder: ModelFolder, given: tuple[Sequence[str], str], model: str) -> Iterator[str]:
    """Yield a note if fields such as ``pad_token_id`` have ids of other tokens in a list that the user gave.

    An id contradicts the list if its token is a word or has another role, and the list has the right token, such as
    ``<pad>``, at another id. ``given`` has the tokens and the path of the list, and ``model`` is the name of the model
    in ``folder``.
    """
    tokens, path = given
    if folder.rows < len(tokens) or OLD in str(folder.config.get("model_type")):
        return
    known = _tokens_by_role(tokens, is_ctc=is_ctc(folder))
    for file in (CONFIG, GENERATION):
        wrong = dict(_contradictions(folder, file, tokens, known))
        if not {field.removeprefix(TEXT) for field in wrong} <= WEAK:
            ids = f"ids in {file} of {escape(model)} belong to other tokens than their fields say"
            said = listing([f"{escape(field)} is {text}" for field, text in wrong.items()], 4, where="")
            yield f"according to the token list {escape(path)}, {ids}: {said}: is it the list of another model?"


def _tokens_by_role(tokens: Sequence[str], *, is_ctc: bool) -> Mapping[str, Mapping[int, str]]:
    """Return {role: {id: token}} of the tokens that look like a token with this role (``<pad>`` for ``pad_token``).

    With ``is_ctc``, names of the CTC blank, such as ``<blank>``, count as ``pad_token``, too.
    """
    special = {row: token for row, token in enumerate(tokens) if token[:1] in FIRST and token}
    found = {
        role: {row: token for row, token in special.items() if like.fullmatch(token)} for role, like in LIKE.items()
    }
    if is_ctc:
        found["pad_token"] |= {row: token for row, token in special.items() if token in BLANKS}
    return found


def _contradictions(
    folder: ModelFolder, file: str, tokens: Sequence[str], known: Mapping[str, Mapping[int, str]]
) -> Iterator[tuple[str, str]]:
    """Yield (field, text on its id) for each field of ``file`` that contradicts the token list.

    ``known`` is the result of ``_tokens_by_role``. For CTC models, only the blank is compared, whose id is
    ``pad_token_id``.
    """
    of_bert = "[PAD]" in known["pad_token"].values() and "[UNK]" in known["unk_token"].values()
    for field, ids in ids_by_field(object_in(folder, file), Renumbering.of(tokens, tokens)).items():
        role = field.removeprefix(TEXT).removesuffix("_id")
        meant = known.get(_right(role, known), {})
        is_used = role == "pad_token" if is_ctc(folder) else generates(folder) or role not in OF_GENERATION
        is_default = role == "sep_token" and folder.config.get("model_type") in SEPARATED
        if role not in OTHERS or not meant or not ids or not is_used or is_default:
            continue
        valid = {role} if is_ctc(folder) else {role, *OTHERS[role]}
        valid -= {"unk_token"} if of_bert and role == "pad_token" else set()
        if all(0 <= one < len(tokens) and _is_other(one, tokens[one], valid, known) for one in ids):
            row, token = next(iter(meant.items()))
            own = " and ".join(brief_token(tokens[one]) for one in ids[:3])
            yield field, f"{' and '.join(map(str, ids[:3]))} ({own}, while {brief_token(token)} is {row})"


def _right(role: str, known: Mapping[str, Mapping[int, str]]) -> str:
    """Return the role of the token whose id a field should have: "eos_token" for the field of "forced_eos_token".

    ``role`` is the role in the name of the field. For a decoder's start token, the result is the first role of bos,
    pad, eos and cls for which the list has a token, or "". ``known`` has {role: {id: token}} of the list.
    """
    if role != START:
        return role.removeprefix("forced_")
    return next((one for one in ("bos_token", "pad_token", "eos_token", "cls_token") if known[one]), "")


def _is_other(row: int, token: str, valid: set[str], known: Mapping[str, Mapping[int, str]]) -> bool:
    """Return whether the token with the id ``row`` cannot have one of the roles in ``valid``.

    It cannot if it looks like a token with another role, a word or a sign. ``known`` is the result of
    ``_tokens_by_role``.
    """
    roles = {role for role, found in known.items() if row in found}
    if roles:
        return roles.isdisjoint(valid)
    is_plain = BYTE.fullmatch(token) is not None or SPECIAL.fullmatch(token) is None
    return is_plain and token not in LINES and not SPACES.issuperset(token)
