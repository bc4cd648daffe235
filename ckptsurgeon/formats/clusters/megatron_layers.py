"""Joins the parts into which tensor parallelism splits Megatron's layers across ranks.

The result is the same as if Megatron had run, and saved, on one rank. Follows
``megatron/core/tensor_parallel/layers.py``, ``megatron/core/transformer/{attention,mlp}.py`` and ``tools/checkpoint``
of Megatron-LM (core 0.4 to 0.14).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ...storage.read.base import File
from ...tensors.composition import cut, join
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from .joining import equal_bytes

__all__ = ["MegatronSettings", "join_ranks", "settings_of"]

_QKV = re.compile(r"(?:.*\.)?(?:linear_qkv|query_key_value)\.(?:weight|bias)")
_FC1 = re.compile(r"(?:.*\.)?(?:linear_fc1|dense_h_to_4h)\.(?:weight|bias)")
_VOCABULARY = re.compile(r"(?:.*\.)?(?:word_embeddings|word_embeddings_for_head|output_layer)\.weight")
_ROWS = re.compile(r"(?:.*\.)?(?:linear_proj|linear_fc2|dense_4h_to_h|(?:self_)?attention\.dense)\.weight")
"""Matches the keys of layers whose inputs are split across the ranks: each rank has some columns of the matrix."""
_WHOLE = re.compile(
    r"(?:.*\.)?(?:\w*norm\w*\.(?:weight|bias)|layer_norm_(?:weight|bias)|(?:position|tokentype)_embeddings\.weight"
    r"|router\.(?:weight|bias|expert_bias)|(?:linear_proj|linear_fc2|dense_4h_to_h|attention\.dense)\.bias|inv_freq)"
)
"""Matches the keys of tensors that are not split: each rank has the whole tensor."""
_UNKNOWN = ("quick_geglu", "glu_activation", "use_kan", "heterogeneous_layers_config_path", "multi_latent_attention")
"""Arguments of runs that split layers in ways that this module cannot join."""


@dataclass(frozen=True)
class MegatronSettings:
    """The settings of a run, from its arguments: kinds of layers, and how the model is split across ranks.

    ``gated`` is true if layers have gates (swiglu), None if there are no arguments. ``groups`` is the number of query
    groups (0: no grouped queries), ``version`` the version of the checkpoint. ``unknown`` is the name of an argument
    that makes joining impossible, or ''. ``tied`` is true if the output layer is the word embedding. ``tensor``,
    ``pipeline`` and ``experts`` are the sizes of the three kinds of parallelism (0, 0 and 1 if unknown).
    """

    gated: bool | None = None
    groups: int = 0
    version: float = 0.0
    unknown: str = ""
    tied: bool = False
    tensor: int = 0
    pipeline: int = 0
    experts: int = 1


def settings_of(args: Mapping[Any, Any], version: Any) -> MegatronSettings:
    """Return the settings in the arguments of a run; ``version`` is the version of its checkpoint."""
    number = float(version) if isinstance(version, (int, float)) else 0.0
    if not args:
        return MegatronSettings(version=number)
    unknown = next((name for name in _UNKNOWN if args.get(name)), "")
    of_experts = args.get("expert_tensor_parallel_size")
    if of_experts is not None and of_experts != args.get("tensor_model_parallel_size"):
        unknown = unknown or "expert_tensor_parallel_size"
    return MegatronSettings(
        gated=bool(args.get("swiglu") or args.get("gated_linear_unit")),
        groups=_whole(args.get("num_query_groups")) if args.get("group_query_attention") else 0,
        version=number,
        unknown=unknown,
        tied=args.get("untie_embeddings_and_output_weights") is False,
        tensor=_whole(args.get("tensor_model_parallel_size")),
        pipeline=_whole(args.get("pipeline_model_parallel_size")),
        experts=_whole(args.get("expert_model_parallel_size")) or 1,
    )


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def join_ranks(
    trees: Sequence[Mapping[str, TensorInfo]],
    settings: MegatronSettings,
    names: Sequence[str],
    *,
    handles: Mapping[str, File],
) -> dict[str, TensorInfo]:
    """Return the tensors of one pipeline stage, joined over its ranks of tensor parallelism.

    ``trees`` has the tensors of each rank, ``names`` the name of each rank's file for messages, ``handles`` the open
    files by ``Storage.file``. Raises FormatError if a rank lacks a tensor, or if it is not known how a tensor is split.
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
    return {key: _joined(key, [tree[key] for tree in trees], settings, names, handles=handles) for key in trees[0]}


