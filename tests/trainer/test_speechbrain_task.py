"""A Brain of SpeechBrain as the task: its own forward pass and loss train the modules of a hyperparams.yaml.

SpeechBrain is not installed here, so a package with what of ``Brain`` is called stands in for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.labels import Labels
from ckptsurgeon.trainer.data.source import BatchStream
from ckptsurgeon.trainer.job.assembly import build_job, load_task
from ckptsurgeon.trainer.log import read_log
from ckptsurgeon.trainer.tasks import speechbrain
from ckptsurgeon.trainer.tasks._task import Batch, begin_step
from ckptsurgeon.trainer.tasks.speechbrain import BrainBatch, Tokenizer, entries_used

from .sounds import corpus

ROOT = Path(__file__).parents[2]
CORE = """
from enum import Enum, auto
from types import SimpleNamespace
import torch

class Stage(Enum):
    TRAIN = auto()
    VALID = auto()
    TEST = auto()

class Brain:
    def __init__(self, modules=None, opt_class=None, hparams=None, run_opts=None, checkpointer=None):
        self.modules = torch.nn.ModuleDict(modules).to(run_opts["device"])
        self.hparams, self.device = SimpleNamespace(**hparams), run_opts["device"]

    def on_stage_start(self, stage, epoch=None):
        pass

class Counter:
    def __init__(self, limit):
        self.limit, self.current = limit, 0

class Errors:
    def __init__(self):
        self.scores = []

    def append(self, ids, predict, target):
        self.scores += [100.0 * (a != b) for a, b in zip(predict, target)]

    def summarize(self, field=None):
        return {"error_rate": sum(self.scores) / len(self.scores)}
"""
RECIPE = """
import torch
import speechbrain
from speechbrain.core import Brain, Stage

class Loudness(torch.nn.Module):
    def forward(self, waves):
        return torch.stack([waves.abs().mean(1), waves.std(1), waves.amax(1)], 1)

class Reader(torch.nn.Module):
    '''Counts with the layer of someone else.'''
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        return self.head(features)[:, 0].round()

class Count(Brain):
    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        waves, lengths = batch.sig
        assert not hasattr(self.hparams, "wav_augment") or stage != Stage.TRAIN
        features = torch.tanh(self.modules.enc(torch.cat([self.hparams.loudness(waves), lengths[:, None]], 1)))
        if stage != Stage.TRAIN:
            self.found = self.hparams.reader(features)
        return self.modules.head(features)[:, 0]

    def compute_objectives(self, predictions, batch, stage):
        tokens, lengths = batch.tokens_eos
        wanted = (lengths * tokens.shape[1]).round() - 1
        loss = (predictions - wanted).square().mean()
        if self.is_late():
            loss = loss + self.hparams.late
        if stage != Stage.TRAIN:
            self.errors_metric.append(batch.id, self.found.tolist(), [float(len(text)) for text in batch.words])
        return loss

    def is_late(self):
        return self.hparams.epoch_counter.current > 2

    def on_stage_start(self, stage, epoch):
        if stage != Stage.TRAIN:
            self.errors_metric = self.hparams.errors()
