"""Joins ZeRO's weights over the ranks of tensor parallelism.

The entry ``universal_checkpoint_info`` of the model states says how each parameter was split. For each way to split, it
has a list of regular expressions for the names of parameters. DeepSpeed stores this entry if a run can be converted to
a universal checkpoint. The regular expressions are from an untrusted file, so only simple ones are accepted: matching
them cannot take long. Follows ``merge_tp_slices`` in ``deepspeed/checkpoint/ds_to_universal.py`` (0.19).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ...errors import FormatError
from ...storage.read.base import File
from ...tensors.composition import cut, join, leaves
from ...tensors.info import TensorInfo
from ...util.text import brief_repr, escape, listing
from ..torch.zero import StateFile, buffers
from .joining import equal_bytes

__all__ = ["join_tensor_parallel"]

_INFO = "universal_checkpoint_info"
_WHOLE, _ROWS = "tp_replicated_parameter_patterns", "parameter_with_row_parallelism_patterns"
_GATED, _VOCABULARY = "parameter_with_2_sub_params_cat_dim_0", "vocabulary_parameter_patterns"
_OTHERS = ("parameter_to_average_patterns", "parameter_with_sub_params", "affine_map", "expert_parameter_patterns")
"""Entries that describe other ways to split parameters, which this module cannot join."""
_PLAIN = re.compile(
    r"\^?(?:[A-Za-z0-9_/-]|\\?\.|\\d\+|\[0-9\]\+|\\d)*(?:\.\*(?:[A-Za-z0-9_/-]|\\?\.(?![*+])|\\d)*)?\$?"
)
"""Matches the simple patterns: literal names, with placeholders for digits and at most one ``.*``."""
PATTERNS, CHARACTERS = 64, 200
"""The most patterns in one entry, and the most characters of a pattern."""
_HINT = "Convert the checkpoint with DeepSpeed's ds_to_universal.py first: ckpt reads the result."


def join_tensor_parallel(
    ranks: Sequence[dict[str, TensorInfo]], models: Sequence[StateFile], handles: Mapping[str, File]
) -> tuple[dict[str, TensorInfo], list[str]]:
    """Return the weights of the whole model by name, and notes on rows that were left out as padding.

    ``ranks`` has the weights of each rank, ``models`` the file of each rank's model states, and ``handles`` the open
    files by ``Storage.file``. Raises FormatError if the states do not say how the parameters are split, or split them
    in an unknown way.
    """
    patterns, vocabulary = _patterns(models[0])
    for weights, model in zip(ranks, models, strict=True):
        odd = sorted(weights.keys() ^ ranks[0].keys())
        if odd:
            raise FormatError(
                f"{escape(model.file.uri)} and {escape(models[0].file.uri)} do not have the same parameters: "
                f"{listing(odd, 3, where='')}. Stages of a pipeline cannot be joined.",
                hint=_HINT,
                rule="model parallel",
            )
    made: dict[str, TensorInfo] = {}
    padded: list[str] = []
    plain = buffers(models[0])
    for key, first in ranks[0].items():
        parts = [weights[key] for weights in ranks]
        kinds = [kind for kind, found in patterns.items() if any(one.match(key) for one in found)]
        if key in plain:  # the patterns are for parameters
            kinds = [_WHOLE]
        made[key] = _joined(key, parts, kinds, vocabulary)
        rows = sum(part.shape[0] for part in parts) if _VOCABULARY in kinds and first.shape else 0
        if _WHOLE not in kinds and made[key].shape[:1] == (vocabulary,) and vocabulary < rows:
            padded.append(f"{key} ({rows - vocabulary:,} of {rows:,} rows)")
        if _WHOLE in kinds and any(equal_bytes(leaf, other, handles) is False for leaf, other in _pairs(parts)):
            raise FormatError(
                f"{escape(key)} is not split, but its values differ between the ranks.",
                hint="The files may be of different steps or runs: fetch or save them again.",
                rule="zero values",
            )
        if first.numel and len({part.dtype for part in parts}) > 1:
            raise FormatError(f"{escape(key)} has different dtypes on the ranks.", rule="zero")
    said = f"left out padding beyond original_vocab_size, {vocabulary:,}: {listing(padded, where='')}"
    return made, [said] if padded else []


def _patterns(model: StateFile) -> tuple[dict[str, list[re.Pattern[str]]], int]:
    """Return {way to split parameters: patterns}, and the size of the vocabulary without padding (0 if unknown).

    The patterns match the names of the parameters that are split in this way. Raises FormatError if the model states do
    not say how parameters are split, or if it is not known how to join them.
    """
    where, info = escape(model.file.uri), model.tree.get(_INFO)
    if not isinstance(info, Mapping):
        raise FormatError(
            f"{where} belongs to a model that is split across ranks, but lacks {_INFO}, which says how it is split.",
            hint="Merge the ranks of the model with the trainer's own tool first.",
            rule="model parallel",
        )
    other = next((name for name in _OTHERS if info.get(name)), "")
    if other:
        raise FormatError(
            f"{where} lists parameters in {other}, which ckpt cannot join.",
            hint=_HINT,
            rule="model parallel",
        )
    made: dict[str, list[re.Pattern[str]]] = {}
    for name in (_WHOLE, _GATED, _ROWS, _VOCABULARY):
        texts = info.get(name) or []
        if not isinstance(texts, (list, tuple)) or len(texts) > PATTERNS:
            raise FormatError(
                f"{where} has an entry {name} that is not a list of at most {PATTERNS} patterns.", rule="model parallel"
            )
        for text in texts:
            if not isinstance(text, str) or len(text) > CHARACTERS or not _is_plain(text):
                raise FormatError(
                    f"{where} has the pattern {brief_repr(text)} in {name}, which is too complex to be used safely.",
                    hint=_HINT,
                    rule="model parallel",
                )
        made[name] = [re.compile(text) for text in texts]
    size = info.get("original_vocab_size")
    return made, size if type(size) is int and size > 0 else 0


def _is_plain(text: str) -> bool:
    """Return whether the regular expression ``text`` is so simple that matching it cannot take long.

    In a simple expression, at most one part may match text of any length. So the time is proportional to the length of
    the name.
    """
    return text.count("+") + text.count("*") <= 1 and _PLAIN.fullmatch(text) is not None


def _joined(key: str, parts: Sequence[TensorInfo], kinds: Sequence[str], vocabulary: int) -> TensorInfo:
    first, row = parts[0], _ROWS in kinds
    if _WHOLE in kinds or not first.shape:
        if any(part.shape != first.shape for part in parts):
            raise FormatError(
                f"{escape(key)} is not split, but its shapes differ between the ranks.", rule="zero shapes"
            )
        return first
    dim = 1 if row else 0
    if len(first.shape) <= dim:
        raise FormatError(
            f"{escape(key)} of shape {first.shape} is split along dimension {dim}, which it does not have.",
            rule="zero shapes",
        )
    other = next((part for part in parts if _but(dim, part.shape) != _but(dim, first.shape)), None)
    if other is not None:
        raise FormatError(
            f"the parts of {escape(key)} on the ranks do not fit together: {first.shape} and {other.shape}.",
            rule="zero shapes",
        )
    if _GATED in kinds:
        if any(part.shape[0] % 2 for part in parts):
            raise FormatError(
                f"a part of {escape(key)} has an odd number of rows: it must have two equal halves.", rule="zero shapes"
            )
        halves = [[cut(part, 0, at * (part.shape[0] // 2), part.shape[0] // 2) for part in parts] for at in (0, 1)]
        return join([join(half, 0) for half in halves], 0)
    made = join(parts, dim)
    return cut(made, 0, 0, min(vocabulary, made.shape[0])) if _VOCABULARY in kinds and vocabulary else made


def _pairs(parts: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Yield (stored tensor of the first of ``parts``, stored tensor of another): their values must be equal.

    A part has several stored tensors if it is in the flat vectors of several ranks of ZeRO. Another part that is cut at
    other places is left out.
    """
    stored = [list(leaves(part)) for part in parts]
    for other in stored[1:]:
        if [one.numel for one in other] == [one.numel for one in stored[0]]:
            yield from zip(stored[0], other, strict=True)


def _but(dim: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``shape`` with -1 as the size of the dimension ``dim``, if it has this dimension."""
    return (*shape[:dim], -1, *shape[dim + 1 :]) if dim < len(shape) else shape
