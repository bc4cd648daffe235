"""Sound files that are flipped, cut, spliced and edited: read, or refused with an error of ours, in time."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptsurgeon as cs
from tests.fuzz.target import Target, inputs_of, names, target_of, written
from tests.helpers.torch_files import legacy_variety, saved, variety

from ..helpers.depth import examples_of
from ..helpers.pace import in_time
from ..promises.clauses import MUTATED, clause
from .holding import nothing_executed

LARGE = {
    "torch zip, every variety": Target(written("x.pth"), lambda: {"x": saved(variety())}),
    "torch legacy, every variety": Target(
        written("x.pt"), lambda: {"x": saved(legacy_variety(), _use_new_zipfile_serialization=False)}
    ),
}

edits = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "insert", "splice"]), st.floats(0, 1), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)  # fmt: skip


def edited(data: bytes, kind: str, first: float, second: float, new: bytes) -> bytes:
    at, other = int(first * len(data)), int(second * len(data))
    return {
        "flip": data[:at] + bytes(byte ^ 1 << new[0] % 8 for byte in data[at : at + 1]) + data[at + 1 :],
        "set": data[:at] + new + data[at + len(new) :],
        "cut": data[:at],
        "insert": data[:at] + new + data[at:],
        "splice": data[:at] + data[other : other + 64] + data[at:],
    }[kind]


@cache
def reader(name: str) -> tuple[Target, list[bytes]]:
    """What reads files of a kind, and sound ones."""
    if name in LARGE:
        return LARGE[name], list(LARGE[name].make().values())
    return target_of(name), list(inputs_of(name))


@clause(MUTATED)
@pytest.mark.parametrize("kind", [*names(), *LARGE])
@examples_of(40)
@given(which=st.floats(0, 1, exclude_max=True), changes=edits)
def test_a_file_that_was_changed_is_read_or_refused(
    kind: str, which: float, changes: list[tuple[str, float, float, bytes]]
) -> None:
    target, sound = reader(kind)
    data = sound[int(which * len(sound))]
    for change in changes:
        data = edited(data, *change)
    with nothing_executed(), in_time():
        try:
            target.run(data)
        except cs.CheckpointError:
            pass


@pytest.mark.parametrize("kind", [*names(), *LARGE])
def test_a_sound_file_is_read(kind: str) -> None:
    target, sound = reader(kind)
    for data in sound:
        target.run(data)
