"""Reads Megatron's checkpoints with one file per rank: ``iter_0000010/mp_rank_00_000/model_optim_rng.pt``.

In the folder name ``mp_rank_TT`` or ``mp_rank_TT_PPP``, TT is the rank of tensor parallelism and PPP the rank of
pipeline parallelism. The file contains the arguments of the run, and ``model`` with the rank's parts of the weights.
Follows ``megatron/training/checkpointing.py``. Newer runs save a distributed checkpoint instead: ``torch_dcp.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import FormatError, SourceError, UnsafeError
from ..storage.read.base import File, Folder, Source
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing, natural_key
from ._open import read_header
from .base import limits
from .base.flatten import named_once
from .base.format_table import TRACKER, has_weights, tracked_folder
from .base.header import Header, naming
from .pickle.values import OpaqueResult
from .ranks.joining import equal_bytes, not_compared
from .ranks.megatron_layers import join_ranks
from .ranks.megatron_settings import MegatronSettings, settings_of
from .ranks.megatron_stages import StageNotes
from .torch.zero import StateFile

__all__ = ["FORMAT", "with_flat_model"]

_RANK = re.compile(r"mp_rank_(\d{2,3})(?:_(\d{3}))?(_\d{3})?")
_FILES = ("model_optim_rng.pt", "model_rng.pt")
_LAYER = re.compile(r"(.*?\blayers\.)(\d{1,6})(\..*)", re.DOTALL)
_CHUNK = re.compile(r"model\d*")
_BESIDE = ("iteration", "checkpoint_version")
_WORDS, _PREDICTS = "word_embeddings.weight", "mtp."
_TIED = ("output_layer.weight", "language_model.output_layer.weight", "word_embeddings_for_head.weight")


class _Megatron:
    name = "megatron"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has subfolders of ranks, or no weights but a subfolder of the latest iteration."""
        if not isinstance(source, Folder):
            return False
        if any(map(_RANK.fullmatch, source.folders())):
            return True
        return TRACKER in source.names() and not has_weights(source.names()) and bool(_latest(source))

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the files of all ranks; raises FormatError if the files do not fit together."""
        assert isinstance(source, Folder)
        if not any(map(_RANK.fullmatch, source.folders())):
            return read_header(source.inside(_latest(source)))
        stages = _stages(source)
        files: list[StateFile] = []
        try:
            grid = [[_file(source, name, files) for name in stage] for stage in stages]
            weights, notes = _weights(grid)
        except BaseException:
            for one in files:
                one.file.close()
            raise
        tree = files[0].tree
        left = [str(key) for key in tree if not _is_chunk(key) and key not in (*_BESIDE, "args")]
        left_out = f"; left out: {listing(left, 12, where='')}" if left else ""
        return Header(
            format=self.name,
            tree={"model": weights, **{key: tree[key] for key in _BESIDE if key in tree}},
            files=tuple(file for one in files for file in one.header.files),
            handles={key: file for one in files for key, file in one.header.handles.items()},
            notes=(
                f"read as one model: {count(len(stages[0]), 'rank')} of tensor parallelism in "
                f"{count(len(stages), 'stage')}{left_out}",
                *notes,
            ),
        )


def with_flat_model(header: Header) -> Header:
    """Return the header of one file of Megatron-LM with the keys of the nested model joined by dots.

    Headers of other files are returned unchanged. Raises FormatError if the file has only the parts of one of several
    ranks.
    """
    model = header.tree.get("model") if isinstance(header.tree, Mapping) else None
    parts = model.get("language_model") if isinstance(model, Mapping) else None
    is_nested = isinstance(parts, Mapping) and any(isinstance(one, Mapping) for one in parts.values())
    if not is_nested or len(header.handles) != 1:
        return header
    one = StateFile(next(iter(header.handles.values())), header)
    stated = _stated(one)
    if max(stated.tensor, stated.pipeline) > 1:
        raise FormatError(
            f"{escape(one.file.uri)} has only the parts of one rank of a run with {stated.tensor or 1} ranks of tensor "
            f"parallelism and {count(stated.pipeline or 1, 'stage')}.",
            hint="Give the folder that has the folders mp_rank_… of all ranks.",
            rule="ranks",
        )
    weights, notes = _weights([[one]])
    return replace(header, tree={**one.tree, "model": weights}, notes=(*header.notes, *notes))


def _latest(folder: Folder) -> str:
    """Return the subfolder of the last iteration, such as "iter_0000010"; '' if there is none.

    The file ``latest_checkpointed_iteration.txt`` has the number of this iteration.
    """
    try:
        file = folder.file(TRACKER)
        said = file.read(0, min(file.size, 64)).decode("ascii", "replace").strip()
        file.close()
    except SourceError:
        return ""
    name = tracked_folder(said)
    return name if name in folder.folders() else ""


def _stages(folder: Folder) -> list[list[str]]:
    """Return the subfolders of the ranks: a list for each pipeline stage, with its ranks of tensor parallelism.

    Raises FormatError if a rank is missing or has two folders, or if experts are split across ranks; UnsafeError if
    there are too many ranks.
    """
    found: dict[tuple[int, int], str] = {}
    for name in sorted(folder.folders(), key=natural_key):
        rank = _RANK.fullmatch(name)
        if rank is None:
            continue
        if rank[3]:
            raise FormatError(
                f"{escape(folder.uri)} has experts that are split across ranks ({escape(name)}), which cannot be read.",
                hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
                rule="megatron layer",
            )
        place = int(rank[2] or 0), int(rank[1])
        if place in found:
            raise FormatError(
                f"{escape(folder.uri)} has two folders of one rank: {escape(found[place])} and {escape(name)}.",
                hint="Move the folders of another run out of this folder.",
                rule="ranks",
            )
        found[place] = name
    if len(found) > limits.RANKS:
        raise UnsafeError(
            f"{escape(folder.uri)} has {len(found)} ranks, more than the limit of {limits.RANKS}.", rule="ranks"
        )
    stages, ranks = max(found)[0] + 1, max(rank for _, rank in found) + 1
    missing = [(stage, rank) for stage in range(stages) for rank in range(ranks) if (stage, rank) not in found]
    if missing:
        shown = [f"mp_rank_{rank:02d}{f'_{stage:03d}' if stages > 1 else ''}" for stage, rank in missing[:1000]]
        raise FormatError(
            f"{escape(folder.uri)} lacks the folders of some ranks: {listing(shown)}.",
            hint="Fetch the whole folder again, without the folders of other runs.",
            details=shown,
            rule="ranks",
        )
    return [[found[stage, rank] for rank in range(ranks)] for stage in range(stages)]


def _file(folder: Folder, rank: str, opened: list[StateFile]) -> StateFile:
    """Open the file of the folder ``rank``, append it to ``opened``, and return it.

    Raises FormatError if there is no such file, or if it has no model.
    """
    names = folder.inside(rank).names()
    name = next((f"{rank}/{one}" for one in _FILES if one in names), "")
    if not name:
        raise FormatError(f"{escape(folder.uri)} has no {_FILES[0]} in {escape(rank)}.", rule="ranks")
    file = folder.file(name)
    try:
        header = read_header(file, name)
        if not isinstance(header.tree, Mapping) or not any(_is_chunk(key) for key in header.tree):
            raise FormatError(f"{escape(file.uri)} lacks the entry model, which Megatron saves.", rule="megatron")
    except BaseException:
        file.close()
        raise
    opened.append(StateFile(file, header))
    return opened[-1]


def _is_chunk(key: Any) -> bool:
    return isinstance(key, str) and _CHUNK.fullmatch(key) is not None


def _chunks(one: StateFile) -> list[str]:
    """Return the keys of a rank's file that have parts of the model: one for each virtual pipeline stage."""
    return sorted((key for key in one.tree if _is_chunk(key)), key=natural_key)


