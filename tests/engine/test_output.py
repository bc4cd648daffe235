"""An output is there whole or not at all, and what stood there before survives."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import copy_bytes
from ckptsurgeon.storage.write import folder_exchange, folders, staged_file

from ..helpers.declare import declare
from ..helpers.forked import Forked, as_ckpt

A = torch.arange(1000.0)


@pytest.fixture(autouse=True)
def inputs() -> None:
    torch.save({"a": A, "b": A.half()}, "src.pth")
    declare("dst.yaml", {"a": (1000,), "b": (1000,), "c": (10,)})


def write(output: str = "out.safetensors", **options: Any) -> cs.Receipt:
    return cs.apply(cs.transplant("src.pth", "dst.yaml"), output, **options)


def names(folder: str = ".") -> list[str]:
    return sorted(os.listdir(folder))


INPUTS = ["dst.yaml", "src.pth"]


def test_an_output_that_exists_needs_force() -> None:
    Path("out.safetensors").write_text("old")
    with pytest.raises(cs.OutputError, match="out.safetensors exists. Use force=True") as caught:
        write()
    assert caught.value.exit_code == 5
    assert Path("out.safetensors").read_text() == "old"
    write(force=True)
    assert cs.verify("out.safetensors").ok
    assert names() == [*INPUTS[:1], "out.safetensors", *INPUTS[1:]]


@pytest.mark.parametrize("how", ["same", "hard link", "symbolic link", "another spelling", "the configuration"])
def test_an_input_is_never_written_even_with_force(how: str) -> None:
    output = {"same": "src.pth", "another spelling": "./sub/../src.pth", "the configuration": "dst.yaml"}.get(
        how, "other.pth"
    )
    if how == "hard link":
        os.link("src.pth", "other.pth")
    if how == "symbolic link":
        os.symlink("src.pth", "other.pth")
    os.mkdir("sub")
    before = Path("src.pth").read_bytes(), Path("dst.yaml").read_bytes()
    with pytest.raises(cs.OutputError, match="is an input"):
        write(output, force=True, to="pth")
    assert (Path("src.pth").read_bytes(), Path("dst.yaml").read_bytes()) == before


def test_a_destination_checkpoint_is_an_input_too() -> None:
    torch.save({"a": A, "k": A}, "dst.pth")
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.apply(cs.transplant("src.pth", "dst.pth"), "dst.pth", force=True)


def test_a_folder_that_holds_a_source_is_never_replaced() -> None:
    os.mkdir("m")
    os.rename("src.pth", "m/src.safetensors")
    plan = cs.transplant("m/src.safetensors", "dst.yaml")
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.apply(plan, "m", force=True)


def test_a_link_is_replaced_and_never_written_through() -> None:
    os.makedirs("blobs")
    Path("blobs/abc").write_text("precious")
    os.symlink("blobs/abc", "out.safetensors")
    write(force=True)
    assert Path("blobs/abc").read_text() == "precious"
    assert not Path("out.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("no/such/folder/out.pth", "folder .*no/such/folder does not exist"),
        ("src.pth/out.pth", "src.pth is not a folder"),
        ("/dev/full", "not a regular file"),
        ("/proc/out.pth", "cannot write /proc/out.pth: No such file or directory"),
        ("sub.pth", "is a folder|exists"),
    ],
)
def test_a_place_that_cannot_be_written_says_why(output: str, why: str) -> None:
    if output == "sub.pth":
        os.mkfifo("sub.pth")
        why = "not a regular file"
    with pytest.raises(cs.OutputError, match=why):
        write(output, force=True, to="pth")
    assert set(names()) == {*INPUTS, *(["sub.pth"] if output == "sub.pth" else [])}


def test_permissions_follow_the_umask() -> None:
    old = os.umask(0o027)
    try:
        write()
        write("folder")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("out.safetensors").st_mode) == 0o640
    assert stat.S_IMODE(os.stat("folder").st_mode) == 0o750
    assert stat.S_IMODE(os.stat("folder/model.safetensors").st_mode) == 0o640


# Calls that fail.

FAILING = {
    "pwrite": ("pwrite", errno.ENOSPC, "no space left"),
    "a disk that breaks": ("pwrite", errno.EIO, "reports an error"),
    "fsync": ("fsync", errno.EIO, "reports an error"),
    "link": ("link", errno.EACCES, "permission denied"),
    "a quota": ("pwrite", errno.EDQUOT, "quota"),
    "open": ("open", errno.EROFS, "read-only"),
}


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
@pytest.mark.parametrize("name", FAILING)
def test_a_call_that_fails_leaves_everything_as_it_was(name: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, code, why = FAILING[name]
    if (function, output) == ("link", "folder"):
        function = "rename"
    plan = cs.transplant("src.pth", "dst.yaml")
    real = getattr(os, function)

    def broken(*args: Any, **options: Any) -> Any:
        temporary = any(".ckpt-tmp" in str(arg) for arg in args) or function in ("pwrite", "fsync")
        if temporary and not (function == "open" and not args[1] & os.O_CREAT):
            raise OSError(code, os.strerror(code))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, broken)
        with pytest.raises(cs.OutputError, match=f"cannot write .*{why}"):
            cs.apply(plan, output)
    assert names() == INPUTS


def test_an_fsync_that_a_file_system_lacks_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(fd: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "fsync", lacks)
    write()
    assert Path("out.safetensors").exists()


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_fault(output: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _raising(code))
    write(output)
    assert cs.verify(output).ok
    assert names() == sorted([*INPUTS, output])


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_a_lock_that_fails_leaves_no_temp(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _raising(errno.EIO))
    with pytest.raises(cs.OutputError, match="the disk reports an error"):
        write(output)
    assert names() == INPUTS


def _raising(code: int) -> Any:
    def call(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_a_file_system_without_links_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", lacks)
    write()
    assert cs.verify("out.safetensors").ok


@pytest.fixture
def kernel_copies_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the kernel for the smallest tensors too."""
    monkeypatch.setattr(copy_bytes, "SMALL", 0)


