"""The files of the tokeniser and feature extractor that transformers needs for a CTC model of waveforms.

These files are written for a destination whose ``train:`` section has a token list, so that ``transformers.pipeline``
can use the model. https://huggingface.co/docs/transformers/model_doc/wav2vec2
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ...errors import ConfigError, SourceError
from ...planning.target import Companion
from ...util.text import brief_repr, escape
from ...vocabulary.renumbered_ids import MovedIds
from ...vocabulary.spoken import BLANKS, SPACES, first_of
from ...vocabulary.vocabulary import read_vocabulary
from .._document import Document
from .files import PREPROCESSOR
from .written_files import WrittenConfig

__all__ = ["processor_files"]

VOCABULARY, TOKENIZER = "vocab.json", "tokenizer_config.json"
PIECE = "▁"
RATE = 16_000
"""The sampling rate in Hz of ``train.features``, if none is given."""


def processor_files(
    document: Document, written: WrittenConfig, name: str, present: Sequence[Companion]
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files of the feature extractor and the tokeniser for a model of waveforms, and notes.

    ``name`` is the name of the model's class. ``present`` are the files in the folder of the configuration. They are
    not replaced, with one exception: a tokeniser is replaced if its tokens differ from the trained tokens. No files are
    returned for other models, or if the document has no ``train:`` section with waveforms as features. In ``written``,
    the blank of CTC becomes the padding token, because transformers uses the padding token as the blank.
    """
    features, config = _map(document.train.get("features")), written.config
    if getattr(config, "conv_kernel", None) is None or features.get("kind") != "waves":
        return (), []
    known = {one.name for one in present}
    made = [] if PREPROCESSOR in known else [_extractor(config, features.get("rate"))]
    named = _map(document.train.get("data")).get("tokens")
    if not name.endswith("ForCTC") or not isinstance(named, str):
        return tuple(made), []
    try:
        tokens = read_vocabulary(document.resolve(named)).tokens
    except (ConfigError, SourceError) as error:  # the weights need no tokeniser; training reports the error again
        return tuple(made), [f"no tokeniser is written for transformers: {error.message.rstrip('.')}"]
    has_tokeniser, why = not known.isdisjoint((VOCABULARY, TOKENIZER)), _unfit(tokens, config)
    other = _other_tokens(present, tokens, named) if has_tokeniser else ""
    if has_tokeniser and not other:
        return tuple(made), []
    if why and other:
        return tuple(made), [f"{other}: transformers.pipeline would output the wrong letters"]
    if why:
        return tuple(made), [f"no tokeniser is written for transformers: {escape(named)} {why}"]
    notes = _with_blank(written, tokens) if "pad_token_id" not in document.model else []
    said = [f"{other}: instead, a tokeniser for {escape(named)} is written"] if other else []
    return (*made, *_tokenizer(tokens)), [*said, *notes]


def _other_tokens(present: Sequence[Companion], tokens: Sequence[str], named: str) -> str:
    """Return a clause for a note: the first difference of vocab.json from the trained ``tokens``; '' if there is none.

    The vocab.json is in ``present``, the files in the folder of the configuration. ``named`` is the name of the file
    with the trained tokens. Different spellings of the blank, the space and the unknown token are not differences.
    """
    path = next((one.path for one in present if one.name == VOCABULARY and one.path), "")
    spelled = {*BLANKS, *SPACES, "<unk>", "[UNK]"}
    try:
        theirs = read_vocabulary(path).tokens if path else tuple(tokens)
    except (ConfigError, SourceError):
        return ""  # the error is reported when the file is copied
    rows = zip_longest(tokens, theirs)
    for number, (ours, other) in enumerate(rows):
        if ours != other and not {ours, other} <= spelled:
            theirs_has = "has no row" if other is None else f"has {brief_repr(other)} at row"
            ours_has = "no such row" if ours is None else brief_repr(ours)
            theirs_has = f"the {VOCABULARY} in the folder of the configuration {theirs_has} {number}"
            return f"{theirs_has}, and {escape(named)} has {ours_has}"
    return ""


def _with_blank(written: WrittenConfig, tokens: Sequence[str]) -> list[str]:
    """Make the blank of CTC the padding token of a configuration; return a note if this changes the padding token."""
    blank = first_of(BLANKS, tokens)
    number = tokens.index(blank) if blank is not None else None
    if number is None or written.config.pad_token_id == number:
        return []
    written.apply(MovedIds({("pad_token_id",): number}))
    return [f"pad_token_id becomes {number}, the id of the CTC blank {escape(blank or '')}"]


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _extractor(config: Any, rate: object) -> Companion:
    """Return the settings of transformers' Wav2Vec2FeatureExtractor.

    Only a model with layer norms gets an attention mask for the padding.
    """
    fields = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "padding_side": "right",
        "padding_value": 0.0, "sampling_rate": rate if type(rate) is int else RATE, "do_normalize": True,
        "return_attention_mask": getattr(config, "feat_extract_norm", "group") == "layer",
    }  # fmt: skip
    return Companion(PREPROCESSOR, text=_text(fields))


def _unfit(tokens: Sequence[str], config: Any) -> str:
    """Return the reason why transformers' Wav2Vec2CTCTokenizer cannot represent the list ``tokens``, '' if it can."""
    if first_of(BLANKS, tokens) is None:
        return "has no blank"
    if len(tokens) != config.vocab_size:
        return f"has {len(tokens)} tokens, but the model has {config.vocab_size} rows"
    pieces = first_of(SPACES, tokens) is None and any(token[:1] == PIECE != token for token in tokens)
    return "consists of subword pieces, but Wav2Vec2CTCTokenizer needs single letters" if pieces else ""


def _tokenizer(tokens: Sequence[str]) -> tuple[Companion, ...]:
    """Return the files of a Wav2Vec2CTCTokenizer.

    That class has no separate blank: it uses its padding token as the blank. If ``tokens`` has no token for spaces or
    no token for unknown letters, the blank is used for them, too.
    """
    blank = first_of(BLANKS, tokens)
    fields = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": blank,
        "word_delimiter_token": first_of(SPACES, tokens) or blank,
        "unk_token": first_of(("<unk>", "[UNK]"), tokens) or blank, "bos_token": first_of(("<s>",), tokens),
        "eos_token": first_of(("</s>",), tokens), "do_lower_case": False, "replace_word_delimiter_char": " ",
    }  # fmt: skip
    numbers = {token: number for number, token in enumerate(tokens)}
    return Companion(VOCABULARY, text=_text(numbers)), Companion(TOKENIZER, text=_text(fields))


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
