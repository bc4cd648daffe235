"""The transplant planner: selects tensors of the sources, and makes a plan for a destination, by headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import PatternError, PlanError
from ...tensors.dtypes import DTYPES
from ...tensors.quantised.encoding import NO_CODES, QuantisedTensors
from ...util.short_repr import Brief
from ...util.text import count, escape, human_bytes, listing
from ..keys.pattern_hints import matched
from ..keys.renaming import KeyMatcher, Renaming, check_shadowed, rename, rule_matcher, rules_of_sets
from ..keys.rules import Rule
from ..keys.weight_norm import weight_norm_names
from ..plan.files import PlanSource, PlanTarget, SourceView, TensorOrigin, is_under, renamed_by_spec
from ..plan.plan import Plan
from ..plan.step import Step
from ..quantised import check_decoded, check_replaced
from ..target import TargetSpec
from .decide import InitialView, decide
from .options import Options
from .plan_errors import check_completeness, check_destination_patterns, check_prefixes, nothing_loaded
from .plan_notes import few_copied, other_modules, part_left
from .selection import ExcludedKey, Selection
from .selection_checks import check_rules, check_src_key, excluded_by_prefix, without_names

__all__ = ["PlanningInputs", "plan_transplant", "select"]

DOUBLING = 1.9
"""There is a note if casts make the copied tensors larger by this factor or more."""

WEIGHT_NORM = "names of weight norm"
"""The rule by which a tensor of a weight norm gets torch's other name for it."""


