"""The result of ``inspect``: every tensor of a checkpoint and the file's other entries, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.other_entries import Extra
from ..formats.base.header import FilePrint
from ..planning.keys.pattern_hints import chosen_keys
from ..tensors.composition import leaves
from ..tensors.info import TensorInfo, tied_keys
from ..tensors.quantised.encoding import NO_CODES, QuantisedTensor, QuantisedTensors
from ..tensors.quantised.settings import basis_of
from ..tensors.torch_quantisers import stored_bytes
from ..util.note_kind import NoteKind
from ..util.notebook import InNotebooks
from ..util.notes import Note, as_notes, notes_on_some
from ..util.text import count, escape, human_bytes
from .adapter_settings import AdapterSettings
from .stats_summary import DecodedStats, StatsSummary, decoded_stats, stored_stats, summary_of

if TYPE_CHECKING:
    from ..planning.operations.perform import Weights
    from .model_summary import ModelSummary
    from .stats import Stats

__all__ = [
    "Inspection",
    "TokenRows",
    "inspection_of",
]


@dataclass(frozen=True)
class TokenRows:
    """The number of tokens in a tokeniser's ``file``, and of rows in the tensor ``key``, which has one row per token.

    There may be more rows than tokens: rows are added for speed, or for tokens that are added later.
    """

    file: str
    tokens: int
    key: str
    rows: int


@dataclass(frozen=True, repr=False)
class Inspection(InNotebooks):
    """The description of a checkpoint from its headers.

    ``root`` is the path of the described state dict in the file ('' for the top level), and ``passed`` has the paths of
    the file's other state dicts. ``stripped`` are the prefixes, such as ``module``, that were removed from all keys.
    ``made_by_us`` is true if ckpt wrote the checkpoint. ``nbytes_files`` is the size of its files in bytes. ``ties``
    maps a tied key to the first key of the same tensor.

    ``codes`` describes its quantised tensors. ``decoded`` maps the logical name of a quantised weight to the statistics
    of its dequantised values. ``undecoded`` maps the names of weights that cannot be dequantised to the reason.
    ``damaged`` are the names of weights in ``undecoded`` that have invalid stored values, such as a NaN in a scale.
    ``decoded_elements`` is the number of elements of all weights in ``decoded``; tied weights count once. ``basis``
    names the transforms (such as Hadamard rotations) that were applied to the quantised weights. If the checkpoint
    is an adapter, ``adapter`` has the settings of the adapter_config.json in the same folder or, without one, what
    keys and shapes show. ``tokens`` compares the number of tokens with the rows of the embedding, if both are
    known. ``model`` has the name and sizes of the model, if its configuration contains them.
    """

    path: str
    format: str
    root: str
    passed: tuple[str, ...]
    stripped: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    ties: Mapping[str, str]
    extras: tuple[Extra, ...]
    metadata: Mapping[str, str]
    notes: tuple[Note, ...]
    nbytes_files: int
    made_by_us: bool
    stats: Mapping[str, Stats | None] | None = None
    codes: QuantisedTensors = NO_CODES
    adapter: AdapterSettings | None = None
    decoded: Mapping[str, Stats] = field(default_factory=dict)
    undecoded: Mapping[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    decoded_elements: int = 0
    basis: str = ""
    tokens: TokenRows | None = None
    model: ModelSummary | None = None

    def __repr__(self) -> str:
        number, size = count(len(self.tensors), "tensor"), human_bytes(self.nbytes_files)
        return f"<Inspection {escape(self.path)}: {self.format}, {number}, {size}>"

    @cached_property
    def parameters(self) -> int | None:
        """The number of elements of all floating-point tensors; quantised tensors count as if dequantised.

        Tied tensors count once. None if the headers do not suffice to compute it, as for some quantised encodings.
        """
        unknown = (one.codes for one in self.codes.tensors if one.codes and one.parameters is None)
        return None if any(key in self.tensors for key in unknown) else self.parameters_at_least

    @cached_property
    def parameters_at_least(self) -> int:
        """The number of parameters, or a lower bound if it cannot be computed from the headers."""
        return sum(self.codes.parameters(key, info) for key, info in self.tensors.items() if key not in self.ties)

    @cached_property
    def nbytes(self) -> int:
        """The size of all tensors in bytes; tied tensors count once."""
        return sum(stored_bytes(info) for key, info in self.tensors.items() if key not in self.ties)

    @cached_property
    def summary(self) -> StatsSummary | None:
        """Totals over the statistics of all tensors; tied tensors count once. None if no statistics were requested.

        The stored codes of quantised weights count as not measured; their dequantised values are in the totals.
        """
        if self.stats is None:
            return None
        decoded = DecodedStats({**self.decoded}, {**self.undecoded}, [*self.damaged], self.decoded_elements)
        return summary_of(self.stats, self.tensors, self.ties, self.codes, decoded)

    def bits_per_weight(self, one: QuantisedTensor) -> float | None:
        """Return the number of stored bits per parameter of a quantised tensor; None if it is not known."""
        keys = one.keys
        if not one.parameters or not all(key in self.tensors for key in keys):
            return None
        return 8 * sum(stored_bytes(self.tensors[key]) for key in keys) / one.parameters

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain data."""
        return {
            "kind": "ckpt.inspect",
            "version": 1,
            "path": self.path,
            "format": self.format,
            "root": self.root,
            "stripped": list(self.stripped),
            "tensors": [
                {
                    "key": key,
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "nbytes": stored_bytes(info),
                    "file": ", ".join(dict.fromkeys(one.storage.file for one in leaves(info) if one.storage)),
                    "tied_to": self.ties.get(key),
                    "opaque": info.opaque or None,
                    **self._stats_json(key),
                }
                for key, info in self.tensors.items()
            ],
            "extras": [{"key": extra.key, "type": extra.type, "value": extra.value} for extra in self.extras],
            "quantised": [
                {
                    "key": one.name,
                    "method": one.method,
                    "parameters": one.parameters,
                    "parameters_at_least": one.at_least,
                    "shape": list(one.shape) if one.shape is not None else None,
                    "parts": list(one.keys),
                    "bits_per_weight": self.bits_per_weight(one),
                    **self._decoded_json(one.name),
                }
                for one in self.codes.tensors
            ],
            "summary": asdict(self.summary) if self.summary is not None else None,
            "totals": {
                "tensors": len(self.tensors),
                "parameters": self.parameters,
                "parameters_at_least": self.parameters_at_least,
                "nbytes": self.nbytes,
            },
            "basis": self.basis or None,
            "other_roots": list(self.passed),
            "adapter": self.adapter.to_json() if self.adapter is not None else None,
            "tokens": asdict(self.tokens) if self.tokens is not None else None,
            "model": asdict(self.model) if self.model is not None else None,
            "metadata": dict(self.metadata),
            "notes": list(self.notes),
        }

    def _decoded_json(self, name: str) -> dict[str, Any]:
        if self.stats is None:
            return {}
        stats = self.decoded.get(name)
        return {"stats": asdict(stats) if stats is not None else None, "undecoded": self.undecoded.get(name)}

    def _stats_json(self, key: str) -> dict[str, Any]:
        if self.stats is None:
            return {}
        stats = self.stats[key]
        return {"stats": asdict(stats) if stats is not None else None}


