"""Advises ``resize`` if a mixture of experts is to fill a dense model, since it keeps a trained feed-forward layer."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import CheckpointError
from ...planning.resizing.fields import role_of
from ...planning.target import TargetSpec
from ...util.text import escape
from ..inputs.argument_types import CheckpointLike
from ..inputs.inputs import close_plan

__all__ = ["one_expert_notes"]

Config = Mapping[str, Any]
"""The fields of a config.json."""


def one_expert_notes(
    source: CheckpointLike, theirs: Config, ours: Config, target: TargetSpec, root: str | None
) -> Iterator[str]:
    """Yield a note with the command that makes the dense network ``target`` from one expert of each source layer.

    ``theirs`` is the config.json of the source, ``ours`` that of the destination. There is no note if ``resize`` cannot
    make exactly the tensors of ``target``.
    """
    kind = ours.get("model_type")
    if not (isinstance(source, (str, os.PathLike)) and os.path.isdir(source) and isinstance(kind, str)):
        return
    if not _has_experts(theirs) or _has_experts(ours) or not _makes(source, kind, target, root):
        return
    path = os.fspath(source)
    words = ["ckpt", "resize", path, "--as", kind, "--expert", "0", *(("--root", root) if root is not None else ())]
    command = shlex.join([*words, "-o", f"{path.rstrip('/')}-{kind}/"])
    yield f"to keep trained feed-forward layers, take those of one expert: {escape(command, 2000)}"


def _has_experts(config: Config) -> bool:
    return any(role_of(name) == "experts" for name in config)


def _makes(source: str | os.PathLike[str], kind: str, target: TargetSpec, root: str | None) -> bool:
    """Return whether ``resize`` can make a dense network of type ``kind`` with exactly the tensors of ``target``."""
    from .resize import resize  # imported late, because few sources have experts

    try:
        plan = resize(source, model_type=kind, expert=0, root=root)
    except CheckpointError:
        return False
    close_plan(plan)
    made = {step.key: tuple(step.shape) for step in plan.steps}
    return made == {key: tuple(info.shape) for key, info in target.tensors.items()}
