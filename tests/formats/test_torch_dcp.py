"""Folders of torch.distributed.checkpoint: read as torch reads them, written so that torch reads them."""

from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError, UnsafeError
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.formats.base.slice import TensorPiece, assembled
from ckptsurgeon.formats.torch.dcp_writer import _MetadataWriter
from ckptsurgeon.tensors.encoders._schemes import SCHEMES, misfit
from ckptsurgeon.tensors.info import TensorInfo

from ..helpers.forked import Forked

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is ", "ignore:TypedStorage", "ignore:Detected")

STATE = {
    "enc.weight": torch.randn(6, 5),
    "enc.bias": torch.randn(6).bfloat16(),
    "steps": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "wave": torch.randn(4, dtype=torch.complex64),
    "small": torch.randn(4).to(torch.float8_e4m3fn),
    "nothing": torch.empty(0, 4),
}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.reshape(-1).view(torch.uint8).equal(
        b.reshape(-1).view(torch.uint8)
    )  # fmt: skip


def save(state: dict[str, Any], path: str = "d") -> None:
    dcp.save(state, checkpoint_id=path)


def metadata(path: str = "d") -> Any:
    return pickle.loads(Path(path, ".metadata").read_bytes())


def edited(change: Callable[[Any], object], path: str = "d") -> None:
    """Change the metadata of a folder as torch's classes have it."""
    found = metadata(path)
    change(found)
    Path(path, ".metadata").write_bytes(pickle.dumps(found))


