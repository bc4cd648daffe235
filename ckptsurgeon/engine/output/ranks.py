"""Reads the options for an output with a file for each rank: how many ranks, and the axis that splits each tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import ConfigError, OutputError
from ...formats.base.header import OutTensor
from ...formats.base.limits import RANK_PIECES, RANKS
from ...formats.base.rank_layout import RankShares, RankWriter
from ...planning.keys.pattern import KeyPattern
from ...planning.keys.pattern_hints import matched
from ...tensors.dtypes import DTYPES
from ...util.text import count, escape
from .option_names import Spelling

__all__ = ["RankOptions", "check_ranks", "rank_shares"]

NONE = "none"
"""The axis in ``GLOB=AXIS`` for tensors that are not split."""
_MESH = re.compile(r"(?:([a-z][a-z0-9]*):)?([A-Za-z_]\w*)")


@dataclass(frozen=True)
class RankOptions:
    """The options of formats with a file for each rank.

    ``ranks`` is the number of ranks, 0 if it is not given. ``axes`` are strings ``GLOB=AXIS``: the last string whose
    pattern matches a key sets the axis that splits this tensor. ``mesh`` is ``DEVICE:NAME``: the kind of device of a
    mesh, and the name of the mesh's dimension.
    """

    ranks: int = 0
    axes: tuple[str, ...] = ()
    mesh: str = ""

    @property
    def given(self) -> str:
        """The name of the first option that is given, such as --ranks; '' if none is given."""
        named = {"--ranks": self.ranks, "--axis": self.axes, "--mesh": self.mesh}
        return next((name for name, value in named.items() if value), "")


def check_ranks(writer: RankWriter, options: RankOptions, spelling: Spelling) -> None:
    """Raise ConfigError if the options are not valid for a format with a file for each rank."""
    if not options.ranks:
        raise ConfigError(
            f"{spelling.given('--to', writer.name)} needs the number of ranks, because it writes a file for each rank.",
            hint="Give the number, as in --ranks 8.",
        )
    if not 1 <= options.ranks <= RANKS:
        raise ConfigError(f"{spelling.given('--ranks', options.ranks)} is not a number from 1 to {RANKS}.")
    list(_axes(options.axes, spelling))
    if options.mesh and writer.name != "fsdp":  # the other format stores no mesh
        given = spelling.name("--mesh")
        raise ConfigError(f"{given} needs --to fsdp.", hint=f"Leave {given} out.")
    if options.mesh and _MESH.fullmatch(options.mesh) is None:
        raise ConfigError(
            f"{spelling.given('--mesh', escape(options.mesh))} is not a valid mesh.",
            hint=f"Write a device and a name, as in {spelling.given('--mesh', 'cuda:fsdp')}.",
        )


def _axes(texts: Sequence[str], spelling: Spelling) -> Iterator[tuple[str, KeyPattern, int | None]]:
    """Yield (option as written, pattern, axis) for each string ``GLOB=AXIS``; the axis is None for ``GLOB=none``.

    Raises ConfigError for a string of another form.
    """
    before, behind = spelling.around("--axis")
    for text in texts:
        glob, equals, axis = text.rpartition("=")
        if not equals or not glob or not (axis == NONE or re.fullmatch(r"-?\d{1,2}", axis)):
            raise ConfigError(
                f"{before}{escape(text)}{behind} is not of the form GLOB=AXIS.",
                hint=f"Write a pattern and an axis, as in {before}'**.o_proj.weight=1'{behind}, or GLOB={NONE}.",
            )
        pattern = KeyPattern.given(glob, before, f"={axis}{behind}")
        yield f"{before}{text}{behind}", pattern, None if axis == NONE else int(axis)


def rank_shares(
    writer: RankWriter, tensors: Sequence[OutTensor], options: RankOptions, spelling: Spelling
) -> RankShares:
    """Return the division of tensors between the ranks: the axis that splits each tensor.

    Raises PatternError if a pattern matches no tensor, ConfigError if a tensor does not have the axis. Raises
    OutputError if a tensor with an axis is quantised in blocks, or if the ranks together have too many tensors.
    """
    if len(tensors) * options.ranks > RANK_PIECES:
        raise OutputError(
            f"{count(len(tensors), 'tensor')} on {options.ranks} ranks make {len(tensors) * options.ranks} parts: "
            f"ckptsurgeon reads at most {RANK_PIECES}.",
            hint="Write fewer ranks.",
        )
    known = {tensor.key: tensor for tensor in tensors}
    axes: dict[str, int | None] = {key: writer.axis_of(tensor) for key, tensor in known.items()}
    given = list(_axes(options.axes, spelling))
    hits, _ = matched(((option, pattern) for option, pattern, _ in given), list(known), "output")
    for (option, _, axis), keys in zip(given, hits, strict=True):
        axes |= {key: None if axis is None else _checked(option, known[key], axis, spelling) for key in keys}
    device, name = _mesh(options.mesh)
    return RankShares(options.ranks, {key: axis for key, axis in axes.items() if axis is not None}, (device, name))


def _checked(option: str, tensor: OutTensor, axis: int, spelling: Spelling) -> int:
    if not -len(tensor.shape) <= axis < len(tensor.shape):
        whole = spelling.given("--axis", f"GLOB={NONE}")
        raise ConfigError(
            f"{escape(option)}: {escape(tensor.key)} has no axis {axis}: its shape is {tensor.shape}.",
            hint=f"Use a narrower pattern, or {whole} for tensors that every rank stores whole.",
        )
    if DTYPES[tensor.dtype].block or DTYPES[tensor.dtype].bits < 8:
        raise OutputError(
            f"{escape(tensor.key)} is {tensor.dtype}, which cannot be split between ranks.",
            hint=f"Store the whole tensor in the file of every rank: {spelling.given('--axis', f'KEY={NONE}')}.",
        )
    return axis % len(tensor.shape)


def _mesh(text: str) -> tuple[str, str]:
    found = _MESH.fullmatch(text)
    return (found[1] or "cuda", found[2]) if found is not None else ("cuda", "fsdp")
