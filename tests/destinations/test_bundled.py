"""The bundled model: modules that mean what they say, results that hang on nobody's company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.models.hybrid_asr import MODEL

TOKENS = "<blank>\n<unk>\na\nb\nc\n<sos/eos>\n"
SMALL = {
    **MODEL.fields,
    "tokens": TOKENS,
    "d_model": 32,
    "heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "n_mels": 20,
}


def test_its_modules_are_frontend_encoder_decoder_and_ctc() -> None:
    Path("tokens.txt").write_text(TOKENS)
    Path("dst.yaml").write_text("model: {name: hybrid_asr, tokens: tokens.txt, d_model: 32, heads: 2}")
    spec = cs.load_target("dst.yaml")
    assert list(dict.fromkeys(key.split(".")[0] for key in spec.tensors)) == ["frontend", "encoder", "decoder", "ctc"]
    assert spec.tensors["ctc.weight"].shape == (6, 32)
    assert spec.tensors["decoder.embed.weight"].shape == (6, 32)
    assert spec.files == ("tokens.txt",)
    assert not any("built with its weights in memory" in note for note in spec.notes)


@pytest.mark.parametrize("encoder", ["conformer", "transformer"])
def test_a_clip_gives_the_same_result_alone_and_in_a_batch(encoder: str) -> None:
    torch.manual_seed(0)
    model = MODEL.build({**SMALL, "encoder": encoder}).eval()
    waves, lengths, previous = (
        torch.randn(2, 16_000),
        torch.tensor([16_000, 9_000]),
        torch.tensor([[5, 2, 3], [5, 3, 2]]),
    )
    with torch.no_grad():
        both = model(waves, lengths, previous)
        alone = model(waves[1:, :9_000], lengths[1:], previous[1:])
    frames = int(alone.lengths[0])
    assert both.lengths.tolist() == [24, frames]
    assert torch.allclose(both.ctc[1, :frames], alone.ctc[0, :frames], atol=1e-5)
    assert torch.allclose(both.decoder[1], alone.decoder[0], atol=1e-5)
    assert torch.allclose(both.ctc.exp().sum(-1), torch.ones(2, 24), atol=1e-5)


def test_the_decoder_never_looks_ahead() -> None:
    model = MODEL.build(SMALL).eval()
    waves, lengths = torch.randn(1, 8_000), torch.tensor([8_000])
    with torch.no_grad():
        a = model(waves, lengths, torch.tensor([[5, 2, 3]])).decoder
        b = model(waves, lengths, torch.tensor([[5, 2, 4]])).decoder
    assert torch.allclose(a[:, :2], b[:, :2], atol=1e-6)
    assert not torch.allclose(a[:, 2], b[:, 2])


def test_every_parameter_gets_a_gradient() -> None:
    model = MODEL.build(SMALL)
    out = model(torch.randn(2, 8_000), torch.tensor([8_000, 8_000]), torch.tensor([[5, 2], [5, 3]]))
    loss = torch.nn.functional.ctc_loss(
        out.ctc.transpose(0, 1), torch.tensor([[2], [3]]), out.lengths, torch.tensor([1, 1])
    )
    (loss + out.decoder.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_the_filters_are_triangles_over_the_whole_band() -> None:
    from ckptsurgeon.trainer.models._layers import mel_filters

    filters = mel_filters(20, 512, 16_000)
    assert filters.shape == (257, 20)
    assert filters.min() >= 0
    assert filters.max() <= 1
    assert (filters.sum(0) > 0).all()
    assert (filters.argmax(0).diff() > 0).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"heads": 3}, "not a multiple of heads"),
        ({"d_model": 0}, "not a whole number of 1 or more"),
        ({"d_model": "32"}, "not a whole number of 1 or more"),
        ({"encoder": "rnn"}, "conformer or transformer"),
        ({"tokens": "a\na\n"}, "is in the token list more than once"),
        ({"tokens": "a\n"}, "fewer than two"),
        ({"n_mels": 3}, "must be 7 or more"),
    ],
)
def test_a_wrong_field_says_so(change: dict[str, object], why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        MODEL.build({**SMALL, **change})
