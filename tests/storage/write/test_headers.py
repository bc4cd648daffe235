"""Headers that are replaced in place: kills and errors at each call, readers, links, and journals of strangers."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptsurgeon.errors import OutputError
from ckptsurgeon.storage.replaced_header import REPLACED
from ckptsurgeon.storage.write import headers as module
from ckptsurgeon.storage.write.headers import NewHeader, check_alone, replace_headers, settle_interrupted
from ckptsurgeon.storage.write.output_paths import output_lock

from ...helpers.forked import Forked, in_a_small_process

PWRITE = os.pwrite
CALLS = ("open", "pwrite", "fsync", "unlink", "replace")
VALUES = b"values" * 500
RECORD = b"the plan"


def header(name: str) -> bytes:
    """A header of over a page, so that a write of it may be cut in the middle."""
    text = json.dumps({f"{name}.{number}": "x" * 40 for number in range(150)}).encode().ljust(9000)
    return len(text).to_bytes(8, "little") + text


OLD, NEW = header("old"), header("new")


@pytest.fixture(autouse=True)
def no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: a call that is killed or fails loses nothing that the kernel has."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Place:
    """A folder with one file, or with three shards and an index."""

    def __init__(self, folder: Path, shards: int) -> None:
        folder.mkdir()
        self.folder, self.sharded = folder, shards > 1
        self.files = [folder / f"{number}.safetensors" for number in range(shards)]
        self.path = folder / "model.safetensors.index.json" if self.sharded else self.files[0]
        for file in self.files:
            file.write_bytes(OLD + VALUES)
        if self.sharded:
            self.path.write_bytes(b"old index")

    def replace(self) -> None:
        """Replace the headers."""
        changes = [NewHeader(str(file), OLD, NEW) for file in self.files]
        record = (f"{self.path.name}.rename.json", RECORD)
        replace_headers(str(self.path), changes, record, b"new index" if self.sharded else None)

    @property
    def states(self) -> set[str]:
        """What readers find: "old", "new", or "refused"; fails for a mixture and for changed values."""
        found = set()
        for file in self.files:
            data = file.read_bytes()
            assert data[len(OLD) :] == VALUES
            if data[:8] == REPLACED:
                found.add("refused")
            else:
                found.add({OLD: "old", NEW: "new"}[data[: len(OLD)]])
        return found

    @property
    def state(self) -> str:
        """The one state of all files and of the index, without anything left over but the record of the change."""
        (state,) = self.states
        assert not self.sharded or self.path.read_text() == f"{state} index"
        names = {*os.listdir(self.folder)} - {f".{self.path.name}.ckpt-lock"}
        record = {f"{self.path.name}.rename.json"} if state == "new" else set()
        assert names == {self.path.name, *(file.name for file in self.files)} | record
        return state


@contextmanager
def fault(number: int, meet: Callable[[str, tuple[Any, ...]], None]) -> Iterator[list[int]]:
    """Let the call to the system with a number meet a fault; yields the number of calls so far."""
    calls = [0]
    real = {name: getattr(os, name) for name in CALLS}

    def faulty(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                meet(name, args)
            return real[name](*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, faulty(name))
        yield calls


def killed(name: str, args: tuple[Any, ...], *, half: bool) -> None:
    """Kill this process at a call, or in the middle of a write that is longer than a sector, or may cross one."""
    if half and name == "pwrite" and len(args[1]) > 8:
        PWRITE(args[0], args[1][: len(args[1]) // 2], args[2])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("half", [False, True], ids=["before the call", "in the middle of a write"])
@pytest.mark.parametrize("shards", [1, 3])
def test_killed_at_each_call_a_file_is_old_or_new_or_refused_and_settled_afterwards(
    shards: int, half: bool, tmp_path: Path
) -> None:
    in_a_small_process(kill_at_each_call, shards, half, tmp_path)


def kill_at_each_call(shards: int, half: bool, folder: Path) -> None:
    os.fsync = lambda fd: None
    seen = set()
    for number in range(1, 200):
        place = Place(folder / str(number), shards)

        def work(place: Place = place, number: int = number) -> None:
            with fault(number, lambda name, args: killed(name, args, half=half)):
                place.replace()

        code = Forked(work).ended()
        assert code in (0, -signal.SIGKILL)
        seen |= place.states
        assert place.states <= {"old", "refused"} or place.states <= {"new", "refused"}
        notes = settle_interrupted(str(place.path if number % 2 else place.folder))
        assert place.state == "new" if code == 0 else place.state in ("old", "new")
        assert len(notes) <= 1
        assert settle_interrupted(str(place.folder)) == []
        if code == 0:
            break
        place.replace() if place.state == "old" else None
        assert place.state == "new"
    assert number > 15
    assert seen == {"old", "new", "refused"}


@pytest.mark.parametrize("shards", [1, 3])
def test_an_error_at_each_call_leaves_all_old_or_all_new(shards: int, tmp_path: Path) -> None:
    def fails(name: str, args: tuple[Any, ...]) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    failed = 0
    for number in range(1, 200):
        place = Place(tmp_path / str(number), shards)
        with fault(number, fails) as calls:
            said = _said(place)
        failed += bool(said)
        assert "the disk reports an error" in said or not said
        assert place.state == ("old" if said else "new")
        if calls[0] < number:
            break
    assert failed > 10


def _said(place: Place) -> str:
    try:
        place.replace()
    except OutputError as error:
        return error.message
    return ""


def test_an_undoing_that_fails_too_is_said_and_settled_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "a", 1)
    real, written = os.pwrite, [0]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        written[0] += 1
        if written[0] > 4:  # the holder of the lock, the journal, the record and the length
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="so did undoing it: the files cannot be read now"):
        place.replace()
    with pytest.raises(
        OutputError, match=r"0\.safetensors was interrupted, and could not be finished or undone now"
    ) as error:
        settle_interrupted(str(place.path))
    assert str(error.value.hint).startswith("Remove this cause, and run ckpt check: the old headers are in ")
    monkeypatch.undo()
    assert place.states == {"refused"}
    (note,) = settle_interrupted(str(place.path))
    assert note == "ckpt rename --in-place of 0.safetensors was interrupted; it is undone now"
    assert place.state == "old"


def test_a_file_that_is_open_or_mapped_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", 1)
    with place.path.open("rb") as file:
        with pytest.raises(OutputError, match="is open in this or another program"):
            place.replace()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(OutputError, match="is open in this or another program"):
        check_alone(str(place.path))
    mapped.close()
    place.replace()
    assert place.state == "new"


def test_nobody_opens_a_file_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, tried = Place(tmp_path / "a", 3), []
    real = module._write_each

    def write(files: Any, offset: int) -> None:
        real(files, offset)
        if len(files) == 3:
            with pytest.raises(BlockingIOError):
                os.open(place.files[1], os.O_RDONLY | os.O_NONBLOCK)
            tried.append(offset)

    monkeypatch.setattr(module, "_write_each", write)
    place.replace()
    assert tried == [0, 8, 0]
    assert place.state == "new"


def test_links_are_refused_by_name(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", 1)
    link = tmp_path / "link.safetensors"
    link.symlink_to(place.path)
    with pytest.raises(OutputError, match="link.safetensors is a link to .*0.safetensors: its header is not replaced"):
        check_alone(str(link))
    link.unlink()
    os.link(place.path, link)
    with pytest.raises(OutputError, match="has 2 names .hard links.: its header is not replaced in place"):
        place.replace()
    link.unlink()
    assert place.state == "old"
    place.replace()


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", 1)
    place.path.write_bytes(header("another") + VALUES)
    with pytest.raises(OutputError, match="has changed since it was read"):
        place.replace()
    assert os.listdir(place.folder) == [place.path.name]


def test_two_files_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The journal of another file in the folder is left to a check of that file."""
    place = Place(tmp_path / "a", 1)
    other = place.folder / "other.safetensors"
    other.write_bytes(OLD)
    Forked(lambda: _begun(place)).ended()
    assert settle_interrupted(str(other)) == []
    assert place.states == {"refused"}
    assert len(settle_interrupted(str(place.path))) == 1
    assert place.states == {"old"}


