"""What a merge is asked for: options, vocabulary, models, and the parameters of its method; parsed and checked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from sys import float_info
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...engine.compute.compute import with_costs
from ...engine.inputs import PlanInputs
from ...errors import ConfigError
from ...methods.merge._method import Method
from ...planning.encoding_checks import check_mixed_layers, with_possible_codes_said
from ...planning.keys.pattern import KeyPattern
from ...planning.merge.differing_models import MergeOptions
from ...planning.merge.pieces import ParameterSetting, Settings
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ...planning.transplant.by_place import PLACE
from ...tensors.possible_scales import CODES as INTEGERS
from ...util.text import brief_repr, escape
from ..aligning.aligned_models import AlignedModels
from ..inputs.argument_types import CheckpointLike, Given, Parameters, Patterns, Rules
from ..inputs.encoding import ENCODINGS, encoding_notes, read_as
from ..inputs.inputs import KeptOpen, source_notes

if TYPE_CHECKING:
    from .tokenizers import RowsRequest

__all__ = [
    "BASE",
    "UNION",
    "MergeRequest",
    "VocabularyRequest",
    "check_names",
    "given_settings",
    "method_settings",
    "plain_settings",
]

UNION, BASE = "union", "base"


@dataclass(frozen=True)
class VocabularyRequest:
    """The user's arguments about vocabularies.

    ``vocab`` is the output's vocabulary (--vocab), ``tokens`` the models' token lists (--tokens), and ``keys`` the
    tensors with a row for each token (--vocab-keys). ``rows`` has the rows that a mergekit recipe chooses; if it is
    set, tokens that no model has get rows of zeros, as in mergekit.
    """

    vocab: str | None = None
    tokens: Rules = ()
    keys: Patterns = ()
    rows: RowsRequest | None = None

    @property
    def is_by_place(self) -> bool:
        """Whether row n of the output is merged from row n of each model, even if their tokens differ."""
        return self.vocab is not None and self.vocab.lower() == PLACE

    def is_by_token(self) -> bool:
        """Return whether rows are merged by token; raises ConfigError if other arguments then have no effect."""
        if self.vocab is not None and not self.is_by_place:
            return True
        if self.tokens or isinstance(self.keys, str) or self.keys:
            raise ConfigError(
                "--tokens and --vocab-keys have no effect "
                f"{'with --vocab place' if self.is_by_place else 'without --vocab'}.",
                hint=f"{'Leave them out, or write' if self.is_by_place else 'Write'} --vocab union, --vocab base or "
                "--vocab FILE.",
            )
        return False

    @property
    def said(self) -> dict[str, Any]:
        """The arguments as the output's recipe records them; if ``vocab`` is a path, only the file name is recorded."""
        known = self.vocab is None or self.vocab.lower() in (UNION, BASE, PLACE)
        return {"vocab": self.vocab if known else os.path.basename(str(self.vocab)), "vocab_keys": self.keys}


