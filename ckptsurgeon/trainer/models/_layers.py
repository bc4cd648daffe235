"""Layers of speech models: log-mel features, subsampling, conformer and transformer blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ConformerBlock", "ConvSubsampling", "LogMel", "add_positions", "padding_mask", "subsampled"]

SAMPLE_RATE = 16_000
FRAME_S, HOP_S = 0.025, 0.010


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a mask (batch, size) that is true for padding: in row i, from the index ``lengths[i]`` on."""
    return torch.arange(size, device=lengths.device)[None] >= lengths[:, None]


def add_positions(x: Tensor) -> Tensor:
    """Return ``x`` (batch, time, d_model) plus sinusoidal positions, https://arxiv.org/abs/1706.03762 section 3.5."""
    size, d_model = x.shape[1:]
    rate = torch.exp(torch.arange(0, d_model, 2, device=x.device) * (-math.log(10000.0) / d_model))
    angle = torch.arange(size, device=x.device)[:, None] * rate
    return x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None, :, :d_model].to(x.dtype)


def mel_filters(n_mels: int, n_fft: int, rate: int) -> Tensor:
    """Return triangular filters (n_fft // 2 + 1, n_mels) on the HTK mel scale, 0 Hz to half the rate."""

    def to_mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (10.0 ** (torch.linspace(to_mel(0.0), to_mel(rate / 2), n_mels + 2) / 2595.0) - 1.0)
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


class LogMel(nn.Module):
    """Log-mel features of waveforms: 25 ms frames every 10 ms, with the mean of each utterance subtracted.

    ``forward``: waveforms (batch, samples) and their lengths → features (batch, frames, n_mels) and numbers of frames.
    """

    melmat: Tensor
    window: Tensor

    def __init__(self, n_mels: int, rate: int = SAMPLE_RATE) -> None:
        super().__init__()
        self.rate, self.size, self.hop = rate, int(rate * FRAME_S), int(rate * HOP_S)
        self.n_fft = 1 << (self.size - 1).bit_length()
        self.register_buffer("melmat", mel_filters(n_mels, self.n_fft, rate))
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)

    def frames(self, lengths: Tensor) -> Tensor:
        """Return the numbers of frames that ``forward`` makes of waveforms with these ``lengths`` in samples."""
        return torch.div(lengths, self.hop, rounding_mode="floor") + 1

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        waves = waves.masked_fill(padding_mask(lengths, waves.shape[1]), 0)
        spectrum = torch.stft(
            waves, self.n_fft, self.hop, self.size, self.window.to(waves.dtype),
            center=True, pad_mode="constant", return_complex=True,
        )  # fmt: skip
        power = spectrum.abs().square().transpose(1, 2)
        features: Tensor = (power @ self.melmat).clamp(min=1e-10).log()
        frames = self.frames(lengths)
        padding = padding_mask(frames, features.shape[1])[..., None]
        mean = features.masked_fill(padding, 0).sum(1, keepdim=True) / frames[:, None, None]
        centred: Tensor = (features - mean).masked_fill(padding, 0)
        return centred, frames


def subsampled(lengths: Tensor) -> Tensor:
    """Return the numbers of frames that two convolutions with kernel size 3 and stride 2 make of ``lengths`` frames."""
    for _ in range(2):
        lengths = torch.div(lengths - 3, 2, rounding_mode="floor") + 1
    return lengths.clamp(min=0)


class ConvSubsampling(nn.Module):
    """Two 3 x 3 convolutions of stride 2: (batch, time, n_mels) → (batch, about time / 4, d_model)."""

    def __init__(self, n_mels: int, d_model: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, d_model, 3, 2), nn.ReLU(), nn.Conv2d(d_model, d_model, 3, 2), nn.ReLU())
        self.out = nn.Linear(d_model * (((n_mels - 1) // 2 - 1) // 2), d_model)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x[:, None])
        batch, channels, time, mels = x.shape
        x = self.out(x.transpose(1, 2).reshape(batch, time, channels * mels))
        return x, subsampled(lengths)


class _FeedForward(nn.Sequential):
    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, 4 * d_model),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * d_model, d_model),
            nn.Dropout(dropout),
        )


class _ConvModule(nn.Module):
    """The convolution module of the conformer: pointwise with GLU, depthwise, layer norm, SiLU, pointwise."""

    def __init__(self, d_model: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.pointwise1 = nn.Conv1d(d_model, 2 * d_model, 1)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
        # Not batch norm: the output for a clip must not depend on the other clips of the batch.
        self.inner_norm = nn.LayerNorm(d_model)
        self.pointwise2 = nn.Conv1d(d_model, d_model, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = nn.functional.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        y = self.depthwise(y.masked_fill(padding[:, None], 0)).transpose(1, 2)
        y = nn.functional.silu(self.inner_norm(y)).transpose(1, 2)
        out: Tensor = self.dropout(self.pointwise2(y)).transpose(1, 2)
        return out.masked_fill(padding[..., None], 0)


class ConformerBlock(nn.Module):
    """A conformer block: half-step feed-forward, self-attention, convolution, half-step feed-forward.

    https://arxiv.org/abs/2005.08100. ``forward``: inputs (batch, time, d_model) and a padding mask (batch, time) →
    outputs (batch, time, d_model).
    """

    def __init__(self, d_model: int, heads: int, *, kernel: int = 15, dropout: float = 0.1) -> None:
        super().__init__()
        self.ff1 = _FeedForward(d_model, dropout)
        self.attn_norm = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, heads, dropout, batch_first=True)
        self.conv = _ConvModule(d_model, kernel, dropout)
        self.ff2 = _FeedForward(d_model, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        y = self.attn_norm(x)
        x = x + self.self_attn(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.conv(x, padding)
        normed: Tensor = self.norm(x + 0.5 * self.ff2(x))
        return normed
