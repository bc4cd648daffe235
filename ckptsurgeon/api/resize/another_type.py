"""Converts a dense network to a model type with experts, or makes a dense network from one expert of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import module_kinds
from ...errors import ConfigError
from ...planning.resizing.axes import Network
from ...planning.resizing.change import Change
from ...planning.resizing.experts import expert_alone, upcycled
from ...planning.resizing.fields import USED_EXPERTS, role_of
from ...planning.resizing.repeat import Noise
from ...planning.target import TargetSpec
from ...util.text import brief_repr, count, escape, listing
from .choices import Choices

__all__ = ["ALIKE", "AnotherType"]

ALIKE = {
    ("llama", "mixtral"), ("mistral", "mixtral"), ("qwen2", "qwen2_moe"), ("qwen3", "qwen3_moe"),
}  # fmt: skip
"""Pairs of model types that differ only in their feed-forward layers; the tests compare their outputs."""
_SIZE, _SIZES = "intermediate_size", ("moe_intermediate_size", "shared_expert_intermediate_size")
_OUTSIDE = ("width", "depth", "heads", "kv_heads", "vocabulary")
"""The roles of fields that change more than feed-forward layers."""
NORMALISED = "norm_topk_prob"
"""The field that says whether the weights of the chosen experts are divided by their sum."""
_NORMALISING = ("mixtral",)
"""Model types that always divide the weights of the chosen experts by their sum."""
_DERIVED = ("max_window_layers",)
"""Fields that are not listed in notes, because they only determine other fields (``layer_types``)."""


class AnotherType:
    """The change of a network to another model type, with the same methods as ``Stages``.

    ``fields`` is {name of a field: new value}, and ``expert`` is the index of the expert whose weights become the
    feed-forward layer of a dense network. Raises ConfigError if the fields or the expert are not valid, PlanError if
    the network cannot be changed to this type.
    """

    on_missing = "init"  # only routers are missing: ``upcycled`` has checked all other tensors

    def __init__(
        self, base: Resizable, model_type: str, fields: Mapping[str, Any], expert: int | None, choices: Choices
    ) -> None:
        self._base, self._type, self._expert = base, model_type, expert
        if replace(choices, noise=Noise(choices.noise.by)) != Choices():
            raise ConfigError(
                "--as changes only the model type, and cannot be used together with a change of the size.",
                hint="Leave --layers, --keep, --new-channels, --new-width, --noise, --merge-experts, --align-experts "
                "and --by out.",
            )
        if expert is not None and expert < 0:
            raise ConfigError(
                f"--expert {expert} is not the index of an expert.", hint="The indices of experts count from 0."
            )
        self._before = base.fields()
        self._given = {base.main_name_in(model_type, name): value for name, value in fields.items()}
        if model_type == self._before.get("model_type"):
            raise ConfigError(f"--as {escape(model_type)}: the model has this type already.", hint="Leave --as out.")
        self._set = {**self._sizes(), **self._given}
        self.overrides, self._left_out = base.as_type(model_type, self._set)
        self._check()
        self._check_sizes()

    @cached_property
    def first(self) -> TargetSpec:
        """The network of the source."""
        return self._base.target({})

    @property
    def keys(self) -> list[str]:
        """The keys of the tensors in the source."""
        return list(self.first.tensors)

    @property
    def splits(self) -> list[dict[str, Any]]:
        """The operations that come before the change: none are needed."""
        return []

    @cached_property
    def last(self) -> TargetSpec:
        """The network of the output."""
        return self._base.target(self.overrides)

    @property
    def is_tested(self) -> bool:
        """Whether the tests of ckptsurgeon compare the outputs of networks of the old and the new model type."""
        return (str(self._before.get("model_type")), self._type) in ALIKE

    @property
    def said(self) -> list[str]:
        """Notes on fields of config.json that were set or left out."""
        own = [f"{name}={brief_repr(value)}" for name, value in self._set.items() if name not in self._given]
        found = [f"fields that are also set in config.json: {listing(own, where='')}"] if own else []
        if self._left_out:
            names = listing(self._left_out, where="")
            unusual = f" (unusual values: {listing(own, where='')})" if (own := self._unusual()) else ""
            found.append(
                f"fields that {escape(self._type)} does not have are left out of config.json: {names}{unusual}"
            )
        return found

    def changes(self) -> Iterator[Change]:
        """Yield the change of the model type, which is the only change."""
        before, after = (Network(one.tensors, module_kinds(one), one.ties) for one in (self.first, self.last))
        types = f"{escape(str(self._before.get('model_type')))} to {escape(self._type)}"
        if self._expert is not None:
            change = expert_alone(before, after, self._expert)
            change.said = f"{types}: expert {self._expert} of each layer becomes its feed-forward layer"
        else:
            change = upcycled(before, after)
            number = next(value for name, value in self.overrides.items() if role_of(name) == "experts")
            parts = max(change.repeated.values(), default=1)
            change.said = f"{types}: {count(number, 'expert')}, " + (
                f"{number // parts} copies of each of {parts} parts of the feed-forward layer (arXiv 2410.07524); in "
                "bfloat16, a few tokens may use parts of two copies with equal weights"
                if parts > 1
                else "each a copy of the feed-forward layer (arXiv 2212.05055)"
            )
            self._check_groups(parts)
            change.is_exact = self._is_exact()
            if change.is_exact is False:
                change.said += "; the weights of a token's experts do not sum to 1"
        yield change

    def _check_groups(self, parts: int) -> None:
        """Raise ConfigError unless the number of experts that each token uses is a multiple of ``parts``.

        ``parts`` is the number of experts into which each copy of the feed-forward layer is divided: a token must use
        whole copies.
        """
        for name in USED_EXPERTS:
            used = self.overrides.get(name, self._base.names_in(self._type).get(name))
            if type(used) is int and used % parts:
                raise ConfigError(
                    f"each token would use {used} experts ({name}), which are not whole copies of the feed-forward "
                    f"layer: each copy is divided into {parts} experts.",
                    hint=f"Use a multiple of {parts}: --set {name}={parts * max(1, used // parts)}.",
                )

    def _is_exact(self) -> bool | None:
        """Return whether the outputs stay the same: True if the weights of a token's experts sum to 1, False if not.

        Returns None if that is not known, or if the two types may also differ in other ways.
        """
        if not self.overrides.get(NORMALISED, self._type in _NORMALISING or None):
            return False if NORMALISED in self.overrides else None
        return True if self.is_tested and not self._unusual() else None

    def _unusual(self) -> list[str]:
        """Return the fields that are left out of config.json although they do not have their default values."""
        usual = self._base.names_in(str(self._before.get("model_type")))
        found = []
        for name in self._left_out:
            own, default = self._before.get(name), usual.get(name)
            if isinstance(own, list) and isinstance(default, list):  # lists of layers may have different lengths
                own, default = [one for one in own if one not in default], []
            if own != default and name not in _DERIVED:
                found.append(name)
        return found

    def _sizes(self) -> dict[str, Any]:
        """Return {field: value} for the fields of the new type that must be set, such as the size of experts."""
        known = self._base.names_in(self._type)
        if self._expert is not None:
            size = next((self._before[name] for name in _SIZES if self._before.get(name)), None)
            return {_SIZE: size} if size is not None and _SIZE in known else {}
        found = {name: self._before.get(_SIZE) for name in _SIZES if name in known and self._before.get(_SIZE)}
        return {**found, **({NORMALISED: True} if NORMALISED in known else {})}

    def _check(self) -> None:
        """Raise ConfigError if the number of experts is missing or, for a dense output, the index of the expert to use.

        Also raises ConfigError if both types have experts, or if neither has.
        """
        known = [name for name in self._base.names_in(self._type) if role_of(name) == "experts"]
        experts = next((name for name in self._before if role_of(name) == "experts"), "")
        if known and self._expert is None and not experts:
            self._check_numbers(known)
        elif known or not experts:
            what = "have experts" if known else "have no experts"
            raise ConfigError(
                f"{escape(str(self._before.get('model_type')))} and {escape(self._type)} both {what}."
                if bool(known) == bool(experts)
                else "--expert needs a source model with experts, and a type of model without experts.",
                hint="--as turns a dense network into one with experts; --as with --expert N turns a network with "
                "experts into a dense one.",
            )
        elif self._expert is None:
            raise ConfigError(
                f"{escape(self._type)} has no experts, so one expert of each layer must be chosen.",
                hint="Choose the expert that becomes the feed-forward layer of each layer with --expert N.",
            )

    def _check_sizes(self) -> None:
        """Raise ConfigError if the user also changes sizes outside the feed-forward layers, such as the width."""
        old = {name: self._before.get(name) for name in self._given if role_of(name) in _OUTSIDE}
        changed = [name for name, value in old.items() if value is not None and value != self._given[name]]
        if changed:
            raise ConfigError(
                f"--as changes only the feed-forward layers, but {listing(changed, where='')} "
                f"{'changes' if len(changed) == 1 else 'change'} other layers, too.",
                hint=f"Change {'it' if len(changed) == 1 else 'them'} in a command of its own, before or after this "
                "one: ckpt resize without --as.",
            )

    def _check_numbers(self, known: list[str]) -> None:
        field = next((name for name in known if name in self._given), None)
        if field is None:
            raise ConfigError(
                "the new model type has experts, but their number is not given.",
                hint=f"Set the number of experts, for example, --set {known[0]}=8.",
            )
        number = self._given[field]
        if type(number) is not int or number < 1:
            raise ConfigError(f"--set {escape(field)}={brief_repr(number)} is not a whole number above 0.")
        for name in USED_EXPERTS:
            used = self.overrides.get(name, self._base.names_in(self._type).get(name))
            if type(used) is int and not 0 < used <= number:
                fewer = "Set a larger number of experts, or let each token use fewer"
                raise ConfigError(
                    f"each token would use {used} of {count(number, 'expert')} ({name}).",
                    hint=f"{fewer if used > 0 else 'Let each token use at least one'}: --set {name}={min(2, number)}.",
                )