@dataclass(frozen=True)
class MergeRequest:
    """The parsed arguments of a merge, without the models, the method and its parameters.

    ``arguments`` are the same arguments as plain data, which the recipe of the output records.
    """

    options: MergeOptions
    vocabulary: VocabularyRequest
    arguments: Mapping[str, Any]
    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = 0
    unwrap: bool = False
    root: str | None = None
    encoding: str = ENCODINGS[0]
    statistics: Rules = ()
    align: bool = False
    align_groups: Mapping[str, Any] | None = None

    def aligned(self, opened: Sequence[Checkpoint], reference: int) -> AlignedModels:
        """Return the open models; with ``--align``, all are aligned with the model at the index ``reference``."""
        if not self.align:
            return AlignedModels(list(opened))
        from ..aligning.align import align

        return align(opened, reference, groups=self.align_groups, memory=self.memory)

    def opened(
        self, models: Sequence[CheckpointLike], stack: ExitStack, *, base: int | None = None
    ) -> list[Checkpoint]:
        """Open the models, and decode those that are quantised (see ``read_as``); ``stack`` closes them.

        ``base`` is the index of the base in ``models``, if there is one; errors then call this model the base.
        """
        names = ["base" if place == base else f"model {place + 1}" for place in range(len(models))]
        opened = [
            stack.enter_context(open_checkpoint(one, self.root, unwrap=self.unwrap, called=name))
            for one, name in zip(models, names, strict=True)
        ]
        read = [read_as(one, self.encoding) if one.codes else one for one in opened]
        stack.enter_context(KeptOpen(read))
        return read

    def encoded(self, donor: Checkpoint) -> frozenset[str]:
        """Return the keys of the weights that the output stores as ``donor`` does: quantised."""
        return frozenset(one.name for one in donor.codes.tensors) if self.encoding == ENCODINGS[0] else frozenset()

    def notes(self, opened: Sequence[Checkpoint]) -> list[str]:
        """Return the notes on the open models, and on arguments that have no effect."""
        notes = source_notes(opened, unwrap=self.unwrap)
        return notes if self.encoding == ENCODINGS[0] else [*notes, *encoding_notes(opened, self.encoding)]

    def carried(self, plan: Plan, opened: Sequence[Checkpoint], *others: str, donor: int) -> Plan:
        """Return ``plan`` with its estimated cost, and ``opened`` as its inputs, which stay open until ``apply``.

        ``others`` are paths of further files that were read, which the output must not overwrite. ``donor`` is the
        index of the model whose configuration the output gets.

        Raises PlanError if the plan would use codes of quantised tensors as numbers, decode them with wrong settings,
        or mix encodings.
        """
        if any(codes := [one.codes_before_operations for one in opened]):
            check_codes(plan, codes)
        if any(one.dtype in INTEGERS for step in plan.steps for one in step.inputs):
            plan = with_possible_codes_said(plan, [one.codes for one in opened])
        if any(one.codes for one in opened):
            from ..model_folder.codes.output_settings import check_settings, unsettled_notes, with_settings

            check_settings(plan, opened, donor)
            check_mixed_layers(plan, [one.codes for one in opened], donor, opened[donor])
            plan = replace(plan, notes=(*plan.notes, *unsettled_notes(plan, opened, donor)))
            plan = with_settings(plan, opened, donor)
        inputs = PlanInputs(tuple(opened), None, others, plugins=self.plugins, memory=self.memory)
        return with_costs(replace(plan, inputs=inputs), self.memory, self.plugins)


# The parameters of the method.

GRADIENT = "gradient"
"""The key in ``{"gradient": [...]}``, the value of a parameter: a list of values from the first layer to the last."""


def check_names(method: Method, more: Iterable[str], arguments: Iterable[str]) -> None:
    """Raise ConfigError if a name in ``more`` is not a parameter of the method.

    ``arguments`` are the names of the arguments of ``merge``: the hint of the error may suggest one of them.
    """
    known = [one.name for one in method.parameters]
    for name in map(parameter_name, more):
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *arguments], n=1)
            its = f"The parameters of {method.name} are {', '.join(known) or 'none'}."
            raise ConfigError(
                f"{escape(name)} is neither an argument of merge nor a parameter of the method {method.name}.",
                hint=f"Did you mean {near[0]}?" if near else its,
            )


def method_settings(method: Method, given: Mapping[str, Any] | Sequence[str] | None) -> Settings:
    """Return the parsed parameters of a merge method, by name.

    ``given`` maps names to values, or is a list of strings as on the command line: NAME=VALUE or NAME:GLOB=VALUE, with
    a gradient in brackets. A value is a number, a string or a boolean; a list with one number for each model; or
    ``{"gradient": [0, 0.5, 1]}`` for values from the first layer to the last. It may also be a map from patterns to
    such values, in which the last pattern that matches a key wins. If a parameter has one value for all models, a list
    is a gradient.

    Raises ConfigError for anything else, PatternError for an invalid pattern.
    """
    if not isinstance(given, Mapping):
        found: dict[str, list[ParameterSetting]] = {}
        for text in [given] if isinstance(given, str) else given or ():
            name, setting = _from_text(text)
            if setting.pattern is None and any(one.pattern is None for one in found.get(name, ())):
                raise ConfigError(f"the parameter {escape(name)} is given twice for all keys.", hint="Leave one out.")
            found.setdefault(name, []).insert(0, setting)
        return found
    each = {one.name for one in method.parameters if one.each}
    return {name: _settings(name, value, by_model=name in each) for name, value in given.items()}


def _settings(name: str, value: Any, *, by_model: bool) -> list[ParameterSetting]:
    if isinstance(value, Mapping) and not value:
        raise ConfigError(
            f"the parameter {escape(name)} is an empty map.", hint="Give values by pattern, or leave the parameter out."
        )
    if isinstance(value, Mapping) and set(value) != {GRADIENT}:
        pairs = [(KeyPattern.given(_pattern(name, text), ""), one) for text, one in value.items()]
        return [_setting(name, one, by_model=by_model, pattern=pattern) for pattern, one in reversed(pairs)]
    return [_setting(name, value, by_model=by_model)]


