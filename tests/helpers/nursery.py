"""Processes that are forked from one that has imported what takes long, and nothing of the process that tests.

A new process takes a third of a second until ``ckpt`` has read its words, and seconds until it has imported torch. One
that is forked from here has its own folder, environment, arguments and streams, and what the modules do at import is done.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["BROKEN", "CLOSED", "COMMAND", "ROOT", "Nursery", "run_apart", "with_torch"]

ROOT = str(Path(__file__).parents[2])
CLOSED, BROKEN = "closed", "broken"
"""What a stream may be in place of the path of a file: closed, or a pipe that nobody reads."""

COMMAND = "import sys\nfrom ckptsurgeon.__main__ import main\nsys.exit(main())"
"""The program that ``ckpt`` is."""

NURSERY = """
import contextlib, faulthandler, functools, gc, io, json, os, select, signal, socket, sys, time, traceback, types
import typer
import ckptsurgeon.__main__
import ckptsurgeon.cli.application as parser
import ckptsurgeon.cli.failing

parser.application = functools.cache(parser.application)
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(parser.application(as_json=False))
IMPORTS
gc.collect()
gc.freeze()  # each process that ends looks for garbage of its own alone

def connect(number, to):
    if to == "closed":
        os.close(number)
    elif to == "broken":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
        os.close(writing)
    else:
        file = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)

def opened(number, name):
    '''Open a stream as Python does when it starts.'''
    try:
        os.fstat(number)
    except OSError:
        return None
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED")) and number > 0
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    raw = open(number, "wb" if number else "rb", 0 if unbuffered else -1, closefd=False)
    stream = io.TextIOWrapper(
        raw, encoding or "utf-8", "backslashreplace" if number == 2 else errors or "strict", "\\n",
        line_buffering=not unbuffered and (number == 2 or raw.isatty()), write_through=unbuffered,
    )
    stream.mode = "w" if number else "r"
    return stream

def born(order):
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        connect(number, order[name])
    if order["streams"]:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            setattr(sys, name, opened(number, name))
            setattr(sys, f"__{name}__", getattr(sys, name))
    else:
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    sys.argv = order["arguments"]
    sys.path.insert(0, "")
    program = types.ModuleType("__main__")
    if order["streams"]:
        sys.modules["__main__"] = program  # what it leaves open is there until Python ends
    try:
        exec(order["program"], program.__dict__)
    except SystemExit as error:
        if order["streams"] or error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)  # as Python does
        return 1
    except BaseException:
        traceback.print_exc()
        return 99
    return 0

def ended(pid, until):
    handle = os.pidfd_open(pid)
    if not select.select([handle], [], [], max(until - time.monotonic(), 0))[0]:
        os.kill(pid, signal.SIGUSR1)  # it says where it hangs
        select.select([handle], [], [], 1)
        os.kill(pid, 9)
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def connected():
    '''Return in a process for each connection; this one ends when who started it has ended, and so have the others.'''
    server = socket.socket(fileno=int(sys.argv[1]))
    while sys.stdin not in select.select([sys.stdin, server], [], [])[0]:
        connection, _ = server.accept()
        if not os.fork():
            server.close()
            for number in (0, 1):
                os.dup2(connection.fileno(), number)
            connection.close()
            return
        connection.close()
    server.close()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    sys.exit()

connected()
for line in sys.stdin:
    asked = json.loads(line)
    pids, until = [], time.monotonic() + asked["seconds"]
    for order in asked["orders"]:
        pid = os.fork()
        if not pid:
            code = born(order)
            if order["streams"]:
                sys.exit(code)  # as Python ends, which flushes what is buffered
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    print(json.dumps([ended(pid, until) for pid in pids]), flush=True)
"""

SMALL = """
import contextlib, ctypes, tempfile
import numpy, safetensors.numpy, rich.progress, rich.text
import ckptsurgeon

def look():
    '''Let commands look at small files: what they import is there when they are forked.'''
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        os.chdir(folder)
        sys.stderr = said
        for name in "ab":
            safetensors.numpy.save_file({"w": numpy.ones((2, 2), "f4")}, name)
        for words in (
            "inspect a", "-h", "convert a -o o", "transplant a b -o t", "merge a b -m linear --weights 1,1 -o m", "match a b",
            "fits a b", "verify m", "init a",
        ):
            assert not ckptsurgeon.cli.main(words.split()), (words, said.getvalue())
        sys.stderr = sys.__stderr__
        os.chdir(before)

