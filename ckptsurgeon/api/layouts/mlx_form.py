"""Recognises files of MLX by their metadata, and compares their tensors with the tensors of transformers.

MLX writes ``"format": "mlx"`` into the metadata of its files; mlx-vlm converts the tensors of files without this entry.
mlx-lm saves the tensors of most models as its networks have them: it stacks experts in ``switch_mlp``, splits the
``kv_b_proj`` of DeepSeek into ``embed_q`` and ``unembed_out``, names the ``w1`` of LFM2 ``gate_proj``, and stores
convolutions with the channels last. https://github.com/ml-explore/mlx-lm/tree/main/mlx_lm/models (``sanitize``), and
``load_model`` in https://github.com/Blaizzy/mlx-vlm/blob/main/mlx_vlm/utils.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from ...errors import CheckpointError
from ...planning.operations.operation import parse_operations
from ...planning.operations.perform import perform
from ...tensors.info import TensorInfo

__all__ = [
    "FORMAT",
    "MLX",
    "is_of_mlx",
    "is_transposed_by_mlx",
    "left_of_mlx",
    "named_by_transformers",
    "without_other_forms",
]

FORMAT, MLX = "format", "mlx"
_LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")
_LEFT_OUT = re.compile(r"\.gate\.moe_statics(?:\.|$)")
"""Matches a bias of the router of ERNIE 4.5, which mlx-lm leaves out."""


def is_of_mlx(metadata: Mapping[str, str]) -> bool:
    """Return whether MLX wrote a file with this metadata."""
    return metadata.get(FORMAT) == MLX


def left_of_mlx(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of metadata entries that must be removed if tensors of MLX get the names of another library.

    The result is () if the file is not of MLX.
    """
    return (FORMAT,) if is_of_mlx(metadata) else ()


def named_by_transformers(tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """Return the tensors of a network in the layout of mlx-lm, converted to the layout of transformers.

    A tensor that cannot be converted, because a shape or another name is wrong, keeps its name. The tensors of any
    other network are returned unchanged.
    """
    from ...planning.layouts.recognise import recognised

    layouts = [layout for _, layout in recognised(tensors) if layout.name == MLX]
    for layout in layouts[:1]:
        rows = [row for one in reversed(layout.changes) for row in one.back(tensors, {}, str)]
        rows += ({"copy": theirs, "into": [ours]} for ours, theirs in layout.names.items() if ours != theirs)
        for row in rows:
            with suppress(CheckpointError):
                tensors = perform([tensors], parse_operations([row]))[0].tensors
    return tensors


def without_other_forms(missing: Mapping[str, int], unused: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return ``missing`` and ``unused`` without weights that MLX has, but stores in another form.

    ``missing`` maps tensors or modules of the class of transformers that a file of MLX lacks to their numbers of
    parameters. ``unused`` does the same for those that only the file has. If both have the same number of parameters in
    a layer, they are the same weights under other names, so the layer is left out of both.
    """
    wanted = {key: size for key, size in missing.items() if not _LEFT_OUT.search(key)}
    lost, own = _by_layer(wanted), _by_layer(unused)
    alike = {layer for layer in lost if lost[layer] == own[layer]}
    kept, others = ([key for key in some if _layer(key) not in alike] for some in (wanted, unused))
    return kept, others


def _by_layer(sizes: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, size in sizes.items():
        found[_layer(key)] += size
    return found


def _layer(key: str) -> str:
    match = _LAYER.search(key)
    return match[1] if match is not None else ""


def is_transposed_by_mlx(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether ``shape`` is a convolution with the channels last, which has the shape ``other`` in torch."""
    return len(shape) in (3, 4, 5) and len(shape) == len(other) and shape == (other[0], *other[2:], other[1])
