"""Changes the fields of a configuration one after another, and finds which tensors each of them changes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import ModuleFacts, module_facts
from ...destinations.norm_forms import norm_forms
from ...errors import PlanError
from ...planning.resizing.axes import Network
from ...planning.resizing.change import Change
from ...planning.resizing.depth import lists_of
from ...planning.resizing.fields import USED_EXPERTS, role_of
from ...planning.resizing.fused import Heads, fused_keys, joins, separated, splits
from ...planning.resizing.new_width import NormForm, check_norms
from ...planning.target import TargetSpec
from ...util.text import listing
from ...vocabulary.replacement import NewVocabulary
from .arguments import at_path, nested
from .asked_fields import HEAD, INIT, TIES, AskedFields
from .checks import check_experts, check_switch, check_values, keys_by_switch, layers_apart, numbers_apart
from .choices import Choices
from .field_change import FieldChange, is_averaged
from .implied_fields import implied_fields, with_values
from .layer_lists import chosen_layers, lists_of_layers
from .scores import Measures

__all__ = ["Stages"]

TESTED = (
    "bart", "bloom", "gemma2", "gpt_neox", "granitemoeshared", "helium", "hunyuan_v1_moe", "minimax", "mpnet", "xglm",
    "bert", "clip", "deepseek_v3", "gemma3_text", "gpt2", "gpt_oss", "llama", "mistral", "mixtral", "qwen2",
    "falcon", "gpt_bigcode", "phi3", "qwen2_moe", "qwen3", "qwen3_moe", "t5", "vit", "wav2vec2", "whisper",
)  # fmt: skip
"""The model types for which tests compare the outputs before and after each change that should not affect outputs."""
_OF_HEADS = ("width", "kv_heads", "heads")
"""The roles of fields that change queries, keys and values differently; these must then be in separate tensors."""
_AT_LAST = ("depth", "vocabulary")
"""The roles of fields that are changed last, when tensors have the output's names."""
GENERATION = "generation_config.json"
_INERT = re.compile(
    r"(_token_id|_dropout|_pdrop|dropout|max_position_embeddings|n_positions|initializer_(range|factor)|use_cache|"
    r"architectures|dtype)$"
)
"""Matches fields that do not change outputs, except in training, in generation, or for inputs that are too long."""
_TABLES = (
    "ckpt transplant --on-mismatch KEY=positions-1d interpolates positions (positions-2d those of patches) for a "
    "config.json with the new number."
)