def _joined(
    key: str,
    parts: Sequence[TensorInfo],
    settings: MegatronSettings,
    names: Sequence[str],
    *,
    handles: Mapping[str, File],
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
    equal = [equal_bytes(first, part, handles) for part in parts]
    if False in equal or (None in equal and not _WHOLE.fullmatch(key)):
        said = f"{names[equal.index(False)]} has other values of" if False in equal else "each rank has its own"
        raise FormatError(
            f"{names[0]}: {said} {escape(key)}, and it is not known how this tensor is split across the ranks.",
            hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
            rule="megatron layer",
        )
    return first


Rule = Callable[[Sequence[TensorInfo]], TensorInfo]


def _rule(key: str, first: TensorInfo, settings: MegatronSettings, ranks: int) -> Rule | None:
    """Return the function that joins the parts of the tensor ``key``; None if each rank has the whole tensor.

    ``first`` is the part of the first of the ``ranks`` ranks. Raises FormatError if it is not known how the parts are
    joined.
    """
    if _QKV.fullmatch(key) and first.shape:
        _check_attention(key, settings, ranks)
        return lambda parts: join(parts, 0)
    if _FC1.fullmatch(key) and first.shape:
        if settings.gated is None or settings.unknown:
            raise _not_known(key, settings, "whether its layers are gated (swiglu)")
        return _gated if settings.gated else lambda parts: join(parts, 0)
    if _VOCABULARY.fullmatch(key) and first.shape:
        return lambda parts: join(parts, 0)
    if _ROWS.fullmatch(key) and len(first.shape) == 2:
        if settings.unknown:
            raise _not_known(key, settings, "")
        return lambda parts: join(parts, 1)
    return None


def _check_attention(key: str, settings: MegatronSettings, ranks: int) -> None:
    """Raise FormatError if the whole QKV matrix is not the concatenation of the ranks' parts.

    It is their concatenation if each rank has whole groups of heads, which is so since version 1.0. Version 0 has all
    queries of a rank before its keys and values.
    """
    if settings.unknown:
        raise _not_known(key, settings, "")
    if settings.version < 2 and settings.version != 1:
        raise FormatError(
            f"{escape(key)} is in a checkpoint of version {settings.version}: before 1.0, each rank had all of "
            "its queries before its keys and values.",
            hint="Load and save it with a newer Megatron first.",
            rule="megatron version",
        )
    if settings.groups and settings.groups < ranks:
        raise FormatError(
            f"{escape(key)} has {count(settings.groups, 'query group')}, fewer than the {ranks} ranks: checkpoints "
            "whose ranks share keys and values cannot be read.",
            hint=f"Convert it to at most {count(settings.groups, 'rank')} with Megatron's tools/checkpoint first.",
            rule="megatron layer",
        )


def _not_known(key: str, settings: MegatronSettings, what: str) -> FormatError:
    said = f"the argument {settings.unknown} is set" if settings.unknown else f"no arguments say {what}"
    return FormatError(
        f"it is not known how {escape(key)} is split across the ranks: {said}.",
        hint="Convert the checkpoint with Megatron's tools/checkpoint first.",
        rule="megatron layer",
    )


def _gated(parts: Sequence[TensorInfo]) -> TensorInfo:
    """Return the matrix of a gated layer: first all gates, then all values.

    ``parts`` has the part of each rank: first the gates of the rank, then its values.
    """
    size = parts[0].shape[0]
    if size % 2:
        raise FormatError(
            f"a gated layer has {size} rows on a rank: an odd number of rows cannot be half gates and half values.",
            rule="megatron layer",
        )
    halves = [[cut(part, 0, begin, size // 2) for part in parts] for begin in (0, size // 2)]
    return join([join(half, 0) for half in halves], 0)
