"""Which parameters are trained, from which step and at which learning rate, and the optimizer that trains them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...planning.keys.pattern import KeyPattern
from ...planning.keys.pattern_hints import deeper_notes, unmatched
from ...planning.keys.renaming import KeyMatcher
from ..config.settings import ANNEALED, Settings
from ..parallel.ranks import SINGLE_PROCESS, Ranks
from .model_tensors import digests

__all__ = ["FreezeSchedule", "Optimizer", "ParameterRule", "lr_factor", "parameter_rules", "pattern_notes"]


class Optimizer:
    """AdamW or SGD over all parameters that are trained at some step; the first of ``betas`` is SGD's momentum.

    Parameters with the same learning rate factor and weight decay are in one parameter group. A frozen parameter has no
    gradient, and therefore no optimizer state. ``order`` has the keys of the parameters, group by group.
    ``had_gradient`` is a mask in the same order: it is true for parameters that have had a gradient other than zero. If
    the parameters are sharded over ``ranks``, norms are computed over the whole parameters, not the shards.
    """

    def __init__(
        self, settings: Settings, parameters: Mapping[str, nn.Parameter], rules: Mapping[str, ParameterRule],
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        self._lr, self._ranks = settings.lr, ranks
        kinds = {key: (rules[key].lr_scale, _decay(settings, one)) for key, one in parameters.items()}
        self._kinds = list(dict.fromkeys(kinds.values()))
        self.order = [key for kind in self._kinds for key in parameters if kinds[key] == kind]
        self.parameters = [parameters[key] for key in self.order]
        self.had_gradient = torch.zeros(len(self.parameters), dtype=torch.bool, device=self.parameters[0].device)
        groups: list[dict[str, Any]] = [
            {"params": [parameters[key] for key in parameters if kinds[key] == kind], "weight_decay": kind[1]}
            for kind in self._kinds
        ]
        self.inner: torch.optim.Optimizer
        self.moments = 2 if settings.optimizer == "adamw" else int(settings.betas[0] > 0)
        """The number of tensors that the optimizer keeps for each parameter, each as large as the parameter."""
        # Fused, on the CPU too: a fused optimizer can skip a step by a flag on the device, without a synchronisation.
        first, second = settings.betas
        if settings.optimizer == "adamw":
            self.inner = torch.optim.AdamW(groups, settings.lr, (first, second), settings.eps, fused=True)
        else:
            self.inner = torch.optim.SGD(groups, settings.lr, first, fused=True)

    def set_learning_rates(self, factor: float) -> dict[str, float]:
        """Set each group's learning rate to ``train.lr`` * ``lr_scale`` * ``factor``; return them by ``lr_scale``."""
        for group, (scale, _) in zip(self.inner.param_groups, self._kinds, strict=True):
            group["lr"] = self._lr * scale * factor
        rates = zip(self.inner.param_groups, self._kinds, strict=True)
        return {f"{scale:g}": group["lr"] for group, (scale, _) in rates}

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """Return the norms of the parameters' gradients, in the order of ``order``; 0 if there is no gradient."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = iter(torch._foreach_norm(gradients) if gradients else ())
        zero = torch.zeros((), device=self.had_gradient.device)
        return self._whole_norms([zero if parameter.grad is None else next(norms) for parameter in self.parameters])

    @torch.no_grad()
    def scale_gradients(self, norms: Tensor, scale: Tensor, clip: float | None) -> Tensor:
        """Multiply the gradients by ``scale``, and clip their total norm to ``clip``; return the norm before clipping.

        ``norms`` are the norms of the gradients before scaling. Scaling and clipping are done by one multiplication.
        """
        norm: Tensor = torch.linalg.vector_norm(norms) * scale
        factor = scale * (clip / (norm + 1e-6)).clamp(max=1) if clip is not None else scale
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, skip: Tensor, norms: Tensor) -> None:
        """Take a step unless ``skip`` (0-d) is true, and drop the gradients.

        ``norms`` are the gradients' norms, from which ``had_gradient`` is updated.
        """
        self.had_gradient |= (norms > 0) & ~skip
        if isinstance(self.inner, torch.optim.SGD):
            self._create_momentum()
        # With these two attributes, torch's GradScaler skips a step without a synchronisation.
        self.inner.found_inf = skip.float()  # type: ignore[attr-defined]
        self.inner.grad_scale = None  # type: ignore[attr-defined]
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def _create_momentum(self) -> None:
        """Create momentum buffers of zeros, because torch leaves them uninitialised if the first step is skipped."""
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and parameter.grad is not None and not self.inner.state[parameter]:
                    self.inner.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def gradients_seen(self) -> dict[str, bool]:
        """Return, by key, whether each trained parameter has had a gradient other than zero."""
        return dict(zip(self.order, self.had_gradient.tolist(), strict=True))

    @torch.no_grad()
    def update_ratios(self, old: Sequence[Tensor]) -> dict[str, float]:
        """Return, by key, the norm of each parameter's change since ``old``, relative to the norm of the old value.

        ``old`` are the old values, in the order of ``order``.
        """
        if not old:
            return {}
        pairs = zip(self.parameters, old, strict=True)
        moved = self._whole_norms([torch.linalg.vector_norm(now - before) for now, before in pairs])
        ratios = moved / self._whole_norms(torch._foreach_norm(list(old))).clamp(min=1e-12)
        return dict(zip(self.order, ratios.tolist(), strict=True))

    def has_state(self, key: str) -> bool:
        """Return whether the optimizer has state, such as moments, for the parameter ``key``."""
        return key in self.order and bool(self.inner.state.get(self.parameters[self.order.index(key)]))

    def _whole_norms(self, norms: Sequence[Tensor]) -> Tensor:
        """Return the norms of whole parameters, from the norms of this rank's shards."""
        found = torch.stack(list(norms))
        if self._ranks.size == 1:
            return found
        squares = found.square()
        self._ranks.all_reduce([squares])
        return squares.sqrt()


def _decay(settings: Settings, parameter: nn.Parameter) -> float:
    """Return the weight decay of a parameter.

    With ``decay: matrices``, it is 0 for a parameter of fewer than 2 dimensions. Such parameters are biases, and the
    weights of most norms.
    """
    return settings.weight_decay if settings.decay == "all" or parameter.dim() > 1 else 0.0


def lr_factor(settings: Settings, step: int) -> float:
    """Return the factor of ``train.lr`` at ``step`` (counted from 0) by warm-up and schedule, without ``train.anneal``.

    After the warm-up, ``tri_stage`` stays at 1 for ``hold`` steps and then falls exponentially
    (https://arxiv.org/abs/1904.08779, section 3.2); cosine and linear begin to fall right after the warm-up.
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule in ("constant", *ANNEALED):
        return 1.0
    begins = settings.warmup + (settings.hold if settings.schedule == "tri_stage" else 0)
    done = max(0.0, (step - begins) / max(1, settings.steps - begins))
    if settings.schedule == "tri_stage":
        return math.pow(settings.final_lr, done)
    falling = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.final_lr + (1 - settings.final_lr) * falling


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
