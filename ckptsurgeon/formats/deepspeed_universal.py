"""Reads DeepSpeed's universal checkpoints: the float32 weights, each in ``zero/<name of the parameter>/fp32.pt``.

``ds_to_universal.py`` joined the parts of all ranks: each file is a dict with the whole tensor as ``param``. Next to
``fp32.pt`` are the optimizer's moments (``exp_avg.pt``); the model states of the run are next to ``zero``. Follows
``deepspeed/checkpoint/{ds_to_universal,universal_checkpoint}.py`` (0.19).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from ..errors import FormatError, SourceError, UnsafeError
from ..storage.read.base import Folder, Source
from ..tensors.composition import reshape
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing, natural_key
from ._open import open_header
from .base import limits
from .base.format_table import has_weights
from .base.header import Header
from .torch.zero import StateFile, buffers, frozen, groups_of, tied, with_ties

__all__ = ["FORMAT"]

_ZERO, _WEIGHT, _LATEST = "zero", "fp32.pt", "latest_universal"
_STATES = re.compile(r"mp_rank_\d+(?:_\d+)?_model_states\.pt|zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_FIRST = "mp_rank_00_model_states.pt"
_TAG_BYTES = 256
_BESIDE = ("global_steps", "global_samples", "ds_version", "iteration", "epoch")
"""Entries of the model states that are shown next to the weights."""


class _DeepSpeedUniversal:
    name = "deepspeed universal"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether ``source``, or its subfolder given in ``latest_universal``, is a universal checkpoint."""
        if not isinstance(source, Folder):
            return False
        names = source.names()
        if _ZERO in source.folders():
            return any(map(_STATES.fullmatch, names)) or any(
                _WEIGHT in source.inside(f"{_ZERO}/{one}").names() for one in _parameters(source, "")[:1]
            )
        return _LATEST in names and "latest" not in names and not has_weights(names) and bool(_tag(source))

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the files of all parameters.

        Raises FormatError if a file is not valid, UnsafeError if there are too many parameters.
        """
        from .ranks import universal
        from .ranks.zero_steps import parameter_step_notes

        assert isinstance(source, Folder)
        tag = "" if _ZERO in source.folders() else f"{_tag(source)}/"
        parameters = _parameters(source, tag)
        if len(parameters) > limits.PIECES:
            raise UnsafeError(
                f"{escape(source.uri)} has {len(parameters)} parameters, more than the limit of {limits.PIECES}.",
                rule="pieces",
            )
        opened: list[StateFile] = []
        try:
            weights = {key: _weight(source, f"{tag}{_ZERO}/{key}/{_WEIGHT}", opened) for key in parameters}
            beside_zero = source.inside(tag[:-1]).names() if tag else source.names()
            states = [one for one in beside_zero if _STATES.fullmatch(one)]
            model = _only_states(source, tag, states, opened)
            trees = [model.tree] if model else [_closed_tree(source, f"{tag}{one}") for one in states[: limits.RANKS]]
            notes = [*universal.odd_notes(weights, states, list(universal.listed(trees)))]
            own = dict(weights)
            beside = _add_states(source, model, weights) if model else {}
            weights = with_ties(weights, tied(trees))
            _check_complete(source, weights, list(universal.listed(trees, ["param_shapes"])))
            notes += universal.unlike_notes(own, model, opened) if model else ()
            done = next((tree.get("global_steps") for tree in trees if isinstance(tree, Mapping)), None)
            notes += parameter_step_notes(source, f"{tag}{_ZERO}", parameters, done)
        except BaseException:
            for one in opened:
                one.file.close()
            raise
        left = _left_out(source, f"{tag}{_ZERO}", parameters)
        return Header(
            format=self.name,
            tree={"module": weights, **beside},
            files=tuple(file for one in opened for file in one.header.files),
            handles={key: file for one in opened for key, file in one.header.handles.items()},
            notes=(
                f"universal checkpoint{f' of {escape(tag[:-1])}' if tag else ''}: float32 weights of "
                f"{count(len(parameters), 'parameter')}{left}",
                *_parts_unread(states),
                *notes,
            ),
        )


def _tag(folder: Folder) -> str:
    """Return the subfolder that the file ``latest_universal`` names; '' if there is no universal checkpoint in it."""
    try:
        file = folder.file(_LATEST)
        raw = file.read(0, min(file.size, _TAG_BYTES))
        file.close()
        tag = raw.decode("utf-8", "replace").strip()
        plain = re.fullmatch(r"[\w.+=-]{1,200}", tag) is not None and tag not in (".", "..")
        return tag if plain and _ZERO in folder.inside(tag).folders() else ""
    except SourceError:
        return ""


def _parameters(folder: Folder, tag: str) -> list[str]:
    """Return the names of the parameters: the names of the subfolders of ``zero``.

    ``tag`` is the subfolder that contains ``zero``, with a slash at the end; '' if ``folder`` itself contains it.
    """
    try:
        return sorted(folder.inside(f"{tag}{_ZERO}").folders(), key=natural_key)
    except SourceError:
        return []


def _state(folder: Folder, name: str, opened: list[StateFile]) -> Any:
    """Return the content of the file ``name``, and append the open file to ``opened``.

    Raises FormatError if the file cannot be opened or is not valid.
    """
    try:
        file = folder.file(name)
    except SourceError as error:
        raise FormatError(
            f"a file of the universal checkpoint cannot be read: {error.message}",
            hint="If it is missing, the conversion with ds_to_universal.py was not finished, or the folder is "
            "incomplete: convert or fetch it again.",
            rule="missing file",
        ) from error
    opened.append(StateFile(file, open_header(file, name)))
    return opened[-1].header.tree


def _weight(folder: Folder, name: str, opened: list[StateFile]) -> TensorInfo:
    """Return the weight in the file ``name``, an ``fp32.pt``, and append the open file to ``opened``.

    The content of the file is a dict, or for ZeRO stage 3 possibly a bare tensor. Raises FormatError if it has no
    weight.
    """
    tree = _state(folder, name, opened)
    info = tree.get("param") if isinstance(tree, Mapping) else tree
    if not isinstance(info, TensorInfo):
        raise FormatError(f"{escape(opened[-1].file.uri)} has no entry param with a tensor.", rule="universal")
    return info


def _only_states(folder: Folder, tag: str, names: Sequence[str], opened: list[StateFile]) -> StateFile | None:
    """Return the model states, and append the open file to ``opened``; None unless one file has all of them.

    ``names`` are the names of the files with model states. Only a file ``mp_rank_00_model_states.pt`` that is alone has
    all of them. Raises FormatError if this file is not valid.
    """
    if names != [_FIRST]:
        return None
    if not isinstance(_state(folder, f"{tag}{_FIRST}", opened), Mapping):
        raise FormatError(
            f"{escape(opened[-1].file.uri)} is not a dict of training states as DeepSpeed saves it.",
            rule="zero states",
        )
    return opened[-1]


def _add_states(folder: Folder, model: StateFile, weights: dict[str, TensorInfo]) -> dict[str, Any]:
    """Add to ``weights`` the tensors that only the model states contain: buffers and frozen parameters.

    Weights that are stored as vectors get their shapes. Returns the entries of the model states that are in
    ``_BESIDE``, such as the number of steps. Raises FormatError if shapes contradict each other, or if a frozen
    parameter is missing.
    """
    tree = model.tree
    if "param_shapes" in tree:
        shapes = {key: shape for group in groups_of(model) for key, shape in group.items()}
        for key, shape in shapes.items():
            info = weights.get(key)
            if info is None:  # _check_complete names it
                continue
            if info.shape != shape and len(info.shape) == 1 and info.numel == prod(shape):
                weights[key] = reshape(info, shape)
            elif info.shape != shape and info.shape[1:] != shape[1:]:  # a vocabulary's padding may be cut off
                raise FormatError(
                    f"{escape(folder.uri)}: {escape(key)} has the shape {info.shape} in {_ZERO}/, but {shape} in "
                    f"{_FIRST}: the files are not from the same run.",
                    rule="universal",
                )
    if "buffer_names" in tree:
        weights.update({key: info for key, info in buffers(model).items() if key not in weights})
    weights.update({key: info for key, info in frozen([model], 2).items() if key not in weights})
    return {key: tree[key] for key in _BESIDE if key in tree}


def _check_complete(folder: Folder, weights: Mapping[str, TensorInfo], shapes: Iterable[str]) -> None:
    """Raise FormatError if a parameter in ``shapes``, the parameters that the model states list, has no folder."""
    lacking = [key for key in dict.fromkeys(shapes) if key not in weights]
    if lacking:
        raise FormatError(
            f"{escape(folder.uri)} lacks the folders of {count(len(lacking), 'parameter')} that the model states list: "
            f"{listing([f'{_ZERO}/{key}' for key in lacking], 3, where='')}.",
            hint="Convert the checkpoint with ds_to_universal.py again, or fetch the whole folder.",
            details=lacking,
            rule="missing file",
        )


def _closed_tree(folder: Folder, name: str) -> Any:
    """Return the content of the file ``name``; the file is closed before the return."""
    opened: list[StateFile] = []
    try:
        return _state(folder, name, opened)
    finally:
        for one in opened:
            one.file.close()


def _parts_unread(states: Sequence[str]) -> list[str]:
    """Return a list with a note if there are model states of several ranks, whose tensors are not read; else [].

    ``states`` has the names of the files with model states.
    """
    if states in ([], [_FIRST]):
        return []
    return [
        f"the tensors in the model states of {count(len(states), 'rank')} were not read: only they contain buffers "
        "and frozen parameters"
    ]


def _left_out(folder: Folder, zero: str, parameters: Sequence[str]) -> str:
    """Return the end of a note: a list of the optimizer states that were left out; '' if none were.

    ``zero`` is the path of the folder that has a subfolder for each parameter, ``parameters`` has their names.
    """
    names = folder.inside(f"{zero}/{parameters[0]}").names() if parameters else []
    others = [name.removesuffix(".pt") for name in names if name != _WEIGHT and name.endswith(".pt")]
    return f"; left out of the optimizer: {listing(others, 6, where='')}" if others else ""


FORMAT = _DeepSpeedUniversal()
