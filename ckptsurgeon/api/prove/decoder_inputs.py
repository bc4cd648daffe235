"""The inputs of the decoder in an encoder-decoder of transformers: its start token, and the encoder's text."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...destinations.hf.files import CONFIG, GENERATION
from ...errors import ConfigError
from ...util.text import count, escape

__all__ = ["DECODER", "NO_START", "with_decoder"]

DECODER, MASK = "decoder_input_ids", "decoder_attention_mask"
"""Arguments of ``forward`` for the decoder: the tokens that come before the predicted ones, and the padding mask."""
START, BEGIN = "decoder_start_token_id", "bos_token_id"

TENSORS = "give the arguments of the model's forward as tensors: --inputs FILE.safetensors."
NO_START = (
    f"Neither {CONFIG} nor {GENERATION} has the token with which the decoder begins ({START}): set it, or {TENSORS}"
)
"""The hint if a network does not run and the start token of its decoder is not known."""


class _Start(NamedTuple):
    """The token with which a decoder begins, and the field that has it: "decoder_start_token_id of config.json"."""

    token: int
    field: str


def with_decoder(arguments: dict[str, Tensor], module: nn.Module, folder: str) -> tuple[dict[str, Tensor], str]:
    """Return (``arguments`` with the decoder's arguments added, hint), for an encoder-decoder of transformers.

    Nothing is added for any other model, if there is no start token, if ``forward`` needs none, or if the decoder
    predicts codes of audio in several channels. The hint says what to do if the network then does not run; it may be
    "". Raises ConfigError if the start token is not an id, or if the decoder lacks the start token or a token of the
    text.
    """
    config: Any = getattr(module, "config", None)
    known = inspect.signature(module.forward).parameters
    if not arguments or not getattr(config, "is_encoder_decoder", False) or DECODER not in known:
        return arguments, ""
    sections = [config, *(getattr(config, name, None) for name in ("decoder", "decoder_config", "text_config"))]
    if any(hasattr(one, name) for one in sections[1:3] for name in ("num_channels", "num_codebooks")):
        return arguments, ""
    read, own = _document(folder, CONFIG), [_fields(one) for one in sections]
    nested = [(CONFIG, one) for one in own[1:]]
    given = {name: value for name, value in own[0].items() if not read or name in read}
    own_class = f"{type(config).__name__} ({CONFIG} has none)"
    places = [(CONFIG, given), (GENERATION, _document(folder, GENERATION)), *nested, (own_class, own[0])]
    start = _first(places, START)
    if start is None and _starts_with_last(module):
        return arguments, ""
    start = start if start is not None else _first(places, BEGIN)
    if start is None:
        return arguments, NO_START
    size = _tokens_of_decoder(module)
    _check_start(start, size)
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None:
        rows = len(next(iter(arguments.values())))
        return {**arguments, DECODER: torch.full((rows, 1), start.token)}, ""
    real = torch.ones_like(ids) if mask is None else mask
    first = torch.nn.functional.one_hot(real.argmax(1), ids.shape[1]).bool()
    shifted = ids.roll(1, 1).masked_fill(first, start.token)
    _check_tokens(shifted.masked_fill(first, 0), size)
    return {**arguments, DECODER: shifted, **({MASK: real} if MASK in known else {})}, ""


def _fields(config: Any) -> Mapping[str, Any]:
    return {name: getattr(config, name, None) for name in (START, BEGIN)}


def _document(folder: str, name: str) -> Mapping[str, Any]:
    """Return the fields of a JSON file in the folder; {} if it is missing or cannot be read."""
    from ...storage.json_text import read_json
    from ...storage.small_files import read_text

    with suppress(OSError, ValueError):
        fields = read_json(read_text(os.path.join(folder, name)))
        return fields if isinstance(fields, dict) else {}
    return {}


def _first(places: list[tuple[str, Mapping[str, Any]]], name: str) -> _Start | None:
    """Return the id in the field ``name`` of the first file in ``places`` that has this field; None if none has it.

    Raises ConfigError if the value is not an id.
    """
    file, value = next(((file, one[name]) for file, one in places if one.get(name) is not None), ("", None))
    if value is None:
        return None
    if isinstance(value, list) and len(set(map(repr, value))) == 1:  # generation allows one for each text
        value = value[0]
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ConfigError(
            f"{name} of {file} is {escape(repr(value))}, which is not a token id.", hint=f"Correct {name}, or {TENSORS}"
        )
    return _Start(value, f"{name} of {file}")


def _starts_with_last(module: nn.Module) -> bool:
    """Return whether ``forward`` itself makes the decoder's tokens, and begins with the last token of each text.

    MBart and PLBart do so, since the last token is the language: their ``shift_tokens_right`` takes no start token.
    """
    shift = getattr(sys.modules.get(type(module).__module__), "shift_tokens_right", None)
    return shift is not None and START not in inspect.signature(shift).parameters


def _tokens_of_decoder(module: nn.Module) -> int | None:
    """Return the number of rows of the decoder's embedding; None if it is not known."""
    with suppress(AttributeError, NotImplementedError, TypeError):
        decoder: Any = module.get_decoder()  # type: ignore[operator]
        if isinstance(own := getattr(decoder, "embed_tokens", None), nn.Embedding):  # FSMT's decoder has no such method
            return own.num_embeddings
        return int(decoder.get_input_embeddings().num_embeddings)
    return None


def _check_start(start: _Start, size: int | None) -> None:
    """Raise ConfigError if the decoder's embedding, with ``size`` rows, has no row for the start token."""
    if size is not None and start.token >= size:
        raise ConfigError(
            f"{start.field} is {start.token}, but the decoder of this network has {count(size, 'token')}.",
            hint=f"Correct {start.field.partition(' ')[0]}, or {TENSORS}",
        )


def _check_tokens(ids: Tensor, size: int | None) -> None:
    """Raise ConfigError if a token id is too large for the decoder's embedding, which has ``size`` rows."""
    largest = int(ids.max())
    if size is not None and largest >= size:
        raise ConfigError(
            f"these inputs have token {largest}, but the decoder of this network has {size} tokens: its encoder "
            "has other tokens than its decoder.",
            hint=f"G{TENSORS[1:]}",
        )
