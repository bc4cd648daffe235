"""Checkpoints of Orbax: as Orbax wrote them (`make oracle-orbax`), and arrays whose metadata are made by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

from ...helpers.forked import Forked
from ...helpers.orbax_files import VALUES, item, metadata, zarr, zarr3

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "orbax"
WANTED = json.loads((GOLDEN / "arrays.json").read_text())["arrays"]


def recorded(folder: str, root: str = "") -> dict[str, list[Any]]:
    """The types, shapes and digests of a folder's arrays by key; with a root, those below it."""
    prefix = f"{folder}/{root}." if root else f"{folder}/"
    return {name.removeprefix(prefix): about for name, about in WANTED.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("ocdbt", ""), ("zarr3", ""), ("folders", ""), ("parts", ""), ("parts3", ""), ("old", "target"),
        ("run/10", "params"), ("run/20", "params"), ("run/20", "opt_state"), ("run/20/state", "params"),
    ],
)  # fmt: skip
def test_every_array_has_the_values_that_were_saved(folder: str, root: str) -> None:
    pytest.importorskip("blosc" if folder == "old" else "zstandard", reason="the extra orbax is not installed")
    name = folder.removesuffix("/state")
    wanted = recorded(name, root)
    with cs.open_checkpoint(str(GOLDEN / folder), root or None) as found:
        assert sorted(found) == sorted(wanted)
        assert found.root == root
        for key, (dtype, shape, digest) in wanted.items():
            if dtype == "int4":
                assert found[key].opaque == "its type int4 is not read from zarr"
                continue
            assert (found[key].dtype, list(found[key].shape)) == (dtype, shape), key
            stored = found.tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy()
            assert hashlib.sha256(stored.tobytes()).hexdigest() == digest, key


@pytest.mark.parametrize("folder", ["ocdbt", "zarr3", "folders"])
def test_a_tree_is_equal_to_the_one_that_flax_writes(folder: str, ckpt: Any) -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    said = ckpt("diff", str(GOLDEN / folder), str(GOLDEN / "tree.msgpack"), "--json")
    assert said.code == 0, said.out


