"""Checks that may refuse a transplant: mismatches, casts, nothing loaded, patterns without a match, --strict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import PatternError, PlanError
from ...util.text import count, escape, grouped, listing, shape_text
from ..keys.pattern_hints import matched, nearest
from ..keys.renaming import KeyMatcher
from ..keys.transposed import is_transposed, reshape_hint, transposed_hint
from ..llama_cpp.names import layout_hint
from ..mismatch.policies import fitting_policies
from ..plan.files import SourceView, TensorOrigin
from ..plan.step import Step
from ..quantised import computing
from ..quantised_error import dequantise
from ..target import TargetSpec, Undrawable
from .by_place import BY_TOKEN, PositionalRows
from .options import Options
from .vocabulary import VocabularyAxes

__all__ = [
    "NOTHING_LOADED", "PlanFaults", "check_completeness", "check_destination_patterns", "check_prefixes",
    "missing_text", "nothing_loaded", "operations_option", "raise_faults",
]  # fmt: skip

# Mismatches, casts and tensors that cannot be drawn, collected to be reported at once.


@dataclass
class PlanFaults:
    """The faults of a plan by kind, so that one error can list all tensors with the same kind of fault.

    ``in_no_source`` are the keys in ``casts`` of tensors that are initialised or kept, so that --exclude cannot help.
    """

    mismatches: list[tuple[Step, TensorOrigin, str]] = field(default_factory=list)
    casts: list[tuple[str, str]] = field(default_factory=list)
    in_no_source: set[str] = field(default_factory=set)
    undrawable: dict[str, Undrawable] = field(default_factory=dict)

    coded: list[tuple[TensorOrigin, str]] = field(default_factory=list)


def raise_faults(
    faults: PlanFaults,
    names: Sequence[str],
    target: str,
    axes: VocabularyAxes | None,
    by_place: PositionalRows | None,
    *,
    is_live: bool,
) -> None:
    """Raise PlanError for all faults of the first kind that occurs: quantised tensors, shapes, initial values, casts.

    ``names`` are the names of the sources, ``target`` is the name of the destination. ``is_live`` is true if
    it is a live module: its verb has neither --dtype nor --vocab.
    """
    if faults.coded:
        coded = [(names[origin.source], origin.coded, what) for origin, what in faults.coded if origin.coded]
        hint = dequantise("transplant")
        raise computing(
            coded, f"Leave it out (--exclude {escape(_module(faults.coded[0][0].key))}), or {hint[0].lower()}{hint[1:]}"
        )
    if faults.mismatches:
        wrong = axes.of_no_list([step for step, _, _ in faults.mismatches]) if axes else None
        raise wrong or _mismatch_error(faults.mismatches, names, target, None if axes else by_place, is_live=is_live)
    if faults.undrawable:
        raise _undrawable_error(faults.undrawable, target)
    if faults.casts:
        keep = "" if is_live else ", or use --dtype keep"
        exclude = f"Leave {'it' if len(faults.casts) == 1 else 'them'} out with --exclude{keep}."
        raise PlanError(
            f"dtype mismatch: {grouped(faults.casts, '{names} {are} {why}')}.",
            hint="Use --dtype keep." if faults.in_no_source and not is_live else exclude,
            details=[f"{key} is {why}" for key, why in faults.casts],
        )


def _undrawable_error(faults: Mapping[str, Undrawable], target: str) -> PlanError:
    """Return the error for tensors whose initial values cannot be used, with the hint for the first tensor."""
    groups: dict[Undrawable, list[str]] = {}
    for key, why in faults.items():
        groups.setdefault(why, []).append(key)
    said = [why.why.format(keys=listing(keys)) for why, keys in groups.items()]
    (first, keys), *_ = groups.items()
    return PlanError(
        f"{escape(target)} {', and '.join(said)}.", hint=first.hint.format(key=escape(keys[0])), details=list(faults)
    )


def operations_option(*, is_live: bool) -> str:
    """Return the option for operations; with a live module as destination, its verb has none, so that of rename."""
    return "ckpt rename --operations" if is_live else "--operations"


def _mismatch_error(
    faults: Sequence[tuple[Step, TensorOrigin, str]],
    names: Sequence[str],
    target: str,
    by_place: PositionalRows | None,
    *,
    is_live: bool,
) -> PlanError:
    details = []
    for step, origin, why in faults:
        fits = fitting_policies(step.source_shape, step.shape, step.source_dtype, step.key)
        details.append(
            f"{step.key} is {shape_text(step.source_shape)} in {names[origin.source]}, "
            f"{shape_text(step.shape)} in {target}: {f'{why}; ' if why else ''}"
            f"--on-mismatch {step.key}={'|'.join(fits)}"
        )
    first, origin, why = faults[0]
    shapes = (
        f"{escape(first.key)} is {shape_text(first.source_shape)} in {escape(names[origin.source])}, "
        f"{shape_text(first.shape)} in {escape(target)}"
    )
    others = listing([step.key for step, _, _ in faults[1:]], limit=4)
    also = f"; {count(len(faults) - 1, 'other')} too: {others}" if others else ""
    fits = fitting_policies(first.source_shape, first.shape, first.source_dtype, first.key)[1:]
    module, source_module = _module(first.key), _module(origin.key)
    option = operations_option(is_live=is_live)
    how = (
        transposed_hint(origin.key, option, len(first.source_shape))
        if is_transposed(first.source_shape, first.shape)
        else reshape_hint(origin.key, option, first.source_shape, first.shape)
    )
    hint = f"{f'{how}. Or use' if how else 'Use'} --on-mismatch {escape(module)}=init"
    hint += f" (or {', '.join(fits)})" if fits else ""
    if {_module(step.key) for step, _, _ in faults} != {module}:
        hint += " for one, --ignore-mismatch for all"
    hint += f", {BY_TOKEN} for rows by token" if by_place is not None and first.key in by_place and not is_live else ""
    hint += f", or --exclude {escape(source_module)}."
    unfit = f" {escape(why, 600)}." if why else ""
    return PlanError(f"shape mismatch: {shapes}{also}.{unfit}", hint=hint, details=details)


def _module(key: str) -> str:
    return key.rpartition(".")[0] or key


def _is_unloaded(step: Step) -> bool:
    """Return whether a tensor gets no values from a source: it is initialised or keeps the destination's values."""
    return bool(step.reason)


