"""Shares the parts of an output among the processes that ``torchrun`` starts, on one machine or several.

Every process makes the same plan. The first one prepares the temp folder, says which parts each process writes,
collects their receipts and publishes the output. They agree through the key-value store of torch.distributed; the bytes
go through the file system that they share.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from .. import errors
from ..errors import CheckpointError, ConfigError, OutputError, PlanError
from ..util.text import escape, listing
from ..util.torchrun import number_of_processes, rank_of_process
from .output.layout import OutputFile
from .part_receipt import PartReceipt

__all__ = ["Helpers", "ProcessGroup", "error_of", "process_group", "row_of", "shared_out"]

BEAT_S = 2.0
"""Seconds between two signs of life of a process."""
LOST_S = 60.0
"""A process that has given no sign of life for so many seconds is taken for lost."""
PAUSE_S = 0.05
"""Seconds between two looks into the store."""
WAIT_S = 300.0
"""Seconds that processes wait for each other at the beginning, as they may start at different times."""
BYE_S = 10.0
"""Seconds that the first process waits, at the end, until the others know how it ended: the store may be its own."""


def shared_out(parts: Sequence[OutputFile], number: int) -> list[list[OutputFile]]:
    """Return the parts that each of ``number`` processes writes, of nearly equal sizes together.

    The largest part goes first, each to the process that has the fewest bytes until then.
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
    """Other processes that write parts of an output, as the process that publishes it sees them."""

    def share_out(self, plan: str, folder: str, parts: Sequence[OutputFile]) -> Sequence[OutputFile]:
        """Let the others write parts into the temp folder; return those that this process writes.

        ``plan`` is the SHA-256 of the plan.
        """
        ...

    def receipts(self) -> Iterator[PartReceipt]:
        """Yield the receipts that have come since the last call; raises the error of a process that failed."""
        ...


