"""How a tensor is computed, to and from JSON: by a merge, by adding adapters, or as a factor of a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Any, TypeAlias

from ...methods.lora.composed import SIDES, composed_shape
from ...methods.lora.expert_stack import experts_of, is_stack, stack_sizes
from ...methods.lora.kinds import factors_of, fits_kind
from ...methods.lora.knots_merges import MERGES, TIES
from ...methods.lora.rotated import neumann_terms

__all__ = [
    "DIFFERENCE",
    "FACTORS",
    "FISHER",
    "GRAM",
    "KNOTS",
    "MAGNITUDES",
    "OF_BASE",
    "OF_ROWS",
    "PRODUCT",
    "TURNED_GRAM",
    "Factor",
    "Lora",
    "LoraTerm",
    "Merge",
    "Value",
    "plain_shape",
    "text",
    "truth",
]

# JSON values with checked types: an edited plan may contain anything.


def text(value: Any) -> str:
    """Return ``value``; raises TypeError unless it is a string."""
    if not isinstance(value, str):
        raise TypeError(f"it has {value!r:.60} where a string is needed")
    return value


def truth(value: Any) -> bool:
    """Return ``value``; raises TypeError unless it is a boolean, since Python treats most other values as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.60} is neither true nor false")
    return value


# Low-rank adapters: the changes they make to a tensor, and the factors that are extracted from a difference.

FACTORS: Mapping[str, int] = {"product": 2, "dora": 3, "saved": 1, "added": 1}
"""{kind of ``LoraTerm``: number of its inputs}: A and B, for DoRA also the magnitudes, or one tensor.

``methods.lora.kinds.factors_of`` defines the other kinds.
"""


def _number_of_inputs(kind: str) -> int | None:
    return FACTORS[kind] if kind in FACTORS else factors_of(kind)


