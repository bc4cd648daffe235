"""Data that Hugging Face's `datasets` saved: its own files (``fixtures/record_datasets.py``), and broken ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.sound import Clip, read_sound, sound_seconds
from ckptsurgeon.trainer.data.split import read_manifests

from .sounds import tone

pyarrow = pytest.importorskip("pyarrow", reason="it is in the extra datasets")
GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "golden" / "datasets"
TEXTS = ["a", "ab", "abb", "b", "a", "ab", "abb", "b"]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, features, lengths):
        return self.head(torch.tanh(self.body(features))).log_softmax(-1), lengths
"""


@pytest.fixture(autouse=True)
def _data() -> None:
    shutil.copytree(GOLDEN, "data")


def clips(path: str, **more: str) -> list[Clip]:
    return read_manifests([{"hf_dataset": f"data/{path}", **more}])


@pytest.mark.long
def test_a_saved_folder_gives_its_clips_in_order_with_their_own_sounds() -> None:
    found = clips("train")
    assert [clip.text for clip in found] == TEXTS[:6]
    assert [round(clip.seconds * 8000) for clip in found] == [800 + 80 * number for number in range(6)]
    for number, clip in enumerate(found):
        samples = read_sound(clip, 8000)
        assert len(samples) == 800 + 80 * number
        wave = torch.sin(2 * torch.pi * (200 + 40 * number) * torch.arange(len(samples)) / 8000) / 2
        assert torch.allclose(torch.from_numpy(samples), wave, atol=1e-3)
    assert found[4].where == "data/train/data-00001-of-00002.arrow, row 1"


def test_a_split_of_a_folder_and_a_folder_of_the_cache() -> None:
    assert [clip.text for clip in clips("dict", split="train")] == [TEXTS[5], TEXTS[0], TEXTS[2]]
    assert [clip.text for clip in clips("dict", split="validation")] == TEXTS[6:]
    assert [clip.text for clip in clips("cache")] == TEXTS[6:]
    assert [clip.text for clip in clips("cache/parquet", split="test")] == TEXTS[6:]


def test_the_number_of_a_class_becomes_its_name() -> None:
    assert [clip.text for clip in clips("train", text="speaker")] == ["ann", "bob"] * 3


def test_several_sets_and_manifests_are_read_one_after_the_other() -> None:
    tone("x.wav", 0.5)
    Path("x.csv").write_text("wav_filename,transcript\nx.wav,b\n")
    found = read_manifests([{"hf_dataset": "data/train"}, "x.csv", {"hf_dataset": "data/dict", "split": "validation"}])
    assert [clip.text for clip in found] == [*TEXTS[:6], "b", *TEXTS[6:]]
    with pytest.raises(cs.ConfigError, match=r"row 0: the clip .* is also in .*row 0"):
        read_manifests([{"hf_dataset": "data/train"}] * 2)


SOUND = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def saved(rows: list[dict[str, Any]], sound: Any = SOUND, **info: Any) -> None:
    """A folder as save_to_disk writes it, of one table."""
    Path("set").mkdir()
    table = pyarrow.table(
        {"audio": pyarrow.array([row.get("audio") for row in rows], sound), "text": [row["text"] for row in rows]}
    )
    with pyarrow.ipc.new_stream("set/data.arrow", table.schema) as writer:
        writer.write_table(table)
    features = {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    Path("set/dataset_info.json").write_text(json.dumps({"features": features} | info))
    Path("set/state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


def test_a_sound_whose_path_alone_is_stored_is_read_from_its_file() -> None:
    tone("there.wav", 0.4)
    saved([{"audio": {"bytes": None, "path": os.path.abspath("there.wav")}, "text": "a"}])
    (clip,) = read_manifests([{"hf_dataset": "set"}])
    assert (clip.path, clip.cell, round(clip.seconds, 3)) == (os.path.abspath("there.wav"), None, 0.4)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"audio": "a.wav", "text": "a"}], "the column audio has no sounds: its type is string. Write audio: COLUMN"),
        ([{"audio": {"path": "a.wav"}, "text": "a"}], "the column audio has no sounds: its type is struct<path: string>"),
        ([{"audio": {"bytes": None, "path": 3}, "text": "a"}], "its type is struct<bytes: null, path: int64>"),
        ([{"audio": {"bytes": None, "path": None}, "text": "a"}, {"audio": {"bytes": b"x", "path": "a"}, "text": "b"}],
         "row 0: the column audio has no audio"),
    ],
)  # fmt: skip
def test_a_column_or_a_row_without_sounds_is_an_error(rows: list[dict[str, Any]], why: str) -> None:
    saved(rows, None if "type" in why else SOUND)
    with pytest.raises(cs.CheckpointError, match=re.escape(why)):
        read_manifests([{"hf_dataset": "set"}])


