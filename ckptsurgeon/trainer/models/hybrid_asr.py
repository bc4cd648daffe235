"""A compact speech recogniser: conformer or transformer encoder, CTC head, attention decoder.

Hybrid CTC and attention (https://arxiv.org/abs/1609.06773), the architecture of ESPnet's and SpeechBrain's recipes. The
modules are ``frontend``, ``encoder``, ``decoder`` and ``ctc``, so that ``--exclude decoder`` excludes the decoder.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...planning.target import Companion
from ._layers import ConformerBlock, ConvSubsampling, LogMel, add_positions, padding_mask, subsampled

__all__ = ["MODEL", "HybridASR", "HybridOutput"]

BLANK = 0
"""The CTC blank is token 0, as in ESPnet."""


class HybridOutput(NamedTuple):
    """The output of the model for a batch.

    ``ctc``: log-probabilities (batch, frames, tokens); ``lengths``: the number of frames of each clip; ``decoder``:
    logits (batch, length, tokens), or None if ``forward`` was called without ``previous``.
    """

    ctc: Tensor
    lengths: Tensor
    decoder: Tensor | None


class Encoder(nn.Module):
    """The encoder: features (batch, time, n_mels) → (batch, time // 4, d_model)."""

    def __init__(self, kind: str, n_mels: int, d_model: int, *, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embed = ConvSubsampling(n_mels, d_model)
        self.layers = nn.ModuleList(
            ConformerBlock(d_model, heads, dropout=dropout)
            if kind == "conformer"
            else nn.TransformerEncoderLayer(d_model, heads, 4 * d_model, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.kind = kind

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.embed(features, lengths)
        x = add_positions(x)
        padding = padding_mask(lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, padding) if self.kind == "conformer" else layer(x, src_key_padding_mask=padding)
        return self.norm(x), lengths


class Decoder(nn.Module):
    """The decoder: previous tokens (batch, length) and the encoder's output → logits (batch, length, tokens)."""

    def __init__(self, tokens: int, d_model: int, *, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, d_model)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(d_model, heads, 4 * d_model, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.out = nn.Linear(d_model, tokens)

    def forward(self, previous: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        x = add_positions(self.embed(previous))
        size = previous.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=causal, memory_key_padding_mask=padding)
        logits: Tensor = self.out(self.norm(x))
        return logits


class HybridASR(nn.Module):
    """A speech recogniser: waveforms (or features) in, CTC log-probabilities and decoder logits out."""

    def __init__(
        self,
        tokens: int,
        *,
        d_model: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        n_mels: int,
        ctc_weight: float,
        encoder: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.ctc_weight = ctc_weight
        self.frontend = LogMel(n_mels)
        self.encoder = Encoder(encoder, n_mels, d_model, heads=heads, layers=encoder_layers, dropout=dropout)
        self.decoder = Decoder(tokens, d_model, heads=heads, layers=decoder_layers, dropout=dropout)
        self.ctc = nn.Linear(d_model, tokens)

    def forward(self, waves: Tensor, lengths: Tensor, previous: Tensor | None = None) -> HybridOutput:
        """Return the HybridOutput for ``waves`` (batch, samples), with ``lengths`` in samples.

        ``previous`` (batch, length) are the decoder's inputs: the start token, then the target tokens (teacher
        forcing).
        """
        memory, frames = self.encode(waves, lengths)
        logits = self.decode(previous, memory, frames) if previous is not None else None
        return HybridOutput(self.ctc(memory).log_softmax(-1), frames, logits)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return the numbers of frames that the encoder makes of waveforms with ``lengths`` samples."""
        return subsampled(self.frontend.frames(lengths))

    def encode(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's output (batch, frames, d_model), and the number of frames of each clip."""
        found: tuple[Tensor, Tensor] = self.encoder(*self.frontend(waves, lengths))
        return found

    def decode(self, previous: Tensor, memory: Tensor, frames: Tensor) -> Tensor:
        """Return the decoder's logits (batch, length, tokens) for the token that follows each token of ``previous``.

        ``memory`` is the encoder's output, ``frames`` is the number of frames of each clip.
        """
        logits: Tensor = self.decoder(previous, memory, padding_mask(frames, memory.shape[1]))
        return logits


class _HybridASRModel:
    fields: ClassVar[dict[str, Any]] = {
        "tokens": None,
        "d_model": 144,
        "heads": 4,
        "encoder_layers": 6,
        "decoder_layers": 2,
        "n_mels": 80,
        "ctc_weight": 0.3,
        "encoder": "conformer",
        "dropout": 0.1,
    }
    files = ("tokens",)
    vocabulary: ClassVar[dict[str, int]] = {
        "decoder.embed.weight": 0,
        "decoder.out.weight": 0,
        "decoder.out.bias": 0,
        "ctc.weight": 0,
        "ctc.bias": 0,
    }

    def layers(self, fields: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the layers, in the order of the network; decoder and CTC head come last."""
        encoder = [f"encoder.layers.{n}" for n in range(fields["encoder_layers"])]
        return ("encoder.embed", *encoder, "encoder.norm", "decoder", "ctc")

    def companions(self, fields: dict[str, Any]) -> tuple[Companion, ...]:
        """Return no files: no toolkit expects other files in the folder of this model's weights."""
        return ()

    def build(self, fields: dict[str, Any]) -> nn.Module:
        """Build the model; the field ``tokens`` is the content of the token list: one token a line, the blank first.

        Raises ConfigError for an invalid field.
        """
        numbers = ("d_model", "heads", "encoder_layers", "decoder_layers", "n_mels")
        for name in numbers:
            if type(fields[name]) is not int or fields[name] < (0 if name == "decoder_layers" else 1):
                least = 0 if name == "decoder_layers" else 1
                raise ConfigError(f"hybrid_asr: {name} is {fields[name]!r}, not a whole number of {least} or more.")
        if fields["d_model"] % fields["heads"]:
            raise ConfigError(f"hybrid_asr: d_model {fields['d_model']} is not a multiple of heads {fields['heads']}.")
        if fields["encoder"] not in ("conformer", "transformer"):
            raise ConfigError(
                f"hybrid_asr: the encoder {fields['encoder']!r} is not known.", hint="Use conformer or transformer."
            )
        if fields["n_mels"] < 7:
            raise ConfigError(
                f"hybrid_asr: n_mels is {fields['n_mels']}; it must be 7 or more, because two convolutions shrink it."
            )
        tokens = _count_tokens(fields["tokens"])
        others = {name: value for name, value in fields.items() if name != "tokens"}
        return HybridASR(tokens, **others)


def _count_tokens(text: str | None) -> int:
    if text is None:
        raise ConfigError(
            "hybrid_asr needs a token list.", hint="Write tokens: FILE (one token a line, the blank in the first)."
        )
    tokens = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    twice = {token for token in tokens if tokens.count(token) > 1} if len(set(tokens)) < len(tokens) else set()
    if twice:
        raise ConfigError(
            f"hybrid_asr: the token {sorted(twice)[0]!r} is in the token list more than once.",
            hint="Keep only one of its lines.",
        )
    if len(tokens) < 2:
        raise ConfigError("hybrid_asr: the token list holds fewer than two tokens.")
    return len(tokens)


MODEL = _HybridASRModel()
