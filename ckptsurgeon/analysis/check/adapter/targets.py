"""Checks that every entry of an adapter's ``target_modules`` matches a module with factors.

An entry that matches no module changes nothing, so it is only a warning. It is a failure if some modules with factors
match no entry at all, because PEFT ignores their factors.
"""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import Check
from ..report import Found, Status
from ..subject import Subject
from ._against import no_adapter

__all__ = ["CHECK"]


RENAME = "Correct the names (ckpt inspect ADAPTER lists the factors): PEFT ignores factors that no entry matches."
REMOVE = "If factors of these modules are not missing, remove these entries: they change nothing."


def _run(subject: Subject) -> Iterator[Found]:
    adapter = subject.adapter
    lost = [name for name, number in adapter.matches.items() if not number] if adapter is not None else []
    if lost:
        number = count(len(lost), "entry", "entries")
        named = listing([escape(one) for one in lost], 5)
        said = f"{number} of target_modules {'matches' if len(lost) == 1 else 'match'} no module: {named}"
        status, todo = (Status.FAIL, RENAME) if adapter is not None and adapter.unselected else (Status.WARN, REMOVE)
        yield Found(status, said, todo, file="adapter_config.json", figures={"entries": len(lost)})


CHECK = Check("adapter-targets", "target_modules match modules", _run, no_adapter)
