"""Proves that an output computes what its source does."""

from __future__ import annotations

import os

from ...analysis.prove.proof import DIFFERENT, EQUIVALENT, SAME, Proof
from ...errors import CheckpointError, ConfigError, VerifyError
from ...planning.plan.files import PlanSource
from ...planning.plan.plan import Plan
from ...storage.read.uri import shown
from ...util.text import count, escape
from .prove import prove_each

__all__ = ["check_provable", "check_runs", "prove_output", "require_proof"]

SATISFIES = {SAME: (SAME,), EQUIVALENT: (SAME, EQUIVALENT)}
"""Which verdicts are enough for the one that a recipe asserts."""


def check_provable(plan: Plan) -> None:
    """Raise ConfigError if the output of a plan has no single source on disk, with a network, to be compared with."""
    from .network import configuration_of

    sources = [one for one in plan.sources if one.role == "source"]
    if len(sources) != 1:
        raise ConfigError(
            f"a proof compares the output with its one source, and this plan has {count(len(sources), 'source')}.",
            hint="Leave --prove out, and run ckpt prove on two models.",
        )
    source = sources[0]
    if source.memory:
        raise ConfigError("a source in memory cannot be proved.", hint="Write it to a file first.")
    if not (configuration_of(source.path) or plan.target.config):
        raise ConfigError(
            f"{escape(shown(source.path))} cannot be proved: no config.json beside it says what network it is.",
            hint="Leave --prove out, and run ckpt prove on source and output with --model CONFIG.",
        )


def check_runs(plan: Plan, output: str | os.PathLike[str], *, to: str | None = None) -> None:
    """Raise what ``prove_output`` would raise on a plan's source or on the format of its output.

    It builds the source's network, but reads no weights.
    """
    from .network import configuration_of, open_network

    check_provable(plan)
    if to == "gguf" or os.fspath(output).lower().endswith(".gguf"):
        raise ConfigError(
            "a GGUF file cannot be proved: its tensors have the names of llama.cpp.", hint="Leave --prove out."
        )
    source = _source(plan)
    configuration = configuration_of(source.path) or plan.target.config
    open_network(source.path, configuration, task=None, root=source.root or None, read_buffers=False).close()


def prove_output(plan: Plan, output: str | os.PathLike[str]) -> Proof:
    """Run the network of a plan's source and that of its output, and return what both compute, as ``prove`` does.

    A source without a configuration of its own is run as the network of the destination.
    """
    check_provable(plan)
    source = _source(plan)
    try:
        return prove_each(
            (source.path, os.fspath(output)), roots=(source.root or None, None), model=plan.target.config or None
        )
    except CheckpointError as error:
        raise type(error)(
            f"{escape(shown(os.fspath(output)))} is written, and was not proved: {error.message}",
            hint=error.hint, details=error.details, rule=error.rule,
        ) from error  # fmt: skip


def _source(plan: Plan) -> PlanSource:
    return next(one for one in plan.sources if one.role == "source")


def require_proof(plan: Plan, output: str | os.PathLike[str], wanted: str) -> str:
    """Return the verdict on an output; raises VerifyError if it is not what a recipe asserts."""
    found = prove_output(plan, output)
    if found.verdict in SATISFIES[wanted]:
        return found.verdict
    where = f" from {escape(found.drift.name)} on" if found.drift is not None and found.drift.name else ""
    what = "computes something else" if found.verdict == DIFFERENT else "does not compute the same bit for bit"
    name = escape(shown(os.fspath(output)))
    raise VerifyError(
        f"{name} is written, but {what}{where}: {found.verdict}, and the recipe asserts {wanted}.",
        hint=f"ckpt prove {escape(found.first.path)} {name} shows each block.",
    )
