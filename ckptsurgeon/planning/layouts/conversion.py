"""Converts the tensors of a network from one library's layout to another's: finds the operations and rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import count, escape, listing
from ..operations.operation import parse_operations
from ..operations.perform import DerivedSource, perform
from .changes import hits, matched, parsed
from .head_sizes import head_size_note
from .incomplete_layers import check_complete, check_experts
from .layout import Family, Layout, LayoutChange, Numbers, Row, Tensors
from .missing_blocks import check_blocks
from .refusals import check_fit, check_named, check_rotated

__all__ = ["LayoutConversion", "conversion"]

_KEYS = (".weight", ".bias")
"""Endings of names that are whole keys, not modules."""


@dataclass(frozen=True)
class LayoutConversion:
    """A change of a network's layout, the layouts before and after it, and notes on tensors that are left out.

    ``derived`` has the network's tensors after the operations of the change, and before its renaming rules.
    """

    change: LayoutChange
    source: Layout
    target: Layout
    derived: DerivedSource
    notes: tuple[str, ...] = ()


def conversion(
    family: Family,
    source: Layout,
    targets: Sequence[Layout],
    network: DerivedSource,
    config: Mapping[str, Any],
    label: str,
    *,
    is_part: bool = False,
) -> LayoutConversion:
    """Return the conversion of a network, which has the layout ``source``, to one of the layouts ``targets``.

    Of the targets that ``config`` allows, the one that has names for the most tensors is used; of several, one without
    an output head, else the first one. ``config`` has the fields of the model's configuration, as far as it is known.
    ``label`` is the name of the checkpoint in messages. If ``is_part`` is true, tensors may be missing from layers, and
    tensors without a name in the target keep their names. Raises PlanError if a tensor has no name in the target, if a
    layer lacks a tensor that other layers have, or if ``config`` lacks a number that the shapes do not show.
    """
    tensors = network.tensors
    source = _stated(family, source, config)
    if source in targets:
        return LayoutConversion(LayoutChange((), (), ()), source, source, network, (*_nameless(source, tensors),))
    targets = [one for one in targets if one.unfit(config) is None] or targets
    known = _named(source, source.names, source.left, tensors)
    unknown = [key for key in tensors if key not in known]
    if not is_part:
        check_blocks(unknown, source, tensors, label)
        check_named(unknown, family, source, targets[0], label)
        check_complete(family, source, tensors, label)
    numbers = family.numbers(tensors, config)
    found = [_Conversion(source, target, numbers, network, unknown, family.routed) for target in _distinct(targets)]
    best = min(found, key=_rank)
    same = [one for one in found if one.target.name == best.target.name and _rank(one) == _rank(best)]
    unsure = best.target.unsure if len(same) > 1 else ""
    if not is_part:
        check_named(best.odd, family, source, best.target, label)
        if family.routed:
            check_experts(best.routed, best.single, label)
    check_rotated(best.rows, family, config, label)
    check_fit((source, best.target), config, label)
    change = LayoutChange(tuple(best.rows), best.rules, best.exclude)
    sized = head_size_note(tensors, config, numbers, best.rows)
    return LayoutConversion(change, source, best.target, best.derived, (*best.notes, *filter(None, [unsure, sized])))


@notes_of(NoteKind.SERIOUS)
def _nameless(layout: Layout, tensors: Mapping[str, object]) -> Iterator[str]:
    """Yield a note if a network, which has the layout ``layout`` already, contains tensors without a name in it."""
    known = _named(layout, layout.names, layout.left, tensors)
    odd = [key for key in tensors if key not in known]
    if odd:
        has = "has" if len(odd) == 1 else "have"
        yield f"{count(len(odd), 'tensor')} {has} no name in the layout {layout.name}: {listing(odd)}"


def _stated(family: Family, source: Layout, config: Mapping[str, Any]) -> Layout:
    """Return ``source``, or another layout of the same names if the configuration contradicts ``source``.

    ``source`` is also returned if the configuration contradicts all layouts of these names.
    """
    if source.unfit(config) is None:
        return source
    forms = [one for one in family.named(source.name) if one.names == source.names]
    return next((one for one in forms if one.unfit(config) is None), source)


def _distinct(targets: Sequence[Layout]) -> list[Layout]:
    """Return the layouts without those that would write the same tensors as an earlier layout in the list.

    Layouts with ``only_read`` are left out, too, unless there are no others (as for the destination of a transplant).
    """
    found: dict[Hashable, Layout] = {}
    for one in [one for one in targets if not one.only_read] or targets:
        maps = (tuple(named.items()) for named in (one.names, one.tied, one.doubled, one.needed))
        found.setdefault((*maps, one.changes, one.training, one.is_bare), one)
    return [*found.values()]


def _rank(found: _Conversion) -> tuple[int, bool]:
    """Return the number of tensors without a name, and whether the layout has an output head: smaller is better."""
    return found.unnamed, not found.target.is_bare


class _Conversion:
    """The operations and rules that convert a network from one layout to another (the target).

    ``odd`` are the keys of tensors without a name in the target, if no layout allows them to be left out. ``unnamed``
    is the number of all tensors that have no name in the target. ``derived`` has the network after the operations.
    ``unknown`` are keys that the source's layout has no name for. ``single`` has the tensors before the target's
    operations; ``routed`` are patterns of keys in ``single``, of routers and of experts (see ``Family.routed``).
    """

    def __init__(
        self,
        source: Layout,
        target: Layout,
        numbers: Numbers,
        network: DerivedSource,
        unknown: Sequence[str],
        routed: Sequence[str] = (),
    ) -> None:
        self.source, self.target, self.derived = source, target, network
        self.rows: list[Row] = []
        self._unknown = frozenset(unknown)
        self._now = self._known()
        for change in reversed(source.changes):
            self._do(change.back(self._now, numbers, self._at))
        self.single, self.routed = self._now, [self._at(name) for name in routed]
        biases = [*self._add_biases(target)]
        for change in target.changes:
            self._do(change.there(self._now, numbers, self._at))
        added = [*biases, *self._double(target), *self._fill(target)]
        computed = [one for one in source.computed if matched(one, self._now)]
        tied = [self._at(one) for one in target.tied if matched(self._at(one), self._now)]
        self.exclude: tuple[str, ...] = (*computed, *tied)
        spelled = {self._at(ours): theirs for ours, theirs in target.names.items()}
        self.rules = tuple(_rules(spelled, dict(zip(spelled, hits(spelled, self._now), strict=True))))
        covered = _named(target, {ours: self._at(ours) for ours in target.names}, self.exclude, self._now)
        training = dict(zip(source.training, hits(source.training, self._now), strict=True))
        unused = [one for one, keys in training.items() if keys and covered.isdisjoint(keys)]
        self.unnamed = len(self._now) - len(covered)
        covered |= {key for one in unused for key in training[one]}
        others = {one: keys for one in (*source.aside, *target.omits) if (keys := matched(one, self._now))}
        self.exclude += (*unused, *others)
        covered |= {key for keys in others.values() for key in keys}
        self.odd = [*unknown, *(key for key in self._now if key not in covered)]
        settings = [one for one in (source.settings, source.read, target.settings, target.written) if one]
        self.notes = (*self._left(computed, tied, unused), *self._aside(network.tensors), *added, *settings)

    def _do(self, rows: Sequence[Row]) -> None:
        if rows:
            self.rows += rows
            self.derived = perform([self.derived.tensors], parse_operations(rows), after=[self.derived])[0]
            self._now = self._known()

    def _known(self) -> Tensors:
        """Return the tensors after the operations so far, without those that have no name in the source's layout."""
        return {key: info for key, info in self.derived.tensors.items() if key not in self._unknown}

    def _double(self, target: Layout) -> Iterable[str]:
        """Add copies of tensors that the target also stores under a second name, and yield notes on them."""
        for name, other in {**target.needed, **target.doubled}.items():
            now, of = self._at(name), self._at(other)
            if matched(now, self._now) and name in target.doubled:
                yield (
                    f"{escape(now)} and {escape(of)} are one tensor in {target.library}; if they differ in the source, "
                    f"the output computes something else than the source: {target.library} uses only one of them"
                )
            elif matched(of, self._now) and not matched(now, self._now):
                self._do([{"copy": of, "into": [of, now]}])
                yield f"added: {escape(now)}, a copy of {escape(of)}, since {target.library} stores both"

    def _fill(self, target: Layout) -> Iterable[str]:
        """Add the tensors in ``zeros`` of the target that the source leaves out, and yield notes on them."""
        for name, (other, shape) in target.zeros.items():
            now, of = self._at(name), self._at(other)
            if matched(of, self._now) and not matched(now, self._now):
                self._do([{"copy": of, "into": [of, now]}, {"zero": now}, {"reshape": now, "shape": [*shape]}])
                why = f"since {target.library} stores it, and {self.source.library} does not; only training uses it"
                yield f"added: {escape(target.names[name])}, zeros, {why}"

    def _add_biases(self, target: Layout) -> Iterable[str]:
        """Add biases of zeros to the modules in ``biases`` of the target that have none, and yield a note on them."""
        made = []
        for module, dim in target.biases.items():
            weight, bias = self._at(f"{module}.weight"), self._at(f"{module}.bias")
            keys = matched(weight, self._now)
            if keys and not matched(bias, self._now):
                self._do(_zero_bias(weight, bias, dim, len(self._now[keys[0]].shape)))
                made.append(bias)
        if made:
            yield (
                f"added: {listing(made)}, zeros, since {target.library} has these biases, and the source does not; the "
                "network computes the same"
            )

    def _at(self, name: str) -> str:
        """Return the name of a tensor or module in the source's layout; ``name`` is its name in the first layout.

        The first layout of a family is its own layout.
        """
        module, rest = name, ""
        while module:
            if module in self.source.names:
                return f"{self.source.names[module]}{rest}"
            module, dot, last = module.rpartition(".")
            rest = f"{dot}{last}{rest}"
        return name

    def _left(self, computed: Sequence[str], tied: Sequence[str], training: Sequence[str]) -> Iterable[str]:
        if computed:
            yield f"left out: {listing(computed)}, which {self.target.library} computes"
        for one in tied:
            name = next(ours for ours in self.target.tied if self._at(ours) == one)
            to = self._at(self.target.tied[name])
            yield (
                f"left out: {escape(one)}, since {self.target.library} uses {escape(to)} in its place; if the two "
                "differ, the output computes something else"
            )
        if training:
            yield (
                f"left out: {listing(training)}, which only training uses: {self.target.library} has no name for "
                f"{'it' if len(training) == 1 else 'them'}"
            )

    def _aside(self, tensors: Tensors) -> Iterable[str]:
        """Yield a note for each reason why tensors in ``omits`` or ``aside`` of the layouts are left out.

        A note lists the patterns of ``omits`` or ``aside`` that match keys, and says how many tensors they match.
        ``tensors`` are the tensors before the operations. A reason that applies to none of them is looked for in the
        tensors that the operations made.
        """
        reasons: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
        why = {**self.target.omits, **self.source.aside}
        for keys in (tensors, self._now):
            told = {*reasons}
            for one, hit in zip(why, hits(why, keys), strict=True):
                if hit and why[one] not in told:
                    reasons[why[one]][one] = hit
        for reason, found in reasons.items():
            left = {key for hit in found.values() for key in hit}
            more = "" if {*found} == left else f" ({count(len(left), 'tensor')})"
            yield f"left out: {listing([*found])}{more}, {reason}"