@pytest.mark.long
def test_a_model_is_trained_on_a_set_and_goes_on_with_the_same_clips(ckpt: Any) -> None:
    Path("net.py").write_text(NET)
    Path("tokens.txt").write_text("<blank>\na\nb\n")
    data = {
        "train": {"hf_dataset": "data/train"}, "dev": {"hf_dataset": "data/dict", "split": "validation"},
        "tokens": "tokens.txt", "cache": "cached",
    }  # fmt: skip
    features = {"kind": "log_mel", "size": 8, "rate": 8000}
    train = {"task": "ctc", "data": data, "features": features, "batch_size": 3, "steps": 4, "workers": 1}
    del train["workers"]
    train["data"] = {**data, "workers": 1}
    Path("net.yaml").write_text(yaml.safe_dump({"model": {"_target_": "net.Net"}, "train": train}))
    done = ckpt("train", "net.yaml", "--device", "cpu", "--steps", "2")
    assert "note: train: 6 clips" in done.err, done
    assert {"loss fell", "saved, reopened, the same loss"} <= {
        check.name for check in cs.train(run="run", resume=True, steps=4, device="cpu").checks
    }
    assert list(Path("cached").glob("*.features"))
    shutil.rmtree("data/train")
    shutil.copytree("data/dict/train", "data/train")
    with pytest.raises(cs.ConfigError, match="has other clips for train"):
        cs.train(run="run", resume=True, steps=6, device="cpu")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such folder": ({"hf_dataset": "data/trian"}, "data/trian does not exist"),
    "a file": ({"hf_dataset": "data/train/state.json"}, "is a file"),
    "several splits": (
        {"hf_dataset": "data/dict"},
        r"has several splits. Choose one with split: NAME. Its splits are train, validation",
    ),
    "no such split": (
        {"hf_dataset": "data/dict", "split": "dev"},
        "has no split dev. Its splits are train, validation",
    ),
    "several sets": ({"hf_dataset": "data"}, "has several datasets"),
    "no set": ({"hf_dataset": "fixed"}, r"is not the folder of a dataset. It has no dataset_info.json. .*save_to_disk"),
    "no such column": ({"hf_dataset": "data/train", "text": "txt"}, "has no column txt. Write text: COLUMN"),
    "a column of texts": (
        {"hf_dataset": "data/train", "audio": "sentence"},
        "the column sentence has no sounds: its type is string",
    ),
    "a column of numbers": (
        {"hf_dataset": "data/train", "text": "number"},
        "row 0: the column number has 0, not a string",
    ),
    "no such field": ({"hf_dataset": "data/train", "splt": "x"}, "has the unknown field splt. Did you mean split"),
    "a split that is a number": (
        {"hf_dataset": "data/train", "split": 3},
        "the field split of a dataset in train.data is 3, not a string",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_entry_that_names_nothing_is_an_error(name: str) -> None:
    entry, why = BAD[name]
    Path("fixed").mkdir()
    with pytest.raises(cs.ConfigError, match=why):
        read_manifests([entry])


def _cut() -> None:
    path = Path("data/train/data-00001-of-00002.arrow")
    path.write_bytes(path.read_bytes()[:3000])


def _outside() -> None:
    Path("data/train/state.json").write_text(json.dumps({"_data_files": [{"filename": "../dict/train/x.arrow"}]}))


def _offsets() -> None:
    path = Path("data/train/data-00000-of-00002.arrow")
    data = path.read_bytes()
    place = data.index((1644).to_bytes(4, "little"))  # where the second sound begins
    path.write_bytes(data[:place] + (1 << 30).to_bytes(4, "little") + data[place + 4 :])


def _empty() -> None:
    shutil.rmtree("data/train")
    saved([{"audio": {"bytes": b"", "path": "x.wav"}, "text": "a"}])
    Path("set").rename("data/train")


def _noise() -> None:
    shutil.rmtree("data/train")
    saved([{"audio": {"bytes": b"RIFF and nothing else", "path": "x.wav"}, "text": "a"}])
    Path("set").rename("data/train")


def _fifo() -> None:
    Path("data/train/data-00000-of-00002.arrow").unlink()
    os.mkfifo("data/train/data-00000-of-00002.arrow")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_cut, "cannot be read as a table of Arrow"),
        (_outside, "which is not the name of a file in the folder"),
        (_offsets, "cannot be read as a table of Arrow"),
        (_empty, "row 0: the column audio has no audio"),
        (_noise, r"row 0: data/train/data.arrow cannot be read"),
        (_fifo, "is not a regular file"),
        (lambda: Path("data/train/dataset_info.json").write_text("[]"), "is not a JSON object"),
        (lambda: Path("data/train/dataset_info.json").write_text("{"), "cannot be read"),
        (lambda: Path("data/train/dataset_info.json").write_text("{}"), "does not list the columns"),
        (
            lambda: Path("data/train/state.json").write_text('{"_indices_files": [1]}'),
            "selects rows of its tables by a file",
        ),
        (lambda: Path("data/train/data-00001-of-00002.arrow").unlink(), "does not exist"),
    ],
)
def test_a_damaged_set_is_an_error(edit: Any, why: str) -> None:
    edit()
    with pytest.raises(cs.CheckpointError, match=why):
        clips("train")


