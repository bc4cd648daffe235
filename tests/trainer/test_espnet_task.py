"""The task ``espnet``: a model with ESPnet's interface is trained by its own loss."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.log import read_log
from ckptsurgeon.trainer.tasks.espnet import ESPnet
from fixtures.espnet_models import recorded

from .sounds import corpus

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    """Counts letters; as ESPnet's models, it gives a mean loss, figures and the number of examples."""

    def __init__(self, token_list=None):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)
        if token_list:
            self.token_list = token_list

    def forward(self, speech, speech_lengths, text, text_lengths, **kwargs):
        assert (text >= 0).sum(1).equal(text_lengths), "padding is not -1"
        features = torch.stack([speech.abs().mean(1), speech.std(1), speech_lengths / 16000, speech.amax(1)], 1)
        counts = self.head(torch.tanh(self.body(features)))[:, 0]
        loss = (counts - text_lengths).square().mean()
        near = ((counts - text_lengths).abs() < 1).float().mean()
        stats = {"loss": loss.detach(), "acc": near, "cer": None}
        return loss[None], {k: v[None] if v is not None else v for k, v in stats.items()}, torch.tensor([len(text)])
'''


def write(model: dict[str, Any] | None = None, **settings: Any) -> None:
    corpus("train.csv", ["a" * (1 + number % 5) for number in range(12)])
    corpus("dev.csv", ["ab", "b", "aab", "ba", "a"])
    Path("counting.py").write_text(NET)
    Path("tokens.txt").write_text("<blank>\na\nb\n<sos/eos>\n")
    data = {"train": "train.csv", "dev": "dev.csv", "tokens": "tokens.txt"}
    train = {"task": "espnet", "data": data, "features": {"kind": "waves"}, "batch_size": 4, "steps": 30, "lr": 0.05}
    document = {"model": {"_target_": "counting.Net", **(model or {})}, "train": {**train, **settings}}
    Path("net.yaml").write_text(yaml.safe_dump(document))


def test_a_conformer_of_espnet_itself_was_trained_from_a_transplant() -> None:
    """What ``make oracle-espnet`` recorded of the real toolkit, and what the page says of it."""
    found = recorded("training")
    assert found["counts"] == {"copied": 91, "initialised": 31}
    assert found["last_loss"] < found["first_loss"] * 0.6
    assert found["resumed_equal"]
    assert "FAIL" not in found["checks"].values()
    for name in ("saved, reopened, the same loss", "frozen tensors did not move", "resumed is uninterrupted"):
        assert found["checks"][name] == "PASS"
    page = (Path(__file__).parents[2] / "docs/howto/espnet.md").read_text()
    assert f"loss {found['first_loss']:.1f} to {found['last_loss']:.1f}" in page


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_model_is_trained_by_its_own_loss_and_judged_by_its_own_figures() -> None:
    write(metric="acc", evaluate_every=10)
    found = cs.train("net.yaml", device="cpu", keep_going=True)  # it looks at padding
    assert found.ended == "done"
    assert found.metric == "acc"
    rows = [row["dev"] for row in read_log("run/log.jsonl") if "dev" in row]
    assert all(row.keys() == {"loss", "acc"} for row in rows)
    assert found.best == max(row["acc"] for row in rows)
    assert found.last_loss < found.first_loss / 2


def test_figures_are_means_over_examples_whatever_the_batches() -> None:
    names: dict[str, Any] = {}
    exec(NET, names)  # noqa: S102
    torch.manual_seed(0)
    model = names["Net"]()
    task = ESPnet(parse_settings({"task": "espnet", "features": {"kind": "waves"}}, "x"), ["<blank>", "a", "b"])
    examples = [
        {"input": torch.rand(400 * n), "label": torch.ones(n, dtype=torch.int64), "seconds": 1.0, "name": str(n)}
        for n in (1, 2, 3, 4, 5)
    ]
    three, two = task.collate(examples[:3]), task.collate(examples[3:])
    whole, first, second = (task.evaluate(model, batches) for batches in ([three, two], [three], [two]))
    assert whole.keys() == {"loss", "acc"}
    for name, value in whole.items():
        assert value == pytest.approx((3 * first[name] + 2 * second[name]) / 5)
    made = task.loss(model, three)
    assert (float(made.items), made.total.dim()) == (3, 0)
    assert float(made.total.detach()) == pytest.approx(3 * first["loss"])
    assert float(made.parts["loss"]) == pytest.approx(3 * first["loss"])


@pytest.mark.parametrize(
    ("model", "settings", "why"),
    [
        ({}, {"features": {"kind": "log_mel"}}, "computes features itself, but train.features.kind is log_mel"),
        (
            {"token_list": ["<blank>", "b", "a", "<sos/eos>"]},
            {},
            "the token list of the model .4 tokens. differs from",
        ),
        (
            {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2},
            {},
            "the forward of Linear has no parameter speech, speech_l",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(model: dict[str, Any], settings: dict[str, Any], why: str) -> None:
    write(model, **settings)
    with pytest.raises(cs.ConfigError, match=why):
        cs.train("net.yaml", device="cpu", check_only=True)


def test_a_model_that_needs_more_than_speech_and_text_is_an_error_before_any_data_are_read() -> None:
    write()
    Path("counting.py").write_text(NET.replace("text_lengths, **kwargs", "text_lengths, text_prev, **kwargs"))
    Path("train.csv").unlink()
    with pytest.raises(cs.ConfigError, match="Net also needs text_prev, which the task espnet does not pass"):
        cs.train("net.yaml", device="cpu", check_only=True)


@pytest.mark.usefixtures("cheap")
def test_what_returns_something_else_is_an_error() -> None:
    write()
    Path("counting.py").write_text(
        NET.replace("return loss[None], ", "return loss, ").replace(", torch.tensor([len(text)])", "")
    )
    with pytest.raises(cs.ConfigError, match="the model returns tuple, not \\(loss, metrics, weight\\)"):
        cs.train("net.yaml", device="cpu", check_only=True)


READING = '''
class CTC(nn.Module):
    def __init__(self):
        super().__init__()
        self.ctc_lo = nn.Linear(4, 4)

    def log_softmax(self, states):
        return self.ctc_lo(states).log_softmax(2)