"""
HPARAMS = """
data_folder: !PLACEHOLDER
logger: !new:recipe.NoSuchClass [!ref <data_folder>]
late: 100.0
eos_index: 0
enc: !new:torch.nn.Linear [4, 16]
head: !new:torch.nn.Linear [16, 1]
loudness: !new:recipe.Loudness
reader: !new:recipe.Reader [!ref <head>]
wav_augment: !new:recipe.Reader [!ref <head>]
errors: !name:speechbrain.core.Errors
epoch_counter: !new:speechbrain.core.Counter [9]
modules: {enc: !ref <enc>, head: !ref <head>}
"""


@pytest.fixture(autouse=True)
def _recipe() -> Iterator[None]:
    pytest.importorskip("hyperpyyaml", reason="it is in the extra dev")
    Path("speechbrain").mkdir()
    Path("speechbrain/__init__.py").touch()
    Path("speechbrain/core.py").write_text(CORE)
    Path("recipe.py").write_text(RECIPE)
    Path("hyperparams.yaml").write_text(HPARAMS)
    corpus("train.csv", ["a" * (1 + number % 5) for number in range(12)])
    corpus("dev.csv", ["ab", "b", "aab", "ba", "a"])
    Path("tokens.txt").write_text("<eos>\na\nb\n")
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("speechbrain", "recipe"):
            del sys.modules[name]


def test_the_tutorials_brain_and_network_trained_with_speechbrain_itself() -> None:
    """What ``make oracle-speechbrain`` recorded of the real toolkit, at the end of the page that follows its tutorial."""
    found = json.loads((ROOT / "fixtures/golden/speechbrain/finetuning.json").read_text())
    assert found["counts"]["copied"] == 8
    assert sum(found["counts"].values()) == found["tensors"]
    assert found["best"] < found["first_loss"] - 0.2
    assert found["resumed_equal"]
    assert "FAIL" not in found["checks"].values()
    for name in ("saved, reopened, the same loss", "resumed is uninterrupted", "loaded tensors equal their source"):
        assert found["checks"][name] == "PASS"
    (ran,) = found["ran"]
    assert "CRDNN" in ran
    page = (ROOT / "docs/howto/speechbrain.md").read_text()
    assert f"loss {found['first_loss']:.2f} to {found['best']:.2f}" in page


def test_speechbrain_itself_reads_the_texts_that_the_evaluation_here_counted() -> None:
    """What ``make oracle-speechbrain`` recorded of EncoderASR, with weights of a Brain that ckpt trained."""
    found = json.loads((ROOT / "fixtures/golden/speechbrain/texts.json").read_text())
    read = list(found["read"].values())
    wrong = sum(len(said) - len(text) for said, text in read)  # all errors there are letters that are left out
    assert 0 < wrong < 10
    assert found["speechbrain"]["cer"] == found["ckpt"]["cer"] == wrong / sum(len(said) for said, _ in read)
    assert f"{found['ckpt']['cer']:.2%}".replace("%", " %") in (ROOT / "docs/howto/data.md").read_text()


def write(model: dict[str, Any] | None = None, **settings: Any) -> None:
    named = {"speechbrain": "hyperparams.yaml", "overrides": {"wav_augment": None}, **(model or {})}
    data = {"train": "train.csv", "dev": "dev.csv", "tokens": "tokens.txt"}
    train = {"task": "recipe.py:Count", "data": data, "features": {"kind": "waves"}, "batch_size": 4, "lr": 0.05}
    Path("net.yaml").write_text(yaml.safe_dump({"model": named, "train": {**train, "steps": 6, **settings}}))


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_brain_trains_its_modules_by_its_own_loss_and_is_judged_by_its_own_metrics() -> None:
    write(steps=6, evaluate_every=3)
    found = cs.train("net.yaml", device="cpu", keep_going=True)
    assert found.ended == "done"
    assert found.last_loss < found.first_loss
    rows = [row["dev"] for row in read_log("run/log.jsonl") if "dev" in row]
    assert [row.keys() for row in rows] == [{"loss", "errors"}] * 2
    assert all(0 <= row["errors"] <= 1 for row in rows)  # SpeechBrain's are percents


@pytest.mark.long
@pytest.mark.usefixtures("another_process")
def test_what_was_saved_gives_the_same_loss_in_a_later_epoch_too() -> None:
    write(steps=10, evaluate_every=5)  # three batches are an epoch, and the loss changes after two epochs
    checks = {one.name: one for one in cs.train("net.yaml", device="cpu", keep_going=True).checks}
    for name in ("saved, reopened, the same loss", "best, reopened, the same loss", "resumed is uninterrupted"):
        assert checks[name].status == "PASS", checks[name]
    assert float(checks["saved, reopened, the same loss"].says.split()[1]) > 100


@pytest.mark.costly
@pytest.mark.parametrize(
    "size", [{"batch_size": 5}, {"batch_size": 5, "accumulate": 2}, {"batch_seconds": 0.9}], ids=str
)
def test_a_brains_epochs_are_those_of_the_batches(size: dict[str, Any]) -> None:
    write(**size)
    job = build_job("net.yaml", device="cpu")
    model, _ = job.model()
    stream, wanted, found = BatchStream(job.train, job.settings.seed), [], []
    for step in range(12):
        batches = [next(stream) for _ in range(job.settings.accumulate)]
        assert batches
        if stream.position[1] >= job.settings.accumulate:  # all batches of the step are of one epoch
            begin_step(job.task, model, step)
            wanted.append(1 + stream.position[0])
            found.append(job.task._epoch)
    assert found == wanted
    assert max(wanted) > 2


@pytest.mark.long
def test_a_resumed_run_does_not_make_the_batches_of_earlier_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shuffled each of them before its first step, although every epoch has as many batches."""
    write(batch_size=5)
    job = build_job("net.yaml", device="cpu")
    model, _ = job.model()
    monkeypatch.setattr(speechbrain, "epoch_batches", None)  # cannot be called
    begin_step(job.task, model, 3000)
    assert job.task._epoch == 1001  # of 12 clips in 3 batches