@dataclass(frozen=True)
class LoraTerm:
    """What one adapter adds to a tensor W: ``weight`` times a change that depends on ``kind``.

    - product: ``scale B A``;
    - dora: ``m / |V| V - W`` with ``V = W + scale B A`` and the adapter's magnitudes m;
    - saved: ``S - W`` with the adapter's tensor S, which replaces W;
    - added: ``scale S``;
    - a kind in ``SIDES`` or ``TUCKER``: ``scale`` times the elementwise product of W1 and W2 (LoHa), their Kronecker
      product (LoKr), or the matrix that a core and its two factors give (LoCon);
    - rotation (OFT): ``W R' - W`` with the rotation R, or ``W R - W`` if ``transposed``, as for embeddings;
      "rotation 5" means that R is computed by 5 terms of a Neumann series;
    - "experts 32": ``scale B A`` of each of 32 experts, whose matrices W has one after the other, (experts, out, in);
      "experts 32 transposed" if W is (experts, in, out).

    W is (out, in), or, for the first two kinds, (in, out) if ``transposed``.
    """

    kind: str
    weight: float = 1.0
    scale: float = 1.0
    transposed: bool = False

    def fits(self, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
        """Return whether this term fits a tensor of ``shape``.

        ``inputs`` are the shapes of the term's inputs, such as A and B.
        """
        if self.kind in ("saved", "added"):
            return tuple(inputs[0]) == tuple(shape)
        if self.kind not in FACTORS:
            rotates = neumann_terms(self.kind) is not None
            return (self.scale == 1 if rotates else not self.transposed) and fits_kind(self.kind, shape, inputs)
        a, b = plain_shape(inputs[0]), plain_shape(inputs[1])
        if len(a) < 2 or len(b) != 2 or not shape or a[0] != b[1] or not a[0]:
            return False
        rows, columns = (b[0], a[1:]) if not self.transposed else (a[1], (b[0],))
        out = columns[0] if self.transposed else rows
        whole = (rows, *columns) == plain_shape(shape) and (not self.transposed or len(a) == 2)
        return whole and (self.kind != "dora" or prod(inputs[2]) == out)


@dataclass(frozen=True)
class Lora:
    """The changes of LoRA adapters to a tensor, as one term for each change.

    The inputs of the tensor's step are the base's tensor, followed by the inputs of each term.
    """

    terms: tuple[LoraTerm, ...]

    def parted(self, inputs: Sequence[Any]) -> Iterator[tuple[LoraTerm, Sequence[Any]]]:
        """Yield each term with its inputs; ``inputs`` are the base's tensor and the inputs of all terms."""
        at = 1
        for term in self.terms:
            number = _number_of_inputs(term.kind) or 0
            yield term, inputs[at : at + number]
            at += number

    def fits(self, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
        """Return whether inputs of these shapes, the base's first, fit the terms and an output of ``shape``."""
        numbers = [_number_of_inputs(term.kind) for term in self.terms]
        known = all(isfinite(term.weight) and isfinite(term.scale) for term in self.terms) and None not in numbers
        if not known or not numbers or len(inputs) != 1 + sum(number or 0 for number in numbers):
            return False
        alike = tuple(inputs[0]) == tuple(shape) and len({is_stack(term.kind) for term in self.terms}) == 1
        return alike and all(term.fits(shape, own) for term, own in self.parted(inputs))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the object as plain data, for JSON."""
        return [
            {"kind": one.kind, "weight": one.weight, "scale": one.scale, "transposed": one.transposed}
            for one in self.terms
        ]

    @staticmethod
    def from_json(data: Any) -> Lora | None:
        """Return the object that ``data`` describes, or None if ``data`` is None.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        terms = (
            LoraTerm(str(row["kind"]), float(row["weight"]), float(row["scale"]), truth(row["transposed"]))
            for row in data
        )
        return Lora(tuple(terms))


DIFFERENCE, PRODUCT, KNOTS = "difference", "product", "knots"
"""What a ``Factor`` approximates."""


@dataclass(frozen=True)
class Factor:
    """One of the factors A and B whose product, ``scale B A``, is nearest to a matrix.

    The matrix is the first input minus the second. If ``of`` is "product", it is the product of the factors A (the
    first input) and B instead. If ``of`` is in ``SIDES``, it is the change of a LoHa or LoKr, whose tensors are the
    inputs. If ``of`` is a kind of stacked experts, such as "experts 32", A and B hold the factors of all experts, and
    ``rank`` is the rank of each. If ``of`` is "knots", the inputs are the factors A and B of several adapters, and
    KnOTS makes the matrix from their products. Then ``weights`` has a number for each product, ``merge`` is the name of
    the method that merges the products in their shared basis, and ``density`` is the share of values that TIES or DARE
    keeps. ``part`` is "A" or "B". ``seed`` is for the random start of the computation of a difference, and for the
    values that DARE keeps. The inputs of a difference are (in, out) if ``transposed``. For a convolution, which is
    (out, in, *kernel), A is (rank, in, *kernel), B is (out, rank, 1, ...).
    """

    part: str
    rank: int
    scale: float = 1.0
    transposed: bool = False
    seed: int = 0
    of: str = DIFFERENCE
    weights: tuple[float, ...] = ()
    density: float = 1.0
    merge: str = TIES

    @property
    def divisor(self) -> float:
        """The number that divides the factor of the matrix: a negative scale changes the sign of B only."""
        root = sqrt(abs(self.scale))
        return -root if self.scale < 0 and self.part == "B" else root

    def shape(self, of: Sequence[int]) -> tuple[int, ...]:
        """Return the factor's shape: A is (rank, in), B is (out, rank).

        For a factor of a difference, ``of`` is the shape of the two inputs; for a factor of a product, the shape of
        the input A or B that it replaces.
        """
        if is_stack(self.of):
            size = self.rank * experts_of(self.of)
            return (size, *of[1:]) if self.part == "A" else (*of[:1], size)
        if self.of in (PRODUCT, KNOTS):
            return (self.rank, *of[1:]) if self.part == "A" else (of[0], self.rank, *of[2:])
        out, *into = reversed(of) if self.transposed else of
        return (self.rank, *into) if self.part == "A" else (out, self.rank, *[1] * (len(into) - 1))

    def shape_of(self, inputs: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Return the factor's shape for inputs of these shapes; () if the tensors of a LoHa or LoKr do not fit."""
        if self.of not in SIDES:
            of_product = self.of in (PRODUCT, KNOTS) or is_stack(self.of)
            return self.shape(inputs[1 if of_product and self.part == "B" else 0])
        found = composed_shape(self.of, inputs)
        if found is None or not 0 < self.rank <= found.rank:
            return ()
        return (self.rank, found.columns) if self.part == "A" else (found.rows, self.rank)

    def fits(self, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
        """Return whether the factor has ``shape`` for inputs of these shapes."""
        signed = self.scale < 0 and self.of != DIFFERENCE
        sound = self.part in ("A", "B") and isfinite(self.scale) and (self.scale > 0 or signed) and self.seed >= 0
        if self.of in SIDES:
            return sound and not self.transposed and len(shape) == 2 and self.shape_of(inputs) == tuple(shape)
        if is_stack(self.of):
            sizes = stack_sizes(self.of, inputs)
            whole = sizes is not None and 0 < self.rank <= min(sizes) and not self.transposed and not self.weights
            return sound and whole and self.shape_of(inputs) == tuple(shape)
        if self.of == PRODUCT:
            return sound and not self.weights and self._fits_products(shape, inputs)
        if self.of == KNOTS:
            shared = all(map(isfinite, self.weights)) and 0 <= self.density <= 1 and self.merge in MERGES
            return sound and shared and self._fits_products(shape, inputs, len(self.weights))
        if len(inputs) != 2 or tuple(inputs[0]) != tuple(inputs[1]) or len(inputs[0]) < 2 or self.of != DIFFERENCE:
            return False
        if self.transposed and len(inputs[0]) != 2:
            return False
        return (
            sound and 0 < self.rank <= min(inputs[0][0], prod(inputs[0][1:])) and self.shape(inputs[0]) == tuple(shape)
        )

    def _fits_products(self, shape: Sequence[int], inputs: Sequence[Sequence[int]], number: int = 1) -> bool:
        """Return whether this factor has ``shape`` if ``inputs`` are the shapes of ``number`` pairs of factors A and B.

        It has not if there is another number of inputs, if A and B of a pair do not fit each other, if the products of
        the pairs differ in shape, or if the rank is larger than the rank that their sum can have.
        """
        if not number or len(inputs) != 2 * number or self.transposed:
            return False
        firsts, seconds = inputs[::2], inputs[1::2]
        pairs = zip(firsts, seconds, strict=True)
        if any(len(a) < 2 or len(plain_shape(b)) != 2 or a[0] != b[1] for a, b in pairs):
            return False
        sides = {(tuple(a[1:]), (b[0], *b[2:])) for a, b in zip(firsts, seconds, strict=True)}
        most = min(sum(a[0] for a in firsts), seconds[0][0], prod(firsts[0][1:]))
        return len(sides) == 1 and 0 < self.rank <= most and self.shape_of(inputs) == tuple(shape)

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        of = {"of": self.of} if self.of != DIFFERENCE else {}
        several: dict[str, Any] = {}
        if self.of == KNOTS:
            several = {"weights": list(self.weights), "density": self.density, "merge": self.merge}
        return {
            "part": self.part, "rank": self.rank, "scale": self.scale, "transposed": self.transposed, "seed": self.seed,
            **of, **several,
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> Factor | None:
        """Return the object that ``data`` describes, or None if ``data`` is None.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        return Factor(
            str(data["part"]), int(data["rank"]), float(data["scale"]), truth(data["transposed"]), int(data["seed"]),
            text(data.get("of", DIFFERENCE)), tuple(map(float, data.get("weights", ()))), float(data.get("density", 1)),
            text(data.get("merge", TIES)),
        )  # fmt: skip


def plain_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without sizes of 1 after its second dimension: a 1 x 1 convolution is a matrix."""
    size = len(shape)
    while size > 2 and shape[size - 1] == 1:
        size -= 1
    return tuple(shape[:size])


# Merges: a method and its parameters.

DEVICES = ("", "cpu", "cuda")

FISHER, GRAM, TURNED_GRAM = "fisher", "gram", "gram of rows"
MAGNITUDES, TURNED_MAGNITUDES = "magnitudes", "magnitudes of rows"
"""The statistics that a merge may use: the Fisher information of each element, the Gram matrix of a layer's inputs, or
the mean magnitude of each of these inputs.

The inputs belong to the columns of a weight (out, in), or to the rows of one that is (in, out)."""
STATISTICS = ("", FISHER, GRAM, TURNED_GRAM, MAGNITUDES, TURNED_MAGNITUDES)
OF_ROWS = {GRAM: TURNED_GRAM, MAGNITUDES: TURNED_MAGNITUDES}
"""{kind of statistics of inputs: its name if the inputs belong to the rows of a weight}"""
OF_BASE = (MAGNITUDES, TURNED_MAGNITUDES)
"""The kinds of statistics that a merge needs for its base only; it needs the other kinds for each model."""

Value: TypeAlias = "float | bool | str"
"""The value of a merge method's parameter."""


@dataclass(frozen=True)
class Merge:
    """The method that merges the inputs of a step, and its parameters.

    The value of a parameter is a tuple if each model has its own value. If ``base`` is true, the last input is the
    base. The method gets values of the dtype ``compute``; ``device`` is the torch device of the computation ("" for
    numpy). If the method uses ``statistics`` of the models, the step's inputs are first the tensors of all models, then
    the statistics of each model. If it uses statistics of the base only (``OF_BASE``), the last two inputs are the base
    and its statistics.
    """

    method: str
    parameters: Mapping[str, Value | tuple[Value, ...]]
    base: bool = False
    compute: str = "float32"
    device: str = ""
    statistics: str = ""

    def fits(self, shape: Sequence[int], statistics: Sequence[Sequence[int]]) -> bool:
        """Return whether statistics fit a weight of ``shape``.

        ``statistics`` has the shape of each model's statistics, or only the shape of the base's.
        """
        if self.statistics in ("", FISHER):
            return all(tuple(one) == tuple(shape) for one in statistics)
        stacks = len(shape) == 3 and not self.base
        if not (len(shape) == 2 or stacks) or self.base != (self.statistics in OF_BASE):
            return False
        size = shape[-2] if self.statistics in OF_ROWS.values() else shape[-1]
        if self.base:
            return len(statistics) == 1 and tuple(statistics[0]) == (size,)
        return all(tuple(one) == (*shape[:-2], size, size) for one in statistics)

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in self.parameters.items()}
        where = {"device": self.device} if self.device else {}
        by = {"statistics": self.statistics} if self.statistics else {}
        return {"method": self.method, "parameters": given, "base": self.base, "compute": self.compute, **where, **by}

    @staticmethod
    def from_json(data: Any) -> Merge | None:
        """Return the object that ``data`` describes, or None if ``data`` is None.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        parameters = {
            str(name): tuple(map(_value, value)) if isinstance(value, list) else _value(value)
            for name, value in dict(data["parameters"]).items()
        }
        if data["compute"] not in ("float32", "float64"):
            raise ValueError(f"{data['compute']!r:.40} is not a dtype for computing: use 'float32' or 'float64'")
        device = data.get("device", "")
        if device not in DEVICES:
            raise ValueError(f"{device!r:.40} is not a device to compute on: use 'cpu' or 'cuda'")
        statistics = data.get("statistics", "")
        if statistics not in STATISTICS:
            raise ValueError(f"{statistics!r:.40} are not statistics: use {', '.join(map(repr, STATISTICS[1:]))}")
        return Merge(
            str(data["method"]), parameters, truth(data["base"]), str(data["compute"]), str(device), str(statistics)
        )


def _value(value: Any) -> Value:
    if not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"{value!r:.60} is not a parameter value")
    return value
