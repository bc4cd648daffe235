"""Divides the files (parts) of an output between the processes that ``torchrun`` starts, on one or several machines.

Every process makes the same plan. The first process prepares the temporary folder, assigns files to each process,
collects their receipts and publishes the output. The processes communicate through the key-value store of
torch.distributed; they write to a file system that they share.
"""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from ..errors import ConfigError, OutputError
from ..util.text import listing
from ..util.torchrun import number_of_processes, rank_of_process
from .output.layout import OutputFile
from .part_receipt import PartReceipt
from .process_store import error_of, row_of, store_errors, store_of_processes

__all__ = ["Helpers", "ProcessGroup", "pauses", "process_group", "shared_out"]

BEAT_S = 2.0
"""Seconds between two heartbeats of a process."""
LOST_S = 60.0
"""A process that has sent no heartbeat for this many seconds is considered lost."""
PAUSE_S = 0.05
"""The longest time in seconds between two reads of the store."""
FIRST_PAUSE_S = 0.002
"""The time between the first two reads.

It doubles after each read, because the other processes often answer immediately.
"""
SEEN_S = 120.0
"""Seconds to wait until a folder or file that was made on another machine is visible here: NFS caches its absence."""
WAIT_S = 300.0
"""How many seconds processes wait for each other at the beginning, as they may start at different times."""
BYE_S = 10.0
"""How many seconds the first process waits, at the end, for the other processes to read the result.

If the first process has opened the store, the store closes when this process ends.
"""


def pauses() -> Iterator[None]:
    """Sleep between the rounds of a ``for`` loop that reads the store: first ``FIRST_PAUSE_S``, at most ``PAUSE_S``."""
    pause = FIRST_PAUSE_S
    while True:
        yield
        time.sleep(min(pause, PAUSE_S))
        pause = min(2 * pause, PAUSE_S)


def shared_out(parts: Sequence[OutputFile], number: int) -> list[list[OutputFile]]:
    """Divide the files ``parts`` of an output between ``number`` processes; return the files for each process.

    So that the numbers of bytes are similar, the files are assigned from the largest to the smallest, each to the
    process that has the fewest bytes so far.
    """
    shares: list[list[OutputFile]] = [[] for _ in range(number)]
    sizes = [0] * number
    for part in sorted(parts, key=lambda part: -part.layout.size):
        least = sizes.index(min(sizes))
        shares[least].append(part)
        sizes[least] += part.layout.size
    order = {part.name: place for place, part in enumerate(parts)}
    return [sorted(share, key=lambda part: order[part.name]) for share in shares]


class Helpers(Protocol):
    """The interface to the other processes that write files of an output, for the process that publishes the output."""

    def share_out(self, identity: str, folder: str, parts: Sequence[OutputFile]) -> Sequence[OutputFile]:
        """Let the other processes write some of the files ``parts`` into ``folder``; return the files for this process.

        ``identity`` is a digest that is equal in all processes that write the same output.
        """
        ...

    def receipts(self) -> Iterator[PartReceipt]:
        """Yield the receipts that arrived since the last call; raises the error of a process that failed."""
        ...


