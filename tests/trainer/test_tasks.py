"""The tasks: their losses against torch's own, what they count, what they read off, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import NOT_RUN, WARN
from ckptsurgeon.trainer.checks.suite import checks_during
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.config.settings import Settings
from ckptsurgeon.trainer.data.sound import Clip
from ckptsurgeon.trainer.job.assembly import build_job, load_task
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.models.hybrid_asr import HybridASR
from ckptsurgeon.trainer.tasks._sounds import SoundTask
from ckptsurgeon.trainer.tasks._task import Batch, task_file
from ckptsurgeon.trainer.tasks.classify import Classify
from ckptsurgeon.trainer.tasks.ctc import CTC
from ckptsurgeon.trainer.tasks.hybrid import Hybrid

from . import toy
from .sounds import corpus, tone

TOKENS = [" ", "a", "b", "c", "<blank>"]
ESPNET = ["<blank>", "<unk>", "<space>", "a", "b", "c", "<sos/eos>"]
BLANK = 4


def settings(**section: Any) -> Settings:
    return parse_settings({"data": {"train": "train.csv"}, "batch_size": 8, **section}, "x.yaml")


def batch_of(labels: list[list[int]], frames: list[int], width: int = 6) -> Batch:
    longest = max(map(len, labels))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in labels])
    names = tuple(f"x.csv, line {number}" for number in range(2, 2 + len(labels)))
    inputs = torch.randn(len(labels), max(frames), width, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, torch.tensor(frames), padded, torch.tensor([len(ids) for ids in labels]), 1.0, names)


class Frames(nn.Module):
    """Each frame's tokens from that frame alone."""

    def __init__(self, width: int = 6, tokens: int = 5) -> None:
        super().__init__()
        self.out = nn.Linear(width, tokens)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(inputs).log_softmax(-1), lengths


def test_the_loss_of_ctc_is_a_sum_over_labels() -> None:
    batch, model, task = batch_of([[1, 2], [3, 3, 0]], [8, 9]), Frames(), CTC(settings(), TOKENS)
    loss = task.loss(model, batch)
    log_probs = model(batch.inputs, batch.lengths)[0].transpose(0, 1)
    expected = nn.functional.ctc_loss(
        log_probs, batch.labels, batch.lengths, batch.label_lengths, blank=BLANK, reduction="sum"
    )
    assert torch.allclose(loss.total, expected)
    assert (loss.items, float(loss.parts["ctc"])) == (5, pytest.approx(float(expected.detach())))
    loss.total.backward()
    assert model.out.weight.grad is not None


def test_batches_add_up_to_one() -> None:
    """What accumulation rests on: sums and items of parts are those of the whole."""
    model, task = Frames(), CTC(settings(), TOKENS)
    whole = batch_of([[1, 2], [3, 3, 0]], [8, 9])
    parts = [
        Batch(
            whole.inputs[i : i + 1], whole.lengths[i : i + 1], whole.labels[i : i + 1], whole.label_lengths[i : i + 1],
            1.0, whole.names[i : i + 1],
        )
        for i in range(2)
    ]  # fmt: skip
    losses = [task.loss(model, part) for part in parts]
    assert sum(loss.items for loss in losses) == task.loss(model, whole).items
    assert float(sum(loss.total.detach() for loss in losses)) == pytest.approx(
        float(task.loss(model, whole).total.detach())
    )


def test_a_clip_too_short_to_be_spelled_counts_for_nothing_and_is_counted() -> None:
    task, model = CTC(settings(), TOKENS), Frames()
    both = batch_of([[1, 2], [3, 3, 3]], [8, 4])  # ccc needs five frames
    loss = task.loss(model, both)
    assert (loss.items, bool(torch.isfinite(loss.total))) == (2, True)
    assert task.evaluate(model, [both])["too_short"] == 1
    assert task.evaluate(model, [batch_of([[3, 3, 3]], [5])])["too_short"] == 0