def test_a_checkpoint_is_converted_and_verified() -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    cs.apply(cs.convert(str(GOLDEN / "parts")), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert torch.equal(load_file("out.safetensors")["both"], torch.arange(24 * 16.0).reshape(24, 16))


def test_steps_of_a_run_are_named_and_the_only_one_is_read() -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    with pytest.raises(cs.FormatError, match=r"has several steps: 10, 20\. Pass the folder of one step, .*run/20\."):
        cs.open_checkpoint(str(GOLDEN / "run"))
    shutil.copytree(GOLDEN / "run" / "10", "run/10")
    with cs.open_checkpoint("run") as found:
        assert "read the only step: 10" in found.notes
        assert [file.name for file in found.header.files if "METADATA" in file.name] == [
            "_CHECKPOINT_METADATA",
            "state/_METADATA",
        ]
        assert list(found) == ["dense.bias", "dense.kernel"]


def test_steps_of_early_versions_have_no_metadata_of_their_own() -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    shutil.copytree(GOLDEN / "run", "run")
    for path in Path("run").glob("*/_CHECKPOINT_METADATA"):
        path.unlink()
    with pytest.raises(cs.FormatError, match=r"has several steps: 10, 20\."):
        cs.open_checkpoint("run")
    with cs.open_checkpoint("run/20") as found:
        assert list(found) == ["dense.bias", "dense.kernel"]


def test_the_step_is_not_the_model() -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    with cs.open_checkpoint(str(GOLDEN / "run" / "20"), ".") as found:
        assert found.tensor("step").tolist() == 20


def test_several_items_are_state_dicts_of_their_own() -> None:
    item("c/params", {"w": VALUES})
    item("c/ema", {"w": VALUES + 1})
    Path("c/_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(cs.ConfigError, match="several state dicts: ema .1 tensor., params .1 tensor"):
        cs.open_checkpoint("c")
    with cs.open_checkpoint("c", "ema") as found:
        assert found.tensor("w").tolist() == (VALUES + 1).tolist()


def test_an_item_may_have_the_name_of_a_step_or_no_metadata() -> None:
    for number, name in enumerate(("params", "1", "old")):
        item(f"c/{name}", {"w": VALUES + number})
    Path("c/old/_METADATA").unlink()
    Path("c/_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(cs.ConfigError, match="several state dicts: 1 .1 tensor., old .1 tensor., params .1 tensor"):
        cs.open_checkpoint("c")
    with cs.open_checkpoint("c", "old") as found:
        assert found.tensor("w").tolist() == (VALUES + 2).tolist()


def test_steps_before_0_5_have_items_without_metadata() -> None:
    folder = item("run/10/default", {"w": VALUES})
    (folder / "_METADATA").unlink()
    (folder / "checkpoint").write_bytes(b"\x80")
    for path in ("run", "run/10"):
        with cs.open_checkpoint(path) as found:
            assert list(found) == ["w"]
            assert "the values in the file default/checkpoint are not read" in found.notes


def test_folders_that_are_not_read_are_noted() -> None:
    item("run/10/state", {"w": VALUES})
    for name in ("run/10/data", "run/10/1", "run/20.orbax-checkpoint-tmp-1"):
        Path(name).mkdir()
    with cs.open_checkpoint("run") as found:
        assert list(found.notes) == [
            "read the only step: 10",
            "folders that are not read: 20.orbax-checkpoint-tmp-1",
            "folders that are not read: 1, data",
        ]
    shutil.copytree("run/10/state", "run/10/state/copy")
    with cs.open_checkpoint("run/10/state") as found:
        assert list(found.notes) == ["folders that are not read: copy"]


def test_the_file_with_the_values_of_old_versions_is_noted() -> None:
    with cs.open_checkpoint(str(GOLDEN / "old"), "target") as found:
        assert "the values in the file checkpoint are not read" in found.notes


@pytest.mark.long
def test_more_arrays_than_subfolders_that_are_searched_are_read() -> None:
    folder = item("x", {f"w{number:03}": VALUES for number in range(70)})
    with cs.open_checkpoint("x") as found:
        assert len(found) == 70
    (folder / "_METADATA").unlink()
    (folder / "checkpoint").write_bytes(b"\x80")
    with cs.open_checkpoint("x") as found:
        assert len(found) == 70


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "blosc", None)


@pytest.mark.usefixtures("without_packages")
def test_without_zstandard_the_error_names_the_extra(ckpt: Any) -> None:
    said = ckpt("inspect", str(GOLDEN / "ocdbt"))
    assert said.code == 2
    assert "reading it needs the package zstandard, which cannot be imported" in said.err
    assert "pip install 'ckptsurgeon[orbax]' installs it." in said.err


@pytest.mark.costly
@pytest.mark.parametrize("folder", ["ocdbt", "zarr3"])
def test_a_forked_process_reads_what_the_one_before_it_has_read(folder: str) -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    with cs.open_checkpoint(str(GOLDEN / folder)) as found:
        wanted = found.tensor("dense.float32")
        child = Forked(lambda: 0 if torch.equal(found.tensor("dense.float32"), wanted) else 1)
        assert child.ended() == 0


def test_a_file_beside_the_folders_of_steps_is_read() -> None:
    shutil.copytree(GOLDEN / "run", "run")
    shutil.copy(GOLDEN / "tree.msgpack", "run/flax_model.msgpack")
    with cs.open_checkpoint("run") as found:
        assert found.format == "flax"


@pytest.mark.usefixtures("without_packages")
def test_without_packages_folders_are_inspected_but_not_unpacked() -> None:
    with cs.open_checkpoint(str(GOLDEN / "folders")) as found:
        assert found["dense.float8_e5m2"].shape == (2, 3)
        with pytest.raises(cs.ConfigError, match=r"ckptsurgeon\[orbax\]"):
            found.tensor("dense.float32")


@pytest.mark.usefixtures("without_packages")
def test_without_packages_blosc_is_not_unpacked() -> None:
    with (
        cs.open_checkpoint(str(GOLDEN / "old"), "target") as found,
        pytest.raises(cs.ConfigError, match="compressed with Blosc: reading it needs the package blosc"),
    ):
        found.tensor("blosc")


@pytest.mark.usefixtures("without_packages")
def test_without_packages_gzip_is_unpacked() -> None:
    with cs.open_checkpoint(str(GOLDEN / "old"), "target") as found:
        assert found.tensor("dense.kernel").flatten().tolist() == list(range(35))


# Arrays in folders, which are made here: no package is needed for those that are not compressed.


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i4", ">i4"])
def test_an_array_in_folders_is_read(order: str, dtype: str) -> None:
    item("x", {"a.w": VALUES.astype(dtype)}, order=order)
    with cs.open_checkpoint("x") as found:
        assert list(found) == ["a.w"]
        assert found.tensor("a.w").tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    ("fill", "dtype", "value"),
    [(None, "<i4", 0), (7, "<i4", 7), ("NaN", "<f4", "nan"), (-0.0, "<f4", "-0.0"), (1.5, "<f2", 1.5)],
)
def test_a_chunk_that_is_not_stored_is_filled(fill: Any, dtype: str, value: Any) -> None:
    item("x", {"w": zarr(dtype=dtype, fill_value=fill)})
    with cs.open_checkpoint("x") as found:
        assert {str(one) for row in found.tensor("w").tolist() for one in row} == {str(value)}


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_fill_has_the_byte_order_of_its_array(order: str) -> None:
    folder = item("x", {"w": zarr([8], [4], f"{order}f4", fill_value=1.5)})
    (folder / "w" / "0").write_bytes(np.arange(4, dtype=f"{order}f4").tobytes())
    with cs.open_checkpoint("x") as found:
        assert found.tensor("w").tolist() == [0, 1, 2, 3, 1.5, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_the_fill_has_the_byte_order_of_its_array_in_zarr_3(endian: str, in_parts: bool) -> None:
    plain = {"name": "bytes", "configuration": {"endian": endian}}
    index = {"name": "bytes", "configuration": {"endian": "little"}}
    parts = {"chunk_shape": [2], "codecs": [plain], "index_codecs": [index]}
    codecs = [{"name": "sharding_indexed", "configuration": parts} if in_parts else plain]
    folder = item("x", {"w": zarr3([8], [4], data_type="int32", fill_value=7, codecs=codecs)})
    stored = np.arange(4, dtype="<i4" if endian == "little" else ">i4").tobytes()
    (folder / "w" / "c").mkdir()
    # of the first chunk in parts, only the first part is stored
    chunk = stored[:8] + struct.pack("<4Q", 0, 8, 2**64 - 1, 2**64 - 1) if in_parts else stored
    (folder / "w" / "c" / "0").write_bytes(chunk)
    with cs.open_checkpoint("x") as found:
        assert found.tensor("w").tolist() == [0, 1, *([7, 7] if in_parts else [2, 3]), 7, 7, 7, 7]


@pytest.mark.parametrize("fill", [0, [0, 0], [0.0, 0.0]])
def test_complex_zeros_are_filled(fill: Any) -> None:
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    item("x", {"w": zarr3([4], [4], data_type="complex64", fill_value=fill, codecs=[plain])})
    with cs.open_checkpoint("x") as found:
        assert found.tensor("w").tolist() == [0, 0, 0, 0]


def test_a_chunk_that_is_missing_is_an_error_if_all_are_stored() -> None:
    folder = item("x", {"w": VALUES})
    (folder / "_METADATA").write_text(json.dumps(metadata({"w": {}}, store_array_data_equal_to_fill_value=True)))
    (folder / "w" / "1.1").unlink()
    with (
        cs.open_checkpoint("x") as found,
        pytest.raises(cs.FormatError, match=r"chunk \[1, 1\] of w cannot be read: it is missing"),
    ):
        found.tensor("w")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"filters": [{"id": "delta"}]}, "it was stored through filters, which are not supported"),
        ({"compressor": {"id": "lzma"}}, "it was stored through the codec lzma, which is not supported"),
        ({"dtype": "<U8"}, "its type <U8 is not read from zarr"),
        ({"dtype": [["a", "<i4"]]}, "its type [['a', '<i4']] is not read from zarr"),
    ],
)
def test_what_is_not_read_says_why(change: dict[str, Any], why: str) -> None:
    item("x", {"w": zarr(**change)})
    with cs.open_checkpoint("x") as found:
        assert found["w"].opaque == why


