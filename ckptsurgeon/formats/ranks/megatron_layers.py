"""Joins the parts of Megatron's layers that tensor parallelism split across ranks.

The result is the same as if Megatron had run, and saved, on one rank. Follows
``megatron/core/tensor_parallel/layers.py``, ``megatron/core/transformer/{attention,mlp}.py`` and ``tools/checkpoint``
of Megatron-LM (core 0.4 to 0.14).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ...errors import FormatError
from ...storage.read.base import File
from ...tensors.composition import cut, join
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from .joining import equal_bytes
from .megatron_settings import MegatronSettings

__all__ = ["join_ranks"]

_QKV = re.compile(r"(?:.*\.)?(?:linear_qkv|query_key_value)\.(?:weight|bias)")
_FC1 = re.compile(r"(?:.*\.)?(?:linear_fc1|dense_h_to_4h)\.(?:weight|bias)\d*")
"""With Transformer Engine's grouped experts, a key ends with the number of the expert: ``linear_fc1.weight7``."""
_COLUMNS = re.compile(r"(?:.*\.)?(?:linear_q_proj|linear_q_up_proj|linear_kv_up_proj|eh_proj)\.weight")
"""Matches the keys of layers whose outputs are split across ranks: matrices of whole heads, and predicting layers."""
_DOWN = re.compile(r"(?:.*\.)?linear_(q|kv)_down_proj\.weight")
"""Matches the keys of matrices that each rank has whole (Transformer Engine) or in part (Megatron's own modules)."""
_VOCABULARY = re.compile(r"(?:.*\.)?(?:word_embeddings|word_embeddings_for_head|output_layer)\.weight")
_ROWS = re.compile(r"(?:.*\.)?(?:linear_proj|linear_fc2|dense_4h_to_h|(?:self_)?attention\.dense)\.weight\d*")
"""Matches the keys of layers whose inputs are split across the ranks: each rank has some columns of the matrix."""
_WHOLE = re.compile(
    r"(?:.*\.)?(?:\w*norm\w*\.(?:weight|bias)|layer_norm_(?:weight|bias)|(?:position|tokentype)_embeddings\.weight"
    r"|router\.(?:weight|bias|expert_bias)|(?:linear_proj|linear_fc2|dense_4h_to_h|attention\.dense)\.bias|inv_freq)"
)
"""Matches the keys of tensors that are not split: each rank has the whole tensor."""


def join_ranks(
    trees: Sequence[Mapping[str, TensorInfo]],
    settings: MegatronSettings,
    names: Sequence[str],
    *,
    handles: Mapping[str, File],
    unknown: list[str],
) -> dict[str, TensorInfo]:
    """Return the tensors of one pipeline stage, joined over its ranks of tensor parallelism.

    ``trees`` has the tensors of each rank, ``names`` the name of each rank's file for messages, ``handles`` the open
    files by ``Storage.file``. The keys of whole tensors that could not be compared are added to ``unknown``. Raises
    FormatError if the parts of the ranks differ in their names, dtypes or shapes, or if it is not known how a tensor is
    split.
    """
    for name, tree in zip(names, trees, strict=True):
        odd = sorted(tree.keys() ^ trees[0].keys())
        if odd:
            raise FormatError(
                f"{name} and {names[0]} do not have the same tensors: only one of them has {escape(odd[0])}.",
                rule="rank keys",
            )
    if len(trees) == 1:
        return dict(trees[0])
    return {
        key: _joined(key, [tree[key] for tree in trees], settings, names, handles=handles, unknown=unknown)
        for key in trees[0]
    }


def _joined(
    key: str,
    parts: Sequence[TensorInfo],
    settings: MegatronSettings,
    names: Sequence[str],
    *,
    handles: Mapping[str, File],
    unknown: list[str],
) -> TensorInfo:
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        if (part.dtype, part.shape) != (first.dtype, first.shape):
            raise FormatError(
                f"{name}: {escape(key)} is {part.dtype} {part.shape}, but {first.dtype} {first.shape} in {names[0]}.",
                rule="rank shapes",
            )
    rule = _rule(key, first, settings, len(parts))
    if rule is not None:
        return rule(parts)
    equal, is_whole = [equal_bytes(first, part, handles) for part in parts], _WHOLE.fullmatch(key) is not None
    if False in equal and is_whole:
        raise FormatError(
            f"{names[equal.index(False)]} has other values of {escape(key)} than {names[0]}, but each rank should have "
            "the same: the files are not of one checkpoint, or the ranks drifted apart in training.",
            hint="Fetch the whole folder again. If they drifted apart, convert the checkpoint with Megatron's "
            "tools/checkpoint, which takes the values of the first rank.",
            rule="megatron layer",
        )
    if False in equal or (None in equal and not is_whole):
        other = f"{names[equal.index(False)]} has other values of {escape(key)}" if False in equal else ""
        said = other or f"{escape(key)} cannot be compared between the ranks"
        raise FormatError(
            f"{names[0]}: {said}, and it is not known how this tensor is split across the ranks.",
            hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
            rule="megatron layer",
        )
    unknown += [key] if None in equal else []
    return first


Rule = Callable[[Sequence[TensorInfo]], TensorInfo]


