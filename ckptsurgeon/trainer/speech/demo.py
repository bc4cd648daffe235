"""Makes a folder of transcribed speech for training: words, sounds, lists, an alphabet and a configuration."""

from __future__ import annotations

import csv
import io
import os
import random
import wave
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, OutputError
from ...storage.small_files import read_file
from ...storage.write.folders import staged_folder
from ...storage.write.output_paths import check_is_path, check_parent, output_lock
from ...util.did_you_mean import did_you_mean
from ...util.text import count, escape
from ...vocabulary.coqui import alphabet_text
from ..config.imports import require_package
from .espeak import Utterance, check_language, speak

__all__ = ["LANGUAGES", "Demo", "alphabet_of", "configuration", "demo_data", "read_words", "words_of"]

# The words of the utterances: for each language a file in ``words``, or a file of the user.

_FOLDER = Path(__file__).parent / "words"
LANGUAGES = tuple(sorted(path.stem for path in _FOLDER.glob("*.txt")))
"""The languages with a bundled word list; espeak-ng speaks about a hundred others, too."""


def words_of(lang: str) -> tuple[str, ...]:
    """Return the bundled words of a language; raises ConfigError if the language has no bundled word list."""
    if lang not in LANGUAGES:
        raise ConfigError(
            f"there is no bundled word list for the language {escape(lang)}.",
            hint=f"Give a word list with --words {escape(lang)}=FILE, or use one of {', '.join(LANGUAGES)}.",
        )
    return read_words(_FOLDER / f"{lang}.txt")


def read_words(path: str | Path) -> tuple[str, ...]:
    """Return the words of a text file, in lower case and without duplicates.

    Raises ConfigError if the file cannot be read, or if it contains fewer than two words.
    """
    shown = escape(str(path))
    try:
        text = read_file(path).decode("utf-8-sig")
    except OSError as error:
        said = f"the word list {shown} cannot be read: {error.strerror}."
        raise ConfigError(said, hint=did_you_mean(str(path))) from error
    except UnicodeDecodeError:
        raise ConfigError(f"the word list {shown} cannot be read: it is not UTF-8.") from None
    words = tuple(dict.fromkeys(text.lower().split()))
    odd = next((word for word in words if not word.isprintable()), None)
    if odd is not None:
        raise ConfigError(f"the word list {shown} contains {escape(odd)}, which has characters that are not printable.")
    if len(words) < 2:
        raise ConfigError(
            f"the word list {shown} contains {count(len(words), 'word')}, but at least two are needed.",
            hint="Give a longer list; the bundled lists have about 34 words.",
        )
    return words


def alphabet_of(words: tuple[str, ...]) -> str:
    """Return the content of a Coqui STT ``alphabet.txt``: the space, then the letters of ``words``."""
    return alphabet_text([" ", *sorted(set("".join(words)))])


_TEMPLATE = """\
# A speech recogniser with Coqui STT's architecture for the utterances in {lang}/. Train: ckpt train {lang}.yaml
model:
  name: deepspeech
  alphabet: {lang}/alphabet.txt
  n_input: 120        # 40 log-mel energies of each of 3 frames
  n_context: 1        # with the 3 frames before and the 3 after
  n_hidden: 128
  dropout: 0
train:
  task: ctc
  data:
    train: {lang}/train.csv
    dev: {lang}/dev.csv
    test: {lang}/test.csv
    tokens: {lang}/alphabet.txt
    cache: {lang}/features
  features: {{kind: log_mel, size: 40, stack: 3}}
  steps: 500
  batch_size: 32
  lr: 4e-3           # at 8e-3, all outputs may stay blank
  warmup: 30
  weight_decay: 1e-4
  clip: 5
  evaluate_every: 100
  save_every: 100
"""


def configuration(lang: str) -> str:
    """Return a configuration (YAML) that trains on a language's demo data.

    The paths in it are relative to the folder of the demo data, in which each language has a folder.
    """
    return _TEMPLATE.format(lang=lang)


RATE = 16_000
VOICES = ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4")
SPEEDS, PITCHES = (140, 200), (30, 70)
MOST_WORDS = 4
DIALECT = {"en": "en-us"}
"""The voice of espeak-ng that is used for a language code without a regional variety."""
TRIES = 50
"""The maximum number of new draws for a text that an earlier split has. With few words, all texts may be in use."""


