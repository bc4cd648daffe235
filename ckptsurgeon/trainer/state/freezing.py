"""Decides which parameters are trained, from which step and at which learning rate, by patterns for their keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...planning.keys.pattern import KeyPattern
from ...planning.keys.pattern_hints import deeper_notes, unmatched
from ...planning.keys.renaming import KeyMatcher
from ..config.settings import Settings
from .model_tensors import digests

__all__ = ["FreezeSchedule", "ParameterRule", "parameter_rules", "pattern_notes"]

NEVER = -1


@dataclass(frozen=True)
class ParameterRule:
    """The step from which a tensor is trained (NEVER: it stays frozen), and the factor of its learning rate."""

    unfreeze_step: int = 0
    lr_scale: float = 1.0


def parameter_rules(settings: Settings, keys: Sequence[str]) -> dict[str, ParameterRule]:
    """Return the rule of each key, from ``train.freeze`` and ``train.lr_scale``; the last matching pattern applies.

    Raises PatternError if a pattern matches no key.
    """
    unfreeze_steps: dict[str, int] = {}
    scales: dict[str, float] = {}
    for pattern, step in settings.freeze.items():
        unfreeze_steps.update(dict.fromkeys(_matched("train.freeze", pattern, keys), NEVER if step is None else step))
    for pattern, scale in settings.lr_scale.items():
        scales.update(dict.fromkeys(_matched("train.lr_scale", pattern, keys), scale))
    return {key: ParameterRule(unfreeze_steps.get(key, 0), scales.get(key, 1.0)) for key in keys}


def pattern_notes(settings: Settings, keys: Sequence[str]) -> list[str]:
    """Return notes on patterns that match few keys, but would match many more keys with ``**.`` at their beginning."""
    said = {"train.freeze": settings.freeze, "train.lr_scale": settings.lr_scale}
    patterns = [(f"{flag} {one}", KeyPattern(one)) for flag, texts in said.items() for one in texts]
    return deeper_notes(patterns, keys) if patterns else []


def _matched(flag: str, text: str, keys: Sequence[str]) -> list[str]:
    pattern = KeyPattern.given(text, f"{flag} ")
    found = KeyMatcher([pattern]).hits(keys)[0]
    if not found:
        raise unmatched(f"{flag} {text}", pattern, keys, "model")
    return found


class FreezeSchedule:
    """Freezes tensors of a model up to the step from which they are trained, and checks that they do not change.

    The argument ``frozen`` has keys that are never trained, whatever the settings are. Buffers can be frozen, too: a
    module with a frozen buffer, such as the statistics of a batch norm, stays in evaluation mode. A tied tensor is
    frozen if any of its keys is.

    ``digests_before`` has the digests of all tensors before the first step. ``moved_while_frozen`` has the keys of
    tensors that had already changed when they were unfrozen. Checkpoints contain both.
    """

    def __init__(self, model: nn.Module, settings: Settings, frozen: Collection[str] = ()) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = {
            key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
        }
        self.rules = parameter_rules(settings, list(self._tensors))
        self.rules.update({key: ParameterRule(NEVER) for key in frozen})
        self._tie_rules()
        self._requires_grad = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self.digests_before: dict[str, str] = {}
        self.moved_while_frozen: list[str] = []
        self._owners = _owners_of_buffers(model)

    def _tie_rules(self) -> None:
        """Give all keys of a tied tensor the same rule: the one that keeps the tensor frozen longest."""
        strictest: dict[int, ParameterRule] = {}
        for key, tensor in self._tensors.items():
            other, own = strictest.get(id(tensor)), self.rules[key]
            strictest[id(tensor)] = (
                own
                if other is None or (own.unfreeze_step == NEVER or own.unfreeze_step > other.unfreeze_step >= 0)
                else other
            )
        self.rules = {key: strictest[id(tensor)] for key, tensor in self._tensors.items()}

    def frozen(self, step: int) -> list[str]:
        """Return the keys of the tensors that are frozen at ``step``."""
        return [key for key, rule in self.rules.items() if rule.unfreeze_step == NEVER or rule.unfreeze_step > step]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return each parameter that is trained at some step, under its first key."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for key, tensor in self._tensors.items():
            wanted = isinstance(tensor, nn.Parameter) and id(tensor) in self._requires_grad
            if wanted and self.rules[key].unfreeze_step != NEVER:
                found.setdefault(id(tensor), (key, tensor))  # type: ignore[arg-type]
        return dict(found.values())

    def record_digests(self) -> None:
        """Record the digests of all tensors, before the first step."""
        self.digests_before = digests(self._tensors)

    def changed(self, keys: Collection[str]) -> list[str]:
        """Return the keys in ``keys`` whose tensors differ from their values before the first step."""
        known = {key: self._tensors[key] for key in keys if key in self.digests_before}
        return [key for key, digest in digests(known).items() if digest != self.digests_before[key]]

    def apply(self, step: int) -> None:
        """Set which parameters require gradients from ``step`` on.

        Call this before step 0 and at each of ``unfreeze_steps``.
        """
        frozen = set(self.frozen(step))
        unfrozen = [
            key
            for key, rule in self.rules.items()
            if rule.unfreeze_step == step > 0 and key not in self.moved_while_frozen
        ]
        self.moved_while_frozen += self.changed(unfrozen)
        for key, tensor in self._tensors.items():
            if id(tensor) in self._requires_grad:
                tensor.requires_grad_(key not in frozen)
        for module in self._model.modules():
            # Speech models of transformers make their input require a gradient, even if frozen, unless this is False.
            if isinstance(getattr(module, "_requires_grad", None), bool):
                module._requires_grad = any(one.requires_grad for one in module.parameters())  # type: ignore[assignment]
        self.training(step)

    def training(self, step: int) -> None:
        """Put the model in training mode, except the modules whose buffers are frozen at ``step``."""
        self._model.train()
        for key in self.frozen(step):
            if key in self._owners:
                self._owners[key].training = False

    def unfreeze_steps(self) -> set[int]:
        """Return the steps at which tensors are unfrozen."""
        return {rule.unfreeze_step for rule in self.rules.values() if rule.unfreeze_step > 0}


def _owners_of_buffers(model: nn.Module) -> Mapping[str, nn.Module]:
    return {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if isinstance(buffer, torch.Tensor)
    }