def test_batches_of_which_one_has_nothing_to_spell_add_up_too() -> None:
    task, model = CTC(settings(), TOKENS), Frames()
    short, sound = batch_of([[3, 3, 3]], [3]), batch_of([[1, 2]], [8])
    assert [int(task.loss(model, one).items) for one in (short, sound)] == [0, 2]
    assert (task.uniform_loss(model, short), task.evaluate(model, [short])["loss"]) == (0, 0)


def test_the_uniform_loss_is_that_of_a_model_that_says_nothing() -> None:
    task, model, batch = CTC(settings(), TOKENS), Frames(), batch_of([[1, 2], [3, 3, 0]], [8, 9])
    nn.init.zeros_(model.out.weight)
    nn.init.zeros_(model.out.bias)
    found = task.loss(model, batch)
    assert task.uniform_loss(model, batch) == pytest.approx(float(found.total.detach()) / found.items)
    assert task.uniform_loss(model, batch) > math.log(5)


class Says(nn.Module):
    """A model that has learned it by heart: these tokens, frame by frame."""

    def __init__(self, paths: list[list[int]], tokens: int) -> None:
        super().__init__()
        self.paths = nn.functional.one_hot(torch.tensor(paths), tokens) * 50.0

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.paths, lengths


def test_what_is_read_off_is_held_against_the_transcript() -> None:
    task = CTC(settings(), TOKENS)
    batch = batch_of([[1, 2, 0, 1], [2, 2]], [6, 6])
    right = Says([[1, 1, 2, 0, 1, 4], [2, 4, 4, 2, 4, 4]], 5)
    figures = task.evaluate(right, [batch])
    assert (figures["cer"], figures["wer"], figures["blanks"]) == (0, 0, 5 / 12)
    wrong = Says([[1, 1, 2, 0, 2, 4], [2, 4, 4, 4, 4, 4]], 5)  # "ab b" for "ab a", "b" for "bb"
    figures = task.evaluate(wrong, [batch])
    assert (figures["cer"], figures["wer"]) == (2 / 6, 2 / 3)
    silent = Says([[4] * 6] * 2, 5)
    assert task.evaluate(silent, [batch, batch]) == pytest.approx(
        {"cer": 1, "wer": 1, "blanks": 1, "too_short": 0, "loss": task.evaluate(silent, [batch])["loss"]}
    )


def test_log_probabilities_may_come_as_a_pair_an_object_or_alone() -> None:
    task, batch, model = CTC(settings(), TOKENS), batch_of([[1, 2], [3]], [8, 9]), Frames()

    class Form(nn.Module):
        def __init__(self, form: Any) -> None:
            super().__init__()
            self.form = form

        def forward(self, inputs: Tensor, lengths: Tensor) -> Any:
            return self.form(model.out(inputs).log_softmax(-1), lengths)

    forms = [
        lambda x, n: (x, n),
        lambda x, n: x,
        lambda x, n: SimpleNamespace(log_probs=x, lengths=n),
        lambda x, n: SimpleNamespace(ctc=x, lengths=n, decoder=None),
        lambda x, n: SimpleNamespace(logits=x + 3, lengths=n),
    ]
    losses = [float(task.loss(Form(form), batch).total.detach()) for form in forms]
    assert losses == pytest.approx([losses[0]] * 5)


def test_a_model_of_another_size_or_form_is_named() -> None:
    task, batch = CTC(settings(), TOKENS), batch_of([[1]], [4])
    with pytest.raises(cs.ConfigError, match="the model has 7 outputs, but the token list has 5 tokens with its blank"):
        task.loss(Frames(tokens=7), batch)

    class Odd(nn.Module):
        def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
            return inputs[:, 0]

    with pytest.raises(cs.ConfigError, match="the model returns Tensor, not log-probabilities"):
        task.loss(Odd(), batch)


