"""Checkpoints as destinations: tensors that are in no source keep the values of the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..checkpoint.opening import CheckpointLike, open_checkpoint, path_of
from ..planning.opaque_tensor_errors import is_uncopied, opaque_error
from ..planning.target import TargetSpec
from ..tensors.info import TensorInfo
from ..util.notes import notes_about
from ..util.text import brief_repr, escape
from ._document import Document, check_fields

__all__ = ["CONFIG", "checkpoint_target"]


def checkpoint_target(given: CheckpointLike, root: str | None = None) -> TargetSpec:
    """Return the checkpoint ``given`` as a destination; prefixes of its keys, such as ``module.``, are kept.

    ``root`` chooses the state dict if the file has several. Raises the errors of ``open_checkpoint``, and FormatError
    for a tensor that cannot be copied, or PlanError if torchao quantised it.
    """
    path = path_of(given)
    with open_checkpoint(given, root, unwrap=False, called="destination") as checkpoint:
        for key, info in checkpoint.items():
            if is_uncopied(info):
                leave = f"Leave it out first: ckpt filter --exclude {escape(key)}."
                raise opaque_error(key, path, info, "cannot be in a destination", verb="convert", leave=leave)
        return TargetSpec(
            kind="checkpoint",
            name=_last_part(path) if checkpoint.files[0].name else path,
            tensors={key: TensorInfo(info.dtype, info.shape) for key, info in checkpoint.items()},
            ties=dict(checkpoint.ties),
            keeps=path,
            keeps_root=checkpoint.root,
            kept=None if isinstance(given, (str, os.PathLike)) else given,
            notes=tuple(notes_about(path, checkpoint.notes)),
            extra_state=tuple(checkpoint.extra_state),
        )


def _last_part(path: str) -> str:
    """Return the last part of a path, which recipes record as the destination's name; a URL is returned unchanged."""
    return path if "://" in path else os.path.basename(os.path.normpath(path)) or path


class _Like:
    """``model: {like: file}``: a destination that has the tensors of the checkpoint ``file``."""

    field = "like"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): loading a checkpoint runs no code of the user."""
        return ()

    def load(self, document: Document) -> TargetSpec:
        """Return the checkpoint whose path is in the field ``like`` as a destination.

        Raises ConfigError for an unknown or malformed field, and the errors of ``checkpoint_target``.
        """
        check_fields(document, "model", document.model, ("like", "root"))
        like, root = document.model["like"], document.model.get("root")
        if not isinstance(like, str):
            raise document.fail(f"the field like is {brief_repr(like)}, not a file name.")
        if not isinstance(root, (str, type(None))):
            raise document.fail(
                f"the field root is {brief_repr(root)}, not the dotted path of a state dict in the file."
            )
        spec = checkpoint_target(like if "://" in like else document.resolve(like), root)
        return TargetSpec(**{**spec.__dict__, "name": document.name, "config": document.path})


CONFIG = _Like()