def _zero_bias(weight: str, bias: str, dim: int, dims: int) -> list[Row]:
    """Return the operations that make a bias of zeros for the outputs of ``weight``.

    ``dim`` is the dimension of the outputs in ``weight``, which has ``dims`` dimensions.
    """
    column: list[Row] = [{"slice": bias, "dim": 1 - dim, "end": 1}, {"reshape": bias, "shape": [-1]}]
    return [{"copy": weight, "into": [weight, bias]}, *(column if dims > 1 else []), {"zero": bias}]


def _rules(spelled: Mapping[str, str], hits: Mapping[str, Collection[str]]) -> Iterable[str]:
    """Yield the rules FROM=TO that rename the keys; ``spelled`` maps each pattern FROM to its TO.

    ``hits`` has the keys that each pattern matches. A rule is left out if earlier patterns match all of its keys, or if
    it keeps the keys and no later rule changes them.
    """
    renamed: set[str] = set()
    for place, (now, theirs) in enumerate(spelled.items()):
        if not renamed.issuperset(hits[now]) and (now != theirs or _is_changed_later(now, place, spelled, hits)):
            yield f"{now}={theirs}"
        renamed.update(hits[now])


def _is_changed_later(name: str, place: int, spelled: Mapping[str, str], hits: Mapping[str, Collection[str]]) -> bool:
    """Return whether a rule after ``place`` would give a new name to a key that the pattern ``name`` matches."""
    if "{" in name:  # only rules for single layers come before rules for all layers
        return False
    keys = frozenset(hits[name])
    later = islice(spelled.items(), place + 1, None)
    return any("{" in now and now != theirs and not keys.isdisjoint(hits[now]) for now, theirs in later)


def _named(layout: Layout, names: Mapping[str, str], others: Iterable[str], keys: Collection[str]) -> set[str]:
    """Return the keys that a layout has names for, and the keys that match the patterns ``others``.

    ``names`` maps each name of the family to a pattern of the present keys. A name of the family that is a whole key,
    such as ``text_projection.weight``, must match a whole key, and not only its beginning.
    """
    made = [change.made for change in layout.changes if change.made]
    found = {key for hit in hits((*made, *others), keys) for key in hit}
    for (ours, theirs), hit in zip(names.items(), hits(names.values(), keys), strict=True):
        found |= set(_whole(theirs, hit) if ours.endswith(_KEYS) else hit)
    return found


def _whole(name: str, keys: Iterable[str]) -> list[str]:
    pattern = parsed(name)
    return [key for key in keys if (found := pattern.captures(key)) and not found.rest]
