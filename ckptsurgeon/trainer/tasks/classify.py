"""Classification: any module that takes inputs (batch, …) and returns logits (batch, classes).

If its ``forward`` has a parameter ``lengths``, it also gets the lengths of the inputs. Inputs are sounds, arrays
(``.npy``), or the items of a user's dataset: ``data: {train: my_data.py:train_set}``, or a ``_target_``. The token list
contains the classes in the order of the outputs.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ...destinations._document import Document
from ...destinations.factory import instantiated
from ...errors import CheckpointError, ConfigError
from ...util.text import brief_repr, count, escape, listing
from ..config.imports import load_from_user_file, split_file_name
from ..config.settings import Named, Settings
from ..data.sound import Clip
from ..data.split import Split
from ._sounds import SoundTask
from ._task import Batch, Loss, Task

__all__ = ["TASK", "Classify", "DatasetItem", "dataset_split"]


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class DatasetItem(Clip):
    """A clip that is an item of a user's map-style dataset: the pair (input, label) at index ``place``."""

    dataset: Any = None
    place: int = 0

    def read(self) -> tuple[Tensor, Any]:
        """Return the input and the label of the item; raises ConfigError if the dataset fails or returns no pair."""
        try:
            found = self.dataset[self.place]
            if not isinstance(found, (tuple, list)) or len(found) != 2:
                raise ConfigError(f"{self.where} is {brief_repr(found, 80)}, not a pair (input, label).")
            return torch.as_tensor(found[0]), found[1]
        except CheckpointError:
            raise
        except Exception as error:  # the dataset is the user's own code
            raise ConfigError(f"{self.where}: {type(error).__name__}: {escape(str(error).rstrip('.'))}.") from error


def dataset_split(name: str, named: Sequence[Named]) -> Split | None:
    """Return the items of a user's dataset for the split ``name``; None if ``named`` has only manifests.

    A function ``my_data.py:function`` is called without arguments. A function in ``_target_`` is called with the other
    fields of its entry (https://hydra.cc/docs/advanced/instantiate_objects/overview/). Raises ConfigError if the code
    does not exist, fails, or does not return a map-style dataset.
    """
    makers = [one for one in named if not isinstance(one, str) or (":" in one and split_file_name(one))]
    if not makers:
        return None
    if len(named) > 1:
        raise ConfigError(
            f"train.data.{name} has a function together with other entries.",
            hint="Give one function; it may return several datasets joined by torch.utils.data.ConcatDataset.",
        )
    called, dataset = _dataset(f"train.data.{name}", makers[0])
    clips = (DatasetItem("", "", f"{called}[{n}]", 0.0, dataset=dataset, place=n) for n in range(len(dataset)))
    return Split(name, tuple(clips), {}, called)


def _dataset(field: str, maker: Named) -> tuple[str, Any]:
    """Return the name of the function that makes a dataset, for messages, and the dataset.

    ``field`` is the field of the configuration that contains the function, ``maker`` is the field's value. Raises
    ConfigError if the function is invalid or cannot be imported.
    """
    if not isinstance(maker, str):
        called = str(maker["_target_"])
        if split_file_name(called):
            raise ConfigError(
                f"{field}: _target_ is {escape(called)}, not of the form package.module.function.",
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
        raise ConfigError(f"{what} is not a function that returns a dataset.")
    return called, _checked(what, function)


def _checked(what: str, make: Callable[[], Any]) -> Any:
    """Return the dataset that ``make`` returns; raises ConfigError if it is empty or not map-style.

    ``what`` is the beginning of the error's message.
    """
    try:
        dataset = make()
        number = len(dataset) if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else None
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} fails: {type(error).__name__}: {escape(str(error).rstrip('.'))}.") from error
    if number is None:
        raise ConfigError(
            f"{what} returns {type(dataset).__name__}, not a map-style dataset.",
            hint="Return an object with __len__(), and with __getitem__(index), which returns (input, label).",
        )
    if number == 0:
        raise ConfigError(f"{what} returns an empty dataset.")
    return dataset


