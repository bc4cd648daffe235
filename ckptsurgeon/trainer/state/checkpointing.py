"""Writes the checkpoints of a run: the newest to resume from, and the best model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext

from ..folder.run_folder import BEST, MODEL, MOMENTS, RunFolder
from .model_tensors import safetensors_bytes, state_tensors, write_safetensors
from .sharded_state import save_moments
from .training_state import TrainingState

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes a state into a run folder; without a folder it writes nothing, as on every rank but the first.

    ``lineage`` goes into the metadata of the best model.
    """

    def __init__(self, state: TrainingState, folder: RunFolder | None) -> None:
        self._state, self.folder = state, folder
        self.lineage: Mapping[str, str] = {}

    def save(self) -> None:
        """Write a checkpoint to resume from; every rank must call this. Raises OutputError."""
        state, folder = self._state, self.folder
        values = state.state_dict()  # gathers from all ranks, so it comes before any test of the folder
        if state.parallel.is_sharded:
            self._save_shards(values)
        elif folder is not None:
            weights = safetensors_bytes(state_tensors(state.model))
            folder.save(state.progress.step, weights, values, keep=state.settings.keep)

    def save_alone(self) -> bool:
        """Save without the other ranks, which are gone or wait for this one; returns whether it could.

        With DDP every rank has the whole model. With FSDP the shards of the other ranks are missing.
        """
        state = self._state
        state.is_alone = True
        if not state.progress.step or state.parallel.is_sharded:
            return False
        self.save()
        return True

    def _save_shards(self, values: Mapping[str, object]) -> None:
        """Write a checkpoint of all ranks: rank 0 gathers the weights one by one, each rank writes its moments."""
        state, folder, ranks = self._state, self.folder, self._state.job.ranks
        with folder.saving(state.progress.step, keep=state.settings.keep) if folder else nullcontext() as staged:
            path = ranks.broadcast(os.path.abspath(staged.path) if staged is not None else "")
            write_safetensors(os.path.join(path, MODEL) if folder is not None else None, state_tensors(state.model))
            save_moments(os.path.join(path, MOMENTS), state.model, state.optimizer, state.ema, ranks)
            ranks.barrier()  # checksums are taken of files that are complete
            if folder is not None and staged is not None:
                folder.finish(staged, values)

    def save_best(self) -> None:
        """Write the model as the best: its average, if there is one. Raises OutputError."""
        state, folder = self._state, self.folder
        if folder is None and not state.parallel.is_sharded:
            return
        with state.ema.applied() if state.ema is not None else nullcontext():
            tensors = state_tensors(state.model)
            if state.parallel.is_sharded:
                write_safetensors(folder.of(BEST) if folder is not None else None, tensors, self._metadata())
            elif folder is not None:
                folder.write(BEST, safetensors_bytes(tensors, self._metadata()))

    def _metadata(self) -> dict[str, str]:
        progress = self._state.progress
        figure = {} if progress.best is None else {self._state.job.metric: repr(progress.best)}
        return {**self.lineage, "step": str(progress.step), **figure}
