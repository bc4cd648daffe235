"""Coqui STT's network, DeepSpeech (https://arxiv.org/abs/1412.5567): three dense layers, an LSTM, two dense layers.

Its modules have the same names as Coqui STT's layers: ``layer_1``, ``layer_2``, ``layer_3``, ``lstm``, ``layer_5``
and ``layer_6``, the output; there is no ``layer_4``.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what everybody calls it

from ...destinations.hf.files import ALPHABET, FLAGS
from ...errors import ConfigError
from ...planning.target import Companion
from ...vocabulary.coqui import VOCABULARY, alphabet_text
from ...vocabulary.vocabulary import BYTES, read_vocabulary
from ._layers import padding_mask

__all__ = ["MODEL", "DeepSpeech"]

CLIP = 20.0
"""The upper bound of a dense layer's output (Coqui STT's ``relu_clip``)."""
LAYERS = ("layer_1", "layer_2", "layer_3", "lstm", "layer_5", "layer_6")


class DeepSpeech(nn.Module):
    """The network of Coqui STT: features in, CTC log-probabilities out.

    ``outputs`` is the number of labels plus one for the blank, which comes last. ``stages`` lists the modules and
    methods that gradient checkpointing computes again in the backward pass.
    """

    stages = ("_before", "lstm", "_after")

    def __init__(self, outputs: int, *, n_input: int, n_context: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_input, self.n_context = n_input, n_context
        self.layer_1 = nn.Linear((2 * n_context + 1) * n_input, n_hidden)
        self.layer_2 = nn.Linear(n_hidden, n_hidden)
        self.layer_3 = nn.Linear(n_hidden, n_hidden)
        self.lstm = nn.LSTM(n_hidden, n_hidden, batch_first=True)
        self.layer_5 = nn.Linear(n_hidden, n_hidden)
        self.layer_6 = nn.Linear(n_hidden, outputs)
        self.dropout = nn.Dropout(dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as Coqui STT does: Glorot uniform weights and zero biases; LSTM weights keep PyTorch's default."""
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif not name.startswith("lstm."):
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return log-probabilities (batch, time, outputs) for the frames of ``features`` (batch, time, n_input).

        ``lengths`` (batch,) has the number of frames of each clip. Features after a clip's last frame should be zero,
        like the padding before its first frame.
        """
        x, _ = self.lstm(self._before(features))
        return self._after(x.masked_fill(padding_mask(lengths, x.shape[1])[..., None], 0.0))

    def _before(self, features: Tensor) -> Tensor:
        x = self._windows(features)
        for layer in (self.layer_1, self.layer_2, self.layer_3):
            x = self._dense(layer, x)
        return x

    def _after(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.layer_6(self._dense(self.layer_5, x)), -1)

    def _dense(self, layer: nn.Linear, x: Tensor) -> Tensor:
        clipped: Tensor = self.dropout(layer(x).clamp(0.0, CLIP))
        return clipped

    def _windows(self, features: Tensor) -> Tensor:
        """Concatenate each frame with its neighbours, earliest first: (batch, time, (2 * n_context + 1) * n_input)."""
        padded = F.pad(features, (0, 0, self.n_context, self.n_context))
        return padded.unfold(1, 2 * self.n_context + 1, 1).transpose(2, 3).flatten(2)


class _DeepSpeechModel:
    fields: ClassVar[dict[str, Any]] = {
        "alphabet": None,
        "bytes": False,
        "n_hidden": 2048,
        "n_input": 26,
        "n_context": 9,
        "dropout": 0.05,
    }
    files = ("alphabet",)
    vocabulary: ClassVar[dict[str, int]] = {"layer_6.weight": 0, "layer_6.bias": 0}

    def layers(self, fields: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the layers, in the order of the network."""
        return LAYERS

    def companions(self, fields: dict[str, Any]) -> tuple[Companion, ...]:
        """Return the files that Coqui STT keeps in a checkpoint's folder: flags, and the alphabet if there is one."""
        flags = {
            "n_hidden": fields["n_hidden"],
            "dropout_rate": fields["dropout"],
            "bytes_output_mode": fields["bytes"],
        }
        made = Companion(FLAGS, text=json.dumps(flags, indent=2) + "\n")
        if fields["alphabet"] is None:
            return (made,)
        return Companion(ALPHABET, text=alphabet_text(_labels(fields["alphabet"])[:-1])), made

    def build(self, fields: dict[str, Any]) -> nn.Module:
        """Build the model; ``alphabet`` is the text of an ``alphabet.txt``.

        Raises ConfigError for an invalid field.
        """
        for name, least in (("n_hidden", 1), ("n_input", 1), ("n_context", 0)):
            if type(fields[name]) is not int or fields[name] < least:
                raise ConfigError(f"deepspeech: {name} is {fields[name]!r}, not a whole number of {least} or more.")
        if not isinstance(fields["dropout"], (int, float)) or not 0 <= fields["dropout"] < 1:
            raise ConfigError(f"deepspeech: dropout is {fields['dropout']!r}, not a number from 0 to below 1.")
        others = {name: value for name, value in fields.items() if name not in ("alphabet", "bytes")}
        return DeepSpeech(_outputs(fields["alphabet"], fields["bytes"]), **others)


def _outputs(alphabet: str | None, as_bytes: Any) -> int:
    """Return the number of outputs: one for each label, and one for the blank.

    ``alphabet`` is the text of an ``alphabet.txt``; if ``as_bytes`` is true, there is none, and labels are bytes.
    Raises ConfigError unless exactly one of the two is given.
    """
    if not isinstance(as_bytes, bool):
        raise ConfigError(f"deepspeech: the field bytes is {as_bytes!r}; it must be true or false.")
    if as_bytes == (alphabet is not None):
        raise ConfigError(
            "deepspeech has both an alphabet and bytes: true." if as_bytes else "deepspeech needs an alphabet.",
            hint="Write alphabet: FILE, with one label a line, or bytes: true for Coqui STT's bytes output mode.",
        )
    if alphabet is None:
        return len(read_vocabulary(BYTES).tokens)
    return len(_labels(alphabet))


def _labels(alphabet: str) -> tuple[str, ...]:
    """Return the labels in ``alphabet``, the text of an ``alphabet.txt``, and then the blank."""
    return VOCABULARY.read("deepspeech: the alphabet", alphabet.encode()).tokens


MODEL = _DeepSpeechModel()
