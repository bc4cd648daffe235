"""Changes the tensors of a source before an edit is planned: by operations, a layout, a GGUF type or quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.quantisation import without_settings
from ..planning.operations.markers import marker_notes, without_markers
from ..planning.transplant.options import Options
from ..tensors.info import TensorInfo
from .gguf.types import rounded
from .inputs.operations import OperatedCheckpoint, operate
from .layouts.named_layout import KEEP, NamedLayout
from .model_folder.folder import ModelFolder
from .model_folder.quantised import dtype_of_weights, without_quantisation

__all__ = ["ChangedSource", "Changes", "Quantisation", "changed_source"]


class Quantisation(NamedTuple):
    """The name of a quantisation scheme ("fp8-block"), and the patterns that select the weights to quantise."""

    scheme: str
    include: Sequence[str]
    exclude: Sequence[str]


@dataclass(frozen=True)
class Changes:
    """The changes to the tensors of a source, listed in the order in which they are made; none by default.

    ``rows`` are operations (split, concat and others) as plain data, one dict for each. ``layout`` is the name of a
    layout ("gguf"), and ``heads`` are the numbers of query and key heads that the user gave for it ("32/8").
    ``gguf_type`` is the name of a GGUF quantisation type ("q8_0"). ``quantise`` is the quantisation; None if weights
    are not quantised.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    layout: str | None = None
    heads: str = ""
    gguf_type: str | None = None
    quantise: Quantisation | None = None


@dataclass(frozen=True)
class ChangedSource:
    """A source after its changes.

    ``operated`` has the changed tensors. ``folder`` has the model's files (config.json and others), adapted to the
    changed tensors if possible. ``described`` has the tensors that these files describe: the changed tensors, or the
    original tensors if the files were not adapted. ``options`` include the rules of a layout. ``is_described`` is true
    if config.json describes the tensors after the operations and rules of a layout, too.
    """

    operated: OperatedCheckpoint
    folder: ModelFolder
    described: Mapping[str, TensorInfo]
    options: Options
    metadata: Mapping[str, str]
    notes: Sequence[str]
    is_gguf: bool
    is_described: bool = False

    @property
    def checkpoint(self) -> Checkpoint:
        """The changed tensors."""
        return self.operated.checkpoint


def changed_source(stored: Checkpoint, folder: ModelFolder, options: Options, changes: Changes) -> ChangedSource:
    """Return the source ``stored`` after ``changes``; ``folder`` has the other files of its folder.

    Raises PlanError if a change does not fit the tensors, and the errors of ``operate``.
    """
    operated = _without_markers(operate([stored], changes.rows)[0])
    layout = _layout_named(changes, operated, _settled(operated, folder))
    options, described = _in_layout(options, layout), dict(stored.items())
    operated = operated.further(layout.change.operations, layout.derived)
    operated = operated.further(rounded(changes.gguf_type, described))
    checkpoint, notes = operated.checkpoint, list(layout.notes)
    described = dict(checkpoint.items()) if layout.is_described else described
    decoded = _is_decoded(operated)
    if decoded and not checkpoint.codes:
        described, folder = dict(checkpoint.items()), _settled(operated, folder)
    if changes.quantise is not None:
        from .quantising.quantising import quantising  # imported only if it is needed

        scheme, include, exclude = changes.quantise
        own = _dtype_of_scales(options, folder, decoded=decoded)
        found = quantising(checkpoint, folder, scheme, include=include, exclude=exclude, dtype=own)
        operated = operated.further([found.row])
        checkpoint = operated.checkpoint.stating(found.settings)
        operated, folder, described = replace(operated, checkpoint=checkpoint), found.folder(folder), dict(checkpoint)
        notes = [*found.notes, *notes]
    own_notes = stored.notes if decoded or changes.quantise is not None else checkpoint.notes
    metadata = without_settings(checkpoint.metadata, checkpoint) if decoded else checkpoint.metadata
    return ChangedSource(
        operated,
        folder,
        described,
        options,
        {**{k: v for k, v in metadata.items() if k not in layout.without}, **(layout.metadata or {})},
        [*own_notes, *operated.derived.notes, *notes],
        layout.is_gguf,
        layout.is_described,
    )


def _without_markers(operated: OperatedCheckpoint) -> OperatedCheckpoint:
    """Return a source without ``scaled_fp8`` if the weights that this tensor of ComfyUI is for were decoded."""
    stored, tensors = operated.stored, operated.derived.tensors
    if not _is_decoded(operated) or not (notes := marker_notes(stored, plain := without_markers(stored, tensors))):
        return operated
    derived = replace(operated.derived, tensors=plain, notes=(*operated.derived.notes, *notes))
    return replace(operated, checkpoint=operated.checkpoint.holding(plain), derived=derived)


def _is_decoded(operated: OperatedCheckpoint) -> bool:
    return any("dequantize" in row for row in operated.derived.rows)


def _settled(operated: OperatedCheckpoint, folder: ModelFolder) -> ModelFolder:
    """Return ``folder``; if all quantised tensors were decoded, config.json loses its ``quantization_config``."""
    return without_quantisation(folder) if _is_decoded(operated) and not operated.checkpoint.codes else folder


def _layout_named(changes: Changes, source: OperatedCheckpoint, folder: ModelFolder) -> NamedLayout:
    """Return the change to the layout in ``changes``; it changes nothing if this layout is None or "keep"."""
    if changes.layout is None or changes.layout == KEEP:
        return NamedLayout()
    from .layouts.changed_layout import layout_named  # this module imports all layouts, which most commands do not need

    return layout_named(changes.layout, source, folder, changes.heads)


def _in_layout(options: Options, layout: NamedLayout) -> Options:
    """Return the options with the renaming rules and exclusions of a layout."""
    change = layout.change
    if not change.rules and not change.exclude:
        return options
    named = Options.of(rules=change.rules, exclude=change.exclude)
    return replace(options, rules=named.rules, exclude=named.exclude, has_own_rules=True)


def _dtype_of_scales(options: Options, folder: ModelFolder, *, decoded: bool) -> str:
    """Return the dtype for the scales of quantised weights; '' if each scale gets the dtype of its weight.

    The result is the output dtype that the user gave. If the user gave none and the source was quantised before
    (``decoded``), the result is the dtype in config.json.
    """
    if options.dtype not in ("", "keep"):
        return options.dtype
    return dtype_of_weights(folder.config) if decoded else ""
