"""Which tensors of a model of transformers run along its vocabulary: those that are longer where it is larger.

No list of names would do: heads are called ``lm_head``, ``ctc_head``, ``cls.predictions``, and MobileBERT has half of
its output layer transposed. So the model is built a second time, with more tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from ...errors import ConfigError
from ...tensors.info import TensorInfo
from ..torch_module.growing import Grown, grown_axes
from ..torch_module.module import module_target
from .config import Described
from .model import built

__all__ = ["vocabulary_of"]

MORE = 10007
"""How many tokens more; enough that an axis grows too which is rounded up to a power of two."""


def vocabulary_of(described: Described, tensors: Mapping[str, TensorInfo]) -> Mapping[str, int]:
    """Return the axis of every one of these tensors that runs along the vocabulary, worked out when it is asked for."""
    return Grown(lambda: _grown(described, tensors))


def _grown(described: Described, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    larger = _larger(described)
    if larger is None:
        return {}
    try:
        other = module_target(lambda: built(larger), kind="transformers", name=described.name)
    except ConfigError:  # that many tokens cannot be: nothing is known, and nothing will be guessed
        return {}
    return grown_axes(tensors, other.tensors)


def _larger(described: Described) -> Described | None:
    """Return what describes the same model with more tokens; None for a model of images or sounds, which has none."""
    config = copy.deepcopy(described.config)
    try:
        text = config.get_text_config()
    except ValueError:  # two vocabularies, and none of them comes first
        return None
    size = getattr(text, "vocab_size", None)
    if type(size) is not int:
        return None
    text.vocab_size = size + MORE
    return replace(described, config=config)
