"""A run that writes several shards and is interrupted: the same command goes on, and what is there is the same."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import staged_output
from ckptsurgeon.engine.one_output_part import PartRun
from ckptsurgeon.storage.write.folders import StagedFolder
from ckptsurgeon.storage.write.journal import JOURNAL

from ..conftest import Result
from ..helpers.forked import Forked, as_ckpt
from .sharded import SHARD, VERBS, files, transplant, write_sources


@pytest.fixture(autouse=True)
def inputs() -> None:
    write_sources()


MERGE = (Path(__file__).parents[2] / "docs/howto/merge.md").read_text()


class Interrupted(BaseException):
    """What a signal raises."""


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a run fail when so many parts are finished."""

    def fail(parts: int, error: BaseException | type[BaseException] = Interrupted) -> None:
        finished, done = staged_output.StagedOutput.finished, []

        def counted(output: staged_output.StagedOutput, run: PartRun) -> None:
            if len(done) == parts:
                monkeypatch.setattr(staged_output.StagedOutput, "finished", finished)
                raise error
            done.append(run)
            finished(output, run)

        monkeypatch.setattr(staged_output.StagedOutput, "finished", counted)

    return fail


def temps() -> list[str]:
    return sorted(name for name in os.listdir() if ".ckpt-tmp" in name)


def begin(fail_after: Callable[..., None], parts: int = 2, plan: Callable[[], cs.Plan] = transplant) -> Path:
    """Begin an output and fail after some parts; return the temp folder that is left."""
    fail_after(parts)
    with pytest.raises(Interrupted):
        write(plan)
    assert not os.path.exists("out")
    (left,) = temps()
    return Path(left)


def write(plan: Callable[[], cs.Plan] = transplant, output: str = "out", **options: Any) -> cs.Receipt:
    return cs.apply(plan(), output, max_shard_size=SHARD, **options)


def went_on(receipt: cs.Receipt) -> bool:
    return any(note.startswith("continued an interrupted run: ") for note in receipt.notes)


def shards(folder: str | Path) -> dict[str, tuple[int, int]]:
    """The shards of a folder, each with what changes if it is written again."""
    found = {path.name: path.stat() for path in sorted(Path(folder).glob("*.safetensors"))}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.costly
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("verb", VERBS)
def test_the_same_command_goes_on(verb: str, parts: int, fail_after: Callable[..., None]) -> None:
    whole = write(VERBS[verb], "whole")
    parts = min(parts, len(shards("whole")) - 1)
    left = begin(fail_after, parts, VERBS[verb])
    before = shards(left)
    receipt = write(VERBS[verb])
    assert files("out") == files("whole")
    assert cs.verify("out").ok
    assert temps() == []
    kept = dict(list(before.items())[:parts])
    assert {name: shards("out")[name] for name in kept} == kept
    number, size = len(shards("out")), sum(os.path.getsize(f"out/{name}") for name in kept)
    (note,) = set(receipt.notes) - set(whole.notes)
    assert note.startswith(f"continued an interrupted run: {parts} of {number} parts were complete, ")
    assert set(whole.notes) < set(receipt.notes)
    assert receipt.nbytes_written == whole.nbytes_written - size
    assert (receipt.nbytes_kept, whole.nbytes_kept) == (size, 0)
    assert receipt.nbytes_read < whole.nbytes_read
    assert (receipt.rounded, receipt.plan_sha256) == (whole.rounded, whole.plan_sha256)


def test_an_output_that_is_replaced_stays_until_the_new_one_is_whole(fail_after: Callable[..., None]) -> None:
    write(VERBS["rename"])
    old = files("out")
    fail_after(3)
    with pytest.raises(Interrupted):
        write(force=True)
    assert files("out") == old
    assert went_on(write(force=True))
    assert files("out") != old
    assert cs.verify("out").ok


