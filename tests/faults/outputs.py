"""What is written: every fault is tried on each of these. One more is one more line in ``OUTPUTS``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import torch
from cryptography.hazmat.primitives import serialization as keys
from cryptography.hazmat.primitives.asymmetric import ed25519

import ckptsurgeon as cs
from ckptsurgeon.cli import main
from ckptsurgeon.storage.signing import load_verifier, read_signature
from ckptsurgeon.trainer.folder.run_folder import RunFolder

from ..helpers.declare import declare
from ..helpers.forked import Forked, as_ckpt
from ..helpers.hub.server import Hub
from ..trainer import toy

__all__ = ["CALLS", "CHECKPOINTS", "FILES", "OUTPUTS", "SIGNED", "Output", "World", "each"]

CKPT = (sys.executable, "-m", "ckptsurgeon")
TURNS = {"old": 0.0, "new": 1.0}
"""What is written before a fault and while it lasts: the first value of the tensor ``a``."""

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class World:
    """Where an output is written, and where files are fetched from."""

    place: Path
    hub: Hub

    def at(self, place: Path) -> World:
        """The same, with another place."""
        return World(place, self.hub)

    def run(self, output: Output, turn: str, *wrapped: str, timeout: float = 120) -> Done:
        """Write an output, by a command that is wrapped in another."""
        command = [*wrapped, *output.command(turn, self)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=self.environment())

    def started(self, output: Output, turn: str, *, largest: int | None = None) -> Forked:
        """Begin to write an output, in a process that has imported what this one has and whose files may be so large."""
        import torch._dynamo  # noqa: F401  # as torch does for the first optimizer, which takes a second
        from huggingface_hub import constants

        def work() -> int:
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            _train_alone()
            constants.HF_HOME, constants.HF_HUB_CACHE = (os.environ[name] for name in ("HF_HOME", "HF_HUB_CACHE"))
            return as_ckpt(*output.command(turn, self)[len(CKPT) :])

        return Forked(work, environment=self.environment())

    def environment(self) -> dict[str, str]:
        """That of a run: the hub's cache is in the place too."""
        return {**os.environ, "HF_HOME": str(self.place / "hf"), "HF_HUB_CACHE": str(self.place / "hf/hub")}

    def written(self, output: Output, turn: str) -> None:
        """Write an output without a fault, and see that it is there; checkpoints in this process, which need no other."""
        if isinstance(output, Written):
            restart = ["--restart"] if turn == "old" else []  # a run that was killed may have left parts of what is new
            assert main([*output.command(turn, self)[len(CKPT) :], *restart]) == 0
        else:
            done = self.started(output, turn)
            assert done.ended() == 0, done.err
        assert output.state(self) == turn

    def temps(self) -> list[str]:
        """What runs that are over have left."""
        return sorted(str(path) for path in self.place.rglob("*.ckpt-tmp*"))

    def hold(
        self, output: Output, done: Done, codes: Sequence[int], states: Sequence[str], *, mute: bool = False
    ) -> None:
        """Hold a run that met a fault to what must be: its code, no traceback, old or new whole, and no temp.

        A ``mute`` one cannot say anything. The last of ``states`` is that of a run that ended well.
        """
        assert done.returncode in codes, (done.returncode, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        assert mute or (done.returncode != 0) == said(done.stderr), done.stderr
        assert output.state(self) in (states[-1:] if done.returncode == 0 else states)
        kept = bool(
            re.search(r"The finished parts are kept \([12] of 2 parts\): run the same command again", done.stderr)
        )
        assert len(self.temps()) == (kept or (mute and len(self.temps()) == 1 and output.name in SHARDED))

    def settle(self, output: Output) -> None:
        """Hold the next run, without a fault, to leave what is new and nothing else."""
        self.written(output, "new")
        assert self.temps() == []
        assert not list(self.place.rglob("*.ckpt-lock"))


class Output(Protocol):
    """One kind of output."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def before(self) -> str:
        """What is there before the fault: "old", or "" where nothing can be."""

    @property
    def torn(self) -> tuple[str, ...]:
        """What a kill, or a call that fails at the very end, may leave beside the old and the new."""

    def command(self, turn: str, world: World) -> list[str]:
        """What writes it."""

    def state(self, world: World) -> str:
        """Return which is there, "old" or "new", or "" where nothing is; fails for what is not whole."""


@dataclass(frozen=True)
class Written:
    """A checkpoint that is written from another."""

    name: str
    path: str
    verb: tuple[str, ...] = ("transplant", "{turn}.pth", "dst.yaml")
    options: tuple[str, ...] = ()
    before: str = "old"
    torn: tuple[str, ...] = ()

    def command(self, turn: str, world: World) -> list[str]:
        verb, path = [word.format(turn=turn) for word in self.verb], world.place / self.path
        return [*CKPT, *verb, "-o", str(path), *self.options, *(["--force"] if path.exists() else [])]

    def state(self, world: World) -> str:
        path = world.place / self.path
        if not path.exists():
            return ""
        cs.verify(path).raise_if_failed()
        first = cs.open_checkpoint(path).tensor("a")[0].item()
        return next(turn for turn, value in TURNS.items() if value == first)


@dataclass(frozen=True)
class Signed(Written):
    """One that is signed. A file and its signature take their places one after the other, a folder with its own."""

    options: tuple[str, ...] = ("--key", "key.pem")

    def signature(self, world: World) -> Path:
        """Where its signature is."""
        path = world.place / self.path
        return path / "model.sig" if path.is_dir() else path.with_name(f"{path.name}.sig")

    def state(self, world: World) -> str:
        turn = super().state(world)
        if turn and cs.verify(world.place / self.path, key="key.pem").failed:
            place = self.signature(world)
            assert not place.exists() or read_signature(place.read_bytes(), load_verifier("key.pem")), "it is cut short"
            return f"{turn}, not signed"
        return turn


@dataclass(frozen=True)
class Fetched:
    """A file that is fetched into a folder."""

    name: str = "fetched file"
    before: str = "old"
    torn: tuple[str, ...] = ()

    def command(self, turn: str, world: World) -> list[str]:
        return [*CKPT, "fetch", f"{world.hub.url}/files/{turn}/net.pth", "--dir", str(world.place / "got"), "--force"]

    def state(self, world: World) -> str:
        return _turn_of(world.place / "got/net.pth")


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, in its cache."""

    name: str = "cache of the hub"
    before: str = ""
    torn: tuple[str, ...] = ()

    def command(self, turn: str, world: World) -> list[str]:
        return [*CKPT, "fetch", "hf://org/net"]

    def state(self, world: World) -> str:
        kept = list((world.place / "hf/hub").glob("models--org--net/snapshots/*/net.pth"))
        return _turn_of(kept[0]) if kept else ""


@dataclass(frozen=True)
class Trained:
    """The folder of a run of the trainer: what is old is a checkpoint to go on from."""

    name: str = "training"
    before: str = ""
    torn: tuple[str, ...] = ()

    def command(self, turn: str, world: World) -> list[str]:
        run = world.place / "run"
        resume = ["--resume"] if RunFolder(str(run)).saved_steps else []
        return [*CKPT, "train", "toy.yaml", "--run", str(run), "--device", "cpu", "-q", *resume]

    def state(self, world: World) -> str:
        folder = RunFolder(str(world.place / "run"))
        if not folder.saved_steps:
            return ""
        folder.load()
        return "new" if folder.last_step() == toy.DEFAULT["steps"] else "old"


SHARDS = ("--max-shard-size", "500kB")
SHARDED = ("shards", "signed shards")
"""The outputs of several parts: a run that fails keeps those that are finished."""
OUTPUTS: tuple[Output, ...] = (
    Written("safetensors", "out.safetensors"),
    Written("pth", "out.pth"),
    Written("shards", "shards", options=SHARDS),
    Written("DCP", "dcp", ("convert", "{turn}.pth", "--to", "dcp")),
    Signed("signed file", "signed.safetensors", torn=("new, not signed",)),
    Signed("signed shards", "signed", options=("--key", "key.pem", *SHARDS)),
    Fetched(),
    Repository(),
    Trained(),
)
_ALL = {"fallocate", "flock", "fsync", "pwrite64", "unlinkat"}
_FILE = _ALL | {"copy_file_range", "sync_file_range"}
_FOLDER = _ALL | {"copy_file_range", "sync_file_range", "mkdir", "rename"}
_SHARDS = _FOLDER | {"unlink", "write"}
_RUN = _ALL | {"mkdir", "rename", "unlink", "write"}
CALLS: dict[str, tuple[set[str], set[str]]] = {
    "safetensors": (_FILE | {"link", "unlink"}, _FILE | {"rename"}),
    "pth": (_FILE | {"link", "unlink"}, _FILE | {"rename"}),
    "shards": (_SHARDS, _SHARDS | {"renameat2"}),
    "DCP": (_FOLDER, _FOLDER | {"renameat2"}),
    "signed file": (_FILE | {"link", "unlink"}, _FILE | {"rename"}),
    "signed shards": (_SHARDS, _SHARDS | {"renameat2"}),
    "fetched file": (_ALL | {"mkdir", "rename"}, _ALL | {"mkdir", "rename", "unlink"}),
    "cache of the hub": ({"flock", "mkdir", "rename", "unlink", "unlinkat", "write"}, {"mkdir"}),
    "training": (_RUN, _RUN),
}
"""The calls to the kernel by which an output is written where nothing was, and over another: only these can fail."""
CHECKPOINTS = tuple(one for one in OUTPUTS if type(one) is Written)
SIGNED = tuple(one for one in OUTPUTS if isinstance(one, Signed))
FILES = CHECKPOINTS[:2]


def each(outputs: Sequence[Output]) -> pytest.MarkDecorator:
    """Try a test on each of some outputs; training takes seconds each time, and tests/trainer tries it too."""
    cases = [pytest.param(one, marks=pytest.mark.long if isinstance(one, Trained) else ()) for one in outputs]
    return pytest.mark.parametrize("output", cases, ids=lambda one: one.name)


def write_inputs(hub: Hub) -> None:
    """Write what the outputs are made of to the working directory, and put what is fetched on the hub."""
    for turn, value in TURNS.items():
        torch.manual_seed(int(value))
        a, b = torch.randn(100_000), torch.randn(100_000)
        a[0] = value
        torch.save({"a": a, "b": b, "h": torch.randn(1000)}, f"{turn}.pth")
        hub.file(f"{turn}/net.pth", Path(f"{turn}.pth").read_bytes())
    declare("dst.yaml", {"a": (100_000,), "b": (100_000,), "h": ("float16", (1000,))})
    hub.repository("org/net", {"net.pth": Path("new.pth").read_bytes()})
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, keys.NoEncryption())
    Path("key.pem").write_bytes(pem)
    toy.write(model={"hidden": 128}, evaluate_every=100, keep=1)


def _train_alone() -> None:
    """Leave out what takes longer than training and writing: checks after the run, which start a process, and pictures."""
    from ckptsurgeon.trainer.checks.check import Check
    from ckptsurgeon.trainer.loggers.tensorboard import TensorBoard
    from ckptsurgeon.trainer.run import records, run_job

    TensorBoard.is_automatic = False
    records.curves_png = lambda *args, **options: None  # type: ignore[assignment]
    run_job.checks_after = lambda *args, **options: [Check("left out", "NOT RUN", "a test")]  # type: ignore[assignment]


def said(stderr: str) -> bool:
    """Tell whether an error of ours was said."""
    return any(line.startswith("error:") for line in stderr.splitlines())


def _turn_of(path: Path) -> str:
    if not path.exists():
        return ""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return next(turn for turn in TURNS if hashlib.sha256(Path(f"{turn}.pth").read_bytes()).digest() == digest)


def listing(place: Path) -> str:
    """Every file below a place with its digest, to compare."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return json.dumps([[str(p.relative_to(place)), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files])
