"""Changes a plan so that the rows of new tokens are made from the rows of a donor model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ....destinations.hf.files import CONFIG
from ....destinations.hf.resizable import Resizable
from ....destinations.module_kinds import module_kinds
from ....engine.inputs import PlanInputs
from ....errors import ConfigError
from ....planning.plan.plan import Plan
from ....planning.plan.rows import VocabularyRows
from ....planning.target import TargetSpec
from ....util.text import count, escape
from ...inputs.inputs import KeptOpen, names_of, plan_source
from .checked_rows import checked_rows
from .choice import DonorChoice
from .model import Donor

__all__ = ["network_of", "with_donor"]


def with_donor(plan: Plan, choice: DonorChoice, tokens: Sequence[str], network: TargetSpec) -> Plan:
    """Return a plan whose new rows are made from rows of a donor; the donor becomes a source of the plan.

    ``tokens`` are the tokens of the new vocabulary, and ``network`` describes the output. All rows that are used are
    read once, to check that they are finite.

    Raises ConfigError if the plan maps no rows by token, or no token is new; if the donor has no network, token list or
    weights; or if a token is in neither model. Raises PlanError if the rows cannot be used, or if too few tokens are
    shared. Also raises the errors of opening the donor. If this function raises, it closes the plan's inputs.
    """
    inputs, rows = plan.inputs, plan.rows
    assert isinstance(inputs, PlanInputs)
    opened = list(inputs.sources)
    with KeptOpen(opened):
        if rows is None:
            raise _unused()
        donor = Donor(choice.path)
        opened.append(donor.checkpoint)
        made = replace(rows, donor=donor.rows_of(tokens, rows, choice.picks), means={})
        kinds = module_kinds(network)
        at = len(plan.sources)
        steps = tuple(
            replace(step, rows=made, more=donor.inputs_of(step, kinds, at)) if step.rows is not None else step
            for step in plan.steps
        )
        notes = [_said(made, choice), *checked_rows(steps, made, opened, tokens)]
        name = names_of([*(one.path or one.name for one in plan.sources), choice.path])[-1]
        source = plan_source(name, donor.checkpoint, role="donor")
    return replace(
        plan, steps=steps, rows=made, sources=(*plan.sources, source), notes=(*plan.notes, *notes),
        inputs=replace(inputs, sources=tuple(opened)),
    )  # fmt: skip


def network_of(target: TargetSpec) -> TargetSpec:
    """Return the destination as a network that can be built: the network of its config.json if it is a folder with one.

    The destination is returned unchanged if it can be built already, or if its config.json is that of a quantised model
    or of a toolkit.
    """
    config = os.path.join(target.keeps, CONFIG)
    if target.build is not None or not os.path.isfile(config):
        return target
    with suppress(ConfigError):  # the config.json is of a quantised model, or of a toolkit
        return Resizable(config).target({})
    return target


def _unused() -> ConfigError:
    return ConfigError(
        "no tensor has rows that are mapped by token, so --new-tokens omp has no effect.", hint="Leave it out."
    )


def _said(rows: VocabularyRows, choice: DonorChoice) -> str:
    assert rows.donor is not None
    made, shared = len(rows.donor.wanted(rows)), len(rows.donor.shared(rows))
    return (
        f"{count(made, 'row')} of new tokens: each is a weighted sum of at most {choice.picks} rows of tokens that the "
        f"model shares with {escape(choice.path)} ({shared} tokens); the weights are those with which the rows of "
        f"these tokens approximate the token's row in {escape(choice.path)} (arXiv 2506.06607)"
    )
