"""The changes of several models from the same base model, tensor by tensor, and the agreement of these changes.

The change of a model is its weights minus the weights of the base. The literature on merging calls it a task vector
(Ilharco et al., 2023, arXiv:2212.04089). Merging loses changes that point in different directions, or have different
signs (TIES; Yadav et al., 2023, arXiv:2306.01708).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from ...util.notebook import InNotebooks
from ...util.text import escape, number_in
from .sums import ZERO, Sum, finite, norm, quotient

__all__ = [
    "Agreement",
    "ChangeSums",
    "Changes",
    "ModelChange",
    "TensorChanges",
    "layer_of",
    "pairs_of",
    "summed",
    "weights_of",
]


def pairs_of(models: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return all pairs of models, each pair in the order of the models."""
    return list(combinations(models, 2))


@dataclass(frozen=True)
class ModelChange:
    """Sums over the values of a model. ``values`` is their number, ``changed`` the number of changed values.

    ``gap`` is the sum of the squares of the changes, ``base`` the sum of the squares of the base's values. Values that
    are NaN or infinite, in the base or in any of the models, are left out. ``not_finite`` is the number of left-out
    values that differ between this model and the base.
    """

    values: int = 0
    changed: int = 0
    gap: Sum = ZERO
    base: Sum = ZERO
    not_finite: int = 0

    def __add__(self, other: ModelChange) -> ModelChange:
        return ModelChange(
            self.values + other.values, self.changed + other.changed, self.gap + other.gap, self.base + other.base,
            self.not_finite + other.not_finite,
        )  # fmt: skip

    @property
    def differs(self) -> bool:
        """Whether any value differs from the base's, finite or not."""
        return bool(self.changed or self.not_finite)

    @property
    def relative(self) -> float | None:
        """The L2 norm of the change divided by the L2 norm of the base; None if the base is zero."""
        return 0.0 if not self.gap.value else quotient(norm(self.gap), norm(self.base))