def _pattern(name: str, text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ConfigError(f"the parameter {escape(name)} has {brief_repr(text, 40)}, which is not a pattern of keys.")
    return text


def _setting(name: str, value: Any, *, by_model: bool, pattern: KeyPattern | None = None) -> ParameterSetting:
    if isinstance(value, Mapping) and set(value) == {GRADIENT}:
        return ParameterSetting(pattern=pattern, layers=_numbers(name, value[GRADIENT]))
    if isinstance(value, (list, tuple)):
        numbers = _numbers(name, value)
        return (
            ParameterSetting(pattern=pattern, models=numbers)
            if by_model
            else ParameterSetting(pattern=pattern, layers=numbers)
        )
    if not isinstance(value, (bool, int, float, str)):
        raise ConfigError(
            f"the parameter {escape(name)} is {brief_repr(value)}, which is not a valid value.",
            hint="Use a number, a string or a list.",
        )
    return ParameterSetting(value, pattern)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigError(f"the parameter {escape(name)} is {brief_repr(values)}, not a list of numbers.")
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigError(f"the parameter {escape(name)} has {brief_repr(value, 40)}, which is not a number.")
        if isinstance(value, int) and abs(value) > float_info.max:
            raise ConfigError(
                f"the parameter {escape(name)} has {brief_repr(value, 40)}, which is too large for double precision."
            )
    return tuple(map(float, values))


def _from_text(text: str) -> tuple[str, ParameterSetting]:
    """Return the name and the setting of a parameter given as ``weight=0.3,0.7`` or ``t:layers.*.mlp=0.2``.

    Raises ConfigError for any other form, and for an invalid value.
    """
    head, equals, said = text.rpartition("=")
    name, colon, glob = head.partition(":")
    if not (equals and name and said) or (colon and not glob):
        raise ConfigError(
            f"--param {escape(text)} does not have the form NAME=VALUE.",
            hint="Write density=0.5, or density:GLOB=0.5 for some keys.",
        )
    pattern = KeyPattern.given(glob, f"--param {name}:", f"={said}") if glob else None
    if "," in said and not said.startswith("["):
        values = [_read(name, one) for one in said.split(",")]
        return name, ParameterSetting(pattern=pattern, models=_numbers(name, values))
    return name, _setting(name, _read(name, said), by_model=False, pattern=pattern)


def _read(name: str, text: str) -> Any:
    try:
        if text.strip()[:1] in "+-.0123456789":
            return float(text)
        from ...storage.yaml_text import read_yaml

        return read_yaml(text, f"--param {name}")
    except ValueError:
        return text


def given_settings(
    method: Method,
    parameters: Parameters,
    more: Mapping[str, Given],
    weights: Sequence[float] | None,
) -> Settings:
    """Return a method's parsed parameters from ``parameters``, the arguments ``more`` and ``weights`` together.

    ``weights`` is the parameter ``weight`` for all keys; ``parameters`` may contain weights for patterns, which have
    priority. Raises ConfigError for a parameter that is given twice.
    """
    found = dict(method_settings(method, parameters))
    for name, settings in method_settings(
        method, {parameter_name(name): value for name, value in more.items()}
    ).items():
        if name in found:
            raise _twice(name)
        found[name] = settings
    if weights is None:
        return found
    scoped = found.pop("weight", ())
    if any(map(_is_for_all, scoped)):
        raise _twice("weight")
    return {"weight": [*scoped, *method_settings(method, {"weight": list(weights)})["weight"]], **found}


def _twice(name: str) -> ConfigError:
    return ConfigError(f"the parameter {escape(name)} is given twice.", hint="Leave one of the two out.")


def _is_for_all(one: ParameterSetting) -> bool:
    return one.is_for_all or (one.pattern is not None and one.pattern.text == "**")


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return parsed parameters as plain data, which ``method_settings`` can parse."""
    return {name: _plain_value(found) for name, found in settings.items()}


def _plain_value(found: Sequence[ParameterSetting]) -> Any:
    said = {one.pattern.text if one.pattern else "**": _value(one) for one in reversed(found)}
    return said["**"] if len(said) == 1 and "**" in said else said


def _value(one: ParameterSetting) -> Any:
    return list(one.models) if one.models else {GRADIENT: list(one.layers)} if one.layers else one.value


def parameter_name(argument: str) -> str:
    """Return the name of the parameter for a Python argument: ``lambda`` for ``lambda_`` (``lambda`` is a keyword)."""
    return argument.rstrip("_")
