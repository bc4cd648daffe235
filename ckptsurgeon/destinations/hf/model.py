"""Constructs a model of transformers to find its tensors, ties and vocabulary axes."""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ...errors import ConfigError
from ...tensors.info import TensorInfo
from ..torch_module.construction import bounded, drawing, python_random
from ..torch_module.meta import build_on_meta
from ..torch_module.module import module_target
from ..torch_module.tensors import infos_of, state_of
from ..torch_module.user_code import PROCESS_STATE
from .config import ModelDescription
from .growing_axes import GrowingAxes, grown_axes
from .names import KeyConversions
from .stock_code import is_stock
from .unknown_values import unknown_value_error

__all__ = ["ModelFacts", "built", "construct", "offline", "vocabulary_of"]


class ModelFacts:
    """Facts about a model that are needed after it is freed: the keys that it ties, and its renamings of older keys."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._tied: list[str] = []
        self._names: KeyConversions | None = None
        self.is_stock = False
        """Whether all modules are of classes of torch or transformers, whose versions then determine the tensors."""

    def take(self, model: Any) -> None:
        """Collect the facts about a model without keeping a reference to the model, so that it can be freed."""
        self._tied = [
            f"{path}.{key}".removeprefix(".")
            for path, module in model.named_modules()
            for key in getattr(module, "_tied_weights_keys", None) or ()
        ]
        self._names = KeyConversions.of(model, self._package)
        self.is_stock = is_stock(list(model.modules()))

    def fields(self, tensors: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields ``implied`` and ``recognise`` of a TargetSpec, which depend on the model."""
        assert self._names is not None
        return {
            "implied": _implied(self._tied, ties),
            "recognise": self._names.of_targets(tensors),
        }


def construct(described: ModelDescription, facts: ModelFacts) -> Any:
    """Construct and return the model, and collect its facts."""
    model = built(described)
    facts.take(model)
    return model


def built(described: ModelDescription) -> Any:
    """Build and return the model as transformers' ``from_config`` does, without downloads.

    Raises UnsafeError if the model has too many parameters to be built, and ConfigError for a value of a field, such as
    an activation, that transformers does not know.
    """
    try:
        with offline(), bounded(described.name):
            return described.model_class._from_config(copy.deepcopy(described.config))
    except KeyError as error:
        unknown = unknown_value_error(error, described.config.to_dict(), described.name)
        if unknown is None:
            raise
        raise unknown from error


@contextmanager
def offline() -> Iterator[None]:
    """Prevent transformers from downloading, and from logging anything but errors, during the block.

    A configuration may refer to a backbone whose weights the constructor would download.
    """
    from huggingface_hub import constants

    with PROCESS_STATE, redirect_stdout(sys.stderr), _errors_only():
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


@contextmanager
def _errors_only() -> Iterator[None]:
    """Keep transformers, if it is installed, from logging anything but errors."""
    if find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(40)  # logging.ERROR
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _implied(tied: list[str], ties: Mapping[str, str]) -> frozenset[str]:
    """Return the keys of tied tensors that ``save_pretrained`` leaves out.

    ``tied`` are the patterns of keys that the model declares as tied. In each group of tied keys, the keys that match a
    pattern are left out. If all keys match, one of them is kept. ``remove_tied_weights_from_state_dict`` in
    transformers/modeling_utils.py does the same.
    """
    groups: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        groups.setdefault(owner, [owner]).append(alias)
    found: set[str] = set()
    for names in groups.values():
        declared = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in tied)]
        found.update(declared[: len(names) - 1])
    return frozenset(found)


# The vocabulary axes (one row for each token) are the axes that grow with the vocabulary.
#
# A list of tensor names is not enough: heads are called ``lm_head``, ``ctc_head``, ``cls.predictions``, and half of
# MobileBERT's output layer is transposed. So the model is built a second time, with more tokens.

MORE = 10007
"""The number of added tokens: large enough that even an axis with a size rounded up to a power of two grows."""


def vocabulary_of(described: ModelDescription, tensors: Mapping[str, TensorInfo]) -> Mapping[str, int]:
    """Return {key: axis with one row for each token} for the tensors that have such an axis; computed on first use."""
    return GrowingAxes(lambda: _grown(described, tensors))


def _grown(described: ModelDescription, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    larger = _larger(described)
    if larger is None:
        return {}
    try:
        return grown_axes(tensors, _shapes_of(larger))
    except ConfigError:  # this model cannot have that many tokens: the axes stay unknown, and are not guessed
        return {}


def _shapes_of(described: ModelDescription) -> Mapping[str, TensorInfo]:
    """Return dtype and shape of each tensor of a model; raises ConfigError if it cannot be built."""
    try:
        with python_random(0), drawing(), _without_values():
            return infos_of(state_of(build_on_meta(lambda: built(described)))[0])
    except Exception:  # its constructor reads the values of its parameters, or it cannot have that many tokens
        return module_target(lambda: built(described), kind="transformers", name=described.name).tensors


@contextmanager
def _without_values() -> Iterator[None]:
    """Prevent torch and transformers from drawing initial values in this thread during the block.

    Drawing these values takes most of the time of building a model without memory. Models that other threads build
    meanwhile get their initial values.
    """
    from torch.nn import init
    from transformers import PreTrainedModel

    names = [name for name in vars(init) if name.endswith("_") and not name.startswith("_")]
    builders = {threading.get_ident()}
    with PROCESS_STATE, ExitStack() as stack:
        stack.callback(builders.clear)  # another thread may put a replacement back after the block
        for place, name in [*((init, name) for name in names), (PreTrainedModel, "initialize_weights")]:
            original = getattr(place, name)
            idle = _idle_for(builders, original)
            setattr(place, name, idle)
            stack.callback(_put_back, place, name, idle, original)
        yield


def _put_back(place: object, name: str, replacement: object, original: object) -> None:
    """Set ``place.name`` to ``original`` if it is still ``replacement``: transformers may have set its own function."""
    if getattr(place, name) is replacement:
        setattr(place, name, original)


def _idle_for(builders: Collection[int], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ``original``; in the threads ``builders``, it just returns its first argument."""

    def called(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor if threading.get_ident() in builders else original(tensor, *args, **kwargs)

    return called


def _larger(described: ModelDescription) -> ModelDescription | None:
    """Return the description of the same model with more tokens; None if the model has no tokens (images, sound).

    None is also returned if the model has two vocabularies, of which neither is the main one.
    """
    config = copy.deepcopy(described.config)
    try:
        text = config.get_text_config()
    except ValueError:  # two vocabularies, and neither is the main one
        return None
    size = getattr(text, "vocab_size", None)
    if type(size) is not int:
        return None
    text.vocab_size = size + MORE
    return replace(described, config=config)
