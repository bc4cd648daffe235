"""ESPnet's transformer for recognition and translation: the present names, and the first ones, until 2019.

ESPnet 1 still reads the first names, as hooks rename them; ESPnet 2 does not. Until version 0.5.2, files also had the
position encodings. ``_pre_hook`` in
https://github.com/espnet/espnet/blob/master/espnet/nets/pytorch_backend/transformer/encoder.py, ``decoder.py`` and
``embedding.py`` beside it.
"""

from __future__ import annotations

from ..layout import Family, Layout

__all__ = ["FAMILY"]

_ENCODER, _DECODER = "encoder.encoders.{n}", "decoder.decoders.{n}"
_SAME = {one: one for one in (_ENCODER, "decoder.embed", _DECODER, "decoder.output_layer", "ctc.ctc_lo")}
_INPUT = "encoder.embed"
_NORMS = ("encoder.after_norm", "decoder.after_norm")
_OLD_NORMS = dict(zip(_NORMS, ("encoder.norm", "decoder.output_norm"), strict=True))
_LAST = (".out.1", ".4", ".1")
"""The paths of the position encoding in an input layer: after convolutions, a linear layer, or an embedding."""


def _layout(name: str, library: str, embed: str, norms: dict[str, str], *, only_read: bool = False) -> Layout:
    """Return a layout with the name ``embed`` for the encoder's input layer, and with the names ``norms`` for norms."""
    encodings = (*(f"{embed}{last}.pe" for last in _LAST), *(f"decoder.embed{last}.pe" for last in _LAST[1:]))
    return Layout(
        name, library, "espnet 202511", {_INPUT: embed, **norms, **_SAME},
        (f"{norms['encoder.after_norm']}.weight", "encoder.encoders.0.self_attn.linear_q.weight"),
        computed=encodings, only_read=only_read,
    )  # fmt: skip


FAMILY = Family(
    "espnet-transformer",
    (
        _layout("espnet", "ESPnet", _INPUT, {one: one for one in _NORMS}),
        _layout("espnet-first", "ESPnet until 2019", "encoder.input_layer", _OLD_NORMS),
        _layout("espnet-first", "ESPnet until 2019", _INPUT, _OLD_NORMS, only_read=True),
    ),
)
