"""Notes on weights that keep the encodings of their sources, and on weights that lose them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from ..tensors.encoders._schemes import together
from ..util.text import count, escape, listing

__all__ = ["KeptCodes"]

SHARING = "nvfp4"
"""Loaders join some weights (q, k and v): in this encoding, such weights share a global scale if encoded together."""


@dataclass
class KeptCodes:
    """Facts about the quantised weights of an output, for the notes on them.

    ``copied`` is the number of weights whose parts are copied. ``moved`` has, by encoding, the names of weights whose
    rows move to another vocabulary without being decoded. ``encoded_anew`` has, by encoding, the names of weights that
    are computed and encoded again. ``mixed`` has, by name of a weight, the numbers of copied and of new rows.
    ``made_plain`` has the keys of the weights that become plain numbers, by (index of the source, encoding, new dtype).
    """

    copied: int = 0
    moved: dict[str, list[str]] = field(default_factory=dict)
    mixed: dict[str, tuple[int, int]] = field(default_factory=dict)
    encoded_anew: dict[str, list[str]] = field(default_factory=dict)
    made_plain: dict[tuple[int, str, str], dict[str, None]] = field(default_factory=dict)

    def notes(
        self, names: Sequence[str], owner: int, *, stored: str, weights: Collection[str], dtype: str
    ) -> Iterator[str]:
        """Yield notes on weights that are moved, encoded again or made plain, unused dtypes, and global scales.

        ``names`` are the names of the plan's sources, and ``owner`` is the index of the source whose encodings the
        output gets. ``stored`` is the name of this source in messages, and ``weights`` are the keys of its quantised
        weights. ``dtype`` is the dtype that the user asked for. There is a note on global scales if loaders use one
        global scale for several weights, because each weight gets its own.
        """
        for method, keys in self.moved.items():
            yield (
                f"the rows of {count(len(keys), 'weight')} are moved as they are stored ({method}), with their "
                f"scales, and are not rounded again: {listing(keys, 3)}"
            )
        for name, (kept, new) in self.mixed.items():
            yield (
                f"of {escape(name)}, {count(kept, 'row')} {'is' if kept == 1 else 'are'} copied with scales as they "
                f"are stored, and {count(new, 'new row')} {'is' if new == 1 else 'are'} computed and encoded"
            )
        for method, keys in self.encoded_anew.items():
            each = "is" if len(keys) == 1 else "are"
            yield (
                f"{count(len(keys), 'weight')} {each} decoded, computed and encoded again ({method}), as in "
                f"{escape(stored)}: {listing(keys, 3)}"
            )
        yield from self._notes_on_plain(names, owner)
        kept = self.copied + len(self.mixed) + sum(map(len, (*self.moved.values(), *self.encoded_anew.values())))
        if dtype and dtype != "keep" and kept:
            stay = "stays" if kept == 1 else "stay"
            yield (
                f"the dtype {dtype} does not apply to {count(kept, 'quantised weight')}, which {stay} encoded; "
                "--encoding dequantize writes plain weights"
            )
        sharing = self.encoded_anew.get(SHARING, [])
        joined = [name for name in sharing if sum(one in weights for one in {*together(name)}) > 1]
        if joined:
            each = "is" if len(joined) == 1 else "are"
            yield (
                f"{count(len(joined), 'global scale')} of {SHARING} {each} computed for each weight alone; loaders "
                "that join weights (q, k and v; gate and up) use the largest of their scales for all of them: "
                f"{listing(joined, 3)}"
            )

    def _notes_on_plain(self, names: Sequence[str], at: int) -> Iterator[str]:
        """Yield a note on the weights of each quantised source that the output stores as plain numbers."""
        owner = escape(names[at])
        for (source, method, dtype), keys in self.made_plain.items():
            each = "is" if len(keys) == 1 else "are"
            yield (
                f"{count(len(keys), 'weight')} of {escape(names[source])} {each} decoded ({method}) "
                f"and written as plain {dtype}, because {owner}, from which the output has its encoding, stores plain "
                f"numbers: {listing(list(keys), 3)}"
            )
