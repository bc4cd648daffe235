"""Changes the fields of a configuration one after another, and finds which tensors each of them changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import SCALE, constants, module_kinds
from ...errors import ConfigError, PlanError
from ...planning.resizing.axes import Axis, Network, changed_axes
from ...planning.resizing.change import Change
from ...planning.resizing.depth import (
    INFLUENTIAL,
    NORM_AFTER,
    Layer,
    changed_depth,
    has_final_norm,
    layers_of,
    lists_of,
)
from ...planning.resizing.fields import ORDER, USED_EXPERTS, role_of
from ...planning.resizing.repeat import pooled_heads, repeated, widened_channels
from ...planning.resizing.select import check_channels, check_units, groups_of, largest, selected
from ...planning.target import TargetSpec
from ...util.text import brief_repr, escape, listing
from ...vocabulary.replacement import NewVocabulary
from .arguments import at_path, nested
from .checks import (
    check_heads,
    check_identity,
    check_ties,
    check_used,
    check_values,
    heads_of_one_size,
    layers_apart,
    numbers_apart,
)
from .vocabulary import VocabularyStep

__all__ = ["Choices", "Scores", "Stages"]

Scores = Callable[[str, Sequence[Axis], int], list[float]]
"""A function that returns the score of each unit along some axes, from what the units are ("experts")."""
_HEAD_SIZE = ("head_dim", "d_kv")
_NORM_FIRST = ("do_stable_layer_norm", "do_layer_norm_before")
"""Fields of wav2vec 2.0 and of OPT that say that layers normalise their input, not what they return."""
TESTED = (
    "bart", "bloom", "gemma2", "gpt_neox", "granitemoeshared", "helium", "hunyuan_v1_moe", "minimax", "mpnet", "xglm",
    "bert", "clip", "deepseek_v3", "gemma3_text", "gpt2", "gpt_oss", "llama", "mistral", "mixtral", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "t5", "vit", "wav2vec2", "whisper",
)  # fmt: skip
"""The types of models whose outputs the tests compare before and after each change that is said to keep them."""
GENERATION = "generation_config.json"
TIES = "tie_word_embeddings"
"""The field that ties the output layer to the embeddings."""
_WITHOUT_EXPERTS = "mlp_only_layers"
"""The field that lists the layers without experts."""
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")
"""Fields that say how many of the first layers have no experts."""


@dataclass(frozen=True)
class Choices:
    """What the user chose: ``layers`` as text, lists of what is ``kept`` by field, and how channels are added.

    ``vocabulary`` is the change of the vocabulary, if there is one.
    """

    layers: str = ""
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    new_channels: str = ""
    by: str = ""
    influences: Callable[[int], list[float]] | None = None
    """A function that returns the influence of each layer of a list of so many, if statistics are given."""
    vocabulary: VocabularyStep | None = None


class Stages:
    """The change of a network from one configuration to another, field by field.

    ``fields`` are the new values by dotted path, with their main names. Raises ConfigError and PlanError.
    """

    on_missing = "error"

    def __init__(self, base: Resizable, fields: Mapping[str, Any], choices: Choices, scores: Scores) -> None:
        self._base, self._choices, self._scores = base, choices, scores
        self._before = base.fields()
        self._fields = dict(fields)
        self._done: dict[str, Any] = {}
        self._check_fields()
        self._fields.update(choices.vocabulary.fields if choices.vocabulary else {})
        self._pin_heads()
        self._values: dict[int, tuple[TargetSpec, Mapping[str, object]]] = {}

    @cached_property
    def first(self) -> TargetSpec:
        """The network of the source."""
        return self._base.target({})

    @cached_property
    def last(self) -> TargetSpec:
        """The network of the output."""
        return self._base.target(self.overrides, self._vocabulary)

    @property
    def _vocabulary(self) -> NewVocabulary | None:
        return self._choices.vocabulary.new if self._choices.vocabulary else None

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """All fields with other values than in the source's config.json, nested."""
        return nested({**self._fields, **self._lists()}, self._before)

    @property
    def is_tested(self) -> bool:
        """Whether the tests compare the outputs of networks of this type."""
        return self._before.get("model_type") in TESTED

    @property
    def said(self) -> list[str]:
        """Notes on fields that are changed without a change of tensors, and on lists of layers."""
        changed = [name for name in self._fields if at_path(self._before, name) != self._fields[name]]
        names = [name for name in changed if not role_of(name) and name != TIES]
        found = [f"no tensor depends on {listing(names, where='')}: changed in config.json alone"] if names else []
        ids = [name for name in names if name.endswith("_token_id")]
        if ids and os.path.isfile(os.path.join(self._base.folder, GENERATION)):
            found.append(f"{GENERATION} has its own {listing(ids, where='')}, which generate() reads")
        lists = listing(list(self._lists()), where="")
        return [*found, f"changed with the layers in config.json: {lists}"] if lists else found

    def changes(self) -> Iterator[Change]:
        """Yield the change that each field needs, in the order in which they are made."""
        kinds = module_kinds(self.first)
        before = _network(self.first, kinds)
        before = self._others(before, kinds)
        check_values(self._fields, self._base.fields(self.overrides, self._vocabulary))
        previous = self._target() if self._done else self.first
        for role, names in self._steps():
            for name in names:
                self._done[name] = self._fields[name]
            target = self.last if self._done.keys() == self._fields.keys() else self._target()
            after = _network(target, kinds if role != "depth" else {})
            self._pair = previous, target
            yield self._with_values_compared(self._change(role, names, before, after), role, names, before, after)
            previous = target
            before = Network(after.tensors, kinds, after.ties) if role != "depth" else before

    def _constants(self) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Return the values that modules have beside their weights, before and after the present change."""
        for one in self._pair:
            self._values.setdefault(id(one), (one, constants(one)))
        first, last = (self._values[id(one)][1] for one in self._pair)
        return first, last

    def _with_values_compared(
        self, change: Change, role: str, names: Sequence[str], before: Network, after: Network
    ) -> Change:
        """Return a change that says if the network computes with other numbers after it."""
        if role == "depth":
            numbers = at_path(self._before, names[0]), self._fields[names[0]]
            paths = lists_of(before, after, numbers)
            apart = layers_apart(*self._constants(), paths, self._layers(names[0]))
        elif change.is_exact:
            scaled = [key.rpartition(".")[0] for key, kind in before.kinds.items() if "scaled" in kind]
            apart = numbers_apart(*self._constants(), scaled if role == "width" else ())
        else:
            apart = []
        if apart:
            change.is_exact = False
            change.said += f", but {listing(apart, 3, where='')} {'differs' if len(apart) == 1 else 'differ'}"
        return change

    # What is changed first, and what together.

    def _check_fields(self) -> None:
        for name, value in list(self._fields.items()):
            old = at_path(self._before, name)
            if value == old:
                raise ConfigError(f"--set {escape(name)}={brief_repr(value)}: it has this value already.")
            if role_of(name) and not (type(value) is int and value > 0):
                raise ConfigError(f"--set {escape(name)}={brief_repr(value)} is not a number above 0.")
            if role_of(name) and type(old) is not int:
                raise ConfigError(f"the configuration has no number {escape(name)} that could be changed.")
        unused = [name for name in self._choices.kept if name not in self._fields]
        if unused:
            raise ConfigError(f"--keep {escape(unused[0])}: this field is not changed.", hint="Set it with --set.")
        check_ties(TIES, self._before, is_untied=self._fields.get(TIES) is False)
        for inside in {name.rpartition(".")[0] for name in (*self._of("heads"), *self._of("kv_heads"))}:
            own = {name.rpartition(".")[2]: one for name, one in self._fields.items() if _inside(name) == inside}
            check_heads(self._beside(f"{inside}." if inside else ""), own)
        if self._choices.layers and not self._of("depth"):
            raise ConfigError("--layers is only for another number of layers.", hint="Set it with --set.")
        if self._choices.new_channels and not any(self._grows(name) for name in self._of("channels")):
            raise ConfigError("--new-channels is only for more channels.", hint="Leave it out.")

    def _of(self, role: str) -> list[str]:
        return [name for name in self._fields if role_of(name) == role]

    def _grows(self, name: str) -> bool:
        return bool(self._fields[name] > at_path(self._before, name))

    def _pin_heads(self) -> None:
        """Keep the size of a head, where it is a field, if width or number of heads change."""
        for name in (*self._of("heads"), *self._of("width")):
            for size in _HEAD_SIZE:
                path, part = name.rpartition(".")[0] + f".{size}" if "." in name else size, self._beside(name)
                if size in part and path not in self._fields:
                    self._fields[path] = part[size] or _head_size(part)

    def _is_pinned(self, name: str) -> bool:
        inside = name.rpartition(".")[0]
        return any((f"{inside}.{size}" if inside else size) in self._fields for size in _HEAD_SIZE)

    def _steps(self) -> Iterator[tuple[str, list[str]]]:
        """Yield what fields count, and the fields of one change, in order."""
        joined: set[str] = set()
        for role in ORDER:
            for name in self._of(role):
                if name in joined:
                    continue
                beside = [name]
                if role == "width":
                    self._check_heads(name)
                    beside += [one for one in self._of("heads") if not self._is_pinned(one)]
                elif role == "kv_heads" and (heads := self._heads_beside(name)):
                    beside.insert(0, heads)
                joined.update(beside)
                yield role_of(beside[0]), beside

    def _heads_beside(self, name: str) -> str:
        """Return the field with the number of heads of queries that changes as ``name``, of keys and values, does."""
        for heads in self._of("heads"):
            same = heads.rpartition(".")[0] == name.rpartition(".")[0]
            if same and (at_path(self._before, heads), self._fields[heads]) == (
                at_path(self._before, name),
                self._fields[name],
            ):
                return heads
        return ""

    def _check_heads(self, width: str) -> None:
        """Raise ConfigError if heads would get another size with the width."""
        if self._is_pinned(width):
            return
        inside = width.rpartition(".")[0]
        part = at_path(self._before, inside) if inside else self._before
        heads = [name for name in part if role_of(name) == "heads" and type(part[name]) is int]
        times = self._fields[width] / at_path(self._before, width)
        for name in heads:
            path = f"{inside}.{name}" if inside else name
            if self._fields.get(path, part[name]) != part[name] * times:
                needed = part[name] * times
                hint = (
                    f"Add --set {path}={int(needed)}." if needed == int(needed) else "Choose a multiple of the width."
                )
                raise ConfigError(f"with {width}={self._fields[width]}, each head would get another size.", hint=hint)

    def _lists(self) -> dict[str, Any]:
        """Return lists with an entry for each layer (``layer_types``), as long as the new number of layers needs."""
        found: dict[str, Any] = {}
        for name in self._of("depth"):
            old, inside = at_path(self._before, name), name.rpartition(".")[0]
            layers = self._layers(name)
            part = at_path(self._before, inside) if inside else self._before
            for one, value in part.items():
                path = f"{inside}.{one}" if inside else one
                if isinstance(value, list) and len(value) == old and path not in self._fields and _is_of_layers(one):
                    found[path] = [value[layer.source] for layer in layers]
                if one == _WITHOUT_EXPERTS and value and path not in self._fields:
                    found[path] = [number for number, layer in enumerate(layers) if layer.source in value]
                if one in _DENSE_FIRST and type(value) is int and path not in self._fields:
                    dense = [layer.source < value for layer in layers]
                    if sum(dense) != value and dense == sorted(dense, reverse=True):
                        found[path] = sum(dense)
        return found

    def _target(self) -> TargetSpec:
        return self._base.target(nested(self._done, self._before))

    def _others(self, before: Network, kinds: Mapping[str, str]) -> Network:
        """Apply the fields that count nothing, and return the network; raises PlanError if they change shapes."""
        names = [name for name in self._fields if not role_of(name)]
        self._done.update({name: self._fields[name] for name in names})
        if not names:
            return before
        after = _network(self._target() if len(names) < len(self._fields) else self.last, kinds)
        changed = [
            key
            for key, info in before.tensors.items()
            if key in after.tensors and after.tensors[key].shape != info.shape
        ]
        changed += [
            key for key in {**before.tensors, **after.tensors} if (key in before.tensors) != (key in after.tensors)
        ]
        if changed:
            raise PlanError(
                f"it is not known how {listing(changed)} change with {listing(names, where='')}.",
                hint="Only widths, depths and numbers of heads, channels and experts can be changed.",
            )
        return after

    # The change of one field.

    def _change(self, role: str, names: Sequence[str], before: Network, after: Network) -> Change:
        name = names[0]
        numbers = at_path(self._before, name), self._fields[name]
        if role == "vocabulary":
            assert self._choices.vocabulary is not None
            return self._choices.vocabulary.change
        if role == "depth":
            layers = self._layers(name)
            paths = lists_of(before, after, numbers)
            after_sum = self._normalises_after(name, before) or not has_final_norm(paths, before)
            if any(layer.is_identity for layer in layers):
                check_identity(self._beside(name))
            return changed_depth(name, layers, paths, before, numbers, normalises_after=after_sum)
        if role == "heads" and not self._is_pinned(name):
            self._check_sizes(name, numbers, before, after)
        axes = changed_axes(role, name, before, after)
        if role in ("heads", "width"):
            check_used(role, name, axes)
        if role == "channels":
            check_channels(name, groups_of(axes))
        if role == "experts":
            self._check_used_experts(name)
        if role == "width":
            self._check_ties(name, axes, before, after)
            return self._wider(name, axes, numbers)
        if numbers[1] > numbers[0]:
            if role == "channels":
                return widened_channels(name, axes, numbers, self._way(axes))
            change = repeated(name, axes, numbers)
            return self._routed(change, name, numbers) if role == "experts" else change
        if role == "kv_heads":
            return pooled_heads(name, axes, numbers)
        return self._fewer(role, name, axes, numbers)

    def _layers(self, name: str) -> list[Layer]:
        """Return the layers of the output in the list whose length is the field ``name``."""
        numbers = at_path(self._before, name), self._fields[name]
        if self._choices.layers != INFLUENTIAL:
            return layers_of(self._choices.layers, *numbers)
        if self._choices.influences is None or numbers[1] > numbers[0]:
            raise ConfigError(
                f"--layers {INFLUENTIAL} is for fewer layers, and needs statistics.",
                hint="Make them with ckpt stats, and give them with --by.",
            )
        return [Layer(number) for number in largest(self._choices.influences(numbers[0]), numbers[1])]

    def _check_sizes(self, name: str, numbers: tuple[int, int], before: Network, after: Network) -> None:
        """Raise PlanError if heads would get another size."""
        try:
            axes = changed_axes("heads", name, before, after)
        except PlanError:
            axes = []
        part = self._beside(name)
        width = next((one for one in part if role_of(one) == "width"), "")
        wrong = heads_of_one_size(name, numbers, axes, width) if width else None
        if wrong is not None:
            raise wrong

    def _normalises_after(self, name: str, network: Network) -> bool:
        """Return whether each layer normalises the sum of its input and what it adds."""
        part = self._beside(name)
        return any(part.get(one) is False for one in _NORM_FIRST) or any(map(NORM_AFTER.search, network.tensors))

    def _beside(self, name: str) -> Mapping[str, Any]:
        """Return the source's fields in the part of the configuration that has the field ``name``."""
        inside = name.rpartition(".")[0]
        part = at_path(self._before, inside) if inside else self._before
        assert isinstance(part, Mapping)
        return part

    def _check_ties(self, name: str, axes: Sequence[Axis], before: Network, after: Network) -> None:
        """Raise PlanError if an output layer is tied to embeddings, which count once, while it has to count less."""
        wider = {axis.key for axis in axes}
        for alias, owner in after.ties.items():
            kinds = {before.kinds.get(alias), before.kinds.get(owner)}
            if wider & {alias, owner} and "linear" in kinds and len(kinds) > 1:
                is_set = self._fields.get(TIES) is False
                raise PlanError(
                    f"{name}: {escape(alias)} is tied to {escape(owner)}, so the outputs would be {_times(axes)} times "
                    "as large.",
                    hint="This network always ties the two: its width cannot be changed."
                    if is_set
                    else "Untie them: --set tie_word_embeddings=false.",
                )

    def _way(self, axes: Sequence[Axis]) -> str:
        is_fused = any((axis.parts, axis.block) != (1, 1) for axis in axes)
        return self._choices.new_channels or ("copy" if is_fused else "init")

    def _wider(self, name: str, axes: Sequence[Axis], numbers: tuple[int, int]) -> Change:
        old, new = numbers
        if new < old:
            raise PlanError(f"{name} {old} to {new}: a width can only grow.", hint="Prune channels, heads or layers.")
        part = self._beside(name)
        heads = next((part[one] for one in part if role_of(one) == "heads" and type(part[one]) is int), 1)
        unit = old // heads if old % heads == 0 else 1
        change = repeated(name, axes, numbers, unit)
        first, last = self._constants()
        for axis in axes:
            scale = f"{axis.key.rpartition('.')[0]}.{SCALE}"
            one, other = first.get(scale), last.get(scale)
            if isinstance(one, float) and isinstance(other, float) and one != other:
                change.rows.append({"scale": axis.key, "by": one / other})
        change.said += " (arXiv 2409.12903)"
        return change

    def _check_used_experts(self, name: str) -> None:
        """Raise ConfigError if more experts would be used than there are."""
        inside, part = name.rpartition(".")[0], self._beside(name)
        for used in USED_EXPERTS:
            path = f"{inside}.{used}" if inside else used
            number = self._fields.get(path, part.get(used))
            if type(number) is int and number > self._fields[name]:
                raise ConfigError(
                    f"{used} is {number}, more than the {self._fields[name]} experts of the output.",
                    hint=f"Add --set {path}={self._fields[name]}.",
                )

    def _routed(self, change: Change, name: str, numbers: tuple[int, int]) -> Change:
        """Return the change to repeated experts: it is exact if as many more of them are used."""
        inside, part = name.rpartition(".")[0], self._beside(name)
        if not any(type(part.get(used)) is int for used in USED_EXPERTS):
            change.is_exact = None  # it is not known how many of them are used
        for used in USED_EXPERTS:
            path, old = f"{inside}.{used}" if inside else used, part.get(used)
            if type(old) is int and self._fields.get(path, old) * numbers[0] != old * numbers[1]:
                change.is_exact = False
                change.said += (
                    f"; {used}={self._fields.get(path, old)} would have to be {old * numbers[1] / numbers[0]:g}"
                )
        if (part.get("n_group") or 1) > 1:
            change.is_exact = False  # a group is chosen by its best experts, which are now there several times
        return change

    def _fewer(self, role: str, name: str, axes: Sequence[Axis], numbers: tuple[int, int]) -> Change:
        old, new = numbers
        check_units(name, axes, numbers)
        groups = groups_of(axes)
        listed = self._choices.kept.get(name)
        if listed is not None:
            if len(listed) != new or listed[-1] >= old:
                raise ConfigError(
                    f"--keep {name}: {len(listed)} numbers up to {listed[-1]} are listed; {new} below {old} are needed."
                )
            within = self._heads_of_keys(name, old, new) if role == "heads" else 1
            shares = {sum(index * within // old == part for index in listed) for part in range(within)}
            if len(shares) > 1:
                raise ConfigError(
                    f"--keep {name}: keep equally many of the heads that share each of the {within} heads of keys.",
                    hint=f"Each {old // within} heads in order share one; keep {new // within} of each.",
                )
            return selected(name, groups, [listed] * len(groups), numbers, f"those of the list are kept ({new})")
        within = self._heads_of_keys(name, old, new) if role == "heads" else 1
        kept = [largest(self._scores(role, axes, old), new, within) for axes in groups]
        why = (
            f"those that contribute most in {escape(self._choices.by)}"
            if self._choices.by
            else "those with the largest weights"
        )
        return selected(name, groups, kept, numbers, f"{why} are kept")

    def _heads_of_keys(self, name: str, old: int, new: int) -> int:
        """Return the number of heads of keys and values, of each of which equally many heads of queries are kept."""
        part = self._beside(name)
        found = next((part[one] for one in part if role_of(one) == "kv_heads" and type(part[one]) is int), 1)
        path = next((one for one in self._fields if role_of(one) == "kv_heads"), "")
        return 1 if found == old and path else found


def _is_of_layers(field: str) -> bool:
    return field.endswith(("layer_types", "layers_block_type", "_layers", "layers", "_pattern", "_types"))


def _inside(name: str) -> str:
    return name.rpartition(".")[0]


def _network(target: TargetSpec, kinds: Mapping[str, str]) -> Network:
    return Network(target.tensors, kinds, target.ties)


def _times(axes: Sequence[Axis]) -> int:
    return axes[0].after // axes[0].before


def _head_size(part: Mapping[str, Any]) -> int:
    """Return the size of a head if no field has it: the width divided by the number of heads."""
    found = [next(part[one] for one in part if role_of(one) == role and part[one]) for role in ("width", "heads")]
    return int(found[0] // found[1])
