"""Files as people have them: what is written by torch, numpy and us, archives that contradict themselves, folders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save, save_file
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

import ckptsurgeon as cs
from ckptsurgeon.analysis.scan.pickle.known import KNOWN
from ckptsurgeon.formats.pickle.torch import rebuilders

from .hostile import Calls, as_torch_zip, payload

Run = Callable[..., Any]
WEIGHTS = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3), "steps": torch.tensor(3)}


def test_every_name_that_our_reader_understands_is_known() -> None:
    assert set(rebuilders()) <= set(KNOWN)


def test_no_known_name_means_another_under_old_protocols() -> None:
    import _compat_pickle

    for module, name in KNOWN:
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        assert (module, name) in KNOWN


@pytest.mark.parametrize(
    "options",
    [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}, {"pickle_protocol": 5}],
    ids=["zip", "legacy", "protocol 4", "protocol 5"],
)
def test_what_torch_saves_is_tensor_rebuilding(options: dict[str, Any]) -> None:
    network = torch.nn.Linear(4, 4)
    state = {
        "model": {**WEIGHTS, "tied": WEIGHTS["a.weight"], "view": WEIGHTS["a.weight"][1:]},
        "network": network.state_dict(), "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)), "sparse": torch.eye(3).to_sparse(),
        "numpy": np.ones(3), "scalar": np.float32(2), "size": torch.Size([2]), "device": torch.device("cpu"),
    }  # fmt: skip
    if not options:
        state["float8"] = torch.ones(2).to(torch.float8_e4m3fn)
        state["many"] = {f"layers.{i}.weight": torch.zeros(i % 3 + 1, 2) for i in range(300)}
    torch.save(state, "x.pth", **options)
    found = cs.scan("x.pth")
    assert found.ok, [use for one in found.found for use in one.uses if use.verdict is cs.Verdict.CODE]
    assert found.verdict is cs.Verdict.TENSORS
    assert not any(one.notes for one in found.found)


def test_the_steps_over_tensors_find_what_every_instruction_finds() -> None:
    from .test_properties import decoded

    torch.save(
        {
            f"layers.{i}.weight": torch.zeros(i % 3 + 1, 2, dtype=[torch.float32, torch.int64][i % 5 == 0])
            for i in range(600)
        },
        "x.pth",
    )
    with zipfile.ZipFile("x.pth") as archive:
        data = archive.read("x/data.pkl")
    quick, slow = decoded(data), decoded(data, hurried=False)
    assert quick.skipped > 300
    assert {key: name.use() for key, name in quick.names.items()} == {
        key: name.use() for key, name in slow.names.items()
    }
    assert (quick.position, quick.fault, quick.storages) == (slow.position, "", slow.storages)


@pytest.mark.parametrize("output", ["x.safetensors", "x.pth", "shards", "dcp"], ids=lambda name: name)
def test_what_we_write_is_no_more_than_tensor_rebuilding(output: str) -> None:
    save_file(WEIGHTS, "in.safetensors")
    options: dict[str, Any] = {"shards": {"max_shard_size": "40B"}, "dcp": {"to": "dcp"}}.get(output, {})
    cs.apply(cs.convert("in.safetensors"), output, **options)
    found = cs.scan(output)
    assert found.ok, found.beyond
    assert found.verdict <= cs.Verdict.TENSORS


@pytest.mark.filterwarnings("ignore:torch.distributed is ")
def test_what_dcp_saves_is_tensor_rebuilding() -> None:
    dcp.save({"model": WEIGHTS, "step": 3}, checkpoint_id="saved")
    found = cs.scan("saved")
    beyond = [f"{use.module}.{use.name}" for one in found.beyond for use in one.uses if use.verdict == cs.Verdict.CODE]
    # Python 3.11.2, Debian 12's, writes a member of an enumeration as a call of getattr, which is more than tensors need.
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    assert beyond == (["builtins.getattr"] if b"getattr" in pickle.dumps(member) else [])
    assert found.ok == (not beyond)
    assert found.files == 2


@pytest.mark.long
def test_the_real_network_is_plain_data(minilm: Path) -> None:
    shutil.copytree(minilm, "minilm")
    found = cs.scan("minilm")
    assert found.ok, found.beyond
    assert found.verdict is cs.Verdict.PLAIN


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_is_a_program() -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save("x.pt")
    found = cs.scan("x.pt")
    assert found.verdict is cs.Verdict.CODE
    assert found.found[0].format == "torchscript"
    assert "code/" in found.found[0].notes[0]


def test_what_is_beside_a_model_is_named_and_is_no_code() -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text(
        '{"a": [{"\\u0061uto_map": {"AutoModel": "modeling.Net"}}], "trust_remote_code": true}'
    )
    Path("model/hyperparams.yaml").write_text("net: !new:speechbrain.nnet.CNN\nx: !apply:os.system [a]\n")
    Path("model/hydra.yaml").write_text("model:\n  _target_: my.Net\n")
    Path("model/unsafe.yaml").write_text("a: !!python/object/apply:os.system [x]\n")
    Path("model/whole.yaml").write_text("a: !<tag:yaml.org,2002:python/object/apply:os.system> [x]\n")
    Path("model/modeling.py").write_text("import os\n")
    Path("model/vocab.txt").write_text("cat\ndog\nbird\nRob\n.\n")
    Path("model/README.md").write_text("(A model.)\n")
    found = cs.scan("model")
    said = {one.path: " ".join(one.notes) for one in found.found}
    assert found.ok, found.beyond
    assert "auto_map" in said["config.json"]
    assert "speechbrain.nnet.CNN" in said["hyperparams.yaml"]
    assert "os.system" in said["hyperparams.yaml"]
    assert "my.Net" in said["hydra.yaml"]
    assert "os.system" in said["unsafe.yaml"]
    assert "os.system" in said["whole.yaml"]  # the same tag, written in full
    assert "program" in said["modeling.py"]
    assert not said["vocab.txt"] + said["README.md"]


def test_a_configuration_with_unknown_code_keeps_its_other_notes() -> None:
    Path("config.json").write_text('{"class_name": "Lambda", "config": {}, "auto_map": {}}')
    notes = " ".join(cs.scan("config.json").found[0].notes)
    assert "compiled Python of Lambda" in notes
    assert "auto_map" in notes


def test_arguments_that_are_not_shown_are_an_ellipsis() -> None:
    for number in (8, 9):
        arguments = b"".join(b"K" + bytes([i]) for i in range(number))
        Path("x.pkl").write_bytes(b"\x80\x04cevil\nrun\n(" + arguments + b"tR.")
        (use,) = cs.scan("x.pkl").found[0].uses
        shown = ", ".join(map(str, range(8)))
        assert use.calls == (f"evil.run({shown}{', …' if number > 8 else ''})",)


def test_lambda_layers_and_machine_code_are_named() -> None:
    with zipfile.ZipFile("x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"layers": [{"class_name": "Lambda"}]}))
    Path("x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100 + b'{"class_name": "Lambda"}')
    Path("lib.so").write_bytes(b"\x7fELF" + b"\0" * 60)
    for name in ("x.keras", "x.h5", "lib.so"):
        assert cs.scan(name).verdict is cs.Verdict.CODE, name
    Path("plain.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    Path("x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    for name, kind in (("plain.h5", "HDF5"), ("x.gguf", "GGUF")):
        found = cs.scan(name)
        assert found.ok
        assert found.found[0].format == kind


# Archives that two readers would read differently.


def local_name(data: bytearray) -> None:
    at = data.index(b"archive/data.pkl")
    data[at : at + 7] = b"another"


def local_method(data: bytearray) -> None:
    data[8:10] = struct.pack("<H", 8)


def local_sizes(data: bytearray) -> None:
    data[18:22] = struct.pack("<L", 1)


def encrypted(data: bytearray) -> None:
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1


def prefix(data: bytearray) -> None:
    data[:0] = b"before"


def suffix(data: bytearray) -> None:
    data += b"behind"


def two_ends(data: bytearray) -> None:
    data += data[data.index(b"PK\5\6") :]


def cut(data: bytearray) -> None:
    del data[data.index(b"PK\1\2") :]


@pytest.mark.parametrize("trick", [local_name, local_method, local_sizes, encrypted, prefix, suffix, two_ends, cut])
def test_an_archive_that_contradicts_itself_is_not_judged_whole(trick: Callable[[bytearray], None]) -> None:
    for pickled, code in ((pickle.dumps({}), False), (payload(), True)):
        data = bytearray(as_torch_zip(pickled))
        trick(data)
        Path("x.pth").write_bytes(bytes(data))
        found = cs.scan("x.pth")
        assert not found.whole
        assert any(
            one.fault and one.fault.kind == ("unreadable" if trick is encrypted else "corrupt") for one in found.beyond
        )
        if trick not in (encrypted, local_sizes):
            assert (found.verdict is cs.Verdict.CODE) is code


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names",
    [
        ("a/data.pkl", "a/data.pkl"),
        ("a/data.pkl", "A/DATA.PKL"),
        ("a/data.pkl", "../data.pkl"),
        ("a/data.pkl", "/data.pkl"),
    ],
    ids=["twice", "in another case", "outside", "absolute"],
)
def test_records_of_doubtful_names_are_all_looked_at(names: tuple[str, str]) -> None:
    for first, second in ((pickle.dumps({}), payload()), (payload(), pickle.dumps({}))):
        with zipfile.ZipFile("x.pth", "w", compression=zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(names[0], first)
            archive.writestr(names[1], second)
        found = cs.scan("x.pth")
        assert not found.whole
        assert found.verdict is cs.Verdict.CODE


def test_a_deflated_record_with_a_pickle_is_looked_at() -> None:
    with zipfile.ZipFile("x.zip", "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", payload())
    assert cs.scan("x.zip").verdict is cs.Verdict.CODE


def test_a_deflated_record_that_is_damaged_is_unreadable() -> None:
    with zipfile.ZipFile("x.zip", "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(200)))
    data = bytearray(Path("x.zip").read_bytes())
    data[31:40] = b"\xff" * 9
    Path("x.zip").write_bytes(bytes(data))
    assert [one.fault.kind for one in cs.scan("x.zip").beyond if one.fault] == ["unreadable"]


# Folders and the command.


def test_links_are_followed_inside_a_folder_and_to_a_hub_caches_blobs_only() -> None:
    for folder in ("hub/blobs", "hub/snapshots/abc", "elsewhere"):
        os.makedirs(folder)
    Path("hub/blobs/1").write_bytes(payload())
    Path("elsewhere/x.pkl").write_bytes(payload())
    os.symlink("../../blobs/1", "hub/snapshots/abc/model.pth")
    assert cs.scan("hub/snapshots/abc").verdict is cs.Verdict.CODE
    os.remove("hub/snapshots/abc/model.pth")
    os.symlink(os.path.abspath("elsewhere/x.pkl"), "hub/snapshots/abc/model.pth")
    os.symlink(".", "hub/snapshots/abc/round")
    os.mkfifo("hub/snapshots/abc/fifo")
    found = cs.scan("hub/snapshots/abc")
    assert [one.fault.why[:20].partition(os.sep)[0] if one.fault else "" for one in found.found] == [
        "it is not a regular ", "it is a link to ", "it is a link to a fo",
    ]  # fmt: skip
    assert found.verdict is cs.Verdict.PLAIN


def test_files_come_in_natural_order() -> None:
    for i in (10, 2, 1):
        Path(f"x{i}.pkl").write_bytes(pickle.dumps(i))
    assert [one.path for one in cs.scan(".").found] == ["x1.pkl", "x2.pkl", "x10.pkl"]


def test_the_command_says_what_it_found_and_how_it_ends(ckpt: Run) -> None:
    torch.save(WEIGHTS, "fine.pth")
    torch.save({"w": WEIGHTS, "x": Calls(os.system, "touch \x1b[31mred")}, "bad.pth")
    done = ckpt("scan", "fine.pth")
    assert (done.code, done.err) == (0, "")
    assert "ok fine.pth  tensor rebuilding" in done.out
    done = ckpt("scan", ".")
    assert done.code == 1
    assert "posix.system  called once" in done.out
    assert "\x1b" not in done.out
    data = json.loads(ckpt("scan", ".", "--json").out)
    assert (data["kind"], data["version"], data["verdict"], data["whole"]) == ("ckpt.scan", 1, "unknown code", True)
    assert {"path", "within", "format", "verdict", "fault", "names", "pickles", "parts", "notes"} == set(
        data["found"][0]
    )
    assert ckpt("scan", "missing.pth").code == 3
    assert ckpt("scan", "fine.pth", "--what").code == 2
    assert ckpt("scan", ".", "-q").out == ""


@pytest.mark.parametrize(
    "name", ["\x1b[31mred\x1b[0m", "a\u202eb", "[red]x[/red]", "\udcff", "</script>", "x" * 5000, "a\u2028b", "\u200b"]
)
def test_names_are_shown_escaped_and_given_exactly(name: str, ckpt: Run) -> None:
    raw = name.encode("utf-8", "surrogatepass")
    parts = [b"X" + struct.pack("<I", len(part)) + part for part in (b"module", raw)]
    Path("x.pkl").write_bytes(b"\x80\x04" + b"".join(parts) + b"\x93X" + struct.pack("<I", len(raw)) + raw + b"\x85R.")
    done = ckpt("scan", "x.pkl")
    assert done.code == 1
    assert done.out.replace("\n", "").isprintable()
    use = json.loads(ckpt("scan", "x.pkl", "--json").out)["found"][0]["names"][0]
    assert use["name"] == name[:300]


@pytest.mark.long
def test_scanning_loads_neither_torch_nor_numpy() -> None:
    from tests.project.test_public_api import loaded_after

    torch.save(WEIGHTS, "x.pth")
    assert not loaded_after("import ckptsurgeon as cs\nassert cs.scan('x.pth').ok", "torch", "numpy", "huggingface_hub")


@pytest.mark.parametrize("state", ["a newline in a number", "a newline in the memo", "an optimizer", "a module"])
def test_a_zip_from_torch_is_no_pickle_from_its_front(state: str) -> None:
    """Its first bytes spell the id of something persistent, up to a newline that any number ten is."""
    layer = torch.nn.Linear(2, 2)
    made: Any = {
        "a newline in a number": {"epoch": 10, "model": layer.state_dict()},
        "a newline in the memo": {"args": {f"a{i}": i for i in range(11)}, "model": layer.state_dict()},
        "an optimizer": {"optimizer": torch.optim.Adam(layer.parameters()).state_dict(), "model": layer.state_dict()},
        "a module": layer,
    }[state]
    torch.save(made, "x.pth")
    found = cs.scan("x.pth")
    assert all(one.fault is None for one in found.found)
    assert found.verdict is (cs.Verdict.CODE if state == "a module" else cs.Verdict.TENSORS)


@pytest.mark.parametrize(
    ("name", "kind", "target", "ok"),
    [
        ("../../etc/cron.d/x", tarfile.REGTYPE, "", False), ("/etc/cron.d/x", tarfile.REGTYPE, "", False),
        ("a/../../x", tarfile.REGTYPE, "", False), ("l", tarfile.SYMTYPE, "/etc", False), ("a/l", tarfile.SYMTYPE, "../..", False),
        ("l", tarfile.LNKTYPE, "/etc/passwd", False), ("d", tarfile.CHRTYPE, "", False), ("f", tarfile.FIFOTYPE, "", False),
        ("a/l", tarfile.SYMTYPE, "../b", True), ("l", tarfile.LNKTYPE, "b", True), ("a/b", tarfile.REGTYPE, "", True),
    ],
)  # fmt: skip
def test_what_a_tar_makes_outside_of_its_folder_is_a_fault(
    name: str, kind: bytes, target: str, ok: bool, ckpt: Run
) -> None:
    with tarfile.open("x.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    assert (ckpt("scan", "x.tar").code == 0) is ok


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_record_that_is_packed_as_torch_packs_none_is_unreadable(method: int) -> None:
    with zipfile.ZipFile("x.pth", "w", method) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": 1}))
    fault = cs.scan("x.pth").found[0].fault
    assert fault is not None
    assert (fault.kind, "has an unsupported compression method" in fault.why) == ("unreadable", True)


@pytest.mark.parametrize(("name", "size"), [("a.safetensors", 40), ("a.bin", 20), ("a.pth", 0), ("a.safetensors", 0)])
def test_a_file_that_ends_within_its_header_is_corrupt(name: str, size: int) -> None:
    whole = save({"a" * 50: torch.ones(2)})
    Path(name).write_bytes(whole[:size])
    found = cs.scan(name)
    assert (found.ok, [one.fault and one.fault.kind for one in found.found]) == (False, ["corrupt"])
    Path("empty.txt").touch()
    assert cs.scan("empty.txt").ok


def test_what_is_not_opened_is_not_counted_as_plain_data(ckpt: Run) -> None:
    os.mkdir("d")
    os.mkfifo("d/fifo")
    os.symlink("gone", "d/dangling.pth")
    done = ckpt("scan", "d")
    assert (done.code, "2 files, 0 B: 2 unreadable" in done.out, "plain data" in done.out) == (1, True, False)
    data = json.loads(ckpt("scan", "d", "--json").out)
    assert [data["verdict"], *(one["verdict"] for one in data["found"])] == ["unreadable"] * 3
    Path("d/text.txt").write_text("words")
    Path("d/zero.pth").touch()
    torch.save({"x": Calls(os.system, "touch red")}, "d/bad.pth")
    assert "1 plain data, 1 unknown code, 1 corrupt, 2 unreadable" in " ".join(ckpt("scan", "d").out.split())
    assert "NOT OK d  unknown code, not scanned completely" in ckpt("scan", "d").out


def test_a_dict_in_a_call_is_shown_as_a_dict() -> None:
    state = b"}(X\x01\x00\x00\x00xK\x01X\x01\x00\x00\x00yK\x02u"
    Path("x.pkl").write_bytes(b"\x80\x02cevil\nrun\n" + state + b"\x85R.")
    (use,) = cs.scan("x.pkl").found[0].uses
    assert use.calls == ("evil.run({'x': 1, 'y': 2})",)
