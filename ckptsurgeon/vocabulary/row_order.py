"""Puts the pieces of a sentencepiece model, and tokens that transformers adds, in the order of the embedding's rows.

Each tokeniser has the same order as in ``convert_slow_tokenizer.py`` in https://github.com/huggingface/transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .vocabulary import Vocabulary

__all__ = ["IN_CODE", "in_row_order", "is_of_pieces", "kind_of"]

LIKE_PIECES = frozenset((
    "albert", "bertgeneration", "bigbird", "codellama", "debertav2", "fnet", "gemma", "gemma2", "gemma3",
    "gemma3text", "gptsw3", "llama", "mistral", "mixtral", "reformer", "rembert", "siglip", "speecht5", "xlnet",
))  # fmt: skip
"""Names of tokenisers, or of model types, whose rows are in the order of the pieces."""
IN_CODE = frozenset((
    "barthez", "bartpho", "cpm", "fsmt", "m2m100", "marian", "mbart", "mbart50", "mluke", "nllb", "nllbmoe", "plbart",
    "seamlessm4t", "seamlessm4tv2", "speech2text", "udop", "xlmprophetnet",
))  # fmt: skip
"""Names of tokenisers that add tokens (for example, of languages) in their code, so that no file contains them."""
_OF_T5 = ("t5", "mt5", "umt5", "longt5")
_SENTINEL = "<extra_id_0>"
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
_FIRST = {"<unk>", "<s>", "</s>"}
_CAMEMBERT = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
_ENDING = re.compile(r"Tokenizer(Fast)?$")


def is_of_pieces(name: str) -> bool:
    """Return whether a file is a sentencepiece model, by its name."""
    return name.lower().endswith((".model", ".spm"))


def kind_of(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the tokeniser's class in lower case, without ``Tokenizer`` (``xlmroberta``), or else the model type.

    The class is in tokenizer_config.json or config.json, the model type in config.json; '' if there is neither.
    """
    for said in (settings.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type")):
        if isinstance(said, str) and not said.startswith(("PreTrained", "Tokenizers")):
            return _ENDING.sub("", said).replace("-", "").replace("_", "").lower()
    return ""


def in_row_order(name: str, pieces: Vocabulary, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Vocabulary:
    """Return ``pieces`` with the tokens in the order of the embedding's rows, which depends on the tokeniser's class.

    ``name`` is the name of the file that has the pieces. The class is read from ``settings`` (tokenizer_config.json) or
    ``config`` (config.json). In the result, ``is_whole`` is False if the order is not known, or if the tokeniser may
    have tokens that the result lacks.
    """
    kind = kind_of(settings, config)
    if kind in IN_CODE:
        return replace(pieces, is_whole=False, tokeniser=kind)
    if not is_of_pieces(name):
        return pieces
    make = _MADE.get(kind)
    if make is None:
        return replace(pieces, is_whole=kind in LIKE_PIECES, tokeniser=kind)
    tokens = make(pieces.tokens, settings)
    if tokens is None or len(set(tokens)) < len(tokens):
        return replace(pieces, is_whole=False, tokeniser=kind)
    scores = dict(zip(pieces.tokens, pieces.scores, strict=False))
    ordered = tuple(scores.get(token, 0.0) for token in tokens) if scores else ()
    is_whole = kind not in _OF_T5 or bool(settings)
    return replace(pieces, tokens=tuple(tokens), scores=ordered, is_whole=is_whole, tokeniser=kind)


def _t5(pieces: Sequence[str], settings: Mapping[str, Any]) -> Sequence[str]:
    """Return the pieces and then ``<extra_id_99>``, ``<extra_id_98>`` … ``<extra_id_0>``, unless the pieces have these.

    The number of these tokens is ``extra_ids`` in tokenizer_config.json (``settings``). It is 100 if the file lacks
    ``extra_ids``, and 0 if there is no such file.
    """
    number = settings.get("extra_ids", 100 if settings else 0)
    known = settings.get("added_tokens_decoder")
    rows = known.values() if isinstance(known, dict) else ()
    are_added = any(isinstance(row, dict) and row.get("content") == _SENTINEL for row in rows)
    if type(number) is not int or not 0 < number < 10000 or are_added or _SENTINEL in pieces:
        return pieces
    return (*pieces, *(f"<extra_id_{one}>" for one in reversed(range(number))))


def _pegasus(pieces: Sequence[str], settings: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the first two pieces, two mask tokens, ``<unk_2>``, ``<unk_3>`` … of pretraining, and the other pieces.

    Returns None if the settings are not valid.
    """
    offset = settings.get("offset", 103)
    if offset == 0:
        return pieces
    masks = [_text(settings.get(field, usual)) for field, usual in _MASKS]
    if type(offset) is not int or not 2 < offset < 10000 or not all(masks):
        return None
    return (*pieces[:2], *masks, *(f"<unk_{one}>" for one in range(2, offset)), *pieces[2:])


_MASKS = (("mask_token_sent", "<mask_1>"), ("mask_token", "<mask_2>"))


def _text(token: Any) -> str:
    said = token.get("content") if isinstance(token, dict) else token
    return said if isinstance(said, str) else ""


def _xlm_roberta(
    pieces: Sequence[str], _: Mapping[str, Any], last: Sequence[str] = ("<mask>",)
) -> Sequence[str] | None:
    """Return ``<s> <pad> </s> <unk>`` of fairseq, then the pieces from the fourth on, then ``last``.

    Returns None unless the first three pieces are ``<unk>``, ``<s>`` and ``</s>``, in any order.
    """
    return (*_FAIRSEQ, *pieces[3:], *last) if {*pieces[:3]} == _FIRST else None


def _xglm(pieces: Sequence[str], settings: Mapping[str, Any]) -> Sequence[str] | None:
    return _xlm_roberta(pieces, settings, [f"<madeupword{one}>" for one in range(7)])


def _camembert(pieces: Sequence[str], _: Mapping[str, Any]) -> Sequence[str]:
    return (*_CAMEMBERT, *pieces[1:], "<mask>")


_MADE: dict[str, Callable[[Sequence[str], Mapping[str, Any]], Sequence[str] | None]] = {
    **dict.fromkeys(_OF_T5, _t5),
    **dict.fromkeys(("pegasus", "bigbirdpegasus"), _pegasus),
    **dict.fromkeys(("xlmroberta", "xlmrobertaxl", "layoutxlm"), _xlm_roberta),
    "xglm": _xglm,
    "camembert": _camembert,
}
