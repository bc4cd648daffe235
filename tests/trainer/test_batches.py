"""From manifests to batches: what is left out, what is cached, what workers and resuming change (nothing)."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.section import parse_settings, resolve_paths
from ckptsurgeon.trainer.config.settings import Augment, Data, Settings
from ckptsurgeon.trainer.data.loader import Batches
from ckptsurgeon.trainer.data.split import Split
from ckptsurgeon.trainer.tasks._task import Batch
from ckptsurgeon.trainer.tasks.ctc import CTC

from .sounds import corpus, tone

TOKENS = [" ", *"abcdefgh", "<blank>"]
TEXTS = ["a", "ab", "b c", "abc", "dd", "e f", "fgh", "gg"]


def settings(**section: Any) -> Settings:
    data = {"train": "train.csv", **section.pop("data", {})}
    return parse_settings({"data": data, "batch_size": 3, **section}, "x.yaml")


def task(**section: Any) -> CTC:
    if not Path("train.csv").exists():
        corpus("train.csv", TEXTS)
    return CTC(settings(**section), TOKENS)


def train(made: CTC) -> Batches:
    return made.splits()["train"]


def same(one: Batch, other: Batch) -> bool:
    return (
        one.names == other.names
        and one.seconds == other.seconds
        and all(
            torch.equal(getattr(one, name), getattr(other, name))
            for name in ("inputs", "lengths", "labels", "label_lengths")
        )
    )


def test_a_batch_is_padded_to_its_longest() -> None:
    made = task()
    batch = next(train(made).read(seed=0, epoch=0))
    assert batch.inputs.shape == (3, int(batch.lengths.max()), 40)
    assert batch.labels.shape == (3, int(batch.label_lengths.max()))
    for row, length, name in zip(batch.inputs, batch.lengths.tolist(), batch.names, strict=True):
        clip = next(clip for clip in train(made).split.clips if clip.where == name)
        assert torch.equal(row[:length], made.inputs(clip))
        assert not row[length:].any()
    decoded = [
        made.labels.decode(ids[:size].tolist()) for ids, size in zip(batch.labels, batch.label_lengths, strict=True)
    ]
    assert decoded == [TEXTS[int(name.rpartition(" ")[2]) - 2] for name in batch.names]


def test_an_epoch_has_each_clip_once_and_can_be_entered_anywhere() -> None:
    batches = train(task())
    whole = list(batches.read(seed=3, epoch=1))
    assert len(whole) == batches.size(1) == 3
    assert sorted(name for batch in whole for name in batch.names) == sorted(c.where for c in batches.split.clips)
    for start in range(4):
        entered = list(batches.read(seed=3, epoch=1, start=start))
        assert len(entered) == 3 - start
        assert all(map(same, entered, whole[start:]))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("cache", [None, "cache"])
def test_workers_and_the_cache_change_no_bit(cache: str | None) -> None:
    plain = [list(train(task()).read(seed=0, epoch=epoch)) for epoch in range(2)]
    worked = train(task(data={"workers": 2, "cache": cache}))
    for epoch in range(2):
        assert all(map(same, worked.read(seed=0, epoch=epoch), plain[epoch]))


def test_loading_leaves_the_global_random_state_alone() -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(train(task()).read(seed=0, epoch=0))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


@pytest.mark.costly
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_clip_is_raised_as_it_is(workers: int) -> None:
    corpus("train.csv", TEXTS)
    import soundfile

    soundfile.write("train-4.wav", np.zeros(3200), 16_000)
    with pytest.raises(cs.SourceError, match=r"^train.csv, line 6: train-4.wav is silent"):
        list(train(task(data={"workers": workers})).read(seed=0, epoch=0))


def test_what_is_too_short_or_too_long_is_left_out_and_counted() -> None:
    corpus("train.csv", [*TEXTS, "abababababababababababababababababababab"])  # the last has 0.28 s: 29 frames
    split = train(task(data={"min_s": 0.215, "max_s": 0.265})).split
    assert [clip.text for clip in split.clips] == TEXTS[2:7]
    assert split.dropped == {"shorter than 0.215 s": 2, "longer than 0.265 s": 2}
    assert "left out: 2 shorter than 0.215 s, 2 longer than 0.265 s" in split.says()
    assert train(task()).split.dropped == {"with fewer frames than tokens": 1}


def test_a_split_with_nothing_left_is_an_error() -> None:
    corpus("train.csv", TEXTS)
    with pytest.raises(cs.ConfigError, match="no clip is left in train: 0 clips.*8 shorter than 9 s"):
        task(data={"min_s": 9}).splits()
    with pytest.raises(cs.ConfigError, match="train.data.train lists no manifest"):
        CTC(parse_settings({}, "x.yaml"), TOKENS).splits()


def test_only_splits_that_are_named_are_read() -> None:
    corpus("dev.csv", ["a", "b"])
    assert list(task().splits()) == ["train"]
    splits = task(data={"dev": "dev.csv"}).splits()
    assert list(splits) == ["train", "dev"]
    (batch,) = splits["dev"].read(seed=0, epoch=0)
    assert batch.names == ("dev.csv, line 3", "dev.csv, line 2")  # the longest first, whatever the seed
    notes = task(data={"dev": "dev.csv"}).notes()
    assert notes[0].startswith("train: 8 clips, 0.0 min; padding ")
    assert notes[1:] == ["dev: 2 clips, 0.0 min"]


def test_paths_are_relative_to_the_configuration() -> None:
    data = Data(train=("a.csv",), dev=("/x/b.csv",), tokens="alphabet.txt", cache="c")
    settings = resolve_paths(Settings(data=data, augment=Augment(noise=("musan", "/x/hum.wav"))), "conf")
    made = settings.data
    assert settings.augment.noise == ("conf/musan", "/x/hum.wav")
    assert (made.train, made.dev, made.tokens, made.cache) == (
        ("conf/a.csv",), ("/x/b.csv",), "conf/alphabet.txt", "conf/c",
    )  # fmt: skip
    Path("conf").mkdir()
    Path("conf/bytes").write_text("a\n")
    assert resolve_paths(Settings(data=Data(tokens="bytes")), "conf").data.tokens == "bytes"  # Coqui's bytes mode
    assert resolve_paths(Settings(data=Data(tokens="./bytes")), "conf").data.tokens == "conf/bytes"
    assert resolve_paths(Settings(data=Data(tokens="./bytes")), "").data.tokens == "./bytes"


def files() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path("cache").iterdir())}


def test_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert task(data={"cache": "cache"}).prepare() == ["train: 8 clips, 0.0 min; 8 clips computed"]
    made = files()
    monkeypatch.setattr("ckptsurgeon.trainer.data.inputs.read_sound", None)  # nothing is read any more
    again = task(data={"cache": "cache"})
    assert again.prepare() == ["train: 8 clips, 0.0 min; 0 clips computed"]
    assert len(list(train(again).read(seed=0, epoch=0))) == 3
    assert files() == made


def test_other_settings_and_changed_sounds_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.trainer.data.cache.MOST_CLIPS", 3)
    first = task(data={"cache": "cache"})
    assert "8 clips computed" in first.prepare()[0]
    assert len(files()) == 3
    tone("train-7.wav", 0.27, hertz=999)
    assert "2 clips computed" in task(data={"cache": "cache"}).prepare()[0]
    os.utime("train-0.wav", ns=(1, 1))
    assert "3 clips computed" in task(data={"cache": "cache"}).prepare()[0]
    assert "8 clips computed" in task(data={"cache": "cache"}, features={"size": 41}).prepare()[0]
    batches = train(task(data={"cache": "cache"}))
    plain = train(task())
    assert all(map(same, batches.read(seed=0, epoch=0), plain.read(seed=0, epoch=0)))


def test_a_cache_that_is_cut_short_is_made_anew() -> None:
    task(data={"cache": "cache"}).prepare()
    (path,) = Path("cache").iterdir()
    whole = path.read_bytes()
    for broken in (b"", whole[:10], whole[:-4], b"X" + whole[1:]):
        path.write_bytes(broken)
        assert "8 clips computed" in task(data={"cache": "cache"}).prepare()[0]
        assert path.read_bytes() == whole


def test_a_cache_of_waves() -> None:
    features = {"kind": "waves"}
    cached = task(data={"cache": "cache"}, features=features)
    assert all(map(same, train(cached).read(), train(task(features=features)).read()))
    assert next(train(cached).read()).inputs.dim() == 2


def test_preparing_needs_a_folder_that_can_be_written() -> None:
    with pytest.raises(cs.ConfigError, match="no folder for computed features. Set train.data.cache to a folder"):
        task().prepare()
    Path("cache").write_text("a file")
    with pytest.raises(cs.OutputError, match="cannot make the folder cache"):
        task(data={"cache": "cache"}).prepare()


@pytest.mark.costly
@pytest.mark.parametrize("workers", [0, 2])
def test_preparing_names_a_clip_that_cannot_be_used_and_leaves_no_half_file(workers: int) -> None:
    corpus("train.csv", TEXTS)
    import soundfile

    soundfile.write("train-4.wav", np.zeros(3200), 16_000)
    with pytest.raises(cs.SourceError, match=r"^train.csv, line 6: train-4.wav is silent"):
        task(data={"cache": "cache", "workers": workers}).prepare()
    assert not Path("cache").exists() or not list(Path("cache").iterdir())


def test_clips_that_are_longer_than_a_batch_are_counted() -> None:
    corpus("train.csv", TEXTS)  # clips of 0.2 to 0.43 s
    lengths = sorted(task().splits()["train"].split.lengths)
    assert len(task(batch_seconds=0.5).notes()) == 1
    few, most = (sum(length > seconds for length in lengths) for seconds in (lengths[-2], 0.1))
    said = f"train.batch_seconds is 0.1, but {most} clips of train are longer, up to {lengths[-1]:.2f} s: each is a batch of its own"
    assert (few, most) == (1, len(lengths))
    assert task(batch_seconds=0.1).notes()[1:] == [said]
    (one,) = task(batch_seconds=lengths[-2]).notes()[1:]
    assert "but 1 clip of train is longer" in one


def test_a_long_clip_is_said_in_seconds_without_an_exponent(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus("train.csv", TEXTS)
    made = task(batch_seconds=600)
    monkeypatch.setattr(Split, "lengths", [*[0.5] * (len(TEXTS) - 1), 1234.0])
    assert made.notes()[1:] == [
        "train.batch_seconds is 600, but 1 clip of train is longer, up to 1234.00 s: each is a batch of its own"
    ]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("of", [2, 3, 5])
def test_batches_by_seconds_are_shared_by_several_processes(of: int) -> None:
    """Every clip is in one process's batch, once; each process has as many batches, if some are of a lone clip."""
    corpus("train.csv", [*TEXTS, *TEXTS, *TEXTS])
    source = train(task(batch_seconds=0.7))
    assert len({len(batch) for batch in source.order(0, 0)}) > 1  # clips of 0.2 to 0.43 s
    for epoch in range(2):
        whole = [batch.names for batch in source.read(0, epoch)]
        ranks = [list(source.read(0, epoch, rank=rank, of=of)) for rank in range(of)]
        assert {len(batches) for batches in ranks} == {len(whole)}
        for number, names in enumerate(whole):
            parts = [batches[number] for batches in ranks]
            assert sorted(name for part in parts if not part.idle for name in part.names) == sorted(names)
            assert all(len(part.names) == 1 and part.seconds == 0 for part in parts if part.idle)
            assert (
                max(len(part.names) for part in parts) - min(len(part.names) * (not part.idle) for part in parts) <= 1
            )
        assert sorted(name for names in whole for name in names) == sorted(clip.where for clip in source.split.clips)
