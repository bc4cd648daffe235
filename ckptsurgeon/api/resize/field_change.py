"""Finds the change of a network that a changed field needs, by the role of the field (width, heads, experts)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...destinations.module_kinds import SCALE
from ...errors import ConfigError, PlanError
from ...planning.resizing.averaged_width import averaged_width
from ...planning.resizing.axes import Axis, Network, changed_axes, indices_text
from ...planning.resizing.change import Change
from ...planning.resizing.depth import NORM_AFTER, changed_depth, has_final_norm, lists_of
from ...planning.resizing.fields import USED_EXPERTS, role_of
from ...planning.resizing.new_width import AVERAGED, NormForm, added_width, check_norms, with_epsilons
from ...planning.resizing.repeat import NO_NOISE, pooled_heads, repeated, widened_channels
from ...planning.resizing.select import by_layer, check_channels, check_units, groups_of, largest, selected
from ...util.text import escape
from .asked_fields import INIT, TIES, AskedFields
from .checks import (
    check_head_sizes,
    check_identity,
    check_used,
    has_heads_in_pairs,
    heads_of_one_size,
    scales_output,
    stays_tied,
)
from .choices import Choices
from .expert_groups import check_groups, groups_kept, has_groups
from .layer_lists import chosen_layers, influences_of
from .merging import merged_groups
from .scores import Measures

__all__ = ["FieldChange", "is_averaged"]

UNTIE = "Untie them: --set tie_word_embeddings=false."
_LAST_NORM, _OUTPUT_LAYER = "decoder.final_layer_norm.weight", "lm_head.weight"
_NORM_FIRST = ("do_stable_layer_norm", "do_layer_norm_before")
"""Fields of wav2vec 2.0 and OPT that say that layers normalise their inputs, not their outputs."""


@dataclass(frozen=True)
class FieldChange:
    """Finds the change from the network ``before`` to ``after``, whose configurations differ in some fields.

    ``constants`` returns the values that the modules of both networks have besides their weights, and ``norms`` the
    kinds of the norms of both networks.
    """

    asked: AskedFields
    choices: Choices
    measures: Measures
    constants: Callable[[], tuple[Mapping[str, object], Mapping[str, object]]]
    norms: Callable[[], tuple[Mapping[str, NormForm], Mapping[str, NormForm]]]
    before: Network
    after: Network

    def change(self, role: str, name: str) -> Change:
        """Return the change for the field ``name`` with the role ``role``.

        Raises ConfigError if the user's options do not fit the change, PlanError if the network cannot be changed in
        this way.
        """
        numbers, before, after = self.asked.numbers(name), self.before, self.after
        if role == "vocabulary":
            assert self.choices.vocabulary is not None
            return self.choices.vocabulary.change
        if role == "depth":
            layers = chosen_layers(self.asked, self.choices, name)
            paths = lists_of(before, after, numbers)
            after_sum = self._normalises_after(name) or not has_final_norm(paths, before)
            if any(layer.is_identity for layer in layers):
                check_identity(self.asked.beside(name))
            return changed_depth(
                name, layers, paths, before, after, numbers, normalises_after=after_sum,
                influences=influences_of(self.asked, self.choices, name),
            )  # fmt: skip
        if role == "heads" and not self.asked.is_pinned(name):
            self._check_sizes(name, numbers)
        axes = changed_axes(role, name, before, after)
        if role in ("heads", "width"):
            check_used(role, name, axes)
        if role == "channels":
            check_channels(name, groups_of(axes))
        if role == "experts":
            self._check_used_experts(name)
            if self.choices.merge:
                parts = groups_kept(self.asked, name)
                return merged_groups(name, groups_of(axes), numbers, self.choices, self.measures, parts)
        if role == "width":
            check_head_sizes(name, *self.constants())
            return self._wider(name, axes, numbers)
        if numbers[1] > numbers[0]:
            if role == "channels":
                return widened_channels(name, axes, numbers, self.choices.new_channels or INIT, self.choices.noise)
            noise = self.choices.noise if role == "heads" else NO_NOISE
            change = repeated(name, axes, numbers, noise=noise)
            if role == "heads" and has_heads_in_pairs(self.constants()[0]):
                change.is_exact = False
                change.said += ", but this network subtracts heads in pairs, and other heads form pairs now"
            if role == "kv_heads" and self._shares_keys(name, numbers[0]):
                change.unlike = frozenset(axis.key for axis in axes)
            return self._routed(change, name, numbers) if role == "experts" else change
        if role == "kv_heads":
            return pooled_heads(name, axes, numbers)
        return self._fewer(role, name, axes, numbers)

    def _shares_keys(self, name: str, keys: int) -> bool:
        """Return whether, in the source, several query heads share one key head; ``keys`` is the number of key heads.

        If so, and key heads are copied, query heads that shared a key head will read different copies of it. ``name``
        is the field for key heads.
        """
        part = self.asked.beside(name)
        return all(part[one] != keys for one in part if role_of(one) == "heads" and type(part[one]) is int)

    def _check_sizes(self, name: str, numbers: tuple[int, int]) -> None:
        """Raise PlanError if the new number of heads in the field ``name`` would change the size of each head.

        ``numbers`` are the old and the new number.
        """
        try:
            axes = changed_axes("heads", name, self.before, self.after)
        except PlanError:
            axes = []
        part = self.asked.beside(name)
        width = next((one for one in part if role_of(one) == "width"), "")
        wrong = heads_of_one_size(name, numbers, axes, width) if width else None
        if wrong is not None:
            raise wrong

    def _normalises_after(self, name: str) -> bool:
        """Return whether the layers normalise after the residual addition: the sum of a layer's input and its result.

        ``name`` is a field in the section (nested configuration) of these layers.
        """
        part = self.asked.beside(name)
        return any(part.get(one) is False for one in _NORM_FIRST) or any(map(NORM_AFTER.search, self.before.tensors))

    def _check_ties(self, name: str, axes: Sequence[Axis]) -> None:
        """Raise PlanError if a tied output layer would make outputs larger, because the width is repeated."""
        wider = {axis.key for axis in axes}
        for alias, owner in self.after.ties.items():
            kinds = {self.before.kinds.get(alias), self.before.kinds.get(owner)}
            if wider & {alias, owner} and "linear" in kinds and len(kinds) > 1:
                is_set = self.asked.new.get(TIES) is False or stays_tied(self.asked.before)
                kinds_of_norms = {norm.kind for norm in self.norms()[0].values()}
                zeros = (
                    ""
                    if kinds_of_norms & {"mean", "bare"} and not is_averaged(self.asked.before, name)
                    else " Or add dimensions that are 0 at first: --new-width init."
                )
                raise PlanError(
                    f"{name}: {escape(alias)} is tied to {escape(owner)}, so the outputs would be {_times(axes)} times "
                    "as large.",
                    hint=("This network always ties the two." if is_set else UNTIE) + zeros,
                )

    def _wider(self, name: str, axes: Sequence[Axis], numbers: tuple[int, int]) -> Change:
        old, new = numbers
        if new < old:
            raise PlanError(
                f"{name} {old} to {new}: a width can only be made larger.",
                hint="To make the model smaller, remove channels, heads or layers.",
            )
        scales = self._scales(axes)
        if self.asked.way_of(name) == INIT:
            change = self._added(name, axes, numbers, scales)
        else:
            self._check_ties(name, axes)
            part = self.asked.beside(name)
            heads = next((part[one] for one in part if role_of(one) == "heads" and type(part[one]) is int), 1)
            change = repeated(name, axes, numbers, old // heads if old % heads == 0 else 1, self.choices.noise)
            change.said += " (arXiv 2409.12903)"
        change.rows += [{"scale": key, "by": by} for key, by in scales.items()]
        return change

    def _scales(self, axes: Sequence[Axis]) -> dict[str, float]:
        """Return {key of an embedding: factor by which its values are multiplied}.

        Some networks multiply embeddings by a scale that depends on the width. The factor is old scale / new scale.
        """
        first, last = self.constants()
        found = {}
        for axis in axes:
            scale = f"{axis.key.rpartition('.')[0]}.{SCALE}"
            one, other = first.get(scale), last.get(scale)
            if isinstance(one, float) and isinstance(other, float) and one != other:
                found[axis.key] = one / other
        return found

    def _added(self, name: str, axes: Sequence[Axis], numbers: tuple[int, int], scales: Mapping[str, float]) -> Change:
        """Return the change to a larger width whose new dimensions are 0 at first.

        ``numbers`` are the old and the new width, and ``scales`` is the result of ``_scales``. Raises PlanError if the
        new number of query heads cannot share the key heads evenly.
        """
        first, last = self.norms()
        if is_averaged(self.asked.before, name):
            return self._with_epsilons(averaged_width(name, axes, numbers, first), name, {})
        check_norms(name, first, last, numbers)
        part = self.asked.beside(name)
        counts = {role_of(one): part[one] for one in part if type(part[one]) is int and part[one]}
        heads = {"heads": counts.get("heads", 1), "kv_heads": counts.get("kv_heads", counts.get("heads", 1))}
        groups = 1 if self.asked.is_pinned(name) or self.asked.has_own_keys(name) else heads["kv_heads"]
        queries = heads["heads"] * numbers[1] // numbers[0]
        if queries % groups:
            raise PlanError(
                f"{name}: {groups} key heads cannot be shared evenly by {queries} query heads.",
                hint="Change the number of key and value heads in another command.",
            )
        change = added_width(name, axes, numbers, first, self._last_norms(name, scales, numbers), groups)
        return self._with_epsilons(change, name, heads)

    def _with_epsilons(self, change: Change, name: str, heads: Mapping[str, int]) -> Change:
        """Return ``change``, of the width ``name``, with the operations and text that new epsilons of norms require."""
        for field in self.asked.epsilons_of(name):
            change.said += f", {field} becomes {self.asked.new[field]:.4g}"
        return with_epsilons(change, *self.norms(), self.asked.numbers(name), self.before, heads)

    def _last_norms(self, name: str, scales: Mapping[str, float], numbers: tuple[int, int]) -> dict[str, float]:
        """Return {key of the last norm: factor for its weights} that keeps the scale of the output layer's inputs.

        The scale would change if the output layer is tied to embeddings that are multiplied by a factor (``scales``)
        and, in T5, with the width. Raises PlanError if it is not known which norm is the last.
        """
        found = {}
        if _OUTPUT_LAYER in self.after.tensors and scales_output(self.asked.before):
            found[_LAST_NORM] = (numbers[1] / numbers[0]) ** 0.5
        for alias, owner in self.after.ties.items():
            if owner in scales and "linear" in (self.before.kinds.get(alias), self.before.kinds.get(owner)):
                norm = f"{owner.removesuffix('embed_tokens.weight')}norm.weight"
                if norm not in self.after.tensors or owner == norm:
                    raise PlanError(
                        f"{name}: {escape(alias)} is tied to {escape(owner)}, but at the new width the two must be "
                        "scaled by different factors.",
                        hint=UNTIE,
                    )
                found[norm] = 1 / scales[owner]
        return found

    def _check_used_experts(self, name: str) -> None:
        """Raise ConfigError if more experts would be used than there are."""
        inside, part = name.rpartition(".")[0], self.asked.beside(name)
        for used in USED_EXPERTS:
            path = f"{inside}.{used}" if inside else used
            number = self.asked.new.get(path, part.get(used))
            if type(number) is int and number > self.asked.new[name]:
                raise ConfigError(
                    f"{used} is {number}, more than the {self.asked.new[name]} experts of the output.",
                    hint=f"Add --set {path}={self.asked.new[name]}.",
                )

    def _routed(self, change: Change, name: str, numbers: tuple[int, int]) -> Change:
        """Return ``change``, which repeats experts, with ``is_exact`` set: true if the outputs stay the same.

        They stay the same if the number of experts that each token uses grows by the same factor as the number of all
        experts, and the router does not divide the experts into groups. ``name`` is the field with the number of all
        experts, and ``numbers`` are its old and its new value.
        """
        inside, part = name.rpartition(".")[0], self.asked.beside(name)
        if not any(type(part.get(used)) is int for used in USED_EXPERTS):
            change.is_exact = None  # it is not known how many experts each token uses
        for used in USED_EXPERTS:
            path, old = f"{inside}.{used}" if inside else used, part.get(used)
            if type(old) is int and self.asked.new.get(path, old) * numbers[0] != old * numbers[1]:
                change.is_exact = False
                change.said += (
                    f"; to keep the outputs equal, {used} would have to be {old * numbers[1] / numbers[0]:g}, not "
                    f"{self.asked.new.get(path, old)}"
                )
        if has_groups(self.asked, name):
            change.is_exact = False  # the router chooses groups by their best experts, which now occur several times
        return change

    def _fewer(self, role: str, name: str, axes: Sequence[Axis], numbers: tuple[int, int]) -> Change:
        old, new = numbers
        check_units(name, axes, numbers)
        groups = groups_of(axes)
        listed = self.choices.kept.get(name)
        if listed is not None:
            if len(listed) != new or listed[-1] >= old:
                raise ConfigError(
                    f"--keep {name} lists {len(listed)} numbers, up to {listed[-1]}; it must list "
                    f"{new} numbers below {old}."
                )
            within = self._heads_of_keys(name, old, new) if role == "heads" else 1
            if role == "experts":
                check_groups(name, numbers, listed, groups_kept(self.asked, name))
            shares = {sum(index * within // old == part for index in listed) for part in range(within)}
            if len(shares) > 1:
                raise ConfigError(
                    f"--keep {name} must keep the same number of query heads for each of the {within} key heads.",
                    hint=f"Each key head is shared by {old // within} query heads that follow each other: "
                    f"keep {new // within} of them.",
                )
            return selected(name, groups, [listed] * len(groups), numbers, f"those in the list are kept ({new})")
        within = self._heads_of_keys(name, old, new) if role == "heads" else 1
        if role == "experts":
            within = groups_kept(self.asked, name)
            check_groups(name, numbers, None, within)
        kept = [largest(self.measures.scores(role, axes, old), new, within) for axes in groups]
        why = (
            f"those that contribute most according to {escape(self.choices.by)}"
            if self.choices.by
            else "those with the largest weights"
        )
        if role == "experts" and within > 1:
            why += f", equally many of each of the {within} groups of the router,"
        return selected(name, groups, kept, numbers, f"{why} are kept{self._which(role, groups, kept)}")

    def _which(self, role: str, groups: Sequence[Sequence[Axis]], kept: Sequence[Sequence[int]]) -> str:
        """Return a text that lists the kept heads or experts of the first layers; '' for channels, which are many."""
        if role == "channels":
            return ""
        return f" ({by_layer(groups, [indices_text([(one, one + 1) for one in units]) for units in kept])})"

    def _heads_of_keys(self, name: str, old: int, new: int) -> int:
        """Return the number of groups of query heads in each of which the same number of heads must be kept.

        The query heads of a group share a key head, so there are as many groups as key heads. There is only one group
        if no field has the number of key heads, or if each query head has its own key head and both numbers change.
        ``name`` is the field for query heads, which changes from ``old`` to ``new``.
        """
        part = self.asked.beside(name)
        found = next((part[one] for one in part if role_of(one) == "kv_heads" and type(part[one]) is int), 1)
        path = next((one for one in self.asked.new if role_of(one) == "kv_heads"), "")
        return 1 if found == old and path else found


def is_averaged(fields: Mapping[str, object], width: str) -> bool:
    """Return whether a model of this type gets new dimensions that are the mean of the old ones, if ``width`` grows."""
    return AVERAGED.get(str(fields.get("model_type"))) == width.rpartition(".")[0]


def _times(axes: Sequence[Axis]) -> int:
    return axes[0].after // axes[0].before
