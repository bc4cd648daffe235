"""``load_into``: loads sources into one or several live modules; either all modules are loaded, or none is."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...destinations._load import module_destination
from ...destinations.torch_module.tensors import is_distributed, own_bounds, own_part
from ...errors import CheckpointError, PlanError
from ...planning.plan.plan import Plan
from ...planning.transplant.options import Options
from ...planning.transplant.plan_errors import NOTHING_LOADED
from ...storage.read.spec import SourceSpec
from ...util.notes import is_serious
from ...util.text import count, escape, listing
from ..inputs.argument_types import Mismatch, Patterns, Rules, Sources, checked, rules_as_text
from ..inputs.encoding import check_encoding
from ..inputs.inputs import close_inputs, close_plan, specs_of
from ..inputs.reopening import inputs_of
from .transplant import TransplantRequest, plan_into

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ModuleLoading", "load_all", "load_every_tensor", "load_into", "naming"]

_log = logging.getLogger(__name__)
SHOWN = 5
FACTOR = re.compile(r"\.(lora|hada|lokr|ia3|vera|oft|boft)_")
"""Matches the key of an adapter's factor in a model of PEFT."""
MERGE = "; these are factors of an adapter: merge it first, or the weights are those of its base"


@dataclass(frozen=True)
class ModuleLoading:
    """The module, the sources and the rules of one call of ``load_into``.

    Error messages begin with ``name``, the name of the module. ``specs`` are the sources, and ``root`` is the dotted
    path of the state dict in them. If ``ignores_state`` is true, ``strict`` does not refuse modules with extra state.
    """

    model: nn.Module
    specs: Sequence[SourceSpec]
    options: Options
    root: str | None = None
    name: str = ""
    encoding: str = "keep"
    ignores_state: bool = False


@checked
def load_into(
    model: nn.Module,
    source: Sources,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    map: Rules = (),
    on_mismatch: Mismatch = (),
    on_missing: str = "init",
    require: Patterns = (),
    strict: bool = False,
    encoding: str = "keep",
    root: str | None = None,
) -> Plan:
    """Load one or more sources into a live module by the rules of ``transplant``; return the plan that was carried out.

    The arguments mean the same as in ``transplant``. Tensors that are in no source keep their values. Notes of the plan
    list them, and the tensors of the sources that are not used, except those that ``include`` or ``exclude`` leaves
    out. These notes, and notes on faults of the weights, are also logged as warnings. With ``on_missing="error"`` or
    ``strict``, PlanError is raised instead. If ``encoding`` is "dequantize", quantised sources are decoded.
    Values are cast to the dtypes of the module. If loading fails, no value, ``requires_grad`` or tie of the module has
    changed. Raises the errors of ``transplant``.

    Only tensors are loaded: extra state (``set_extra_state``) is not, and hooks and own methods of modules that
    ``load_state_dict`` would call (``_load_from_state_dict``) are not called. Notes, which are logged, name these
    modules. With ``strict``, a module with extra state is an error.

    If the tensors of a module are sharded over processes (DTensors, as ``fully_shard`` makes them), each process reads
    and writes only its own shard, one tensor after the other. If loading fails then, the tensors that were already
    written stay changed.
    """
    check_encoding(encoding)
    options = Options.of(
        include=include, exclude=exclude, rules=rules_as_text(map), on_mismatch=on_mismatch, require=require,
        on_missing=on_missing, strict=strict,
    )  # fmt: skip
    plan = load_all([ModuleLoading(model, specs_of(source), options, root, encoding=encoding)])[0]
    left = [*_missing(plan), *_unused(plan)]
    for note in (*filter(is_serious, plan.notes), *left):
        _log.warning(note)
    return replace(plan, notes=(*plan.notes, *left)) if left else plan


def load_every_tensor(model: nn.Module, source: Sources) -> Plan:
    """Load a source that has exactly the tensors of a live module into it; return the plan that was carried out.

    Serious notes are logged, for example on extra state of the module, which stays as it is. Raises the errors of
    ``transplant``.
    """
    options = Options.of(strict=True, on_missing="error")
    plan = load_all([ModuleLoading(model, specs_of(source), options, ignores_state=True)])[0]
    for note in filter(is_serious, plan.notes):
        _log.warning(note)
    return plan


def _missing(plan: Plan) -> Iterator[str]:
    """Yield a note on the module's tensors that are in no source, except those that ``include`` or ``exclude`` drop."""
    if plan.absent:
        number = f"{count(len(plan.absent), 'tensor')} of {escape(plan.target.name)}"
        are = "is in no source and keeps its" if len(plan.absent) == 1 else "are in no source and keep their"
        yield f"{number} {are} values: {listing(plan.absent, SHOWN, where='')}"