def _weights(grid: Sequence[Sequence[StateFile]]) -> tuple[dict[str, TensorInfo], list[str]]:
    """Return the tensors of the whole model, and notes; ``grid`` has the files of the ranks of each pipeline stage."""
    first = grid[0][0]
    settings = _settings(first, ranks=len(grid[0]), stages=len(grid))
    _check_one_run([one for stage in grid for one in stage])
    chunks = _chunks(first)
    for one in (one for stage in grid for one in stage):
        if _chunks(one) != chunks:
            raise FormatError(
                f"{escape(one.file.uri)} has {', '.join(_chunks(one))}, but {escape(first.file.uri)} has "
                f"{', '.join(chunks)}: the files are not from the same run.",
                hint="Fetch the whole folder again.",
                rule="ranks",
            )
    weights: dict[str, TensorInfo] = {}
    layers: dict[str, int] = {}
    odd = StageNotes()
    handles = {key: file for stage in grid for one in stage for key, file in one.header.handles.items()}
    others: list[str] = []
    unknown: list[str] = []
    for chunk in chunks:
        for stage in grid:
            names = [escape(one.file.uri) for one in stage]
            found = [_entries(one, chunk) for one in stage]
            others += [key for key, info in found[0].items() if info is None]
            trees = [{key: info for key, info in one.items() if info is not None} for one in found]
            joined = join_ranks(trees, settings, names, handles=handles, unknown=unknown)
            copies = _copies(joined, weights, settings)
            _check_copies(copies, joined, weights, names[0], handles=handles)
            odd.look(f"{chunk} of {names[0]}" if len(chunks) > 1 else names[0], joined, handles)
            _add(weights, {key: info for key, info in joined.items() if key not in copies}, layers, name=names[0])
    notes = [*odd.notes(layers, settings.layers), *not_compared(unknown)]
    if others:
        number = count(len(others), "entry", "entries")
        notes.insert(0, f"left out {number} other than weights, such as {escape(others[0])}")
    return weights, notes


