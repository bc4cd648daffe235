"""Plans an output that has selected tensors of one checkpoint, perhaps with new names or in other dtypes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import PlanError
from ..tensors.composition import is_decoded
from ..tensors.dtypes import DTYPES
from ..tensors.info import Encoded, TensorInfo, tied_keys
from ..util.text import count, escape, grouped, listing
from .keys.pattern_hints import nothing_left
from .mismatch.policies import cast_fault
from .opaque_tensor_errors import is_uncopied, opaque_error
from .plan.files import PlanTarget, SourceView, TensorOrigin, operation_fields
from .plan.plan import CarriedEntries, Plan
from .plan.step import Step
from .transplant.options import Options
from .transplant.transplant import select

__all__ = ["check_casts", "plan_edit"]


def plan_edit(
    verb: str,
    view: SourceView,
    options: Options,
    *,
    carried: CarriedEntries | None = None,
    among: Collection[str] = (),
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    decoded_dtype: str = "float32",
) -> Plan:
    """Return the plan of an output with the tensors of the source ``view`` that the options select, in source order.

    ``verb`` is the name of the command. ``carried`` are the entries outside the source's state dict that the output
    keeps (--keep-extras). ``among`` are the keys of entries in the state dict that are not tensors. ``decoded_dtype``
    is the dtype of decoded weights if the options set none.

    Raises PatternError for patterns and rules that match nothing; PlanError if two tensors get the same name, a
    tensor gets a name in ``among``, all tensors are excluded, or a cast would lose information; FormatError if a
    tensor cannot be copied.
    """
    selection = select([view], options)
    chosen = {name: origins[0] for name, origins in selection.origins.items()}
    if not chosen:
        are = f"all {len(view.tensors)} tensors are" if len(view.tensors) > 1 else "its only tensor is"
        raise nothing_left(are, f"of {escape(view.source.name)}", may_widen=True)
    _check_plain(chosen.values(), view, verb)
    _check_apart(chosen, among)
    ties = tied_keys(_first_names(chosen))
    steps = tuple(_step(name, origin, options, ties.get(name, ""), decoded_dtype) for name, origin in chosen.items())
    check_casts(steps)
    return Plan(
        verb=verb,
        sources=(view.source,),
        target=PlanTarget("edit", view.source.name, ""),
        steps=steps,
        excluded=selection.excluded_keys,
        carried=carried or CarriedEntries(),
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(*notes, *selection.notes, *_idle(steps, options.dtype), *_still_coded(steps, view, options.dtype)),
    )


def _first_names(chosen: Mapping[str, TensorOrigin]) -> dict[str, TensorInfo]:
    """Return {new name: chosen tensor}, with one new name for each source key.

    If a rule copies a source key to several names, only the first of them is in the result. The caller uses the result
    to find the tied tensors of the output: copies that a rule makes are not tied to each other.
    """
    first: dict[str, str] = {}
    return {name: origin.info for name, origin in chosen.items() if first.setdefault(origin.key, name) == name}


def _idle(steps: Sequence[Step], dtype: str) -> list[str]:
    """Return a note if ``dtype``, which the user gave, applies to no tensor; else an empty list."""
    if not dtype or dtype == "keep" or any(DTYPES[step.source_dtype].kind == "float" for step in steps):
        return []
    return [f"--dtype {dtype} changes nothing: no tensor has a real floating-point dtype"]


def _still_coded(steps: Sequence[Step], view: SourceView, dtype: str) -> list[str]:
    """Return a note if the output still has codes, although the user gave ``dtype``; else an empty list.

    If a cast would change codes or scales, ``check_codes`` raises an error. The note is for codes whose scales already
    have the dtype ``dtype``: they are copied, and stay encoded.
    """
    made = {step.source_key for step in steps}
    kept = [one.name for one in view.codes.tensors if not made.isdisjoint(one.keys)]
    if not dtype or dtype == "keep" or not kept:
        return []
    stay = "stays" if len(kept) == 1 else "stay"
    return [
        f"the dtype {dtype} does not apply to {count(len(kept), 'quantised weight')}, which {stay} encoded: "
        "ckpt convert --dequantize writes plain weights"
    ]


def _step(name: str, origin: TensorOrigin, options: Options, tied_to: str, decoded_dtype: str) -> Step:
    info = origin.info
    given = options.dtype not in ("", "keep")
    wanted = decoded_dtype if is_decoded(info) and not given else options.dtype
    if isinstance(info.made, Encoded):  # codes, and scales in the dtype that goes with them
        wanted = "keep"
    return Step(
        name, "copy", _dtype(info, wanted), info.shape, 0, origin.key, info.dtype, info.shape,
        rule=origin.rule, tied_to=tied_to, **operation_fields(origin),
    )  # fmt: skip


def _dtype(info: TensorInfo, wanted: str) -> str:
    """Return the dtype of an output tensor: ``wanted`` for real floating-point tensors, else the tensor's own dtype."""
    follows = wanted not in ("", "keep") and DTYPES[info.dtype].kind == "float"
    return wanted if follows else info.dtype


def _check_plain(chosen: Any, view: SourceView, verb: str) -> None:
    opaque = [origin for origin in chosen if is_uncopied(origin.info)]
    if opaque:
        first = opaque[0]
        raise opaque_error(
            first.key, view.source.name, first.info, "cannot be copied", verb=verb,
            leave=f"Leave it out: ckpt filter --exclude {escape(first.key)}.",
            details=[f"{origin.key}: {origin.info.opaque}" for origin in opaque],
        )  # fmt: skip


def _check_apart(chosen: Mapping[str, TensorOrigin], among: Collection[str]) -> None:
    taken = [name for name in among if name in chosen]
    if taken:
        raise PlanError(
            f"tensors would have the names of entries that --keep-extras copies: {listing(taken)}.",
            hint="Give the tensors other names, or leave --keep-extras out.",
            details=taken,
        )


def check_casts(steps: Sequence[Step]) -> None:
    """Raise PlanError if a step casts a tensor to a dtype that cannot hold its numbers, as from complex to float."""
    faults = [
        (s.key, f"{s.source_dtype}: {why}")
        for s in steps
        if s.dtype != s.source_dtype and (why := cast_fault(s.source_dtype, s.dtype))
    ]
    if faults:
        raise PlanError(
            f"tensors cannot be cast to the dtype of --dtype: {grouped(faults, '{names} {are} {why}')}.",
            hint="Choose another --dtype, or leave these tensors out first, with ckpt filter.",
            details=[f"{key} is {why}" for key, why in faults],
        )
