"""Proves that an output computes what its source does."""

from __future__ import annotations

import os

from ...analysis.prove.proof import DIFFERENT, EQUIVALENT, SAME, Proof
from ...errors import ConfigError, VerifyError
from ...planning.plan.plan import Plan
from ...storage.read.uri import shown
from ...util.text import count, escape
from .prove import prove_each

__all__ = ["check_provable", "prove_output", "require_proof"]

SATISFIES = {SAME: (SAME,), EQUIVALENT: (SAME, EQUIVALENT)}
"""Which verdicts are enough for the one that a recipe asserts."""


def check_provable(plan: Plan) -> None:
    """Raise ConfigError if the output of a plan has no single source on disk that it could be compared with."""
    sources = [one for one in plan.sources if one.role == "source"]
    if len(sources) != 1:
        raise ConfigError(
            f"a proof compares the output with its one source, and this plan has {count(len(sources), 'source')}.",
            hint="Leave --prove out, and run ckpt prove on two models.",
        )
    if sources[0].memory:
        raise ConfigError("a source in memory cannot be proved.", hint="Write it to a file first.")


def prove_output(plan: Plan, output: str | os.PathLike[str]) -> Proof:
    """Run the network of a plan's source and that of its output, and return what both compute, as ``prove`` does.

    A source without a configuration of its own is run as the network of the destination.
    """
    check_provable(plan)
    source = next(one for one in plan.sources if one.role == "source")
    return prove_each(
        (source.path, os.fspath(output)), roots=(source.root or None, None), model=plan.target.config or None
    )


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
