"""The result of ``fits``: whether a checkpoint loads into a destination, and a command that makes it fit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...tensors.info import TensorInfo
from ...util.notebook import InNotebooks
from ...util.text import count, escape
from ..compare.results import Pair

__all__ = ["Fit"]

DECODED = frozenset({"copied", "cast", "derived"})
"""The classes of tensors in an output that only decodes the weights of its source."""


@dataclass(frozen=True, repr=False)
class Fit(InNotebooks):
    """How the tensors of a checkpoint (``first``) fit a destination (``second``): their keys and shapes.

    ``strict`` is true if ``load_state_dict(strict=True)`` of the destination would succeed. ``loader`` is the class of
    transformers whose ``from_pretrained`` loads the whole checkpoint although ``strict`` is false: it converts older
    layouts, and makes some tensors itself. ``fits`` is true if ``strict`` is true or ``loader`` is set. ``tensors`` is
    the number of the destination's keys. ``missing`` are keys that only the destination has, ``unexpected`` keys that
    only the checkpoint has. The tensors in ``mismatched`` have other shapes; the tensors in ``retyped`` have another
    dtype, which loading casts. ``uncopied`` maps keys to the reason why torch cannot load them: a quantised tensor
    cannot be copied into a plain one, for example, or only one of the two has the extra state of a module. ``tied``
    maps keys that the checkpoint may lack to the keys that they are tied to. ``stripped`` are prefixes that all keys of
    the checkpoint have, such as ``module``; the keys in the other fields do not contain them. ``quantised`` is the
    number of quantised weights of the checkpoint if the destination has none. ``renamed`` maps keys of the checkpoint
    to the missing keys that they correspond to. ``rules`` are the ``--map`` rules for these renames, empty if the
    destination knows the names of the checkpoint. ``command`` has the words of a command that makes the checkpoint fit.
    ``counts`` maps each class, such as copied, to the number of tensors of this class in the output of ``command``.
    Both are empty if ``strict`` is true, or if no such command was found.
    """

    first: str
    second: str
    tensors: int
    missing: Mapping[str, TensorInfo] = field(default_factory=dict)
    unexpected: Mapping[str, TensorInfo] = field(default_factory=dict)
    mismatched: tuple[Pair, ...] = ()
    retyped: tuple[Pair, ...] = ()
    uncopied: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    stripped: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    loader: str = ""
    quantised: int = 0

    def __repr__(self) -> str:
        return f"<Fit of {escape(self.first)} in {escape(self.second)}: {self.verdict}>"

    @property
    def fits(self) -> bool:
        """True if the checkpoint loads into the destination, strictly or with ``from_pretrained``."""
        return self.strict or bool(self.loader)

    @property
    def strict(self) -> bool:
        """Whether ``load_state_dict(strict=True)`` accepts the checkpoint as it is."""
        return not (self.missing or self.unexpected or self.mismatched or self.uncopied or self.stripped)

    @property
    def verdict(self) -> str:
        """The answer in one line: ``fits: all 201 tensors``, or the numbers of wrong keys and shapes."""
        if self.strict:
            return f"fits: {'all ' if self.tensors > 1 else ''}{count(self.tensors, 'tensor')}"
        if self.loader:
            return f"fits: from_pretrained of {escape(self.loader)} loads it"
        if self._fits_decoded:
            weights = f"{count(self.quantised, 'weight is', 'weights are')} quantised"
            return f"does not fit as it is stored: {weights}; decoded, {'all ' if self.tensors > 1 else ''}" + (
                f"{count(self.tensors, 'tensor fits', 'tensors fit')}"
            )
        return f"does not fit: {', '.join(self._faults())}"

    @property
    def _fits_decoded(self) -> bool:
        """Whether decoding alone makes a quantised checkpoint fit: no key, and no shape of a decoded weight, is wrong.

        This follows from ``counts``: if a shape were wrong, some tensors would not be of a class such as decoded or
        copied. ``mismatched`` does not show it, because packed codes have other shapes than their weights.
        """
        others = {name for name, number in self.counts.items() if number} - DECODED
        return bool(self.quantised and self.command) and not (self.renamed or others)

    @property
    def strictly(self) -> str:
        """Why ``load_state_dict(strict=True)`` fails although ``from_pretrained`` loads the checkpoint; else ''."""
        return f"load_state_dict(strict=True) alone would fail: {', '.join(self._faults())}" if self.loader else ""

    def _faults(self) -> Iterator[str]:
        left = self.missing.keys() - set(self.renamed.values())
        unused = self.unexpected.keys() - self.renamed.keys()
        if self.quantised:
            yield f"{self.quantised} quantised"
        if self.renamed:
            yield f"{len(self.renamed)} under other names" if len(self.renamed) > 1 else "1 under another name"
        if left:
            yield f"{len(left)} missing"
        if self.mismatched:
            yield f"{len(self.mismatched)} of other shapes" if len(self.mismatched) > 1 else "1 of another shape"
        if self.uncopied:
            yield f"{len(self.uncopied)} that torch does not copy"
        if unused:
            yield f"{len(unused)} unexpected"
        if self.stripped:
            yield f"all keys begin with {escape('.'.join(self.stripped))}"

    @property
    def command_line(self) -> str:
        """The command that makes the checkpoint fit, quoted for a shell; empty if there is none."""
        return shlex.join(self.command)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "kind": "ckpt.fits",
            "version": 1,
            "first": self.first,
            "second": self.second,
            "fits": self.fits,
            "strict": self.strict,
            "loader": self.loader,
            "tensors": self.tensors,
            "quantised": self.quantised,
            "missing": [_row(key, info) for key, info in self.missing.items()],
            "unexpected": [_row(key, info) for key, info in self.unexpected.items()],
            "mismatched": [
                {"key": p.key, "from": list(p.first.shape), "to": list(p.second.shape)} for p in self.mismatched
            ],
            "retyped": [{"key": p.key, "from": p.first.dtype, "to": p.second.dtype} for p in self.retyped],
            "uncopied": [{"key": key, "reason": why} for key, why in self.uncopied.items()],
            "tied": [{"key": key, "to": owner} for key, owner in self.tied.items()],
            "stripped": list(self.stripped),
            "renamed": [{"from": old, "to": new} for old, new in self.renamed.items()],
            "rules": list(self.rules),
            "command": list(self.command),
            "counts": dict(self.counts),
            "notes": list(self.notes),
        }


def _row(key: str, info: TensorInfo) -> dict[str, Any]:
    return {"key": key, "dtype": info.dtype, "shape": list(info.shape)}
