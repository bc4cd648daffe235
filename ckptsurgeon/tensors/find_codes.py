"""Finds the quantised tensors of a state dict; searches only if names, dtypes and shapes do not show it to be plain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .info import TensorInfo
from .quantised.encoding import NO_CODES, QuantisedTensors, is_plain
from .quantised.settings import Settings

__all__ = ["find_codes"]


def find_codes(
    tensors: Mapping[str, TensorInfo],
    settings: Callable[[], Settings] = dict,
    elsewhere: Callable[[], Iterable[str]] = tuple,
) -> QuantisedTensors:
    """Return the quantised tensors of a state dict.

    ``settings`` returns the ``quantization_config`` of its folder, ``elsewhere`` the keys in the model's other shards;
    both are called only if some tensor could be codes or scales.

    Codes in no known encoding are found, too, if they have a scale with a derived name (``x_scale`` for ``x``), or if
    the folder has a ``quantization_config``. They can be copied, but not decoded. The same is true for scales and zero
    points of a known encoding whose codes are in another shard.
    """
    if is_plain(tensors):
        return NO_CODES
    from .quantised.search import search_codes  # with all encodings

    return search_codes(tensors, settings, elsewhere)
