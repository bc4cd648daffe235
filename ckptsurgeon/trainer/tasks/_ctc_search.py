"""A beam search for the text that is most likely by CTC, alone or together with an n-gram language model.

https://arxiv.org/abs/1408.2873, algorithm 1: the beam contains texts, and the probability of a text is the sum over all
of its alignments with the frames so far. With a language model, the score of a text also contains ``lm_weight`` times
the natural log-probability of its words, and ``word_bonus`` for each word. A word is scored when it ends.

If the language model does not know a word, the word gets the log-probability of ``<unk>`` plus ``UNKNOWN``. This is
because ``<unk>`` has the probability of all unknown words together, which is far too high for a single word.

These are the scores of pyctcdecode (https://github.com/kensho-technologies/pyctcdecode), which is not used because it
needs numpy 1. ``tests/trainer/test_ctc_search.py`` compares the texts with those of pyctcdecode 0.5.0.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError
from ...util.text import escape
from ..config.settings import Settings
from ..data.labels import Labels, UnknownLetterError
from ._ngrams import NGrams, State, read_arpa

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Numbers = np.ndarray[Any, np.dtype[np.float64]]
    Places = np.ndarray[Any, np.dtype[np.int64]]

__all__ = ["BEAM", "CTCSearch", "WordScores", "ctc_search"]

BEAM = 100
"""The beam width, if ``train.beam`` is not set."""
UNKNOWN = -10 * math.log(10)
"""Added to the log-probability of ``<unk>`` for a word that the language model does not know."""
PENDING, LETTERS = -10.0, 6
"""Added to the score of a text while no word of the language model begins with its last word.

If that word has more than LETTERS letters, PENDING is multiplied by its length and divided by LETTERS: so long a word
is often several words. When the word ends, ``UNKNOWN`` takes its place.
"""
CANDIDATES = 40
"""Only this many tokens, the most likely at a frame, are tried as the next token of a text."""


class WordScores:
    """Scores the words of a text: ``weight`` times the log-probability by a language model, and ``bonus`` per word.

    Words are separated by spaces. If the token list has neither a space nor tokens that begin with ``▁``, each token is
    a word, as in a language model over Chinese characters or phonemes.
    """

    def __init__(self, ngrams: NGrams, labels: Labels, *, weight: float, bonus: float) -> None:
        self._ngrams, self._labels, self._weight, self._bonus = ngrams, labels, weight, bonus
        self._spaces = labels.spaces
        every = range(len(labels)) if not labels.spaces and not labels.word_starts else ()
        self.breaks = labels.spaces | labels.word_starts | frozenset(every)
        """The tokens that end the word before them: a space, or the first token of the next word."""
        self._known = sorted(ngrams.words)
        if not any(map(self._can_be_spelled, self._known)):
            raise ConfigError(
                f"no word of {escape(ngrams.path)} can be written with the token list.",
                hint="Use a language model whose words have the same case as the token list (TRAIN or train).",
            )

    def _can_be_spelled(self, word: str) -> bool:
        try:
            return bool(self._labels.encode(word))
        except UnknownLetterError:
            return False

    def root(self) -> _Words:
        """Return the _Words of the empty text, from which a search begins."""
        return self._words(0.0, self._ngrams.begin(), ())

    def extend(self, words: _Words, token: int) -> _Words:
        """Return the _Words of a text that consists of the text of ``words`` and one more token."""
        if token not in self.breaks:
            return self._words(words.score, words.state, (*words.open, token))
        gain, after = self.ended(words)
        return self._words(words.score + gain, after, () if token in self._spaces else (token,))

    def ended(self, words: _Words) -> tuple[float, State]:
        """Return the score of the last word when it ends, and the language model's state after this word."""
        if words.ending is None:
            log_prob, after = self._ngrams.next(words.state, words.text)
            unknown = 0.0 if self._first_known(words.text) == words.text else UNKNOWN
            words.ending = self._weight * (log_prob + unknown) + self._bonus, after
        return words.ending

    def whole(self, words: _Words) -> float:
        """Return the score of ``words`` as a complete text: it includes the last word and the end of the sentence."""
        gain, after = self.ended(words)
        return words.score + gain + self._weight * self._ngrams.end(after)

    def _words(self, score: float, state: State, tokens: tuple[int, ...]) -> _Words:
        text = self._labels.decode(tokens).strip() if tokens else ""
        if not text:
            return _Words(score, state, tokens, text, 0.0, (0.0, state))
        beginning = text.rstrip("\ufffd")  # no incomplete UTF-8 letter
        is_begun = self._first_known(beginning).startswith(beginning)
        return _Words(score, state, tokens, text, 0.0 if is_begun else PENDING * max(1.0, len(text) / LETTERS))

    def _first_known(self, text: str) -> str:
        """Return the first word of the language model, alphabetically, from ``text`` on; '' if there is none."""
        place = bisect_left(self._known, text)
        return self._known[place] if place < len(self._known) else ""


