"""The table of formats' marks: it agrees with the formats, and rules out no format that reads a file or a folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.formats.base.format_table import FOLDERS, MARKS, formats_for, missing_shards, module_of, writers
from ckptsurgeon.storage.read.uri import open_source
from ckptsurgeon.util.registry import module_names

from ...helpers.format_marks import asked_of_all

BEGINNINGS = (
    b"\x02\0\0\0\x0c\0WhisperSpec\0", b"\xff\0\0\0\x02\0A\0", b"\x81\xa1a", b"\x8f\xd9\x20a", b"\xde\0\1\xbf~", b"\xdf\0\0\0\1\xa1 ",
    b"GGUF", b"\x89HDF\r\n\x1a\n", b"\0" * 512, b"\0" * 100, b"\x93NUMPY", b"PK\3\4", b"PK\3\4" + bytes(22) + b"\5\0\0\0w.npy", b"PK\5\6", b"\x08\1\x12\1a", b"\x08\x3f\x3a\0\x0a",
    b"\x08\7\x42\1\x10", b"\x80\2}q\0", b"\x80\5\x95", b"(dp0\n", b"(l", b"(t", b"cnumpy\n_reconstruct\n", b"ccollections\nOrderedDict\n", b"]q\0", b"}q\0",
    b"\2\0\0\0\0\0\0\0{}", b"\xff" * 8 + b"{", b"  \n\t\r\x0b\x0c{", b'{"weight_map": {}}', b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    b"L119547037146038801333356L\n.", b"x" * 20 + b"l\xfc\x9cF\xf9 j\xa8P\x19", b"x" * 22 + b"l\xfc\x9cF\xf9 j\xa8P\x19", b"x" * 257 + b"ustar", b"lmgg", b"ggml", b"",
)  # fmt: skip
"""What files of each format begin with, at the edges of what ``sniff`` accepts."""
NAMES = (
    "latest_universal", "zero/", "latest", "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "x_model_states.pt\n",
    "model_index.json", "model_world_size_2_rank_0.pt", "rank0.pth", "consolidated.00.pth", "consolidated.01.pth", "mp_rank_00/",
    "mp_rank_00_001/", "latest_checkpointed_iteration.txt", "iter_0000001/", "CKPT.yaml", "CKPT+1/", "CKPT+1/CKPT.yaml", "ranks.json",
    "model-rank-00000.safetensors", "a.index", "a.data-00000-of-00001", "checkpoint", "best_dev_checkpoint", ".metadata", "_METADATA",
    "model.safetensors", "config.json", "nothing.txt",
)  # fmt: skip


def test_the_table_says_what_the_formats_say() -> None:
    names = [name for folder in FOLDERS for name in module_names(folder, with_packages=False)]
    assert {*names} == {*MARKS}
    for name, mark in MARKS.items():
        one = module_of(name)
        assert one is not None, name
        writer = getattr(one, "writer", None)
        assert mark.magic == one.magic, name
        assert (mark.to, mark.suffixes) == ((writer.name, writer.suffixes) if writer else ("", ())), name
        assert writer is None or writers()[mark.to] is writer
    assert len(writers()) == sum(bool(mark.to) for mark in MARKS.values())


@given(
    st.sampled_from(BEGINNINGS),
    st.binary(max_size=4),
    st.binary(max_size=600),
    st.sampled_from(["a.pth", "x.json", ".metadata"]),
)
def test_a_format_that_is_ruled_out_would_not_read_the_file(head: bytes, put: bytes, rest: bytes, name: str) -> None:
    for data in (head + rest, put + head[len(put) :] + rest, head[:-1] + put, rest):
        Path(name).write_bytes(data)
        with closing(open_source(name)) as file:
            begin = data[:512]
            found = [*formats_for(file, begin)]
            assert not [one.name for one in asked_of_all(file, begin) if one not in found and one.sniff(file, begin)]


@pytest.mark.parametrize("first", [b"a/data.pkl", b"w.npy", b"a/archive_format"])
def test_a_zip_archive_that_begins_with_a_pickle_or_an_array_is_not_asked_for_a_program(first: bytes) -> None:
    head = b"PK\3\4" + bytes(22) + len(first).to_bytes(2, "little") + bytes(2) + first + bytes(100)
    Path("a.zip").write_bytes(head)
    with closing(open_source("a.zip")) as file:
        found = {one.name for one in formats_for(file, head)}
    assert ("torch export" in found) is first.endswith(b"format")
    assert "torch zip" in found


def test_hdf5_behind_a_block_of_zeros_is_asked_for() -> None:
    """HDF5 may begin at byte 512, 1024, ...: the bytes before are the user's."""
    for begin in (512, 1024):
        Path("a.h5").write_bytes(bytes(begin) + b"\x89HDF\r\n\x1a\n" + bytes(100))
        with closing(open_source("a.h5")) as file:
            assert "hdf5" in [one.name for one in formats_for(file, bytes(512))]


@given(st.sets(st.sampled_from(NAMES), max_size=4))
def test_a_format_that_is_ruled_out_would_not_read_the_folder(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    for name in names:
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        place.mkdir(exist_ok=True) if name.endswith("/") else place.write_text(
            {"latest": "sub", "checkpoint": 'model_checkpoint_path: "a"'}.get(name, "1")
        )
    source = open_source(str(folder))
    found = [*formats_for(source)]
    assert not [one.name for one in asked_of_all(source, b"") if one not in found and one.sniff(source, b"")]


# Names of shards.


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
