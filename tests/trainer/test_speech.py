"""Speech out of the synthesiser: the same arguments give the same bytes, and what is made is what is read."""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import soundfile

import ckptsurgeon as cs
from ckptsurgeon.storage.yaml_text import read_yaml
from ckptsurgeon.trainer.config.section import parse_settings, resolve_paths
from ckptsurgeon.trainer.data.inputs import FeatureExtractor
from ckptsurgeon.trainer.data.split import read_manifests
from ckptsurgeon.trainer.job.assembly import load_task
from ckptsurgeon.trainer.speech.demo import LANGUAGES, demo_data, words_of
from ckptsurgeon.trainer.speech.espeak import check_language
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary


def bytes_of(folder: str) -> dict[str, str]:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes_in_whatever_company() -> None:
    demo_data("a", ["en"], n=10, seed=3)
    demo_data("b", ["ru", "en"], n=10, seed=3)
    demo_data("c", ["en"], n=10, seed=4)
    first, second, third = bytes_of("a"), bytes_of("b"), bytes_of("c")
    assert len(first) == 10 + 1 + 1 + 3 + 2
    assert first == {name: digest for name, digest in second.items() if name.startswith("en")}
    assert third["en/train.csv"] != first["en/train.csv"]
    assert not set(third.values()) & {first[name] for name in first if name.endswith(".wav")}


def test_what_is_made_is_what_is_read() -> None:
    made = demo_data("demo", ["de"], n=20)
    assert (made.languages, made.clips, made.configs) == (
        ("de",), {"train": 20, "dev": 2, "test": 2}, ("demo/de.yaml",),
    )  # fmt: skip
    seconds = 0.0
    for split, number in made.clips.items():
        found = rows(f"demo/de/{split}.csv")
        assert len(found) == number
        for row in found:
            path = Path("demo/de") / row["wav_filename"]
            header = soundfile.info(str(path))
            assert (header.samplerate, header.channels, header.subtype) == (16_000, 1, "PCM_16")
            assert int(row["wav_filesize"]) == path.stat().st_size
            assert 1 <= len(row["transcript"].split()) <= 4
            assert set(row["transcript"].split()) <= set(words_of("de"))
            seconds += header.duration
    assert made.seconds == pytest.approx(seconds, abs=1e-3)


@pytest.mark.long
def test_dev_and_test_have_texts_of_their_own() -> None:
    demo_data("demo", ["en"], n=60)
    train, dev, test = (
        {row["transcript"] for row in rows(f"demo/en/{split}.csv")} for split in ("train", "dev", "test")
    )
    assert not train & dev
    assert not (train | dev) & test


def test_the_configuration_is_ready() -> None:
    """What the model section is told fits what the train section computes, and every clip can be learned from."""
    demo_data("demo", ["en"], n=12)
    document = read_yaml(Path("demo/en.yaml").read_text(), "en.yaml")
    made = parse_settings(document["train"], "en.yaml")
    assert document["model"]["n_input"] == FeatureExtractor(made.features).width
    made = resolve_paths(made, "demo")
    tokens = read_vocabulary(str(made.data.tokens)).tokens
    assert set(tokens) == {" ", *"".join(words_of("en")), "<blank>"}
    task: Any = load_task(made.task, "demo")(made, tokens)
    splits = task.splits()
    assert {name: (len(one.split.clips), one.split.dropped) for name, one in splits.items()} == {
        "train": (12, {}), "dev": (1, {}), "test": (1, {}),
    }  # fmt: skip


def test_every_language_here_can_be_spoken() -> None:
    assert {"en", "ru", "de", "fr", "es", "it", "nl", "pl", "uk", "pt"} <= set(LANGUAGES)
    for lang in LANGUAGES:
        check_language(lang)
        words = words_of(lang)
        assert len(words) == 34
        assert all(word.isalpha() and word == word.lower() for word in words)


@pytest.mark.long
def test_words_of_ones_own_make_another_language() -> None:
    Path("welsh.txt").write_text("Afon mynydd\ntŷ\n")
    demo_data("demo", ["cy"], n=3, words={"cy": "welsh.txt"})
    assert Path("demo/cy/alphabet.txt").read_text() == " \n" + "".join(f"{c}\n" for c in sorted(set("afonmynyddtŷ")))
    assert {word for row in rows("demo/cy/train.csv") for word in row["transcript"].split()} <= {"afon", "mynydd", "tŷ"}
    Path("odd.txt").write_text("don't one,two #three\n")
    demo_data("odd", ["en"], n=12, words={"en": "odd.txt"})
    assert "," in "".join(clip.text for clip in read_manifests(["odd/en/train.csv"]))
    assert "#" in read_vocabulary("odd/en/alphabet.txt").tokens


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"langs": ["zz"]}, "espeak-ng does not speak the language zz"),
        ({"langs": ["cy"]}, "no bundled word list for the language cy. Give a word list with --words cy=FILE"),
        ({"langs": []}, "no language is given"),
        ({"n": 0}, "0 utterances cannot be made"),
        ({"words": {"ru": "x"}}, "--words has a list for the language ru, but --lang does not include this language"),
        ({"words": {"en": "missing.txt"}}, "the word list missing.txt cannot be read"),
        ({"words": {"en": "latin1.txt"}}, "latin1.txt cannot be read: it is not UTF-8"),
        ({"words": {"en": "one.txt"}}, "one.txt contains 1 word"),
        ({"words": {"en": "mute.txt"}}, "espeak-ng makes no sound for"),
    ],
)
def test_what_cannot_be_made_is_said_and_leaves_nothing(options: dict[str, Any], why: str) -> None:
    Path("latin1.txt").write_bytes("schön".encode("latin-1"))
    Path("one.txt").write_text("word\n")
    Path("mute.txt").write_text(", . ; :\n")
    before = set(os.listdir())
    with pytest.raises(cs.ConfigError) as caught:
        demo_data("demo", **options)
    assert why in str(caught.value)
    assert set(os.listdir()) == before


def test_a_folder_that_exists_needs_force_and_keeps_what_is_not_ours() -> None:
    demo_data("demo", ["ru"], n=3)
    Path("demo/notes.txt").write_text("mine")
    with pytest.raises(cs.OutputError, match="the folder demo is not empty. Use force=True"):
        demo_data("demo", ["en"], n=3)
    demo_data("demo", ["en"], n=3, force=True)
    demo_data("demo", ["en"], n=2, force=True)
    assert Path("demo/notes.txt").read_text() == "mine"
    assert len(list(Path("demo/en/wav").iterdir())) == 2 + 1 + 1
    assert Path("demo/ru.yaml").exists()
    assert not [name for name in os.listdir() if name != "demo"]


def test_a_folder_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    for folder, why in (("file", "file is not a folder"), ("no/demo", "does not exist")):
        with pytest.raises(cs.OutputError, match=why):
            demo_data(folder, n=1)
    Path("empty").mkdir()
    assert demo_data("empty", n=1).clips["train"] == 1


@pytest.mark.parametrize("package", ["espeakng_loader", "soxr"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(cs.ConfigError, match=r"pip install 'ckptsurgeon\[train\]'"):
        demo_data("demo", n=1)
    assert not os.listdir()
