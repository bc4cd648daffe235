"""Lists of clips: what each kind says, and for what is wrong the file, the line and what to do."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.sound import Clip
from ckptsurgeon.trainer.data.split import read_manifests
from ckptsurgeon.trainer.manifests import _text
from ckptsurgeon.trainer.manifests._text import has_marks, names_in
from ckptsurgeon.util.registry import discover

from .sounds import CLIPS, corpus, tone

COQUI = "wav_filename,wav_filesize,transcript\n"


def one(path: str) -> Clip:
    (clip,) = read_manifests([path])
    return clip


def fails(path: str, *texts: str, error: type[cs.CheckpointError] = cs.ConfigError) -> None:
    with pytest.raises(error) as caught:
        read_manifests([path])
    for text in texts:
        assert text in str(caught.value)


def test_coquis_csv_is_relative_to_itself() -> None:
    clips = read_manifests([str(CLIPS / "clips.csv")])
    assert [(Path(clip.path).name, clip.text, clip.seconds) for clip in clips] == [
        ("one.wav", "one", 0.3), ("two.flac", "two", 5968 / 22050), ("three.ogg", "three", 0.3),
    ]  # fmt: skip
    assert clips[1].where.endswith("clips.csv, line 3")


def test_columns_may_stand_in_any_order_and_sizes_may_be_missing() -> None:
    tone("a b.wav")
    Path("x.csv").write_text('\ufefftranscript,wav_filename,extra\n"yes, it does",a b.wav,1\n\n')
    assert (one("x.csv").text, one("x.csv").path) == ("yes, it does", "a b.wav")


def test_only_line_ends_end_lines() -> None:
    tone("a.wav")
    tone("b.wav")
    Path("x.csv").write_bytes('wav_filename,transcript\r\na.wav,one\u2028two\x0b\r\nb.wav,"a\nb"\r\n'.encode())
    assert [(clip.text, clip.where) for clip in read_manifests(["x.csv"])] == [
        ("one\u2028two\x0b", "x.csv, line 2"), ("a\nb", "x.csv, line 4"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (
            "wav_filename,wav_filesize\na.wav,1\n",
            ("x.csv, line 1: the table has no column transcript", "Its columns are"),
        ),
        ("transcript\nyes\n", ("x.csv, line 1: the table has no column wav_filename",)),
        ("wav_filename,transcript,transcript\na.wav,x,y\n", ("line 1: the table has the column transcript twice",)),
        (COQUI + "a.wav,0,yes\n", ("x.csv, line 2: wav_filesize is '0'",)),
        (COQUI + "a.wav,yes,12\n", ("x.csv, line 2: wav_filesize is 'yes'", "order of the columns in the first line")),
        (COQUI + ",1,yes\n", ("x.csv, line 2: wav_filename is empty",)),
        (COQUI + "a.wav,1,yes, it does\n", ("x.csv, line 2: the line has 4 values, but", "in quotes")),
        (COQUI + "a.wav,1\n", ("x.csv, line 2: the line has 2 values, but", "a comma for each value that is empty")),
        (COQUI + "a.wav,1,yes\na.wav,1,n\0o\n", ("x.csv, line 3: the line contains a zero byte. Remove it",)),
        (COQUI + 'a.wav,1,"yes\n', ("x.csv, line 2",)),
        (COQUI + "a.wav,1,yes\na.wav,1,no\n", ("x.csv, line 3: the clip a.wav is also in x.csv, line 2",)),
        (COQUI, ("x.csv contains no clips",)),
        ("a;b\n", ("x.csv is not a manifest in a known format", "Coqui STT", "SpeechBrain", "Kaldi", "classification")),
        ("path\na.wav\n", ("x.csv is not a manifest in a known format",)),
        ("label\nyes\n", ("line 1: the table has no column path",)),
        ("path,label\n,yes\n", ("line 2: path is empty",)),
    ],
)
def test_what_is_wrong_with_a_table_is_said(content: str, texts: tuple[str, ...]) -> None:
    tone("a.wav")
    Path("x.csv").write_text(content)
    fails("x.csv", *texts)


def test_a_line_that_is_no_utf8_is_named() -> None:
    Path("x.csv").write_bytes(COQUI.encode() + b"a.wav,1,yes\na.wav,1,sch\xf6n\n")
    fails("x.csv", "x.csv, line 3: the line is not UTF-8", "iconv")


def test_the_line_that_is_no_utf8_is_counted_after_a_byte_order_mark() -> None:
    Path("x.csv").write_bytes(b"\xef\xbb\xbf" + COQUI.encode() + b"\xf6.wav,1,yes\n")
    fails("x.csv", "x.csv, line 2: the line is not UTF-8")


def test_every_missing_sound_is_a_detail() -> None:
    tone("a.wav")
    Path("x.csv").write_text(COQUI + "a.wav,1,a\nb.wav,1,b\nc.wav,1,c\n")
    with pytest.raises(cs.SourceError, match=r"x.csv, line 3: the sound b.wav does not exist; 2 of 3 sounds") as caught:
        read_manifests(["x.csv"])
    assert caught.value.details == ("x.csv, line 3: b.wav does not exist", "x.csv, line 4: c.wav does not exist")


def test_a_sound_that_is_there_is_not_called_missing() -> None:
    os.mkfifo("a.wav")
    Path("x.csv").write_text(COQUI + f"a.wav,1,a\n{'b' * 300}.wav,1,b\n")
    with pytest.raises(cs.SourceError, match=r"the sound a.wav is not a regular file; 2 of 2 .* Copy the") as caught:
        read_manifests(["x.csv"])
    assert caught.value.details[1].endswith("cannot be read: File name too long")


def test_what_is_no_sound_is_named() -> None:
    Path("a.wav").write_text("no sound")
    Path("x.csv").write_text(COQUI + "a.wav,8,a\n")
    fails("x.csv", "x.csv, line 2: a.wav cannot be read", "WAV, FLAC or Ogg", error=cs.SourceError)


def test_a_clip_may_stand_in_one_manifest_only() -> None:
    corpus("a.csv", ["x"])
    Path("b.csv").write_text("wav_filename,transcript\na-0.wav,x\n")
    with pytest.raises(cs.ConfigError, match="b.csv, line 2: the clip a-0.wav is also in a.csv, line 2"):
        read_manifests(["a.csv", "b.csv"])


def test_a_manifest_that_is_missing_is_said() -> None:
    fails("x.csv", "the manifest x.csv does not exist")
    os.mkfifo("pipe.csv")
    fails("pipe.csv", "pipe.csv is not a regular file")


def annotation(**entries: Any) -> str:
    Path("train.json").write_text(json.dumps(entries))
    return "train.json"


@pytest.mark.parametrize("field", ["words", "wrd", "transcript"])
def test_speechbrains_annotation(field: str) -> None:
    tone("wavs/a.wav", 0.5)
    clip = one(annotation(u1={"wav": "{data_root}/wavs/a.wav", "length": 0.5, field: "yes"}))
    assert (Path(clip.path).resolve(), clip.text, clip.seconds) == (Path("wavs/a.wav").resolve(), "yes", 0.5)
    assert clip.where == "train.json, u1"


def test_a_part_of_a_sound_is_in_samples() -> None:
    tone("a.wav", 0.5)
    wav = {"file": "a.wav", "start": 1600, "stop": 4800}
    clip = one(annotation(u1={"wav": wav, "words": "a"}))
    assert (clip.begin_s, round(clip.seconds, 9)) == (0.1, 0.2)
    fails(
        annotation(u1={"wav": {**wav, "stop": 80_000}, "words": "a"}),
        "the clip goes from 0.1 s to 5 s",
        "is only 0.5 s long",
    )
    fails(annotation(u1={"wav": {**wav, "stop": 3}, "words": "a"}), "the clip goes from sample 1600 to 3")


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        ({"words": "a"}, ("train.json, u1: the entry has no field wav", "The fields of the entry are words")),
        ({"wav": "a.wav"}, ("train.json, u1: the entry has no field words",)),
        ({"wav": 3, "words": "a"}, ("u1: the clip's sound is 3, not a path",)),
        ({"wav": "$root/{other}/a.wav", "words": "a"}, ("placeholder", "{data_root}")),
        ({"wav": "a.wav", "words": 3}, ("u1: the clip's text is 3",)),
        ({"wav": "a.wav", "words": "a", "length": -1}, ("u1: length is -1; it must be a number of seconds",)),
        ({"wav": "a.wav", "words": "a", "duration": "1"}, ("u1: duration is '1'",)),
        (3, ("u1: the entry is 3, not an object",)),
    ],
)
def test_what_is_wrong_with_an_annotation_is_said(entry: Any, texts: tuple[str, ...]) -> None:
    tone("a.wav")
    fails(annotation(u1=entry), *texts)


def test_json_that_is_none_and_keys_that_stand_twice() -> None:
    for text, why in (
        ("{", "is not valid JSON"),
        ("[1]", "not a JSON object that maps ids to clips"),
        ('{"a": 1, "a": 2}', "a occurs twice"),
    ):
        Path("x.json").write_text(text)
        fails("x.json", why)


def kaldi(wav: str = "u1 a.wav\n", text: str | None = "u1 yes it does\n", segments: str | None = None) -> str:
    tone("data/a.wav", 0.5)
    for name, content in (("wav.scp", wav), ("text", text), ("segments", segments)):
        path = Path("data") / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
    return "data"


def test_kaldis_folder() -> None:
    clip = one(kaldi())
    assert (clip.path, clip.text, clip.seconds, clip.where) == ("data/a.wav", "yes it does", 0.5, "data/text, line 1")
    assert one(kaldi("u1\tdata/a.wav\n")).path == "data/a.wav"  # as recipes have it, relative to where they run


def test_kaldis_segments() -> None:
    clips = read_manifests([kaldi("r a.wav\n", "u1 a\nu2 b\n", "u1 r 0.1 0.3\nu2 r 0.3 -1\n")])
    assert [(round(clip.begin_s, 6), round(clip.seconds, 6)) for clip in clips] == [(0.1, 0.2), (0.3, 0.2)]
    fails(
        kaldi("r a.wav\n", "u1 a\n", "u1 r 0.3\n"),
        "data/segments, line 1: the line does not give a recording, and the begin and end",
    )
    fails(kaldi("r a.wav\n", "u1 a\n", "u1 r 0.3 0.1\n"), "the segment goes from 0.3 s to 0.1 s")
    fails(kaldi("r a.wav\n", "u1 a\n", "u1 r nan -1\n"), "the segment goes from nan s to -1 s")
    fails(kaldi("r a.wav\n", "u1 a\n", "u1 other 0.1 0.3\n"), "wav.scp has no line for the recording other")


def test_tabs_may_separate_the_ids_of_kaldi() -> None:
    assert one(kaldi("u1\ta.wav\n", "u1\tone two\n")).text == "one two"


def test_a_command_in_wav_scp_is_never_run() -> None:
    fails(kaldi("u1 touch ran |\n"), "data/wav.scp, line 1: touch ran | is a command", "never run")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("wav", "text", "why"),
    [
        ("u1 a.wav\nu1 a.wav\n", "u1 a\n", "wav.scp, line 2: the id u1 is in data/wav.scp, line 1 too"),
        ("u1 a.wav\nu2 a.wav\n", "u1 a\n", "wav.scp, line 2: the file named text has no line for u2"),
        ("u1 a.wav\n", "u1 a\nu2 b\n", "text, line 2: there is no audio for u2"),
        ("u1 foo.ark:123\n", "u1 a\n", "foo.ark:123 is not a sound file. Archives are not supported"),
        ("u1\n", "u1 a\n", "an empty path is not a sound file"),
        ("u1 a.wav\n", None, "the manifest data/text cannot be read"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(wav: str, text: str | None, why: str) -> None:
    fails(kaldi(wav, text), why)


def test_a_labelled_csv_names_sounds_and_arrays() -> None:
    import numpy as np

    tone("a.wav", 0.25)
    np.save("b.npy", np.zeros((3, 2)))
    Path("x.csv").write_text("path,label\na.wav,dog\nb.npy,cat\n")
    assert [(clip.text, clip.seconds) for clip in read_manifests(["x.csv"])] == [("dog", 0.25), ("cat", 0.0)]


def test_every_kind_says_what_it_is_called_and_knows_no_other_kinds_file() -> None:
    kinds: dict[str, Any] = discover("ckptsurgeon.trainer.manifests", "MANIFEST")
    corpus("coqui.csv", ["x"])
    Path("labelled.csv").write_text("path,label\ncoqui-0.wav,a\n")
    Path("speechbrain.json").write_text("{}")
    Path("speechbrain.csv").write_text("ID,duration,wav,transcript\nu1,0.2,coqui-0.wav,x\n")
    files = {
        "coqui": ["coqui.csv"], "labelled": ["labelled.csv"], "speechbrain": ["speechbrain.json", "speechbrain.csv"],
        "kaldi": [kaldi()], "nemo": [lines("nemo.json", NEMO)], "lhotse": [lines("cuts.jsonl", CUT)],
    }  # fmt: skip
    assert files.keys() == kinds.keys()
    for name, paths in files.items():
        for path in paths:
            assert [
                kind
                for kind, one in kinds.items()
                if any(has_marks(path, names_in(path), marks) for marks in one.marks)
            ] == [name]
        assert kinds[name].kind


def test_a_csv_of_speechbrain() -> None:
    tone("wavs/a.wav", 0.5)
    table = "ID,duration,wav,spk_id,wrd\nu1,0.5,$data_root/wavs/a.wav,s1,YES IT DOES\n"
    Path("train.csv").write_text(table)
    clip = one("train.csv")
    assert (Path(clip.path).resolve(), clip.text, clip.seconds) == (Path("wavs/a.wav").resolve(), "YES IT DOES", 0.5)
    assert clip.where == "train.csv, line 2"
    Path("train.csv").write_text("ID,wav,start,stop,wrd\nu1,wavs/a.wav,1600,4800,a\nu2,wavs/a.wav,,,b\n")
    first, second = read_manifests(["train.csv"])
    assert (first.begin_s, round(first.seconds, 9), second.seconds) == (0.1, 0.2, 0.5)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (
            "ID,wav\nu1,a.wav\n",
            ("train.csv, line 2: the entry has no field words", "The fields of the entry are ID, wav"),
        ),
        ("ID,wav,wrd\nu1,a.wav,x\nu1,b.wav,y\n", ("line 3: the ID u1 is also in train.csv, line 2",)),
        ("ID,wav,wrd,duration\nu1,a.wav,x,long\n", ("line 2: duration is 'long', not a number",)),
        ("ID,wav,wrd,start,stop\nu1,a.wav,x,5,\n", ("line 2: stop is '', not a number",)),
        ("ID,wav,wrd,start,stop\nu1,a.wav,x,0.5,9\n", ("line 2: start is '0.5', not a whole number of samples",)),
        ("ID,wav,wrd,start,stop\nu1,a.wav,x,0,nan\n", ("line 2: stop is 'nan', not a whole number of samples",)),
        (
            "ID,wav,wrd\nu1,$other/a.wav,x\n",
            (
                "line 2: the path $other/a.wav has a placeholder that is unknown, or that is not at its beginning",
                "$data_root",
            ),
        ),
    ],
)
def test_what_is_wrong_with_a_csv_of_speechbrain_is_said(content: str, texts: tuple[str, ...]) -> None:
    tone("a.wav")
    Path("train.csv").write_text(content)
    fails("train.csv", *texts)


NEMO: dict[str, Any] = {"audio_filepath": "a.wav", "duration": 0.5, "text": "yes"}
CUT: dict[str, Any] = {
    "id": "c1", "start": 0.1, "duration": 0.3, "channel": 0, "type": "MonoCut",
    "supervisions": [{"id": "s1", "recording_id": "r1", "start": 0, "duration": 0.3, "channel": 0, "text": "yes"}],
    "recording": {
        "id": "r1", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "sampling_rate": 16000,
        "num_samples": 8000, "duration": 0.5, "channel_ids": [0],
    },
}  # fmt: skip


def lines(path: str, *entries: Any) -> str:
    """Write entries as lines of JSON, compressed if the name ends in .gz."""
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    Path(path).write_bytes(gzip.compress(text.encode()) if path.endswith(".gz") else text.encode())
    return path


def test_nemos_lines() -> None:
    tone("a.wav", 0.5)
    whole, part = read_manifests([lines("train.json", NEMO, {**NEMO, "offset": 0.1, "duration": 0.2})])
    assert (whole.path, whole.text, whole.seconds, whole.where) == ("a.wav", "yes", 0.5, "train.json, line 1")
    assert (part.begin_s, round(part.seconds, 9)) == (0.1, 0.2)
    Path("lists").mkdir()
    assert one(lines("lists/train.jsonl", NEMO)).path == "a.wav"  # as NeMo finds it, relative to where it runs


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        ({**NEMO, "audio_filepath": 3}, ("train.json, line 2: audio_filepath is 3, not a path",)),
        (
            {"audio_filepath": "a.wav"},
            ("line 2: the entry has no field text", "The fields of the entry are audio_filepath"),
        ),
        ({**NEMO, "text": None}, ("line 2: text is None, not a string",)),
        ({**NEMO, "duration": -1}, ("line 2: duration is -1; it must be a number of seconds",)),
        ({**NEMO, "duration": 10**400}, ("line 2: duration is 1000", "it must be a number of seconds")),
        ({**NEMO, "duration": 9}, ("line 2: the clip goes from 0 s to 9 s, but a.wav is only 0.5 s long",)),
        ({**NEMO, "audio_filepath": "b.wav", "shard_id": 0}, ("line 2: b.wav is in an archive", "Unpack")),
        ([1], ("line 2: the line is [1], not a JSON object",)),
    ],
)
def test_what_is_wrong_with_nemos_lines_is_said(entry: Any, texts: tuple[str, ...]) -> None:
    tone("a.wav", 0.5)
    tone("first.wav", 0.5)
    fails(lines("train.json", {**NEMO, "audio_filepath": "first.wav"}, entry), *texts)


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotses_cuts(name: str) -> None:
    tone("a.wav", 0.5)
    clip = one(lines(name, CUT))
    assert (clip.path, clip.text, clip.begin_s, round(clip.seconds, 9)) == ("a.wav", "yes", 0.1, 0.3)
    assert clip.where == f"{name}, line 1"


def changed(**fields: Any) -> dict[str, Any]:
    """Return the cut with other fields; ``source`` and ``transforms`` are of its recording."""
    entry: dict[str, Any] = json.loads(json.dumps(CUT))
    for name, value in fields.items():
        if name == "source":
            entry["recording"]["sources"][0].update(value)
        elif name == "transforms":
            entry["recording"]["transforms"] = value
        else:
            entry[name] = value
    return entry


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        (changed(type="MixedCut", tracks=[]), ("the cut has the type 'MixedCut'", "Only MonoCut")),
        (changed(supervisions=[]), ("the number of supervisions of the cut is 0", "trim-to-supervisions")),
        (changed(supervisions=CUT["supervisions"] * 2), ("the number of supervisions of the cut is 2",)),
        (changed(supervisions=[{"id": "s"}]), ("the text of the cut's supervision is None, not a string",)),
        (changed(source={"type": "command", "source": "touch ran"}), ("of type 'command', not a file",)),
        (changed(source={"type": "url"}), ("of type 'url', not a file",)),
        (changed(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), ("not supported: Speed", "save_audios")),
        (changed(channel=1, source={"channels": [0, 1]}), ("channel 1 of a sound with the channels [0, 1]",)),
        (changed(duration=2.0), ("the clip goes from 0.1 s to 2.1 s, but a.wav is only 0.5 s long",)),
        (CUT["recording"], ("a recording set of lhotse", "lhotse cut simple")),
        ({**CUT["supervisions"][0]}, ("a supervision set of lhotse",)),
    ],
)
def test_what_is_wrong_with_a_cut_is_said(entry: Any, texts: tuple[str, ...]) -> None:
    tone("a.wav", 0.5)
    fails(lines("cuts.jsonl", entry), "cuts.jsonl, line 1: ", *texts)
    assert not Path("ran").exists()


def test_a_cut_of_no_length_is_not_a_sound_without_samples() -> None:
    tone("a.wav", 0.5)
    path = lines("cuts.jsonl", changed(duration=0))
    fails(path, "line 1: the clip of a.wav has a length of 0 s", error=cs.SourceError)


def test_an_archive_that_is_damaged_or_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tone("a.wav", 0.5)
    path = Path(lines("cuts.jsonl.gz", CUT, *[{**CUT, "id": "x" * 5000, "n": number} for number in range(20)]))
    with monkeypatch.context() as limited:
        limited.setattr(_text, "LARGEST", 50_000)
        fails(str(path), "is larger than 0 MiB after decompression")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    fails(str(path), "the manifest cuts.jsonl.gz cannot be read: ")
    path.write_text("no archive")
    fails(str(path), "the manifest cuts.jsonl.gz cannot be read: Not a gzipped file")


UNTRANSCRIBED = {
    "coqui.csv": "wav_filename,wav_filesize\na.wav,1\n",
    "speechbrain.csv": "ID,wav\nu1,a.wav\n",
    "speechbrain.json": '{"u1": {"wav": "a.wav"}}',
    "nemo.jsonl": '{"audio_filepath": "a.wav", "duration": 0.2}\n',
    "lhotse.jsonl": json.dumps(
        {"id": "a", "start": 0, "duration": 0.2, "type": "MonoCut", "channel": 0}
        | {"recording": {"id": "a", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}]}}
    ),
    "kaldi/wav.scp": "u1 a.wav\n",
}


@pytest.mark.parametrize("name", UNTRANSCRIBED)
def test_a_task_without_texts_reads_lists_that_have_none(name: str) -> None:
    tone("a.wav")
    Path("kaldi").mkdir()
    Path(name).write_text(UNTRANSCRIBED[name])
    path = name.removesuffix("/wav.scp")
    fails(path)
    (clip,) = read_manifests([path], texts=False)
    assert (os.path.basename(clip.path), clip.text, clip.seconds) == ("a.wav", "", 0.2)