@pytest.mark.long
def test_it_goes_on_again_and_again(fail_after: Callable[..., None]) -> None:
    for number in range(5):
        fail_after(1)
        with pytest.raises(Interrupted):
            write()
        assert len((Path(temps()[0]) / JOURNAL).read_text().splitlines()) == number + 2
    assert write().notes[0].startswith("continued an interrupted run: 5 of 6 parts")
    write(output="whole")
    assert files("out") == files("whole")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def flip_header(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[12] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def link(path: Path) -> None:
    path.rename("elsewhere")
    path.symlink_to(os.path.abspath("elsewhere"))


@pytest.mark.costly
@pytest.mark.parametrize("damage", [flip, flip_header, cut, link, Path.unlink])
def test_a_part_that_is_not_whole_is_written_again(
    damage: Callable[[Path], None], fail_after: Callable[..., None]
) -> None:
    left = begin(fail_after, 3)
    first, second, third = list(shards(left).items())[:3]
    damage(left / second[0])
    assert "2 of 6 parts were complete" in write().notes[0]
    assert not os.path.islink(f"out/{second[0]}")
    after = shards("out")
    assert (after[first[0]], after[third[0]]) == (first[1], third[1])
    write(output="whole")
    assert files("out") == files("whole")


def test_the_last_line_of_a_journal_may_be_cut_short(fail_after: Callable[..., None]) -> None:
    left = begin(fail_after, 3)
    cut(left / JOURNAL)
    assert "2 of 6 parts were complete" in write().notes[0]
    assert cs.verify("out").ok


@pytest.mark.costly
@pytest.mark.parametrize("text", [b"", b"\0", b"{}\n", b"00000000 {}\n", b"a3830348 {}\na3830348 {}\n"])
def test_a_journal_that_says_nothing_is_no_journal(text: bytes, fail_after: Callable[..., None]) -> None:
    (begin(fail_after, 3) / JOURNAL).write_bytes(text)
    assert not went_on(write())
    assert temps() == []


@pytest.mark.costly
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_line_that_was_changed_ends_a_journal(where: int, fail_after: Callable[..., None]) -> None:
    journal = begin(fail_after, 3) / JOURNAL
    lines = journal.read_text().splitlines(keepends=True)
    lines[where] = lines[where].replace('"', "'", 1)
    journal.write_text("".join(lines))
    receipt = write()
    assert went_on(receipt) == (where == 2)
    assert where != 2 or "1 of 6 parts" in receipt.notes[0]


def changed(name: str) -> None:
    tensors = load_file(name)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, name)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (lambda: write(VERBS["rename"]), "belong to another command, ckpt transplant"),
        (
            lambda: write(lambda: cs.transplant("a.safetensors", "dst.yaml", dtype="bf16")),
            "with other values of these options: exclude, dtype",
        ),
        (
            lambda: write(lambda: cs.transplant("b.safetensors", "dst.yaml", exclude=["layers.1"])),
            "from sources that this command does not have: .*a.saf",
        ),
        (
            lambda: cs.apply(transplant(), "out", max_shard_size="2MB"),
            "with other values of these options: max_shard_size",
        ),
        (lambda: cs.apply(transplant(), "out"), "with other values of these options: max_shard_size"),
        (lambda: changed("a.safetensors") or write(), ", and its sources have changed since then: .*a.safetensors"),
    ],
)
def test_another_command_or_changed_sources_are_an_error(
    now: Callable[[], cs.Receipt], why: str, fail_after: Callable[..., None]
) -> None:
    left = begin(fail_after, 2)
    before = files(str(left))
    with pytest.raises(cs.OutputError, match=f"an interrupted run has left 2 of 6 parts of .*{why}") as caught:
        now()
    assert "restart" in caught.value.hint
    assert files(str(left)) == before


