"""A kernel in the middle of a larger one: what is around it is zero, so the convolution gives what it gave.

As RepVGG makes a 3x3 kernel of a 1x1 (https://arxiv.org/abs/2101.03697), RepLKNet a large one of a small
(https://arxiv.org/abs/2203.06717). The padding of the convolution must grow with the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...tensors.ops.boxes import Array, Box, box_shape

__all__ = ["centred"]

Shape = Sequence[int]


def centred(
    read: Callable[[Box], Array], dtype: np.dtype[np.generic], box: Box, *, source: Shape, destination: Shape
) -> Array:
    """Return ``box`` of a kernel that has the source in its middle; ``read`` gives parts of the source."""
    out = np.zeros(box_shape(box), dtype)
    part, place = [], []
    for (begin, end), have, want in zip(box, source, destination, strict=True):
        before = (want - have) // 2
        first, last = max(begin - before, 0), min(end - before, have)
        if first >= last:
            return out
        part.append((first, last))
        place.append(slice(first + before - begin, last + before - begin))
    out[tuple(place)] = read(tuple(part))
    return out
