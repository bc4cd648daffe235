"""Collects all notes on the quantised tensors of a checkpoint and on its quantisation settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ..storage.read.base import File, Folder
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.parts import broken_partners
from ..util.text import escape
from .mlx_columns import of_other_columns
from .quantisation import settings_by_file, settings_in
from .quantisation_notes import contradictory, of_other_width, plain_integers, unfit, unlike_others
from .quantised_parts import incomplete, notes_on_parts
from .quantised_values import notes_on_values, read_small_tensor
from .refused_settings import refused_settings
from .settings_notes import disagreeing_files, missing_settings
from .unknown_layouts import unknown_layouts

__all__ = ["QuantisedCheckpoint", "all_quantisation_notes"]


class QuantisedCheckpoint(Protocol):
    """The attributes of an open ``Checkpoint`` that are needed to make notes on its quantised tensors.

    ``path`` is its path for messages. ``folder`` and ``around`` are folders with the files of the model, such as
    config.json; ``Checkpoint`` describes the difference.
    """

    path: str
    folder: Folder | None
    around: Folder | None

    @property
    def metadata(self) -> Mapping[str, str]:
        """The strings stored with the tensors."""

    @property
    def codes(self) -> QuantisedTensors:
        """The quantised tensors."""

    @property
    def quantisation(self) -> Mapping[str, Any]:
        """The quantisation settings; {} if there are none."""

    @property
    def quant_states(self) -> Mapping[str, Mapping[str, Any]]:
        """The ``quant_state`` of each 4-bit weight of bitsandbytes, by the weight's name."""

    @property
    def elsewhere(self) -> Sequence[str]:
        """The keys of the other shards of the model."""

    def open_files(self) -> Mapping[str, File]:
        """Return {name within the checkpoint: open file}."""


def all_quantisation_notes(
    checkpoint: QuantisedCheckpoint,
    tensors: Mapping[str, TensorInfo],
    *,
    unread: Collection[str],
    is_shard: bool,
) -> list[str]:
    """Return notes on quantised tensors that are incomplete or odd, and on settings that contradict the tensors.

    ``tensors`` are the tensors of the checkpoint. ``unread`` are the keys of scales that exist in other files, but were
    not read: there is no note that these scales are missing. ``is_shard`` is true if the checkpoint is one of several
    shards.
    """
    path, codes = checkpoint.path, checkpoint.codes
    settings = checkpoint.quantisation if codes else {}
    said = list[str]()
    if codes:
        lacking = list(broken_partners(codes, tensors, {*checkpoint.elsewhere, *unread}))
        parts = unfit(codes, tensors, settings, lacking)
        said += contradictory(path, codes, tensors, settings, parts, checkpoint.elsewhere)
        said += incomplete(path, lacking)
        is_whole = bool(checkpoint.elsewhere) or not is_shard
        said += notes_on_parts(path, codes, tensors, settings, checkpoint.elsewhere, is_whole=is_whole)
        read = partial(read_small_tensor, checkpoint.open_files())
        said += notes_on_values(path, codes, tensors, settings, read, checkpoint.quant_states)
        said += unlike_others(path, codes, tensors, settings, parts, checkpoint.folder)
        said = said or list(unknown_layouts(path, codes, tensors, settings))  # other notes are more exact
    if settings:
        said += of_other_width(path, codes, checkpoint.folder)
        said += of_other_columns(path, codes, tensors)
        said += (one.reworded(f"{escape(path)}: its quantization_config {one}") for one in refused_settings(settings))
        said += disagreeing_files(path, codes, settings_in(checkpoint.metadata), settings_by_file(checkpoint.around))
    said += plain_integers(path, codes, tensors)
    of_folder = missing_settings(
        path, codes, tensors, checkpoint.folder, settings, checkpoint.metadata, lambda: checkpoint.elsewhere
    )
    return [*said, *of_folder]