@dataclass(frozen=True)
class Demo:
    """The demo data: the number of utterances of each split, their total length in seconds, and the configurations."""

    folder: str
    languages: tuple[str, ...]
    clips: Mapping[str, int]
    seconds: float
    configs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict, for ``--json``."""
        return {"kind": "ckpt.demo-data", "version": 1, **asdict(self)}


def demo_data(
    folder: str | os.PathLike[str],
    langs: Sequence[str] = ("en",),
    *,
    n: int = 1600,
    seed: int = 0,
    words: Mapping[str, str] | None = None,
    force: bool = False,
    wait: float | None = None,
) -> Demo:
    """Make ``n`` utterances of each language for training, and a tenth as many each for dev and test.

    On one machine, the same arguments make the same bytes. ``words`` maps a language to the path of a word list; other
    languages use their bundled lists. Raises ConfigError if espeak-ng does not speak a language, or if a package is
    missing. Raises OutputError if the folder is not empty and ``force`` is false, if the folder cannot be written, or
    if another run writes to it for longer than ``wait`` seconds.
    """
    check_is_path(os.fspath(folder))
    path = os.path.normpath(os.fspath(folder))
    spoken = _lists(langs, words or {}, n)
    _check_place(path, force=force)
    replaced = [name for lang in spoken for name in (lang, f"{lang}.yaml")]
    with output_lock(path, wait):
        _check_place(path, force=force)
        with staged_folder(path, 0, stale=replaced) as staged:
            seconds = _spoken(Path(staged.path), spoken, n=n, seed=seed)
            os.sync()  # one sync for all files: a sync for each of thousands would take longer than making them
    clips = {split: number * len(spoken) for split, number in _sizes(n).items()}
    configs = tuple(os.path.join(path, f"{lang}.yaml") for lang in spoken)
    return Demo(path, tuple(spoken), clips, round(seconds, 3), configs)


def _spoken(root: Path, spoken: Mapping[str, tuple[str, ...]], *, n: int, seed: int) -> float:
    """Write the demo data of all languages into ``root``; return the total length of the utterances in seconds.

    ``spoken`` maps each language to its words, ``n`` is the number of utterances for training.
    """
    seconds = 0.0
    for lang, vocabulary in spoken.items():
        seconds += _language(root / lang, lang, vocabulary, n=n, seed=seed)
        (root / f"{lang}.yaml").write_text(configuration(lang), encoding="utf-8")
    return seconds


def _lists(langs: Sequence[str], words: Mapping[str, str], n: int) -> dict[str, tuple[str, ...]]:
    """Return the words of each language, from its file in ``words`` or else from the bundled list.

    Raises ConfigError as ``demo_data`` does.
    """
    if not langs:
        raise ConfigError("no language is given.", hint="Name a language with --lang, as in --lang en.")
    if n < 1:
        raise ConfigError(f"{n} utterances cannot be made.", hint="Pass a number of 1 or more.")
    stray = next((lang for lang in words if lang not in langs), None)
    if stray is not None:
        raise ConfigError(
            f"--words has a list for the language {escape(stray)}, but --lang does not include this language.",
            hint=f"Add --lang {escape(stray)}.",
        )
    for lang in langs:
        check_language(DIALECT.get(lang, lang))
    require_package("soxr")
    return {lang: read_words(words[lang]) if lang in words else words_of(lang) for lang in langs}


def _check_place(path: str, *, force: bool) -> None:
    if os.path.lexists(path) and not os.path.isdir(path):
        raise OutputError(f"{escape(path)} is not a folder.", hint="Name a folder.")
    if os.path.isdir(path) and os.listdir(path) and not force:
        raise OutputError(f"the folder {escape(path)} is not empty.", hint="Use --force to replace the data in it.")
    check_parent(path)


def _sizes(n: int) -> dict[str, int]:
    return {"train": n, "dev": max(n // 10, 1), "test": max(n // 10, 1)}


def _language(folder: Path, lang: str, words: tuple[str, ...], *, n: int, seed: int) -> float:
    """Write the sounds, CSV files and alphabet of one language; return the total length of the sounds in seconds."""
    drawn = _draw(words, DIALECT.get(lang, lang), _sizes(n), random.Random(f"{seed} {lang}"))
    (folder / "wav").mkdir(parents=True)
    waves = _resampled([one for utterances in drawn.values() for one in utterances])
    seconds = 0.0
    for split, utterances in drawn.items():
        rows: list[tuple[str, int | str, str]] = [("wav_filename", "wav_filesize", "transcript")]
        for number, one in enumerate(utterances):
            name, (sound, length) = f"wav/{split}-{number:05}.wav", next(waves)
            (folder / name).write_bytes(sound)
            rows.append((name, len(sound), one.text))
            seconds += length
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows(rows)
    waves.close()
    (folder / "alphabet.txt").write_text(alphabet_of(words), encoding="utf-8")
    return seconds


def _draw(
    words: tuple[str, ...], voice: str, sizes: Mapping[str, int], chance: random.Random
) -> dict[str, list[Utterance]]:
    """Return ``sizes[split]`` random utterances for each split, to be spoken by variants of espeak-ng's ``voice``.

    ``chance`` is the random generator. If there are enough words, no text of a split is in an earlier split.
    """
    drawn: dict[str, list[Utterance]] = {}
    taken: set[str] = set()
    for split, size in sizes.items():
        texts = [_text(words, taken, chance) for _ in range(size)]
        taken.update(texts)
        drawn[split] = [
            Utterance(
                text, f"{voice}+{chance.choice(VOICES)}", chance.randint(*SPEEDS), chance.randint(*PITCHES)
            )
            for text in texts
        ]  # fmt: skip
    return drawn


def _text(words: tuple[str, ...], taken: set[str], chance: random.Random) -> str:
    text = ""
    for _ in range(TRIES):
        text = " ".join(chance.choices(words, k=chance.randint(1, MOST_WORDS)))
        if text not in taken:
            break
    return text


def _resampled(utterances: Sequence[Utterance]) -> Generator[tuple[bytes, float]]:
    """Yield each utterance as a WAV file of 16 kHz and 16 bits, with its length in seconds.

    Raises ConfigError if espeak-ng makes no sound for a text.
    """
    import numpy as np

    soxr = require_package("soxr")
    for one, (rate, data) in zip(utterances, speak(utterances), strict=True):
        samples = soxr.resample(np.frombuffer(data, "<i2").astype(np.float32), rate, RATE)
        if not samples.any():
            raise ConfigError(
                f"espeak-ng makes no sound for {escape(one.text)!r}.", hint="Remove these words from the word list."
            )
        yield _wav(np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()), len(samples) / RATE


def _wav(samples: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(samples)
    return file.getvalue()