def test_what_torch_saved_is_read_as_it_was() -> None:
    save({"model": STATE, "epoch": 7, "names": ["a", "b"], "optim": {"state": {0: {"avg": torch.ones(2)}}}})
    with cs.open_checkpoint("d") as checkpoint:
        assert (checkpoint.format, checkpoint.root) == ("torch distributed", "model")
        assert list(checkpoint) == list(STATE)
        assert all(same(checkpoint.tensor(key), value) for key, value in STATE.items())
        extras = {extra.key: extra.value for extra in checkpoint.extras}
        assert extras["epoch"] == 7
    cs.apply(cs.convert("d"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert all(same(load_file("out.safetensors")[key], value) for key, value in STATE.items() if key != "wave")
    assert list(cs.open_checkpoint("d", "optim.state.0")) == ["avg"]
    assert list(cs.open_checkpoint("d/.metadata")) == list(STATE)


def save_pieces(rank: int, meeting: str) -> None:
    """Save, as one of four processes, what is cut in several ways."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=4)
    line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    save(
        {
            "rows": distribute_tensor(counted(5, 3), line, [Shard(0)]),
            "columns": distribute_tensor(counted(3, 6), line, [Shard(1)]),
            "few": distribute_tensor(counted(2, 3), line, [Shard(0)]),
            "both": distribute_tensor(counted(5, 7), grid, [Shard(0), Shard(1)]),
            "all": distribute_tensor(counted(2, 2), line, [Replicate()]),
            "plain": counted(3),
        },
        "sharded",
    )
    dist.destroy_process_group()


def counted(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


@pytest.mark.long
def test_what_four_processes_saved_in_pieces_is_put_together() -> None:
    meeting = os.path.abspath("meeting")
    import torch.distributed.tensor  # which each process has imported when it is forked

    ranks = [Forked(partial(save_pieces, rank, meeting)) for rank in range(4)]
    assert [one.ended() for one in ranks] == [0] * 4, [one.err for one in ranks]
    shapes = {"rows": (5, 3), "columns": (3, 6), "few": (2, 3), "both": (5, 7), "all": (2, 2), "plain": (3,)}
    whole = {key: counted(*shape) for key, shape in shapes.items()}
    with cs.open_checkpoint("sharded") as checkpoint:
        assert {key: info.shape for key, info in checkpoint.items()} == shapes
        assert all(same(checkpoint.tensor(key), value) for key, value in whole.items())
    torch.save(whole, "whole.pth")
    assert not cs.diff("sharded", "whole.pth", values=True).differs
    cs.apply(cs.convert("sharded"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert all(same(load_file("out.safetensors")[key], value) for key, value in whole.items())
    cs.apply(cs.convert("sharded"), "again", to="dcp")
    assert cs.verify("again").ok
    assert not cs.diff("again", "whole.pth", values=True).differs


def test_what_is_written_is_what_torch_reads() -> None:
    torch.save(STATE, "s.pth")
    receipt = cs.apply(cs.convert("s.pth"), "d", to="dcp")
    assert sorted(os.listdir("d")) == [".metadata", "__0_0.distcp", "ckptsurgeon.json"]
    assert receipt.nbytes_written == sum(path.stat().st_size for path in Path("d").iterdir())
    assert cs.verify("d").ok
    loaded = {key: torch.empty_like(value) for key, value in STATE.items()}
    dcp.load(loaded, storage_reader=FileSystemReader("d"))
    assert all(same(loaded[key], value) for key, value in STATE.items())
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save("d", "back.pth")
    back = torch.load("back.pth", weights_only=True)
    assert back.keys() == STATE.keys()
    assert all(same(back[key], value) for key, value in STATE.items())


def test_the_metadata_is_that_of_torchs_own_writer() -> None:
    """But for where the pieces lie, and the random id and the absolute path that torch leaves."""
    save(STATE, "theirs")
    torch.save(STATE, "s.pth")
    cs.apply(cs.convert("s.pth"), "ours", to="dcp")
    ours, theirs = metadata("ours"), metadata("theirs")
    for one in theirs.state_dict_metadata.values():
        if hasattr(one.properties, "strides"):  # of torch 2.15, which takes None too
            one.properties.strides = None
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert list(ours.state_dict_metadata) == list(theirs.state_dict_metadata)
    assert ours.planner_data == theirs.planner_data
    assert ours.version == getattr(theirs, "version", "1.0.0")  # torch 2.6 writes none
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert {dataclasses.astuple(index) for index in ours.storage_data} == {
        dataclasses.astuple(index) for index in theirs.storage_data
    }
    for info in ours.storage_data.values():
        assert torch.load(_Slice("ours", info), weights_only=True) is not None


def _Slice(folder: str, info: Any) -> Any:
    import io

    return io.BytesIO(Path(folder, info.relative_path).read_bytes()[info.offset : info.offset + info.length])


def test_the_same_tensors_give_the_same_bytes_wherever_they_are_written() -> None:
    torch.save(STATE, "s.pth")
    for folder in ("a/d", "b/d"):
        os.makedirs(os.path.dirname(folder))
        cs.apply(cs.convert("s.pth"), folder, to="dcp")
    for name in (".metadata", "__0_0.distcp", "ckptsurgeon.json"):
        assert Path("a/d", name).read_bytes() == Path("b/d", name).read_bytes()


def test_several_files_and_nothing_stale_when_written_again(ckpt: Any) -> None:
    torch.save({f"w{i}": torch.ones(100) * i for i in range(6)}, "s.pth")
    assert ckpt("convert", "s.pth", "-o", "d", "--to", "dcp", "--max-shard-size", "900B").code == 0
    assert sorted(os.listdir("d")) == [".metadata", "__0_0.distcp", "__0_1.distcp", "__0_2.distcp", "ckptsurgeon.json"]
    assert cs.verify("d").ok
    assert not cs.diff("s.pth", "d", values=True).differs
    assert ckpt("convert", "s.pth", "-o", "d", "--to", "dcp").code == 5
    assert ckpt("convert", "s.pth", "-o", "d", "--to", "dcp", "--force").code == 0
    assert sorted(os.listdir("d")) == [".metadata", "__0_0.distcp", "ckptsurgeon.json"]
    assert ckpt("convert", "s.pth", "-o", "d", "--force").code == 0
    assert sorted(os.listdir("d")) == ["ckptsurgeon.json", "model.safetensors"]
    assert ckpt("convert", "s.pth", "-o", "d", "--to", "dcp", "--force").code == 0
    assert not cs.diff("s.pth", "d", values=True).differs


@pytest.mark.long
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "ckptsurgeon.json"])
def test_no_flipped_bit_goes_unseen(name: str) -> None:
    torch.save({"w": torch.randn(3), "x": torch.randn(2)}, "s.pth")
    cs.apply(cs.convert("s.pth"), "d", to="dcp")
    data = Path("d", name).read_bytes()
    for at in {*range(0, len(data), 13 if len(data) > 600 else 2), len(data) - 1}:
        Path("d", name).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            assert not cs.verify("d").ok, at
        except cs.CheckpointError:
            pass
    Path("d", name).write_bytes(data)
    assert cs.verify("d").ok


def test_data_files_that_the_metadata_does_not_list_are_named() -> None:
    save({"a": torch.randn(4, 4)})
    Path("d", "__7_0.distcp").touch()  # of a rank without tensors
    assert not any(".metadata" in note for note in cs.open_checkpoint("d").notes)
    Path("d", "__1_0.distcp").write_bytes(Path("d", "__0_0.distcp").read_bytes())
    (said,) = (note for note in cs.open_checkpoint("d").notes if ".metadata" in note)
    assert said.startswith(
        "left out 1 file that .metadata does not list (perhaps it and .metadata are of different saves): "
    )
    assert said.endswith(": __1_0.distcp")
    Path("d", "__2_0.distcp").write_bytes(Path("d", "__0_0.distcp").read_bytes())
    said = next(note for note in cs.open_checkpoint("d").notes if ".metadata" in note)
    assert "2 files that .metadata does not list (perhaps they and .metadata are of different saves)" in said


def test_a_damaged_piece_is_not_said_to_be_a_truncated_file() -> None:
    save({"a": torch.randn(64, 64), "b": torch.randn(64, 64)})
    (path,) = Path("d").glob("*.distcp")
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half - 2000 : half + 2000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(cs.FormatError, match=r"should be a piece of a tensor, but are damaged\.") as caught:
        cs.open_checkpoint("d")
    assert "truncated" not in str(caught.value)
    assert "Fetch or save this file again." in str(caught.value)


def test_ties_are_written_under_each_name() -> None:
    weight = torch.randn(3, 2)
    torch.save({"embed": weight, "out": weight}, "s.pth")
    cs.apply(cs.convert("s.pth"), "d", to="dcp")
    assert cs.verify("d").ok
    with cs.open_checkpoint("d") as checkpoint:
        assert same(checkpoint.tensor("out"), weight)


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


@pytest.mark.parametrize("place", ["metadata", "properties", "planner", "storage", "all of it", "a piece"])
def test_nothing_in_it_is_run(place: str) -> None:
    save({"w": torch.ones(2), "note": "x"})
    found = metadata()
    if place == "metadata":
        found.state_dict_metadata["w2"] = _Payload()
    elif place == "properties":
        found.state_dict_metadata["w"].size = _Payload()
    elif place == "planner":
        found.planner_data = _Payload()
    elif place == "storage":
        found.storage_data[torch_metadata.MetadataIndex("w", torch.Size([0]))] = _Payload()
    elif place == "a piece":
        data = pickle.dumps(_Payload())
        Path("d", "__0_0.distcp").write_bytes(data)
        found.storage_data = {
            index: _StorageInfo("__0_0.distcp", 0, len(data)) for index in list(found.storage_data)[:1]
        }
    raw = pickle.dumps(_Payload() if place == "all of it" else found)
    Path("d", ".metadata").write_bytes(raw)
    try:
        assert list(cs.open_checkpoint("d")) == ["w"]
    except (FormatError, UnsafeError):
        pass
    assert not Path("canary").exists()
    pickle.loads(raw)
    assert Path("canary").exists() or place == "a piece"


def _piece(found: Any) -> Any:
    return next(info for index, info in found.storage_data.items() if index.fqn == "w")


def _last(found: Any) -> Any:
    return max(found.storage_data.values(), key=lambda info: info.offset)


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "a file that is not there": (lambda m: setattr(_piece(m), "relative_path", "__1_0.distcp"), "the metadata lists the file __1_0.distcp, which does not exist"),
    "a file outside": (lambda m: setattr(_piece(m), "relative_path", "../secret"), "outside"),
    "a piece beyond the file": (lambda m: setattr(_last(m), "length", 10**9), "are expected"),
    "a piece before the file": (lambda m: setattr(_piece(m), "offset", -5), "are expected"),
    "a piece in the middle": (lambda m: setattr(_piece(m), "offset", 3), "."),
    "pieces that overlap": (lambda m: [setattr(i, "offset", 0) for i in m.storage_data.values()], "overlap"),
    "no place": (lambda m: m.storage_data.clear(), "does not say where a piece of w is stored"),
    "no places": (lambda m: setattr(m, "storage_data", None), "does not say which file"),
    "no tensors": (lambda m: setattr(m, "state_dict_metadata", None), "lists no tensors"),
    "another dtype": (
        lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.float64), "declared as float64",
    ),
    "another shape": (
        lambda m: setattr(m.state_dict_metadata["w"].chunks[0], "sizes", torch.Size([4])), "declared as float32 (4,)",
    ),
    "a hole": (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([3])), "are not a complete grid"),
    "no piece": (lambda m: m.state_dict_metadata["w"].chunks.clear(), "no piece of the tensor w"),
    "a chunk again and again": (
        lambda m: m.state_dict_metadata["w"].chunks.extend(m.state_dict_metadata["w"].chunks * 200_000),
        "lists 200,001 pieces of w, but gives the places of 1",
    ),
    "pieces that are none": (lambda m: setattr(m.state_dict_metadata["w"], "chunks", None), "lists no pieces of w"),
    "a file by another way": (lambda m: setattr(_piece(m), "relative_path", "./__0_0.distcp"), "contains an invalid path"),
    "two entries of one name": (
        lambda m: (m.planner_data.update({"v": ("a", "b"), "a": None}),
                   m.state_dict_metadata.update({"a": m.state_dict_metadata["w"]}),
                   m.storage_data.update({torch_metadata.MetadataIndex("a", torch.Size([0])): m.storage_data.pop(torch_metadata.MetadataIndex("w", torch.Size([0])))}),
                   m.state_dict_metadata.pop("w")),
        "would get the same key a",
    ),
    "a size that is none": (lambda m: setattr(m.state_dict_metadata["w"], "size", (-1,)), "size contains -1, not an integer"),
    "more dimensions": (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([2, 1])), "more or fewer dimensions"),
    "a dtype that is none": (
        lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", "float32"), "unknown dtype",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused(name: str, ckpt: Any) -> None:
    save({"w": torch.ones(2), "v": torch.ones(3)})
    change, message = WRONG[name]
    edited(change)
    done = ckpt("inspect", "d")
    assert (done.code, message in " ".join(done.err.split()), done.err.startswith("error: d/")) == (3, True, True), (
        done.err
    )


@pytest.mark.long
def test_offsets_whose_hashes_collide_take_no_time() -> None:
    """Multiples of 2^61 - 1 all hash to 0."""
    m = 2**61 - 1
    writer = _MetadataWriter()
    writer.begin("torch.distributed.checkpoint.metadata", "Metadata")
    writer.word("state_dict_metadata")
    writer.out += b"}"
    writer.word("storage_data")
    writer.out += b"}("
    for i in range(20_000):
        writer.begin("torch.distributed.checkpoint.metadata", "MetadataIndex")
        writer.word("fqn")
        writer.word("w")
        writer.word("offset")
        writer.name("torch", "Size")  # not by writer.size, whose memo would be slow
        writer.integers([(i >> 2 * digit & 3) * m for digit in range(8)])
        writer.out += b"\x85R"
        writer.end()
        writer.begin("torch.distributed.checkpoint.filesystem", "_StorageInfo")
        for name, value in (("offset", i), ("length", 1)):
            writer.word(name)
            writer.integer(value)
        writer.word("relative_path")
        writer.word("__0_0.distcp")
        writer.end()
    writer.out += b"u"
    writer.end()
    os.makedirs("d")
    Path("d/.metadata").write_bytes(bytes(writer.out + b"."))
    with pytest.raises(cs.CheckpointError, match="has no state dict"):
        cs.open_checkpoint("d")


def test_a_piece_that_is_listed_twice_is_refused() -> None:
    torch.save({"w": torch.ones(2)}, "s.pth")
    cs.apply(cs.convert("s.pth"), "d", to="dcp")
    writer = _MetadataWriter()
    writer.begin("torch.distributed.checkpoint.metadata", "Metadata")
    writer.word("state_dict_metadata")
    writer.out += b"}("
    writer.text("w")
    writer.tensor_metadata(OutTensor("w", "float32", (2,), 8))
    writer.out += b"u"
    writer.word("storage_data")
    writer.out += b"}("
    for _ in range(2):
        writer.piece("w", 1, "__0_0.distcp", 0, Path("d/__0_0.distcp").stat().st_size)
    writer.out += b"u"
    writer.end()
    Path("d/.metadata").write_bytes(bytes(writer.out + b"."))
    with pytest.raises(FormatError, match="a piece of w twice"):
        cs.open_checkpoint("d")


def test_a_metadata_that_is_cut_short_is_refused() -> None:
    save({"w": torch.ones(2)})
    raw = Path("d", ".metadata").read_bytes()
    for size in range(0, len(raw), 5):
        Path("d", ".metadata").write_bytes(raw[:size])
        with pytest.raises(cs.CheckpointError):
            cs.open_checkpoint("d")


def test_pieces_in_an_unknown_encoding_are_opaque() -> None:
    save({"w": torch.ones(2), "v": torch.ones(3)})
    edited(lambda m: setattr(_piece(m), "transform_descriptors", ["zstd"]))
    with cs.open_checkpoint("d") as checkpoint:
        assert checkpoint["w"].opaque == "its pieces have an unsupported encoding"
        assert checkpoint["v"].opaque == ""


def test_another_checkpoint_in_the_folder_is_said() -> None:
    save({"w": torch.ones(2)})
    torch.save({"w": torch.ones(2)}, "d/pytorch_model.bin")
    with pytest.raises(FormatError, match=r"also contains pytorch_model.bin; one of them may be out of date"):
        cs.open_checkpoint("d")
    assert list(cs.open_checkpoint("d/.metadata")) == ["w"]


def test_data_is_read_as_far_as_a_budget_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats.base import limits

    save({"w": torch.ones(2), "a": {"x": list(range(50))}, "b": {"y": list(range(50))}})
    monkeypatch.setattr(limits, "PIECE_DATA", 2000)
    with cs.open_checkpoint("d", ".") as checkpoint:
        shown = {extra.key: extra.type for extra in checkpoint.extras}
        assert list(checkpoint) == ["w"]
    assert len(shown) == 2
    monkeypatch.setattr(limits, "PIECE_PICKLES", 100)
    with pytest.raises(UnsafeError, match="has more bytes than the limit of 100"):
        cs.open_checkpoint("d")


def test_a_compressed_piece_is_refused() -> None:
    """A few bytes could become a pickle of millions of instructions, for each of the pieces."""
    save({"w": torch.ones(2)})
    with zipfile.ZipFile("p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 100_000 + b"N.")
    data = Path("p.zip").read_bytes()
    Path("d/__0_0.distcp").write_bytes(data)
    edited(lambda m: [setattr(info, "length", len(data)) for info in m.storage_data.values()])
    with pytest.raises(FormatError, match="a compressed piece"):
        cs.open_checkpoint("d")


def _at(shape: tuple[int, ...], *offsets: int) -> TensorPiece:
    return TensorPiece(offsets, TensorInfo("float32", shape))


@pytest.mark.parametrize(
    "pieces",
    [
        [_at((2, 3), 0, 0), _at((2, 3), 1, 0)],
        [_at((2, 2), 0, 0), _at((2, 2), 0, 1), _at((2, 3), 2, 0)],
        [_at((2, 3), 0, 0), _at((2, 3), 3, 0)],
        [_at((4, 3), 0, 0), _at((4, 3), 0, 0)],
        [_at((2, 3), 0, 0), _at((3, 3), 2, 0)],
        [_at((3, 2), 0, 0), _at((4, 1), 0, 2)],
    ],
)
def test_pieces_that_overlap_or_leave_a_hole_are_refused(pieces: list[TensorPiece]) -> None:
    with pytest.raises(FormatError, match="are not a complete grid"):
        assembled("w", "float32", (4, 3), pieces)


def test_pieces_of_rows_that_are_cut_differently() -> None:
    pieces = [_at((2, 1), 0, 0), _at((2, 2), 0, 1), _at((2, 2), 2, 0), _at((2, 1), 2, 2)]
    assert assembled("w", "float32", (4, 3), pieces).shape == (4, 3)


def test_a_tensor_without_pieces_has_a_reason_that_is_a_clause() -> None:
    info = assembled("w", "float32", (0, 4), [])
    assert misfit(info, SCHEMES["int8"]) == "it is empty"  # "w cannot be quantised: it is empty"


@pytest.mark.parametrize("beside", ["", "common.pt"])
def test_a_folder_without_its_metadata_says_what_is_missing(beside: str) -> None:
    save(STATE)
    os.unlink("d/.metadata")
    if beside:
        torch.save({"iteration": 3}, f"d/{beside}")
    with pytest.raises(FormatError, match=r"d is a checkpoint of .* without its file \.metadata") as caught:
        cs.open_checkpoint("d")
    assert "it has only __0_0.distcp." in caught.value.message


def test_another_checkpoint_beside_pieces_without_metadata_is_read() -> None:
    save(STATE)
    os.unlink("d/.metadata")
    torch.save({"w": torch.ones(2)}, "d/w.pth")
    with cs.open_checkpoint("d") as checkpoint:
        assert list(checkpoint) == ["w"]


@pytest.mark.parametrize("state", [STATE, {"w": torch.ones(2)}])
def test_one_file_of_a_folder_says_to_pass_the_folder(state: dict[str, Any]) -> None:
    save(state)
    with pytest.raises(FormatError, match="it is one of the files of a checkpoint of torch") as caught:
        cs.open_checkpoint("d/__0_0.distcp")
    assert caught.value.hint == "Pass the folder: ckpt inspect d"