def check_destination_patterns(target: TargetSpec, options: Options) -> list[str]:
    """Return notes on patterns that match few keys of the destination; raises PatternError if one matches no key."""
    flags = [*options.reinit, *options.require, *(flag for flag, _ in options.mismatch.scoped)]
    return matched([(str(flag), flag.pattern) for flag in flags], list(target.tensors), "destination")[1]


def check_prefixes(views: Sequence[SourceView], target: TargetSpec) -> None:
    """Raise PatternError if a source in ESPnet's form, PATH:src_key:dst_key, names a dst_key that does not exist.

    The dst_key must be a module of the destination. The hint lists similar modules.
    """
    keys = list(target.tensors)
    for view in views:
        if view.dst and not any(key == view.dst or key.startswith(f"{view.dst}.") for key in keys):
            near = [f"{name} ({count(number, 'key')})" for name, number in nearest(view.dst, keys)]
            modules = near or [f"{name} ({number})" for name, number in _heads(keys)]
            raise PatternError(
                f"dst_key {escape(view.dst)} of {escape(view.source.name)} is not a module of the destination.",
                hint=f"Use one of the modules of the destination: {', '.join(map(escape, modules))}.",
            )


def missing_text(keys: Sequence[str]) -> str:
    """Return the message of an error on tensors of a destination that are in no source."""
    are = "is" if len(keys) == 1 else "are"
    return f"{count(len(keys), 'tensor')} of the destination {are} in no source: {listing(keys)}."


def check_completeness(steps: Sequence[Step], unexpected: Sequence[TensorOrigin], options: Options) -> None:
    """Raise PlanError if --require, --on-missing error or --strict is not met.

    ``unexpected`` are the selected source tensors that the destination does not have.
    """
    if options.require:
        _check_required(steps, options)
    missing = [step.key for step in steps if step.reason == "missing"]
    if options.on_missing == "error" and missing:
        raise PlanError(
            missing_text(missing),
            hint="Leave out --on-missing error to initialise these tensors.",
            details=missing,
        )
    left = [origin.key for origin in unexpected]
    if options.strict and (missing or left):
        words = [f"missing from the sources: {listing(missing)}"] if missing else []
        words += [f"not used: {listing(left)}"] if left else []
        raise PlanError(
            f"--strict: {'; '.join(words)}.",
            hint="Exclude unused keys with --exclude, rename keys with --map, or leave out --strict.",
            details=[*missing, *left],
        )


def _check_required(steps: Sequence[Step], options: Options) -> None:
    matcher = KeyMatcher([flag.pattern for flag in options.require])
    for step in steps:
        hits = matcher.match(step.key)
        if hits and _is_unloaded(step):
            flag = options.require[min(hits)]
            unmet = [s.key for s in steps if _is_unloaded(s) and min(hits) in matcher.match(s.key)]
            come = "comes" if len(unmet) == 1 else "come"
            raise PlanError(
                f"{flag} is not met: {count(len(unmet), 'tensor')} that it matches {come} from no source: "
                f"{listing(unmet)}.",
                hint=_REMEDIES.get(step.reason, "").format(key=escape(step.key), rule=escape(step.rule)),
                details=unmet,
            )