@pytest.mark.long
def test_other_entries_have_the_modules_that_are_trained() -> None:
    write()
    model = cs.load_target("net.yaml").build()
    reader = model.make_entries(["reader", "errors"])["reader"]
    features = torch.rand(3, 16)
    with torch.no_grad():
        model.head.weight.fill_(0.5)
        model.head.bias.zero_()
    assert reader(features).equal((features.sum(1) / 2).round())
    model.eval()
    assert not reader.head.training


def test_the_entries_that_a_brain_uses_are_read_from_its_methods() -> None:
    task: Any = load_task("recipe.py:Count", ".")
    used = ["epoch_counter", "errors", "late", "loudness", "reader", "wav_augment"]
    assert sorted(set(entries_used(task.brain))) == used


@pytest.mark.costly
@pytest.mark.parametrize(
    ("model", "settings", "why"),
    [
        ({}, {"task": "speechbrain"}, "needs the Brain of a recipe"),
        ({}, {"features": {"kind": "log_mel"}}, "a Brain computes features itself, but train.features.kind is log_mel"),
        ({"entry": "head"}, {}, "It trains the modules of a hyperparams.yaml, but the model is Linear"),
        ({"overrides": {"wav_augment": "!PLACEHOLDER"}}, {}, "AssertionError"),
    ],
)
def test_what_does_not_fit_is_an_error(model: dict[str, Any], settings: dict[str, Any], why: str) -> None:
    write(model, **settings)
    with pytest.raises(cs.ConfigError, match=why):
        cs.train("net.yaml", device="cpu", check_only=True)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("batch.tokens_eos", "batch.tokens_bos", "hyperparams.yaml has no bos_index"),
        ("batch.words", "batch.speakers", "the Brain uses batch.speakers, which a batch of ckpt does not have"),
        ("        return loss\n", "        return {'loss': loss}\n", "compute_objectives of Count returns dict, not a"),
        (
            "self.hparams.loudness(waves)",
            "self.hparams.quiet(waves)",
            "'types.SimpleNamespace' object has no attribute",
        ),
    ],
)
def test_what_a_brain_asks_for_and_is_not_there_is_named(old: str, new: str, why: str) -> None:
    write()
    Path("recipe.py").write_text(RECIPE.replace(old, new))
    with pytest.raises(cs.ConfigError, match=why):
        cs.train("net.yaml", device="cpu", check_only=True)


NORM = """
class Norm(torch.nn.Module):
    '''Running statistics in attributes, as those of SpeechBrain's InputNormalization.'''
    def __init__(self):
        super().__init__()
        self.norm_type, self.count = "global", 0
        self.glob_mean, self.glob_std = torch.empty(0), torch.empty(0)

    def forward(self, x):
        assert type(self.count) is int
        if self.training:
            mean, std = x.mean(0).detach(), x.std(0).detach() + 0.1
            kept = self.count / (self.count + len(x))
            self.glob_mean = kept * self.glob_mean + (1 - kept) * mean if self.count else mean
            self.glob_std = kept * self.glob_std + (1 - kept) * std if self.count else std
            self.count = self.count + len(x)
        return (x - self.glob_mean) / self.glob_std

class Count(Brain):
"""


def write_normalised(statistics: dict[str, Any]) -> None:
    """Write a recipe that normalises its features, and a configuration with ``statistics``."""
    write(model={"statistics": statistics})
    text = RECIPE.replace("class Count(Brain):\n", NORM)
    text = text.replace("self.modules.enc(torch", "self.modules.enc(self.modules.norm(torch")
    Path("recipe.py").write_text(text.replace("lengths[:, None]], 1)))", "lengths[:, None]], 1))))"))
    added = HPARAMS.replace("enc: !new", "norm: !new:recipe.Norm\nenc: !new", 1)
    Path("hyperparams.yaml").write_text(added.replace("head: !ref <head>}", "head: !ref <head>, norm: !ref <norm>}"))


