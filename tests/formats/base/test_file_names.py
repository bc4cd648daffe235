"""What the names of shards count."""

from __future__ import annotations

import pytest

from ckptsurgeon.formats.base.file_names import missing_shards


@pytest.mark.parametrize(
    ("shards", "names", "many"),
    [
        ({"m-00001-of-00002.safetensors"}, ["m-00002-of-00002.safetensors"], 1),
        ({"m-1-of-2", "m-2-of-2"}, [], 0),
        ({"m-0-of-3", "m-1-of-3"}, ["m-2-of-3"], 1),
        ({"m-7-of-2", "m-2-of-2"}, ["m-1-of-2"], 1),
        ({"m-00001-of-000163.bin", "m-00003-of-000163.bin"}, ["m-00002-of-000163.bin", "m-00004-of-000163.bin"], 161),
        ({"m-1-of-9999999"}, ["m-2-of-9999999", "m-3-of-9999999"], 9_999_998),
        ({"model.safetensors"}, [], 0),
    ],
)
def test_what_is_lacking_is_named_and_counted(shards: set[str], names: list[str], many: int) -> None:
    assert missing_shards(shards, most=2) == (names, many)


def test_a_great_many_that_are_lacking_are_not_made_into_names() -> None:
    shards = {f"{number}-1-of-9999999" for number in range(2_000)}
    names, many = missing_shards(shards, most=2)
    assert (len(names), many) == (2, 2_000 * 9_999_998)
