"""Checks that every module that an adapter changes is in the base model."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check
from ..report import Found, Status
from ..subject import Subject
from ._against import no_base

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    adapter = subject.adapter
    lost = [one.module for one in adapter.factors if not one.base] if adapter is not None else []
    if lost:
        named = listing([escape(one) for one in lost], SHOWN)
        said = (
            f"{count(len(lost), 'module')} of the adapter {'is' if len(lost) == 1 else 'are'} not in the base: {named}"
        )
        todo = "With --base, give the base that this adapter was trained on."
        yield Found(Status.FAIL, said, todo, tuple(lost), figures={"modules": len(lost)})


CHECK = Check("adapter-base", "the base has all adapted modules", _run, no_base)
