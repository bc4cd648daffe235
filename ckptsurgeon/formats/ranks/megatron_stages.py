"""Makes notes on pipeline stages of Megatron that do not fit together: copies, different dtypes, missing layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...storage.read.base import File
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing
from .byte_samples import sample_of

__all__ = ["StageNotes"]

_LAYER = re.compile(r"(.*?\blayers\.)(\d{1,6})\.(.*)", re.DOTALL)
_STACKS = ("decoder.layers.", "language_model.encoder.layers.", "language_model.transformer.layers.")
"""Where the layers are that ``num_layers`` counts, if a model has no other stack of layers."""


@dataclass
class StageNotes:
    """Compares pipeline stages, which are given one after the other; makes notes on stages that do not fit together."""

    _stages: dict[tuple[object, ...], str] = field(default_factory=dict)
    _dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """{name of a tensor in each layer: (dtype, file of the first stage with such a tensor)}."""
    _copies: list[str] = field(default_factory=list)
    _others: dict[str, str] = field(default_factory=dict)

    def look(self, name: str, stage: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> None:
        """Compare the tensors of a stage with those of earlier stages; ``name`` is the stage's first file."""
        large = {key: info for key, info in stage.items() if _LAYER.fullmatch(key) and len(info.shape) > 1}
        for key, info in large.items():
            found = _LAYER.fullmatch(key)
            assert found is not None
            dtype, where = self._dtypes.setdefault(f"{found[1]}{found[3]}", (info.dtype, name))
            if info.dtype != dtype:
                self._others.setdefault(name, f"{name} has {info.dtype}, and {where} {dtype}")
        sample = sample_of(large, handles)
        other = self._stages.setdefault(sample, name) if sample else name
        if other != name:
            self._copies.append(f"{name} has the same layers as {other}")

    def notes(self, layers: Mapping[str, int], number: int) -> Iterator[str]:
        """Yield notes on copied stages, on stages with other dtypes, and on missing or superfluous layers.

        ``layers`` is {stack of layers: how many layers were found}; ``number`` is the number that the arguments of the
        run give, 0 if it is not known.
        """
        if self._copies:
            text = f"{listing(self._copies, 3, where='')}: if it is a copy, the layers of its own stage are missing"
            yield Note(NoteKind.SPLIT_TENSORS, text)
        if self._others:
            text = f"the stages have layers of different dtypes: {listing([*self._others.values()], 3, where='')}"
            yield Note(NoteKind.SPLIT_TENSORS, text)
        stacks = [stack for stack in layers if not stack.startswith("mtp.")]
        if number and len(stacks) == 1 and stacks[0] in _STACKS and layers[stacks[0]] != number:
            text = (
                f"{escape(stacks[0])} has {count(layers[stacks[0]], 'layer')} in all stages, but the arguments of the "
                f"run give {number}"
            )
            yield Note(NoteKind.SPLIT_TENSORS, text)