class ProcessGroup:
    """The processes that write one output; this one is ``rank`` of ``size``, and the first one has rank 0."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._seen: dict[int, tuple[str, float]] = {}
        self._received = [0] * size
        self._reported = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that publishes the output."""
        return self.rank == 0

    # What the first process does.

    def share_out(self, plan: str, folder: str, parts: Sequence[OutputFile]) -> Sequence[OutputFile]:
        """Tell the others which parts they write into the temp folder; return those that this process writes.

        ``plan`` is the SHA-256 of the plan.
        """
        shares = shared_out(parts, self.size)
        names = [[part.name for part in share] for share in shares]
        self._put("order", {"plan": plan, "folder": folder, "parts": names})
        return shares[0]

    def receipts(self) -> Iterator[PartReceipt]:
        """Yield the receipts that have come since the last call.

        Raises the error of a process that failed, and OutputError if one is lost.
        """
        for rank in range(1, self.size):
            while (row := self._get(f"receipt {rank} {self._received[rank]}")) is not None:
                self._received[rank] += 1
                yield PartReceipt.from_json(row)
            failed = self._get(f"failed {rank}")
            if failed is not None:
                raise error_of(failed, f"process {rank}")
        self._check_alive(range(1, self.size))

    def _end(self, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the store of torchrun may be gone
            self._put("end", None if error is None else row_of(error))
            until = time.monotonic() + BYE_S
            while time.monotonic() < until and not all(map(self._has_left, range(1, self.size))):
                time.sleep(PAUSE_S)

    def _has_left(self, rank: int) -> bool:
        return any(self._store.check([f"{how} {rank}"]) for how in ("bye", "failed"))

    # What the other processes do.

    def ordered(self, plan: str) -> tuple[str, frozenset[str]]:
        """Return the temp folder and the names of the parts that this process writes.

        Raises PlanError if the first process has made another plan; its error, if it failed.
        """
        order: Mapping[str, Any] = self._waited_for("order")
        if order["plan"] != plan:
            raise PlanError(
                f"process {self.rank} has made another plan than the first one.",
                hint="Give all processes the same command, and sources with the same bytes and times.",
            )
        return str(order["folder"]), frozenset(order["parts"][self.rank])

    def report(self, receipt: PartReceipt) -> None:
        """Send the receipt of a finished part to the first process."""
        self._put(f"receipt {self.rank} {self._reported}", receipt.to_json())
        self._reported += 1

    def fail(self, error: BaseException) -> None:
        """Tell the first process that this one fails."""
        with suppress(RuntimeError):
            self._put(f"failed {self.rank}", row_of(error))

    def check(self) -> None:
        """Raise the error of the first process if it has failed, and OutputError if it is lost."""
        if self._store.check(["end"]):
            self.wait_for_end()
        self._check_alive([0])

    def wait_for_end(self) -> None:
        """Wait until the first process has published the output; raises its error, if it failed."""
        row = self._waited_for("end")
        self._put(f"bye {self.rank}", None)
        if row is not None:
            raise error_of(row, "process 0")

    # The store.

    def _put(self, name: str, row: Any) -> None:
        self._store.set(name, json.dumps([row]))

    def _get(self, name: str) -> Any:
        return json.loads(self._store.get(name))[0] if self._store.check([name]) else None

    def _waited_for(self, name: str) -> Any:
        while not self._store.check([name]):
            if name != "end" and self._store.check(["end"]):
                self.wait_for_end()
            self._check_alive([0])
            time.sleep(PAUSE_S)
        return self._get(name)

    def _check_alive(self, ranks: Sequence[int]) -> None:
        now = time.monotonic()
        for rank in ranks:
            name = f"alive {rank}"
            beat = self._store.get(name).decode() if self._store.check([name]) else ""
            last, since = self._seen.get(rank, (None, now))
            self._seen[rank] = (beat, since if beat == last else now)
            if now - self._seen[rank][1] > LOST_S:
                raise OutputError(f"process {rank} of {self.size} has given no sign of life for {LOST_S:.0f} s.")

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Tell the others, when the block ends, that the output is published, or why it is not."""
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life during the block."""
        ended = threading.Event()

        def beat() -> None:
            for number in itertools.count():
                with suppress(RuntimeError):
                    self._store.set(f"alive {self.rank}", str(number))
                if ended.wait(BEAT_S):
                    return

        thread = threading.Thread(target=beat, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def join(self) -> None:
        """Wait until all processes are there; raises ConfigError if some do not come."""
        until = time.monotonic() + WAIT_S
        while missing := [rank for rank in range(self.size) if not self._store.check([f"alive {rank}"])]:
            if time.monotonic() > until:
                raise ConfigError(
                    f"of {self.size} processes these did not come: {listing([str(rank) for rank in missing])}.",
                    hint="Start all of them with torchrun; for one process, unset RANK and WORLD_SIZE.",
                )
            time.sleep(PAUSE_S)


def row_of(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data, for another process."""
    if isinstance(error, CheckpointError):
        return {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return {"type": "CheckpointError", "message": f"{type(error).__name__}: {error}"[:500], "hint": ""}


def error_of(row: Mapping[str, Any], name: str) -> CheckpointError:
    """Return the error of another process, from what ``row_of`` gave; ``name`` says which process it was."""
    kind = getattr(errors, str(row.get("type")), CheckpointError)
    found = kind if isinstance(kind, type) and issubclass(kind, CheckpointError) else CheckpointError
    return found(f"{name}: {row.get('message')}", hint=str(row.get("hint", "")))


_CALLS = itertools.count()
"""Numbers for the outputs of a process, so that each has its own keys in the store."""


@contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """Join the processes that ``torchrun`` has started, for one output; yields None if this process is alone.

    Raises ConfigError if the other processes cannot be reached.
    """
    size = number_of_processes()
    if size == 1:
        yield None
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    try:
        store = distributed.PrefixStore(f"ckpt/output/{next(_CALLS)}", next(rendezvous("env://"))[0])  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        why = escape(str(error).splitlines()[0], 200)
        raise ConfigError(
            f"process {rank_of_process()} of {size} cannot reach the others: {why}.",
            hint="Start all processes with torchrun, which sets MASTER_ADDR and MASTER_PORT too.",
        ) from error
    group = ProcessGroup(rank_of_process(), size, store)
    try:
        with group.beating():
            group.join()
            yield group
    except RuntimeError as error:
        if type(error).__module__ != "torch.distributed":  # where the errors of its store are
            raise
        raise OutputError("the first process has ended, or its machine cannot be reached.") from error
