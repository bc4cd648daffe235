"""What is trained, from which step, and how fast: patterns over the model's keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...planning.keys.hints import deeper_notes, unmatched
from ...planning.keys.matcher import KeyMatcher
from ...planning.keys.pattern import KeyPattern
from ..config.settings import Settings
from .model_tensors import digests

__all__ = ["FreezeSchedule", "ParameterRule", "parameter_rules", "pattern_notes"]

NEVER = -1


@dataclass(frozen=True)
class ParameterRule:
    """From which step a tensor is trained (0: from the first, NEVER: not at all), its share of the learning rate."""

    thaw: int = 0
    scale: float = 1.0


def parameter_rules(settings: Settings, keys: Sequence[str]) -> dict[str, ParameterRule]:
    """Return how free each key is; of several patterns that match one, the last counts.

    Raises PatternError for a pattern that matches nothing.
    """
    thaws: dict[str, int] = {}
    scales: dict[str, float] = {}
    for pattern, step in settings.freeze.items():
        thaws.update(dict.fromkeys(_matched("train.freeze", pattern, keys), NEVER if step is None else step))
    for pattern, scale in settings.lr_scale.items():
        scales.update(dict.fromkeys(_matched("train.lr_scale", pattern, keys), scale))
    return {key: ParameterRule(thaws.get(key, 0), scales.get(key, 1.0)) for key in keys}


def pattern_notes(settings: Settings, keys: Sequence[str]) -> list[str]:
    """Return notes on patterns that match few keys, and far more deeper down."""
    said = {"train.freeze": settings.freeze, "train.lr_scale": settings.lr_scale}
    return deeper_notes([(f"{flag} {one}", KeyPattern(one)) for flag, texts in said.items() for one in texts], keys)


def _matched(flag: str, text: str, keys: Sequence[str]) -> list[str]:
    pattern = KeyPattern.given(text, f"{flag} ")
    found = KeyMatcher([pattern]).hits(keys)[0]
    if not found:
        raise unmatched(f"{flag} {text}", pattern, keys, "model")
    return found


class FreezeSchedule:
    """Holds the tensors of a model still, until their step comes; knows whether they did hold still.

    What is frozen is parameters and buffers: a module that owns a frozen buffer (a norm's statistics) stays in
    evaluation mode. A tied tensor is frozen where any of its keys is.
    """

    def __init__(self, model: nn.Module, settings: Settings, frozen: Collection[str] = ()) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = {
            key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
        }
        self.freedoms = parameter_rules(settings, list(self._tensors))
        self.freedoms.update({key: ParameterRule(NEVER) for key in frozen})
        self._tie()
        self.learned = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self.before: dict[str, str] = {}
        self.moved: list[str] = []
        self._owners = _owners_of_buffers(model)

    def _tie(self) -> None:
        """Give all keys of one tensor the least of their freedoms."""
        least: dict[int, ParameterRule] = {}
        for key, tensor in self._tensors.items():
            other, own = least.get(id(tensor)), self.freedoms[key]
            least[id(tensor)] = own if other is None or (own.thaw == NEVER or own.thaw > other.thaw >= 0) else other
        self.freedoms = {key: least[id(tensor)] for key, tensor in self._tensors.items()}

    def frozen(self, step: int) -> list[str]:
        """Return the keys that are held still in a step."""
        return [key for key, freedom in self.freedoms.items() if freedom.thaw == NEVER or freedom.thaw > step]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return each parameter that is trained at some time, under its first key."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for key, tensor in self._tensors.items():
            wanted = isinstance(tensor, nn.Parameter) and id(tensor) in self.learned
            if wanted and self.freedoms[key].thaw != NEVER:
                found.setdefault(id(tensor), (key, tensor))  # type: ignore[arg-type]
        return dict(found.values())

    def remember(self) -> None:
        """Note what every tensor is before the first step."""
        self.before = digests(self._tensors)

    def changed(self, keys: Collection[str]) -> list[str]:
        """Return those of ``keys`` that are no longer what they were at first."""
        known = {key: self._tensors[key] for key in keys if key in self.before}
        return [key for key, digest in digests(known).items() if digest != self.before[key]]

    def begin(self, step: int) -> None:
        """Set what learns from a step on. Called before the first step that is taken, and where something thaws."""
        frozen = set(self.frozen(step))
        thawing = [key for key, freedom in self.freedoms.items() if freedom.thaw == step > 0 and key not in self.moved]
        self.moved += self.changed(thawing)
        for key, tensor in self._tensors.items():
            if id(tensor) in self.learned:
                tensor.requires_grad_(key not in frozen)
        self.training(step)

    def training(self, step: int) -> None:
        """Put the model in training mode, but for what is frozen."""
        self._model.train()
        for key in self.frozen(step):
            if key in self._owners:
                self._owners[key].training = False

    def steps(self) -> set[int]:
        """Return the steps in which something thaws."""
        return {freedom.thaw for freedom in self.freedoms.values() if freedom.thaw > 0}


def _owners_of_buffers(model: nn.Module) -> Mapping[str, nn.Module]:
    return {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if isinstance(buffer, torch.Tensor)
    }
