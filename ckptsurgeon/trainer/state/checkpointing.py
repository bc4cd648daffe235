"""Writes checkpoints of a run in the background: the newest state, to resume from, and the best model.

The run's tensors are copied to the CPU, so that they can be written to disk while the run continues.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ...destinations.hf.files import ADAPTER, ADAPTER_WEIGHTS
from ...storage.write.folders import staged_folder
from ...storage.write.staged_file import staged_file
from ..folder.checkpoint_files import MODEL, MOMENTS, finish, saving
from ..folder.hypotheses import clip_sounds, hypotheses, hypotheses_file
from ..folder.run_folder import BEST, RunFolder
from .lora import adapter_config, adapter_tensors
from .model_tensors import SafetensorsLayout, state_tensors
from .sharded_state import save_moments
from .training_state import TrainingState

__all__ = ["CheckpointWriter", "Snapshot"]


class CheckpointWriter:
    """Writes checkpoints of a run into its folder; if ``folder`` is None, as on ranks above 0, it writes no files.

    Inside its ``with`` block, a save only waits until the tensors are copied; a thread writes the files. An error in
    the thread is raised by the next save, or at the end of the block. A sharded model is saved by all ranks together,
    without the thread. ``lineage`` is written into the metadata of the best model.
    """

    def __init__(self, state: TrainingState, folder: RunFolder | None) -> None:
        self._state, self.folder = state, folder
        self.lineage: Mapping[str, str] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._newest, self._best = Snapshot(), Snapshot()
        self._writing: dict[Snapshot, Future[None]] = {}

    def __enter__(self) -> CheckpointWriter:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Wait until the thread has written everything; raise its OutputError, unless the block raised an error."""
        assert self._thread is not None
        self._thread.shutdown()
        self._thread, written, self._writing = None, self._writing, {}
        first = next(filter(None, (one.exception() for one in written.values())), None)
        if first is not None and error is None:
            raise first

    def save(self) -> None:
        """Write a checkpoint to resume from; every rank must call this. Raises OutputError."""
        state, folder = self._state, self.folder
        values = state.state_dict()  # gathers from all ranks, so before any check of ``folder``
        if state.parallel.is_sharded:
            self._save_shards(values)
        elif folder is not None:
            self._await(self._newest)
            tensors, values = self._newest.take((state_tensors(state.model), values))
            step, keep = state.progress.step, state.settings.keep
            self._write(self._newest, partial(_write_checkpoint, folder, step, tensors, values, keep=keep))

    def save_alone(self) -> bool:
        """Write a checkpoint without the other ranks, which have ended or wait; return whether this was possible.

        With DDP this works, because every rank has the whole model. With FSDP, or before the first step, nothing is
        written.
        """
        state = self._state
        state.is_alone = True
        if not state.progress.step or state.parallel.is_sharded:
            return False
        self.save()
        self._await(self._newest)
        return True

    def save_best(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the model as the best, with its averaged weights if the run has them; raises OutputError.

        ``rows`` are the task's rows from the evaluation of this model, with the decoded text of each clip of ``dev``.
        """
        state, folder = self._state, self.folder
        if folder is None and not state.parallel.is_sharded:
            return
        with state.ema.applied() if state.ema is not None else nullcontext():
            tensors = state_tensors(state.model)
            if state.parallel.is_sharded:
                _write_best(folder, SafetensorsLayout(tensors, self._metadata()))
            else:
                lora = state.settings.lora
                tensors = adapter_tensors(state.model) if lora.targets else tensors
                self._await(self._best)
                layout = SafetensorsLayout(self._best.take(tensors), self._metadata())
                write = partial(_write_best, folder, layout)
                if lora.targets and folder is not None:
                    base = state.job.init.path if state.job.init is not None else ""
                    write = partial(_write_adapter, folder, layout, adapter_config(state.model, base))
                self._write(self._best, partial(_write_with_texts, folder, write, rows, dev=state.job.dev))

    def _await(self, snapshot: Snapshot) -> None:
        """Wait until the thread has written a snapshot, so that its memory can be used again; raises OutputError."""
        pending = self._writing.pop(snapshot, None)
        if pending is not None:
            pending.result()

    def _write(self, snapshot: Snapshot, write: Callable[[], None]) -> None:
        """Let the thread write a snapshot by calling ``write``; outside of the ``with`` block, call ``write`` now."""

        def run() -> None:
            snapshot.wait()
            write()

        if self._thread is None:
            run()
        else:
            self._writing[snapshot] = self._thread.submit(run)

    def _save_shards(self, values: Mapping[str, object]) -> None:
        """Write a checkpoint of all ranks: rank 0 gathers and writes the weights, each rank writes its moments.

        ``values`` is the ``state_dict`` of the TrainingState, which rank 0 writes.
        """
        state, folder, ranks = self._state, self.folder, self._state.job.ranks
        with saving(folder.path, state.progress.step, keep=state.settings.keep) if folder else nullcontext() as staged:
            path = ranks.broadcast(os.path.abspath(staged.path) if staged is not None else "")
            layout = SafetensorsLayout(state_tensors(state.model))
            layout.write(staged.file(MODEL, layout.nbytes) if staged is not None else None)
            save_moments(os.path.join(path, MOMENTS), state.model, state.optimizer, state.ema, ranks)
            ranks.barrier()  # every file must be complete before checksums are computed
            if staged is not None:
                finish(staged, values)

    def _metadata(self) -> dict[str, str]:
        progress = self._state.progress
        figure = {} if progress.best is None else {self._state.job.metric: repr(progress.best)}
        return {**self.lineage, "step": str(progress.step), **figure}


def _write_checkpoint(
    folder: RunFolder, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, object], *, keep: int
) -> None:
    layout = SafetensorsLayout(tensors)
    with saving(folder.path, step, keep=keep, nbytes=layout.nbytes) as staged:
        layout.write(staged.file(MODEL, layout.nbytes))
        finish(staged, values)


def _write_with_texts(
    folder: RunFolder | None, write: Callable[[], None], rows: Sequence[Mapping[str, Any]], *, dev: object
) -> None:
    """Write the best weights by calling ``write``, and then the hypotheses file of the split ``dev``.

    ``rows`` have the recognised text and the transcript of each clip, ``dev`` is the source of the split.
    """
    write()
    if folder is None:
        return
    texts = hypotheses(rows, clip_sounds(dev, folder.path))
    if texts:
        folder.write(hypotheses_file("dev"), texts)


def _write_adapter(folder: RunFolder, layout: SafetensorsLayout, config: bytes) -> None:
    """Write the best adapter as a folder that PEFT can open; its file of weights is ``folder.best``."""
    with staged_folder(os.path.dirname(folder.adapter), layout.nbytes, stale=(ADAPTER, *ADAPTER_WEIGHTS)) as staged:
        staged.write(ADAPTER, config)
        layout.write(staged.file(ADAPTER_WEIGHTS[0], layout.nbytes))


def _write_best(folder: RunFolder | None, layout: SafetensorsLayout) -> None:
    """Write the best model to its file in the run folder; a rank without a run folder only sends its shards."""
    if folder is None:
        layout.write(None)
        return
    with staged_file(folder.of(BEST), layout.nbytes, force=True) as staged:
        layout.write(staged)


class Snapshot:
    """Copies tensors to the CPU, into memory that the next snapshot uses again.

    Copies from a GPU go to pinned memory, and ``take`` returns before they are complete. So a thread that reads the
    copies must call ``wait`` first.
    """

    def __init__(self) -> None:
        self._memory: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, value: Any) -> Any:
        """Return ``value`` with all tensors in its dicts, lists and tuples replaced by copies on the CPU.

        A tensor that occurs several times is copied once.
        """
        self._copies = {}
        made = self._copy(value)
        del self._memory[len(self._copies) :]
        if any(one.is_pinned() for one in self._memory):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return made

    def wait(self) -> None:
        """Wait until the GPU has made all copies, so that another thread can read them."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, dict):
            return {name: self._copy(one) for name, one in value.items()}
        return type(value)(map(self._copy, value)) if type(value) in (list, tuple) else value

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._copies:
            place = len(self._copies)
            memory = self._memory[place] if place < len(self._memory) else None
            if memory is None or _form(memory) != _form(tensor):
                memory = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._memory[place : place + 1] = [memory]
            self._copies[id(tensor)] = memory.copy_(tensor, non_blocking=True)
        return self._copies[id(tensor)]


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()