@pytest.mark.usefixtures("kernel_copies_all")
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_kernel_cannot_copy_the_bytes_pass_through(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def lacks(*_: Any) -> int:
        calls.append(1)
        raise OSError(code, os.strerror(code))

    write("kernel.safetensors")
    monkeypatch.setattr(os, "copy_file_range", lacks)
    write("hand.safetensors")
    assert Path("kernel.safetensors").read_bytes() == Path("hand.safetensors").read_bytes()
    assert len(calls) == 1  # asked once, never again


@pytest.mark.usefixtures("kernel_copies_all")
def test_a_kernel_copy_that_stops_half_way_is_finished_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def short(source: int, target: int, count: int, at: int, to: int) -> int:
        calls.append(count)
        if len(calls) % 2 == 0:
            return 0
        data = os.pread(source, min(count, 700), at)
        return os.pwrite(target, data, to)

    monkeypatch.setattr(os, "copy_file_range", short)
    write()
    assert cs.verify("out.safetensors").ok
    assert calls


def test_a_source_that_shrinks_while_it_is_read_is_an_error() -> None:
    plan = cs.transplant("src.pth", "dst.yaml")
    os.truncate("src.pth", 2000)
    with pytest.raises(cs.CheckpointError) as caught:
        cs.apply(plan, "out.safetensors")
    assert caught.value.exit_code in (3, 4)
    assert names() == INPUTS


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def small(path: Any) -> Any:
        found = real(path)
        return os.statvfs_result((found.f_bsize, 1, found.f_blocks, 3, 3, *tuple(found)[5:10]))

    monkeypatch.setattr(os, "statvfs", small)
    with pytest.raises(cs.OutputError, match=r"it needs [\d.]+ kB, but only 3 B are free"):
        write()
    assert names() == INPUTS


# What a killed run leaves.


def test_leftovers_nobody_holds_are_removed_and_held_ones_stay() -> None:
    Path(".out.safetensors.0123abcd.ckpt-tmp").write_text("dead")
    Path(".other.safetensors.0123abcd.ckpt-tmp").write_text("someone else's")
    os.mkdir(".folder.0123abcd.ckpt-tmp")
    Path(".folder.0123abcd.ckpt-tmp/x").write_text("dead")
    with open(".out.safetensors.4567abcd.ckpt-tmp", "w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        write()
        write("folder")
        assert names() == [
            ".other.safetensors.0123abcd.ckpt-tmp", ".out.safetensors.4567abcd.ckpt-tmp", "dst.yaml", "folder",
            "out.safetensors", "src.pth",
        ]  # fmt: skip


def started(output: str, *more: str) -> Forked:
    """Begin to write, and wait for a signal when the first bytes are there."""

    def work() -> int:
        real = staged_file.StagedFile.write

        def slow(file: staged_file.StagedFile, offset: int, data: Any) -> None:
            real(file, offset, data)
            open("writing", "w").close()
            signal.pause()

        staged_file.StagedFile.write = slow  # type: ignore[method-assign]
        return as_ckpt("transplant", "src.pth", "dst.yaml", "-o", output, *more)

    process = Forked(work)
    process.wait_until(lambda: os.path.exists("writing"))
    os.unlink("writing")
    return process


@pytest.mark.costly
@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_cleans_up_and_says_so(output: str, number: signal.Signals, code: int) -> None:
    process = started(output)
    process.send_signal(number)
    assert process.ended() == code
    assert "no incomplete file was left" in process.err
    assert "Traceback" not in process.err
    assert names() == INPUTS


@pytest.mark.costly
@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_a_killed_run_leaves_one_temp_that_the_next_removes(output: str) -> None:
    write(output)
    before = cs.open_checkpoint(output).recipe
    process = started(output, "--force")
    process.kill()
    left = [name for name in names() if name.endswith(".ckpt-tmp")]
    assert len(left) == 1
    assert cs.open_checkpoint(output).recipe == before
    assert cs.verify(output).ok
    write(output, force=True)
    assert not [name for name in names() if name.endswith(".ckpt-tmp")]


def test_killed_at_any_moment_there_is_the_old_or_the_new_whole() -> None:
    write()
    generator = random.Random(0)
    for turn in range(8):
        process = Forked(
            partial(as_ckpt, "transplant", "src.pth", "dst.yaml", "-o", "out.safetensors", "--force", "--seed", turn)
        )
        process.wait(generator.uniform(0, 0.1))
        process.kill()
        assert cs.verify("out.safetensors").ok
    write(force=True)
    assert names() == ["dst.yaml", "out.safetensors", "src.pth"]


@pytest.mark.long
def test_a_file_size_limit_is_an_error_and_leaves_nothing() -> None:
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "sys.dont_write_bytecode = True\n"  # Python writes a part of it, and later cannot import the module
        "from ckptsurgeon.cli import main\nsys.exit(main(['transplant', 'src.pth', 'dst.yaml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert "larger than is allowed" in done.stderr
    assert names() == INPUTS


@pytest.mark.long
def test_two_writers_of_one_output_leave_one_whole_result() -> None:
    for force in ([], ["--force"]):
        work = partial(as_ckpt, "transplant", "src.pth", "dst.yaml", "-o", "out.safetensors", *force)
        ends = [(one.ended(), one.err) for one in [Forked(work), Forked(work)]]
        codes = sorted(code for code, _ in ends)
        assert codes in ([[0, 5], [0, 0]] if force else [[0, 5]]), ends
        assert cs.verify("out.safetensors").ok
        assert names() == ["dst.yaml", "out.safetensors", "src.pth"]


# Folders.


def shard_names(folder: str = "m") -> list[str]:
    return [name for name in names(folder) if name.endswith((".safetensors", ".json", ".bin"))]


def test_a_folder_with_a_configuration_alone_is_not_said_to_hold_a_checkpoint() -> None:
    for folder in ("from", "to"):
        os.mkdir(folder)
        Path(folder, "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": A}, "from/model.safetensors")
    plan = cs.convert("from")
    with pytest.raises(cs.OutputError, match=r"to has files that the output would replace: config\.json\.") as caught:
        cs.apply(plan, "to")
    assert caught.value.hint == "Use --force to replace these files."
    cs.apply(plan, "to", force=True)
    with pytest.raises(cs.OutputError, match="to holds a checkpoint: "):
        cs.apply(plan, "to")


def test_a_rewrite_with_other_shards_leaves_nothing_stale_and_nothing_foreign_goes() -> None:
    os.mkdir("m")
    Path("m/tokenizer.json").write_text("{}")
    os.mkdir("m/sub")
    Path("m/sub/note.txt").write_text("mine")
    inode = os.stat("m/tokenizer.json").st_ino
    write("m", max_shard_size="4500B")
    assert shard_names() == [
        "ckptsurgeon.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    with pytest.raises(cs.OutputError, match="m holds a checkpoint"):
        write("m")
    write("m", force=True)
    assert shard_names() == ["ckptsurgeon.json", "model.safetensors", "tokenizer.json"]
    write("m", max_shard_size="4500B", force=True)
    assert "model.safetensors" not in shard_names()
    assert Path("m/sub/note.txt").read_text() == "mine"
    assert os.stat("m/tokenizer.json").st_ino == inode
    assert cs.verify("m").ok
    index = json.loads(Path("m/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4000 + 4000 + 40


def test_what_only_an_old_index_listed_goes() -> None:
    write("m", max_shard_size="4500B")
    os.rename("m/model-00001-of-00002.safetensors", "m/odd-name.safetensors")
    text = Path("m/model.safetensors.index.json").read_text().replace("model-00001-of-00002", "odd-name")
    Path("m/model.safetensors.index.json").write_text(text)
    write("m", force=True)
    assert shard_names() == ["ckptsurgeon.json", "model.safetensors"]


def test_a_link_to_a_folder_stays_a_link() -> None:
    os.mkdir("real")
    os.symlink("real", "m")
    write("m")
    assert os.path.islink("m")
    assert cs.verify("real").ok


def test_where_folders_cannot_be_swapped_the_old_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    write("m")
    before = shard_names()

    def cannot(temp: str, path: str) -> None:
        raise cs.OutputError("cannot replace the folder atomically on this file system.")

    monkeypatch.setattr(folder_exchange, "_exchange", cannot)
    with pytest.raises(cs.OutputError, match="atomically"):
        write("m", force=True, max_shard_size="4500B")
    assert shard_names() == before
    assert cs.verify("m").ok
    assert names() == ["dst.yaml", "m", "src.pth"]


def test_a_file_where_a_folder_should_be_and_the_other_way_round() -> None:
    Path("file.safetensors").write_text("x")
    with pytest.raises(cs.OutputError, match="is a file"):
        write("file.safetensors", force=True, max_shard_size="1GB")
    os.mkdir("folder.safetensors")
    write("folder.safetensors")
    assert shard_names("folder.safetensors") == ["ckptsurgeon.json", "model.safetensors"]


def test_small_texts_are_written_by_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(cs.OutputError, match="no space left"):
        cs.init_config("src.pth", output="new.yaml")
    assert names() == INPUTS
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.init_config("src.pth", output="src.pth", force=True)


# What else was read, what else is there.


def test_a_plan_a_map_file_and_the_model_s_code_are_inputs_too() -> None:
    Path("ours.py").write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    Path("code.yaml").write_text("model: {_target_: ours.Net, in_features: 2, out_features: 3}")
    torch.save({"weight": torch.ones(3, 2), "b": torch.ones(3)}, "lin.pth")
    Path("rules.map").write_text("b=bias\n")
    plan = cs.transplant("lin.pth", "code.yaml", map_file="rules.map")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    for made, output in ((plan, "rules.map"), (plan, "ours.py"), ("plan.json", "plan.json"), ("plan.json", "ours.py")):
        before = Path(output).read_bytes()
        with pytest.raises(cs.OutputError, match="is an input"):
            cs.apply(made, output, to="pth", force=True)  # type: ignore[arg-type]
        assert Path(output).read_bytes() == before
    cs.apply(plan, "out.safetensors")


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4500B"}], ids=["single", "shards"])
def test_a_folder_never_holds_an_old_checkpoint_of_another_format(options: dict[str, str]) -> None:
    write("m", **options)
    torch.save({"a": A * 100, "b": A.half()}, "src.pth")
    with pytest.raises(cs.OutputError, match="m holds a checkpoint"):
        write("m", to="pth", **options)
    write("m", to="pth", force=True, **options)
    assert not [name for name in names("m") if name.endswith(("safetensors", "safetensors.index.json"))]
    with cs.open_checkpoint("m") as found:
        assert torch.equal(found.tensor("a"), A * 100)
    assert cs.verify("m").ok


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_of_whatever_kind_is_replaced(text: str) -> None:
    os.mkdir("m")
    Path("m/model.safetensors.index.json").write_text(text)
    write("m", force=True)
    assert names("m") == ["ckptsurgeon.json", "model.safetensors"]


def test_what_only_looks_like_a_leftover_stays() -> None:
    Path(".out.safetensors.notes.ckpt-tmp.txt").write_text("mine")
    os.mkdir(".out.safetensors.keep.ckpt-tmp-archive")
    write()
    assert Path(".out.safetensors.notes.ckpt-tmp.txt").exists()
    assert Path(".out.safetensors.keep.ckpt-tmp-archive").is_dir()


def test_a_name_as_long_as_a_name_may_be_is_written() -> None:
    name = "n" * 240 + ".safetensors"
    write(name)
    assert cs.verify(name).ok
    assert names() == ["dst.yaml", name, "src.pth"]


def test_a_folder_keeps_its_mode() -> None:
    write("m")
    os.chmod("m", 0o700)
    write("m", force=True)
    assert os.stat("m").st_mode & 0o777 == 0o700


def test_a_temp_folder_that_another_run_removes_at_once_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, removed = os.mkdir, list[str]()

    def mkdir(path: str, *args: int) -> None:
        real(path, *args)
        if not removed:
            removed.append(path)
            os.rmdir(path)

    monkeypatch.setattr(folders.os, "mkdir", mkdir)
    write("m")
    assert removed
    assert cs.verify("m").ok


def test_a_file_that_ends_up_shorter_than_it_should_is_not_put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    real = staged_file.StagedFile.flush

    def flush(self: staged_file.StagedFile, size: int) -> None:
        with self.descriptor() as fd:
            os.ftruncate(fd, size - 1)
        real(self, size)

    monkeypatch.setattr(staged_file.StagedFile, "flush", flush)
    with pytest.raises(cs.OutputError, match="bytes, although"):
        write()
    assert names() == INPUTS


def test_a_source_written_to_since_the_plan_is_refused() -> None:
    save_file({"a": A, "b": A.half()}, "s.safetensors")
    plan = cs.transplant("s.safetensors", "dst.yaml")
    save_file({"a": A + 1, "b": A.half()}, "t.safetensors")
    with open("s.safetensors", "r+b") as file:
        file.write(Path("t.safetensors").read_bytes())
    os.utime("s.safetensors", ns=(5, 5))
    with pytest.raises(cs.PlanError, match="s.safetensors has changed since its header was read") as caught:
        cs.apply(plan, "out.safetensors")
    assert caught.value.exit_code == 4
    assert "out.safetensors" not in names()


def test_a_source_written_to_while_it_is_copied_is_refused() -> None:
    plan = cs.transplant("src.pth", "dst.yaml")
    with pytest.raises(cs.PlanError, match="src.pth has changed since its header was read. Run the command again;"):
        cs.apply(plan, "out.safetensors", progress=lambda done, total: os.utime("src.pth", ns=(5, 5)))
    assert names() == INPUTS


def test_two_sources_whose_bytes_meet_in_the_output_are_kept_apart() -> None:
    torch.save({"a": A}, "one.pth")
    torch.save({"b": A + 5}, "two.pth")
    declare("two.yaml", {"a": (1000,), "b": (1000,)})
    cs.apply(cs.transplant(["one.pth", "two.pth"], "two.yaml"), "out.safetensors")
    found = load_file("out.safetensors")
    assert torch.equal(found["a"], A)
    assert torch.equal(found["b"], A + 5)


def test_a_tensor_copied_by_two_threads_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_bytes, "CHUNK", 512)
    monkeypatch.setattr(copy_bytes, "BATCH", 2)
    write()
    assert torch.equal(load_file("out.safetensors")["a"], A)
    assert cs.verify("out.safetensors").ok


def test_what_is_written_into_a_folder_while_it_is_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between linking over what is there and the swap, somebody writes into the old folder."""
    torch.save({"w": torch.ones(2)}, "s.pth")
    os.makedirs("m/logs")
    Path("m/logs/before.txt").write_text("before")
    exchange = folder_exchange._exchange

    def late(temp: str, path: str) -> None:
        for name in ("late.txt", "logs/late.txt"):
            Path(path, name).write_text("late")
        os.makedirs(f"{path}/new/deep")
        Path(path, "new/deep/late.txt").write_text("late")
        exchange(temp, path)

    monkeypatch.setattr(folder_exchange, "_exchange", late)
    for _ in range(2):
        for name in ("late.txt", "logs/late.txt", "new/deep/late.txt"):
            Path("m", name).unlink(missing_ok=True)
        if os.path.isdir("m/new"):
            os.removedirs("m/new/deep")
        cs.apply(cs.convert("s.pth"), "m", force=True)
        found = sorted(str(path.relative_to("m")) for path in Path("m").rglob("*") if path.is_file())
        assert found == [
            "ckptsurgeon.json", "late.txt", "logs/before.txt", "logs/late.txt", "model.safetensors", "new/deep/late.txt",
        ]  # fmt: skip


@pytest.mark.parametrize("output", [".", "..", "../"])
def test_the_folder_one_stands_in_is_not_replaced(output: str, monkeypatch: pytest.MonkeyPatch, ckpt: Any) -> None:
    torch.save({"w": torch.ones(2)}, "s.pth")
    os.makedirs("a/b")
    monkeypatch.chdir("a/b")
    done = ckpt("convert", "../../s.pth", "-o", output, "--force")
    assert (done.code, "the working directory is inside" in done.err) == (5, True), done
    assert not os.listdir(".")


def test_files_that_an_index_merely_names_are_kept() -> None:
    torch.save({"a": torch.ones(2)}, "src.pth")
    folder = Path("ix")
    folder.mkdir()
    listed = ["train.py", "config.json", "old.safetensors"]
    for name in listed:
        (folder / name).write_text("mine")
    index = {"weight_map": {str(i): name for i, name in enumerate(listed)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    cs.apply(cs.convert("src.pth"), "ix", force=True)
    assert (folder / "train.py").read_text() == (folder / "config.json").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {
        "train.py", "config.json", "ckptsurgeon.json", "model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("output", ["http://127.0.0.1:9/o.safetensors", "simplecache::memory://o.safetensors"])
def test_an_address_that_is_only_read_is_no_place_for_an_output(output: str) -> None:
    with pytest.raises(cs.OutputError, match="only read"):
        write(output)


def test_only_checkpoints_are_written_to_addresses() -> None:
    with pytest.raises(cs.OutputError, match="this output cannot be written to an address"):
        cs.view("src.pth", output="memory://page.html")


@pytest.mark.parametrize(
    ("large", "said"),
    [
        (["a"], "1 tensor is larger (4.0 kB), and so is its file, because a tensor is never divided: a"),
        (
            ["a", "b"],
            "2 tensors are larger (up to 4.0 kB), and so are their files, because a tensor is never divided: a, b",
        ),
        ([], ""),
    ],
)
def test_a_tensor_that_is_larger_than_a_shard_is_said(large: list[str], said: str) -> None:
    save_file({key: torch.zeros(1000 if key in large else 10) for key in "abcd"}, "in.safetensors")
    found = cs.apply(cs.convert("in.safetensors"), "out/", max_shard_size="1KB").notes
    assert found == ((f"--max-shard-size 1KB: {said}",) if said else ())