def test_transcripts_that_cannot_be_learned_are_named() -> None:
    corpus("train.csv", ["a", "", " ", "b"])
    with pytest.raises(cs.ConfigError, match="train.csv, line 3: the transcript is empty, and 1 more are") as caught:
        CTC(settings(), TOKENS).splits()
    assert caught.value.details == (
        "train.csv, line 3: the transcript is empty",
        "train.csv, line 4: the transcript is empty",
    )
    corpus("train.csv", ["a", "bä", "xb", "a"])
    with pytest.raises(
        cs.ConfigError, match=r"train.csv, line 3: the letter 'ä' \(U\+00E4\) is not in the token list"
    ) as caught:
        CTC(settings(), TOKENS).splits()
    assert "in all, 2 transcripts with unknown letters: x ä" in str(caught.value)
    corpus("train.csv", ["a", "bä?", "Aab b!", "a"])
    with pytest.raises(cs.ConfigError, match=r"letter 'ä' .* \(in all, 2 transcripts with unknown letters: ! \? A ä\)"):
        CTC(settings(), TOKENS).splits()
    corpus("train.csv", ["a", "bä", "xb", "a"])
    with pytest.raises(cs.ConfigError) as caught:
        CTC(settings(), TOKENS).splits()
    assert len(caught.value.details) == 2


@pytest.mark.parametrize("kind", [CTC, Hybrid, Classify])
def test_a_task_without_tokens_says_what_to_name(kind: Any) -> None:
    with pytest.raises(cs.ConfigError, match=r"train\.data\.tokens"):
        kind(settings(), ())


def test_a_task_that_reads_manifests_takes_no_target() -> None:
    data = {"train": {"_target_": "my_data.train_set"}}
    with pytest.raises(cs.ConfigError, match="train.data.train refers to a function .*, but this task reads"):
        CTC(settings(data=data), TOKENS).splits()


@pytest.mark.long
def test_ctc_learns_tones() -> None:
    texts = ["a", "b", "c", "a b", "b c", "ca", "cb", "ab"]
    corpus("train.csv", texts, shortest=0.4)
    task = CTC(settings(features={"stack": 3}, data={"train": "train.csv", "cache": "cache"}), TOKENS)
    torch.manual_seed(0)
    model = Recogniser()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    batches = task.splits()["train"]
    losses = []
    for epoch in range(80):
        for batch in batches.read(seed=0, epoch=epoch):
            loss = task.loss(model, batch)
            losses.append(float(loss.total.detach()) / loss.items)
            optimizer.zero_grad()
            (loss.total / loss.items).backward()
            optimizer.step()
        if losses[-1] < 0.02 * losses[0]:
            break
    figures = task.evaluate(model, batches.read())
    assert figures["loss"] < 0.05 * losses[0]
    assert figures["cer"] == 0


class Recogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(120, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(self.lstm(inputs)[0]), lengths  # logits do as well


def small_hybrid(weight: float = 0.3) -> HybridASR:
    torch.manual_seed(0)
    return HybridASR(
        len(ESPNET), d_model=16, heads=2, encoder_layers=1, decoder_layers=1, n_mels=20, ctc_weight=weight,
        encoder="transformer", dropout=0.0,
    )  # fmt: skip


def waves(labels: list[list[int]]) -> Batch:
    batch = batch_of(labels, [6400, 8000][: len(labels)])
    return Batch(batch.inputs[..., 0] * 0.1, batch.lengths, batch.labels, batch.label_lengths, 1.0, batch.names)


def test_the_hybrid_loss_is_weighted_and_smoothed() -> None:
    batch = waves([[3, 4], [5, 5, 2]])
    model = small_hybrid().eval()
    task = Hybrid(settings(task="hybrid", label_smoothing=0.1, features={"kind": "waves"}), ESPNET)
    previous = torch.tensor([[6, 3, 4, 0], [6, 5, 5, 2]])
    wanted = torch.tensor([[3, 4, 6, -100], [5, 5, 2, 6]])
    with torch.no_grad():
        loss = task.loss(model, batch)
        said = model(batch.inputs, batch.lengths, previous)
    ctc = nn.functional.ctc_loss(
        said.ctc.transpose(0, 1), batch.labels, said.lengths, batch.label_lengths, reduction="sum"
    )
    assert said.decoder is not None
    attention = nn.functional.cross_entropy(
        said.decoder.transpose(1, 2), wanted, ignore_index=-100, label_smoothing=0.1, reduction="sum"
    )
    assert torch.allclose(loss.total, 0.3 * ctc + 0.7 * attention)
    assert loss.items == 5
    assert torch.allclose(loss.parts["ctc"], ctc)
    assert torch.allclose(loss.parts["attention"], attention)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dev", [False, True])
def test_clips_that_the_models_subsampling_makes_too_short_are_counted(dev: bool) -> None:
    """In both splits, each once; what waves become is not known before."""
    Path("tokens.txt").write_text("\n".join(["<blank>", "<unk>", "<space>", *"abcdef", "<sos/eos>"]) + "\n")
    corpus("train.csv", ["abcdefabcdef", "a", "b", "abcdefabcdefabcdefabcdef"])
    corpus("dev.csv", ["a", "abcdefabcdefabcdef"])
    model = {
        "name": "hybrid_asr", "tokens": "tokens.txt", "d_model": 16, "heads": 2, "encoder_layers": 1,
        "decoder_layers": 1, "n_mels": 20,
    }  # fmt: skip
    data = {"train": "train.csv", **({"dev": "dev.csv"} if dev else {})}
    section = {"task": "hybrid", "steps": 3, "batch_size": 2, "accumulate": 2, "features": {"kind": "waves"}}
    Path("h.yaml").write_text(yaml.safe_dump({"model": model, "train": {**section, "data": data}}))
    job = build_job("h.yaml", device="cpu")
    assert job.notes[0].startswith("train: 4 clips")
    assert "left out" not in job.notes[0]
    loop = TrainingLoop(job, job.model()[0])
    loop.run()
    assert (loop.state.progress.too_short, loop.state.progress.fresh) == (2, 4)
    found = {check.name: check for check in checks_during(loop)}
    long_enough = found["clips long enough"]
    there = ", 1 clip of dev" if dev else ""
    assert long_enough.says == f"2 of 4 clips of train{there} with fewer frames than CTC needs for the labels"
    assert long_enough.status == WARN
    if not dev:
        assert (found["share of blanks"].status, found["share of blanks"].says) == (NOT_RUN, "nothing was evaluated")


def test_waves_of_another_rate_than_the_model_hears_are_an_error() -> None:
    batch, model = waves([[3, 4], [5, 5, 2]]), small_hybrid().eval()
    for name, kind in (("hybrid", Hybrid), ("ctc", CTC)):
        task = kind(settings(task=name, features={"kind": "waves", "rate": 8000}), ESPNET)
        with pytest.raises(
            cs.ConfigError, match="needs waveforms with 16000 samples a second, but train.features.rate is 8000"
        ):
            task.loss(model, batch)


def test_a_hybrid_that_says_nothing_has_the_uniform_loss() -> None:
    batch, model = waves([[3, 4], [5, 5, 2]]), small_hybrid(0.5).eval()
    for out in (model.ctc, model.decoder.out):
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
    task = Hybrid(settings(task="hybrid", features={"kind": "waves"}), ESPNET)
    with torch.no_grad():
        loss = task.loss(model, batch)
        assert task.uniform_loss(model, batch) == pytest.approx(float(loss.total) / loss.items)
        figures = task.evaluate(model, [batch])
    assert figures["loss"] == pytest.approx(float(loss.total) / loss.items)
    assert {"cer", "wer", "blanks", "accuracy", "too_short"} < figures.keys()


def test_a_model_that_computes_features_is_given_waves() -> None:
    task = Hybrid(settings(task="hybrid"), ESPNET)
    with pytest.raises(cs.ConfigError, match=r"Write train.features: \{kind: waves\}"):
        task.loss(small_hybrid(), batch_of([[3]], [9], 40))


def test_a_hybrid_needs_a_begin_and_an_end_and_a_decoder() -> None:
    with pytest.raises(
        cs.ConfigError,
        match="no tokens for the begin and the end of a text, which the decoder needs. Add <sos/eos> as the last",
    ):
        Hybrid(settings(), TOKENS)
    task = Hybrid(settings(), [*TOKENS, "<sos/eos>"])

    class NoDecoder(Frames):
        def forward(self, inputs: Tensor, lengths: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(inputs, lengths)

    with pytest.raises(cs.ConfigError, match="the model has no decoder, which the task hybrid needs. Use the task ctc"):
        task.loss(NoDecoder(tokens=6), batch_of([[1]], [4]))


@pytest.mark.long
def test_classes_of_arrays_are_learned() -> None:
    rows = ["path,label"]
    for number in range(8):
        np.save(f"{number}.npy", np.full(3, number % 2, dtype=np.float32))
        rows.append(f"{number}.npy,{'cat' if number % 2 else 'dog'}")
    Path("train.csv").write_text("\n".join(rows) + "\n")
    task = Classify(settings(task="classify"), ["cat", "dog"])
    batches = task.splits()["train"]
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for epoch in range(20):
        for batch in batches.read(0, epoch):
            loss = task.loss(model, batch)
            assert loss.items == 8
            optimizer.zero_grad()
            (loss.total / loss.items).backward()
            optimizer.step()
    figures = task.evaluate(model, batches.read())
    assert (figures["error"], figures["loss"] < 0.3) == (0, True)
    assert task.uniform_loss(model, batch) == pytest.approx(math.log(2))


def test_batches_by_seconds_need_examples_with_a_length() -> None:
    """All arrays were one batch."""
    tone("a.wav", 0.2)
    np.save("b.npy", np.zeros((3, 2)))
    Path("train.csv").write_text("path,label\na.wav,cat\nb.npy,cat\n")
    made = parse_settings({"task": "classify", "batch_seconds": 9, "data": {"train": "train.csv"}}, "x.yaml")
    with pytest.raises(
        cs.ConfigError, match=r"train.batch_seconds: train.csv, line 3.* has no length in seconds"
    ) as seen:
        Classify(made, ["cat", "dog"]).splits()
    assert seen.value.hint == "Write train.batch_size instead."
    Path("train.csv").write_text("path,label\na.wav,cat\n")
    assert len(list(Classify(made, ["cat", "dog"]).splits()["train"].read())) == 1


def test_classes_of_sounds_are_given_lengths_to_a_model_that_takes_them() -> None:
    tone("a.wav", 0.2)
    tone("b.wav", 0.3)
    Path("train.csv").write_text("path,label\na.wav,dog\nb.wav,cat\n")
    task = Classify(settings(task="classify"), ["cat", "dog"])
    (batch,) = task.splits()["train"].read()
    seen = []

    class Model(nn.Module):
        def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
            seen.append((inputs.shape, sorted(lengths.tolist())))
            return inputs.new_zeros(len(inputs), 2)

    assert task.evaluate(Model(), [batch]) == pytest.approx({"loss": math.log(2), "error": 0.5})
    assert seen == [((2, 31, 40), [21, 31])]


def test_an_argument_of_another_name_than_lengths_is_named() -> None:
    task = Classify(settings(task="classify"), ["cat", "dog"])
    batch = Batch(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1), 0.0, ("x",))

    class Net(nn.Linear):
        def forward(self, x: Tensor, l: Tensor) -> Tensor:  # type: ignore[override]  # noqa: E741
            raise NotImplementedError

    with pytest.raises(cs.ConfigError, match=r"the forward\(\) of Net needs the argument l, but") as caught:
        task.loss(Net(4, 2), batch)
    assert caught.value.hint.endswith("rename it to lengths.")

    class Free(nn.Linear):
        def forward(self, x: Tensor, *rest: Tensor, scale: float = 1.0, **more: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    assert task.loss(Free(4, 2), batch).items == 1


def test_clips_that_splits_share_are_counted() -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        tone(name)
    lists = {"train": ["a.wav", "b.wav"], "dev": ["./b.wav", "c.wav"], "test": ["c.wav", "a.wav", "b.wav"]}
    for name, paths in lists.items():
        Path(f"{name}.csv").write_text("path,label\n" + "".join(f"{path},cat\n" for path in paths))
    data = {name: f"{name}.csv" for name in lists}
    made = Classify(settings(task="classify", data=data), ["cat"]).notes()
    assert made[3:] == [
        "1 of 2 clips of dev is also in train: figures on dev are too optimistic",
        "2 of 3 clips of test are also in train: figures on test are too optimistic",
        "2 of 3 clips of test are also in dev: figures on test are too optimistic",
    ]
    Path("dev.csv").write_text("path,label\nc.wav,cat\n")
    assert len(Classify(settings(task="classify", data={"train": "train.csv", "dev": "dev.csv"}), ["cat"]).notes()) == 2


def test_classes_without_a_clip_are_named() -> None:
    tone("a.wav")
    Path("train.csv").write_text("path,label\na.wav,cat\n")
    names = [f"c{number}" for number in range(3000)]
    assert Classify(settings(task="classify"), ["cat"]).notes() == ["train: 1 clip, 0.0 min; padding 0 %"]
    assert Classify(settings(task="classify"), ["cat", "dog"]).notes()[1:] == [
        "1 of 2 classes has no clip in train: dog"
    ]
    (note,) = Classify(settings(task="classify"), ["cat", *names]).notes()[1:]
    assert note.startswith("3000 of 3001 classes have no clip in train: c0, c1, c2")
    assert len(note) < 150


def test_what_classify_refuses() -> None:
    tone("a.wav")
    task = Classify(settings(task="classify"), ["cat", "dog"])
    for label, why in (
        ("cow", "train.csv, line 2: the class 'cow' is not in train.data.tokens"),
        ("", "the class is empty"),
    ):
        Path("train.csv").write_text(f"path,label\na.wav,{label}\n")
        with pytest.raises(cs.ConfigError, match=why):
            Classify(settings(task="classify"), ["cat", "dog"]).splits()
    with pytest.raises(cs.ConfigError, match=r"the model returns \(1, 3\), not logits of the shape \(1, 2\)"):
        task.loss(nn.Linear(4, 3), Batch(torch.ones(1, 4), torch.ones(1), torch.zeros(1), torch.ones(1), 0.0, ("x",)))


@pytest.mark.costly
@pytest.mark.parametrize("workers", [0, 1])
def test_arrays_of_another_shape_are_named(workers: int) -> None:
    np.save("a.npy", np.zeros((3, 2)))
    np.save("b.npy", np.zeros((3, 4)))
    Path("train.csv").write_text("path,label\na.npy,cat\nb.npy,cat\n")
    data = {"train": "train.csv", "workers": workers}
    task = Classify(settings(task="classify", data=data), ["cat", "dog"])
    with pytest.raises(
        cs.ConfigError,
        match=r"^train.csv, line [23] is \w+ \(.*\), but train.csv, line [23] is \w+ \(.*\): only the first dimension, the length",
    ):
        list(task.splits()["train"].read())


def test_an_array_is_never_unpickled() -> None:
    np.save("a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    Path("train.csv").write_text("path,label\na.npy,cat\n")
    task = Classify(settings(task="classify"), ["cat", "dog"])
    with pytest.raises(cs.SourceError, match="train.csv, line 2: a.npy cannot be read"):
        list(task.splits()["train"].read())


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (b"PK\3\4 no archive", "a.npy cannot be read: File is not a zip file. Use"),
        (np.zeros(0), "a.npy contains no numbers. Remove"),
        (np.ones(3, complex), "a.npy contains values of the type complex128, not real numbers. Remove"),
        (np.array([1e300]), "a.npy contains values that are NaN or infinite in float32. Remove"),
    ],
)
def test_an_array_that_cannot_be_used_is_an_error(array: Any, why: str) -> None:
    Path("a.npy").write_bytes(array) if isinstance(array, bytes) else np.save("a.npy", array)
    Path("train.csv").write_text("path,label\na.npy,cat\n")
    task = Classify(settings(task="classify"), ["cat", "dog"])
    with pytest.raises(cs.SourceError, match=why):
        list(task.splits()["train"].read())


def test_our_tasks_are_found_by_name() -> None:
    assert load_task("ctc", ".") is CTC
    with pytest.raises(cs.ConfigError, match="there is no task 'hibrid'. Did you mean hybrid"):
        load_task("hibrid", ".")


def test_a_users_own_task_lies_beside_the_configuration() -> None:
    Path("conf").mkdir()
    Path("conf/helper.py").write_text("NAME = 'mine'\n")
    Path("conf/my_task.py").write_text(
        "from helper import NAME\nfrom ckptsurgeon.trainer.tasks.ctc import TASK\nprint('hello')\n"
        "class MyTask(TASK):\n    metric = NAME\nclass Half:\n    metric = 'x'\n"
    )
    assert load_task("my_task.py:MyTask", "conf").metric == "mine"
    assert task_file("my_task.py:MyTask", "conf") == "conf/my_task.py"
    assert task_file("ctc", "conf") == ""


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("no.py:MyTask", None, "no.py does not exist"),
        ("my_task.txt:MyTask", "", "my_task.txt is not a Python file"),
        ("my_task.py:MyTsak", "class MyTask: pass", "my_task.py does not define MyTsak. Did you mean MyTask"),
        ("my_task.py:MyTask", "class MyTask: metric = 'x'", "is not a task: it has no loss, evaluate"),
        (
            "my_task.py:MyTask",
            "from ckptsurgeon.trainer.tasks._sounds import SoundTask\n"
            "class MyTask(SoundTask):\n    metric = 'x'\n    loss = uniform_loss = evaluate = None",
            "is not a task: it has no label",
        ),
        ("my_task.py:MyTask", "MyTask = 3", "is not a task: it is not a class"),
        ("my_task.py:MyTask", "import not_there", "cannot be imported: ModuleNotFoundError"),
        ("my_task.py:MyTask", "raise SystemExit(3)", "the code to which the file refers ended the program"),
        ("my_task.py:MyTask", "def", "cannot be imported: SyntaxError"),
    ],
)
def test_what_is_no_task_is_said(name: str, content: str | None, why: str) -> None:
    if content is not None:
        Path(name.partition(":")[0]).write_text(content)
    with pytest.raises(cs.ConfigError) as caught:
        load_task(name, ".")
    assert why in str(caught.value)


