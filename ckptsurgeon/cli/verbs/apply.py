"""The command ``ckpt apply``: carries out a plan or a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from ...util.torchrun import is_started_again, number_of_processes, rank_of_process
from ..options import Output, RunCode
from ..printing import check_output, quoted
from ..writing import RankChoices, Writing

NAME = "apply"
HELP = """Carry out a plan or a recipe that was written and reviewed before.

A plan is the JSON that ckpt transplant -n --json prints. It is refused if a source or the destination's configuration
has changed since; its paths are relative to the working directory. A plan does not contain the options of its output:
give --to, --ranks and the others again. A recipe is a YAML file with a verb, its options by name (source, destination,
exclude, on_mismatch …), the output, and conditions that the result must meet (assert); its paths are relative to the
recipe. With -n, code that a recipe refers to is not run; a note lists this code.
"""
EXAMPLES = """\b
Examples:
  ckpt apply plan.json -o out.safetensors
  ckpt apply recipe.yaml -n
"""


def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN.json|RECIPE.yaml", help="The plan or recipe to carry out.")],
    output: Output = None,
    run_code: RunCode = False,
    *,
    writing: Writing,
) -> None:
    """Carry out a plan or a recipe."""
    from ...api.apply import apply, check_form
    from ...api.inputs.output_form import completed_options
    from ...api.recipes import load_order
    from ...errors import ConfigError

    if writing.dry_run:
        order = load_order(plan, run_code=run_code)
        try:
            writing.check_consent()
            given = {"to": writing.to, "max_shard_size": writing.max_shard_size, **writing.shared.given}
            form = completed_options(plan, order, output, **given)
            named = order.output if output is None else output
            check_form(form if named is not None else replace(form, path="output/"))
            shared = RankChoices(form.ranks.ranks or None, list(form.ranks.axes), form.ranks.mesh or None)
            writing = replace(
                writing, output=named, to=form.to or None, max_shard_size=form.max_shard_size or None, shared=shared
            )
            writing.check()
            writing.show_unwritten(order.plan, form)
        finally:
            order.close()
        return
    if run_code:
        raise ConfigError(
            "--run-code is only for a dry run (-n): without -n, the code of a recipe is always run.",
            hint="Add -n, or leave --run-code out.",
        )
    if writing.prove:
        raise ConfigError(
            "--prove cannot be used with a plan or recipe.",
            hint="Add to a recipe: assert: {proved: EQUIVALENT}. After a plan, run ckpt prove on source and output.",
        )
    writing.check_consent()
    _check_output(plan, output)
    if writing.consume and not writing.yes:
        from ..confirm_consume import ask_to_consume

        order = load_order(plan)
        try:
            ask_to_consume(order.plan)
        finally:
            order.close()
    printer = writing.printer
    with printer.working("writing", output or "") as progress:
        receipt = apply(
            plan, output, to=writing.to, max_shard_size=writing.max_shard_size, force=writing.force,
            wait=writing.wait, key=writing.key, restart=writing.restart and not is_started_again(),
            consume=writing.consume,
            processes=number_of_processes() > 1, engine=writing.engine, progress=progress,
            **writing.shared.given,
        )  # fmt: skip
    if rank_of_process() or printer.answer(receipt):
        return
    from ...render.verification import counts_line, receipt_view

    printer.notes(receipt.notes)
    next_steps = [f"ckpt verify {quoted(receipt.output)}"]
    printer.show(counts_line(receipt), receipt_view(receipt, next_steps=next_steps))


def _check_output(plan: str, output: str | None) -> None:
    """Raise ConfigError if ``output`` is ``-``. If the plan has an error too, raise that error instead."""
    from ...api.recipes import load_order
    from ...errors import ConfigError

    try:
        check_output(output or "")
    except ConfigError:
        load_order(plan).close()
        raise
