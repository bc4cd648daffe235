"""Explains tensors of a plan: where each comes from, and which other sources, rules and policies were possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import PatternError
from ..planning.keys.pattern import KeyPattern
from ..planning.keys.pattern_hints import nearest, unmatched
from ..planning.keys.renaming import KeyMatcher, rules_of_sets
from ..planning.mismatch.policies import fitting_policies, is_reshape
from ..planning.plan.files import TensorOrigin
from ..planning.plan.plan import Plan
from ..planning.plan.step import Step
from ..planning.transplant.selection import Selection
from ..planning.transplant.transplant import PlanningInputs
from ..tensors.info import TensorInfo
from ..util.text import escape, listing
from .explanation import Alternatives, Candidate, Explained, Explanation, OtherMatch

__all__ = ["Chooser", "explain"]

# Alternatives for a destination tensor: other sources, rules, policies and names.

NEAR = 3
"""The largest number of similar names that are shown."""
COMPARED = 1 << 18
"""At most this many names are compared in one call of ``explain``; this many take some seconds."""

Place = tuple[int, str]
"""The index of a source, and the key of one of its tensors."""


class Chooser:
    """Finds the alternatives for tensors of a plan: the source tensors that the planner could also have selected."""

    def __init__(self, plan: Plan, planning: PlanningInputs) -> None:
        self._plan = plan
        self._planning = planning
        self._selection = planning.selection()
        self._uses: dict[tuple[int, str], str] = {}
        for step in plan.steps:
            if step.source is not None and step.op != "keep":
                self._uses.setdefault((step.source, step.source_key), step.key)
        keys = [key for view in planning.views for key in view.tensors]
        options = planning.options
        self._rules = [*options.rules, *rules_of_sets(options.rulesets, keys)]
        self._scoped = KeyMatcher([flag.pattern for flag, _ in options.mismatch.scoped])
        self._left_out = {(one.source, one.key): one.why for each in self._selection.excluded.values() for one in each}
        self._alike: dict[tuple[int, ...], list[Place]] = {}
        for index, view in enumerate(planning.views):
            for key, info in view.tensors.items():
                self._alike.setdefault(info.shape, []).append((index, key))
        self._left = COMPARED

    def alternatives(self, step: Step, names: Sequence[str]) -> Alternatives:
        """Return the sources, rules and policies that the plan could have used instead for the tensor of ``step``.

        ``names`` are the destination keys of this tensor: more than one if it is tied.
        """
        origins = [origin for name in names for origin in self._selection.origins.get(name, ())]
        meant = self._meant(step, origins)
        return Alternatives(
            sources=tuple(self._passed_over(step, origins)),
            excluded=tuple(self._excluded(names)),
            rules=tuple(self._other_rules(step, names, meant)),
            policies=self._policies(step, meant),
            near=tuple(self._near(step)) if step.reason == "missing" else (),
        )

    def _meant(self, step: Step, origins: Sequence[TensorOrigin]) -> TensorOrigin | None:
        """Return the source tensor that a step uses, or that it would use if it did not initialise its tensor.

        ``origins`` has the tensors that could be used, at most one from each source. The tensor of the last source is
        returned; None if there are no such tensors.
        """
        last = max((origin.source for origin in origins), default=-1)
        return next((origin for origin in origins if origin.source == last), None)

    def _passed_over(self, step: Step, origins: Sequence[TensorOrigin]) -> Iterator[Candidate]:
        for origin in origins:
            if (step.source, step.source_key) == (origin.source, origin.key) and step.op != "keep":
                continue
            if step.reason:
                why = {"reinit": step.rule, "mismatch": f"its shape differs, {step.rule}"}.get(step.reason, step.rule)
            elif origin.source != step.source:
                why = "a later source has it too"
            else:
                why = "another key of the same tensor"
            yield self._candidate(origin.source, origin.key, origin.info, why)

    def _excluded(self, names: Sequence[str]) -> Iterator[Candidate]:
        for one in (excluded for name in names for excluded in self._selection.excluded.get(name, ())):
            info = self._planning.views[one.source].tensors[one.key]
            yield self._candidate(one.source, one.key, info, one.why)

    def _candidate(self, source: int, key: str, info: TensorInfo, why: str) -> Candidate:
        return Candidate(self._plan.sources[source].name, key, info.dtype, info.shape, why)

    def _other_rules(self, step: Step, names: Sequence[str], meant: TensorOrigin | None) -> Iterator[OtherMatch]:
        """Yield the rules and policies that also match a tensor, but are not used.

        The first matching rename rule is used, and the last matching shape policy. ``names`` are the tensor's keys in
        the destination; ``meant`` is its source tensor.
        """
        if meant is not None:
            matching = [rule for rule in self._rules if rule.pattern is None or rule.pattern.matches(meant.key)]
            for rule in matching[1:]:
                yield OtherMatch(rule.given, "an earlier rule wins")
        if meant is None or not _differs(meant.info.shape, step.shape) or step.rows is not None:
            return
        hits = sorted(frozenset[int]().union(*(self._scoped.match(name) for name in names)))
        for index in hits[:-1]:
            flag, policy = self._planning.options.mismatch.scoped[index]
            yield OtherMatch(f"{flag}={policy}", "a later policy wins")

    def _policies(self, step: Step, meant: TensorOrigin | None) -> tuple[str, ...]:
        if meant is None or not _differs(meant.info.shape, step.shape):
            return ()
        fits = fitting_policies(meant.info.shape, step.shape, meant.info.dtype, step.key)
        return tuple(policy for policy in fits if policy != step.policy.partition(":")[0])

    def _near(self, step: Step) -> Iterator[Candidate]:
        """Yield the source tensors whose names are most similar to the name of a step's tensor.

        Unused tensors of the same shape are preferred, then used tensors of the same shape, then tensors of any shape.
        """
        alike = self._alike.get(step.shape, [])
        self._left -= len(alike)
        if self._left < 0:
            return
        free = [place for place in alike if place not in self._uses]
        for place in _nearest(step.key, free) or _nearest(step.key, alike) or self._by_name(step.key):
            info = self._planning.views[place[0]].tensors[place[1]]
            yield self._candidate(*place, info, self._use(place))

    def _use(self, place: Place) -> str:
        """Return a phrase on how the plan uses a source tensor: "not used", "used for head.weight", "left out, …"."""
        if place in self._left_out:
            return f"left out, {self._left_out[place]}"
        return f"used for {self._uses[place]}" if place in self._uses else "not used"

    def _by_name(self, key: str) -> list[Place]:
        """Return the source tensors whose keys are most similar to ``key``, of any shape."""
        every = [(index, name) for index, view in enumerate(self._planning.views) for name in view.tensors]
        self._left -= len(every)
        close = [name for name, _ in nearest(key, [name for _, name in every])]
        return [place for place in every if place[1] in close][:NEAR]


def _differs(have: Sequence[int], want: Sequence[int]) -> bool:
    return tuple(have) != tuple(want) and not is_reshape(have, want)


def _nearest(key: str, places: Sequence[Place]) -> list[Place]:
    """Return the tensors of ``places`` whose keys share the most words with ``key``; rare words count more.

    At most ``NEAR`` tensors are returned.
    """
    if not places:
        return []
    from .match.module_groups import Unit
    from .match.names import Likeness

    units = [Unit(name, order) for order, (_, name) in enumerate(places)]
    wanted = [Unit(key, 0)]
    scores = Likeness(units, wanted)(units, wanted)[:, 0].tolist()
    ranked = sorted(range(len(places)), key=lambda i: -scores[i])
    return [places[i] for i in ranked[:NEAR] if scores[i] > 0]


def explain(plan: Plan, patterns: Sequence[str], planning: PlanningInputs | None = None) -> Explained:
    """Explain the destination tensors whose keys match ``patterns``.

    ``planning`` are the inputs from which the plan was made; without them, the explanations have no alternatives.
    Raises PatternError for a pattern that matches no destination key; its hint says if the pattern matches source keys.
    """
    wanted: set[str] = set()
    for text in patterns:
        wanted.update(_matching(text, plan, planning))
    chooser = Chooser(plan, planning) if planning is not None else None
    names: dict[str, list[str]] = {}
    for step in plan.steps:
        names.setdefault(step.tied_to or step.key, []).append(step.key)
    steps = [step for step in plan.steps if step.key in wanted]
    return Explained(tuple(_explained(plan, step, names[step.tied_to or step.key], chooser) for step in steps))


def _explained(plan: Plan, step: Step, names: Sequence[str], chooser: Chooser | None) -> Explanation:
    """Return the explanation of the tensor that a step of the plan makes; ``names`` are its destination keys."""
    source = plan.sources[step.source] if step.source is not None else None
    given = source is not None and source.role != "destination"
    draws = step.draws and not any(source.role == "destination" for source in plan.sources)
    return Explanation(
        step,
        source=source.name if source is not None and given else "",
        because=_because(step),
        seed=plan.seed if draws else None,
        ties=tuple(name for name in names if name != step.key),
        alternatives=chooser.alternatives(step, names) if chooser is not None else None,
    )


def _because(step: Step) -> str:
    """Return the reason why the tensor of ``step`` does not come from a source; '' if it does."""
    return {
        "missing": "no source has it",
        "excluded": f"left out: {step.rule}",
        "reinit": f"{step.rule} initialises it, even if a source has it",
        "mismatch": f"the shapes differ: {step.rule}",
    }.get(step.reason, "")


def _matching(text: str, plan: Plan, planning: PlanningInputs | None) -> list[str]:
    keys = [step.key for step in plan.steps]
    if text in keys:
        return [text]
    if not text:
        raise PatternError(
            "--explain is empty.", hint="Give a key of the destination, or a pattern that matches its keys."
        )
    pattern = KeyPattern.given(text, "--explain ")
    hits = KeyMatcher([pattern]).hits(keys)[0]
    if hits:
        return hits
    error = unmatched(f"--explain {text}", pattern, keys, "destination")
    hint = _of_a_source(pattern, planning) if planning is not None else ""
    raise PatternError(error.message, hint=hint or error.hint)


def _of_a_source(pattern: KeyPattern, planning: PlanningInputs) -> str:
    """Return a hint for a pattern that matches source keys: the destination key of the first matching source key.

    Returns '' if the pattern matches no source key.
    """
    keys = [key for view in planning.views for key in view.tensors]
    hits = KeyMatcher([pattern]).hits(keys)[0]
    if not hits:
        return ""
    names = _names_of(hits[0], planning.selection())
    placed = [name for name in names if name in planning.target.tensors]
    where = f"in the destination it is {listing(placed)}" if placed else _nowhere(names)
    return f"{escape(hits[0])} is a key of the source; {where}. --explain needs destination keys."


def _nowhere(names: Sequence[str]) -> str:
    return (
        f"it would become {listing(names)}, which the destination does not have"
        if names
        else "the options leave it out"
    )


def _names_of(key: str, selection: Selection) -> list[str]:
    return [name for name, origins in selection.origins.items() if any(origin.key == key for origin in origins)]
