"""The folder of a run: checkpoints that are complete or absent, the best model, and the records.

config.yaml lineage.json log.jsonl checks.json result.json curves.png
steps/<n>/{model.safetensors,state.pth,sums.json,moments/} last -> steps/<n> best.safetensors
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from ...destinations.hf.files import ADAPTER_WEIGHTS
from ...errors import ConfigError, FormatError, OutputError, SourceError
from ...storage.small_files import read_file
from ...storage.write.folders import StagedFolder, staged_folder
from ...storage.write.output_checks import output_error
from ...storage.write.staging import staged_file
from ...storage.write.temp_files import remove_all_leftovers, sync_folder, temp_name
from ...util.did_you_mean import did_you_mean
from ...util.text import escape, number_in
from .checkpoint_files import (
    CHECKSUMS,
    FILES,
    checksums_of_folder,
    clear_last,
    complete_steps,
    damage_error,
    linked_step,
    verify_checksums,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ADAPTER", "BEST", "MODEL", "MOMENTS", "RunFolder"]

MODEL, STATE = FILES
BEST, ADAPTER = "best.safetensors", "adapter"
"""The file with the best weights of a run; if the run trains adapters, the folder with the best adapter."""
MOMENTS = "moments"
"""The folder of optimizer moments, to which every rank of a sharded run writes."""
JSON_BYTES = 64 << 20
"""The largest JSON file of a run that is read, in bytes."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, at ``path``. The folder need not exist yet."""

    path: str

    def of(self, *names: str) -> str:
        """Return the path of the run folder joined with ``names``, as by ``os.path.join``."""
        return os.path.join(self.path, *names)

    @property
    def adapter(self) -> str:
        """The path of the weights of the best adapter, in a folder that PEFT opens."""
        return self.of(ADAPTER, ADAPTER_WEIGHTS[0])

    @property
    def best(self) -> str:
        """The path of the file of the best weights; if the run has written an adapter, of the adapter's weights."""
        return self.adapter if os.path.exists(self.adapter) else self.of(BEST)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has saved a checkpoint or its result in the folder; if so, no new run may begin in it."""
        return os.path.lexists(self.of("last")) or bool(complete_steps(self.path)) or self._ended

    @property
    def _ended(self) -> bool:
        return os.path.exists(self.best) and os.path.exists(self.of("result.json"))

    @property
    def saved_steps(self) -> list[int]:
        """The steps of the complete checkpoints, the newest last."""
        return complete_steps(self.path)

    def last_step(self) -> int:
        """Return the step of the checkpoint to resume from; raises ConfigError or SourceError if there is none."""
        there = _is_folder(self.path)
        if not there or not self.holds_a_run:
            what = "contains no run" if there else "does not exist"
            raise ConfigError(
                f"there is nothing to resume: the folder {escape(self.path)} {what}.",
                hint=did_you_mean(self.path, "Start a run without --resume, or give the folder of a run: --run DIR."),
            )
        step = linked_step(self.path)
        if step is not None:
            return step
        if not self.saved_steps:
            raise SourceError(
                f"{escape(self.path)} contains a run without a complete checkpoint in {escape(self.of('steps'))}.",
                hint="Copy a checkpoint back into that folder, or start another run with --run DIR, which leaves the "
                "files of this run as they are.",
            )
        return self.saved_steps[-1]

    def relinked(self) -> str:
        """Create the link ``last`` again if it is lost; it points to the checkpoint to resume from.

        Returns a note if the link was lost, else ''.
        """
        step = self.last_step()
        if linked_step(self.path) == step:
            return ""
        clear_last(self.path, step)
        self._point(step)
        there = self.of("steps", str(step))
        return f"{escape(self.of('last'))} did not point to a checkpoint; resuming from {escape(there)}"

    def create(self) -> None:
        """Make the folder; raises OutputError if that fails."""
        try:
            made = [self.path, *_absent(self.path)]
            os.makedirs(self.of("steps"), exist_ok=True)
            for folder in made:
                sync_folder(folder)
        except OSError as error:
            raise output_error(self.path, error) from error

    @contextmanager
    def saving(self, step: int, *, keep: int, nbytes: int = 0) -> Iterator[StagedFolder]:
        """Yield a temporary folder, into which the block writes the checkpoint of a step; then move it to its place.

        After the block, the link ``last`` points to the new checkpoint, and all but the newest ``keep`` checkpoints are
        removed. ``nbytes`` is the space that the checkpoint needs. Even if the process is killed, ``last`` points to a
        complete checkpoint: the new checkpoint or the previous one. Raises OutputError.
        """
        stale = (MODEL, STATE, CHECKSUMS, MOMENTS)
        with staged_folder(self.of("steps", str(step)), nbytes, stale=stale) as staged:
            yield staged
        self._point(step)
        self._prune(step, keep)

    def finish(self, staged: StagedFolder, state: Mapping[str, Any]) -> None:
        """Write the run's ``state`` and the checksums of all files into ``staged``, the folder that ``saving`` yields.

        Raises OutputError.
        """
        import torch

        with staged.stream(STATE) as file:
            try:
                torch.save(dict(state), cast(IO[bytes], file))  # torch.save only calls file.write and file.flush
            except RuntimeError as error:
                if isinstance(error.__context__, OutputError):  # a write failed, then torch failed to end the file
                    raise error.__context__ from None
                raise
        moments = os.path.join(staged.path, MOMENTS)
        if os.path.isdir(moments):
            sync_folder(moments)
        staged.write(CHECKSUMS, checksums_of_folder(staged.path))

    def _point(self, step: int) -> None:
        """Point the link ``last`` to the checkpoint of a step, by an atomic rename."""
        temp = temp_name(self.of("last"))
        try:
            os.symlink(os.path.join("steps", str(step)), temp)
            os.replace(temp, self.of("last"))
            sync_folder(self.path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temp)
            raise output_error(self.of("last"), error) from error

    def _prune(self, step: int, keep: int) -> None:
        """Remove old checkpoints and the leftovers of killed runs; keep the newest ``keep`` checkpoints up to ``step``.

        Checkpoints of later steps than ``step`` are also removed: they were written before the run was resumed at an
        earlier step. Each checkpoint is renamed, and the rename is synced, before its files are removed: so half a
        checkpoint never has the name of a checkpoint.
        """
        found = sorted(one for name in os.listdir(self.of("steps")) if (one := number_in(name)) is not None)
        kept = [one for one in found if one <= step][-keep:]
        gone = [temp for one in found if one not in kept for temp in self._unnamed(one)]
        with suppress(OSError):
            if gone:
                sync_folder(self.of("steps"))
            for temp in gone:
                shutil.rmtree(temp)
        self.tidy()

    def tidy(self) -> None:
        """Remove the leftovers of killed runs; the caller must hold the lock of the folder."""
        remove_all_leftovers(self.of("steps"))
        remove_all_leftovers(self.path)
        with suppress(OSError):
            for name in os.listdir(self.path):
                if name.startswith(".last.") and ".ckpt-tmp" in name and os.path.islink(self.of(name)):
                    os.unlink(self.of(name))

    def _unnamed(self, step: int) -> list[str]:
        """Rename a checkpoint that is to be removed; return a list with its new path, or [] if renaming failed."""
        gone = temp_name(self.of("steps", str(step)))
        try:
            os.rename(self.of("steps", str(step)), gone)
        except OSError:
            return []
        return [gone]

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the state of the newest checkpoint; raises SourceError or FormatError."""
        import torch
        from safetensors.torch import load_file

        step = self.last_step()
        where = self.of("steps", str(step))
        others = [self.of("steps", str(other)) for other in self.saved_steps if other != step]
        verify_checksums(where, others=others)
        name = MODEL
        try:
            tensors = load_file(os.path.join(where, MODEL))
            name = STATE
            state = torch.load(os.path.join(where, STATE), map_location="cpu", weights_only=True)
            if state.get("in_parts"):
                state[MOMENTS] = os.path.join(where, MOMENTS)
        except OSError as error:
            raise SourceError(f"{escape(where)} cannot be read: {error.strerror or error}.") from error
        except Exception as error:
            raise damage_error(os.path.join(where, name), where, others, "it is truncated or overwritten") from error
        return tensors, state

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` to the file ``name`` of the folder, completely or not at all; raises OutputError.

        The name may have a subfolder in front.
        """
        try:
            os.makedirs(os.path.dirname(self.of(name)), exist_ok=True)
        except OSError as error:
            raise output_error(self.of(name), error) from error
        with staged_file(self.of(name), len(data), force=True) as staged:
            staged.write(0, data)

    def remove(self, name: str) -> None:
        """Remove the file ``name`` of the folder, if it exists; raises OutputError."""
        try:
            os.unlink(self.of(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise output_error(self.of(name), error) from error

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write ``data`` as JSON to the file ``name`` of the folder; raises OutputError."""
        self.write(name, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in the file ``name`` of the folder.

        Raises SourceError if the file cannot be read, and FormatError if it does not contain a JSON object.
        """
        try:
            data = json.loads(read_file(self.of(name), JSON_BYTES))
        except OSError as error:
            raise SourceError(f"{escape(self.of(name))} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise FormatError(f"{escape(self.of(name))} is not valid JSON: {error}.") from error
        if not isinstance(data, dict):
            raise FormatError(f"{escape(self.of(name))} is not a valid file of a run: it is not a JSON object.")
        return data


def _is_folder(path: str) -> bool:
    """Return whether ``path`` is an existing folder; raises SourceError if that cannot be determined."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror or error}.") from error


def _absent(path: str) -> list[str]:
    """Return the parent folders of a path that do not exist yet, and the nearest parent folder that exists."""
    path, found = os.path.abspath(path), []
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
        found.append(path)
    return found