@pytest.mark.long
def test_statistics_outside_the_state_dict_are_refused() -> None:
    write_normalised({})
    with pytest.raises(cs.ConfigError, match=r"norm \(Norm\) collects statistics outside .*statistics: \{norm: 80\}"):
        cs.train("net.yaml", device="cpu", check_only=True)


@pytest.mark.long
def test_statistics_of_a_declared_size_are_tensors_of_the_model() -> None:
    """They are trained, saved, resumed and reopened with it."""
    write_normalised({"norm": 4})
    found = cs.train("net.yaml", device="cpu", keep_going=True, run="run")
    checks = {check.name: check.status for check in found.checks}
    assert checks["resumed is uninterrupted"] == checks["saved, reopened, the same loss"] == "PASS"
    saved = load_file("run/last/model.safetensors")
    assert (saved["norm.count"].dtype, saved["norm.glob_mean"].shape) == (torch.int64, (4,))
    assert int(saved["norm.count"]) > 12
    assert (saved["norm.glob_mean"] != 0).any()


def statistics_after(source: dict[str, torch.Tensor]) -> tuple[int, list[float]]:
    """Return the count and mean of a run that began with the statistics of a source."""
    torch.save(source, "normalizer.ckpt")
    cs.apply(cs.transplant("normalizer.ckpt::norm", "net.yaml"), "start.safetensors", force=True)
    cs.train("net.yaml", init="start.safetensors", device="cpu", run="tuned", keep_going=True)
    saved = load_file("tuned/last/model.safetensors")
    return int(saved["norm.count"]), saved["norm.glob_mean"].tolist()


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("count", [0, 10**6])
def test_statistics_of_a_source_go_on_and_without_a_count_stay(count: int) -> None:
    write_normalised({"norm": 4})
    source = {"glob_mean": torch.full((4,), 0.5), "glob_std": torch.full((4,), 2.0)}
    end, mean = statistics_after({**source, **({"count": torch.tensor(count)} if count else {})})
    assert (end == 0) if not count else (end > count)
    assert (mean == [0.5] * 4) if not count else (mean != [0.5] * 4 and all(abs(one - 0.5) < 1e-3 for one in mean))


@pytest.mark.costly
@pytest.mark.parametrize(
    ("statistics", "why"),
    [
        (
            {"enc": 4},
            "statistics has enc, which is not a module that collects statistics .* Use one of these modules: norm.",
        ),
        ({"nrom": 4}, "statistics has nrom"),
        (
            {"norm": 0},
            "the field statistics is {'norm': 0}, not a map from modules to numbers from 1 to 1048576. Write a number of features for each module: {normalize: 80}.",
        ),
        ([4], "statistics is \\[4\\]"),
    ],
)
def test_statistics_that_cannot_be_are_said(statistics: Any, why: str) -> None:
    write_normalised(statistics)
    with pytest.raises(cs.ConfigError, match=why):
        cs.train("net.yaml", device="cpu", check_only=True)


def test_a_batch_has_the_names_that_recipes_use() -> None:
    labels = Labels(["<eos>", "a", "b", " "], needs_blank=False)
    batch = Batch(
        torch.rand(2, 8),
        torch.tensor([8, 4]),
        torch.tensor([[1, 3, 2], [2, 0, 0]]),
        torch.tensor([3, 1]),
        1.0,
        ("x", "y"),
    )
    hparams = type("Hparams", (), {"bos_index": 7, "eos_index": 9})
    made = BrainBatch(batch, labels, hparams)
    assert (len(made), made.id, made.words, made["wrd"]) == (2, ["x", "y"], ["a b", "b"], ["a b", "b"])
    assert made.sig.lengths.tolist() == made.signal.lengths.tolist() == made["wav"].lengths.tolist() == [1.0, 0.5]
    assert made.tokens.data is batch.labels
    assert made.phn_encoded_bos.data.tolist() == [[7, 1, 3, 2], [7, 2, 0, 0]]
    assert made.tokens_eos.data.tolist() == [[1, 3, 2, 9], [2, 9, 0, 0]]
    assert made.tokens_eos.lengths.tolist() == [1.0, 0.5]
    assert made.char_encoded_list == [[1, 3, 2], [2]]
    assert made.phn_list == [["a", " ", "b"], ["b"]]
    tokens = Tokenizer(labels)
    assert tokens.decode_ids([1, 3, 2]) == "a b"
    assert tokens.decode_ndim([[1], torch.tensor([2, 1])]) == [["a"], ["b", "a"]]
