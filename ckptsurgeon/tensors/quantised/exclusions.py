"""Finds the modules that settings exclude from quantisation, or may exclude: loaders read settings in various ways."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from .autoround import PLAIN_BITS, is_autoround, plain_expressions
from .modules import BEFORE_NUMBER, GENERAL, IGNORED, SKIPPED, Expression, Modules
from .settings import QuantisationSettings, Settings, strings_in

__all__ = ["HEADS", "PossibleExclusions"]

# transformers, vLLM and AutoAWQ compare the entries of settings with other names of modules, and in other ways.

_TOGETHER = (
    (re.compile(r"\b[qkv]_proj$"), ("qkv_proj",)),
    (re.compile(r"\b(?:gate_proj|up_proj|w[13])$"), ("gate_up_proj",)),
    (re.compile(r"\b(?:q_a_proj|kv_a_proj_with_mqa)$"), ("fused_qkv_a_proj",)),
    (re.compile(r"\bin_proj_(?:qkv|z)$"), ("in_proj_qkvz",)),
    (re.compile(r"\bin_proj_[ab]$"), ("in_proj_ba",)),
    (re.compile(r"\bqkv_proj$"), ("q_proj", "k_proj", "v_proj")),
    (re.compile(r"\bgate_up_proj$"), ("gate_proj", "up_proj")),
)
"""(pattern of modules that vLLM joins, or of joined modules; the names that settings may contain instead of theirs)."""
_JOINED = tuple(dict.fromkeys(one for _, others in _TOGETHER for one in others))
HEADS = ("", "model", "language_model", "model.language_model", "language_model.model")
"""The prefixes that ``layers`` may have in a language model, alone or with an image encoder, in any version."""
_HEADED = tuple(f"{one}." for one in HEADS if one)
_IN_MODEL = re.compile(r"(.*?)\.?\b(layers\.\d+\..*)")
_OF_LANGUAGE = frozenset((
    "model", "language_model", "text_model", "llm", "thinker", "transformer", "backbone", "base_model", "layers",
    "blocks", "h",
))  # fmt: skip
"""In a language model, only these words are before the number of a layer; other parts of a model have other words."""
_OTHER_PARTS = (
    "mtp", "visual", "vision_model", "vision_tower", "audio_model", "audio_tower", "encoder", "decoder", "talker",
)  # fmt: skip
"""The first words of names of modules in other parts of a model than its language model."""
_MOST = 1000
"""At most this many entries are compared with the beginnings, the ends or, with AWQ, any parts of names of modules."""


class PossibleExclusions:
    """The modules that settings leave unquantised, or may leave unquantised: loaders apply entries in different ways.

    ``keys`` are the keys of the model, ``quantised`` the names of its quantised modules. An entry is tried in every way
    in which a loader applies it. A way that would exclude a quantised module is not used, because the loader that the
    file was written for cannot use it. An entry that is the name of a module of the model excludes only this module.
    Any other entry for a layer of a language model may be a name from another version of the model, with another
    prefix.
    """

    def __init__(self, settings: Settings, keys: Iterable[str] = (), quantised: Sequence[str] = ()) -> None:
        self._modules, self._quantised = Modules(settings), quantised
        self._expressions = self._modules.expressions
        self._by_end, self._refuted = dict[str, list[Expression]](), dict[Expression, bool]()
        given = (one for field in SKIPPED for one in strings_in(settings.get(field)))
        skipped = [one for one in given if one.strip(".")]
        listed = (*skipped, *strings_in(settings.get(IGNORED)), *self._modules.names)
        entries = {one.strip(".") for one in listed} - {""}
        own_parts = _parts_among(keys, entries)
        has_others = any(one.endswith(_JOINED) or one.startswith(_HEADED) for one in entries - own_parts)
        own = [each for name in quantised for each in _names(name)] if has_others else quantised
        tails = {one: _tail(one) for one in entries}
        coded_parts = _parts_among(own, entries.union(tails.values()))
        self._entries = frozenset(entries - coded_parts)
        self._tails = _tails({one: tail for one, tail in tails.items() if tail and one not in own_parts}, coded_parts)
        self._shortened = _shortened(entries - own_parts, quantised)
        skipped = skipped[:_MOST]
        coded = "\n".join(("", *(f".{name}." for name in own), "")) if skipped else "\n"
        self._ends = tuple(one for one in skipped if f"{one}.\n" not in coded)
        self._starts = tuple(one for one in skipped if f"\n.{one}" not in coded)
        is_anywhere = QuantisationSettings(settings).method == "awq" or is_autoround(settings)
        self._inside = tuple(one for one in skipped if one not in coded) if is_anywhere else ()
        self._plain, self._has_unread = plain_expressions(settings)

    @property
    def unread(self) -> bool:
        """Whether a regular expression in the settings is not evaluated: it may exclude any module."""
        return bool(self._modules.unread) or self._has_unread

    @property
    def is_spent(self) -> bool:
        """Whether some names were not compared with regular expressions, as all comparisons could take too long."""
        return self._modules.is_spent

    def may_exclude(self, module: str) -> bool:
        """Return whether the settings exclude a module, or may exclude it under another of its names."""
        names = _names(module)
        if self._modules.left_out(module) or any(map(self._is_plain, names)) or any(map(self._may_name, names)):
            return True
        if self._shortened and not self._shortened.isdisjoint(_around(module)):
            return True
        is_named = bool(self._plain) and self._modules.place(module) != GENERAL  # AutoRound then skips expressions
        if not is_named and any(self._modules.meets(one, name) for one in self._plain for name in names):
            return True
        if self._modules.is_included(module):
            return False
        ends = [end for name in names for end in _ends_of(name) if end != module]
        return any(not self._is_refuted(one) for end in ends for one in self._matching(end))

    def _is_plain(self, name: str) -> bool:
        """Return whether a module with this name has its own section, in which its weights are not quantised."""
        place = self._modules.place(name)
        bits = self._modules.settings(place).get("bits") if place != GENERAL else None
        return isinstance(bits, int) and bits >= PLAIN_BITS

    def _matching(self, end: str) -> list[Expression]:
        """Return the regular expressions that match ``end``, the end of a name; results are cached."""
        if end not in self._by_end:
            self._by_end[end] = [one for one in self._expressions if self._meets(one, end)]
        return self._by_end[end]

    def _meets(self, expression: Expression, name: str) -> bool:
        """Return whether a regular expression of the settings matches a name."""
        pattern, whole = expression
        if not whole:
            return self._modules.meets(pattern, name)
        words = name.split(".")
        around = (".".join(words[:end]) for end in range(len(words), 0, -1))
        return any(self._modules.meets(pattern, one, whole=True) for part in around for one in (part, f"{part}."))

    def _is_refuted(self, expression: Expression) -> bool:
        """Return whether a regular expression matches a possible name of a quantised module, or the end of such a name.

        Then the expression cannot be meant for such names and ends: it would exclude a module that is quantised.
        """
        if expression not in self._refuted:
            ends = (end for module in self._quantised for name in _names(module) for end in _ends_of(name))
            self._refuted[expression] = any(self._meets(expression, end) for end in ends)
        return self._refuted[expression]

    def _may_name(self, name: str) -> bool:
        """Return whether an entry without wildcards may mean a module with this name, or may match a part of the name.

        transformers compares an entry with the end of the name (before version 5: with its beginning). AutoAWQ, and AWQ
        in vLLM, compare it with any part of the name.
        """
        if name.endswith(self._ends) or name.startswith(self._starts) or any(one in name for one in self._inside):
            return True
        tail = _tail(name).split(".") if self._tails else []
        first = {".".join(tail[:end]) for end in range(1, len(tail) + 1)}
        if not first.isdisjoint(self._tails):
            return True
        return bool(self._entries) and not self._entries.isdisjoint(_parts_of(name))


def _tails(tails: Mapping[str, str], coded: Collection[str]) -> frozenset[str]:
    """Return the ends of entries, from their first number on, that may name modules with another prefix.

    ``tails`` maps each entry to its end, such as ``model.layers.0.mlp`` to ``0.mlp``. ``coded`` has the parts of the
    names of quantised modules. If it has the end of an entry, this entry and all others with the same prefix are left
    out.
    """
    found: dict[str, set[str]] = {}
    for entry, tail in tails.items():
        found.setdefault(entry.removesuffix(tail), set()).add(tail)
    return frozenset().union(*(some for some in found.values() if not any(one in coded for one in some)))


def _shortened(entries: Iterable[str], quantised: Iterable[str]) -> frozenset[str]:
    """Return the entries without their first word: transformers names modules ``model.visual``, but saves ``visual``.

    A shortened entry is left out if it is the name of a quantised module, or of a module that contains one.
    """
    words = (one.partition(".") for one in entries)
    found = {rest for first, _, rest in words if rest and first not in _OTHER_PARTS}
    return frozenset(found.difference(*(_around(name) for name in quantised)) if found else ())


def _around(name: str) -> list[str]:
    """Return a name and the names of the modules that contain it: ``a.b.c``, ``a.b`` and ``a``."""
    words = name.split(".")
    return [".".join(words[:end]) for end in range(len(words), 0, -1)]


def _parts_among(names: Iterable[str], wanted: Collection[str]) -> set[str]:
    """Return the texts in ``wanted`` that are one word, or several successive words, of one of the names."""
    by_last_word: dict[str, set[str]] = {}
    for text in wanted:
        by_last_word.setdefault(text.rpartition(".")[2], set()).add(text)
    found = set[str]()
    for words in (name.split(".") for name in names) if by_last_word else ():
        for end, word in enumerate(words, 1):
            if word in by_last_word:  # true of few words; testing all parts takes ten times as long
                found |= by_last_word[word].intersection(".".join(words[start:end]) for start in range(end))
    return found


def _tail(name: str) -> str:
    """Return a module's name from its first number on: ``0.mlp`` for ``model.layers.0.mlp``.

    Returns "" if the words before the number are not usual in language models.
    """
    tail = BEFORE_NUMBER.sub("", name)
    return tail if _OF_LANGUAGE.issuperset(name.removesuffix(tail).strip(".").split(".")) else ""


def _with_joined(module: str) -> list[str]:
    """Return a module's name, and the name of the module that vLLM joins it into: ``qkv_proj`` for ``q_proj``.

    If the module is itself a joined one, the other names are the names of its parts.
    """
    return [
        module,
        *(joined.sub(one, module) for joined, others in _TOGETHER if joined.search(module) for one in others),
    ]


def _ends_of(name: str) -> Iterator[str]:
    """Yield a name and its ends: ``a.b.c``, ``b.c`` and ``c``."""
    words = name.split(".")
    yield from (".".join(words[start:]) for start in range(len(words)))


def _names(module: str) -> list[str]:
    """Return the names that settings may use for a module: its own, the joined module's, each with other prefixes."""
    names = _with_joined(module)
    for name in list(names):
        if (match := _IN_MODEL.fullmatch(name)) is not None and match[1] in HEADS:
            names += [f"{head}.{match[2]}".lstrip(".") for head in HEADS if head != match[1]]
    return names


def _parts_of(module: str) -> set[str]:
    """Return all sequences of words in a module's name: ``a.b.c`` has the parts a, b, c, a.b, b.c and a.b.c."""
    words = module.split(".")
    ends = range(1, len(words) + 1)
    return {".".join(words[start:end]) for end in ends for start in range(end)}
