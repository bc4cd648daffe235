"""Processes that test together collect once, and are apart in all else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TESTS = """
import os, signal, sys
from pathlib import Path
import pytest

COLLECTED_BY = os.getpid()

@pytest.mark.parametrize("number", range(3))
def test_it(number, tmp_path_factory, worker_id, capfd):
    print(worker_id, os.environ["PYTEST_XDIST_WORKER"], tmp_path_factory.getbasetemp().name, COLLECTED_BY)
    said = capfd.readouterr().out
    (Path(os.environ["SAID"]) / f"{__name__}.{number}.{os.getpid()}").write_text(said)
    MORE
"""


def run(folder: Path, more: str = "", *, hooks: str = "", given: str = "") -> tuple[str, list[tuple[str, list[str]]]]:
    """Run two files of tests in two processes; returns what pytest printed, and the process and the words of each test."""
    for name in ("test_a", "test_b"):
        (folder / f"{name}.py").write_text(TESTS.replace("MORE", more))
    (folder / "conftest.py").write_text(
        "from tests.helpers.one_collection import *\nfrom tests.helpers import one_collection\n" + HOOKS + hooks
    )
    (folder / "said").mkdir()
    said = {"SAID": str(folder / "said"), "PYTHONPATH": str(ROOT), "PYTEST_DEBUG_TEMPROOT": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-c", os.devnull, "--rootdir", folder,
         folder / given],
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTEST")} | said,
        capture_output=True, text=True, cwd=folder, check=False, timeout=120,
    )  # fmt: skip
    found = sorted((folder / "said").iterdir())
    return done.stdout + done.stderr, [(path.suffix[1:], path.read_text().split()) for path in found]


HOOKS = """
import os
import pytest

os.environ.setdefault("TOLD_BY", str(os.getpid()))  # the first that reads this tells the others

@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session):
    one_collection.fork_the_others(session)

@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    one_collection.end()
"""


def test_one_process_collects_and_each_has_its_name_folder_and_output(tmp_path: Path) -> None:
    printed, tests = run(tmp_path)
    assert "6 passed" in printed, printed
    processes = dict(tests)
    assert len(processes) == 2
    assert len({words[3] for words in processes.values()}) == 1  # one has collected
    assert processes.keys() & {words[3] for words in processes.values()}
    assert sorted(words[:3] for words in processes.values()) == [[f"gw{n}", f"gw{n}", f"popen-gw{n}"] for n in range(2)]


@pytest.mark.long
def test_failures_and_their_output_are_told(tmp_path: Path) -> None:
    printed, _ = run(tmp_path, "print('in', __name__, number); assert number < 2")
    assert "2 failed, 4 passed" in printed, printed
    assert all(f"in {name} 2" in printed for name in ("test_a", "test_b"))


@pytest.mark.long
@pytest.mark.parametrize("worker", ["gw0", "gw1"])
def test_a_process_that_is_killed_is_replaced_and_the_others_go_on(tmp_path: Path, worker: str) -> None:
    printed, _ = run(tmp_path, f"if number == 1 and worker_id == {worker!r}: os.kill(os.getpid(), signal.SIGKILL)")
    assert "1 failed, 6 passed" in printed, printed  # pytest-xdist repeats the test during which a process ended
    assert f"worker '{worker}' crashed" in printed


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_ends_before_all_is_collected_is_replaced(tmp_path: Path, number: int) -> None:
    """The first one collects and the other one waits for it: neither waits for one that has ended."""
    printed, tests = run(tmp_path, hooks=ENDS[number])
    assert "6 passed" in printed, printed
    assert f"[gw{number}] node down" in printed
    assert tests


ENDS = (
    """
if os.environ.get("PYTEST_XDIST_WORKER") == "gw0":
    os._exit(1)
""",
    """
one_collection.none_yet = lambda: True
if "PYTEST_XDIST_WORKER" not in os.environ:
    one_collection.LENDS = "other"  # so that the other process fails
""",
)


@pytest.mark.long
def test_a_file_that_does_not_exist_ends_all_processes(tmp_path: Path) -> None:
    printed, tests = run(tmp_path, given="test_none.py", hooks="\none_collection.none_yet = lambda: True\n")
    assert "passed" not in printed
    assert "Traceback" not in printed
    assert not tests


@pytest.mark.long
def test_all_processes_end_if_the_one_that_tells_them_what_to_test_is_killed(tmp_path: Path) -> None:
    """Their output, which is read until all have closed it, ends with them."""
    printed, tests = run(
        tmp_path, "if worker_id == 'gw1': os.kill(int(os.environ['TOLD_BY']), signal.SIGKILL); signal.pause()"
    )
    assert "passed" not in printed
    assert tests
