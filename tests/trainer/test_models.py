"""The formulas of the bundled models, against the same formulas written down a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptsurgeon.trainer.models._layers import (
    ConformerBlock,
    ConvSubsampling,
    LogMel,
    add_positions,
    mel_filters,
    padding_mask,
    subsampled,
)
from ckptsurgeon.trainer.models.hybrid_asr import Decoder, Encoder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(module: nn.Module) -> nn.Module:
    """Give every parameter a value of its own: fresh norms are the identity and hide what they are put on."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.2, 0.4)
    return module.eval()


# Features.


def hertz(mel: float) -> float:
    """The HTK scale, as HTK's book spells it: 1127 times the natural logarithm."""
    return 700.0 * (math.exp(mel / 1127.01048) - 1.0)


def triangles(n_mels: int, n_fft: int, rate: int) -> np.ndarray:
    """The filters by their definition, one bin at a time."""
    top = 1127.01048 * math.log(1.0 + rate / 2 / 700.0)
    edges = [hertz(top * i / (n_mels + 1)) for i in range(n_mels + 2)]
    filters = np.zeros((n_fft // 2 + 1, n_mels))
    for k in range(n_fft // 2 + 1):
        at = k * rate / n_fft
        for m in range(n_mels):
            low, middle, high = edges[m : m + 3]
            if low < at <= middle:
                filters[k, m] = (at - low) / (middle - low)
            elif middle < at < high:
                filters[k, m] = (high - at) / (high - middle)
    return filters


@pytest.mark.parametrize(("n_mels", "n_fft", "rate"), [(80, 512, 16_000), (7, 64, 8_000)])
def test_mel_filters_are_triangles_on_the_htk_scale(n_mels: int, n_fft: int, rate: int) -> None:
    np.testing.assert_allclose(mel_filters(n_mels, n_fft, rate).numpy(), triangles(n_mels, n_fft, rate), atol=2e-4)


def test_the_mel_scale_puts_1000_hz_at_1000() -> None:
    # Two filters up to 1000 mel have their edges at 0, 333, 667 and 1000 mel, so the first peaks at 240.7 Hz.
    filters = mel_filters(2, 4096, 2000)
    peak = filters[:, 0].argmax().item() * 2000 / 4096
    assert peak == pytest.approx(hertz(1000 / 3), abs=2000 / 4096)


def logmel(wave: np.ndarray, n_mels: int) -> np.ndarray:
    """25 ms frames every 10 ms, centred, Hann-windowed; log of the mel power; the mean over time removed."""
    size, hop, n_fft = 400, 160, 512
    window = np.zeros(n_fft)
    window[(n_fft - size) // 2 :][:size] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    padded = np.pad(wave, n_fft // 2)
    frames = [padded[i * hop : i * hop + n_fft] * window for i in range(len(wave) // hop + 1)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    features = np.log(np.maximum(power @ triangles(n_mels, n_fft, 16_000), 1e-10))
    return features - features.mean(0)


def test_log_mel_features_are_those_of_their_definition() -> None:
    wave = np.random.default_rng(0).normal(size=4000)
    found, frames = LogMel(20)(torch.tensor(wave, dtype=torch.float32)[None], torch.tensor([4000]))
    assert frames.tolist() == [26]
    np.testing.assert_allclose(found[0].numpy(), logmel(wave, 20), atol=2e-2)


def test_features_do_not_hang_on_what_else_is_in_the_batch() -> None:
    short, long = torch.randn(1600), torch.randn(4000)
    batch = torch.stack([functional.pad(short, (0, 2400), value=9.0), long])
    together, frames = LogMel(20)(batch, torch.tensor([1600, 4000]))
    alone, _ = LogMel(20)(short[None], torch.tensor([1600]))
    assert torch.allclose(together[0, : frames[0]], alone[0], atol=1e-4)
    assert not together[0, frames[0] :].any()


# Positions and lengths.


@pytest.mark.parametrize("d_model", [6, 7])
def test_positions_are_sines_in_even_and_cosines_in_odd_places(d_model: int) -> None:
    found = add_positions(torch.full((2, 50, d_model), 3.0))
    for t in range(50):
        for i in range(d_model):
            angle = t / 10_000 ** ((i - i % 2) / d_model)
            expected = 3.0 + (math.sin(angle) if i % 2 == 0 else math.cos(angle))
            assert found[1, t, i].item() == pytest.approx(expected, abs=1e-4)


def test_subsampling_says_how_many_frames_it_leaves() -> None:
    module = ConvSubsampling(8, 4)
    for size in range(7, 40):
        x, lengths = module(torch.randn(1, size, 8), torch.tensor([size]))
        assert x.shape == (1, lengths.item(), 4)
    assert subsampled(torch.tensor([0, 1, 6, 7])).tolist() == [0, 0, 0, 1]


# Blocks.


def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * module.weight + module.bias


def attention(x: Tensor, memory: Tensor, module: nn.MultiheadAttention, hidden: Tensor | None = None) -> Tensor:
    """Scaled dot products, head by head; ``hidden`` is true where a query (or all of them) must not look."""
    width = x.shape[-1]
    size = width // module.num_heads
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    q, k, v = (y @ w.T + b for y, w, b in zip((x, memory, memory), weights, biases, strict=True))
    heads = []
    for h in range(module.num_heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(heads, -1) @ module.out_proj.weight.T + module.out_proj.bias


def linear(x: Tensor, module: nn.Linear) -> Tensor:
    return x @ module.weight.T + module.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def conformer_feed_forward(x: Tensor, module: nn.Sequential) -> Tensor:
    first, inner, outer = module[0], module[1], module[4]
    return linear(silu(linear(norm(x, first), inner)), outer)  # type: ignore[arg-type]


def conformer_convolution(x: Tensor, block: ConformerBlock, padding: Tensor) -> Tensor:
    conv = block.conv
    y = norm(x, conv.norm) @ conv.pointwise1.weight[..., 0].T + conv.pointwise1.bias
    value, gate = y.chunk(2, -1)
    y = (value / (1 + (-gate).exp())).masked_fill(padding[..., None], 0)
    half = conv.depthwise.weight.shape[-1] // 2
    padded = functional.pad(y, (0, 0, half, half))
    weight = conv.depthwise.weight[:, 0]
    y = sum(padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(weight.shape[1])) + conv.depthwise.bias
    y = silu(norm(y, conv.inner_norm)) @ conv.pointwise2.weight[..., 0].T + conv.pointwise2.bias
    return y.masked_fill(padding[..., None], 0)


def test_a_conformer_block_is_that_of_the_paper() -> None:
    block = ConformerBlock(8, 2, kernel=5)
    shaken(block)
    x, padding = torch.randn(2, 9, 8), padding_mask(torch.tensor([9, 6]), 9)
    y = x + 0.5 * conformer_feed_forward(x, block.ff1)
    normed = norm(y, block.attn_norm)
    y = y + attention(normed, normed, block.self_attn, padding[:, None])
    y = y + conformer_convolution(y, block, padding)
    y = norm(y + 0.5 * conformer_feed_forward(y, block.ff2), block.norm)
    found = block(x, padding)
    assert torch.allclose(found[~padding], y[~padding], atol=1e-4)


def test_the_transformer_encoder_norms_before_each_part() -> None:
    encoder = Encoder("transformer", 8, 8, heads=2, layers=1, dropout=0.1)
    shaken(encoder)
    features, lengths = torch.randn(1, 31, 8), torch.tensor([31])
    x = add_positions(encoder.embed(features, lengths)[0])
    layer = encoder.layers[0]
    assert isinstance(layer, nn.TransformerEncoderLayer)
    normed = norm(x, layer.norm1)
    x = x + attention(normed, normed, layer.self_attn)
    x = x + linear(linear(norm(x, layer.norm2), layer.linear1).clamp(min=0), layer.linear2)
    assert torch.allclose(encoder(features, lengths)[0], norm(x, encoder.norm), atol=1e-4)


def test_the_decoder_norms_before_each_part_and_never_looks_ahead() -> None:
    decoder = Decoder(11, 8, heads=2, layers=1, dropout=0.1)
    shaken(decoder)
    previous, memory = torch.tensor([[3, 1, 4, 1]]), torch.randn(1, 6, 8)
    padding = padding_mask(torch.tensor([5]), 6)
    layer = decoder.layers[0]
    assert isinstance(layer, nn.TransformerDecoderLayer)
    x = add_positions(decoder.embed.weight[previous])
    normed = norm(x, layer.norm1)
    x = x + attention(normed, normed, layer.self_attn, torch.ones(4, 4, dtype=torch.bool).triu(1))
    x = x + attention(norm(x, layer.norm2), memory, layer.multihead_attn, padding[:, None])
    x = x + linear(linear(norm(x, layer.norm3), layer.linear1).clamp(min=0), layer.linear2)
    assert torch.allclose(decoder(previous, memory, padding), linear(norm(x, decoder.norm), decoder.out), atol=1e-4)


@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_an_encoder_does_not_hang_on_what_else_is_in_the_batch(kind: str) -> None:
    encoder = Encoder(kind, 8, 8, heads=2, layers=2, dropout=0.1).eval()
    short, long = torch.randn(31, 8), torch.randn(63, 8)
    batch = torch.stack([functional.pad(short, (0, 0, 0, 32)), long])
    together, lengths = encoder(batch, torch.tensor([31, 63]))
    alone, _ = encoder(short[None], torch.tensor([31]))
    assert torch.allclose(together[0, : lengths[0]], alone[0], atol=1e-4)
