"""Classification: any module that takes inputs (batch, …) and returns logits (batch, classes).

Where its ``forward`` has a parameter ``lengths`` it is given those too. Inputs are sounds, arrays (``.npy``) of
whatever a model takes, or what a dataset of the user's own gives (``_dataset.py``); the token list has the
classes in the order of the outputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...util.text import brief_repr, escape, listing
from ..audio.clip import Clip
from ..config.settings import Settings
from ..data.split import Split
from ._dataset import DatasetItem, dataset_split
from ._sounds import SoundTask
from ._task import Batch, Loss, Task

__all__ = ["TASK", "Classify"]


class Classify(SoundTask):
    """Classification. Items are examples; ``error`` is the share of wrong answers."""

    metric = "error"

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        if not tokens:
            raise ConfigError(
                "the task classify needs to know its classes.",
                hint="Name a text file with one a line, in the order of the model's outputs, with train.data.tokens.",
            )
        self._classes = {name: number for number, name in enumerate(tokens)}

    def split(self, name: str) -> Split:
        """Return the clips of a split, from manifests or from a dataset of the user's own."""
        return dataset_split(name, getattr(self.settings.data, name)) or super().split(name)

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return the input and the label of a clip."""
        if not isinstance(clip, DatasetItem):
            return super().example(clip)
        given, label = clip.read()
        return {"input": given, "label": self._numbered(label, clip), "seconds": 0.0, "name": clip.where}

    def _numbered(self, label: object, clip: Clip) -> Tensor:
        """Return the number of a class that is given by number or by name."""
        number = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
        number = self._classes.get(number) if isinstance(number, str) else number
        if not isinstance(number, Integral) or int(number) not in range(len(self._classes)):
            last = len(self._classes) - 1
            raise ConfigError(
                f"{clip.where}: the label {brief_repr(label, 80)} is no class.",
                hint=f"It is a number from 0 to {last}, or a name of the list in train.data.tokens.",
            )
        return torch.tensor(int(number))

    def label(self, clip: Clip) -> Tensor:
        """Return the number of a clip's class, a scalar."""
        self.check([clip])
        return torch.tensor(self._classes[clip.text])

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ConfigError for a class that the list lacks; all are its details."""
        wrong = [clip for clip in clips if clip.text not in self._classes]
        if wrong:
            first = wrong[0]
            said = f"the class {escape(first.text)!r} is not in the list" if first.text else "its class is empty"
            raise ConfigError(
                f"{first.where}: {said}.",
                hint=f"There are {listing(list(self._classes), where='')}.",
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
        takes_lengths = "lengths" in inspect.signature(inner.forward).parameters
        found = model(batch.inputs, lengths=batch.lengths) if takes_lengths else model(batch.inputs)
        logits = getattr(found, "logits", found)
        wanted = (len(batch.labels), len(self._classes))
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
            raise ConfigError(f"the model returns {shape}, not logits {wanted}: (batch, classes).")
        return logits.float()

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss of a model to which all classes are alike."""
        return math.log(len(self._classes))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return loss per example and the share of wrong answers."""
        total, wrong, examples = 0.0, 0, 0
        for batch in batches:
            logits = self._logits(model, batch)
            total += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
            wrong += int((logits.argmax(-1) != batch.labels).sum())
            examples += len(batch.labels)
        return {"loss": total / max(examples, 1), "error": wrong / max(examples, 1)}


TASK: type[Task] = Classify