class ProcessGroup:
    """The ``size`` processes that write one output. This process has the rank ``rank``; rank 0 publishes the output."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._token = ""
        self._seen: dict[int, tuple[str, float]] = {}
        self._received = [0] * size
        self._reported = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that publishes the output."""
        return self.rank == 0

    def join(self) -> None:
        """Wait until all processes have joined; raises ConfigError if one does not.

        When ``torchrun`` restarts the processes, its store still contains the keys of the earlier processes. So each
        process publishes a random number, and the first process answers with a name for exactly these numbers. This
        name is then the prefix of all keys.
        """
        own = secrets.token_hex(8)
        until = time.monotonic() + WAIT_S
        others = range(1, self.size)
        missing: list[int] = []
        for _ in pauses():
            if time.monotonic() > until:
                break
            if self.is_first:
                numbers = {str(rank): self._get(f"here {rank}") for rank in others}
                missing = [rank for rank in others if numbers[str(rank)] is None]
                if not missing:
                    self._put("called", {"name": own, "numbers": numbers})
                    missing = [rank for rank in others if self._get(f"answered {rank}") != own]
                name = "" if missing else own
            else:
                self._put(f"here {self.rank}", own)
                called = self._get("called") or {"name": "", "numbers": {}}
                name = called["name"] if called["numbers"].get(str(self.rank)) == own else ""
                if name:
                    self._put(f"answered {self.rank}", name)
            if name:
                self._token = f"{name} "
                return
        names = listing([f"process {rank}" for rank in missing])
        said = f"of {self.size} processes, {names} did not join within {WAIT_S:.0f} s."
        if not self.is_first:
            said = f"process 0, which waits for all {self.size} processes, did not answer within {WAIT_S:.0f} s."
        raise ConfigError(
            said,
            hint=f"Start all {self.size} processes with torchrun; for one process, unset RANK and WORLD_SIZE.",
        )

    # What the first process does.

    def share_out(self, identity: str, folder: str, parts: Sequence[OutputFile]) -> Sequence[OutputFile]:
        """Divide the files ``parts``, which go into ``folder``, between all processes.

        Return the files of this process.
        """
        shares = shared_out(parts, self.size)
        names = [[part.name for part in share] for share in shares]
        self._put("assignment", {"identity": identity, "folder": folder, "parts": names})
        return shares[0]

    def receipts(self) -> Iterator[PartReceipt]:
        """Yield the receipts that arrived since the last call.

        Raises the error of a process that failed, and OutputError if a process no longer responds.
        """
        for rank in range(1, self.size):
            while (row := self._get(f"receipt {rank} {self._received[rank]}")) is not None:
                self._received[rank] += 1
                yield PartReceipt.from_json(row)
            failed = self._get(f"failed {rank}")
            if failed is not None:
                raise error_of(failed, f"process {rank}")
        self._check_alive(range(1, self.size))

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Tell the other processes, when the block ends, that the output is published, or which error occurred."""
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with suppress(OutputError):  # the store of torchrun may be gone
            self._put("end", None if error is None else row_of(error))
            until = time.monotonic() + BYE_S
            for _ in pauses():
                if time.monotonic() > until or all(map(self._has_left, range(1, self.size))):
                    break

    def _has_left(self, rank: int) -> bool:
        return self._has(f"bye {rank}") or self._has(f"failed {rank}")

    # What the other processes do.

    def assignment(self, identity: str) -> tuple[str, frozenset[str]]:
        """Return the temporary folder, and the names of the files that this process writes into it.

        Raises OutputError if the first process writes a different output. If the first process failed, raises its
        error.
        """
        found: Mapping[str, Any] = self._waited_for("assignment")
        if found["identity"] != identity:
            raise OutputError(
                f"process {self.rank}: its plan or its options differ from those of the first process.",
                hint="Give all processes the same command, version of ckptsurgeon and plugins, and sources with the "
                "same bytes and modification times.",
            )
        return str(found["folder"]), frozenset(found["parts"][self.rank])

    def report(self, receipt: PartReceipt) -> None:
        """Send the receipt of a finished file to the first process."""
        self._put(f"receipt {self.rank} {self._reported}", receipt.to_json())
        self._reported += 1

    def fail(self, error: BaseException) -> None:
        """Tell the first process that this process failed."""
        with suppress(OutputError):
            self._put(f"failed {self.rank}", row_of(error))

    def check(self) -> None:
        """Raise the error of the first process if it has failed; raise OutputError if it no longer responds."""
        if self._has("end"):
            self.wait_for_end()
        self._check_alive([0])

    def check_soon(self) -> None:
        """Wait up to ``BYE_S`` seconds for the first process to end, and raise its error if it has failed."""
        until = time.monotonic() + BYE_S
        for _ in pauses():
            if time.monotonic() > until or self._has("end"):
                break
        if self._has("end"):
            self.wait_for_end()

    def wait_for_end(self) -> None:
        """Wait until the first process has published the output; raises its error if it failed."""
        row = self._waited_for("end")
        self._put(f"bye {self.rank}", None)
        if row is not None:
            raise error_of(row, "process 0")

    # The store.

    def _put(self, name: str, row: Any) -> None:
        with store_errors():
            self._store.set(self._token + name, json.dumps([row]))

    def _has(self, name: str) -> bool:
        with store_errors():
            return bool(self._store.check([self._token + name]))

    def _get(self, name: str) -> Any:
        with store_errors():
            return json.loads(self._store.get(self._token + name))[0] if self._has(name) else None

    def _waited_for(self, name: str) -> Any:
        for _ in pauses():
            if self._has(name):
                break
            if name != "end" and self._has("end"):
                self.wait_for_end()
            self._check_alive([0])
        return self._get(name)

    def _check_alive(self, ranks: Sequence[int]) -> None:
        now = time.monotonic()
        for rank in ranks:
            beat = self._get(f"alive {rank}")
            last, since = self._seen.get(rank, (None, now))
            self._seen[rank] = (beat, since if beat == last else now)
            if now - self._seen[rank][1] > LOST_S:
                raise OutputError(
                    f"process {rank} of {self.size} has not responded for {LOST_S:.0f} s.",
                    hint="Read the messages of that process.",
                )

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Send heartbeats during the block."""
        ended = threading.Event()

        def beat() -> None:
            for number in itertools.count():
                with suppress(OutputError):
                    self._put(f"alive {self.rank}", number)
                if ended.wait(BEAT_S):
                    return

        thread = threading.Thread(target=beat, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """Join the processes that ``torchrun`` started, to write one output; yields None if there is only this process.

    Raises ConfigError if the other processes cannot be reached.
    """
    size = number_of_processes()
    if size == 1:
        yield None
        return
    group = ProcessGroup(rank_of_process(), size, store_of_processes(WAIT_S))
    group.join()
    with group.beating():
        yield group