def test_a_source_that_was_replaced_with_the_same_size_and_time_is_an_error(fail_after: Callable[..., None]) -> None:
    begin(fail_after, 2)
    before = os.stat("a.safetensors")
    changed("a.safetensors")
    os.utime("a.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(cs.OutputError, match="its sources have changed since then: a.safetensors. Use") as caught:
        write()
    assert caught.value.hint.startswith("Use --restart")


def test_a_plugin_that_has_changed_is_an_error(fail_after: Callable[..., None]) -> None:
    (source,) = re.findall(r'```python title="mine.py"\n(.*?)```', MERGE, re.S)
    Path("mine.py").write_text(source)
    plan = lambda: cs.merge(["a.safetensors", "b.safetensors"], method="clipped", plugin="mine.py")  # noqa: E731
    begin(fail_after, 2, plan)
    Path("mine.py").write_text(source + "\n# another\n")
    with pytest.raises(cs.OutputError, match="and the plugin has changed since"):
        write(plan)


def test_addresses_without_a_version_leave_nothing(fail_after: Callable[..., None]) -> None:
    import fsspec

    with fsspec.open("memory://a.safetensors", "wb") as file:
        file.write(Path("a.safetensors").read_bytes())
    fail_after(2)
    with pytest.raises(Interrupted):
        write(lambda: cs.convert("memory://a.safetensors", dtype="float64"))
    assert temps() == []


def test_a_run_that_still_writes_cannot_publish_what_another_went_on_with(fail_after: Callable[..., None]) -> None:
    """As where the file system has no locks: the second run takes the folder, and the first one has nothing to place."""
    finished, started = staged_output.StagedOutput.finished, []

    def second(output: staged_output.StagedOutput, run: PartRun) -> None:
        finished(output, run)
        if len(started) == 1:
            started.append(write_unlocked())
        started.append(None)

    def write_unlocked() -> cs.Receipt:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staged_output.StagedOutput, "finished", finished)
            return write()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no locks")))
        patch.setattr(staged_output.StagedOutput, "finished", second)
        with pytest.raises(cs.OutputError):
            write()
    assert went_on(next(one for one in started if one is not None))
    write(output="whole")
    assert files("out") == files("whole")


def test_a_link_named_like_what_a_run_left_is_nothing(fail_after: Callable[..., None]) -> None:
    left = begin(fail_after, 2)
    left.rename("elsewhere")
    left.symlink_to("elsewhere")
    assert not went_on(write())
    assert cs.verify("out").ok


def test_a_line_that_was_cut_short_does_not_end_the_journal(fail_after: Callable[..., None]) -> None:
    cut(begin(fail_after, 2) / JOURNAL)
    fail_after(3)
    with pytest.raises(Interrupted):
        write()
    assert "4 of 6 parts were complete" in write().notes[0]


def test_a_signal_while_kept_parts_are_read_keeps_them(
    fail_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise Interrupted

    begin(fail_after, 3)
    with monkeypatch.context() as patch:
        patch.setattr("ckptsurgeon.engine.resuming.crc32", stop)
        with pytest.raises(Interrupted):
            write()
    assert "3 of 6 parts were complete" in write().notes[0]


def test_other_writers_of_that_folder_leave_the_parts(fail_after: Callable[..., None]) -> None:
    begin(fail_after, 3)
    cs.make_patch("a.safetensors", "b.safetensors", "d.ckptpatch")
    cs.apply_patch("a.safetensors", "d.ckptpatch", "other.safetensors")
    Path("new").mkdir()
    Path("new/model.safetensors").write_bytes(Path("b.safetensors").read_bytes())
    cs.make_patch("a.safetensors", "new", "e.ckptpatch")
    with pytest.raises(cs.OutputError, match="they belong to another command, ckpt transplant"):
        cs.apply_patch("a.safetensors", "e.ckptpatch", "out")
    assert "3 of 6 parts were complete" in write().notes[0]


def test_another_version_is_an_error(fail_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    begin(fail_after, 2)
    monkeypatch.setattr("ckptsurgeon.engine.same_run.__version__", "99.0")
    with pytest.raises(cs.OutputError, match=r"ckptsurgeon .* has written them, but this is 99\.0"):
        write()


def test_restart_begins_anew(fail_after: Callable[..., None]) -> None:
    begin(fail_after, 2)
    receipt = write(VERBS["rename"], restart=True)
    assert not went_on(receipt)
    assert cs.verify("out").ok
    assert temps() == []


@pytest.mark.costly
@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (cs.OutputError("no space."), True),
        (cs.SourceError("the server is gone."), True),
        (MemoryError(), True),
        (OSError(5, "error"), True),
        (cs.FormatError("damaged."), False),
        (cs.PlanError("changed."), False),
        (RuntimeError("a bug"), True),
    ],
)
def test_parts_are_kept_only_if_the_same_command_can_succeed(
    error: Exception, stays: bool, fail_after: Callable[..., None]
) -> None:
    fail_after(2, error)
    with pytest.raises((type(error), cs.OutputError)) as caught:
        write()
    assert len(temps()) == stays
    if isinstance(error, (cs.OutputError, cs.SourceError)):
        assert "The finished parts are kept (2 of 6 parts): run the same command again" in caught.value.hint
    assert went_on(write()) == stays