def _unused(plan: Plan) -> Iterator[str]:
    """Yield a note on the unused tensors of each source that has some; tensors that options leave out do not count."""
    unused: dict[int, list[str]] = {}
    for place, key in plan.unexpected:
        unused.setdefault(place, []).append(key)
    for place, keys in unused.items():
        number = f"{count(len(keys), 'tensor')} of {escape(plan.sources[place].name)}"
        lost = MERGE if all(map(FACTOR.search, keys)) else ""
        yield f"{number} {'is' if len(keys) == 1 else 'are'} not used: {listing(keys, SHOWN, where='')}{lost}"


def load_all(loadings: Sequence[ModuleLoading], before_writing: Callable[[], None] = lambda: None) -> list[Plan]:
    """Load sources into several live modules; return the plans that were carried out.

    Before anything is written, all plans are made, all values are read and ``before_writing`` is called: if one of
    these fails, no module has changed. Modules that are sharded over processes are the exception: they are written
    last, one tensor after the other, and if this fails, their tensors that were already written stay changed.
    """
    plans: list[Plan] = []
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with ExitStack() as stack:
        for loading in loadings:
            plans.append(_planned(loading))
            stack.callback(close_plan, plans[-1])
        in_parts = [any(map(is_distributed, loading.model.state_dict(keep_vars=True).values())) for loading in loadings]
        for last in (False, True):
            for index, loading in enumerate(loadings):
                if in_parts[index] == last:
                    plans[index] = _staged(loading, plans[index], pairs)
            if not last:
                before_writing()
        _put(pairs)
    return plans


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put ``name``, the name of a module, in front of the message of a CheckpointError raised in the ``with`` block."""
    try:
        yield
    except CheckpointError as error:
        if not name:
            raise
        said = f"{escape(name)}: {error.message}"
        raise type(error)(said, hint=error.hint, details=error.details, rule=error.rule) from error


def _planned(loading: ModuleLoading) -> Plan:
    with naming(loading.name):
        target = module_destination(loading.model)
        if loading.options.strict and not loading.ignores_state:
            _check_stateless(loading.model)
        config = _configuration(loading.model)
        request = TransplantRequest(root=loading.root, config=config, encoding=loading.encoding)
        try:
            return plan_into(loading.specs, target, loading.options, request)
        except PlanError as error:
            if loading.name and error.rule == NOTHING_LOADED:
                error.add_hint(f"If {escape(loading.name)} is to keep its own values, leave it out of loadables.")
            raise


def _check_stateless(model: nn.Module) -> None:
    from ...destinations.torch_module.beyond_tensors import extra_states

    states = extra_states(model)
    if states:
        raise PlanError(
            f"--strict: extra state of modules is not loaded: {listing(states, SHOWN)}.",
            hint="Leave out --strict, and call set_extra_state of these modules.",
            details=states,
        )


def _configuration(model: nn.Module) -> dict[str, Any]:
    """Return the contents of the config.json that transformers would save for the model; {} for other modules.

    The result of ``to_dict`` is converted to JSON and back, because it may contain numbers as keys, and tuples.
    """
    said: Any = getattr(model, "config", None)
    found = said.to_dict() if hasattr(said, "to_dict") else None
    try:
        document = json.loads(json.dumps(found, default=str, skipkeys=True))
    except (ValueError, RecursionError):  # the configuration contains itself
        return {}
    return document if isinstance(document, dict) else {}


def _staged(loading: ModuleLoading, plan: Plan, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Plan:
    """Read the new values of a plan, append (tensor, new values) to ``pairs``, and return the plan with all notes.

    If the module's tensors are sharded over processes, each value is written to its tensor as soon as it is read, and
    nothing is appended.
    """
    from torch import Tensor

    from ...engine.live_modules import stage_tensors

    tensors = {k: v for k, v in loading.model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    with naming(loading.name):
        inputs = inputs_of(plan)
        try:
            boxes = {key: own_bounds(tensor) for key, tensor in tensors.items() if is_distributed(tensor)}
            put = partial(_put_one, tensors) if boxes else None
            staged, lost = stage_tensors(plan, inputs, boxes, put)
        finally:
            close_inputs(inputs)
    pairs += [(tensors[key], values) for key, values in staged.items()]
    return replace(plan, inputs=None, notes=(*plan.notes, *lost))


def _put_one(tensors: Mapping[str, torch.Tensor], key: str, values: torch.Tensor) -> None:
    from ...engine.live_modules import put_tensors

    put_tensors([(own_part(tensors[key]), values)])


def _put(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    from ...engine.live_modules import put_tensors

    def released() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each pair (tensor, new values) and remove it, so that values are freed as soon as they are written."""
        pairs.reverse()
        while pairs:
            yield pairs.pop()

    put_tensors(released())
