"""Constructs a model of transformers, and takes down what only the model itself knows."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ...tensors.info import TensorInfo
from .config import Described
from .names import Names

__all__ = ["Facts", "built", "construct", "offline"]


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
