"""Constructs a model of transformers to learn its tensors, ties and vocabulary axes."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ...tensors.info import TensorInfo
from ..torch_module.module import module_target
from ..torch_module.state import Grown, grown_axes
from .config import Described
from .names import Names

__all__ = ["Facts", "built", "construct", "offline", "vocabulary_of"]


class Facts:
    """What a model says of itself while it is there: its ties, the names it had."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._tied: list[str] = []
        self._names: Names | None = None

    def take(self, model: Any) -> None:
        """Take everything down; nothing of the model is kept."""
        self._tied = [
            f"{path}.{key}".removeprefix(".")
            for path, module in model.named_modules()
            for key in getattr(module, "_tied_weights_keys", None) or ()
        ]
        self._names = Names.of(model, self._package)

    def fields(self, tensors: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields of the destination that hang on the model."""
        assert self._names is not None
        return {
            "implied": _implied(self._tied, ties),
            "recognise": self._names.of_targets(tensors),
        }


def construct(described: Described, facts: Facts) -> Any:
    """Construct the model, and take down what it says of itself."""
    model = built(described)
    facts.take(model)
    return model


def built(described: Described) -> Any:
    """Build the model as ``from_config`` does."""
    with offline():
        return described.model_class._from_config(copy.deepcopy(described.config))


@contextmanager
def offline() -> Iterator[None]:
    """Let transformers fetch nothing, as nothing was asked for by name, answer nothing, and speak of errors only.

    A configuration may name a backbone whose weights its constructor would download.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    before, verbosity = constants.HF_HUB_OFFLINE, logging.get_verbosity()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity(40)  # logging.ERROR
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.set_verbosity(verbosity)


def _implied(tied: list[str], ties: Mapping[str, str]) -> frozenset[str]:
    """Return the names of tied tensors that ``save_pretrained`` leaves out: those that the model declares, but for one.

    ``remove_tied_weights_from_state_dict`` of transformers/modeling_utils.py.
    """
    groups: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        groups.setdefault(owner, [owner]).append(alias)
    found: set[str] = set()
    for names in groups.values():
        declared = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in tied)]
        found.update(declared[: len(names) - 1])
    return frozenset(found)


# Which tensors of a model of transformers run along its vocabulary: those that are longer where it is larger.
#
# No list of names would do: heads are called ``lm_head``, ``ctc_head``, ``cls.predictions``, and MobileBERT has half
# of its output layer transposed. So the model is built a second time, with more tokens.

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
