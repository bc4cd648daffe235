"""ONNX models: their initialisers, as onnx and torch wrote them (`make oracle-onnx`), and files that break rules."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.base.protobuf import field, varint_bytes

from ...helpers.onnx_files import attribute, external, graph, model, node, packed, tensor

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "onnx"
ONES = np.ones(6, "<f4").tobytes()
W = tensor("w", (2, 3), values=ONES)


def opened(data: bytes) -> cs.Checkpoint:
    Path("x.onnx").write_bytes(data)
    return cs.open_checkpoint("x.onnx")


def test_every_type_has_the_values_that_onnx_reads() -> None:
    """In raw bytes, in the typed fields, and in a file beside the model."""
    wanted = json.loads((GOLDEN / "types.json").read_text())
    with cs.open_checkpoint(str(GOLDEN / "types.onnx")) as found, np.load(GOLDEN / "types.npz") as values:
        assert set(wanted["tensors"]) == set(found)
        for key, (dtype, shape) in wanted["tensors"].items():
            info = found[key]
            if dtype in wanted["unread"]:
                assert info.opaque == f"its type {dtype} is not read from ONNX"
                continue
            assert (info.dtype, list(info.shape), info.opaque) == (dtype, shape, "")
            if not hasattr(torch, dtype):  # torch 2.6 has no float8_e8m0fnu
                continue
            assert found.tensor(key).contiguous().view(torch.uint8).numpy().tobytes() == values[key].tobytes(), key
        assert found.metadata == wanted["metadata"]


@pytest.mark.parametrize("name", ["script", "program", "external"])
def test_weights_that_torch_exported(name: str) -> None:
    state = torch.load(GOLDEN / "state.pth", weights_only=True)
    with cs.open_checkpoint(str(GOLDEN / f"{name}.onnx")) as found:
        kept = {key for key in state if key in found}
        assert {"embedding.weight", "convolution.weight", "convolution.bias", "linear.bias"} <= kept
        for key in kept:
            assert torch.equal(found.tensor(key), state[key])
        made = next(key for key, info in found.items() if info.shape == state["linear.weight"].T.shape)
        assert torch.equal(found.tensor(made), state["linear.weight"].T)
        gates = next(key for key, info in found.items() if info.shape == (1, 15, 4))
        r, z, n = state["recurrent.weight_ih_l0"].chunk(3)
        assert torch.equal(found.tensor(gates)[0], torch.cat([z, r, n]))  # another order than torch's
        noted = " ".join(found.notes)
    assert "read the weights of an ONNX model (its initialisers), not its operators" in noted
    assert f"names that the exporter made, such as {made}" in noted


def test_weights_are_written_in_other_formats(ckpt: Any) -> None:
    done = ckpt("convert", str(GOLDEN / "external.onnx"), "-o", "out.safetensors")
    assert done.code == 0, done.err
    assert "not its operators" in done.err
    assert cs.verify("out.safetensors").ok
    assert not list(cs.diff("out.safetensors", str(GOLDEN / "external.onnx"), values=True).changed)
    state = torch.load(GOLDEN / "state.pth", weights_only=True)
    assert torch.equal(load_file("out.safetensors")["embedding.weight"], state["embedding.weight"])


def test_numbers_of_variable_length_are_values_too() -> None:
    data = model(
        graph(
            [
                tensor("shape", (3,), 7, packed([1, -1, 1 << 40]), 7),
                tensor("half", (2,), 10, packed([0x3C00, 0xC000]), 5),
                tensor("small", (2,), 3, packed([-3, 7]), 5),
                tensor("w", (2, 3), 1, ONES, 4),
                tensor("empty", (0, 4), values=None),
                tensor("one", (), 1, struct.pack("<f", 2.5)),
                field(1, b"") + tensor("scalar", (), 7, packed([5]), 7),
                tensor("none", (0,), 7, b"", 7),
            ]
        )
    )
    with opened(data) as found:
        assert found.tensor("shape").tolist() == [1, -1, 1 << 40]
        assert found.tensor("half").tolist() == [1.0, -2.0]
        assert found.tensor("half").dtype == torch.float16
        assert found.tensor("small").tolist() == [-3, 7]
        assert found.tensor("w").tolist() == [[1] * 3] * 2
        assert (found.tensor("scalar").item(), found["none"].shape) == (5, (0,))
        assert (found["empty"].shape, found.tensor("one").item()) == ((0, 4), 2.5)
    cs.apply(cs.convert("x.onnx"), "out.safetensors")
    verified = cs.verify("out.safetensors")
    assert verified.ok
    assert not verified.not_compared  # the numbers in memory are those of a file
    assert load_file("out.safetensors")["shape"].tolist() == [1, -1, 1 << 40]


def test_what_is_not_read_is_noted() -> None:
    large = tensor("value", (300,), values=bytes(1200))
    small = tensor("value", (3,), values=bytes(12))
    inner = graph([large], [node("Constant", attribute("value", 5, large))])
    nodes = [
        node("Constant", attribute("value", 5, large)),
        node("Constant", attribute("value", 5, small)),
        node("If", attribute("then_branch", 6, inner)),
    ]
    function = field(25, field(1, b"layer") + field(7, nodes[0]) + field(7, nodes[1]))
    data = model(graph([W], nodes, field(15, b"")), field(20, field(1, b"")) + function)
    with opened(data) as found:
        notes = " ".join(found.notes)
    assert "4 tensors of 1 kB or more are constants of nodes, or are in subgraphs or functions: they" in notes
    assert "not read: 1 sparse tensor" in notes
    assert "the graphs for training in this ONNX model were not read" in notes
    commented = graph([W], more=field(10, b"doc" * 1000))
    with opened(model(graph([W], [node("If", attribute("then_branch", 6, commented))]))) as found:
        assert len(found.notes) == 1
    with opened(model(graph([W]), field(6, b"d" * (limits.ONNX_TEXT + 1)))) as found:
        assert "left out: 1 entry of metadata longer than 1 MB" in found.notes
        assert "doc_string" not in found.metadata
    with opened(model(graph([W]))) as found:
        assert found.notes == ("read the weights of an ONNX model (its initialisers), not its operators",)


def test_quantised_weights_are_codes(ckpt: Any) -> None:
    """As onnxruntime names them: int8 codes, a scale and a zero point."""
    tensors = [
        tensor("fc.weight_quantized", (4, 8), 3, bytes(range(32))),
        tensor("fc.weight_scale", (), 1, struct.pack("<f", 0.01)),
        tensor("fc.weight_zero_point", (), 3, b"\0"),
    ]
    opened(model(graph(tensors))).close()
    done = ckpt("convert", "x.onnx", "--dtype", "bf16", "-o", "out.safetensors")
    assert done.code == 4, done.err
    assert "the tensor fc.weight of x.onnx is quantised (an unknown encoding)" in " ".join(done.err.split())
    assert ckpt("convert", "x.onnx", "-o", "copy.safetensors").code == 0


def test_a_file_beside_the_model_is_found_from_any_folder(ckpt: Any, tmp_path: Path) -> None:
    Path("net/deep").mkdir(parents=True)
    Path("net/deep/w.bin").write_bytes(b"1234" + ONES)
    body = model(graph([tensor("w", (2, 3), values=None, more=external(location="./deep/w.bin", offset=4, length=24))]))
    Path("net/x.onnx").write_bytes(body)
    with cs.open_checkpoint("net/x.onnx") as found:
        assert found.tensor("w").tolist() == [[1] * 3] * 2
        assert {one.name for one in found.header.files} == {"x.onnx", "deep/w.bin"}
    Path("net/deep/w.bin").unlink()
    done = ckpt("inspect", "net/x.onnx")
    assert done.code == 3
    assert "the tensor w is in deep/w.bin, which cannot be read" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("link", "target", "location"),
    [
        ("net/w.bin", "../w.bin", "w.bin"),
        ("net/deep", "../elsewhere", "deep/w.bin"),
        ("net/inner/w.bin", "../../w.bin", "inner/w.bin"),
        ("net/inner/w.bin", "../../net2/w.bin", "inner/w.bin"),  # its name begins with that of the folder
    ],
)
def test_a_link_that_leads_out_of_the_folder_is_refused(link: str, target: str, location: str, ckpt: Any) -> None:
    """The values may be any bytes, so that a copy of the model would contain a file of the reader's machine."""
    for folder in ("net/inner", "elsewhere", "net2", "."):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "w.bin").write_bytes(ONES)
    Path(link).unlink(missing_ok=True)
    Path(link).symlink_to(target)
    Path("net/x.onnx").write_bytes(model(graph([tensor("w", (2, 3), values=None, more=external(location=location))])))
    done = ckpt("inspect", "net/x.onnx")
    assert done.code == 3
    assert f"the tensor w is in {location}, a link to a file outside the folder" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("link", "target", "location"),
    [
        ("net/w.bin", "real.bin", "w.bin"),
        ("net/deep/w.bin", "../real.bin", "deep/w.bin"),
        ("net/deep/w.bin", "../deep/../../net/real.bin", "deep/w.bin"),
        ("net/also", "deep", "also/real.bin"),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_link_within_the_folder_is_followed(
    link: str, target: str, location: str, scheme: str, tmp_path: Path
) -> None:
    Path("net/deep").mkdir(parents=True)
    for file in ("net/real.bin", "net/deep/real.bin"):
        Path(file).write_bytes(ONES)
    Path(link).symlink_to(target)
    Path("net/x.onnx").write_bytes(model(graph([tensor("w", (2, 3), values=None, more=external(location=location))])))
    with cs.open_checkpoint(f"{scheme}{Path('net/x.onnx').resolve()}" if scheme else "net/x.onnx") as found:
        assert found.tensor("w").tolist() == [[1] * 3] * 2


def test_a_folder_or_an_archive_with_one_model_is_opened() -> None:
    Path("net").mkdir()
    Path("net/model.onnx").write_bytes(of(W))
    with zipfile.ZipFile("net.zip", "w") as archive:
        archive.write("net/model.onnx")
    for path in ("net", "net.zip"):
        with cs.open_checkpoint(path) as found:
            assert found.tensor("w").tolist() == [[1] * 3] * 2
    save_file({"other": torch.ones(2)}, "net/model.safetensors")
    with cs.open_checkpoint("net") as found:  # an export beside the weights
        assert list(found) == ["other"]


def of(*tensors: bytes, more: bytes = b"") -> bytes:
    return model(graph(tensors, more=more))


BESIDE = "w.bin"
HOSTILE: dict[str, bytes] = {
    "magic alone": b"\x08\x08\x12\x07pytorch",
    "no graph": model(None),
    "cut in a tensor": of(W)[:60],
    "cut behind the graph's length": of(W)[:24],
    "a length of 2^63": model(None) + b"\x3a" + varint_bytes(1 << 63) + b"x",
    "a number of eleven bytes": model(None) + b"\x3a\x0b" + b"\xff" * 11,
    "a field of type 3": model(None) + b"\x3b" + bytes(8),
    "field 0": model(None) + b"\x02\0",
    "no name": of(tensor(b"", (2, 3), values=ONES)),
    "a name that is not text": of(tensor(b"\xff\xfe", (2, 3), values=ONES)),
    "a name of 100,000 bytes": of(tensor("n" * 100_000, (2, 3), values=ONES)),
    "a tensor twice": of(W, W),
    "an unknown type": of(tensor("w", (2, 3), 99, ONES)),
    "type 0": of(tensor("w", (2, 3), 0, ONES)),
    "a negative size": of(tensor("w", (-1, 3), values=ONES)),
    "2^60 elements": of(tensor("w", (1 << 60,), values=ONES)),
    "sizes whose product overflows": of(tensor("w", (1 << 40, 1 << 40), values=ONES)),
    "100 dimensions": of(tensor("w", [1] * 100, values=ONES[:4])),
    "too few bytes": of(tensor("w", (2, 3), values=ONES[:-1])),
    "too many bytes": of(tensor("w", (2, 3), values=ONES + b"\0")),
    "no bytes": of(tensor("w", (2, 3), values=None)),
    "bytes in two pieces": of(tensor("w", (2, 3), values=ONES[:8], more=field(9, ONES[8:]))),
    "values in two fields": of(tensor("w", (2, 3), values=ONES, more=field(4, ONES))),
    "floats for int64": of(tensor("w", (3,), 7, ONES, 4)),
    "int64 for floats": of(tensor("w", (3,), 1, packed([1, 2, 3]), 7)),
    "too few numbers": of(tensor("w", (3,), 7, packed([1, 2]), 7)),
    "numbers that are cut": of(tensor("w", (3,), 7, b"\1\2\x80", 7)),
    "a file outside": of(tensor("w", (2, 3), values=None, more=external(location="../w.bin"))),
    "a file with an absolute path": of(tensor("w", (2, 3), values=None, more=external(location="/etc/passwd"))),
    "a file with a backslash": of(tensor("w", (2, 3), values=None, more=external(location="..\\w.bin"))),
    "the model itself": of(tensor("w", (2, 3), values=None, more=external(location="x.onnx"))),
    "a file that is missing": of(tensor("w", (2, 3), values=None, more=external(location="none.bin"))),
    "a file without a name": of(tensor("w", (2, 3), values=None, more=external(offset=0))),
    "an offset beyond a file": of(tensor("w", (2, 3), values=None, more=external(location=BESIDE, offset=1 << 62))),
    "an offset that is no number": of(tensor("w", (2, 3), values=None, more=external(location=BESIDE, offset="-1"))),
    "another length": of(tensor("w", (2, 3), values=None, more=external(location=BESIDE, length=20))),
    "values here and there": of(tensor("w", (2, 3), values=ONES, more=external(location=BESIDE))),
}  # fmt: skip
"""Read with a file ``w.bin`` of 24 bytes beside them."""


@pytest.mark.parametrize("name", HOSTILE)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    Path(BESIDE).write_bytes(ONES)
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.onnx"):
        opened(HOSTILE[name]).close()


def test_many_fields_are_refused_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_FIELDS", 100)
    with opened(of(*(tensor(f"w{n}", (1,), values=ONES[:4]) for n in range(15)))) as found:
        assert len(found) == 15
    monkeypatch.setattr(limits, "MESSAGE_NUMBERS", 50)
    numbers = [tensor(f"n{n}", (10,), 7, packed(range(10)), 7) for n in range(6)]
    with opened(of(*numbers[:5])) as found:
        assert found.tensor("n4").tolist() == [*range(10)]
    with pytest.raises(cs.UnsafeError, match="more values as varints than the limit of 50"):
        opened(of(*numbers))
    with pytest.raises(cs.FormatError, match="the ONNX model has a list of more than 50 numbers"):
        opened(of(tensor("n", (60,), 7, packed(range(60)), 7)))
    with pytest.raises(cs.UnsafeError, match="more than 100 protobuf fields"):
        opened(of(*(tensor(f"w{n}", (1,), values=ONES[:4]) for n in range(30))))
