"""The folder of a run: its checkpoints, the best model and the records; and the lock, so that one process trains in it.

config.yaml lineage.json log.jsonl checks.json result.json curves.png
steps/<n>/{model.safetensors,state.pth,sums.json,moments/} last -> steps/<n> best.safetensors
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...destinations.hf.files import ADAPTER_WEIGHTS
from ...errors import ConfigError, FormatError, OutputError, SourceError
from ...storage.descriptors import sync_folder
from ...storage.small_files import read_file
from ...storage.write.output_paths import output_error
from ...storage.write.staged_file import staged_file
from ...util.did_you_mean import did_you_mean
from ...util.text import escape
from .checkpoint_files import (
    MODEL,
    MOMENTS,
    STATE,
    clear_last,
    complete_steps,
    damage_error,
    linked_step,
    point_last,
    verify_checksums,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ADAPTER", "BEST", "RunFolder", "RunLock"]

BEST, ADAPTER = "best.safetensors", "adapter"
"""The file with the best weights of a run; if the run trains adapters, the folder with the best adapter."""
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
        point_last(self.path, step)
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
        except (ValueError, RecursionError) as error:
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
    """Return a path's parent folders up to the nearest one that exists, this one included; [] if the path exists."""
    path, found = os.path.abspath(path), []
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
        found.append(path)
    return found


LOCK_FILE = ".ckpt-lock"


@dataclass
class RunLock:
    """The lock of the run in ``folder``, until this process ends, even if it is killed.

    It is a file in the folder, with a POSIX record lock. Worker processes that this process forks do not hold the lock
    (https://pubs.opengroup.org/onlinepubs/9699919799/functions/fcntl.html). So a killed run can be resumed immediately,
    even if its workers live for some more seconds.
    """

    folder: str
    _held: list[int] = field(default_factory=list)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    @property
    def path(self) -> str:
        """The path of the file that is locked; the file is removed when the lock is released."""
        return os.path.join(self.folder, LOCK_FILE)

    def check(self) -> None:
        """Raise OutputError if another process trains in the folder.

        If the folder has no lock file, nothing is done. If it has one, the folder is locked, as by ``take``.
        """
        if os.path.isfile(self.path):
            self.take()

    def take(self) -> None:
        """Lock the folder, which must exist; raises OutputError if another process trains in it."""
        while not self._held:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise output_error(self.path, error) from error
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stays = _is_at(handle, self.path)
            except BlockingIOError as error:
                raise self._taken(handle) from error
            except OSError as error:
                os.close(handle)
                raise output_error(self.path, error) from error
            if not stays:  # its former holder removed the file between open and lock
                os.close(handle)
                continue
            self._held.append(handle)
            self._sign(handle)

    def _sign(self, handle: int) -> None:
        """Write the id and host of this process into the lock file; if that fails, unlock it and raise OutputError."""
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            self.give_back()
            raise output_error(self.path, error) from error

    def _taken(self, handle: int) -> OutputError:
        said = os.pread(handle, 300, 0).decode("ascii", "replace").split()
        os.close(handle)
        number = said[0] if said else "with an unknown id"
        at = f" on {escape(said[1])}" if said[1:] and said[1] != socket.gethostname() else ""
        return OutputError(
            f"{escape(self.folder)} is being trained by process {escape(number)}{at}.",
            hint="Wait for that process, or train in another folder with --run.",
        )

    def give_back(self) -> None:
        """Release the lock, if it is held, and remove its file."""
        for handle in self._held:
            with suppress(OSError):
                os.unlink(self.path)
            os.close(handle)
        self._held.clear()


def _is_at(handle: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)
