"""Checks that a plan copies quantised tensors with all their stored parts, and never computes with codes.

Codes are the stored integers or 8-bit floats, which have a meaning only together with their scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from ..errors import PlanError
from ..tensors.find_codes import find_codes
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import NO_CODES, QuantisedTensor, QuantisedTensors
from ..tensors.quantised.methods import UNKNOWN, family
from ..tensors.quantised.parts import UNCODED
from ..util.text import count, escape, listing
from .operations.operation import COPIED, QUANTISED_NOW
from .plan.files import SourceView
from .plan.plan import Plan
from .plan.step import STORED_ROWS, Input, Step
from .quantised_error import QuantisedError, dequantise
from .transplant.selection import Selection

__all__ = [
    "check_codes",
    "check_decoded",
    "check_replaced",
    "computation",
    "computing",
    "refuse_codes",
]


@dataclass
class _CarriedCodes:
    """A quantised tensor of a source that a plan copies unchanged.

    It is stored in several parts: codes, scales and so on. ``names`` maps the ending of each part's key in the source,
    such as ``.scales``, to the keys of this part in the output.
    """

    source: str
    coded: QuantisedTensor
    names: dict[str, list[str]] = field(default_factory=dict)


def check_codes(plan: Plan, sources: Sequence[QuantisedTensors], destination: QuantisedTensors = NO_CODES) -> None:
    """Raise PlanError if a plan computes with codes, separates them from their scales, or mixes them with numbers.

    ``sources`` are the quantised tensors of each source, ``destination`` the quantised tensors of the destination
    itself.
    """
    if any(sources) or destination:
        carried = _carried(plan, sources)
        _check_destination(plan, sources, destination)
        _check_whole(carried, {step.key: step for step in plan.steps})


def _carried(plan: Plan, sources: Sequence[QuantisedTensors]) -> list[_CarriedCodes]:
    """Return the quantised tensors whose stored parts, such as codes and scales, a plan copies.

    Raises PlanError if a step would compute with such a part, for example cast it: codes are not the weight's values.
    """
    found: dict[int, _CarriedCodes] = {}
    computed: dict[int, tuple[str, QuantisedTensor, str]] = {}
    anew = {step.key for step in plan.steps if step.coded is not None}
    for step in plan.steps:
        for one in step.inputs if step.policy != STORED_ROWS else ():
            if one is step.column_order:
                continue
            coded = sources[one.source].by_key.get(one.key)
            # Parts that keep their keys next to new codes, such as weight_shape, are allowed.
            if coded is not None and not (step.key == one.key and coded.codes in anew):
                entry = found.setdefault(id(coded), _CarriedCodes(plan.sources[one.source].name, coded))
                part = _part(coded, one.key, step)
                entry.names.setdefault(_ending(coded, part), []).append(step.key)
                doing = computation(plan.verb, step, one)
                if doing and part != coded.codes:
                    doing = f"{doing} of its {_ending(coded, part).rpartition('.')[2]}"
                # Prefer the operation on the codes themselves.
                if doing and (id(coded) not in computed or part == coded.codes):
                    computed[id(coded)] = (entry.source, coded, doing)
    if computed:
        remedy = dequantise(plan.verb)
        if plan.verb == "convert":
            remedy = f"Leave --dtype out, so that codes are copied as they are, or {remedy[0].lower()}{remedy[1:]}"
        raise computing(list(computed.values()), remedy)
    return list(found.values())


def _part(coded: QuantisedTensor, key: str, step: Step) -> str:
    """Return the key of a part of ``coded``: ``key`` itself, or the part that operations made ``key`` from."""
    return key if key in coded.keys else next((one for one in step.made_of if one in coded.keys), coded.keys[0])


def _ending(coded: QuantisedTensor, key: str) -> str:
    return next(end for end, part in coded.parts.items() if part == key)


def computation(verb: str, step: Step, one: Input) -> str:
    """Describe the operation of a step on its input ``one``, such as ``a cast from A to B``; "" for a copy.

    ``verb`` is the command.
    """
    if step.op not in ("copy", "keep"):
        return step.rule or verb
    if step.dtype != one.dtype:
        return f"a cast from {one.dtype} to {step.dtype}"
    if step.operation and not step.operation.startswith((QUANTISED_NOW, COPIED)):
        return f"the operation {step.operation}"
    return ""


def computing(found: Sequence[tuple[str, QuantisedTensor, str]], remedy: str) -> PlanError:
    """Return the error for quantised tensors whose codes would be used as numbers.

    ``found`` has (name of the source, quantised tensor, text of the operation on it) for each of them. ``remedy`` is
    the hint, without a full stop.
    """
    once = {(name, id(coded)): (name, coded, doing) for name, coded, doing in reversed(found)}
    (name, coded, doing), *others = reversed(once.values())
    names = [one.name if source == name else f"{one.name} of {source}" for source, one, _ in others]
    more = f"; likewise {count(len(others), 'other tensor')}: {listing(names, 3)}" if others else ""
    if coded.method.endswith(UNCODED):
        remedy = "Its codes were cast to another dtype or lost, and nothing decodes them: use the original file"
    return QuantisedError(
        f"the tensor {escape(coded.name)} of {escape(name)} is quantised ({coded.method}): {escape(doing)} would use "
        f"its codes as numbers{more}.",
        hint=f"{remedy}.",
        details=[f"{one.name} of {source} ({one.method}): {what}" for source, one, what in reversed(once.values())],
    )


def _check_whole(carried: Iterable[_CarriedCodes], steps: Mapping[str, Step]) -> None:
    """Raise PlanError if a plan leaves out a stored part of a quantised tensor, or if the new names do not match."""
    for one in carried:
        made_anew = {key for key in one.coded.keys if key in steps and steps[key].coded is not None}
        lacking = [key for end, key in one.coded.parts.items() if end not in one.names and key not in made_anew]
        if lacking:
            raise PlanError(
                f"the tensor {escape(one.coded.name)} of {escape(one.source)} is quantised ({one.coded.method}), and "
                f"its parts would be separated: {listing(lacking)} would be left out.",
                hint=f"Take all parts of the tensor or none: {listing(one.coded.keys, 12, where='')}.",
                details=lacking,
            )
        if not _fit_by_name(one) and not _found_again(one, steps):
            pairs = [f"{one.coded.parts[end]} to {name}" for end, names in one.names.items() for name in names]
            raise PlanError(
                f"the tensor {escape(one.coded.name)} of {escape(one.source)} is quantised ({one.coded.method}), and "
                f"its parts would no longer have matching names: {listing(pairs, 4)}.",
                hint="Rename the module that contains these parts, so that their names end as before.",
                details=pairs,
            )


def _fit_by_name(one: _CarriedCodes) -> bool:
    """Return whether the new keys of codes, scales and so on have their old endings, after one common prefix."""
    stems = set()
    for end, names in one.names.items():
        if not all(f".{name}".endswith(end) for name in names):
            return False
        stems.add(frozenset(f".{name}"[: len(name) + 1 - len(end)] for name in names))
    return len(stems) == 1


def _found_again(one: _CarriedCodes, steps: Mapping[str, Step]) -> bool:
    """Return whether the codes and scales, under their new names, are recognised as one tensor of the same encoding.

    An unknown encoding is recognised only by the names that its parts have, so these must stay.
    """
    if one.coded.method.startswith(UNKNOWN):
        return False
    keys = [key for names in one.names.values() for key in names]
    codes = find_codes({key: TensorInfo(steps[key].dtype, steps[key].shape) for key in keys})
    return [(made.method, set(made.keys)) for made in codes.tensors] == [(one.coded.method, set(keys))]


def _check_destination(plan: Plan, sources: Sequence[QuantisedTensors], destination: QuantisedTensors) -> None:
    """Raise PlanError if a quantised tensor of the destination would get codes and scales from different sources."""
    steps = {step.key: step for step in plan.steps} if destination else {}
    for wanted in destination.tensors:
        made = [steps[key] for key in wanted.keys if key in steps and steps[key].policy != STORED_ROWS]
        if not made:
            continue
        origins = {_origin(step, sources) if step.coded is None else id(wanted) for step in made}
        if len(origins) > 1 or None in origins:
            odd = next((step for step in made if _origin(step, sources) is None), made[0])
            whence = "be initialised"
            if odd.source is not None:
                other = f"{odd.source_key} of " if odd.source_key != odd.key else ""
                whence = f"come from {other}the {plan.sources[odd.source].role} {plan.sources[odd.source].name}"
            name = next((one.name for one in plan.sources if one.role == "destination"), plan.target.name)
            raise QuantisedError(
                f"the tensor {escape(wanted.name)} of the destination {escape(name)} is quantised ({wanted.method}), "
                f"and {escape(odd.key)} would {escape(whence)}: nothing could decode the tensor then.",
                hint=f"Take {listing(wanted.keys, 12, where='')} from one quantised source, or use --encoding "
                "dequantize, or use a destination that is not quantised.",
                details=[step.key for step in made],
            )
        _check_family(plan, wanted, _copied_tensor(made[0], sources))


def _check_family(plan: Plan, wanted: QuantisedTensor, copied: QuantisedTensor | None) -> None:
    """Raise PlanError if codes replace codes of another encoding that is stored in the same keys and shapes."""
    if copied is not None and family(copied.method) != family(wanted.method):
        name = next((one.name for one in plan.sources if one.role == "destination"), plan.target.name)
        raise QuantisedError(
            f"the tensor {escape(wanted.name)} of the destination {escape(name)} is quantised ({wanted.method}), and "
            f"would get the codes of {escape(copied.name)}, which is quantised differently ({copied.method}): these "
            "codes would be decoded to wrong weights.",
            hint="Use --encoding dequantize, or a destination in the encoding of the source.",
            details=list(wanted.keys),
        )


def _copied_tensor(step: Step, sources: Sequence[QuantisedTensors]) -> QuantisedTensor | None:
    """Return the quantised tensor of a source whose codes or scales a step copies; None for other steps."""
    if step.op not in ("copy", "keep") or step.source is None or step.coded is not None:
        return None
    return sources[step.source].by_key.get(step.source_key)


def _origin(step: Step, sources: Sequence[QuantisedTensors]) -> int | None:
    """Return the Python ``id`` of the quantised tensor whose codes or scales a step copies; None for other steps."""
    found = _copied_tensor(step, sources)
    return id(found) if found is not None else None


def check_decoded(steps: Sequence[Step], selection: Selection, views: Sequence[SourceView]) -> None:
    """Raise PlanError if a tensor would be initialised although a source has it in quantised form."""
    missing = {step.key for step in steps if step.reason == "missing"}
    lost: dict[str, str] = {}
    for name, origins in selection.origins.items() if missing else ():
        for origin in origins:
            coded = views[origin.source].codes.by_key.get(origin.key)
            if coded is not None and coded.codes == origin.key and (meant := _meant(coded, name)) in missing:
                lost[meant] = f"{views[origin.source].source.name} has it as codes ({coded.method})"
    if lost:
        first = next(iter(lost))
        raise QuantisedError(
            f"the tensor {escape(first)} would be initialised, although {_why(lost)}.",
            hint=f"{dequantise('transplant')}; --reinit {escape(first)} initialises the tensor anyway.",
            details=[f"{key}: {why}" for key, why in lost.items()],
        )


def _why(found: Mapping[str, str]) -> str:
    """Return a text: the reason for the first tensor in ``found``, {key: reason}, and the keys of the others."""
    why = escape(next(iter(found.values())))
    others = f"{count(len(found) - 1, 'other tensor')}: {listing(list(found)[1:], 3)}"
    return f"{why}; the same is true of {others}" if len(found) > 1 else why


def check_replaced(
    steps: Sequence[Step], selection: Selection, views: Sequence[SourceView], wanted: QuantisedTensors
) -> None:
    """Raise PlanError if a quantised tensor of the destination would be kept although a source has its values.

    ``wanted`` are the quantised tensors of the destination. The source may have the values as plain numbers, or as
    codes under other keys.
    """
    kept = {step.key for step in steps if step.op == "keep" and step.reason == "missing"} if wanted else ()
    passed: dict[str, str] = {}
    coded = _codes_by_name(selection) if kept else {}
    for one in wanted.tensors:
        if one.codes not in kept:
            continue
        if one.name not in one.keys:
            for origin in selection.origins.get(one.name, ()):
                passed[one.name] = f"{views[origin.source].source.name} has it as numbers ({origin.info.dtype})"
        if one.name in coded:
            source, method = coded[one.name]
            passed[one.name] = f"{views[source].source.name} has it as codes ({method})"
    if passed:
        first = next(iter(passed))
        raise QuantisedError(
            f"the tensor {escape(first)} is quantised in the destination and would stay as it is, although "
            f"{_why(passed)}.",
            hint="Use --encoding dequantize, or use a destination that is not quantised, or keep the tensor: "
            f"--exclude {escape(first)}.",
            details=[f"{key}: {why}" for key, why in passed.items()],
        )


def _codes_by_name(selection: Selection) -> dict[str, tuple[int, str]]:
    """Return {key of the decoded weight: (source index, encoding)} for each quantised tensor."""
    return {
        _meant(origin.coded, name): (origin.source, origin.coded.method)
        for name, origins in selection.origins.items()
        for origin in origins
        if origin.coded is not None and origin.coded.codes == origin.key
    }


def _meant(coded: QuantisedTensor, name: str) -> str:
    """Return the key of the decoded weight of ``coded``, for an output that stores the codes under the key ``name``."""
    end = _ending(coded, coded.codes)
    stem = len(f".{coded.codes}") - len(end)
    return (f".{name}".removesuffix(end) + f".{coded.name}"[stem:])[1:]


def refuse_codes(views: Sequence[SourceView], doing: str, keys: Set[str] | None = None) -> None:
    """Raise PlanError if a source has quantised tensors; with ``keys``, only tensors with these keys are checked.

    ``doing`` is the name of the command, for the message. The command computes with all tensors, so it would use
    codes as numbers.
    """
    for view in views:
        coded = view.codes.tensors
        named = coded if keys is None else [one for one in coded if not keys.isdisjoint((one.name, *one.keys))]
        if named:
            raise computing([(view.source.name, one, doing) for one in named], dequantise(doing))
