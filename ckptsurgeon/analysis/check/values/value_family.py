"""Checks that weights with the same role have similar standard deviations in all layers, and scales similar means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import log2, prod, sqrt

from ....checkpoint.values.norms import norms_around_zero
from ....checkpoint.values.value_notes import is_norm
from ....tensors.odd_scales.kinds import HUGE as HUGE_SCALES
from ....tensors.odd_scales.kinds import ZERO
from ....tensors.odd_scales.layer_groups import larger_layers
from ....tensors.odd_scales.sizes import APART, powers_of, unlike_other_layers
from ....util.text import count, escape, listing
from ..check import SHOWN, Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject
from ..tensor_roles import families
from .huge_values import HUGE
from .scales import CHECK as OF_SCALES
from .scales import HUGE as TOO_LARGE
from .scales import is_global_or_activation, is_global_weight_scale, scales_of

__all__ = ["CHECK"]

FEWEST, MANY = 3, 4
"""A family is the tensors with one role in all layers.

Families of fewer than ``FEWEST`` tensors have no outliers. Families of at least ``MANY`` tensors count as large.
"""
FACTOR = 3.0
"""The largest allowed ratio of a standard deviation to its family's median, as a binary logarithm: a factor of 8."""
SCALES = 5.0
"""The largest allowed ratio of a mean scale to its family's median, as a binary logarithm: a factor of 32.

It is larger than ``FACTOR``, since scales depend on the largest weight, which varies more than the standard deviation.
"""
OF_FEW = log2(100)
"""The largest allowed ratio in a family of fewer than ``MANY`` tensors, as a binary logarithm: a factor of 100.

It is large, because two other layers are weak evidence.
"""
UNSET = 16
"""A tensor of at least this many scales that are all 1 was perhaps never set. For such a tensor, ``FACTOR`` and half
of ``SPREADS`` apply, so that it is an outlier at a smaller distance from the median.
"""
HALVES = 3.5
"""If the standard deviations of a role form two groups at least this far apart, the layers are not of one network.

The distance is in powers of two: 3.5 is a factor of 11. This is needed if about half of the layers are wrong, because
then the median may belong to either group.
"""
ALL_ROLES = 2.0
"""If two groups of layers are at least this far apart in every role, the groups are not of one network.

The distance is in powers of two: 2 is a factor of 4. In a single network, not all roles differ in the same layers.
"""
SPREADS = 8.0
"""An outlier must also be this many times as far from the median as the median tensor of its family.

Distances are differences of logarithms.
"""
ADVICE = (
    "Compare these layers with their source (ckpt diff --values): the cause may be a wrong scale, a layer from another "
    "model, or a flipped bit."
)


def _run(subject: Subject) -> Iterator[Found]:
    deviations = _deviations(subject)
    inputs = {key: sqrt(prod(info.shape[1:])) for key, info, _ in subject.weights}
    yield from _out_of_family(deviations, FACTOR, "standard deviation", "weight", inputs=inputs)
    yield from _of_norms(subject)
    unset = {key for key, one in scales_of(subject) if one.number >= UNSET and one.low == one.high == 1}
    found = list(_out_of_family(_sizes_of_scales(subject), SCALES, "mean scale", "tensor", unset))
    if not found and not any(OF_SCALES.run(subject)):  # otherwise, odd scales explain the size of decoded weights
        decoded = {name: one.rms for name, one in subject.decoded.items() if one.rms > 0}
        found += list(_out_of_family(decoded, FACTOR, "root mean square", "decoded weight")) or _of_few(subject)
    yield from found


def _of_norms(subject: Subject) -> Iterator[Found]:
    """Yield a finding on norms whose values are around 0, although the same norm of other layers has other values."""
    odd = norms_around_zero({
        key: (one.figures.total / one.figures.number, one.figures.rms)
        for key, one in subject.measured.items()
        if key in subject.tensors and is_norm(key, subject.tensors) and one.figures is not None and one.figures.rms > 0
    }, subject.kind)  # fmt: skip
    if odd:
        has = "has" if len(odd) == 1 else "have"
        said = f"{count(len(odd), 'norm')} {has} values around 0, but in other layers such norms have about equal"
        said += " values"
        yield Found(Status.WARN, f"{said}: {listing(odd, SHOWN)}", ADVICE, tuple(odd), figures={"tensors": len(odd)})


def _of_few(subject: Subject) -> Iterator[Found]:
    """Yield findings about decoded weights far larger or smaller than in other layers, even if there are few layers.

    Other verbs report the same with ``odd_scale_notes``.
    """
    names = {kind: subject.odd.get(kind, ()) for kind in (HUGE_SCALES, ZERO)}
    large, small = unlike_other_layers(powers_of([subject.odd]), names)
    for unlike, times in ((large, f"at least {1 << APART} times"), (small, f"at most 1/{1 << APART}")):
        if unlike:
            what = f"{'decodes' if len(unlike) == 1 else 'decode'} to weights {times} as large as those of other layers"
            yield of_keys(Status.WARN, sorted(unlike), what, ADVICE)


