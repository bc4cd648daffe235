"""Every kind of thing that a scan is to find, through the command line: exit status, what is said, and JSON."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .hostile import CANARY, as_legacy, as_torch_zip, by_hand, payload

Run = Callable[..., Any]


def extension(code: bytes) -> Callable[[], bytes]:
    return lambda: b"\x80\x02" + code + b")R."


def streams(name: str) -> Callable[[], bytes]:
    return lambda: by_hand()[name]


def script() -> bytes:
    torch.jit.script(torch.nn.Linear(2, 2)).save("made.pt")
    data = Path("made.pt").read_bytes()
    Path("made.pt").unlink()
    return data


def tricked(old: bytes, new: bytes, *, last: bool = False) -> Callable[[], bytes]:
    """torch's archive with one place changed, in a local header or, the last, in the directory."""

    def make() -> bytes:
        data = as_torch_zip(payload())
        at = data.rindex(old) if last else data.index(old)
        return data[:at] + new + data[at + len(old) :]

    return make


def flagged(bit: int) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(as_torch_zip(payload()))
        data[6] |= bit
        data[data.index(b"PK\1\2") + 8] |= bit
        return bytes(data)

    return make


def twice(second: str) -> Callable[[], bytes]:
    def make() -> bytes:
        with zipfile.ZipFile("made", "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({}))
            archive.writestr(second, payload())
        data = Path("made").read_bytes()
        Path("made").unlink()
        return data

    return make


def bad_crc() -> bytes:
    data = as_torch_zip(payload())
    at = data.index(b"PK\1\2") + 16
    return data[:at] + struct.pack("<L", 1) + data[at + 4 :]


FOUND: dict[str, tuple[Callable[[], bytes], str]] = {
    **{f"pickle: {name}": (streams(name), "unknown code") for name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "nested and loaded")},
    "pickle: names through the memo": (streams("STACK_GLOBAL of strings from MEMOIZE"), "unknown code"),
    "pickle: names put over others": (streams("strings put over others"), "unknown code"),
    "pickle: EXT1": (extension(b"\x82\x01"), "unknown code"),
    "pickle: EXT2": (extension(b"\x83\x01\x02"), "unknown code"),
    "pickle: EXT4": (extension(b"\x84\x01\x02\x03\x04"), "unknown code"),
    "pickle: in bytes": (lambda: pickle.dumps({"a": payload()}), "unknown code"),
    "pickle: in a text": (lambda: pickle.dumps({"a": payload(2).decode("latin-1")}), "unknown code"),
    "pickle: before a corrupt tail": (streams("before a broken tail"), "unknown code, not scanned completely"),
    "pickle: before its end": (streams("before a truncated tail"), "unknown code, not scanned completely"),
    "pickle: second of two": (streams("behind another pickle"), "unknown code"),
    "torch: zip": (lambda: as_torch_zip(payload()), "unknown code"),
    "torch: legacy": (lambda: as_legacy(payload()), "unknown code"),
    "torch: TorchScript": (script, "unknown code"),
    "disguised: safetensors in front": (lambda: payload() + as_torch_zip(pickle.dumps({})), "unknown code, not scanned completely"),
    "zip: local name": (tricked(b"archive/data.pkl", b"another/data.pkl"), "unknown code, not scanned completely"),
    "zip: name in the directory": (tricked(b"archive/data.pkl", b"another/data.pkl", last=True), "unknown code, not scanned completely"),
    "zip: encrypted": (flagged(1), "unknown code, not scanned completely"),
    "zip: patched data": (flagged(1 << 5), "unknown code"),
    "zip: false checksum": (bad_crc, "unknown code, not scanned completely"),
    "zip: case-folded": (twice("A/DATA.PKL"), "unknown code, not scanned completely"),
    "zip: outside": (twice("../data.pkl"), "unknown code, not scanned completely"),
    "zip: something in front": (lambda: b"before" + as_torch_zip(payload()), "unknown code, not scanned completely"),
    "zip: something behind": (lambda: as_torch_zip(payload()) + b"behind", "unknown code, not scanned completely"),
    "zip: no directory": (lambda: as_torch_zip(payload()).partition(b"PK\1\2")[0], "unknown code, not scanned completely"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("name", FOUND)
def test_what_is_found_is_said_and_ends_with_one(name: str, ckpt: Run) -> None:
    make, verdict = FOUND[name]
    Path("model.safetensors").write_bytes(make())
    done = ckpt("scan", "model.safetensors")
    assert (done.code, done.err) == (1, "")
    assert verdict in " ".join(done.out.split()), done
    whole = "not scanned" not in verdict
    said = json.loads(ckpt("scan", "model.safetensors", "--json").out)
    assert (said["kind"], said["version"], said["ok"], said["whole"]) == ("ckpt.scan", 1, False, whole)
    assert any(one["verdict"] == "unknown code" for one in said["found"]) is verdict.startswith("unknown code")
    assert any(one["fault"] for one in said["found"]) is not whole
    assert (said["files"], said["nbytes"]) == (1, Path("model.safetensors").stat().st_size)
    quiet = ckpt("scan", "model.safetensors", "-q")
    assert (quiet.code, quiet.out) == (1, "")
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_is_fine_ends_with_zero(legacy: bool, ckpt: Run) -> None:
    torch.save({"a": torch.ones(2), "n": 3}, "x.pth", _use_new_zipfile_serialization=not legacy)
    said = json.loads(ckpt("scan", "x.pth", "--json").out)
    assert (said["ok"], said["whole"], said["verdict"]) == (True, True, "tensor rebuilding")
    assert ckpt("scan", "x.pth").code == 0
