"""Lists of clips: what each kind says, and for what is wrong the file, the line and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.sound import Clip
from ckptsurgeon.trainer.manifests.read import read_manifests
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
        ("wav_filename,wav_filesize\na.wav,1\n", ("x.csv, line 1: it has no column transcript", "Its columns are")),
        ("transcript\nyes\n", ("x.csv, line 1: it has no column wav_filename",)),
        ("wav_filename,transcript,transcript\na.wav,x,y\n", ("line 1: it has the column transcript twice",)),
        (COQUI + "a.wav,0,yes\n", ("x.csv, line 2: wav_filesize is '0'",)),
        (COQUI + "a.wav,yes,12\n", ("x.csv, line 2: wav_filesize is 'yes'", "order of the first line")),
        (COQUI + ",1,yes\n", ("x.csv, line 2: wav_filename is empty",)),
        (COQUI + "a.wav,1,yes, it does\n", ("x.csv, line 2: it has 4 values where", "in quotes")),
        (COQUI + 'a.wav,1,"yes\n', ("x.csv, line 2",)),
        (COQUI + "a.wav,1,yes\na.wav,1,no\n", ("x.csv, line 3: the clip a.wav is in x.csv, line 2, too",)),
        (COQUI, ("x.csv names no clip",)),
        ("a;b\n", ("x.csv is not a known kind of manifest", "Coqui STT", "SpeechBrain", "Kaldi", "classification")),
        ("path\na.wav\n", ("x.csv is not a known kind of manifest",)),
        ("label\nyes\n", ("line 1: it has no column path",)),
        ("path,label\n,yes\n", ("line 2: path is empty",)),
    ],
)
def test_what_is_wrong_with_a_table_is_said(content: str, texts: tuple[str, ...]) -> None:
    tone("a.wav")
    Path("x.csv").write_text(content)
    fails("x.csv", *texts)


def test_a_line_that_is_no_utf8_is_named() -> None:
    Path("x.csv").write_bytes(COQUI.encode() + b"a.wav,1,yes\na.wav,1,sch\xf6n\n")
    fails("x.csv", "x.csv, line 3: this is not UTF-8", "iconv")


def test_every_missing_sound_is_a_detail() -> None:
    tone("a.wav")
    Path("x.csv").write_text(COQUI + "a.wav,1,a\nb.wav,1,b\nc.wav,1,c\n")
    with pytest.raises(
        cs.SourceError, match=r"x.csv, line 3: the sound b.wav does not exist, and 1 of 3 more"
    ) as caught:
        read_manifests(["x.csv"])
    assert caught.value.details == ("x.csv, line 3: b.wav does not exist", "x.csv, line 4: c.wav does not exist")


def test_what_is_no_sound_is_named() -> None:
    Path("a.wav").write_text("no sound")
    Path("x.csv").write_text(COQUI + "a.wav,8,a\n")
    fails("x.csv", "x.csv, line 2: a.wav cannot be read", "WAV, FLAC or OGG", error=cs.SourceError)


def test_a_clip_may_stand_in_one_manifest_only() -> None:
    corpus("a.csv", ["x"])
    Path("b.csv").write_text("wav_filename,transcript\na-0.wav,x\n")
    with pytest.raises(cs.ConfigError, match="b.csv, line 2: the clip a-0.wav is in a.csv, line 2, too"):
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
    fails(annotation(u1={"wav": {**wav, "stop": 80_000}, "words": "a"}), "it goes from 0.1 s to 5 s", "lasts 0.5 s")
    fails(annotation(u1={"wav": {**wav, "stop": 3}, "words": "a"}), "it goes from sample 1600 to 3")


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        ({"words": "a"}, ("train.json, u1: it has no field wav", "it has words")),
        ({"wav": "a.wav"}, ("train.json, u1: it has no field words",)),
        ({"wav": 3, "words": "a"}, ("u1: its sound is 3, not a path",)),
        ({"wav": "$root/{other}/a.wav", "words": "a"}, ("placeholder", "{data_root}")),
        ({"wav": "a.wav", "words": 3}, ("u1: its text is 3",)),
        ({"wav": "a.wav", "words": "a", "length": -1}, ("u1: length is -1, not a number of seconds",)),
        ({"wav": "a.wav", "words": "a", "duration": "1"}, ("u1: duration is '1'",)),
        (3, ("u1: it is 3, not an object",)),
    ],
)
def test_what_is_wrong_with_an_annotation_is_said(entry: Any, texts: tuple[str, ...]) -> None:
    tone("a.wav")
    fails(annotation(u1=entry), *texts)


def test_json_that_is_none_and_keys_that_stand_twice() -> None:
    for text, why in (
        ("{", "is not valid JSON"),
        ("[1]", "not a JSON object of clips"),
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
    fails(kaldi("r a.wav\n", "u1 a\n", "u1 r 0.3\n"), "data/segments, line 1: it is not a recording with begin and end")
    fails(kaldi("r a.wav\n", "u1 a\n", "u1 r 0.3 0.1\n"), "it goes from 0.3 s to 0.1 s")
    fails(kaldi("r a.wav\n", "u1 a\n", "u1 other 0.1 0.3\n"), "wav.scp has no other")


def test_a_command_in_wav_scp_is_never_run() -> None:
    fails(kaldi("u1 touch ran |\n"), "data/wav.scp, line 1: touch ran | is a command", "never run")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("wav", "text", "why"),
    [
        ("u1 a.wav\nu1 a.wav\n", "u1 a\n", "wav.scp, line 2: u1 is in data/wav.scp, line 1 too"),
        ("u1 a.wav\nu2 a.wav\n", "u1 a\n", "wav.scp, line 2: text has no line for u2"),
        ("u1 a.wav\n", "u1 a\nu2 b\n", "text, line 2: there is no sound for u2"),
        ("u1 foo.ark:123\n", "u1 a\n", "foo.ark:123 is not a sound file. Archives are not read"),
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
    files = {"coqui": "coqui.csv", "labelled": "labelled.csv", "speechbrain": "speechbrain.json", "kaldi": kaldi()}
    assert files.keys() == kinds.keys()
    for name, path in files.items():
        assert [kind for kind, one in kinds.items() if one.sniff(path)] == [name]
        assert kinds[name].kind