class Classify(SoundTask):
    """The task of classification.

    The loss is divided by the number of examples. The metric ``error`` is the share of wrong answers.
    """

    metric = "error"

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        if not tokens:
            raise ConfigError(
                "the task classify needs a list of its classes.",
                hint="Set train.data.tokens to a file with one class a line, in the order of the model's outputs.",
            )
        self._classes = {name: number for number, name in enumerate(tokens)}

    def split(self, name: str) -> Split:
        """Return the clips of a split, from manifests or from a user's dataset."""
        return dataset_split(name, getattr(self.settings.data, name)) or super().split(name)

    def notes(self) -> list[str]:
        """Return the notes on each split, and a note if classes have no clip to learn from.

        The classes of a user's dataset are not known before its items are read.
        """
        notes, train = super().notes(), self._splits["train"]
        seen = {clip.text for clip in train.clips}
        unseen = [name for name in self._classes if name not in seen]
        if unseen and not train.made_by:
            classes = count(len(self._classes), "class", "classes")
            has = "has" if len(unseen) == 1 else "have"
            notes.append(f"{len(unseen)} of {classes} {has} no clip in train: {listing(unseen, where='')}")
        return notes

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return the input and the label of a clip."""
        if not isinstance(clip, DatasetItem):
            return super().example(clip)
        given, label = clip.read()
        return {"input": given, "label": self._numbered(label, clip), "seconds": 0.0, "name": clip.where}

    def _numbered(self, label: object, clip: Clip) -> Tensor:
        """Return the index of a class as a 0-d tensor; raises ConfigError if ``label`` is not its index or name."""
        number = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
        number = self._classes.get(number) if isinstance(number, str) else number
        if not isinstance(number, Integral) or int(number) not in range(len(self._classes)):
            last = len(self._classes) - 1
            raise ConfigError(
                f"{clip.where}: the label {brief_repr(label, 80)} is not a class.",
                hint=f"A label must be an index from 0 to {last}, or the name of a class in train.data.tokens.",
            )
        return torch.tensor(int(number))

    def label(self, clip: Clip) -> Tensor:
        """Return the index of a clip's class, as a 0-d tensor."""
        self.check([clip])
        return torch.tensor(self._classes[clip.text])

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ConfigError for clips whose class is not in the list of classes; the error's details list the clips."""
        wrong = [clip for clip in clips if clip.text not in self._classes]
        if wrong:
            first = wrong[0]
            said = (
                f"the class {escape(first.text)!r} is not in train.data.tokens" if first.text else "the class is empty"
            )
            raise ConfigError(
                f"{first.where}: {said}.",
                hint=f"The classes are {listing(list(self._classes), where='')}.",
                details=[f"{clip.where}: {escape(clip.text)}" for clip in wrong],
            )

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the cross-entropy of a batch, as a sum over its examples."""
        total = nn.functional.cross_entropy(
            self._logits(model, batch), batch.labels, reduction="sum", label_smoothing=self.settings.label_smoothing
        )
        return Loss(total, len(batch.labels), {"cross_entropy": total.detach()})

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inner = getattr(model, "module", model)
        parameters = inspect.signature(inner.forward).parameters
        takes_lengths = "lengths" in parameters
        _check_parameters(inner, list(parameters.values()))
        found = model(batch.inputs, lengths=batch.lengths) if takes_lengths else model(batch.inputs)
        logits = getattr(found, "logits", found)
        wanted = (len(batch.labels), len(self._classes))
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
            raise ConfigError(f"the model returns {shape}, not logits of the shape {wanted}: (batch, classes).")
        return logits.float()

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per example if all classes were equally likely."""
        return math.log(len(self._classes))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the loss per example and the share of wrong answers."""
        total, wrong, examples = 0.0, 0, 0
        for batch in batches:
            logits = self._logits(model, batch)
            total += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
            wrong += int((logits.argmax(-1) != batch.labels).sum())
            examples += len(batch.labels)
        return {"loss": total / max(examples, 1), "error": wrong / max(examples, 1)}


def _check_parameters(model: nn.Module, parameters: Sequence[inspect.Parameter]) -> None:
    """Raise ConfigError if a model's ``forward`` needs more than the inputs and ``lengths``."""
    more = [one.name for one in parameters[1:] if one.default is one.empty and one.kind not in VARIADIC]
    more = [name for name in more if name != "lengths"]
    if more:
        raise ConfigError(
            f"the forward() of {type(model).__name__} needs the argument {escape(more[0])}, but the task classify "
            "passes only the inputs and, if there is an argument of this name, lengths.",
            hint=f"Give {escape(more[0])} a default value, or, if it means the lengths of the inputs, rename it to "
            "lengths.",
        )


TASK: type[Task] = Classify
