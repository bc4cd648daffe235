"""Decides whether a few scales of integer codes have the wrong sign.

Most quantisers write positive scales only. AutoRound and llama.cpp choose the sign of each scale: the value of the
largest magnitude in a group gets the code of the largest magnitude, which is negative. So about half of their scales
are negative, and a few among many positive ones are an error. ``tensors/decoders/_signs.py`` counts them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

__all__ = ["CHOSEN", "RARE", "SIGNS", "STRAY", "stray_signs"]

SIGNS = "signs^"
"""The beginning of kinds such as ``signs^1/512``: one of 512 scales is negative."""
CHOSEN = "chosen signs"
"""The kind of tensors whose negative scales may have been chosen by their quantiser, because of their codes."""
FEWEST, RARE = 32, 1 / 16
"""Of at least ``FEWEST`` scales, at most the share ``RARE`` may be negative: more may have been chosen.

If each sign is as likely as the other, 32 scales have at most two negative ones in one of 8 million tensors.
"""
STRAY = (
    "a few negative scales among many positive ones: perhaps their signs were changed, so that the weights of these "
    "groups change theirs"
)


def stray_signs(every: Iterable[Mapping[str, Collection[str]]]) -> set[str]:
    """Return the tensors of which a few scales are negative, and the quantiser did not choose this.

    Each map in ``every`` has names of tensors by kind. A kind such as ``signs^1/512`` contains the numbers that were
    counted for the tensor.
    """
    counted: dict[str, tuple[int, int]] = {}
    chosen = set[str]()
    for one in every:
        chosen.update(one.get(CHOSEN, ()))
        for kind, names in one.items():
            if kind.startswith(SIGNS):
                below, number = map(int, kind.removeprefix(SIGNS).split("/"))
                for name in names:
                    old = counted.get(name, (0, 0))
                    counted[name] = old[0] + below, old[1] + number
    return {
        name
        for name, (below, number) in counted.items()
        if name not in chosen and number >= FEWEST and 0 < below <= RARE * number
    }