class Reader(Net):
    """Has a CTC; with inner layers that have one too, encode returns their outputs beside the last."""

    def __init__(self, token_list=None, inner=False, ctc=True):
        super().__init__(token_list)
        self.inner, self.ctc = inner, CTC() if ctc else None

    def encode(self, speech, speech_lengths):
        frames = speech[:, : speech.shape[1] // 400 * 400].unflatten(1, (-1, 4, 100))[..., 0]
        return (frames, [(1, -frames)]) if self.inner else frames, speech_lengths // 400
'''


@pytest.mark.costly
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("inner", [False, True])
def test_its_ctc_reads_sounds(inner: bool, ckpt: Any) -> None:
    write({"_target_": "counting.Reader", "inner": inner}, steps=2)
    Path("counting.py").write_text(NET + READING)
    cs.train("net.yaml", device="cpu", keep_going=True)
    weights = load_file("run/best.safetensors")
    weights["ctc.ctc_lo.weight"] = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 40
    weights["ctc.ctc_lo.bias"] = torch.tensor([0.0, 0.1, 0.0, 0.0])  # silence, as padding has it, is read as a
    save_file(weights, "run/best.safetensors")
    paths = [line.split(",")[0] for line in Path("dev.csv").read_text().splitlines()[1:]]
    right = []
    for path in paths:
        wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        wave = wave - wave.mean()  # as train.features has it by default
        frames = wave[: len(wave) // 400 * 400].reshape(-1, 4, 100)[..., 0]
        best = (frames @ weights["ctc.ctc_lo.weight"].T + weights["ctc.ctc_lo.bias"]).argmax(1).tolist()
        tokens = [one for one, _ in groupby(best) if one in (1, 2)]
        right.append("".join(" ab"[one] for one in tokens))
    assert any(right)
    found = cs.transcribe("run", paths, batch_size=5)
    assert [one.text for one in found.sounds] == right
    assert ckpt("transcribe", "run", *paths, "--device", "cpu").out.splitlines() == [
        f"{path}\t{text}" for path, text in zip(paths, right, strict=True)
    ]


@pytest.mark.usefixtures("cheap")
def test_a_model_without_ctc_is_left_to_espnet() -> None:
    write({"_target_": "counting.Reader", "ctc": False}, steps=2)
    Path("counting.py").write_text(NET + READING)
    cs.train("net.yaml", device="cpu", keep_going=True)
    path = Path("dev.csv").read_text().splitlines()[1].split(",")[0]
    with pytest.raises(cs.ConfigError, match="Reader has no CTC .*For ESPnet's Speech2Text, convert"):
        cs.transcribe("run", path)
    with pytest.raises(cs.ConfigError, match="the task espnet has no CTC, which a beam search needs"):
        cs.transcribe("run", path, beam=4)