NOTHING_LOADED = "nothing loaded"
"""The ``rule`` of the error for a transplant without a tensor from a source."""

_REMEDIES = {
    "missing": "No source has a tensor named {key}; if it has another name, rename it with --map.",
    "excluded": "{key} is left out ({rule}).",
    "reinit": "{key} is initialised by {rule}.",
    "mismatch": "{key} is initialised by {rule}, since its shape differs.",
}
"""{reason why a tensor comes from no source: hint}."""


def nothing_loaded(
    steps: Sequence[Step], unexpected: Sequence[TensorOrigin], target: TargetSpec, views: Sequence[SourceView]
) -> PlanError:
    """Return the error for a transplant without a tensor from a source; the hint says what to change."""
    wanted = set(target.tensors)
    names = [origin.key for origin in unexpected]
    hint = _spec_that_helps(views, wanted) or _option_that_took_all(steps)
    hint = hint or layout_hint([*((view.source.name, view.tensors) for view in views), (target.name, wanted)])
    hint = hint or _layouts_hint(target, views)
    fix = _renaming_that_helps(names, wanted) if not hint else None
    if fix:
        more = "" if 2 * fix[1] > len(names) else " ckpt match proposes names for the others."
        hint = f"{fix[0]} would match {fix[1]} of {len(wanted)} tensors.{more}"
    elif names and not hint:
        hint = f"The source has {_some_keys(names)}; the destination has {_some_keys(list(wanted))}. Rename with --map."
    none = f"none of the {len(steps)} tensors" if len(steps) > 1 else "the only tensor"
    no = "" if len(steps) > 1 else " no"
    return PlanError(
        f"nothing would be loaded: {none} of the destination gets{no} values from a source.",
        hint=hint,
        rule=NOTHING_LOADED,
    )


def _layouts_hint(target: TargetSpec, views: Sequence[SourceView]) -> str:
    """Return a hint if a source stores the destination's kind of network in another layout; '' if not."""
    from ..layouts.differing import differing_layouts_hint  # this imports all layouts, which other errors do not need

    here = (target.keeps or target.name, target.tensors)
    hints = ([here, (view.source.in_commands, view.tensors)] for view in views)
    return next(filter(None, map(differing_layouts_hint, hints)), "")


def _option_that_took_all(steps: Sequence[Step]) -> str:
    """Return a hint that names the options that prevent loading; "" if no option is the reason."""
    took = Counter(step.rule for step in steps if step.reason != "missing" and step.rule)
    if not took:
        return ""
    rules = ", ".join(f"{escape(rule)} ({number})" for rule, number in took.most_common(3))
    number = sum(took.values())
    those = "They are" if number == len(steps) else f"{number} {'is' if number == 1 else 'are'}"
    return f"{those} not loaded because of {rules}."


def _spec_that_helps(views: Sequence[SourceView], wanted: set[str]) -> str:
    """Return a hint with a corrected source in ESPnet's form, PATH:src_key:dst_key, or "" if none helps.

    A corrected source helps if the user gave only src_key or only dst_key, and both source and destination have this
    module. ``wanted`` are the keys of the destination.
    """
    for view in views:
        module = view.src or view.dst
        if bool(view.src) != bool(view.dst):
            number = sum(key in wanted for key in view.tensors if key.startswith(f"{module}."))
            if number:
                spec = ":".join(map(escape, (view.source.path, module, module)))
                return f"Did you mean {spec}? It would match {count(number, 'tensor')}."
    return ""


def _some_keys(keys: Sequence[str]) -> str:
    heads = _heads(keys, limit=5)
    more = ", …" if len(heads) == 5 else ""
    return ", ".join(f"{escape(name)} ({number})" for name, number in heads[:4]) + more


def _renaming_that_helps(names: Sequence[str], wanted: set[str]) -> tuple[str, int] | None:
    """Return the best --map option that adds or strips a first segment, and the number of keys that then match.

    The result is None if no such option produces a key in ``wanted``, the keys of the destination.
    """
    tries: Counter[str] = Counter()
    for name in names:
        head, _, rest = name.partition(".")
        if rest in wanted:
            tries[f"--map '{head}='"] += 1
    for prefix, _ in _heads(sorted(wanted)):
        found = sum(f"{prefix}.{name}" in wanted for name in names)
        if found:
            tries[f"--map '={prefix}'"] = found
    return tries.most_common(1)[0] if tries else None


def _heads(keys: Sequence[str], limit: int = 4) -> list[tuple[str, int]]:
    return Counter(key.partition(".")[0] for key in keys).most_common(limit)