def _settings(first: StateFile, *, ranks: int, stages: int) -> MegatronSettings:
    settings = _stated(first)
    if settings.experts > 1:  # the folders of their ranks can look like those of pipeline stages
        raise FormatError(
            f"{escape(first.file.uri)} is from a run whose experts are split across {settings.experts} ranks.",
            hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
            rule="megatron layer",
        )
    for said, there, what in ((settings.tensor, ranks, "tensor"), (settings.pipeline, stages, "pipeline")):
        if said and said != there:
            raise FormatError(
                f"{escape(first.file.uri)} is from a run with {what}_model_parallel_size {said}, but the folders "
                f"of its ranks are those of a run with {there}.",
                hint="Fetch the whole folder again, without the folders of other runs.",
                rule="ranks",
            )
    return settings


def _check_one_run(files: Sequence[StateFile]) -> None:
    """Raise FormatError if a file states another iteration, or other numbers of ranks, than the first file."""

    def said(one: StateFile) -> dict[str, Any]:
        stated = _stated(one)
        return {
            "iteration": one.tree.get("iteration"),
            "tensor_model_parallel_size": stated.tensor or None,
            "pipeline_model_parallel_size": stated.pipeline or None,
        }

    first = said(files[0])
    for one in files[1:]:
        for name, value in said(one).items():
            if type(value) is type(first[name]) is int and value != first[name]:
                raise FormatError(
                    f"{escape(one.file.uri)} has {name} {value}, but {escape(files[0].file.uri)} has {first[name]}: "
                    "the files are not from the same run and step.",
                    hint="Fetch the whole folder again.",
                    rule="ranks",
                )


def _stated(first: StateFile) -> MegatronSettings:
    args = first.tree.get("args")
    return settings_of(
        args.attributes() if isinstance(args, OpaqueResult) else {}, first.tree.get("checkpoint_version")
    )


def _entries(one: StateFile, chunk: str) -> dict[str, TensorInfo | None]:
    """Return the entries that ``_flat`` yields for a part of the model; raises FormatError if a name occurs twice."""
    with naming(one.file):
        return named_once(_flat(one, one.tree.get(chunk)))


