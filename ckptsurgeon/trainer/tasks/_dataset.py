"""Examples of a dataset that a function of the user's own returns: ``data: {train: my_data.py:train_set}``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from ...text import brief_repr, escape
from ..data.clip import Clip
from ..data.split import Split
from ..users_file import from_users_file, named_in_file

__all__ = ["Item", "dataset_split"]


@dataclass(frozen=True)
class Item(Clip):
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


def dataset_split(name: str, paths: Sequence[str]) -> Split | None:
    """Return the examples of ``my_data.py:function``, which is called with nothing; None where none is named.

    Raises ConfigError where there is no such function, it fails, or what it returns is no map-style dataset.
    """
    named = [found for found in map(named_in_file, paths) if found is not None]
    if not named:
        return None
    if len(paths) > 1:
        raise ConfigError(
            f"train.data.{name} names a function and something else.", hint="torch.utils.data.ConcatDataset makes one."
        )
    path, attribute = named[0]
    called = f"{os.path.basename(path)}:{attribute}"
    dataset = _made(f"train.data.{name}: {escape(called)}", path, attribute)
    clips = (Item("", "", f"{called}[{n}]", 0.0, dataset=dataset, place=n) for n in range(len(dataset)))
    return Split(name, tuple(clips), {}, called)


def _made(what: str, path: str, attribute: str) -> Any:
    """Return the dataset that a function returns."""
    function = from_users_file(
        what, path, attribute, example="my_data.py:train_set", module="ckptsurgeon_users_data"
    )  # fmt: skip
    if not callable(function):
        raise ConfigError(f"{what} is no function that returns a dataset.")
    try:
        dataset: Any = function()
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