def _deviations(subject: Subject) -> dict[str, float]:
    return {key: one.std for key, _, one in subject.weights if one.std > 0 and one.largest <= HUGE}


def _sizes_of_scales(subject: Subject) -> dict[str, float]:
    """Return the mean scale of each tensor with scales; for scales with signs, their root mean square."""
    found = {}
    for key, one in scales_of(subject):
        size = one.total / one.number if one.number and one.low >= 0 else one.rms
        if size > 0 and (
            is_global_weight_scale(subject, key)
            or (one.largest <= TOO_LARGE and not is_global_or_activation(subject, key))
        ):
            found[key] = size
    return found


def _out_of_family(
    sizes: dict[str, float], factor: float, figure: str, thing: str, unset: Collection[str] = (),
    inputs: Mapping[str, float] | None = None,
) -> Iterator[Found]:  # fmt: skip
    """Yield a finding on the tensors whose values in ``sizes`` are far from those of the same role in other layers.

    ``factor`` and ``unset`` are explained in ``_odd``. ``figure`` and ``thing`` are words of the message, such as
    "standard deviation" and "weight". ``inputs`` has the square root of each weight's number of inputs. A layer with
    fewer inputs is initialised with larger values: so a weight is reported only if its value times this root is far
    from the others, too.
    """
    odd = {}
    larger = {*larger_layers({key: log2(size) for key, size in sizes.items()}, ALL_ROLES)}
    for keys in families(sizes).values():
        of_role = {key: sizes[key] for key in keys}
        others = [size for key, size in of_role.items() if key not in larger]
        in_groups = {key: (of_role[key], median(others)) for key in keys if key in larger and others}
        found = in_groups or _odd(of_role, factor, unset)
        if found and inputs is not None and len({inputs[key] for key in keys}) > 1:
            scaled = _odd({key: size * inputs[key] for key, size in of_role.items()}, factor, unset)
            found = {key: one for key, one in found.items() if key in in_groups or key in scaled}
        odd.update(found)
    if odd:
        told = [f"{escape(key)} has {std:.3g}, the median is {usual:.3g}" for key, (std, usual) in odd.items()]
        said = f"the {figure} of {count(len(odd), thing)} is far from that of other layers: {listing(told, SHOWN)}"
        worst = max((std / usual if std > usual else usual / std) for std, usual in odd.values())
        yield Found(Status.WARN, said, ADVICE, tuple(odd), figures={"tensors": len(odd), "factor": round(worst, 2)})


def _odd(stds: dict[str, float], factor: float, unset: Collection[str]) -> dict[str, tuple[float, float]]:
    """Return the outliers of a family by key, each with (its standard deviation or mean scale, the family's median).

    ``factor`` is the smallest distance of an outlier from the median, in powers of two. ``unset`` has the keys of
    tensors of scales that are all 1.
    """
    if len(stds) < FEWEST:
        return {}
    logs = {key: log2(std) for key, std in stds.items()}
    middle = median(logs.values())
    spread = median(abs(one - middle) for one in logs.values())
    most = max(factor if len(stds) >= MANY else OF_FEW, SPREADS * spread)
    of_unset = max(FACTOR, SPREADS / 2 * spread)
    if upper := _upper_half(logs, HALVES + factor - FACTOR):
        return {key: (stds[key], 2.0 ** median(logs[key] for key in logs if key not in upper)) for key in upper}
    return {
        key: (stds[key], 2.0**middle)
        for key, one in logs.items()
        if abs(one - middle) > (of_unset if key in unset else most)
    }


def _upper_half(logs: Mapping[str, float], apart: float) -> Sequence[str]:
    """Return the keys of the larger values if the values form two groups; () if not, or for fewer than ``MANY`` values.

    ``logs`` has the binary logarithms of the values.

    The gap between the groups is at least ``apart``, and three times as wide as each group.
    """
    keys = sorted(logs, key=logs.__getitem__)
    some = range((len(keys) + 2) // 3, len(keys) * 2 // 3 + 1) if len(keys) >= MANY else ()
    for at in some:
        gap = logs[keys[at]] - logs[keys[at - 1]]
        width = max(logs[keys[at - 1]] - logs[keys[0]], logs[keys[-1]] - logs[keys[at]])
        if gap >= max(apart, 3 * width):
            return keys[at:]
    return ()


def median(values: Iterable[float]) -> float:
    """Return the median of values; for an even number of values, the larger of the middle two."""
    found = sorted(values)  # not from the module statistics, which takes long to import
    return found[len(found) // 2]


def _against(subject: Subject) -> str:
    is_run = _families(subject) or any(_of_few(subject))
    return without_values(subject) or ("" if is_run else f"no weight is in {FEWEST} layers or more")


def _families(subject: Subject) -> int:
    """Return the number of roles (``role_of``) with enough tensors to find an outlier."""
    keys = [*(key for key, *_ in subject.weights), *subject.decoded, *_sizes_of_scales(subject)]
    return sum(len(some) >= FEWEST for some in families(dict.fromkeys(keys)).values())


def _looks_at(subject: Subject) -> str:
    return count(_families(subject), "role")


CHECK = Check("value-family", "standard deviations are like those of other layers", _run, _against, _looks_at)
