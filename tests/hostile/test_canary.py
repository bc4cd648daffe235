"""Nothing in a file is ever run: payloads that would touch a file, through every door a pickle has."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ..promises.clauses import NEVER_RUN, clause

CANARY = "canary"


def touch(path: str) -> None:
    Path(path).touch()


class Calls:
    """Reduces to a call, with whatever else a reduction can carry."""

    def __init__(self, function: Any, *args: Any, more: tuple[Any, ...] = ()) -> None:
        self.reduction = (function, args, *more)

    def __reduce__(self) -> Any:
        return self.reduction


def canary_path() -> str:
    return os.path.abspath(CANARY)


def payloads() -> dict[str, Any]:
    path = canary_path()
    import builtins
    import runpy
    import subprocess

    code = f"open({path!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, f"touch {path}"),
        "eval": Calls(builtins.eval, f"open({path!r}, 'w')"),
        "exec": Calls(builtins.exec, code),
        "subprocess": Calls(subprocess.call, ["touch", path]),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "nested pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {path}"))),
        "nested torch file": Calls(torch.storage._load_from_bytes, b"x"),
        "map": Calls(list, Calls(map, touch, [path])),
        "runpy": Calls(runpy.run_path, path),
        "state": Calls(Calls, 1, more=({"a": Calls(os.system, f"touch {path}")},)),
        "list items": Calls(list, more=(None, iter([Calls(os.system, f"touch {path}")]))),
        "dict items": Calls(dict, more=(None, None, iter([("k", Calls(os.system, f"touch {path}"))]))),
        "module attribute": Calls(torch.hub.load, path, "x"),
        "a test of ours": Calls(touch, path),
    }


def by_hand() -> dict[str, bytes]:
    path = canary_path()
    return {
        "INST": b"(S'touch " + path.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'touch " + path.encode() + b"'\no.",
        "GLOBAL through the memo": b"cos\nsystem\np0\n0g0\n(S'touch " + path.encode() + b"'\ntR.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(path) + 6]) + f"touch {path}".encode() + b"\x85R.",
        "NEWOBJ": b"\x80\x02cos\nsystem\nX" + (len(path) + 6).to_bytes(4, "little") + f"touch {path}".encode() + b"\x85\x81.",
        "BUILD with setstate": b"ccopyreg\n_reconstructor\n(cos\nsystem\ncos\nsystem\nNtR}S'touch " + path.encode() + b"'\nNsb.",
        "before a broken tail": b"cos\nsystem\n(S'touch " + path.encode() + b"'\ntR\xff\xff\xff",
        "a dotted name": b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01/\x85R.",
    }  # fmt: skip


PROTOCOLS = range(6)


def as_zip(pickled: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickled + pickle.dumps([], 2)


def as_legacy_system(pickled: bytes) -> bytes:
    """The payload where the system information should be."""
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001)) + pickled + pickled


def as_legacy_keys(pickled: bytes) -> bytes:
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": 1}))
    return head + pickled


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": as_zip,
    "legacy": as_legacy,
    "legacy system": as_legacy_system,
    "legacy keys": as_legacy_keys,
    "bare": lambda pickled: pickled,
}


def look_at(data: bytes) -> str:
    """Open, inspect, plan, read; anything may be refused, nothing may run."""
    Path("x.pth").write_bytes(data)
    said = ""
    for act in (
        lambda: cs.open_checkpoint("x.pth"),
        lambda: cs.inspect("x.pth").to_json(),
        lambda: cs.inspect("x.pth", root="a"),
        lambda: cs.transplant("x.pth", "x.pth"),
        lambda: cs.init_config("x.pth"),
        lambda: cs.verify("x.pth"),
    ):
        try:
            act()
        except cs.CheckpointError as error:
            said += str(error)
    return said


@clause(NEVER_RUN)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(payloads()))
def test_no_payload_runs(name: str, container: str, protocol: int) -> None:
    """Each payload in each container, at two of four places with one protocol, and at the other two with the next."""
    payload = payloads()[name]
    modules = set(sys.modules)
    places = (payload, {"a": 1, "b": payload}, [payload], {"model": {"w": payload}})
    for value in places[protocol % 2 :: 2]:
        look_at(CONTAINERS[container](pickle.dumps(value, protocol)))
        assert not Path(CANARY).exists()
    assert not {m for m in set(sys.modules) - modules if m.startswith(("runpy", "antigravity"))}


@clause(NEVER_RUN)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(by_hand()))
def test_no_hand_made_stream_runs(name: str, container: str) -> None:
    look_at(CONTAINERS[container](by_hand()[name]))
    assert not Path(CANARY).exists()


def test_the_canary_does_sing_when_a_pickle_is_loaded_for_real() -> None:
    pickle.loads(pickle.dumps(payloads()["a test of ours"]))
    assert Path(CANARY).exists()


@clause(NEVER_RUN)
def test_nothing_a_file_names_is_imported() -> None:
    name = "this_module_does_not_exist_anywhere"
    data = as_zip(b"}(X\x01\x00\x00\x00ac" + name.encode() + b"\nThing\n)Ru.")
    assert "has no state dict" in look_at(data)
    data = as_zip(b"}(X\x01\x00\x00\x00acantigravity\nfly\n)Ru.")
    look_at(data)
    assert "antigravity" not in sys.modules


@clause(NEVER_RUN)
def test_weights_beside_a_payload_are_read_and_the_payload_is_shown() -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": payloads()["os.system"]}, "x.pth")
    found = cs.inspect("x.pth")
    assert list(found.tensors) == ["w"]
    assert [(extra.key, extra.type) for extra in found.extras] == [("args", "posix.system")]
    assert not Path(CANARY).exists()
