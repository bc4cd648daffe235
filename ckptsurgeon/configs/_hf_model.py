"""Constructs a model of transformers, and takes down what only the model itself knows."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..tensors import TensorInfo
from ._hf_config import Described
from ._hf_names import Names

__all__ = ["Facts", "construct", "offline"]


class Facts:
    """What a model says of itself while it is there: its vocabulary, its ties, the names it had."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._vocabulary: dict[str, int] = {}
        self._tied: list[str] = []
        self._names: Names | None = None

    def take(self, model: Any) -> None:
        """Take everything down; nothing of the model is kept."""
        self._vocabulary = _vocabulary(model)
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
            "vocabulary": {key: axis for key, axis in self._vocabulary.items() if key in tensors},
            "implied": _implied(self._tied, ties),
            "adapt": self._names.bound(tensors),
        }


def construct(described: Described, facts: Facts) -> Any:
    """Construct the model as ``from_config`` does."""
    with offline():
        model = described.model_class._from_config(copy.deepcopy(described.config))
        facts.take(model)
    return model


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


def _vocabulary(model: Any) -> dict[str, int]:
    """Return the axis of every tensor that runs along the vocabulary: embeddings, output layer, its bias."""
    text = model.config.get_text_config()
    size = getattr(text, "vocab_size", None)
    names = {id(value): key for key, value in (*model.named_parameters(), *model.named_buffers())}
    modules = [model.get_input_embeddings, model.get_output_embeddings, lambda: _ctc_head(model)]
    found: dict[str, int] = {}
    for give in modules:
        try:
            module = give()
        except (NotImplementedError, AttributeError):  # a model of images or sounds has none
            continue
        values = [getattr(module, name, None) for name in ("weight", "bias")]
        for value in values:
            if value is not None and id(value) in names and size and value.shape[:1] == (size,):
                found[names[id(value)]] = 0
    for key, value in model.named_buffers():
        if key == "final_logits_bias" and value.shape[1:] == (size,):  # BART and what came of it
            found[key] = 1
    return found


def _ctc_head(model: Any) -> Any:
    return model.lm_head if type(model).__name__.endswith("ForCTC") else None


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