def _flat(one: StateFile, tree: Any) -> Iterator[tuple[str, TensorInfo | None]]:
    """Yield (dotted name, tensor) of each entry of a model; the tensor is None for another object or _extra_state.

    ``tree`` has the entries of the model, nested in old files. ``one`` is the file of the model, for messages. Raises
    FormatError if the model is not a dict, has too many dicts inside, or has a key that is not a string or too long.
    """
    waiting, visited = [("", tree)], 0
    while waiting:
        prefix, node = waiting.pop()
        visited += 1
        if not isinstance(node, Mapping) or visited > limits.TREE_NODES or prefix.count(".") > limits.KEY_SEGMENTS:
            raise FormatError(f"{escape(one.file.uri)} has a model that is not a dict of tensors.", rule="megatron")
        for key, value in node.items():
            if not isinstance(key, str) or len(prefix) + len(key) > limits.KEY_CHARACTERS:
                raise FormatError(
                    f"{escape(one.file.uri)} has a key that is not a string, or is too long.", rule="megatron"
                )
            if isinstance(value, Mapping):
                waiting.append((f"{prefix}{key}.", value))
            else:
                yield f"{prefix}{key}", value if isinstance(value, TensorInfo) and not _is_state(key) else None


def _is_state(key: str) -> bool:
    return key.endswith("_extra_state")


def _copies(
    stage: Mapping[str, TensorInfo], weights: Mapping[str, TensorInfo], settings: MegatronSettings
) -> list[str]:
    """Return the keys of a pipeline stage that are copies of the word embedding.

    ``weights`` has the tensors of earlier stages. A tied output layer is a copy. A stage that predicts later tokens
    (``mtp``) has a copy of the word embedding under its own name
    (https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/core/models/gpt/gpt_model.py).
    """
    if _embedding(weights) is None and _embedding(stage) is None:
        return []
    predicts = any(key.startswith(_PREDICTS) for key in stage)
    return [
        key
        for key in stage
        if (settings.tied and key.endswith(_TIED)) or (predicts and key.endswith(_WORDS) and key in weights)
    ]


def _check_copies(
    copies: Sequence[str],
    stage: Mapping[str, TensorInfo],
    weights: Mapping[str, TensorInfo],
    name: str,
    *,
    handles: Mapping[str, File],
) -> None:
    """Raise FormatError if a copy of the word embedding has other values; ``name`` is the name of its file."""
    words = _embedding(weights) or _embedding(stage)
    for key in copies:
        if words is not None and _differ(stage[key], words, handles):
            raise FormatError(
                f"{name}: {escape(key)} is tied to the word embedding, but has different values.", rule="tied"
            )


def _add(weights: dict[str, TensorInfo], stage: Mapping[str, TensorInfo], layers: dict[str, int], *, name: str) -> None:
    """Add the tensors of a pipeline stage to ``weights``; its layers are numbered after the layers of earlier stages.

    In ``stage``, the layers are numbered from 0. ``layers`` has, for each list of layers, the number of its layers so
    far, and is updated. ``name`` is the name of a file for messages. Raises FormatError for a tensor that an earlier
    stage has, too.
    """
    most: dict[str, int] = {}
    for key, info in stage.items():
        layer = _LAYER.fullmatch(key)
        if layer is not None:
            most[layer[1]] = max(most.get(layer[1], 0), int(layer[2]) + 1)
            key = f"{layer[1]}{int(layer[2]) + layers.get(layer[1], 0)}{layer[3]}"
        if key in weights:
            raise FormatError(
                f"{name} has {escape(key)}, which an earlier pipeline stage has, too.", rule="megatron stage"
            )
        weights[key] = info
    for prefix, number in most.items():
        layers[prefix] = layers.get(prefix, 0) + number


def _embedding(weights: Mapping[str, TensorInfo]) -> TensorInfo | None:
    return next((info for key, info in weights.items() if key.endswith(_WORDS)), None)


def _differ(one: TensorInfo, other: TensorInfo, handles: Mapping[str, File]) -> bool:
    """Return whether the values of two tensors differ; the parts of ranks are compared one by one.

    Parts that cannot be compared count as equal. Tensors with different numbers of parts differ if their shapes do.
    """
    ours, theirs = _parts(one), _parts(other)
    if len(ours) != len(theirs):
        return one.shape != other.shape
    return any(equal_bytes(a, b, handles) is False for a, b in zip(ours, theirs, strict=True))


def _parts(info: TensorInfo) -> tuple[TensorInfo, ...]:
    """Return the parts of the ranks of the tensor ``info``, or ``info`` itself if it was not joined from parts."""
    of = getattr(info.made, "of", None)
    return of if isinstance(of, tuple) and of else (info,)


FORMAT = _Megatron()
