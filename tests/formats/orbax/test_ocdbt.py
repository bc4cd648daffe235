"""Databases in the format OCDBT: as tensorstore wrote them (`make oracle-orbax`), and made by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.orbax.files import files_of
from ckptsurgeon.formats.orbax.ocdbt import Database
from ckptsurgeon.formats.orbax.packages import unblosc, unzstd
from ckptsurgeon.storage.crc32c import crc32c
from ckptsurgeon.storage.read.local import LocalFolder

from ...helpers.ocdbt_files import Reference, inner, leaf, manifest, numbered
from ...helpers.orbax_files import VALUES, item

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "orbax"
MISSING = 2**64 - 1


def opened(path: Path) -> Database:
    folder = LocalFolder(str(path))
    return Database(folder, files_of(folder))


def test_every_value_of_a_database_of_several_versions_is_read() -> None:
    """Manifests have numbers, a key was deleted, and the tree is eight nodes high, whose keys share beginnings."""
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    said = json.loads((GOLDEN / "numbered.json").read_text())
    found = opened(GOLDEN / "numbered")
    assert {key: found.read(key).hex() for key in said["values"]} == said["values"]  # type: ignore[union-attr]
    assert [found.read(key) for key in said["deleted"]] == [None] * len(said["deleted"])


def in_a_database(path: str, *, is_numbered: bool) -> None:
    """Put the files of the array of an item into a database of two leaves, which is not compressed."""
    folder = Path(path)
    files = {f"w/{one.name}": one.read_bytes() for one in sorted((folder / "w").iterdir())}
    for one in (folder / "w").iterdir():
        one.unlink()
    (folder / "w").rmdir()
    data, values = b"", dict[str, bytes | Reference]()
    for name, content in files.items():
        values[name.removeprefix("w/")] = (
            Reference("values", len(data), len(content), "part/") if "1." in name else content
        )
        data += content
    leaves = [
        leaf({name: one for name, one in values.items() if (name < "1") == is_first}) for is_first in (True, False)
    ]
    places = [Reference("nodes", at, len(one)) for at, one in zip((0, len(leaves[0])), leaves, strict=True)]
    root = inner({"w/.zarray": places[0], "w/1": places[1]}, 1, common=2)
    (folder / "part").mkdir()
    (folder / "part" / "values").write_bytes(data)
    (folder / "nodes").write_bytes(b"".join([*leaves, root]))
    version = manifest(Reference("nodes", sum(map(len, leaves)), len(root)), 1)
    older = manifest(Reference("nodes", MISSING, MISSING))
    manifests = {"manifest.ocdbt": version}
    if is_numbered:
        manifests = {"manifest.ocdbt": numbered(), f"manifest.{10:016x}": version, f"manifest.{9:016x}": older}
    for name, content in manifests.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("is_numbered", [False, True])
def test_a_database_that_is_not_compressed_needs_no_package(is_numbered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    item("x", {"w": VALUES})
    in_a_database("x", is_numbered=is_numbered)
    with cs.open_checkpoint("x") as found:
        assert found.tensor("w").tolist() == VALUES.tolist()


def test_a_database_without_keys_is_read() -> None:
    Path("x").mkdir()
    Path("x/manifest.ocdbt").write_bytes(manifest(Reference("d/x", MISSING, MISSING)))
    assert opened(Path("x")).read("w/.zarray") is None


def test_a_database_of_another_version_is_not_called_damaged() -> None:
    Path("x").mkdir()
    node = leaf({"a": b"1"})
    newer = node[:12] + b"\x01" + node[13:-4]
    newer += crc32c(newer).to_bytes(4, "little")
    Path("x/nodes").write_bytes(newer)
    Path("x/manifest.ocdbt").write_bytes(manifest(Reference("nodes", 0, len(newer))))
    with pytest.raises(cs.FormatError, match="the OCDBT database in x cannot be read: .* has version 1") as caught:
        opened(Path("x"))
    assert not caught.value.hint
    Path("x/nodes").write_bytes(newer[:-1] + b"\xff")
    with pytest.raises(cs.FormatError, match="the OCDBT database in x is damaged") as caught:
        opened(Path("x"))
    assert caught.value.hint == "Copy the whole folder again."


def test_twenty_thousand_keys_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x").mkdir()
    node = leaf({f"{number:06}": Reference("nodes", number, 1) for number in range(20_000)})
    Path("x/nodes").write_bytes(node)
    Path("x/manifest.ocdbt").write_bytes(manifest(Reference("nodes", 0, len(node))))
    assert opened(Path("x")).read("019999") == node[19_999:20_000]
    monkeypatch.setattr(limits, "OCDBT_KEPT", 20_000 * (limits.OCDBT_ENTRY + 6))
    with pytest.raises(cs.UnsafeError, match="has keys and values that need over"):
        opened(Path("x"))  # the path of its file counts, too


@pytest.mark.parametrize(("limit", "why"), [("OCDBT_UNPACKED", "unpack to over"), ("OCDBT_NUMBERS", "numbers")])
def test_what_all_nodes_cost_together_is_limited(limit: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    item("x", {"w": VALUES})
    in_a_database("x", is_numbered=False)
    monkeypatch.setattr(limits, limit, 450)
    with pytest.raises(cs.UnsafeError, match=f"x has nodes .*{why}"):
        opened(Path("x"))


def test_zstd_is_unpacked_to_no_more_than_expected() -> None:
    library = pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    for knows_size in (True, False):
        packed = library.ZstdCompressor(write_content_size=knows_size).compress(bytes(1000))
        assert unzstd(packed, 1000) == bytes(1000)
        with pytest.raises(ValueError, match="999 bytes"):
            unzstd(packed, 999)
        with pytest.raises(ValueError, match="cannot be unpacked"):
            unzstd(packed[:-1], 1000)


def test_blosc_is_unpacked_to_what_is_expected() -> None:
    library = pytest.importorskip("blosc", reason="the extra orbax is not installed")
    packed = library.compress(bytes(range(250)) * 40, typesize=4, cname="lz4")
    assert unblosc(packed, 10_000) == bytes(range(250)) * 40
    for nbytes in (9_999, 10_001):
        with pytest.raises(ValueError, match="does not say that the chunk unpacks to"):
            unblosc(packed, nbytes)
