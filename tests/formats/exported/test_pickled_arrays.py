"""Pickles of numpy's arrays: as numpy wrote them (`make oracle-pickles`), and pickles that break rules."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.pickle import skeleton

from ...helpers.pickled_arrays import ndarray, of_python2, reduced, text_of

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "pickles"
LARGE = np.arange(3000, dtype="f4").reshape(50, 60)


def opened(data: bytes, root: str | None = None) -> cs.Checkpoint:
    Path("x.pkl").write_bytes(data)
    return cs.open_checkpoint("x.pkl", root)


@pytest.mark.parametrize("protocol", range(6))
def test_every_array_has_the_values_that_numpy_reads(protocol: int) -> None:
    wanted = json.loads((GOLDEN / "shapes.json").read_text())["shapes"]
    with cs.open_checkpoint(str(GOLDEN / f"{protocol}.pkl")) as found, np.load(GOLDEN / "values.npz") as values:
        assert found.root == "model"
        assert list(found) == list(wanted)
        for key, (dtype, shape) in wanted.items():
            assert (found[key].dtype, list(found[key].shape)) == (dtype, shape)
            stored = found.tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy()
            assert stored.tobytes() == values[key].tobytes(), key
        assert found["tied"].storage is found["large"].storage
        assert found.notes == ("not read: 2 arrays of types that torch lacks, such as strings or objects",)
    cs.apply(cs.convert(str(GOLDEN / f"{protocol}.pkl")), "out.pth")
    verified = cs.verify("out.pth")
    assert verified.ok
    assert not verified.not_compared  # the values in memory are those of a file
    assert torch.equal(torch.load("out.pth")["turned"], torch.arange(3000.0).reshape(50, 60) / 7)


@pytest.mark.parametrize("array", [LARGE, np.asfortranarray(LARGE), np.array([[1, 250], [3, 4]], "<u2"), np.array(7)])
def test_pickles_of_python_2_have_their_bytes_in_place(array: np.ndarray[Any, Any]) -> None:
    with opened(of_python2({"blobs": {"conv_w": array, "conv_b": np.ones(2, "f4")}})) as found:
        assert found.root == "blobs"
        assert np.array_equal(found.tensor("conv_w").numpy(), array)
        assert found.tensor("conv_b").tolist() == [1, 1]


@pytest.mark.parametrize("protocol", [2, 4])
def test_names_of_older_versions_of_numpy_are_known(protocol: int) -> None:
    data = pickle.dumps({"w": LARGE}, protocol)
    old = (
        data.replace(b"numpy._core", b"numpy.core")
        if protocol < 4
        else data.replace(b"\x16numpy._core.", b"\x15numpy.core.")
    )
    assert old != data
    if protocol == 4:  # the frame is one byte shorter
        length = int.from_bytes(old[3:11], "little")
        old = old[:3] + (length - 1).to_bytes(8, "little") + old[11:]
    with opened(old) as found:
        assert np.array_equal(found.tensor("w").numpy(), LARGE)


def test_nested_dicts_and_lists_have_dotted_keys() -> None:
    w = np.ones((2, 3), "f4")
    layers = {"linear": {"w": w, "b": w[0]}, "blocks": [{"w": w}, {"w": w}], "name": "net", "sizes": [1, 2]}
    with opened(pickle.dumps(layers)) as found:
        assert list(found) == ["linear.w", "linear.b", "blocks.0.w", "blocks.1.w"]
    with opened(pickle.dumps({"params": layers, "opt_state": {"mu": {"linear": w}}, "step": 3})) as found:
        assert found.root == "params"
        assert next(iter(found)) == "linear.w"
    with opened(pickle.dumps([w, w[0]])) as found:
        assert list(found) == ["0", "1"]
    with opened(pickle.dumps(w)) as found:
        assert list(found) == ["x"]
    with opened(pickle.dumps(OrderedDict(a=w))) as found:
        assert found.tensor("a").tolist() == [[1] * 3] * 2


def test_nothing_is_imported_or_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("touched"),)

    with opened(pickle.dumps({"w": LARGE, "evil": Evil()})) as found:
        assert np.array_equal(found.tensor("w").numpy(), LARGE)
    assert not Path("touched").exists()


def test_strings_are_read_in_place_with_windows_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {f"layer.{at}": LARGE + at for at in range(3)} | {"text": "é" * 9000, "small": np.arange(5)}
    for protocol in range(6):
        data = pickle.dumps(tree, protocol)
        for window in (1, 7, 64, 5000):
            monkeypatch.setattr(skeleton, "_WINDOW", window)
            with opened(data) as found:
                assert list(found) == ["layer.0", "layer.1", "layer.2", "small"]
                assert np.array_equal(found.tensor("layer.2").numpy(), LARGE + 2)


def test_a_folder_or_an_archive_with_one_pickle_is_opened() -> None:
    Path("net").mkdir()
    Path("net/model.pkl").write_bytes(pickle.dumps({"w": LARGE}))
    with zipfile.ZipFile("net.zip", "w") as archive:
        archive.write("net/model.pkl")
    for path in ("net", "net.zip"):
        with cs.open_checkpoint(path) as found:
            assert np.array_equal(found.tensor("w").numpy(), LARGE)
    save_file({"other": torch.ones(2)}, "net/model.safetensors")
    with cs.open_checkpoint("net") as found:
        assert list(found) == ["other"]


def test_a_pickle_of_other_things_does_not_hide_checkpoints_in_subfolders() -> None:
    Path("run/checkpoints").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, "run/checkpoints/model.safetensors")
    Path("run/state.pkl").write_bytes(pickle.dumps({"epoch": 3}))
    for more in ("", "run/other.pkl"):
        if more:
            Path(more).write_bytes(pickle.dumps({"epoch": 3}))
        with pytest.raises(cs.FormatError, match="a folder with checkpoints in its subfolders: checkpoints"):
            cs.open_checkpoint("run")
    with zipfile.ZipFile("run.zip", "w") as archive:
        archive.write("run/state.pkl", "state.pkl")
        archive.write("run/checkpoints/model.safetensors", "checkpoints/model.safetensors")
    with pytest.raises(cs.FormatError, match="a zip archive that contains checkpoints/model.safetensors"):
        cs.open_checkpoint("run.zip")
    Path("vocabulary.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(cs.FormatError, match="without arrays of numpy"):
        cs.open_checkpoint("vocabulary.pkl")


@pytest.mark.costly
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_at_an_address_is_read_by_ranges(protocol: int, hub: Any) -> None:
    large = np.arange(1_000_000, dtype="f4")
    address = hub.file("x.pkl", pickle.dumps({"large": large, "w": LARGE}, protocol))
    with cs.open_checkpoint(address) as found:
        assert np.array_equal(found.tensor("w").numpy(), LARGE)
    assert hub.sent < 2_000_000


def test_the_scan_knows_what_arrays_need(ckpt: Any) -> None:
    for protocol in range(6):
        assert ckpt("scan", str(GOLDEN / f"{protocol}.pkl")).code == 0


def test_a_header_of_safetensors_is_not_taken_for_a_pickle() -> None:
    for length in (0x80, 0x280, 0x480):  # whose bytes are those of a pickle's beginning
        data = save({"w": torch.ones(1)}, {"filler": "x" * (length - 88)})
        assert data[:8] == length.to_bytes(8, "little")
        with opened(data) as found:
            assert found.tensor("w").tolist() == [1]


def test_bytes_behind_the_pickle_are_noted() -> None:
    with opened(pickle.dumps({"w": LARGE}) + b"more") as found:
        assert found.notes == ("4 bytes after the end of the pickle were not read",)


def test_a_text_that_is_not_of_an_array_is_refused_when_it_is_read() -> None:
    wrong = {"not Latin-1": "\u20ac" * 2000 + "a" * 6000, "too short": "é" * 5000}
    for name, text in wrong.items():
        said = "not Latin-1" if name == "not Latin-1" else "5000 bytes instead of 8000"
        with opened(text_of(text, 8000)) as found, pytest.raises(cs.FormatError, match=said):
            found.tensor("w")


def oob() -> bytes:
    return pickle.dumps({"w": LARGE}, 5, buffer_callback=[].append)


W = pickle.dumps({"w": LARGE}, 4)
HOSTILE: dict[str, bytes] = {
    "no array": pickle.dumps({"a": 1}),
    "an array of strings alone": pickle.dumps({"w": np.array(["a"])}),
    "buffers out of band": oob(),
    "cut in an array": W[:6000],
    "cut behind an array": W[:-3],
    "cut in a name": pickle.dumps({"w" * 100: LARGE}, 2)[:20],
    "a string of 2^62 bytes": W.replace(b"B" + (12000).to_bytes(4, "little"), b"\x8e" + (1 << 62).to_bytes(8, "little")),
    "a string longer than its frame": b"\x80\x04\x95\x10" + bytes(7) + b"}B" + (5000).to_bytes(4, "little") + bytes(5000) + b"0.",
    "a frame beyond the end": b"\x80\x04\x95\xff\xff" + bytes(6) + b"}.",
    "a frame in a frame": b"\x80\x04\x95\x20" + bytes(7) + b"\x95\x02" + bytes(7) + b"}." + bytes(30),
    "a stop in a frame": b"\x80\x04\x95\x05" + bytes(7) + b"}." + bytes(9),
    "an unknown opcode": b"\x80\x04}\xff.",
    "protocol 6": b"\x80\x05\x80\x06}.",
    "a persistent id": b"\x80\x02K\x01Q.",
    "a persistent id as text": b"\x80\x02Pabc\n.",
    "an endless line": b"\x80\x02S'" + b"a" * 100_000,
    "too few bytes": ndarray((50, 61), LARGE.tobytes()),
    "too many bytes": ndarray((50, 59), LARGE.tobytes()),
    "too few bytes of text": text_of("a" * 7000, 8000),
    "too many bytes of text": text_of("a" * 17000, 8000),
    "a negative size": ndarray((-1, 3), LARGE.tobytes()),
    "2^70 elements": ndarray((1 << 70,), LARGE.tobytes()),
    "sizes whose product overflows": ndarray((1 << 40, 1 << 40), LARGE.tobytes()),
    "100 dimensions": ndarray((1,) * 100, LARGE.tobytes()[:4]),
    "a state of three": reduced((1, (2,), None)),
    "a joblib file": pickle.dumps({"joblib.numpy_pickle": 1}),
    "two paths of one key": pickle.dumps({"a.b": LARGE, "a": {"b": LARGE}}),
}  # fmt: skip
DEEP: Any = LARGE
for _ in range(limits.TREE_DEPTH + 10):
    DEEP = {"a": DEEP}
HOSTILE["nested too deeply"] = pickle.dumps(DEEP)
SHARED: Any = {"w": LARGE}
for _ in range(40):
    SHARED = {"a": SHARED, "b": SHARED}
HOSTILE["dicts that are shared at 40 levels"] = pickle.dumps(SHARED)


LONG = pytest.param("dicts that are shared at 40 levels", marks=pytest.mark.long)  # tests/hostile has it too


@pytest.mark.parametrize("name", [name if name not in LONG.values else LONG for name in HOSTILE])
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.pkl"):
        opened(HOSTILE[name]).close()


def test_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_OPS", 1000)
    with pytest.raises(cs.UnsafeError, match="more instructions than the limit of 1000"):
        opened(pickle.dumps({"w": LARGE, "list": [{}] * 3000}))


def test_many_short_strings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_BYTES", 70_000)
    with pytest.raises(cs.UnsafeError, match="over 70000 bytes besides its long strings"):
        opened(pickle.dumps({"w": LARGE, "list": [str(at) for at in range(20_000)]}))
