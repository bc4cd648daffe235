"""Every file is collected or none, whatever fails at whatever moment."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptsurgeon as cs

ANYWAY = cs.FetchConfig(overwrite=True)
RECORD = ".{}.ckpt.collected.json"


@pytest.fixture(params=["symlink", "copy"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Two sources with the same two names; the older one was collected."""
    for folder in ("old", "new"):
        Path(folder).mkdir()
        for name in ("enc", "head"):
            Path(f"{folder}/{name}.ckpt").write_text(f"{folder} {name}")
    both().collect_files("old", "copy")
    return str(request.param)


def both(folder: str = "collected") -> cs.Pretrainer:
    return cs.Pretrainer(folder, {"enc": object(), "head": object()})


def there(folder: str = "collected") -> dict[str, tuple[bytes, bool]]:
    return {path.name: (path.read_bytes(), path.is_symlink()) for path in Path(folder).iterdir()}


def test_a_record_that_cannot_be_written_leaves_no_file(strategy: str) -> None:
    Path("new/long").mkdir()
    name = "n" * 240  # fits with .ckpt, and not with what a record is called
    Path(f"new/long/{name}.ckpt").write_text("new")
    ours = cs.Pretrainer("collected", {"enc": object(), name: object()}, {name: f"new/long/{name}.ckpt"})
    before = there()
    with pytest.raises(cs.OutputError, match="the name is too long"):
        ours.collect_files("new", "copy")
    assert there() == before
    assert not ours.is_local


def test_something_in_the_place_of_a_record_leaves_no_file() -> None:
    Path("source").mkdir()
    Path("source/enc.ckpt").write_text("new")
    Path("collected", RECORD.format("enc")).mkdir(parents=True)
    with pytest.raises(cs.OutputError, match=r"collected\.json is a folder"):
        cs.Pretrainer("collected", {"enc": object()}).collect_files("source", "copy")
    assert os.listdir("collected") == [RECORD.format("enc")]


@pytest.mark.parametrize("fails", range(4))
def test_what_was_put_in_place_before_a_failure_is_put_back(
    strategy: str, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files, then two records; or two links, and two records taken away."""
    before, calls = there(), list[str]()

    def failing(real: Callable[..., None]) -> Callable[..., None]:
        def call(path: str, *to: str, **at: int) -> None:
            place = to[0] if to else path
            if ".ckpt-tmp" not in place and len(calls) <= fails:
                calls.append(place)
                if len(calls) > fails:
                    raise OSError(errno.EIO, "broken", place)
            real(path, *to, **at)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(os.replace))
        patch.setattr(os, "unlink", failing(os.unlink))
        with pytest.raises(cs.OutputError, match="the disk reports an error"):
            both().collect_files("new", strategy, ANYWAY)
    assert len(calls) == fails + 1
    assert there() == before


def test_a_new_folder_is_taken_away_again(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(path: str, to: str) -> None:
        if to.endswith("head.ckpt"):
            raise OSError(errno.EROFS, "read only")
        real(path, to)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(cs.OutputError, match=r"head\.ckpt: the file system is read-only"):
        both("a/b").collect_files("new", strategy)
    assert not Path("a").exists()


@pytest.mark.long
@pytest.mark.parametrize("dies", range(1, 4))
def test_a_run_that_dies_between_two_files_leaves_what_the_next_one_mends(strategy: str, dies: int) -> None:
    """A file is there before its record: without one it is of unknown origin, and never taken for another."""
    done = subprocess.run([sys.executable, "-c", DYING, strategy, str(dies)], check=False)
    assert done.returncode == 9
    assert there()["enc.ckpt"] == (b"new enc", strategy == "symlink")
    both().collect_files("new", strategy)
    found = there()
    for name in ("enc", "head"):
        assert found[f"{name}.ckpt"] == (f"new {name}".encode(), strategy == "symlink")
        assert (RECORD.format(name) in found) == (strategy == "copy")
    assert not [name for name, (_, link) in found.items() if name.endswith(".ckpt-tmp") and not link]
    both().collect_files("new", strategy)
    assert there() == found


DYING = """
import os, sys
import ckptsurgeon as cs
left = int(sys.argv[2])
def dying(real):
    def call(path, *to, **at):
        global left
        if ".ckpt-tmp" not in (to[0] if to else path):
            if not left:
                os._exit(9)
            left -= 1
        real(path, *to, **at)
    return call
os.replace, os.unlink = dying(os.replace), dying(os.unlink)
ours = cs.Pretrainer("collected", {"enc": object(), "head": object()})
ours.collect_files("new", sys.argv[1], cs.FetchConfig(overwrite=True))
"""


def test_a_link_to_a_file_that_the_same_call_replaces_is_refused() -> None:
    Path("collected").mkdir()
    for name in ("enc", "head"):
        Path(f"collected/{name}.ckpt").write_bytes(name.encode())
    crossed = {"enc": "collected/head.ckpt", "head": "collected/enc.ckpt"}
    ours = cs.Pretrainer("collected", {"enc": object(), "head": object()}, crossed)
    anyway = cs.FetchConfig(overwrite=True)
    with pytest.raises(cs.OutputError, match=r"would be a link to .*, which the same call replaces\. .*\"copy\""):
        ours.collect_files(fetch_config=anyway)
    assert {path.name: path.read_bytes() for path in Path("collected").iterdir()} == {
        "enc.ckpt": b"enc",
        "head.ckpt": b"head",
    }
    cs.Pretrainer("collected", ours.loadables, crossed).collect_files(None, "copy", anyway)
    assert [Path(f"collected/{name}.ckpt").read_bytes() for name in ("enc", "head")] == [b"head", b"enc"]
