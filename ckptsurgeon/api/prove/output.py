"""Proves that a written output computes the same as its source."""

from __future__ import annotations

import os
from contextlib import closing

from ...analysis.prove.proof import DIFFERENT, EQUIVALENT, SAME, Proof
from ...errors import CheckpointError, ConfigError, VerifyError
from ...planning.plan.files import PlanSource, given_sources
from ...planning.plan.plan import Plan
from ...storage.read.uri import shown
from ...util.text import count, escape
from .prove import prove_each

__all__ = ["check_provable", "check_runs", "prove_output", "require_proof"]

SATISFIES = {SAME: (SAME,), EQUIVALENT: (SAME, EQUIVALENT)}
"""{verdict that a recipe can require: verdicts of ``prove`` that satisfy it}"""

_PROVE = "Run ckpt prove on source and output with inputs that fit the network: --inputs FILE."
"""The hint if the networks do not run on random inputs; the command that wrote the output has no --inputs."""


def check_provable(plan: Plan) -> None:
    """Raise ConfigError if the output of a plan cannot be compared with its source.

    The output must have weights. The plan must have exactly one source, in a file, and the architecture must be known
    from a configuration.
    """
    from .opening import configuration_of, no_configuration

    if plan.verb == "resize" and plan.arguments.get("optimizer"):
        raise ConfigError(
            "a proof runs networks, but the output of --optimizer is the state of an optimizer, without weights.",
            hint="Leave --prove out here. To prove the weights, run the same ckpt resize with --prove and without "
            "--optimizer.",
        )
    sources = [one for one in given_sources(plan.sources) if one.role == "source"]
    if len(sources) != 1:
        raise ConfigError(
            f"a proof compares the output with exactly one source, but this plan has {count(len(sources), 'source')}.",
            hint="Leave --prove out, and compare two models with ckpt prove.",
        )
    source = sources[0]
    if source.memory:
        raise ConfigError("no proof is possible for a source in memory.", hint="Save the source to a file first.")
    if not (configuration_of(source.path) or plan.target.config):
        hint = "Leave --prove out, and run ckpt prove on source and output with --model CONFIG."
        error = no_configuration(source.path, "the architecture of the model", hint)
        if error.hint != hint:
            error.hint = "Leave --prove out, and run ckpt prove on source and output with --root COMPONENT."
        raise error


def check_runs(plan: Plan) -> None:
    """Raise the errors of ``prove_output`` (ConfigError, PlanError) that can be found before the output is written.

    The network of the plan's source is built for this, but no weights are read.
    """
    from .inputs import drawn_inputs
    from .opening import configuration_of, open_network

    check_provable(plan)
    source = _source(plan)
    configuration = configuration_of(source.path) or plan.target.config
    opened = open_network(source.path, configuration, task=None, root=source.root or None, read_buffers=False)
    with closing(opened) as network:
        try:
            drawn_inputs(network.module, 0)
        except ConfigError as error:
            raise ConfigError(
                error.message, hint="Leave --prove out, and run ckpt prove on source and output with --inputs FILE."
            ) from error


def prove_output(plan: Plan, output: str | os.PathLike[str]) -> Proof:
    """Run the networks of a plan's source and of its output, and return the comparison, as ``prove`` does.

    If the folder of a network's weights has no config.json, the configuration of the plan's destination is used.
    """
    check_provable(plan)
    source = _source(plan)
    try:
        return prove_each(
            (source.path, os.fspath(output)), roots=(source.root or None, None), model=plan.target.config or None
        )
    except CheckpointError as error:
        raise type(error)(
            f"{escape(shown(os.fspath(output)))} is written, but could not be proved: {error.message}",
            hint=_PROVE if "--inputs" in error.hint else error.hint, details=error.details, rule=error.rule,
        ) from error  # fmt: skip


def _source(plan: Plan) -> PlanSource:
    return next(one for one in plan.sources if one.role == "source")


def require_proof(plan: Plan, output: str | os.PathLike[str], wanted: str) -> str:
    """Return the verdict of ``prove`` on an output; raises VerifyError if this verdict does not satisfy ``wanted``.

    ``wanted`` is the verdict that a recipe requires.
    """
    found = prove_output(plan, output)
    if found.verdict in SATISFIES[wanted]:
        return found.verdict
    where = f" from {escape(found.drift.name)} on" if found.drift is not None and found.drift.name else ""
    what = (
        "computes something else"
        if found.verdict == DIFFERENT
        else "computes the same as its source only up to rounding"
    )
    name = escape(shown(os.fspath(output)))
    raise VerifyError(
        f"{name} is written, but {what}{where}: the recipe asserts the verdict {wanted}, but the verdict is "
        f"{found.verdict}.",
        hint=f"ckpt prove {escape(found.first.path)} {name} shows the difference after each block.",
    )