@dataclass(slots=True)
class _Words:
    """The score of a text's complete words, and the text's last word, which may be incomplete.

    ``score`` is the score of the complete words, and ``state`` the language model's state after them. ``open`` and
    ``text`` are the last word, as tokens and as letters. ``pending`` is a penalty if no word of the language model
    begins with the last word, else 0. ``ending`` is the result of ``WordScores.ended``: the score of the last word, and
    the state after it; None if they have not been computed yet.
    """

    score: float
    state: State
    open: tuple[int, ...]
    text: str
    pending: float
    ending: tuple[float, State] | None = None


NO_WORDS = _Words(0.0, (), (), "", 0.0, (0.0, ()))
"""The _Words of every text if there is no language model."""


class _Prefix:
    """A sequence of tokens with which a text may begin: its last token, the sequence before that, and its words.

    ``parent`` is the sequence without its last token. ``children`` maps a token to the sequence that consists of
    this one and the token. So there is only one object for each sequence.
    """

    __slots__ = ("children", "parent", "token", "words")

    def __init__(self, parent: _Prefix | None, token: int, words: _Words) -> None:
        self.parent, self.token, self.words = parent, token, words
        self.children: dict[int, _Prefix] = {}

    def tokens(self) -> list[int]:
        found, one = [], self
        while one.parent is not None:
            found.append(one.token)
            one = one.parent
        return found[::-1]


class _Beam(NamedTuple):
    """The best prefixes, and the log-probabilities (beam,) of their alignments with the frames so far.

    ``blank`` is for alignments that end in a blank, ``label`` for alignments that end in a label.
    """

    prefixes: list[_Prefix]
    blank: Numbers
    label: Numbers