@pytest.mark.parametrize("how", ["truncate", "rename"])
def test_parts_are_removed_if_a_source_changed_during_the_run(how: str, fail_after: Callable[..., None]) -> None:
    def change(done: int, total: int) -> None:
        if how == "truncate":
            os.truncate("a.safetensors", os.path.getsize("a.safetensors") // 2)
            raise cs.SourceError("a.safetensors ended.")
        shutil.copyfile("a.safetensors", "new")
        os.rename("new", "a.safetensors")
        raise cs.OutputError("no space.")

    finished, seen = staged_output.StagedOutput.finished, list[PartRun]()

    def watched(output: staged_output.StagedOutput, run: PartRun) -> None:
        finished(output, run)
        seen.append(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged_output.StagedOutput, "finished", watched)
        with pytest.raises((cs.SourceError, cs.OutputError)) as caught:
            write(VERBS["convert"], progress=lambda done, total: change(done, total) if len(seen) == 2 else None)
    assert caught.value.hint.endswith(
        "The finished parts are removed (2 of 5 parts), because a source has changed: a.safetensors."
    )
    assert temps() == []


@pytest.mark.parametrize("error", [OSError(5, "error"), cs.OutputError("no space.")])
def test_nothing_is_kept_if_the_bytes_may_not_be_on_disk(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: StagedFolder) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(StagedFolder, "flush", fail)
        with pytest.raises(cs.OutputError) as caught:
            write()
    assert caught.value.hint == ""
    assert temps() == []


def test_nothing_is_kept_before_a_part_is_finished(fail_after: Callable[..., None]) -> None:
    fail_after(0, cs.OutputError("no space."))
    with pytest.raises(cs.OutputError) as caught:
        write()
    assert caught.value.hint == ""
    assert temps() == []


def test_sources_in_memory_leave_nothing(fail_after: Callable[..., None]) -> None:
    tensors = load_file("a.safetensors")
    fail_after(2)
    with pytest.raises(Interrupted):
        write(lambda: cs.convert(tensors, dtype="bf16"))
    assert temps() == []


def test_a_kept_part_counts_in_the_progress(fail_after: Callable[..., None]) -> None:
    begin(fail_after, 4)
    seen: list[tuple[int, int]] = []
    write(progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] > 4 * 1_200_000
    size = sum(os.path.getsize(f"out/{name}") for name in shards("out"))
    assert 6 * 4 * 300_000 <= seen[-1][0] <= size
    assert {total for _, total in seen} == {size}


WORDS = ("convert", "a.safetensors", "--dtype", "float64", "-o", "out", "--max-shard-size", SHARD)


def pausing() -> int:
    """Write as ckpt does, but for ever after two parts."""
    finished, left = staged_output.StagedOutput.finished, [2]

    def later(output: staged_output.StagedOutput, run: PartRun) -> None:
        finished(output, run)
        left[0] -= 1
        if not left[0]:
            open("paused", "w").close()
            signal.pause()

    staged_output.StagedOutput.finished = later  # type: ignore[method-assign]
    return as_ckpt(*WORDS)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_goes_on(number: signal.Signals, ckpt: Callable[..., Result]) -> None:
    process = Forked(pausing)
    process.wait_until(lambda: os.path.exists("paused"))
    process.send_signal(number)
    assert process.ended() == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGTERM:
        said = "terminated; 2 of 5 parts are finished and kept: the same command continues from there"
        assert said in process.err
    again = ckpt(*WORDS, "--json")
    assert json.loads(again.out)["notes"][0].startswith("continued an interrupted run: 2 of 5 parts")
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")
