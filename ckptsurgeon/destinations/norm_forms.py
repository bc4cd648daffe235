"""Finds the computation of each norm of a network, by calling the norm with a vector.

For example, some norms subtract the mean, and some multiply by 1 + weight.
"""

from __future__ import annotations

from typing import Any

from ..planning.resizing.new_width import NormForm
from ..planning.target import TargetSpec
from .hf.cached_answers import cached_answer

__all__ = ["norm_forms"]

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""Possible names of the attribute with the small number that a norm adds to the mean square."""
_CLOSE = 1e-4
"""The largest rounding error, relative to the largest element of a vector."""


def norm_forms(target: TargetSpec) -> dict[str, NormForm]:
    """Return {path of a norm: its computation} for all norms of a network, from the user's cache if it has them.

    A norm is a module whose class has "norm" in its name. The network is built without memory for its parameters. For
    each class, size and epsilon, one norm is called with the same vector twice: with a weight of zeros, and with a
    weight of ones.
    """
    if target.build is None:
        return {}
    asked = {"of": "norms", "destination": target.cache_key} if target.cache_key else {}
    return cached_answer(asked, lambda: _forms(target), _plain, _read)


def _plain(found: dict[str, NormForm]) -> Any:
    return {path: list(form) for path, form in found.items()}


def _read(kept: Any) -> dict[str, NormForm]:
    found = {str(path): NormForm(*form) for path, form in kept.items()}
    if not all(type(form.size) is int and isinstance(form.kind, str) for form in found.values()):
        raise ValueError
    return found


def _forms(target: TargetSpec) -> dict[str, NormForm]:
    from .torch_module.meta import network_on_meta

    model: Any = network_on_meta(target)
    found: dict[str, NormForm] = {}
    known: dict[tuple[Any, ...], NormForm] = {}
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() and ".parametrizations." not in path  # no weight norm
        if is_norm and not any(True for _ in module.children()):
            size, epsilon = _size(module), _epsilon(module)
            alike = type(module), size, epsilon, len(list(module.parameters()))
            if alike not in known:
                known[alike] = _tried(module, size, epsilon)
            found[path] = known[alike]
    return found


def _size(module: Any) -> int:
    """Return the length of the vectors that a module normalises; 0 if it is not known."""
    weight = getattr(module, "weight", None)
    shape: tuple[int, ...] = weight.shape if weight is not None else getattr(module, "normalized_shape", ())
    return int(shape[-1]) if len(shape) == 1 else 0


def _epsilon(module: Any) -> float | None:
    found = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
    return found if isinstance(found, float) else None


def _tried(module: Any, size: int, epsilon: float | None) -> NormForm:
    import torch

    names = [name for name, _ in module.named_parameters()]
    if "weight" not in names:
        return NormForm(size, epsilon, 0.0, "bare")
    if not size or epsilon is None or not set(names) <= {"weight", "bias"}:
        return NormForm(size, epsilon, 0.0, "")
    # The vector is so small that epsilon matters. Its mean is not 0, so that each kind of norm gives another result.
    vector = ((torch.arange(size) * 0.7).sin() + 0.4) * max(epsilon, 1e-12) ** 0.5
    outputs = [_called(module, names, torch.full((size,), weight), vector) for weight in (0.0, 1.0)]
    if any(one is None for one in outputs):
        return NormForm(size, epsilon, 0.0, "")
    zero, one = outputs
    offset = 0.0 if not zero.any() else 1.0
    plain = zero if offset else one
    rms = vector * torch.rsqrt(vector.square().mean() + epsilon)
    centred = vector - vector.mean()
    mean = centred * torch.rsqrt(centred.square().mean() + epsilon)
    is_linear = _is_close(one - zero, plain)
    kind = "rms" if _is_close(plain, rms) else "mean" if _is_close(plain, mean) else ""
    return NormForm(size, epsilon, offset, kind if is_linear else "")


def _called(module: Any, names: list[str], weight: Any, vector: Any) -> Any:
    """Return the output of a norm for ``vector``, with ``weight`` as its weight, and zeros as its other parameters.

    ``names`` are the names of all parameters. Returns None if the norm cannot be called with one vector.
    """
    import torch

    values = {name: weight if name == "weight" else torch.zeros_like(weight) for name in names}
    try:
        with torch.no_grad():
            found = torch.func.functional_call(module, values, (vector[None],))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    return found[0].float() if isinstance(found, torch.Tensor) and found.shape == (1, len(vector)) else None


def _is_close(one: Any, other: Any) -> bool:
    return bool((one - other).abs().max() <= _CLOSE * other.abs().max())