class CTCSearch:
    """Searches for the most likely text of each clip, and keeps the best ``beam`` texts after each frame."""

    def __init__(self, blank: int, beam: int, scores: WordScores | None = None) -> None:
        self._blank, self._width, self._scores = blank, beam, scores

    def read(self, log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
        """Return the tokens of each clip's most likely text.

        ``log_probs`` (clips, frames, tokens) are the outputs of CTC, ``lengths`` (clips,) the numbers of frames without
        padding.
        """
        frames = log_probs.detach().double().cpu().numpy()
        return [self._clip(one[:length]) for one, length in zip(frames, lengths.tolist(), strict=True)]

    def _clip(self, frames: Numbers) -> list[int]:
        import numpy as np

        root = _Prefix(None, self._blank, self._scores.root() if self._scores is not None else NO_WORDS)
        beam = _Beam([root], np.zeros(1), np.full(1, -np.inf))
        for frame in frames:
            beam = self._step(beam, frame)
        whole = self._scores.whole if self._scores is not None else (lambda words: 0.0)
        scores = np.logaddexp(beam.blank, beam.label) + [whole(one.words) for one in beam.prefixes]
        return beam.prefixes[int(scores.argmax())].tokens()

    def _step(self, beam: _Beam, frame: Numbers) -> _Beam:
        """Return the best prefixes after one more ``frame`` (tokens,) of log-probabilities.

        They are chosen from the prefixes of ``beam``, and from these prefixes with one more token.
        """
        import numpy as np

        letters, last = self._letters(frame), np.array([one.token for one in beam.prefixes])
        either = np.logaddexp(beam.blank, beam.label)
        begun = np.where(letters == last[:, None], beam.blank[:, None], either[:, None])  # CTC merges equal neighbours
        grown = begun + frame[letters]
        blank, label = either + frame[self._blank], beam.label + frame[last]
        self._join(beam, frame, letters, label, grown)
        kept = np.logaddexp(blank, label) + [one.words.score + one.words.pending for one in beam.prefixes]
        scores = np.concatenate([kept, (grown + self._gains(beam, letters)).ravel()])
        order = np.argsort(-scores, kind="stable")
        places = self._best(beam, letters, scores, order[np.isfinite(scores[order])])
        return self._chosen(beam, _Beam([], blank, label), letters, grown, places)

    def _best(self, beam: _Beam, letters: Places, scores: Numbers, order: Places) -> Places:
        """Return the indices of the best texts, numbered as in ``_chosen``.

        ``scores`` has the score of each text. For a prefix plus one token, the penalty for a last word that this token
        makes unknown is still missing; it is computed here, text by text, in the ``order`` of the scores, until no
        further text can be among the best.
        """
        import numpy as np

        if self._scores is None:
            return order[: self._width]
        size, best = len(beam.prefixes), list[tuple[float, int]]()
        for place in order.tolist():
            score = float(scores[place])
            if len(best) == self._width and score <= best[0][0]:
                break
            if place >= size:
                row, column = divmod(place - size, len(letters))
                parent, token = beam.prefixes[row], int(letters[column])
                before = 0.0 if token in self._scores.breaks else parent.words.pending
                score += self._child(parent, token).words.pending - before
            (heappush if len(best) < self._width else heappushpop)(best, (score, -place))
        return np.array([-place for _, place in best], np.int64)

    def _letters(self, frame: Numbers) -> Places:
        """Return the indices of the most likely tokens of a ``frame`` (tokens,), without the blank."""
        import numpy as np

        order: Places = np.argsort(-frame, kind="stable")
        letters: Places = order[order != self._blank]
        return letters[:CANDIDATES]

    def _join(self, beam: _Beam, frame: Numbers, letters: Places, label: Numbers, grown: Numbers) -> None:
        """Add the probability of a text in ``grown`` to the same text in the beam, in place.

        ``letters`` are the indices of the next tokens that are tried. ``label`` (beam,) has the log-probabilities of
        the prefixes in the beam. ``grown`` (beam, letters) has the log-probabilities of each prefix plus one of these
        tokens. If the beam has both a prefix and its parent, the parent plus one token is the same text as the prefix.
        The probability of this text in ``grown`` is added to ``label``, and then set to 0.
        """
        import numpy as np

        rows = {id(one): row for row, one in enumerate(beam.prefixes)}
        columns = {token: column for column, token in enumerate(letters.tolist())}
        for row, one in enumerate(beam.prefixes):
            parent = rows.get(id(one.parent))
            if parent is None or one.parent is None:
                continue
            begun = beam.blank[parent]
            if one.token != one.parent.token:
                begun = np.logaddexp(begun, beam.label[parent])
            label[row] = np.logaddexp(label[row], begun + frame[one.token])
            if one.token in columns:
                grown[parent, columns[one.token]] = -np.inf

    def _gains(self, beam: _Beam, letters: Places) -> Any:
        """Return the scores (beam, letters) of the words in each text that is a prefix of the beam plus one token.

        ``letters`` are the indices of these tokens. If a token makes the last word unknown, the penalty for this is not
        included.
        """
        import numpy as np

        if self._scores is None:
            return 0.0
        ends = np.array([token in self._scores.breaks for token in letters.tolist()])
        going = np.array([one.words.score + one.words.pending for one in beam.prefixes])
        ended = np.array([one.words.score + self._scores.ended(one.words)[0] for one in beam.prefixes])
        return np.where(ends, ended[:, None], going[:, None])

    def _chosen(self, beam: _Beam, old: _Beam, letters: Places, grown: Numbers, places: Places) -> _Beam:
        """Return the beam of the texts with the indices ``places``.

        ``beam`` has n prefixes, ``letters`` has m tokens. An index below n is a prefix of ``beam``; ``old`` has its new
        log-probabilities. The index n + i * m + j is prefix i plus token j; ``grown`` (n, m) has its log-probability.
        """
        import numpy as np

        size, prefixes = len(beam.prefixes), []
        blank, label = np.full(len(places), -np.inf), np.empty(len(places))
        for at, place in enumerate(places.tolist()):
            if place < size:
                prefixes.append(beam.prefixes[place])
                blank[at], label[at] = old.blank[place], old.label[place]
            else:
                row, column = divmod(place - size, len(letters))
                prefixes.append(self._child(beam.prefixes[row], int(letters[column])))
                label[at] = grown[row, column]
        return _Beam(prefixes, blank, label)

    def _child(self, parent: _Prefix, token: int) -> _Prefix:
        """Return the prefix that is ``parent`` plus one token; equal arguments give the same object."""
        found = parent.children.get(token)
        if found is None:
            words = self._scores.extend(parent.words, token) if self._scores is not None else NO_WORDS
            found = parent.children[token] = _Prefix(parent, token, words)
        return found


def ctc_search(settings: Settings, labels: Labels) -> CTCSearch:
    """Return the beam search for the settings, with the language model in ``train.lm`` if there is one.

    Raises FormatError if the file of the language model is not valid, ConfigError if it does not fit the token list.
    """
    scores = None
    if settings.lm is not None:
        scores = WordScores(read_arpa(settings.lm), labels, weight=settings.lm_weight, bonus=settings.word_bonus)
    return CTCSearch(labels.blank, settings.beam or BEAM, scores)


def described(settings: Settings) -> str:
    """Return a phrase for notes that describes the beam search for the settings."""
    with_lm = f" with {escape(settings.lm)}" if settings.lm is not None else ""
    return f"CTC's beam search{with_lm}, beam {settings.beam or BEAM}"