def test_a_list_of_values_that_is_not_valid_is_named_with_its_folder() -> None:
    folder = item("x", {"w": VALUES})
    (folder / "_METADATA").write_text("{}")
    with pytest.raises(cs.FormatError, match="^x: _METADATA has no valid entry tree_metadata"):
        cs.open_checkpoint("x")


def test_every_entry_of_the_metadata_of_the_user_is_shown() -> None:
    folder = item("x", {"w": VALUES})
    custom = {"a": "text", "b": 2, "c": {"d": [1, None, "ä"]}, "e": None, "f": True}
    (folder / "_METADATA").write_text(json.dumps(metadata({"w": {}}, custom_metadata=custom)))
    assert dict(cs.inspect("x").metadata) == {
        "a": "text", "b": "2", "c": '{"d": [1, null, "ä"]}', "e": "null", "f": "true",
    }  # fmt: skip


def test_values_that_are_empty_and_strings_are_no_arrays() -> None:
    folder = item("x", {"w": VALUES})
    kinds = {"none": "None", "dict": "Dict"}
    leaves: dict[str, Any] = {name: {"value_type": kind, "skip_deserialize": True} for name, kind in kinds.items()}
    (folder / "_METADATA").write_text(json.dumps(metadata({"w": {}, "s": {"value_type": "string"}, **leaves})))
    with cs.open_checkpoint("x") as found:
        assert list(found) == ["w"]