def _rule(key: str, first: TensorInfo, settings: MegatronSettings, ranks: int) -> Rule | None:
    """Return the function that joins the parts of the tensor ``key``; None if it is not known to be split.

    ``first`` is the part of the first rank; ``ranks`` is the number of ranks. Raises FormatError if it is not known how
    the parts are joined.
    """
    if _QKV.fullmatch(key) and first.shape:
        _check_attention(key, settings, ranks)
        return _thirds if settings.version == 0 else lambda parts: join(parts, 0)
    if _FC1.fullmatch(key) and first.shape:
        if settings.gated is None or settings.unknown:
            raise _not_known(key, settings, "whether its layers are gated (swiglu)")
        return _gated if settings.gated else lambda parts: join(parts, 0)
    if found := _DOWN.fullmatch(key):
        return _down(key, first, settings.latent.get(found[1], 0), ranks)
    if (_VOCABULARY.fullmatch(key) or _COLUMNS.fullmatch(key)) and first.shape:
        return lambda parts: join(parts, 0)
    if _ROWS.fullmatch(key) and len(first.shape) == 2:
        if settings.unknown:
            raise _not_known(key, settings, "")
        return lambda parts: join(parts, 1)
    return None


def _down(key: str, first: TensorInfo, rows: int, ranks: int) -> Rule | None:
    """Return the function that joins the parts of a down-projection of multi-latent attention; None if it is not split.

    ``rows`` is the number of rows of the whole matrix, 0 if it is not known. ``first`` is the first rank's part. Raises
    FormatError if it is not known how the matrix is split.
    """
    there = first.shape[0] if first.shape else 0
    if rows and there == rows:
        return None
    if rows and there * ranks == rows:
        return lambda parts: join(parts, 0)
    said = f"the arguments give it {count(rows, 'row')}" if rows else "no arguments say how many rows it has"
    raise FormatError(
        f"it is not known how {escape(key)} is split across the {ranks} ranks, each of which has "
        f"{count(there, 'row')}: {said}.",
        hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
        rule="megatron layer",
    )


def _check_attention(key: str, settings: MegatronSettings, ranks: int) -> None:
    """Raise FormatError if it is not known how the ranks' parts of the QKV matrix are joined.

    Since version 1.0, each rank has whole groups of heads, so that the matrix is the concatenation of the parts. In
    version 0, each rank has all of its queries, then all of its keys, then all of its values.
    """
    if settings.unknown:
        raise _not_known(key, settings, "")
    if not (settings.version >= 2 or settings.version == 1 or _is_thirds(key, settings)):  # NaN is none of them
        said = f"version {settings.version}" if settings.has_version else "no version"
        raise FormatError(
            f"{escape(key)} is in a checkpoint of {said}: before 1.0, each rank of Megatron-LM stored all queries "
            "before its keys and values, and this checkpoint does not say whether it has this order.",
            hint="Load the checkpoint with a newer Megatron, and save it again.",
            rule="megatron version",
        )
    if settings.groups and settings.groups < ranks:
        raise FormatError(
            f"{escape(key)} has {count(settings.groups, 'query group')}, fewer than the {ranks} ranks: checkpoints "
            "whose ranks share keys and values cannot be read.",
            hint=f"Convert the checkpoint to at most {count(settings.groups, 'rank')} with Megatron's tools/checkpoint "
            "first.",
            rule="megatron layer",
        )


def _is_thirds(key: str, settings: MegatronSettings) -> bool:
    """Return whether each rank's part has its queries, keys and values in the order of version 0: in three thirds.

    Megatron-LM assumes version 0 if a checkpoint states no version. Here, this is assumed only for keys with
    ``transformer``, the name that Megatron-LM used at first. Megatron-core (``linear_qkv``) never wrote this order.
    """
    return "query_key_value" in key and settings.version == 0 and (settings.has_version or ".transformer." in f".{key}")


def _not_known(key: str, settings: MegatronSettings, what: str) -> FormatError:
    said = f"the argument {settings.unknown} is set" if settings.unknown else f"no arguments say {what}"
    return FormatError(
        f"it is not known how {escape(key)} is split across the ranks: {said}.",
        hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
        rule="megatron layer",
    )


def _thirds(parts: Sequence[TensorInfo]) -> TensorInfo:
    """Return a QKV matrix of version 0: all queries, then all keys, then all values.

    ``parts`` has the part of each rank, which has its own queries, keys and values in the same order. Raises
    FormatError if 3 does not divide the number of rows.
    """
    size, rest = divmod(parts[0].shape[0], 3)
    if rest:
        raise FormatError(
            f"a matrix of queries, keys and values has {parts[0].shape[0]} rows on a rank, which 3 does not divide.",
            rule="megatron layer",
        )
    thirds = [[cut(part, 0, third * size, size) for part in parts] for third in range(3)]
    return join([join(third, 0) for third in thirds], 0)


def _gated(parts: Sequence[TensorInfo]) -> TensorInfo:
    """Return the matrix of a gated layer: first all gates, then all values.

    ``parts`` has the part of each rank: first the gates of the rank, then its values. Raises FormatError if a rank has
    an odd number of rows.
    """
    size = parts[0].shape[0]
    if size % 2:
        raise FormatError(
            f"a gated layer has {size} rows on a rank: an odd number of rows cannot be half gates and half values.",
            rule="megatron layer",
        )
    halves = [[cut(part, 0, begin, size // 2) for part in parts] for begin in (0, size // 2)]
    return join([join(half, 0) for half in halves], 0)
