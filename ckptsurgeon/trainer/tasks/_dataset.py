"""Examples of a dataset that the user's own code makes: ``data: {train: my_data.py:train_set}``, or a ``_target_``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...destinations._document import Document
from ...destinations.factory import instantiated
from ...errors import CheckpointError, ConfigError
from ...util.text import brief_repr, escape
from ..audio.clip import Clip
from ..config.settings import Named
from ..config.users_file import load_from_user_file, split_file_name
from ..data.split import Split

__all__ = ["DatasetItem", "dataset_split"]


@dataclass(frozen=True)
class DatasetItem(Clip):
    """An example of a dataset (``__len__``, and ``__getitem__`` that gives an input and its label): its ``place``."""

    dataset: Any = None
    place: int = 0

    def read(self) -> tuple[Tensor, Any]:
        """Return the input and the label as the dataset has it; raises ConfigError."""
        try:
            found = self.dataset[self.place]
            if not isinstance(found, (tuple, list)) or len(found) != 2:
                raise ConfigError(f"{self.where} is {brief_repr(found, 80)}, not a pair (input, label).")
            return torch.as_tensor(found[0]), found[1]
        except CheckpointError:
            raise
        except Exception as error:  # it is the user's own code
            raise ConfigError(f"{self.where}: {type(error).__name__}: {escape(str(error))}.") from error


def dataset_split(name: str, named: Sequence[Named]) -> Split | None:
    """Return the examples of a dataset that the user's own code makes; None where there are only manifests.

    It is made by ``my_data.py:function``, called with nothing, or by an entry with ``_target_``, called with what else
    stands there (https://hydra.cc/docs/advanced/instantiate_objects/overview/). Raises ConfigError where there is no
    such code, it fails, or what it returns is no map-style dataset.
    """
    makers = [one for one in named if not isinstance(one, str) or split_file_name(one)]
    if not makers:
        return None
    if len(named) > 1:
        raise ConfigError(
            f"train.data.{name} names a function and something else.", hint="torch.utils.data.ConcatDataset makes one."
        )
    called, dataset = _dataset(f"train.data.{name}", makers[0])
    clips = (DatasetItem("", "", f"{called}[{n}]", 0.0, dataset=dataset, place=n) for n in range(len(dataset)))
    return Split(name, tuple(clips), {}, called)


def _dataset(field: str, maker: Named) -> tuple[str, Any]:
    """Return what messages call a maker of datasets, and the dataset that it makes."""
    if not isinstance(maker, str):
        called = str(maker["_target_"])
        if split_file_name(called):
            raise ConfigError(
                f"{field}: _target_ is {escape(called)}; it must be package.module.function.",
                hint=f"Write {escape(called.replace('.py:', '.').replace(os.sep, '.'))}.",
            )
        what = f"{field}: {escape(called)}"
        return called, _checked(what, lambda: instantiated(Document(field, "", None, {}), maker))
    path, _, attribute = maker.rpartition(":")
    called = f"{os.path.basename(path)}:{attribute}"
    what = f"{field}: {escape(called)}"
    function: Any = load_from_user_file(
        what, path, attribute, example="my_data.py:train_set", module="ckptsurgeon_users_data"
    )  # fmt: skip
    if not callable(function):
        raise ConfigError(f"{what} is no function that returns a dataset.")
    return called, _checked(what, function)


def _checked(what: str, make: Callable[[], Any]) -> Any:
    """Return the dataset that is made."""
    try:
        dataset = make()
        number = len(dataset) if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else None
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} fails: {type(error).__name__}: {escape(str(error))}.") from error
    if number is None:
        raise ConfigError(
            f"{what} returns {type(dataset).__name__}, no map-style dataset.",
            hint="One has __len__ and __getitem__(place), which returns (input, label).",
        )
    if number == 0:
        raise ConfigError(f"{what} returns a dataset of nothing.")
    return dataset
