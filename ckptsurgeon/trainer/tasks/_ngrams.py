r"""An n-gram language model with backoff, read from a file in the ARPA format.

http://www.speech.sri.com/projects/srilm/manpages/ngram-format.5.html. KenLM's ``lmplz``, SRILM and others write it::

    \data\
    ngram 1=4
    ngram 2=2

    \1-grams:
    -0.9    <s>     -0.3
    …

Each line has the base-10 logarithm of a probability, the words, and the backoff weight of these words as a context.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from ...errors import ConfigError, FormatError
from ...storage.small_files import open_file
from ...util.did_you_mean import did_you_mean
from ...util.text import escape

if TYPE_CHECKING:
    import numpy as np

    Integers = np.ndarray[Any, np.dtype[np.int64]]
    Floats = np.ndarray[Any, np.dtype[np.float32]]

__all__ = ["NGrams", "State", "read_arpa"]

BEGIN, END, UNKNOWN = "<s>", "</s>", ("<unk>", "<UNK>")
NOT_THERE = -100.0
"""The base-10 log-probability of an unknown word if the file has no ``<unk>``; KenLM uses the same value."""
LINE = 1 << 16
"""The longest line that is read, in bytes."""
BINARY = b"mmap lm http://kheafield.com/code"
"""The first bytes of a binary file of KenLM."""
_COUNT = re.compile(rb"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})\Z")

State = tuple[int, ...]
"""The context of a word: item n - 1 is the index of the n-gram that consists of the last n words, or -1 for none."""


@dataclass(frozen=True)
class _Order:
    """All n-grams of one length, each with the base-10 logarithms of its probability and its backoff weight.

    The n-grams are sorted by ``keys``. The key of a unigram is the index of its word. The key of a longer n-gram
    combines two indices: the index of the n-gram without its last word, and the index of the last word.
    """

    keys: Integers
    log10: Floats
    backoff: Floats

    def find(self, key: int) -> int:
        """Return the index of the n-gram with this key; -1 if there is none."""
        place = int(self.keys.searchsorted(key))
        return place if place < len(self.keys) and self.keys[place] == key else -1


class NGrams:
    """A language model: the probability of a word after other words, https://doi.org/10.1109/TASSP.1987.1165125.

    If the file has no n-gram that consists of the previous words and the next word, the earliest previous word is left
    out: the result is the probability after the remaining previous words, times the backoff weight of all previous
    words.
    """

    def __init__(self, path: str, words: dict[str, int], orders: list[_Order]) -> None:
        self.path, self._words, self._orders = path, words, orders
        self._unknown = next((words[one] for one in UNKNOWN if one in words), -1)

    @property
    def order(self) -> int:
        """The number of words in the longest n-grams."""
        return len(self._orders)

    @property
    def words(self) -> Iterator[str]:
        """The words that the model knows, without the marks for begin, end and unknown words."""
        return (one for one in self._words if one not in (BEGIN, END, *UNKNOWN))

    def begin(self) -> State:
        """Return the state before the first word of a sentence."""
        return (self._words[BEGIN],) if BEGIN in self._words and self.order > 1 else ()

    def next(self, state: State, word: str) -> tuple[float, State]:
        """Return the natural logarithm of a word's probability after a state (the last words), and the next state."""
        number = self._words.get(word, self._unknown)
        if number < 0:
            return (NOT_THERE + self._backoff(state)) * math.log(10), ()
        found = [number, *(self._longer(length, context, number) for length, context in enumerate(state, 1))]
        longest = max(length for length, one in enumerate(found) if one >= 0)
        log10 = float(self._orders[longest].log10[found[longest]]) + self._backoff(state[longest:], longest)
        return log10 * math.log(10), tuple(found[: self.order - 1])

    def end(self, state: State) -> float:
        """Return the natural logarithm of the probability that a sentence ends after a state.

        Returns 0 if the model has no mark for the end of a sentence.
        """
        return self.next(state, END)[0] if END in self._words else 0.0

    def _longer(self, length: int, context: int, number: int) -> int:
        """Return the index of the n-gram that is a context plus one word; -1 if there is none.

        ``context`` is the index of the context's n-gram, of ``length`` words; ``number`` is the index of the word.
        """
        return self._orders[length].find(context * len(self._words) + number) if context >= 0 else -1

    def _backoff(self, contexts: State, shorter: int = 0) -> float:
        """Return the sum of the backoff weights (base-10 logarithms) of ``contexts``, which are indices of n-grams.

        The first n-gram has ``shorter`` + 1 words, each further n-gram has one word more than the n-gram before it.
        """
        weights = (self._orders[length].backoff[one] for length, one in enumerate(contexts, shorter) if one >= 0)
        return float(sum(weights))


