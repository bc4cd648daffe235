"""Makes hints on patterns that match no key, or fewer keys than meant; selects keys by --include and --exclude."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from ...errors import PatternError, PlanError
from ...util.did_you_mean import close_names
from ...util.text import count, escape, listing
from .pattern import IN_RANGE, KeyPattern
from .renaming import KeyMatcher
from .spelling import name_as_option

__all__ = [
    "ChosenKeys",
    "chosen_keys",
    "deeper_notes",
    "matched",
    "nearest",
    "notes_on_hits",
    "notes_on_ranges",
    "nothing_left",
    "unmatched",
]

_NUMBER = re.compile(r"\d+")

SUGGESTIONS = 3
CANDIDATES = 2000
LONGEST = 300
DEEPEST = 32
"""Limits of the search for similar names: suggestions, compared names, characters of a name, and segments of a key.

They are low because difflib is slow.
"""
WORDS = 500
"""The most words in the lists of a pattern: if it has more, its words are not looked up one by one."""
MANY_MORE = 4
"""A pattern gets a note if, with ``**.`` before it, it would match at least this many times as many keys."""


def unmatched(flag: str, pattern: KeyPattern, keys: Sequence[str], whose: str) -> PatternError:
    """Return the error for a pattern that matches none of ``keys``, with up to three similar names.

    ``flag`` is what the user wrote (``--exclude decodr``). ``whose`` is the owner of the keys in the message: "source"
    or "destination".
    """
    head = f"{escape(flag)} matches none of the {count(len(keys), f'{whose} key')}."
    if pattern.is_anchored:
        (deeper,) = _counts([KeyPattern(f"**.{pattern.text}")], keys)
        if deeper:
            return PatternError(
                head, hint=f"Did you mean **.{escape(pattern.text)}? It matches {count(deeper, 'key')}."
            )
    near = nearest(pattern.text, keys)
    if not near:
        return PatternError(head, hint=f"The {whose} keys begin with {_beginnings(keys)}." if keys else "")
    named = [(name_as_option(name, is_key=name in keys), number) for name, number in near]
    words = [f"{escape(name)} ({count(number, 'key')})" for name, number in named]
    return PatternError(head, hint=f"Did you mean {' or '.join(words)}?")


def deeper_notes(flags: Iterable[tuple[str, KeyPattern]], keys: Sequence[str]) -> list[str]:
    """Return notes on patterns that probably match fewer keys in ``keys`` than the user meant.

    A pattern gets a note if it would match far more keys with ``**.`` before it, or if it has a list, as in ``{a,b}``,
    with a word that matches nothing. ``flags`` are pairs of the option as the user wrote it and its pattern.
    """
    given = list(flags)
    return _notes(given, _counts([pattern for _, pattern in given], keys), keys)


def _notes(given: Sequence[tuple[str, KeyPattern]], here: Sequence[int], keys: Sequence[str]) -> list[str]:
    looked_at = [
        (*one, hits) for one, hits in zip(given, here, strict=True) if hits and _may_be_deeper(one[1], hits, keys)
    ]
    deeper = _counts([KeyPattern(f"**.{pattern.text}") for _, pattern, _ in looked_at], keys)
    far = [
        f"{escape(flag)} matches {count(hits, 'key')}; **.{escape(pattern.text)} would match {more}"
        for (flag, pattern, hits), more in zip(looked_at, deeper, strict=True)
        if more >= MANY_MORE * hits
    ]
    matching = (one for one, hits in zip(given, here, strict=True) if hits)
    return [*far, *(note for flag, pattern in matching for note in _idle(flag, pattern, keys))]


def _idle(flag: str, pattern: KeyPattern, keys: Sequence[str]) -> Iterator[str]:
    """Yield a note on each word in a pattern's lists, as in ``{a,b}``, that matches no key, with similar names."""
    words = list(islice(pattern.alternatives(), WORDS + 1))
    if len(words) > WORDS:
        return
    for (word, _), hits in zip(words, _counts([one for _, one in words], keys), strict=True):
        if not hits:
            found = [] if word.isdigit() else nearest(word, keys)
            near = [f"{escape(name)} ({count(number, 'key')})" for name, number in found]
            similar = f"; {' or '.join(near)} is similar" if near else ""
            yield f"{escape(word)} of {escape(flag)} matches nothing{similar}"


