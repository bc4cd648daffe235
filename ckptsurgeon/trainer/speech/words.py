"""The words of the utterances: a file in ``words`` for each language, or the user's."""

from __future__ import annotations

from pathlib import Path

from ...errors import ConfigError
from ...storage.small_files import read_file
from ...util.did_you_mean import did_you_mean
from ...util.text import count, escape
from ...vocabulary.coqui import alphabet_text

__all__ = ["LANGUAGES", "alphabet_of", "read_words", "words_of"]

_FOLDER = Path(__file__).parent / "words"
LANGUAGES = tuple(sorted(path.stem for path in _FOLDER.glob("*.txt")))
"""Languages with a bundled list of words; espeak-ng speaks a hundred more."""


def words_of(lang: str) -> tuple[str, ...]:
    """Return the words of a language; raises ConfigError if there is no bundled list."""
    if lang not in LANGUAGES:
        raise ConfigError(
            f"there are no words of the language {escape(lang)} here.",
            hint=f"Give some with --words {escape(lang)}=FILE, or use one of {', '.join(LANGUAGES)}.",
        )
    return read_words(_FOLDER / f"{lang}.txt")


def read_words(path: str | Path) -> tuple[str, ...]:
    """Return the words of a text file, in lower case, each once; raises ConfigError."""
    shown = escape(str(path))
    try:
        text = read_file(path).decode("utf-8-sig")
    except OSError as error:
        said = f"the words {shown} cannot be read: {error.strerror}."
        raise ConfigError(said, hint=did_you_mean(str(path))) from error
    except UnicodeDecodeError:
        raise ConfigError(f"the words {shown} cannot be read: it is not UTF-8.") from None
    words = tuple(dict.fromkeys(text.lower().split()))
    odd = next((word for word in words if not word.isprintable()), None)
    if odd is not None:
        raise ConfigError(f"{shown}: {escape(odd)} is not a word.")
    if len(words) < 2:
        raise ConfigError(f"{shown} holds {count(len(words), 'word')}.", hint="It takes two or more, 34 do well.")
    return words


def alphabet_of(words: tuple[str, ...]) -> str:
    """Return the letters of words as an ``alphabet.txt`` of Coqui STT, the space first."""
    return alphabet_text([" ", *sorted(set("".join(words)))])
