"""The result of applying a plan, and the result of verifying an output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import VerifyError
from ...util.notebook import InNotebooks
from ...util.text import count, escape, grouped, human_bytes

__all__ = ["FactorFit", "Failure", "OutputNote", "Receipt", "RoundedTensor", "Verification"]


@dataclass(frozen=True)
class FactorFit:
    """How close the product of two low-rank factors is to a tensor's difference from the base.

    ``error`` is |difference - product| / |difference|: 0 means that they are equal. ``key`` is the name of the tensor
    or, if the difference is the change that adapters make, the name of the module.
    """

    key: str
    shape: tuple[int, ...]
    rank: int
    error: float

    def to_json(self) -> dict[str, Any]:
        """Return the fit as plain data."""
        return {"key": self.key, "shape": list(self.shape), "rank": self.rank, "error": float(f"{self.error:.4g}")}


@dataclass(frozen=True)
class RoundedTensor:
    """How close the codes of a quantised tensor are to its values.

    ``error`` is |values - decoded codes| / |values| (Frobenius norms), ``largest`` the largest absolute difference.
    """

    key: str
    shape: tuple[int, ...]
    error: float
    largest: float

    def to_json(self) -> dict[str, Any]:
        """Return the errors as plain data."""
        errors = {"error": float(f"{self.error:.4g}"), "largest": float(f"{self.largest:.4g}")}
        return {"key": self.key, "shape": list(self.shape), **errors}


@dataclass(frozen=True, repr=False)
class Receipt(InNotebooks):
    """The result of applying a plan. Sizes are in bytes, ``elapsed_s`` is in seconds.

    ``counts`` are the numbers of tensors of each class (copied, initialised, ...), ``unexpected`` are source keys that
    were not used. ``fits`` says how exact the factors of ``lora extract`` are, and ``rounded`` how exact the quantised
    tensors are. If the user asked for a proof, ``proved`` says whether the output computes the same as its source.
    ``beside`` are the names of the files that were written next to the weights, such as config.json. ``nbytes_written``
    counts only what this run wrote, ``nbytes_kept`` the parts of the output that an interrupted run had finished.
    """

    output: str
    counts: Mapping[str, int]
    unexpected: tuple[str, ...]
    nbytes_read: int
    nbytes_written: int
    elapsed_s: float
    plan_sha256: str
    notes: tuple[str, ...] = ()
    fits: tuple[FactorFit, ...] = ()
    rounded: tuple[RoundedTensor, ...] = ()
    proved: str = ""
    beside: tuple[str, ...] = ()
    nbytes_kept: int = 0

    def __repr__(self) -> str:
        classes = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        return f"<Receipt {escape(self.output)}: {classes}; {human_bytes(self.nbytes_written)} written>"

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as plain data."""
        return {
            "kind": "ckpt.receipt",
            "version": 1,
            "output": self.output,
            "counts": dict(self.counts),
            "unexpected": list(self.unexpected),
            "nbytes_read": self.nbytes_read,
            "nbytes_written": self.nbytes_written,
            "elapsed_s": round(self.elapsed_s, 3),
            "plan_sha256": self.plan_sha256,
            "notes": list(self.notes),
            **({"beside": list(self.beside)} if self.beside else {}),
            **({"modules": [fit.to_json() for fit in self.fits]} if self.fits else {}),
            **({"rounded": [one.to_json() for one in self.rounded]} if self.rounded else {}),
            **({"proved": self.proved} if self.proved else {}),
        }


@dataclass(frozen=True)
class Failure:
    """A fault that a verification found in an output; ``key`` is the tensor, or empty if the file itself is wrong."""

    key: str
    why: str


@dataclass(frozen=True)
class OutputNote:
    """A property of an output that is not a fault but may matter; ``name`` is a tensor, or a file."""

    name: str
    why: str


@dataclass(frozen=True, repr=False)
class Verification(InNotebooks):
    """The result of a verification.

    These are numbers of tensors:

    - ``compared``: equal, bit for bit, to the values made from their sources again; - ``drawn``: initialised with
    random values, and with the checksum that was recorded then; - ``near``: computed on a device, or with adapters on
    another processor, and equal except for the last digits; - ``products``: factors whose product equals the product of
    newly extracted factors, up to rounding.

    ``not_compared`` maps tensors that could not be compared to the reason. ``nan`` and ``inf`` count elements of all
    floating tensors. ``recipe`` is true if the output has a recipe; without a recipe, only a plan shows how the output
    was made. ``notes`` are not faults, such as other files in the folder. ``signed`` is true if every file matches the
    signature, and None if no key was given. If the files were compared with the checksums of a patch, ``patch`` is this
    patch; else ''.
    """

    output: str
    checked: int
    compared: int
    drawn: int
    failed: tuple[Failure, ...] = ()
    not_compared: Mapping[str, str] | None = None
    nan: int = 0
    inf: int = 0
    nbytes: int = 0
    elapsed_s: float = 0.0
    recipe: bool = True
    near: int = 0
    products: int = 0
    notes: tuple[OutputNote, ...] = ()
    signed: bool | None = None
    patch: str = ""

    def __repr__(self) -> str:
        found = [("failed", len(self.failed)), ("not compared", len(self.not_compared or ()))]
        found += [("noted", len(self.notes))]
        others = "".join(f", {number} {what}" for what, number in found if number)
        return (
            f"<Verification {escape(self.output)}: {count(self.checked, 'tensor')}, {self.compared} compared{others}>"
        )

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.failed

    @property
    def unchecked(self) -> int:
        """The number of tensors whose values were compared with nothing: neither with a source nor with a checksum."""
        return 0 if self.recipe or self.patch else self.drawn + len(self.not_compared or {})

    @property
    def verified(self) -> bool:
        """Whether no fault was found and the values of at least one tensor were compared."""
        return self.ok and not (self.unchecked and self.unchecked == self.checked)

    def raise_if_failed(self) -> None:
        """Raise VerifyError if a fault was found."""
        if self.failed:
            wrong = [(failure.key or self.output, failure.why) for failure in self.failed]
            raise VerifyError(
                f"{escape(self.output)} is not as expected: {grouped(wrong, '{names}: {why}')}.",
                details=[f"{name}: {why}" for name, why in wrong],
            )

    def to_json(self) -> dict[str, Any]:
        """Return the verification as plain data."""
        return {
            "kind": "ckpt.verify",
            "version": 1,
            "output": self.output,
            "ok": self.ok,
            "verified": self.verified,
            "notes": [{"name": note.name, "why": note.why} for note in self.notes],
            "recipe": self.recipe,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "compared": self.compared,
            "drawn": self.drawn,
            **({"signed": self.signed} if self.signed is not None else {}),
            **({"patch": self.patch} if self.patch else {}),
            **({"near": self.near} if self.near else {}),
            **({"products": self.products} if self.products else {}),
            "failed": [{"key": failure.key, "why": failure.why} for failure in self.failed],
            "not_compared": [{"key": key, "why": why} for key, why in (self.not_compared or {}).items()],
            "nan": self.nan,
            "inf": self.inf,
            "nbytes": self.nbytes,
            "elapsed_s": round(self.elapsed_s, 3),
        }
