"""Scans the consecutive pickles of a file, and collects the names that they would import and call."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....formats.base import limits
from ....formats.pickle.state import MoreError, is_marked
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
"""The size in bytes of the first read: in general, and for a local file that begins with a pickle protocol."""
_MORE = 8
_MAGICS = (MAGIC.to_bytes(10, "little"), b"L%dL\n." % MAGIC)
_LEGACY_PICKLES = 5
"""The number of pickles in a legacy torch file: magic number, protocol, system, object, keys of storages."""
_JOBLIB = "joblib.numpy_pickle", "NumpyArrayWrapper"
"""joblib's wrapper of an array, also in ``sklearn.externals``; the array's bytes, or another pickle, follow it."""


@dataclass
class Pickles:
    """The names that the pickles of one file would import and call, and facts about these pickles.

    ``number`` is the number of pickles, ``end`` the offset of their end, ``fault`` the first fault. ``parted`` says
    where readers of pickles disagree. ``legacy`` is true if the file is a legacy torch file. ``storages`` are the keys
    of the torch storages that the pickles use.
    """

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
        """Return the finding that sums up all pickles of the file; ``place`` is the item that contains them."""
        uses = self.uses()
        joblib = any(module.endswith(_JOBLIB[0]) and name == _JOBLIB[1] for module, name in self.names)
        fault = Fault("corrupt", self.fault) if self.fault else None
        if joblib:
            fault = Fault(
                "unreadable",
                "joblib stores arrays between the instructions of a pickle; instructions after them are not decoded",
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
    """Scan the pickles from the offset ``start`` on, and the pickles inside them; return the names that they import.

    Returns None if there is no pickle.

    If ``sure`` is false, bytes that only begin like a pickle are ignored. A file that must be a pickle by its name, but
    is not, is reported as corrupt.
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
    """Decode the pickle at the offset ``at`` of a file, and read as many bytes as it needs."""
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
    """Return whether decoded data is really a pickle, and not other data that looks like a pickle.

    ``found`` has the pickles before this data in the file. ``kind`` is the kind of the file by its name. ``sure`` is as
    in ``look_at_pickles``.
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
    """Add a decoded pickle to ``found``, and scan the pickles and archives inside it."""
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
    """Add ``more``, the imported names of one pickle, to ``names``; above the limit, further names share one entry."""
    for key, name in more.items():
        if key not in names and len(names) > limits.SCAN_NAMES:
            key, name = ("…", "and more"), ImportedName("…", "and more", name.verdict)
        if key in names:
            names[key].join(name)
        else:
            names[key] = name


def _short_text(data: bytes, at: int) -> str:
    """Return the key of a torch storage from the instruction at the offset ``at`` of a pickle.

    Nearly all keys are short BINUNICODE strings, for which there is a fast path.
    """
    if data[at] == 0x58 and data[at + 2 : at + 5] == b"\0\0\0":
        return data[at + 5 : at + 5 + data[at + 1]].decode("utf-8", "replace")
    return text_at(data, at, 256) or ""
