"""Finds the ``ckpt transplant`` command that makes initial weights which fit a model."""

from __future__ import annotations

import shlex

from ...api.inputs.inputs import close_plan
from ...api.model_folder.recorded_tokens import lists_for_vocab
from ...api.transplant.transplant import transplant
from ...errors import CheckpointError
from ...planning.target import TargetSpec
from ...util.text import escape
from .init_checkpoint import InitCheckpoint

__all__ = ["command_that_fits"]


def command_that_fits(init: InitCheckpoint, document: str, target: TargetSpec) -> str:
    """Return a hint with the command that makes ``init`` fit the model in ``document``.

    The transplant is planned before it is proposed: as it is, with the two token lists, and with tensors of other
    shapes initialised. If none of these can be planned, the hint is that of the last error.
    """
    lists, why = lists_for_vocab(init.recipe, init.path, target), ""
    by_token = [(lists, "", f"--vocab {shlex.quote(lists)}")] if lists else []
    for vocab, policy, option in (("", "", ""), *by_token, ("", "init", "--ignore-mismatch")):
        try:
            plan = transplant(init.path, document, vocab=vocab or None, on_mismatch=policy or ())
        except CheckpointError as error:
            why = error.hint
            continue
        close_plan(plan)
        command = f"{shlex.join(('ckpt', 'transplant', init.path, document))} {option}".rstrip()
        return f"{escape(command, 1000)} makes an init that fits."
    return why
