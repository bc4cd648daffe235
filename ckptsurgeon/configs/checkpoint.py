"""Destinations that are checkpoints: the same keys and shapes; what no source gives is kept."""

from __future__ import annotations

from ..checkpoint import open_checkpoint
from ..errors import FormatError
from ..target import TargetSpec
from ..tensors import TensorInfo
from ..text import brief_repr, escape
from ._document import Document, check_fields

__all__ = ["CONFIG", "checkpoint_target"]


def checkpoint_target(path: str, root: str | None = None) -> TargetSpec:
    """Return the destination that a checkpoint is; its keys stay as they are, wrappers and all.

    Raises what ``open_checkpoint`` raises, and FormatError for a tensor whose values are not plain bytes.
    """
    with open_checkpoint(path, root, unwrap=False) as checkpoint:
        for key, info in checkpoint.items():
            if info.opaque:
                raise FormatError(f"{escape(key)} of {escape(path)} cannot be kept: {info.opaque}.", rule="opaque")
        return TargetSpec(
            kind="checkpoint",
            name=checkpoint.files[0].name or path,
            tensors={key: TensorInfo(info.dtype, info.shape) for key, info in checkpoint.items()},
            ties=dict(checkpoint.ties),
            keeps=path,
            keeps_root=checkpoint.root,
            notes=checkpoint.notes,
        )


class _Like:
    """``model: {like: file}``."""

    field = "like"

    def load(self, document: Document) -> TargetSpec:
        """Return the destination that the named checkpoint is."""
        check_fields(document, "model", document.model, ("like", "root"))
        like, root = document.model["like"], document.model.get("root")
        if not isinstance(like, str) or not isinstance(root, (str, type(None))):
            raise document.fail(f"like is {brief_repr(like)}, not a file name.")
        spec = checkpoint_target(like if "://" in like else document.resolve(like), root)
        return TargetSpec(**{**spec.__dict__, "name": document.name, "config": document.path})


CONFIG = _Like()
