"""Checks that a tensor has the same dtype as the tensors with the same role in the other layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ....util.text import escape, listing
from ..check import SHOWN, Check, without_values
from ..note_findings import noted
from ..report import Found, Status
from ..subject import Subject
from ..tensor_roles import families

__all__ = ["CHECK", "ID"]

ID = "dtype-family"
PLAIN = ("float16", "bfloat16", "float32", "float64")
FEWEST = 4
"""Outliers are searched only in families (tensors with the same role) of at least this many tensors."""
ADVICE = "Cast the whole model to one dtype: ckpt convert --dtype."


def _run(subject: Subject) -> Iterator[Found]:
    plain = {
        key: info.dtype
        for key, info in subject.tensors.items()
        if info.dtype in PLAIN and key not in subject.parts and not info.opaque
    }
    odd: dict[str, tuple[str, str]] = {}
    for keys in families(plain).values():
        usual, number = Counter(plain[key] for key in keys).most_common(1)[0]
        if len(keys) >= FEWEST and 0 < len(keys) - number <= len(keys) // FEWEST:
            odd.update((key, (plain[key], usual)) for key in keys if plain[key] != usual)
    if odd:
        named = [f"{escape(key)} is {dtype}, not {usual}" for key, (dtype, usual) in odd.items()]
        said = f"{len(odd):,} {'tensor has' if len(odd) == 1 else 'tensors have'} another dtype than other layers"
        said = f"{said}: {listing(named, SHOWN)}"
        yield Found(Status.WARN, said, ADVICE, tuple(odd), figures={"tensors": len(odd)})
    else:
        yield from noted(subject, ID)


CHECK = Check(ID, "layers have one dtype", _run, without_values)
