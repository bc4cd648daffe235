"""Finds weights of queries and keys that get the names of a library with another order of rows.

The rotary embedding rotates pairs of the values of a head. Meta's Llama, Mistral's own files, torchtune and llama.cpp's
Llama have the two rows of a pair side by side; transformers has all first rows of a head, then all second rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...util.text import count, escape

__all__ = ["HALVES", "PAIRS", "Misordered", "Spelling", "known_spellings", "misordered", "module_pattern", "spelled"]

PAIRS, HALVES = "pairs", "halves"
"""The two orders of rows, which are also the names of the operations that make them."""


@dataclass(frozen=True)
class Spelling:
    """How a library names the modules of queries and keys.

    ``names`` matches the path of a module; its groups are the ``number`` of the layer, and the ``kind``: q or k. The
    library is recognised if any key contains ``mark``, and no key contains ``other``.
    """

    library: str
    order: str
    names: re.Pattern[str]
    mark: str = ""
    other: str = "\0"


_LEAF = re.compile(r"(?:\.lora_[Bb](?:\.\w+)?)?\.[^.]*$")
"""Matches the end of a key after its module's path, also of a LoRA factor B, which has the same rows as the weight."""
_SPELLINGS = (
    Spelling("Meta", PAIRS, re.compile(r"(?:.*\.)?layers\.(?P<number>\d+)\.attention\.w(?P<kind>[qk])")),
    Spelling("llama.cpp", PAIRS, re.compile(r"blk\.(?P<number>\d+)\.attn_(?P<kind>[qk])")),
    Spelling(
        "torchtune", PAIRS, re.compile(r"(?:.*\.)?layers\.(?P<number>\d+)\.attn\.(?P<kind>[qk])_proj"),
        ".sa_norm.", ".attn.q_proj.bias",  # Qwen2 in torchtune, which has biases, has the order HALVES
    ),
    Spelling(
        "transformers", HALVES,
        re.compile(r"(?:.*\.)?layers\.(?P<number>\d+)\.(?:self_attn|attention)\.(?P<kind>[qk])_proj"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Misordered:
    """Weights of queries and keys that need another order of rows: ``renamed`` maps their old keys to new keys.

    ``libraries`` are the libraries of the old and the new names. ``order`` is the order of rows in the library of the
    new names. ``modules`` maps patterns of the modules' old names to "q" (queries) or "k" (keys).
    """

    renamed: Mapping[str, str]
    libraries: tuple[str, str]
    order: str
    modules: Mapping[str, str]

    def note(self, heads: Mapping[str, int], *, is_llama: bool = True) -> str:
        """Return the note that says how to reorder the rows.

        ``heads`` has the number of query heads ("q") and of key heads ("k"); an unknown number is left out.

        llama.cpp has the order ``pairs`` only for Llama and Mistral. ``is_llama`` is false if the model may be another
        network: the note then begins with the condition that it is a Llama or Mistral.
        """
        old, new = map(escape, next(iter(self.renamed.items())))
        rows = "; ".join(
            f"- {{{self.order}: '{escape(module)}', heads: {heads.get(kind, 'N')}}}"
            for module, kind in self.modules.items()
        )
        n = "" if all(kind in heads for kind in self.modules.values()) else ", where N is the number of heads"
        orders = {
            PAIRS: "the two rows of each rotated pair side by side",
            HALVES: "all first rows of a head's pairs, then all second rows",
        }
        where = "" if is_llama else "if this is a Llama or Mistral, "
        also = "transformers" if self.order == HALVES else "gguf"
        convert = f" (ckpt convert --layout {also} does both)" if "llama.cpp" in self.libraries else ""
        return (
            f"{where}{count(len(self.renamed), 'tensor')} of queries and keys would need another order of rows "
            f"({old} as {new}): {self.libraries[0]} has {orders[_other(self.order)]}, {self.libraries[1]} has "
            f"{orders[self.order]}; in the present order, the model computes something else. Reorder them with "
            f"--operations{n}: {rows}{convert}"
        )


def _other(order: str) -> str:
    return HALVES if order == PAIRS else PAIRS


def misordered(names: Iterable[tuple[str, str]], sides: Sequence[Collection[str]]) -> Misordered | None:
    """Return the queries and keys that get names of a library with another order of rows; None if there are none.

    ``names`` are pairs of an old and a new key, ``sides`` are all keys of the source and of the destination.
    """
    known = [known_spellings(keys) for keys in sides]
    found: dict[str, str] = {}
    modules: dict[str, str] = {}
    libraries: tuple[str, str] | None = None
    for old, new in names:
        (here, match), (there, _) = spelled(old, known[0]), spelled(new, known[1])
        if here is None or there is None or match is None or here.order == there.order:
            continue
        libraries = libraries or (here.library, there.library)
        if libraries == (here.library, there.library):
            found[old] = new
            modules[module_pattern(old, match)] = match["kind"]
    if libraries is None:
        return None
    order = PAIRS if libraries[0] == "transformers" else HALVES
    return Misordered(found, libraries, order, modules)


def module_pattern(key: str, match: re.Match[str]) -> str:
    """Return a pattern for the module of a key, in all layers; ``match`` is the match that ``spelled`` returned."""
    start, end = match.span("number")
    return f"{key[:start]}{{n}}{key[end:].rpartition('.')[0]}"


def known_spellings(keys: Collection[str]) -> list[Spelling]:
    """Return the naming styles (``Spelling``) that the queries and keys of a state dict may have."""
    return [
        one for one in _SPELLINGS if any(one.mark in key for key in keys) and not any(one.other in key for key in keys)
    ]


def spelled(key: str, spellings: Sequence[Spelling]) -> tuple[Spelling | None, re.Match[str] | None]:
    """Return the first of ``spellings`` that makes ``key`` part of a module of queries or keys, and the match.

    This is the match of ``Spelling.names`` with the module's path. The result is (None, None) if no spelling fits.
    """
    module = _LEAF.sub("", key)
    return next(((one, found) for one in spellings if (found := one.names.fullmatch(module))), (None, None))