def read_arpa(path: str) -> NGrams:
    """Return the language model in an ARPA file, which may be compressed by gzip.

    Raises ConfigError if it cannot be opened, and FormatError, with the line, if it is not in the ARPA format.
    """
    try:
        with open_file(path) as file:
            head = file.read(len(BINARY))
            file.seek(0)
            if head == BINARY:
                raise FormatError(
                    f"{escape(path)} is a binary file of KenLM, which ckpt cannot read.",
                    hint="Give the .arpa file from which it was built.",
                )
            plain: Any = gzip.GzipFile(fileobj=file) if head[:2] == b"\x1f\x8b" else file
            return _Reader(path, plain).read()
    except FileNotFoundError:
        raise ConfigError(f"{escape(path)} does not exist.", hint=did_you_mean(path)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{escape(path)} cannot be read: {getattr(error, 'strerror', '') or error}.") from error


class _Reader:
    """Reads an ARPA file line by line; error messages give the number of the line."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self._path, self._file, self._line = path, file, 0
        self._is_begun = False
        self._words: dict[str, int] = {}
        self._orders: list[_Order] = []

    def read(self) -> NGrams:
        """Return the language model; raises FormatError."""
        while self._next() != b"\\data\\":  # SRILM allows comments before it
            pass
        self._is_begun = True
        counts, line = self._counts()
        for size, number in enumerate(counts, 1):
            if line != f"\\{size}-grams:".encode():
                raise self._wrong(f"\\{size}-grams: is missing")
            line = self._section(size)
            found = len(self._orders[-1].log10)
            if found != number:
                raise self._wrong(f"there are {found} {size}-grams, but the header says {number}")
        if line != b"\\end\\":
            raise self._wrong("\\end\\ is missing")
        return NGrams(self._path, self._words, self._orders)

    def _counts(self) -> tuple[list[int], bytes]:
        """Read the header of the file; return the number of n-grams of each length, and the line after the header.

        Raises FormatError if a number is missing.
        """
        counts: list[int] = []
        line = self._next()
        while found := _COUNT.match(line):
            if int(found[1]) != len(counts) + 1:
                raise self._wrong(f"ngram {len(counts) + 1} is missing")
            counts.append(int(found[2]))
            line = self._next()
        if not counts:
            raise self._wrong("the header has no numbers of n-grams (ngram 1=…)")
        return counts, line

    def _section(self, size: int) -> bytes:
        """Read and store the n-grams of ``size`` words; return the line after these n-grams.

        Raises FormatError for a line that is not an n-gram, and if an n-gram occurs twice.
        """
        import numpy as np

        log10, backoff, numbers = array("f"), array("f"), array("q")
        while not (line := self._next()).startswith(b"\\"):
            fields = line.split()
            if len(fields) not in (size + 1, size + 2):
                raise self._wrong(f"the line must have a probability, {size} words and, optionally, a backoff weight")
            log10.append(self._number(fields[0], most=0.0))
            backoff.append(self._number(fields[size + 1]) if len(fields) > size + 1 else 0.0)
            numbers.extend(self._word(word, size) for word in fields[1 : size + 1])
        keys = self._keys(np.array(numbers, np.int64).reshape(-1, size))
        if len(keys) != len(np.unique(keys)):
            raise self._wrong(f"one of the {size}-grams above this line occurs twice")
        order = np.argsort(keys)
        self._orders.append(_Order(keys[order], np.array(log10)[order], np.array(backoff)[order]))
        return line

    def _number(self, field: bytes, most: float = math.inf) -> float:
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if not value <= most or value == math.inf:
            what = "a backoff weight" if most else "the logarithm of a probability"
            raise self._wrong(f"{field.decode(errors='replace')} is not {what}")
        return value

    def _word(self, field: bytes, size: int) -> int:
        """Return the index of a word in the unigrams, which come first in the file; add a word of a unigram.

        Raises FormatError if a word of a longer n-gram is not in the unigrams, or if the word is not UTF-8.
        """
        try:
            word = field.decode()
        except UnicodeDecodeError:
            raise self._wrong("the line is not UTF-8") from None
        number = self._words.setdefault(word, len(self._words)) if size == 1 else self._words.get(word)
        if number is None:
            raise self._wrong(f"the word {word} is not in the 1-grams")
        return number

    def _keys(self, numbers: Integers) -> Integers:
        """Return the key of each n-gram; ``numbers`` (n, size) are the indices of its words."""
        size = numbers.shape[1]
        found = numbers[:, 0]
        for place in range(1, size):
            if place > 1:
                found = self._numbers(place, found, size)
            found = found * len(self._words) + numbers[:, place]
        return found

    def _numbers(self, size: int, keys: Integers, longer: int) -> Integers:
        """Return the index of each n-gram of ``size`` words whose key is in ``keys``.

        Each of these n-grams is the beginning of an n-gram of ``longer`` words. Raises FormatError if an n-gram of
        ``size`` words is not in the file.
        """
        known = self._orders[size - 1].keys
        places = known.searchsorted(keys)
        if len(keys) and (not len(known) or (known[places.clip(max=len(known) - 1)] != keys).any()):
            raise self._wrong(f"a {longer}-gram above this line begins with {size} words that are not a {size}-gram")
        return places

    def _next(self) -> bytes:
        """Return the next line that is not empty; raises FormatError at the end of the file."""
        while line := self._file.readline(LINE):
            self._line += 1
            if len(line) == LINE:
                raise self._wrong("the line is too long")
            if text := line.strip():
                return text
        if not self._is_begun:
            raise FormatError(f"{escape(self._path)} is not a language model in the ARPA format.")
        raise self._wrong("the file ends before \\end\\")

    def _wrong(self, why: str) -> FormatError:
        return FormatError(f"{escape(self._path)}, line {self._line}: {escape(why)}.")