look()
assert "torch" not in sys.modules
ctypes.CDLL(None).malloc_trim(0)
"""

WITH_TORCH = """
import importlib, pkgutil
import fsspec, numpy.fft, numpy.random, pydoc, rich.console, rich.progress, safetensors.torch, yaml
import torch, torch._dynamo, torch._functorch.aot_autograd, torch.distributed.checkpoint, torch.distributed.fsdp
import torch.distributed.tensor, torch.nn.parallel, torch.profiler
import ckptsurgeon.destinations, ckptsurgeon.render.train, ckptsurgeon.trainer

for package in (ckptsurgeon.destinations, ckptsurgeon.trainer):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
"""


_ENDS = list[Callable[[], object]]()
_STARTED = list[subprocess.Popen[bytes]]()


@atexit.register
def _end() -> None:
    """End all connections of this process, and then wait for those that it has started: they wait for the others."""
    for end in _ENDS:
        with suppress(OSError):
            end()
    for process in _STARTED:
        process.communicate()


class Nursery:
    """A process that has run ``imports``, and forks those that are asked for.

    Processes that test together start one: for each of them it forks another, which forks what this one asks for.
    """

    def __init__(self, imports: str) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
        self._address = f"\0{run} {hashlib.sha256(imports.encode()).hexdigest()}"  # of no file
        self._connection = socket.socket(socket.AF_UNIX)
        self._connect(imports)
        self._file = self._connection.makefile("rw")
        _ENDS.append(self._file.close)
        _ENDS.append(self._connection.close)

    def _connect(self, imports: str) -> None:
        """Connect to the process; start it if no process that tests has, or the one that had has ended."""
        while True:
            with socket.socket(socket.AF_UNIX) as server:
                if self._binds(server):
                    self._start(imports, server)
            with suppress(ConnectionRefusedError):
                return self._connection.connect(self._address)

    def _binds(self, server: socket.socket) -> bool:
        """Return whether this process gets the address, which one process alone does."""
        try:
            server.bind(self._address)
        except OSError:
            return False
        server.listen()
        return True

    def _start(self, imports: str, server: socket.socket) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", NURSERY.replace("IMPORTS", imports), str(server.fileno())], stdin=subprocess.PIPE,
            pass_fds=[server.fileno()], cwd=ROOT, env={**os.environ, **threads, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # as ckpt train sets it
        )  # fmt: skip
        _STARTED.append(process)

    def carry_out(self, orders: Sequence[Mapping[str, Any]], seconds: int = 200) -> list[int]:
        """Run what is ordered, all of it at once, and no longer than so many seconds; returns the exit codes.

        An order has a ``program``, ``arguments``, a ``folder``, an ``environment``, and the files ``out`` and ``err``.
        With ``streams`` its streams are opened as Python opens them when it starts, and closed as when it ends.
        """
        asked = [{"streams": False, **order} for order in orders]
        line = ""
        with suppress(ConnectionError):
            self._file.write(json.dumps({"orders": asked, "seconds": seconds}) + "\n")
            self._file.flush()
            line = self._file.readline()
        if not line:
            self._fail()
        return list(json.loads(line))

    def _fail(self) -> NoReturn:
        """Say that this process has ended; the next test gets another one."""
        for kept in (with_torch, _small):
            if kept.cache_info().currsize and kept() is self:
                kept.cache_clear()
        raise AssertionError("the process that forks those of tests has ended")


@functools.cache
def with_torch() -> Nursery:
    """The nursery whose processes have imported torch, and what trains."""
    return Nursery(WITH_TORCH)


@functools.cache
def _small() -> Nursery:
    return Nursery(SMALL)


def run_apart(
    program: str,
    *arguments: object,
    out: str = "",
    err: str = "",
    folder: str = ".",
    streams: bool = False,
    nursery: Nursery | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, a small one unless a nursery is named; returns what it printed and said."""
    with tempfile.TemporaryDirectory() as there:
        said = [Path(there, "out"), Path(there, "err")]
        order = {
            "program": program, "arguments": ["ckpt", *map(str, arguments)], "folder": os.path.abspath(folder), "streams": streams,
            "environment": {**os.environ, **environment}, "out": out or str(said[0]), "err": err or str(said[1]),
        }  # fmt: skip
        (code,) = (nursery or _small()).carry_out([order])
        texts = [path.read_text() if path.exists() else "" for path in said]
    return subprocess.CompletedProcess([program, *map(str, arguments)], code, *texts)