def notes_on_ranges(flag: str, pattern: KeyPattern, keys: Sequence[str]) -> Iterator[str]:
    """Yield a note on the numbers of each range in a pattern, as in ``{0..7}``, that match no key.

    ``flag`` is what the user wrote. The range of an option, such as ``--include``, may be larger than the model.
    """
    for numbers, other in pattern.ranges():
        missing = _missing(numbers, other, keys)
        if missing:
            yield f"{_runs(missing)} of {escape(flag)} {'matches' if len(missing) == 1 else 'match'} nothing"


def _missing(numbers: Sequence[str], pattern: KeyPattern, keys: Sequence[str]) -> list[int]:
    """Return the ``numbers`` that ``pattern`` does not capture, under the name ``IN_RANGE``, from any of the keys."""
    left = dict.fromkeys(numbers)
    for key in KeyMatcher([pattern]).hits(keys)[0]:
        found = pattern.captures(key)
        if found is not None:
            left.pop(found.named[IN_RANGE], None)
        if not left:
            break
    return list(map(int, left))


def _runs(numbers: Sequence[int]) -> str:
    """Return increasing numbers as a text, as in ``3, 5..8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return listing([str(first) if first == last else f"{first}..{last}" for first, last in runs], where="")


def _may_be_deeper(pattern: KeyPattern, hits: int, keys: Sequence[str]) -> bool:
    """Return whether the user may have meant keys in deeper modules.

    That is possible if the pattern can only match from the start of a key, and is not only a number. ``hits`` is the
    number of keys that it matches. The plain texts between its wildcards must also occur in far more keys than
    ``hits``; this is quick to find.
    """
    if not pattern.is_anchored or pattern.text.isdigit():
        return False
    for text in pattern.plain_texts:
        keys = [key for key in keys if text in key]
    return len(keys) >= MANY_MORE * hits


def _counts(patterns: Sequence[KeyPattern], keys: Iterable[str]) -> list[int]:
    """Return the number of keys that each pattern matches, counted in one pass over the keys."""
    return [len(hits) for hits in KeyMatcher(patterns).hits(keys)] if patterns else []


def matched(
    flags: Iterable[tuple[str, KeyPattern]], keys: Sequence[str], whose: str
) -> tuple[list[list[str]], list[str]]:
    """Return the keys that each pattern matches, and notes on patterns that probably match fewer keys than meant.

    ``flags`` are pairs of the option as the user wrote it and its pattern. ``whose`` is the owner of the keys in
    messages: "source" or "destination". Raises PatternError for a pattern that matches no key.
    """
    given = list(flags)
    hits = KeyMatcher([pattern for _, pattern in given]).hits(keys) if given else []
    return hits, notes_on_hits(given, [len(hit) for hit in hits], keys, whose)


def notes_on_hits(
    flags: Sequence[tuple[str, KeyPattern]], hits: Sequence[int], keys: Sequence[str], whose: str
) -> list[str]:
    """Return the notes of ``matched`` on patterns; ``hits`` are the numbers of keys that they match.

    Raises PatternError for a pattern that matches no key.
    """
    for (flag, pattern), number in zip(flags, hits, strict=True):
        if not number:
            raise unmatched(flag, pattern, keys, whose)
    return _notes(flags, hits, keys)


def _beginnings(keys: Iterable[str]) -> str:
    heads = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{escape(name)} ({number})" for name, number in heads.most_common(SUGGESTIONS))


def nearest(text: str, keys: Iterable[str]) -> list[tuple[str, int]]:
    """Return up to three keys or modules with names similar to ``text``, and the number of keys in each.

    Of names that differ only in their numbers or in upper and lower case, only the first is returned.
    """
    sizes: Counter[str] = Counter()
    for key in keys:
        sizes.update(_modules(key))
    first: dict[str, str] = {}
    for module in sizes:
        first.setdefault(_plain(module), module)
    wanted = _plain(text)
    close = close_names(wanted, first, CANDIDATES)
    if not close:
        tails = {module.rpartition(".")[2]: module for module in reversed(first)}
        close = [tails[tail] for tail in close_names(wanted.rpartition(".")[2], tails, CANDIDATES)]
    return [(first[name], sizes[first[name]]) for name in close]


def _plain(name: str) -> str:
    return _NUMBER.sub("0", name).lower()


def _modules(key: str) -> Iterator[str]:
    """Yield the names of the modules that contain a key, the outermost first, then the key itself.

    It yields at most ``DEEPEST`` modules, and no name of more than ``LONGEST`` characters.
    """
    end = key.find(".")
    for _ in range(DEEPEST):
        if not 0 <= end <= LONGEST:
            break
        yield key[:end]
        end = key.find(".", end + 1)
    if len(key) <= LONGEST:
        yield key


# ``--include`` and ``--exclude`` of the verbs that only read.

Given = Iterable[str] | None


@dataclass(frozen=True)
class ChosenKeys:
    """The keys that the patterns select, in their order, and notes on patterns that may select too few keys."""

    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()


def chosen_keys(
    keys: Sequence[str],
    include: Given = (),
    exclude: Given = (),
    *,
    whose: str = "source",
    names: Mapping[str, str] | None = None,
) -> ChosenKeys:
    """Return the keys that ``include`` matches and ``exclude`` does not match; without ``include``, all are included.

    Some keys are stored parts of a tensor: ``names`` maps each of them to the tensor's name. A pattern that matches
    such a name matches all parts of the tensor. Raises PatternError for a pattern that matches no key, and PlanError if
    no key is left. ``whose`` is the owner of the keys in messages: "source" or "destination".
    """
    notes: list[str] = []
    known = _Names(keys, names or {})
    wanted = _matched("--include", include, known, notes, whose)
    unwanted = _matched("--exclude", exclude, known, notes, whose)
    if wanted is None and unwanted is None:
        return ChosenKeys(tuple(keys))
    left = tuple(key for key in keys if (wanted is None or key in wanted) and key not in (unwanted or ()))
    if not left:
        are = f"all {len(keys)} {whose} keys are" if len(keys) > 1 else f"the only {whose} key is"
        raise nothing_left(are, may_widen=wanted is not None)
    return ChosenKeys(left, tuple(notes))


def nothing_left(are: str, purpose: str = "", *, may_widen: bool) -> PlanError:
    """Return the error that patterns exclude everything; ``are`` says what is excluded, as in "all modules are".

    ``purpose`` says of what, or for what, nothing is left. The hint names --include if ``may_widen``.
    """
    said = f"nothing is left {purpose}".rstrip()
    widen = ", or widen --include" if may_widen else ""
    return PlanError(f"{said}: {are} excluded.", hint=f"Leave an --exclude out{widen}.")


class _Names:
    """Keys and tensor names: ``names`` maps each key that is a stored part of a tensor to the tensor's name."""

    def __init__(self, keys: Sequence[str], names: Mapping[str, str]) -> None:
        self.keys, self.names = keys, names

    @cached_property
    def every(self) -> Sequence[str]:
        """All keys, followed by the names of the tensors that are stored in parts."""
        if not self.names:
            return self.keys
        return list(dict.fromkeys((*self.keys, *(self.names[key] for key in self.keys if key in self.names))))

    def of(self, hits: Iterable[Sequence[str]]) -> set[str]:
        """Return the keys in ``hits``, and the keys of the stored parts of the tensors whose names are in ``hits``.

        Each item of ``hits`` has the keys and the names that one pattern matches.
        """
        found = {name for hit in hits for name in hit}
        return found | {key for key in self.keys if self.names.get(key) in found} if self.names else found


def _matched(option: str, given: Given, known: _Names, notes: list[str], whose: str) -> set[str] | None:
    texts = [given] if isinstance(given, str) else list(given or ())
    if not texts:
        return None
    flags = [(f"{option} {text}", KeyPattern.given(text, f"{option} ")) for text in texts]
    hits, more = matched(flags, known.every, whose)
    notes += more
    return known.of(hits)