def plan_transplant(
    views: Sequence[SourceView],
    target: TargetSpec,
    options: Options,
    *,
    planned: PlanTarget,
    keeper: PlanSource | None = None,
    initial: Sequence[InitialView] = (),
    wanted: QuantisedTensors = NO_CODES,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a transplant of the sources ``views`` into ``target``; later sources override earlier ones.

    ``planned`` describes the destination in the plan. ``keeper`` is the destination if it is a checkpoint: tensors that
    are in no source keep its values. ``initial`` are files that contain initial values of some tensors. ``wanted`` are
    the quantised tensors of the destination. Raises PatternError for patterns that match nothing; PlanError for
    impossible requests; FormatError for values that cannot be copied.
    """
    names_tensors = options.reinit or options.require or options.mismatch.scoped
    overlooked = check_destination_patterns(target, options) if names_tensors else []
    if any(view.dst for view in views):
        check_prefixes(views, target)
    selection = select(views, options, target.tensors)
    names = [view.source.name for view in views]
    decisions = decide(target, selection, options, names, initial)
    unexpected = _unexpected(selection, decisions.used)
    if any(view.codes for view in views):
        check_decoded(decisions.steps, selection, views)
    if wanted:
        check_replaced(decisions.steps, selection, views, wanted)
    if all(step.reason for step in decisions.steps):  # no tensor gets values from a source
        raise nothing_loaded(decisions.steps, unexpected, target, views)
    if options.require or options.strict or options.on_missing == "error":
        check_completeness(decisions.steps, unexpected, options)
    kept = (keeper,) if keeper is not None else tuple(view.source for view in initial)
    few = list(few_copied(views, decisions.steps, unexpected, options)) if unexpected else []
    if unexpected and not few:
        few += other_modules(views, decisions.steps, _names(selection, unexpected), options)
    if unexpected and not few:
        few += part_left(views, decisions.steps, unexpected, options)
    return Plan(
        verb="transplant",
        sources=(*(view.source for view in views), *kept),
        target=planned,
        steps=tuple(decisions.steps),
        unexpected=tuple((origin.source, origin.key) for origin in unexpected),
        excluded=selection.excluded_keys,
        equal=tuple(decisions.equal),
        rows=next((step.rows for step in decisions.steps if step.rows is not None), None),
        seed=seed,
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(
            *notes,
            *selection.notes,
            *overlooked,
            *decisions.notes,
            *_overrides(selection, decisions.used, decisions.steps),
            *_idle_copies(selection, decisions.used),
            *(_growth(decisions.steps) if target.kind != "module" else ()),
            *few,
        ),
    )


def _unexpected(selection: Selection, used: set[str]) -> list[TensorOrigin]:
    """Return the selected tensors that the destination does not have under any of their new names.

    ``used`` are the names of destination tensors that a source has, too.
    """
    placed = {(origin.source, origin.key) for name in used for origin in selection.origins.get(name, ())}
    left = {(o.source, o.key): o for name, found in selection.origins.items() if name not in used for o in found}
    return [origin for place, origin in left.items() if place not in placed]


def _names(selection: Selection, unexpected: Sequence[TensorOrigin]) -> list[str]:
    """Return the new names of the source tensors ``unexpected``, which the destination lacks."""
    places = {(origin.source, origin.key) for origin in unexpected}
    return [name for name, found in selection.origins.items() if any((one.source, one.key) in places for one in found)]


def _idle_copies(selection: Selection, used: set[str]) -> list[str]:
    """Return a list with a note on copies of used tensors that rules make under names that the destination lacks.

    The list is empty if there are no such copies. ``used`` are the names of destination tensors that a source has, too.
    """
    placed = {(origin.source, origin.key) for name in used for origin in selection.origins.get(name, ())}
    idle = [
        name
        for name, origins in selection.origins.items()
        if name not in used and any((origin.source, origin.key) in placed for origin in origins)
    ]
    if not idle:
        return []
    copies = count(len(idle), "copy", "copies")
    are = "is" if len(idle) == 1 else "are"
    return [f"{copies} that rules make of used tensors {are} not in the destination: {listing(idle)}"]


def _overrides(selection: Selection, used: set[str], steps: Sequence[Step]) -> list[str]:
    """Return a list with a note on tensors that several sources have and the output takes from the last one."""
    several = [name for name in selection.origins if name in used and len(selection.origins[name]) > 1]
    anew = {step.key for step in steps if step.reason} if several else set()
    twice = [name for name in several if name not in anew]
    if not twice:
        return []
    return [f"{count(len(twice), 'tensor')} in several sources come from the last of them: {listing(twice)}"]


def _growth(steps: Sequence[Step]) -> list[str]:
    """Return a list with a note if casts make tensors ``DOUBLING`` times as large or more; else an empty list.

    A tied tensor counts once.
    """
    before = after = 0
    kinds: set[str] = set()
    for step in steps:
        if step.kind == "cast" and not step.tied_to:
            elements = 1
            for size in step.shape:
                elements *= size
            before += elements * DTYPES[step.source_dtype].bits // 8
            after += elements * DTYPES[step.dtype].bits // 8
            kinds.add(f"{step.source_dtype} to {step.dtype}")
    if not before or after < DOUBLING * before:
        return []
    casts = ", ".join(sorted(kinds))
    growth = f"enlarges tensors from {human_bytes(before)} to {human_bytes(after)}"
    return [f"casting {casts} {growth}; --dtype keep leaves them as they are"]


# The selection of tensors, and their names in the destination.


@dataclass(frozen=True, repr=False)
class PlanningInputs(Brief):
    """The sources, the destination and the options of a transplant, kept to explain its plan later."""

    views: Sequence[SourceView]
    target: TargetSpec
    options: Options

    def selection(self) -> Selection:
        """Return the selected and renamed tensors of the sources, computed again."""
        return select(self.views, self.options, self.target.tensors)


def select(views: Sequence[SourceView], options: Options, wanted: Collection[str] = ()) -> Selection:
    """Return the tensors of all sources that the options select, by their new names.

    Tensors of weight norms also get torch's other names for them, if ``wanted``, the keys of a destination, has these.
    Raises PatternError for a pattern, prefix or rule that matches nothing, or if earlier rules rename all keys that a
    rule matches; PlanError if two keys of one source get the same name.
    """
    selection = Selection()
    keys = [key for view in views for key in view.names]
    flags = [(str(flag), flag.pattern) for flag in (*options.include, *options.exclude)]
    if flags:
        selection.notes += matched(flags, keys, "source")[1]
    if options.rules:
        check_rules(options, views, keys, selection)
    if options.rulesets:
        stripped = [one for view in views for one in view.source.stripped]
        options = replace(options, rules=(*options.rules, *rules_of_sets(options.rulesets, keys, stripped)))
    renamings = [_select_one(index, view, options, selection) for index, view in enumerate(views)]
    if options.rules:
        check_shadowed(options.rules, renamings)
    _rename_weight_norms(selection, wanted)
    return selection


def _rename_weight_norms(selection: Selection, wanted: Collection[str]) -> None:
    """Give tensors of weight norms the older or newer names of torch, if only these are in ``wanted``."""
    there = {*selection.origins, *selection.excluded}
    if all(name in there for name in wanted):
        return
    names = {
        old: new
        for before, after in weight_norm_names(there, wanted)
        if not any(old in wanted for old in before) and not any(new in there for new in after)
        for old, new in zip(before, after, strict=True)
    }
    renamed = [name for name in names if name in selection.origins]
    if not names:
        return
    selection.origins = {
        names.get(name, name): [one._replace(rule=one.rule or WEIGHT_NORM) if name in names else one for one in origins]
        for name, origins in selection.origins.items()
    }
    selection.excluded = {names.get(name, name): origins for name, origins in selection.excluded.items()}
    if not renamed:
        return
    old = escape(renamed[0])
    are = f"{count(len(renamed), 'tensor')} of weight norms {'is' if len(renamed) == 1 else 'are'}"
    selection.notes.append(f"{are} renamed, as torch has two names for each: {old} becomes {escape(names[renamed[0]])}")


def _select_one(index: int, view: SourceView, options: Options, selection: Selection) -> Renaming:
    dropped = _dropped(view, options, selection)
    chosen = [key for key in view.tensors if key not in dropped and is_under(key, view.src)]
    renaming = (
        _with_parts(rename(chosen, options.rules), view, options.rules)
        if options.rules
        else Renaming({key: (key,) for key in chosen}, dict.fromkeys(chosen), ())
    )
    landed: dict[str, str] = {}
    for key, by in renaming.by.items():
        for name in renaming.names[key] if by is not None else (_moved(key, view),):
            other = landed.setdefault(name, key)
            if other != key:
                raise PlanError(
                    f"{escape(other)} and {escape(key)} of {escape(view.source.name)} both become {escape(name)}.",
                    hint="Rename one of the two differently with --map, or leave it out: ckpt transplant has "
                    "--exclude, and ckpt filter writes a source without it.",
                )
            rule = f"--map {options.rules[by].text}" if by is not None else _spec_rule(view, key, name)
            origin = TensorOrigin(
                index, key, view.tensors[key], rule, view.made.get(key), view.codes.by_key.get(key), view.dtype_of(key)
            )
            selection.origins.setdefault(name, []).append(origin)
    if dropped:
        matching_rules = rule_matcher(options.rules)
        selection.excluded_keys += len(dropped)
    for key, why in dropped.items():
        for name in _names_of(key, view, [options.rules[place] for place in matching_rules(key)]):
            selection.excluded.setdefault(name, []).append(ExcludedKey(index, key, why))
    return renaming


def _with_parts(renaming: Renaming, view: SourceView, rules: Sequence[Rule]) -> Renaming:
    """Return ``renaming`` with new names for the parts of quantised tensors, too, if a rule renames the tensor itself.

    If another rule matches the key of a part, the first of the two rules decides. Raises PlanError if a part has no
    name that fits.
    """
    parts = {key: coded for key in renaming.names if (coded := view.codes.by_key.get(key)) and coded.name != key}
    if not parts:
        return renaming
    whole = rename(list(dict.fromkeys(coded.name for coded in parts.values())), rules)
    names, by = dict(renaming.names), dict(renaming.by)
    for key, coded in parts.items():
        own, rule = by[key], whole.by[coded.name]
        if rule is None or (own is not None and own <= rule):
            continue
        found = [(name, coded.part_named(name, coded.ending(key))) for name in whole.names[coded.name]]
        lacking = next((name for name, part in found if part is None), None)
        if lacking is not None:
            raise without_names(coded, lacking)
        names[key], by[key] = tuple(part for _, part in found if part is not None), rule
    return Renaming(names, by, tuple(sorted({*renaming.used, *whole.used})), {**whole.shadowed, **renaming.shadowed})


def _dropped(view: SourceView, options: Options, selection: Selection) -> dict[str, str]:
    """Return the keys that are left out, each with the option that excluded it."""
    if not (options.include or options.exclude or view.prefixes or view.src):
        return {}
    excludes = KeyMatcher([flag.pattern for flag in options.exclude])
    includes = KeyMatcher([flag.pattern for flag in options.include])
    dropped: dict[str, str] = {}
    for key in view.tensors:
        names = (key,) if key not in view.codes.by_key else (key, view.codes.by_key[key].name)
        hits = [hit for name in names for hit in excludes.match(name)]
        if hits:
            dropped[key] = str(options.exclude[min(hits)])
        elif options.include and not any(map(includes.match, names)):
            dropped[key] = "not in --include"
        elif not is_under(key, view.src):
            dropped[key] = f"not under src_key {view.src}"
    for prefix in view.prefixes:
        dropped.update(excluded_by_prefix(prefix, list(view.tensors), of=view.source.name, notes=selection.notes))
    if view.src:
        check_src_key(view.src, list(view.tensors))
    return dropped


def _spec_rule(view: SourceView, key: str, name: str) -> str:
    """Return the reason why a key has the new name ``name`` although no rule renames it; '' if it keeps its name.

    The reason is the source's PATH:src_key:dst_key, or the view's ``known_by`` if ``known`` has the key.
    """
    if key in view.known:
        return view.known_by
    return f"{view.source.name}:{view.src}:{view.dst}" if name != key else ""


def _moved(key: str, view: SourceView) -> str:
    """Return the new name of a key that no rule renames: its name in ``view.known``, else by src_key and dst_key."""
    return view.known[key] if key in view.known else renamed_by_spec(key, view.src, view.dst)


def _names_of(key: str, view: SourceView, rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return the names that an excluded key would have had; its own name if a rule that matches it cannot be applied.

    ``rules`` are the rules that match the key.
    """
    for rule in rules:
        try:
            names = rule.names(key)
        except PatternError:
            return (key,)
        if names:
            return names
    return (_moved(key, view),)