def _begun(place: Place) -> None:
    """Replace headers, and be killed at the new header."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if at == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data, at)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        place.replace()


@pytest.mark.parametrize(
    "changed",
    [
        {"sizes": {"../victim": 9008}},
        {"record": "victim"},
        {"record": "../victim.rename.json"},
        {"sizes": {"victim": 9000}},
        {"sizes": {"victim": -1}},
        {"name": 3},
        {"version": 2},
    ],
)
def test_a_journal_of_a_stranger_changes_no_other_file(changed: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.mkdir()
    victims = [tmp_path / "victim", place / "victim", tmp_path / "victim.rename.json"]
    for victim in victims:
        victim.write_bytes(REPLACED + b"{ what a user has")
    head = {"kind": "ckpt.headers", "version": 1, "name": "victim", "sizes": {"victim": 9008}, "index": ""}
    data = json.dumps({**head, "record": "victim.rename.json", **changed}).encode() + b"\n" + OLD
    journal = place / ".victim.ckpt-headers"
    journal.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    assert settle_interrupted(str(place)) == []
    assert {victim.read_bytes() for victim in victims} == {REPLACED + b"{ what a user has"}


def test_if_another_process_makes_the_change_the_hint_has_no_option(tmp_path: Path) -> None:
    (tmp_path / ".victim.ckpt-headers").write_bytes(b"")
    with output_lock(str(tmp_path / "victim")), pytest.raises(OutputError) as error:
        settle_interrupted(str(tmp_path))
    assert error.value.hint == "Run the command again when that process has ended."


def test_a_whole_file_is_not_written_for_a_journal(tmp_path: Path) -> None:
    """A journal that comes with a download may only restore a header that says of itself that it is replaced."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"what a user has" * 1000)
    (tmp_path / "index").write_bytes(b"index")
    head = {"kind": "ckpt.headers", "version": 1, "name": "index", "sizes": {"victim": 9008}}
    head |= {"index": hashlib.sha256(b"index").hexdigest(), "record": "index.rename.json"}
    data = json.dumps(head).encode() + b"\n" + OLD
    (tmp_path / ".index.ckpt-headers").write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    settle_interrupted(str(tmp_path))
    assert victim.read_bytes() == b"what a user has" * 1000