@dataclass(frozen=True)
class Agreement:
    """Sums over the values of two models, to compare their changes.

    ``both`` is the number of values that both models have changed, ``same_sign`` the number of these values that both
    moved in the same direction. ``product`` is the sum of the products of the two changes. ``first`` and ``second`` are
    the sums of the squares of each model's changes.
    """

    values: int = 0
    both: int = 0
    same_sign: int = 0
    product: Sum = ZERO
    first: Sum = ZERO
    second: Sum = ZERO

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.values + other.values, self.both + other.both, self.same_sign + other.same_sign,
            self.product + other.product, self.first + other.first, self.second + other.second,
        )  # fmt: skip

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between both changes as vectors; None if one of them is zero."""
        return quotient(self.product, norm(self.first), norm(self.second))

    @property
    def share_of_same_sign(self) -> float | None:
        """Among the values that both models have changed, the share that both moved in the same direction.

        None if there are no such values.
        """
        return self.same_sign / self.both if self.both else None


@dataclass(frozen=True)
class ChangeSums:
    """The changes of each model, by its index, and the agreement of each pair of models, by their indices.

    A model that lacks the tensor, or has it in another shape, is in neither mapping. ``not_finite`` is the number of
    values that are NaN or infinite in the base or in a model: they are left out of all sums.
    """

    models: Mapping[int, ModelChange] = field(default_factory=dict)
    pairs: Mapping[tuple[int, int], Agreement] = field(default_factory=dict)
    not_finite: int = 0

    @property
    def changed_by(self) -> tuple[int, ...]:
        """The indices of the models in which any value has changed, finite or not."""
        return tuple(index for index, one in self.models.items() if one.differs)


def summed(every: Iterable[ChangeSums]) -> ChangeSums:
    """Return the total of the sums of several tensors, or of several parts of one tensor."""
    models, pairs, not_finite = dict[int, ModelChange](), dict[tuple[int, int], Agreement](), 0
    for sums in every:
        for index, change in sums.models.items():
            models[index] = models[index] + change if index in models else change
        for pair, agreement in sums.pairs.items():
            pairs[pair] = pairs[pair] + agreement if pair in pairs else agreement
        not_finite += sums.not_finite
    return ChangeSums(dict(sorted(models.items())), dict(sorted(pairs.items())), not_finite)


@dataclass(frozen=True)
class TensorChanges:
    """How models changed one tensor of their base; ``is_weight`` is true if the tensor has floating-point numbers."""

    key: str
    sums: ChangeSums
    is_weight: bool = True


def layer_of(key: str) -> str:
    """Return the layer of a tensor: ``layers.0`` for ``layers.0.attn.weight``, ``head`` for ``head.weight``.

    It is the key up to and with its first number; if the key has no number, it is the key without its last segment.
    """
    parts = key.split(".")
    place = next((at for at, part in enumerate(parts) if number_in(part) is not None), None)
    return ".".join(parts[: place + 1] if place is not None else parts[:-1] or parts)


def weights_of(tensors: Sequence[TensorChanges]) -> Sequence[TensorChanges]:
    """Return the tensors that are weights; all tensors if there are no weights."""
    return [one for one in tensors if one.is_weight] or tensors


@dataclass(frozen=True, repr=False)
class Changes(InNotebooks):
    """How models have changed from their base: ``tensors`` has each tensor of the base that a model also has.

    Three fields map the index of a model to keys: ``missing`` to the base's keys that the model lacks, ``added`` to
    keys that only the model has, ``reshaped`` to the keys of tensors with another shape. ``not_compared`` maps keys
    whose values are not plain numbers, or cannot be decoded, to the reason. ``left_out`` is the number of keys that
    patterns did not select.
    """

    base: str
    models: tuple[str, ...]
    tensors: tuple[TensorChanges, ...] = ()
    missing: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    added: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    reshaped: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(map(escape, self.models))
        changed = sum(bool(one.sums.changed_by) for one in self.tensors)
        return f"<Changes of {names} from {escape(self.base)}: {changed} of {len(self.tensors)} tensors changed>"

    @cached_property
    def total(self) -> ChangeSums:
        """The sums over all weights.

        Integers are left out: the norm of position ids may exceed the norm of all weights.
        """
        return summed(one.sums for one in weights_of(self.tensors))

    @property
    def differs(self) -> bool:
        """True if a model differs from the base, or a tensor could not be compared."""
        others = any(any(of.values()) for of in (self.missing, self.added, self.reshaped))
        return others or bool(self.not_compared) or any(one.sums.changed_by for one in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the changes as plain data."""
        return {
            "kind": "ckpt.changes",
            "version": 1,
            "base": self.base,
            "models": list(self.models),
            "differs": self.differs,
            "total": _sums(self.total),
            "tensors": [{"key": one.key, **_sums(one.sums)} for one in self.tensors],
            "missing": _by_model(self.missing, self.models),
            "added": _by_model(self.added, self.models),
            "reshaped": _by_model(self.reshaped, self.models),
            "left_out": self.left_out,
            "not_compared": [{"key": key, "why": why} for key, why in self.not_compared.items()],
            "notes": list(self.notes),
        }


def _sums(sums: ChangeSums) -> dict[str, Any]:
    return {
        "changes": [
            {
                "model": index, "changed": one.changed, "not_finite": one.not_finite, "values": one.values,
                "relative": one.relative,
            }
            for index, one in sums.models.items()
        ],
        "agreements": [
            {
                "models": list(pair), "both": one.both, "cosine": one.cosine,
                "same_sign": None if one.share_of_same_sign is None else finite(one.share_of_same_sign),
            }
            for pair, one in sums.pairs.items()
        ],
        "not_finite": sums.not_finite,
    }  # fmt: skip


def _by_model(keys: Mapping[int, tuple[str, ...]], models: Sequence[str]) -> list[dict[str, Any]]:
    return [{"model": index, "key": key} for index in range(len(models)) for key in keys.get(index, ())]