def test_a_checkpoint_at_an_address_is_not_read(hub: Any) -> None:
    path = item("x", {"w": VALUES})
    files = {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    hub.repository("org/orbax", files)
    with pytest.raises(cs.SourceError, match="is read only on this machine"):
        cs.open_checkpoint("hf://org/orbax")


def test_large_chunks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats.orbax import arrays

    monkeypatch.setattr(arrays, "_LARGE", 100)
    item("x", {"w": VALUES, "v": VALUES[:1]})
    with cs.open_checkpoint("x") as found:
        assert any("1 array with chunks over 100 B, the largest 120 B (w)" in note for note in found.notes)


def test_a_large_array_is_read_band_by_band(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 100, (64, 64, 64)).astype("<f4")
    item("x", {"w": values}, (8, 16, 64))
    from ckptsurgeon.formats.orbax.values import ZarrValues

    read = []
    plain = ZarrValues.values
    monkeypatch.setattr(ZarrValues, "values", lambda self, place: read.append(place) or plain(self, place))
    with cs.open_checkpoint("x") as found:
        assert np.array_equal(found.tensor("w").numpy(), values)
    assert len(read) == len(set(read)) == 32


def test_chunks_that_nothing_says_are_lost_are_said() -> None:
    """Without metadata of its own, an old folder cannot show whether a chunk was zeros, and so left out, or is lost."""
    shutil.copytree(GOLDEN / "old", "old")
    assert not [note for note in cs.inspect("old").notes if "not stored" in note]
    Path("old/target.dense.kernel/0.1").unlink()
    Path("old/target.scale/0").unlink()
    (note,) = (note for note in cs.inspect("old").notes if "not stored" in note)
    assert note.startswith("2 chunks of 2 arrays are not stored, and read as the fill value of the array (usually 0)")
    assert note.endswith("target.dense.kernel, target.scale")
    Path("old/target.blosc/.zarray").unlink()
    with pytest.raises(cs.FormatError, match=r"the folder target\.blosc has chunks of an array, but no \.zarray"):
        cs.inspect("old")


def test_a_chunk_may_be_a_link_to_a_file_in_another_array() -> None:
    """Two arrays with the same values, of which one has no chunks of its own."""
    folder = item("x", {"v": VALUES, "w": VALUES})
    (folder / "w" / "0.0").unlink()
    (folder / "w" / "0.0").symlink_to("../v/0.0")
    with cs.open_checkpoint(folder) as found:
        assert found.tensor("w").tolist() == VALUES.tolist()