class Stages:
    """The change of a network from one configuration to another, one field after the other.

    ``fields`` has {dotted path of a field: new value}. If a field has several names, its main name is used. Raises
    ConfigError and PlanError.
    """

    on_missing = "error"

    def __init__(self, base: Resizable, fields: Mapping[str, Any], choices: Choices, measures: Measures) -> None:
        self._base, self._choices, self._measures = base, replace(choices, lists=self._lists), measures
        self._given = frozenset(fields)
        implied = implied_fields(base, fields)
        before = with_values(base.fields(), implied)
        self._asked = AskedFields(before, fields, choices.new_width, implied)
        self._done: dict[str, Any] = {}
        self._asked.check(choices)
        self._asked.new.update(choices.vocabulary.fields if choices.vocabulary else {})
        self._asked.pin_heads()
        self._asked.pin_keys()
        self._asked.pin_undeclared(lambda name, size: base.allow_undeclared(HEAD, nested({name: size}, before)))
        self._asked.pin_epsilons()
        self._facts: dict[int, tuple[TargetSpec, ModuleFacts]] = {}

    @cached_property
    def first(self) -> TargetSpec:
        """The network of the source."""
        return self._base.target({})

    @cached_property
    def last(self) -> TargetSpec:
        """The network of the output."""
        return self._base.target(self.overrides, self._vocabulary)

    def _lists(self, name: str) -> list[str]:
        """Return the paths of the lists of layers whose length the field ``name`` changes."""
        after = self._base.target(nested({name: self._asked.new[name]}, self._asked.before))
        return lists_of(_network(self.first, {}), _network(after, {}), self._asked.numbers(name))

    @property
    def _vocabulary(self) -> NewVocabulary | None:
        return self._choices.vocabulary.new if self._choices.vocabulary else None

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """The fields whose values differ from those in the source's config.json, as nested dicts."""
        return nested({**self._asked.new, **lists_of_layers(self._asked, self._choices)}, self._asked.before)

    @property
    def is_tested(self) -> bool:
        """Whether the tests compare outputs before and after a change for this model type."""
        return self._asked.before.get("model_type") in TESTED

    @property
    def said(self) -> list[str]:
        """Notes on changed fields that no tensor depends on, and on lists and numbers that changed with the layers."""
        changed = [name for name in self._asked.new if at_path(self._asked.before, name) != self._asked.new[name]]
        own = (TIES, *self._asked.epsilons, *self._asked.undeclared)
        names = [name for name in changed if not role_of(name) and name not in own]
        found = [f"no tensor depends on {listing(names, where='')}: changed only in config.json"] if names else []
        unsure = [name for name in names if not (_INERT.search(name) or self._is_told(name))]
        if unsure:
            found.append(f"the outputs may change with {listing(unsure, where='')} (--prove compares them)")
        found += [f"also set in config.json: {name}={self._asked.new[name]}" for name in self._asked.undeclared]
        ids = [name for name in names if name.endswith("_token_id")]
        if ids and os.path.isfile(os.path.join(self._base.folder, GENERATION)):
            found.append(f"{GENERATION} also has {listing(ids, where='')}, which generate() uses; they are not changed")
        of_layers = lists_of_layers(self._asked, self._choices)
        for kind, is_list in (("list", True), ("number", False)):
            names = [name for name, value in of_layers.items() if isinstance(value, list) is is_list]
            if names:
                kinds = kind if len(names) == 1 else f"{kind}s"
                found.append(f"{kinds} in config.json that changed with the layers: {listing(names, where='')}")
        return found

    def _is_told(self, name: str) -> bool:
        """Return whether the note on the number of experts already says how the field ``name`` changes the outputs."""
        inside, _, last = name.rpartition(".")
        return last in USED_EXPERTS and any(one.rpartition(".")[0] == inside for one in self._asked.of("experts"))

    def changes(self) -> Iterator[Change]:
        """Yield the changes that the new values of fields need, in the order in which the changes are made."""
        kinds = self._kinds
        plain = self._others(_network(self.first, kinds), kinds)
        self._check_norms()
        fields = self._base.fields(self.overrides, self._vocabulary)
        check_values(self._asked.new, fields)
        steps, before = list(self._asked.steps()), self._separated(plain)
        last = max((at for at, (role, _) in enumerate(steps) if role not in _AT_LAST), default=-1)
        previous = self._target() if self._done else self.first
        for at, (role, names) in enumerate(steps):
            for name in names:
                self._done[name] = self._asked.new[name]
            target = self.last if self._done.keys() == self._asked.new.keys() else self._target()
            self._pair = previous, target
            changed = _network(target, kinds if role != "depth" else {})
            one, other = (plain, changed) if role in _AT_LAST else (before, self._separated(changed))
            found = FieldChange(self._asked, self._choices, self._measures, self._constants, self._norms, one, other)
            change = found.change(role, names[0])
            change.said += self._beside(names[1:])
            change = self._with_values_compared(change, role, names[0], one, other)
            if at == last and self.splits:
                change.after += joins(plain, self._heads(self._done))
            plain = Network(changed.tensors, kinds, changed.ties)
            before = self._separated(plain) if role == "depth" else other
            yield self._renamed(change, plain)
            previous = target
        check_experts(self._asked.new, fields)

    def _beside(self, names: Sequence[str]) -> str:
        """Return ", NAME OLD to NEW" for each number of heads in ``names`` that the user sets; '' if there are none.

        The text is added to the note on a change.
        """
        given = [name for name in names if name in self._given and role_of(name)]
        return "".join(", {} {} to {}".format(name, *self._asked.numbers(name)) for name in given)

    @cached_property
    def _kinds(self) -> Mapping[str, str]:
        return self._facts_of(self.first).kinds

    @cached_property
    def keys(self) -> list[str]:
        """The keys of all tensors of the source after the operations in ``splits``."""
        return list(self._separated(_network(self.first, self._kinds), {}).tensors)

    @cached_property
    def splits(self) -> list[dict[str, Any]]:
        """The operations before all changes: fused queries, keys and values are separated if head counts change."""
        if not any(self._asked.of(role) for role in _OF_HEADS):
            return []
        return splits(_network(self.first, self._kinds), self._heads({}))

    def _separated(self, network: Network, done: Mapping[str, Any] | None = None) -> Network:
        return separated(network, self._heads(self._done if done is None else done)) if self.splits else network

    def _heads(self, done: Mapping[str, Any]) -> Heads:
        """Return the numbers of heads in the (nested) configuration after the fields ``done`` have changed."""
        name = next(name for role in _OF_HEADS for name in self._asked.of(role))
        part = (
            at_path(self._base.fields(nested(done, self._asked.before)), name.rpartition(".")[0]) if "." in name else {}
        )
        part = part or self._base.fields(nested(done, self._asked.before))
        numbers = {role_of(one): value for one, value in part.items() if type(value) is int}
        heads = numbers.get("heads", 1)
        if keys_by_switch(part):
            return Heads(heads, 1 if part["multi_query"] else heads)
        return Heads(heads, numbers.get("kv_heads", heads))

    def _renamed(self, change: Change, network: Network) -> Change:
        """Return ``change``; if queries, keys and values are fused, its policies for them apply to the fused tensor."""
        fused = fused_keys(network)
        change.policies = {fused.get(key, key): policy for key, policy in change.policies.items()}
        return change

    def _constants(self) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Return the values in modules that are not weights, before and after the current change."""
        first, last = (self._facts_of(one).constants for one in self._pair)
        return first, last

    def _facts_of(self, network: TargetSpec) -> ModuleFacts:
        if id(network) not in self._facts:
            self._facts[id(network)] = network, module_facts(network)
        return self._facts[id(network)][1]

    def _check_norms(self) -> None:
        """Raise PlanError if the network's norms do not allow added dimensions of zeros; runs before all changes."""
        for name in self._asked.of("width"):
            if self._asked.way_of(name) == INIT and not is_averaged(self._asked.before, name):
                norms = norm_forms(self.first)
                check_norms(name, norms, norms, self._asked.numbers(name))

    def _norms(self) -> tuple[Mapping[str, NormForm], Mapping[str, NormForm]]:
        """Return the kinds of norms of the network before and after the current change."""
        first, last = self._pair
        return norm_forms(first), norm_forms(last)

    def _with_values_compared(self, change: Change, role: str, name: str, before: Network, after: Network) -> Change:
        """Return ``change``; if constants in modules change, its text names them, and its ``is_exact`` becomes False.

        ``role`` and ``name`` are the role and the name of the changed field. ``before`` and ``after`` are the network
        before and after the change.
        """
        if role == "depth":
            paths = lists_of(before, after, self._asked.numbers(name))
            apart = layers_apart(*self._constants(), paths, chosen_layers(self._asked, self._choices, name))
        elif change.is_exact:
            known = [key.rpartition(".")[0] for key, kind in before.kinds.items() if "scaled" in kind]
            if role == "width" and self._asked.way_of(name) == INIT:
                known += self._norms()[0]  # the epsilons of norms are compared elsewhere
            apart = numbers_apart(*self._constants(), known if role == "width" else ())
        else:
            apart = []
        if apart:
            change.is_exact = False
            change.said += f", but {listing(apart, 3, where='')} {'differs' if len(apart) == 1 else 'differ'} then"
        return change

    def _target(self) -> TargetSpec:
        return self._base.target(nested(self._done, self._asked.before))

    def _others(self, before: Network, kinds: Mapping[str, str]) -> Network:
        """Change the fields that have no role (such as "width"), and return the resulting network.

        ``before`` is the network without these changes. ``kinds`` maps the keys of its tensors to the kinds of their
        modules. Raises PlanError if the changes affect shapes.
        """
        plain = [name for name in self._asked.new if not role_of(name) or self._asked.stays(name)]
        names = [name for name in plain if name not in self._asked.epsilons]
        self._done.update({name: self._asked.new[name] for name in names})
        if not names:
            return before
        after = _network(self._target() if len(names) < len(self._asked.new) else self.last, kinds)
        changed = [
            key
            for key, info in before.tensors.items()
            if key in after.tensors and after.tensors[key].shape != info.shape
        ]
        changed += [
            key for key in {**before.tensors, **after.tensors} if (key in before.tensors) != (key in after.tensors)
        ]
        if changed:
            check_switch(names, changed)
            verb = "changes" if len(changed) == 1 else "change"
            raise PlanError(
                f"it is not known how {listing(changed)} {verb} with {listing(names, where='')}.",
                hint=_TABLES
                if any("position" in name for name in (*changed, *names))
                else "Only widths, depths and numbers of heads, channels and experts can be changed.",
            )
        return after


def _network(target: TargetSpec, kinds: Mapping[str, str]) -> Network:
    return Network(target.tensors, kinds, target.ties)
