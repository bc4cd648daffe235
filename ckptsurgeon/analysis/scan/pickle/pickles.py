"""Scans consecutive pickles at the beginning of a file: what they would import and call together."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....formats.base import limits
from ....formats.pickle.operands import MoreError, is_marked
from ....formats.torch_legacy import MAGIC
from ....storage.read.base import File
from ....util.text import count
from ..context import Budget, ScanItem
from ..findings import Fault, Finding, Use, Verdict
from .guess import KindByName, imports_something, must_be_pickle, named
from .machine import Machine
from .state import Names, RestartError
from .texts import text_at
from .values import ImportedName

__all__ = ["Pickles", "look_at_pickles"]

_FIRST, _FIRST_MARKED = 64 << 10, 8 << 20
"""Bytes of the first read: for a remote or possible pickle, and for a file that begins as a pickle."""
_MORE = 8
_MAGICS = (MAGIC.to_bytes(10, "little"), b"L%dL\n." % MAGIC)
_LEGACY_PICKLES = 5
"""Pickles in a legacy torch file: magic number, protocol, system, object, keys of storages; then tensor bytes."""
_JOBLIB = "joblib.numpy_pickle", "NumpyArrayWrapper"
"""joblib's wrappers of arrays, also in ``sklearn.externals``: an array's bytes, or another pickle, follow each."""


@dataclass
class Pickles:
    """What the pickles of one file would do. ``storages`` are the keys of the torch storages that they use."""

    names: Names = field(default_factory=dict)
    number: int = 0
    end: int = 0
    fault: str = ""
    parted: str = ""
    legacy: bool = False
    storages: set[str] = field(default_factory=set)

    def uses(self) -> tuple[Use, ...]:
        """Return the names that the pickles import, with their uses; unknown code comes first."""
        return tuple(sorted((name.use() for name in self.names.values()), key=lambda use: -use.verdict))

    def finding(self, place: ScanItem) -> Finding:
        """Return the finding that sums up these pickles; ``place`` is the item that holds them."""
        uses = self.uses()
        joblib = any(module.endswith(_JOBLIB[0]) and name == _JOBLIB[1] for module, name in self.names)
        fault = Fault("corrupt", self.fault) if self.fault else None
        if joblib:
            fault = Fault(
                "unreadable",
                "joblib stores arrays between the instructions of a pickle; what follows them is not decoded",
            )
        behind = place.file.size - self.end
        rest = f"{count(behind, 'byte')} after the last pickle" if behind and not fault and not self.legacy else ""
        notes = tuple(note for note in (rest, self.parted) if note)
        form = "torch legacy" if self.legacy else "joblib" if joblib else "pickle"
        verdict = max((use.verdict for use in uses), default=Verdict.PLAIN)
        return Finding(
            place.state.path, place.within, form, Verdict.CODE if self.parted else verdict, fault, uses,
            pickles=self.number, notes=notes,
        )  # fmt: skip


def look_at_pickles(place: ScanItem, start: int = 0, *, sure: bool = True) -> Pickles | None:
    """Decode the pickles from the offset ``start`` on, and scan the pickles inside them; returns None if there is none.

    With ``sure`` the bytes are known to be a pickle. Without it, bytes that only look like the beginning of one are
    ignored. A file whose name promises a pickle, and that has none, is reported as corrupt.
    """
    found, kind, why = Pickles(end=start), named(place.path), "it is empty"
    while found.end < place.file.size and not (found.legacy and found.number == _LEGACY_PICKLES):
        machine = _decoded(place.file, found.end, place.state.budget)
        if not _believed(machine, found, kind, sure=sure):
            why = machine.fault or "it is not a pickle"
            break
        _take(place, machine, found)
        if found.fault:
            break
    if found.number:
        place.state.add(found.finding(place))
        return found
    if must_be_pickle(place.name):
        place.add("pickle", fault=Fault("corrupt", why))
    return None


def _decoded(file: File, at: int, budget: Budget) -> Machine:
    """Decode the pickle at the offset ``at`` of a file; reads as many bytes as are needed."""
    total = min(file.size - at, limits.PICKLE_BYTES)
    size = _FIRST_MARKED if not file.remote and is_marked(file.read(at, min(2, total))) else _FIRST
    hurried = True
    while True:
        data = file.read(at, min(size, total))
        machine = Machine(data, budget, names={}, total=file.size - at)
        machine.origin = at
        machine.hurried = hurried
        try:
            machine.run()
            return machine
        except RestartError:
            hurried = False
        except MoreError:
            if size >= total:
                raise Budget.spent(f"a pickle of over {limits.PICKLE_BYTES} bytes") from None
            size *= _MORE


def _believed(machine: Machine, found: Pickles, kind: KindByName, *, sure: bool) -> bool:
    """Return whether decoded data is a pickle, not other data that happens to decode as a pickle.

    ``found`` has the pickles before it, ``kind`` is what the file's name says, ``sure`` is as in ``look_at_pickles``.
    """
    marked = is_marked(machine.data)
    if machine.torn or imports_something(machine, marked=marked, kind=kind):
        return True
    if machine.parted and machine.stopped and kind is KindByName.PICKLE:
        return True
    if not machine.stopped or machine.fault:
        return marked and (sure or bool(machine.nested))
    return marked or found.number > 0 or machine.position == machine.total


def _take(place: ScanItem, machine: Machine, found: Pickles) -> None:
    """Add what a decoded pickle would do to ``found``, and scan the pickles and archives inside it."""
    data = machine.data
    place.state.budget.take("bytes", machine.position)
    if found.number == 0:
        found.legacy = _MAGICS[0] in data[:32] or data.startswith(_MAGICS[1])
    _join(found.names, machine.names)
    found.number += 1
    found.end += min(machine.position, machine.total)
    found.fault = machine.fault
    found.parted = found.parted or machine.parted
    found.storages.update(_short_text(data, at) for at in machine.storages)
    for at, raw in machine.nested:
        place.unpacked(raw, f"bytes at {machine.origin + at}").judge()


def _join(names: Names, more: Names) -> None:
    """Add the names of one pickle to those before it; beyond the limit, all further names count as one."""
    for key, name in more.items():
        if key not in names and len(names) > limits.SCAN_NAMES:
            key, name = ("…", "and more"), ImportedName("…", "and more", name.verdict)
        if key in names:
            names[key].join(name)
        else:
            names[key] = name


def _short_text(data: bytes, at: int) -> str:
    """Return the text at the offset ``at`` of a pickle that is the key of a torch storage.

    Nearly all keys are numbers in the instruction BINUNICODE: these are decoded in a faster way.
    """
    if data[at] == 0x58 and data[at + 2 : at + 5] == b"\0\0\0":
        return data[at + 5 : at + 5 + data[at + 1]].decode("utf-8", "replace")
    return text_at(data, at, 256) or ""