def inspection_of(
    checkpoint: Checkpoint,
    include: Iterable[str] | None = (),
    exclude: Iterable[str] | None = (),
    *,
    stats: bool = False,
    weights: Weights | None = None,
) -> Inspection:
    """Describe an open checkpoint, or only the tensors that ``include`` and ``exclude`` select.

    Reads only headers; with ``stats`` also the values of these tensors, except quantised codes. ``weights`` is a
    function that dequantises; if it is given, the dequantised values are measured too. Raises PatternError for a
    pattern that matches no key, and PlanError if no key is left.
    """
    chosen = chosen_keys(list(checkpoint), include, exclude, names=checkpoint.codes.names)
    tensors, ties = dict(checkpoint.items()), checkpoint.ties
    if len(chosen.keys) < len(tensors):
        tensors = {key: tensors[key] for key in chosen.keys}
        ties = tied_keys(tensors)
    codes = checkpoint.codes.only(tensors)
    decoded = decoded_stats(checkpoint, codes, weights, ties) if stats and weights is not None else DecodedStats()
    return Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        root=checkpoint.root,
        passed=checkpoint.passed,
        stripped=checkpoint.stripped,
        tensors=tensors,
        ties=ties,
        extras=checkpoint.extras,
        metadata={key: one.said for key, one in checkpoint.header.stored.items()} | dict(checkpoint.metadata),
        notes=(
            *notes_on_some(checkpoint.notes, checkpoint.keys() - tensors.keys()),
            *as_notes(NoteKind.REMARK, chosen.notes),
        ),
        nbytes_files=_on_disk(checkpoint.files),
        made_by_us=checkpoint.recipe is not None,
        stats=stored_stats(checkpoint, tensors) if stats else None,
        codes=codes,
        basis=basis_of(checkpoint.quantisation) if codes else "",
        decoded=decoded.found,
        undecoded=decoded.refused,
        damaged=tuple(decoded.damaged),
        decoded_elements=decoded.elements,
    )


def _on_disk(files: Sequence[FilePrint]) -> int:
    """Return the size of a checkpoint's files in bytes.

    If the checkpoint is an archive, ``files`` lists the archive with an empty name, then its members. The sizes of the
    members are not added to the size of the archive.
    """
    return sum(file.size for file in files if not file.name) or sum(file.size for file in files)
