"""ESPnet's recurrent encoder with attention, for recognition: the names of ESPnet 2 and of ESPnet 1.

ESPnet 1 stores the attention twice, as a module of its own and as one of the decoder.
https://github.com/espnet/espnet/blob/master/espnet/nets/pytorch_backend/e2e_asr.py,
https://github.com/espnet/espnet/blob/master/espnet2/asr/decoder/rnn_decoder.py
"""

from __future__ import annotations

from ..layout import Family, Layout

__all__ = ["FAMILY"]

_ATTENTION = "decoder.att_list"
_FIRST = {
    "encoder.enc": "enc.enc",
    "decoder.embed": "dec.embed",
    "decoder.decoder.{n}": "dec.decoder.{n}",
    "decoder.output": "dec.output",
    _ATTENTION: "dec.att",
    "ctc.ctc_lo": "ctc.ctc_lo",
}
_AGAIN = "att"
_MARKS = ("embed.weight", "decoder.0.weight_ih", "output.weight")

FAMILY = Family(
    "espnet-rnn",
    (
        Layout(
            "espnet", "ESPnet 2", "espnet 202511", {ours: ours for ours in (*_FIRST, _AGAIN)},
            tuple(f"decoder.{mark}" for mark in _MARKS),
            tied={_AGAIN: _ATTENTION},
        ),
        Layout(
            "espnet1", "ESPnet 1", "espnet 202511", {**_FIRST, _AGAIN: _AGAIN},
            tuple(f"dec.{mark}" for mark in _MARKS),
            doubled={_AGAIN: _ATTENTION},
        ),
    ),
)  # fmt: skip
