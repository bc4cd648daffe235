"""Checks that no weight matrix, tensor of codes, router, norm or bias is all zeros, with exceptions.

A router or a norm may be all zeros if at least half of the tensors with its role are all zeros. A bias may be all zeros
if more than a quarter of the biases with its role are all zeros.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from ....checkpoint.values.norms import BIAS, MOSTLY
from ....checkpoint.values.samples import NORM
from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject
from ..tensor_roles import families

__all__ = ["CHECK"]

ROUTER = re.compile(r"(?:^|\.)(?:gate|router)(?:\.(?:layer|classifier|wg))?\.weight$")
"""Matches the ends of the keys of routers, the weights that select experts."""
ADVICE = (
    "If these tensors should not be zero (new blocks may start at zero), copy them from the source: a layer of zeros "
    "outputs only zeros."
)

FEWEST, PART = 3, 20
"""If fewer than ``FEWEST`` norms have one role, they are compared with norms of the surrounding layers.

One in ``PART`` elements of a norm may be zero by chance.
"""
OFFSETS = (".qzeros", ".biases")
"""Ends of the keys of zero points and biases, which belong to unsigned codes."""
CODES = "Copy these codes from the quantised model again, or quantise it again."


def _run(subject: Subject) -> Iterator[Found]:
    found = [key for key, info, figures in subject.weights if figures.zeros == info.numel]
    found += _alone(subject)
    found += _last_norms(subject, found)
    codes = [key for key in subject.tensors if key in subject.codes and _is_zero(subject, key)]
    offsets = [
        key for key in subject.tensors if subject.parts.get(key, "").endswith(OFFSETS) and _is_zero(subject, key)
    ]
    if offsets:
        yield of_keys(Status.WARN, offsets, "of zero points or biases that are all zero", CODES)
    if codes:
        yield of_keys(Status.WARN, codes, "of codes that are all zero", CODES)
    if found:
        are = "is" if len(found) == 1 else "are"
        wholly = all(_is_zero(subject, key) for key in found)
        yield of_keys(Status.WARN, found, f"{are} all zeros" if wholly else f"{are} zeros, wholly or in part", ADVICE)


def _alone(subject: Subject) -> Iterator[str]:
    """Yield the routers, norms and biases that are all zeros although most tensors with the same role are not.

    If at least half of the routers or norms of a role are all zeros, or more than a quarter of the biases, the zeros
    may be on purpose, as in new blocks. Then no tensor of that role is yielded.
    """
    sizes = {key: len(info.shape) for key, info in subject.tensors.items() if key not in subject.parts}
    routers = (key for key, size in sizes.items() if size == 2 and ROUTER.search(key))
    norms = (key for key, size in sizes.items() if size == 1 and NORM.search(key))
    for keys in families((*routers, *norms)).values():
        zero = [key for key in keys if _is_zero(subject, key)]
        if len(zero) * 2 < len(keys):
            yield from zero
    biases = (key for key, size in sizes.items() if size == 1 and BIAS.search(key))
    for keys in families(tuple(biases)).values():
        zero = [key for key in keys if _is_zero(subject, key)]
        if len(keys) - len(zero) >= max(FEWEST, MOSTLY * len(keys)):
            yield from zero


def _last_norms(subject: Subject, found: Sequence[str]) -> Iterator[str]:
    """Yield norms with many zeros that are not repeated in each layer, such as the norm after the last layer.

    Such a norm is yielded only if no norm near it has a zero. It is compared only with norms of the same part of the
    network, because parts of a new model may differ. For example, all norms of a language model that computes 1 +
    weight are zeros, but the norms of its vision tower are ones.
    """
    norms = [
        key for key, info in subject.tensors.items() if len(info.shape) == 1 and NORM.search(key) and key not in found
    ]
    zeros = {key: one.figures.zeros for key in norms if (one := subject.measured.get(key)) and one.figures is not None}
    lone = [key for keys in families(zeros).values() if len(keys) < FEWEST for key in keys]
    for key in lone:
        if zeros[key] * PART > subject.tensors[key].numel and not any(zeros[one] for one in _around(key, zeros, lone)):
            yield key


def _around(key: str, zeros: Mapping[str, int], lone: Collection[str]) -> list[str]:
    """Return the norms with which the norm ``key`` is compared; only ``key`` itself if there are none.

    The modules that contain ``key`` are tried from the innermost to the outermost. The result has the other norms of
    the first module with at least ``FEWEST`` other norms, or with another norm that contains zeros. Norms in ``lone``
    are left out if at least ``FEWEST`` norms remain. ``zeros`` has the number of zeros of each norm, and ``lone`` the
    norms that are not repeated in each layer.
    """
    part = key
    while part:
        part = part[: part.rstrip("./").rfind("." if "." in part else "/") + 1]
        some = [one for one in zeros if one.startswith(part) and one != key]
        if len(some) >= FEWEST or any(zeros[one] for one in some):
            of_layers = [one for one in some if one not in lone]
            return of_layers if len(of_layers) >= FEWEST else some
    return [key]


def _is_zero(subject: Subject, key: str) -> bool:
    one = subject.measured.get(key)
    return one is not None and one.figures is not None and one.figures.zeros == subject.tensors[key].numel > 1


CHECK = Check("all-zeros", "no weight is all zeros", _run, without_values)
