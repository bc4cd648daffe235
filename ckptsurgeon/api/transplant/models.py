"""The sources and the destination of a transplant, in the form that the checks of their folders need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.target import TargetSpec
from ..model_folder.folder import ModelFolder
from ..model_folder.quantised import folder_of

__all__ = ["TransplantModels"]


@dataclass(frozen=True)
class TransplantModels:
    """The models of a transplant.

    ``opened`` are the sources as they were opened, and ``read`` are the same sources after decoding and operations.
    ``keys`` has the keys of each source. ``kept`` is the destination if it is a checkpoint, else None. If the
    destination is a live module, ``given`` is its configuration, else empty.
    """

    opened: Sequence[Checkpoint]
    read: Sequence[Checkpoint]
    keys: Sequence[Collection[str]]
    kept: Checkpoint | None
    target: TargetSpec
    given: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def folders(self) -> list[ModelFolder]:
        """The folders of the sources, and that of the destination if it is a checkpoint."""
        return [folder_of(one) for one in (*self.read, *([] if self.kept is None else [self.kept]))]

    @cached_property
    def destination(self) -> ModelFolder:
        """The files of the destination: its folder or, for a configuration, the files that the output gets."""
        return self.folders[-1] if self.kept is not None else ModelFolder("", self.target.companions)

    @property
    def kept_folder(self) -> ModelFolder | None:
        """The folder of a destination that is a checkpoint; None for a configuration."""
        return None if self.kept is None else self.folders[-1]

    @property
    def stated(self) -> Mapping[str, Any]:
        """The configuration of a destination that is not a checkpoint; empty if it has none."""
        return self.given or ({} if self.kept is not None else self.destination.config)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the destination; empty if it has none."""
        return self.given or self.destination.config

    @property
    def have_files(self) -> bool:
        """Whether any model may have a configuration, tokens or terms of use; a file of weights alone has none."""
        if self.kept is not None or self.given or self.target.companions:
            return True
        return any(one.files or one.licences or one.embedded or one.unlisted for one in self.folders)
