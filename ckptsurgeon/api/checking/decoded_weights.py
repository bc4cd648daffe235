"""Measures the root mean square of the values that quantised tensors decode to, from a sample of each tensor."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from math import lcm, prod, sqrt

import numpy as np

from ...analysis.check.subject import WeightSize
from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.reading import read_part
from ...errors import CheckpointError
from ...planning.transplant.by_place import is_embedding, vocabulary_keys
from ...tensors.decoders.scaled import few_bits
from ...tensors.info import TensorInfo
from ...tensors.odd_scales.notes import OddScales
from ...tensors.ops.regions import Box
from ..inputs.dequantising import stated_settings, weights_of
from ..inputs.sampled_parts import SampledFiles, rows_of_group
from ..inputs.sampled_scales import VOCABULARY

__all__ = ["code_bits", "decoded_sizes", "odd_scales_of"]

TENSORS = 64
"""The largest number of quantised tensors that are decoded. They are evenly spread over the model."""
ELEMENTS = 1 << 16
"""The approximate number of values of each tensor that are decoded."""
ALIGNED = 32
"""The index of the first decoded row is a multiple of this, so that a word of packed zero points begins there."""


def decoded_sizes(checkpoint: Checkpoint) -> dict[str, WeightSize]:
    """Return {name of a weight: root mean square of some of its decoded values}, for some quantised weights.

    Embeddings are left out, because their values have other magnitudes. Tensors that cannot be decoded are left out,
    too.
    """
    names = [one for one in checkpoint.codes.tensors if one.codes and not is_embedding(one.name)]
    number, weight_of, found = min(TENSORS, len(names)), weights_of(checkpoint), dict[str, WeightSize]()
    for at in range(number):
        one = names[at * len(names) // number]
        with suppress(CheckpointError):  # other checks report a tensor that cannot be decoded
            weight = weight_of(one.codes)
            if weight is not None and len(weight.info.shape) > 1 and weight.info.numel:
                found[one.name] = WeightSize(_rms(checkpoint, weight.info), weight.info.shape[-1])
    return found


def code_bits(checkpoint: Checkpoint) -> dict[str, int]:
    """Return {key: number of bits} of codes that are stored as int8, but have fewer bits according to the settings."""
    settings = stated_settings(checkpoint).searched
    found = {
        one.codes: few_bits(settings.of(one.name.removesuffix(".weight")))
        for one in checkpoint.codes.tensors
        if one.codes and checkpoint[one.codes].dtype == "int8"
    }
    return {key: bits for key, bits in found.items() if bits}


def odd_scales_of(checkpoint: Checkpoint, decoded: Collection[str]) -> dict[str, list[str]]:
    """Return {kind of implausible scales: names of the quantised tensors that have them}.

    The tensors in ``decoded`` have been decoded already. In addition, samples of embeddings and output layers are
    decoded here. Their scales are not reported as too large or too small, because the values of embeddings have other
    magnitudes than those of layers.
    """
    found, files = OddScales(), SampledFiles(checkpoint)
    names = [one for one in checkpoint.codes.tensors if one.codes and vocabulary_keys([one.name])]
    weight_of = weights_of(checkpoint)
    for one in [one for one in names if one.name not in decoded][:VOCABULARY]:
        with suppress(CheckpointError):
            weight = weight_of(one.codes)
            if weight is not None and len(weight.info.shape) > 1 and weight.info.numel:
                _rms(files, weight.info)
                _rms(files, weight.info, is_end=True)
    found.add_all_but_sizes(files.odd_scales)
    both = checkpoint.odd_scales.of(decoded), found.of(one.name for one in names)
    return {kind: [*both[0].get(kind, ()), *both[1].get(kind, ())] for kind in {**both[0], **both[1]}}


def _rms(checkpoint: Checkpoint | SampledFiles, info: TensorInfo, *, is_end: bool = False) -> float:
    """Return the root mean square of some rows of a matrix; for stacked matrices (experts), of the first matrix.

    The rows are in the middle of the matrix or, if ``is_end`` is true, near its end.
    """
    *lead, rows, columns = info.shape
    group = rows_of_group(info)
    several = min(rows, max(1, group, ELEMENTS // columns))
    begin = (rows - several) // (1 if is_end else 2) // lcm(ALIGNED, group) * lcm(ALIGNED, group)
    box: Box = (*((0, 1) for _ in lead), (begin, begin + several), (0, columns))
    values = read_part(checkpoint, info, box).astype(np.float64)
    return sqrt(float(np.square(values).sum()) / prod(values.shape))
