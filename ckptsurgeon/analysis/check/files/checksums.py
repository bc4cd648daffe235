"""Checks that bytes match the checksums that a file stores for its records, and the checksums in a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check, without_files
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    bad = subject.bad_checksums
    if bad:
        named = listing([escape(one) for one in bad], SHOWN)
        number, do = count(len(bad), "record"), "does" if len(bad) == 1 else "do"
        said = f"{number} of {subject.checksums:,} {do} not match the checksum in the file: {named}"
        if subject.damaged:
            them = "it" if len(bad) == 1 else "them"
            said += f"; {count(len(subject.damaged), 'tensor')} in {them}: {listing(subject.damaged, SHOWN)}"
        todo = "The file is damaged: fetch or save it again."
        figures = {"records": len(bad), "checked": subject.checksums}
        yield Found(Status.FAIL, said, todo, subject.damaged, figures=figures)
    yield from _of_recipe(subject)


def _of_recipe(subject: Subject) -> Iterator[Found]:
    """Yield a finding if tensors do not have the checksums in the recipe, or if the recipe describes other weights.

    If the tensors match the recipe, yield a finding if other bytes do not match the recipe's seal, a digest of all
    bytes outside the tensors.
    """
    found = subject.recipe
    if found.fault:
        todo = f"Write the output again, or remove {found.place}."
        yield Found(Status.WARN, f"the checksums in {found.place} were not compared: {found.fault}", todo)
        return
    if found.is_other:
        why = filter(None, (_keys("has no", found.more), _keys("has also", found.fewer), _bad(subject)))
        said = f"{found.place} is not the recipe of these weights: {'; '.join(why)}"
        todo = "Remove the recipe if another program wrote these weights; else fetch or write them again."
        yield Found(Status.WARN, said, todo, (*found.more, *found.fewer, *found.bad))
    elif found.bad:
        todo = "Fetch or write these files again: they are damaged, or from another output."
        figures = {"tensors": len(found.bad), "checked": found.number}
        yield Found(Status.FAIL, _bad(subject), todo, found.bad, found.file, figures)
    elif found.is_unsealed:
        said = f"all tensors match {found.place}, but a header, the metadata or the recipe was changed after writing"
        todo = (
            "ckpt verify fails this output: write it again, or remove the recipe if you changed the output on purpose."
        )
        yield Found(Status.WARN, said, todo)


def _keys(has: str, keys: tuple[str, ...]) -> str:
    return f"it {has} {listing([escape(key) for key in sorted(keys)], SHOWN)}" if keys else ""


def _bad(subject: Subject) -> str:
    found = subject.recipe
    if not found.bad:
        return ""
    named = listing([escape(key) for key in found.bad], SHOWN)
    have = "has" if len(found.bad) == 1 else "have"
    than = "" if found.is_other else f" than in {found.place}"
    where = f", all in {escape(found.file)}" if found.file and len(subject.shards) > 1 else ""
    return f"{len(found.bad):,} of {count(found.number, 'tensor')} {have} another checksum{than}{where}: {named}"


def _against(subject: Subject) -> str:
    if subject.checksums or subject.recipe.place:
        return without_files(subject)
    return without_files(subject) or f"{subject.format} files have no checksums"


def _looks_at(subject: Subject) -> str:
    looked = (
        count(one, what) for one, what in ((subject.checksums, "record"), (subject.recipe.number, "tensor")) if one
    )
    return ", ".join(looked)


CHECK = Check("checksums", "bytes match the checksums in the file or the recipe", _run, _against, _looks_at)