def test_a_table_of_the_cache_that_is_missing_is_an_error() -> None:
    (table,) = Path("data/cache").rglob("*.arrow")
    table.rename(table.with_name("parquet-test-00000-of-00002.arrow"))
    with pytest.raises(cs.ConfigError, match="has only 1 of the 2 tables of the split test"):
        clips("cache")
    shutil.copy(next(Path("data/cache").rglob("*.arrow")), table)
    with pytest.raises(cs.ConfigError, match="split test whose names give different numbers of tables. Remove"):
        clips("cache")


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ckptsurgeon.trainer.data import arrow

    arrow._table.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(cs.ConfigError, match=r"pip install 'ckptsurgeon\[datasets\]'"):
        clips("train")


def test_the_sounds_are_those_that_soundfile_reads(tmp_path: Path) -> None:
    clip = clips("train")[3]
    assert clip.cell is not None
    table = pyarrow.ipc.open_stream(pyarrow.memory_map(clip.path)).read_all()
    (tmp_path / "x.wav").write_bytes(table.column("audio")[clip.cell.row].as_py()["bytes"])
    assert (soundfile.read(tmp_path / "x.wav", dtype="float32")[0] == read_sound(clip, 8000)).all()


def test_a_task_without_texts_needs_no_column_of_texts() -> None:
    info = Path("data/train/dataset_info.json")
    described = json.loads(info.read_text())
    del described["features"]["sentence"]
    info.write_text(json.dumps(described))
    with pytest.raises(cs.ConfigError, match="has no column for text"):
        clips("train")
    found = read_manifests([{"hf_dataset": "data/train"}], texts=False)
    assert [(clip.text, round(clip.seconds * 8000)) for clip in found] == [("", 800 + 80 * n) for n in range(6)]


@pytest.mark.long
def test_of_a_sound_in_a_table_only_what_is_read_is_taken_into_memory() -> None:
    tone("long.wav", 300)
    data = Path("long.wav").read_bytes()
    saved([{"audio": {"bytes": data, "path": None}, "text": "a"}] * 2)
    found = read_manifests([{"hf_dataset": "set"}])
    tracemalloc.start()
    seconds = [sound_seconds(clip) for clip in found]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds == [300, 300]
    assert peak < len(data) / 10
    assert all(len(read_sound(clip, 16_000)) == 300 * 16_000 for clip in found)