BARE = """
import toy_task

class Bare:
    metric = "error"
    {members}

    def __init__(self, settings, tokens):
        self._toy = toy_task.Toy(settings, tokens)
        self.splits, self.loss, self.evaluate = self._toy.splits, self._toy.loss, self._toy.evaluate
    loss = evaluate = None
"""


@pytest.mark.costly
@pytest.mark.parametrize("members", ["pass", "check = example = collate = uniform_loss = begin_step = higher = None"])
def test_a_task_needs_only_loss_evaluate_and_metric(members: str, cheap: None) -> None:
    """What a task leaves out, or sets to None, is not asked for."""
    toy.write(task="bare.py:Bare")
    Path("bare.py").write_text(BARE.format(members=members))
    found = {check.name: check for check in cs.train("toy.yaml", steps=6, device="cpu", sets=["warmup=1"]).checks}
    assert (found["first loss"].status, found["loss fell"].status) == ("NOT RUN", "PASS")
    assert found["first loss"].says.endswith(
        "; the task has no method uniform_loss, so there is nothing to compare this loss with"
    )
    assert "uniform" not in found["loss fell"].says


def test_a_task_on_manifests_needs_no_check() -> None:
    class Silent(SoundTask):
        check = None  # type: ignore[assignment]

        def label(self, clip: Clip) -> torch.Tensor:
            return torch.tensor(0)

    corpus("a.csv", ["a", "b"])
    for kind in (Silent, type("Default", (Silent,), {"check": SoundTask.check})):
        task = kind(parse_settings({"task": "x", "data": {"train": "a.csv"}}, "x"), ())
        assert len(task.splits()["train"].split.clips) == 2
