"""Processes that test together (pytest-xdist) and collect once: one imports and collects, and the others are forked from it.

Each process would import torch, transformers and 700 modules of tests, and collect 16,000 tests: 9 seconds of a processor.
Those but the first only connect, and wait (``lent_worker.py``). When the first has collected, it forks a process for
each, which takes over its connection: a pipe that belongs to a process can be opened as ``/proc/PID/fd/NUMBER``.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import warnings
from types import ModuleType
from typing import Any

import pytest

from . import lent_worker
from .prepared import none_yet

__all__ = [
    "end", "fork_the_others", "pytest_configure_node", "pytest_testnodedown", "pytest_xdist_getremotemodule",
]  # fmt: skip

LENDS, LENT = "lends", "lent"
"""What a process is told: the pipe in which it offers its connection, and the pipes of the others."""

_CHILDREN = list[int]()
_waiting = dict[str, str]()
_nodes = dict[str, Any]()
_lends = False
_is_forked = False


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell the first process which others it forks, and the others that they are forked.

    One that takes the place of another that has crashed is none of both, and collects for itself.
    """
    global _lends
    first, *others = (spec.id for spec in node.nodemanager.specs)
    name = node.gateway.id
    if name == first and not _waiting and _can_fork(node):
        folder = node.config._tmp_path_factory.getbasetemp()
        _waiting.update({other: str(folder / f"{other}.pipe") for other in others})
        for pipe in _waiting.values():
            os.mkfifo(pipe)
        node.workerinput[LENT] = [*_waiting.values()]
    _lends = name in _waiting and LENT not in node.workerinput
    _nodes[name] = node
    if _lends:
        node.workerinput |= {LENDS: _waiting[name], "prepares": none_yet() and name == others[0]}


def _can_fork(node: Any) -> bool:
    return sys.platform == "linux" and all(spec.popen and not spec.python for spec in node.nodemanager.specs)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Let no process wait for one that has ended: the first one for an offer, and the others for the first one."""
    name = node.gateway.id
    if name in _waiting:
        pipe = os.open(_waiting[name], os.O_RDWR | os.O_NONBLOCK)  # stays open, or what is written would be lost
        os.write(pipe, b"null\n")
    elif LENT in node.workerinput:
        for other in _waiting:
            _nodes[other].gateway._io.popen.kill()  # does nothing to one whose connection was taken over


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_getremotemodule() -> ModuleType | None:
    """Return what the process runs that was told last what it is; None for what pytest-xdist runs."""
    return lent_worker if _lends else None


def fork_the_others(session: pytest.Session) -> None:
    """Fork a process for each that waits; in these, this returns when they are connected as it was."""
    for name in getattr(session.config, "workerinput", {}).get(LENT, ()):
        with open(name) as pipe:
            offer = json.loads(pipe.readline())
        if offer is None:  # this process has ended
            continue
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of threads: the one that waits for messages is replaced
            pid = os.fork()
        if not pid:
            _CHILDREN.clear()
            _take_over(session, offer)
            return
        _CHILDREN.append(pid)


def _take_over(session: pytest.Session, offer: dict[str, Any]) -> None:
    global _is_forked
    _is_forked = True
    config = session.config
    interactor = next(each for each in config.pluginmanager.get_plugins() if hasattr(each, "sendevent"))
    interactor.channel = _channel(offer, interactor.channel.gateway)
    config.workerinput = offer["input"]  # type: ignore[attr-defined]
    interactor.workerid = os.environ["PYTEST_XDIST_WORKER"] = offer["input"]["workerid"]
    interactor.torun = type(interactor.torun)(interactor.channel.gateway.execmodel)
    _write_elsewhere(config, offer["basetemp"])
    interactor.pytest_sessionstart(session)  # which says that it is ready


def _channel(offer: dict[str, Any], ours: Any) -> Any:
    """Return the connection of the process that offered it, which ends; that of the process that forked stays its own."""
    from execnet.gateway_base import Popen2IO

    nothing = os.open(os.devnull, os.O_RDWR)
    for file in (ours._io.infile, ours._io.outfile):
        os.dup2(nothing, file.fileno())
    os.close(nothing)
    reading, writing = (f"/proc/{offer['pid']}/fd/{offer[way]}" for way in ("reading", "writing"))
    io = Popen2IO(open(writing, "wb"), open(reading, "rb"), ours.execmodel)  # noqa: SIM115
    os.kill(offer["pid"], signal.SIGKILL)
    gateway = type(ours)(io=io, id=ours.id, _startcount=2)
    gateway._terminate_execution = _stop
    gateway._initreceive()
    return gateway._channelfactory.new(offer["channel"])


def _stop() -> None:
    """Stop pytest, which may not have heard that its connection has ended, and then this process, as execnet does."""
    threading.Event().wait(5)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(10)
    os._exit(1)


def _write_elsewhere(config: pytest.Config, basetemp: str | None) -> None:
    """Keep what is printed in files of this process, and what tests write in its folder."""
    captured: Any = config.pluginmanager.getplugin("capturemanager")
    captured.stop_global_capturing()
    captured.start_global_capturing()
    captured.suspend_global_capture()
    config.option.basetemp = basetemp
    config._tmp_path_factory = pytest.TempPathFactory.from_config(config, _ispytest=True)  # type: ignore[attr-defined]


def end() -> None:
    """End a process that was forked, or that has forked others, which it waits for; all has been told by now.

    What Python does at its end takes long with a million objects, and changes nothing.
    """
    if _is_forked or _CHILDREN:
        atexit._run_exitfuncs()
        for pid in _CHILDREN:
            os.waitpid(pid, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
