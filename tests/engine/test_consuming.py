"""``consume``: shards of the sources are deleted as soon as what came of them is on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import staged_output
from ckptsurgeon.engine.consuming import SourceConsumer
from ckptsurgeon.engine.one_output_part import PartRun
from ckptsurgeon.storage.read.local import ConsumedFile, LocalFile
from ckptsurgeon.storage.write import folders, shard_deletion
from ckptsurgeon.storage.write.journal import JOURNAL
from ckptsurgeon.storage.write.shard_deletion import consume

from .sharded import SHARD, VERBS, files, write_sources

INDEX = "model.safetensors.index.json"


class Interrupted(BaseException):
    """What a signal raises."""


@pytest.fixture(autouse=True)
def source() -> None:
    """A folder ``src`` of five shards, and ``whole``, a copy of it."""
    write_sources()
    cs.apply(cs.convert("a.safetensors"), "src", max_shard_size=SHARD)
    Path("src/ckptsurgeon.json").unlink()
    shutil.copytree("src", "whole")


def plan(folder: str = "src") -> cs.Plan:
    return cs.convert(folder, dtype="float64")


def write(plan: cs.Plan, output: str = "out", **options: Any) -> cs.Receipt:
    return cs.apply(plan, output, max_shard_size=SHARD, **options)


def on_disk() -> int:
    """The bytes that all files of the source and of outputs under way take on disk."""
    names = [name for name in os.listdir() if name in ("src", "out") or ".ckpt-tmp" in name]
    return sum(path.stat().st_blocks * 512 for name in names for path in Path(name).rglob("*") if path.is_file())


@pytest.fixture
def after_each(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Call a function after each part of an output that is finished, with the number of finished parts."""

    finished = staged_output.StagedOutput.finished

    def watch(look: Callable[[int], None]) -> None:
        done: list[PartRun] = []

        def watched(output: staged_output.StagedOutput, run: PartRun) -> None:
            finished(output, run)
            done.append(run)
            look(len(done))

        monkeypatch.setattr(staged_output.StagedOutput, "finished", watched)

    return watch


@pytest.mark.long
def test_the_output_is_the_same_and_the_sources_are_gone() -> None:
    write(plan("whole"), "wanted")
    receipt = write(plan(), consume=True)
    assert files("out").keys() == files("wanted").keys()
    same = [name for name, data in files("wanted").items() if files("out")[name] == data]
    assert set(files("wanted")) - set(same) <= {"ckptsurgeon.json"}  # which names the source
    assert os.listdir("src") == []
    assert receipt.notes[-1] == "consumed 5 files of the sources (6.0 MB)"


def test_the_disk_never_holds_more_than_the_larger_of_both_and_a_part(after_each: Any) -> None:
    seen: list[int] = []
    after_each(lambda number: seen.append(on_disk()))
    model, part = on_disk(), 1_300_000
    cs.apply(cs.rename("src", map=["layers=blocks"]), "out", max_shard_size=SHARD, consume=True)
    assert len(seen) == 5
    assert max(seen) < model + part


def test_a_shard_stays_until_every_part_of_it_is_finished(after_each: Any) -> None:
    left: list[set[str]] = []
    after_each(lambda number: left.append({name for name in os.listdir("src") if name.endswith("rs")}))
    write(plan(), consume=True)
    assert [len(one) for one in left] == [4, 3, 2, 1, 1]  # the last one stays until the output is in its place


def begun(after_each: Any, parts: int = 2, error: BaseException | None = None, **options: Any) -> list[str]:
    """Begin an output, and fail when so many parts are finished; return the names in the source's folder."""
    seen: list[int] = []

    def stop(number: int) -> None:
        seen.append(number)
        if len(seen) == parts:
            raise error or Interrupted

    after_each(stop)
    with pytest.raises(type(error or Interrupted())):
        write(plan(), consume=True, **options)
    return sorted(os.listdir("src"))


def weights(folder: str) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name.startswith("model")}


@pytest.mark.long
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_an_interrupted_run_goes_on_with_what_is_left(parts: int, after_each: Any) -> None:
    write(plan("whole"), "wanted")
    names = begun(after_each, parts)
    assert not Path("out").exists()
    assert len([name for name in names if name.endswith(".consumed")]) == parts
    receipt = write(plan(), consume=True)
    assert receipt.notes[0].startswith(f"continued an interrupted run: {parts} of 5 parts")
    assert weights("out") == weights("wanted")
    assert os.listdir("src") == []


def test_a_consumed_shard_is_not_renamed_in_place(after_each: Any) -> None:
    begun(after_each)
    with pytest.raises(cs.PlanError, match="was deleted by an interrupted run with consume=True") as caught:
        cs.apply_in_place(cs.rename("src", map=["layers=blocks"]))
    assert "Run the interrupted command again" in str(caught.value.hint)


@pytest.mark.costly
@pytest.mark.parametrize("call", ["rename", "unlink", "ftruncate", "pwrite"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_run_that_stops_within_the_deletion_of_a_shard_goes_on(call: str, is_done: bool, monkeypatch: Any) -> None:
    write(plan("whole"), "wanted")
    ours, shards = shard_deletion._leave, list[str]()
    with monkeypatch.context() as patched:

        def leave(fd: int, path: str, shard: Any) -> None:
            shards.append(path)
            if len(shards) == 2:
                before = getattr(os, call)

                def stopped(*given: Any) -> None:
                    patched.setattr(os, call, before)
                    if is_done:
                        before(*given)
                    raise Interrupted

                patched.setattr(os, call, stopped)
            ours(fd, path, shard)

        patched.setattr(shard_deletion, "_leave", leave)
        with pytest.raises(Interrupted):
            write(plan(), consume=True)
    write(plan(), consume=True)
    assert weights("out") == weights("wanted")
    assert os.listdir("src") == []


SEVERAL: dict[str, Callable[[str, str], cs.Plan]] = {
    "average": lambda a, b: cs.average([a, b]),
    "merge": lambda a, b: cs.merge([a, b], method="linear", weights=[0.5, 0.5]),
    "ties": lambda a, b: cs.merge([a, b], method="ties", base="a.safetensors"),
    "lora merge": lambda a, b: cs.lora_merge(a, "adapter"),
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", SEVERAL)
def test_verbs_with_several_sources_go_on_too(verb: str, after_each: Any) -> None:
    cs.apply(cs.convert("b.safetensors"), "src2", max_shard_size=SHARD)
    shutil.copytree("src2", "whole2")
    write(SEVERAL[verb]("whole", "whole2"), "wanted")
    after_each(lambda number: stop() if number == 2 else None)
    with pytest.raises(Interrupted):
        write(SEVERAL[verb]("src", "src2"), consume=True)
    assert [name for name in os.listdir("src") if name.endswith(".consumed")]
    after_each(lambda number: None)
    write(SEVERAL[verb]("src", "src2"), consume=True)
    assert weights("out") == weights("wanted")


def stop() -> None:
    raise Interrupted


def test_what_is_left_of_the_sources_of_a_whole_output_says_so(monkeypatch: Any) -> None:
    def stopped(*given: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(SourceConsumer, "finish", stopped)
        with pytest.raises(Interrupted):
            write(plan(), consume=True)
    report = cs.verify("out")
    assert report.ok
    assert report.not_compared
    with pytest.raises(cs.OutputError, match="is already complete: an earlier run with consume=True wrote it"):
        write(plan(), consume=True, force=True)
    assert cs.verify("out").ok


def test_an_older_output_is_not_called_complete(after_each: Any) -> None:
    """The parts of an interrupted run with --force were lost: the older output has other values than the sources."""
    write(cs.convert("whole", dtype="float16"))
    begun(after_each, 2, force=True)
    (parts,) = (name for name in os.listdir() if ".ckpt-tmp" in name)
    shutil.rmtree(parts)
    with pytest.raises(cs.PlanError, match="has deleted the source files of their values: src/model-00001"):
        write(plan(), consume=True, force=True)


def test_an_error_of_the_plan_does_not_remove_what_is_the_only_copy(after_each: Any) -> None:
    begun(after_each, 2, cs.PlanError("a plan that does not fit."))
    assert len([name for name in os.listdir() if ".ckpt-tmp" in name]) == 1
    write(plan(), consume=True)
    write(plan("whole"), "wanted")
    assert weights("out") == weights("wanted")


def test_no_other_command_removes_what_is_the_only_copy(after_each: Any) -> None:
    begun(after_each)
    left = sorted(os.listdir())
    ways: list[tuple[str, dict[str, bool]]] = [
        ("whole", {}), ("whole", {"restart": True}), ("src", {}), ("src", {"consume": True, "restart": True}),
    ]  # fmt: skip
    for folder, options in ways:
        with pytest.raises(cs.OutputError, match="the only copy"):
            write(plan(folder), **options)
    assert sorted(os.listdir()) == left


def restore() -> None:
    """Put the sources back as from a backup, with other times."""
    shutil.rmtree("src")
    shutil.copytree("whole", "src", copy_function=shutil.copyfile)


@pytest.mark.costly
@pytest.mark.parametrize("consume", [True, False])
def test_restart_keeps_the_parts_though_all_sources_were_put_back(consume: bool, after_each: Any) -> None:
    """Files of the same names, sizes and headers may have other values, so the parts may be the only copy of theirs."""
    begun(after_each)
    after_each(lambda number: None)
    restore()
    (temp,) = (name for name in os.listdir() if ".ckpt-tmp" in name)
    with pytest.raises(cs.OutputError, match="its sources have changed since then: src") as caught:
        write(plan(), consume=consume)
    assert "Finish that command" not in caught.value.hint
    with pytest.raises(cs.OutputError, match=f"{temp}, and restart=True does not remove them") as caught:
        write(plan(), consume=consume, restart=True)
    assert "the only copy of their values" in caught.value.hint
    assert "If all its sources are whole again" in caught.value.hint
    shutil.rmtree(temp)
    write(plan("whole"), "wanted")
    receipt = write(plan(), consume=consume)
    assert not any("continued" in note for note in receipt.notes)
    assert weights("out") == weights("wanted")


def test_restart_keeps_the_parts_of_sources_that_are_not_whole(after_each: Any) -> None:
    names = begun(after_each)
    after_each(lambda number: None)
    shard = next(name for name in names if name.endswith(".consumed")).removesuffix(".consumed")
    with pytest.raises(cs.OutputError, match="restart=True does not remove them") as caught:
        write(plan(), consume=True, restart=True)
    assert caught.value.hint.startswith("Finish that command, without --restart. These parts may be the only copy")
    shutil.copyfile(f"whole/{shard}", f"src/{shard}")  # one of two
    for restart in (False, True):
        with pytest.raises(cs.OutputError, match="the only copy of their values") as caught:
            write(plan(), consume=True, restart=restart)
        assert "Finish that command" not in caught.value.hint


def test_the_same_command_goes_on_if_a_backup_kept_the_times(after_each: Any) -> None:
    begun(after_each)
    after_each(lambda number: None)
    shutil.rmtree("src")
    shutil.copytree("whole", "src")
    assert write(plan(), consume=True).notes[0].startswith("continued an interrupted run: 2 of 5 parts")
    assert not any(name.startswith(".ckpt") for name in os.listdir("out"))


def test_a_source_that_changed_during_the_run_can_be_put_back(after_each: Any) -> None:
    last = "src/model-00005-of-00005.safetensors"

    def cut(number: int) -> None:
        if number == 3:
            os.truncate(last, 100)
            raise cs.SourceError(f"{last} ended.")

    after_each(cut)
    with pytest.raises(cs.SourceError) as caught:
        write(plan(), consume=True)
    assert caught.value.hint == (
        "The finished parts are kept (3 of 5 parts), because they may be the only copy of their values. To continue, "
        "put back with the same modification time: src/model-00005-of-00005.safetensors."
    )
    after_each(lambda number: None)
    shutil.copy2(last.replace("src", "whole"), last)
    assert write(plan(), consume=True).notes[0].startswith("continued an interrupted run: 3 of 5 parts")


def test_what_is_left_says_what_it_is(after_each: Any, ckpt: Any) -> None:
    names = begun(after_each)
    shard = next(name for name in names if name.endswith(".consumed")).removesuffix(".consumed")
    (note,) = cs.inspect("src").notes
    assert note.startswith("only the headers of 2 shards are left: a run that writes ")
    for verb in (["inspect", "src", "--stats"], ["convert", "src", "--dtype", "bf16", "-o", "x/"]):
        done = ckpt(*verb)
        assert done.code == 3
        assert f"src/{shard} was consumed by a run that writes" in done.err
        assert "Run the interrupted command again." in done.err
    assert not Path("x").exists()


def test_a_finished_part_that_is_damaged_is_an_error_that_names_what_is_gone(after_each: Any) -> None:
    begun(after_each)
    (temp,) = (name for name in os.listdir() if ".ckpt-tmp" in name)
    part = Path(temp, "model-00001-of-00005.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(
        cs.PlanError,
        match="damaged or cannot be read, and an earlier run with consume=True has deleted the source files of their values: src",
    ):
        write(plan(), consume=True)
    assert [name for name in os.listdir() if ".ckpt-tmp" in name and Path(name, part.name).exists()]


@pytest.mark.costly
@pytest.mark.parametrize("is_done", [False, True])
def test_a_run_that_stops_when_the_output_takes_its_place_goes_on(is_done: bool, monkeypatch: Any) -> None:
    write(plan("whole"), "wanted")
    place = folders.place_folder

    def stopped(*given: Any) -> None:
        monkeypatch.setattr(folders, "place_folder", place)
        if is_done:
            place(*given)
        raise Interrupted

    monkeypatch.setattr(folders, "place_folder", stopped)
    with pytest.raises(Interrupted):
        write(plan(), consume=True)
    if not is_done:
        receipt = write(plan(), consume=True)
        assert receipt.notes[0].startswith("continued an interrupted run: 5 of 5 parts")
    assert weights("out") == weights("wanted")


@pytest.mark.costly
@pytest.mark.parametrize("line", [0, 1])
def test_what_a_run_left_is_not_removed_if_its_journal_is_damaged(line: int, after_each: Any) -> None:
    begun(after_each)
    (temp,) = (name for name in os.listdir() if ".ckpt-tmp" in name)
    lines = Path(temp, JOURNAL).read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"a", b"b", 1)
    Path(temp, JOURNAL).write_bytes(b"".join(lines))
    for options in ({}, {"restart": True}, {"consume": True}):
        with pytest.raises((cs.OutputError, cs.PlanError), match="only copy|was consumed"):
            write(plan("src"), **options)
    assert len([name for name in os.listdir(temp) if name.startswith("model-")]) == 5


def test_an_output_elsewhere_names_the_one_that_has_the_values(after_each: Any) -> None:
    begun(after_each)
    with pytest.raises(
        cs.OutputError,
        match="src/model-00001.* was deleted by an interrupted run with consume=True, which writes .*/out",
    ):
        write(plan(), "elsewhere", consume=True)


def test_an_index_of_other_files_stays() -> None:
    Path("src/other.safetensors.index.json").write_text('{"weight_map": {"a": "other-00001-of-00001.safetensors"}}')
    write(plan(), consume=True)
    assert os.listdir("src") == ["other.safetensors.index.json"]


def test_a_source_may_be_given_twice() -> None:
    write(cs.average(["whole", "whole"]), "wanted")
    write(cs.average(["src", "src"]), consume=True)
    assert weights("out") == weights("wanted")
    assert os.listdir("src") == []


def test_a_tie_is_compared_before_anything_is_deleted() -> None:
    key = "layers.0.weight"
    tensors = load_file("a.safetensors")
    save_file({**tensors, "head.weight": tensors[key].clone()}, "b.safetensors")
    cs.apply(cs.convert("b.safetensors"), "tied", max_shard_size=SHARD)
    rows = "".join(f"    {one}: {{shape: [300, 1000]}}\n" for one in (*tensors, "head.weight"))
    Path("tied.yaml").write_text(f"model:\n  tensors:\n{rows}  tied: [[{key}, head.weight]]\n")
    transplanted = cs.transplant("tied", "tied.yaml")
    assert transplanted.equal
    write(transplanted, consume=True)
    assert torch.equal(load_file("out/model-00001-of-00005.safetensors")[key], tensors[key])


def test_a_small_tensor_across_the_end_of_the_beginning_is_kept_whole() -> None:
    tensors = {f"t{number:02}": torch.full((100,), float(number)) for number in range(20)}
    save_file({**tensors, "z": torch.ones(300, 1000)}, "one.safetensors")
    with cs.open_checkpoint("one.safetensors") as opened:
        infos = dict(opened.items())
    consume(LocalFile("one.safetensors"), "out")
    left = ConsumedFile("one.safetensors", "one.safetensors")
    for key, tensor in tensors.items():
        assert left.read(_place(infos[key]), 400) == tensor.numpy().tobytes()


def test_small_tensors_are_kept_and_no_hole_is_read() -> None:
    tensors = {"big": torch.ones(300, 1000), "small": torch.arange(8.0), "tail": torch.ones(40_000)}
    save_file(tensors, "one.safetensors")
    file = LocalFile("one.safetensors")
    with cs.open_checkpoint("one.safetensors") as opened:
        infos = dict(opened.items())
    consume(file, "out")
    left = ConsumedFile("one.safetensors", "one.safetensors")
    assert left.read(_place(infos["small"]), 32) == tensors["small"].numpy().tobytes()
    for key in ("big", "tail"):
        with pytest.raises(cs.SourceError, match="was consumed"):
            left.read(_place(infos[key]) + infos[key].nbytes - 8, 8)
    assert Path("one.safetensors.consumed").stat().st_blocks * 512 < 100_000


@pytest.mark.parametrize("wrong", [b"", b"x" * 100, b"{}" + (2).to_bytes(8, "little") + b"ckptcons"])
def test_a_file_that_only_has_the_name_is_an_error(wrong: bytes) -> None:
    Path("src/model-00001-of-00005.safetensors").unlink()
    Path("src/model-00001-of-00005.safetensors.consumed").write_bytes(wrong)
    with pytest.raises(cs.FormatError, match="does not describe the shard that consume=True deleted"):
        cs.inspect("src")


def test_what_cannot_be_consumed_is_refused_before_anything_is_written() -> None:
    os.link("src/model-00001-of-00005.safetensors", "elsewhere")
    torch.save({key: torch.ones(300, 1000) for key in "ab"}, "x.pth")
    refused = {
        "has another name": (plan(), "out/"),
        "needs local safetensors files, but x.pth has other files": (cs.convert("x.pth"), "out/"),
        "needs an output of several shards": (plan(), "out.safetensors"),
    }
    for why, (one, output) in refused.items():
        with pytest.raises(cs.OutputError, match=why):
            cs.apply(one, output, consume=True, max_shard_size=None if output.endswith("s") else SHARD)
    with pytest.raises(cs.OutputError, match="Remove its other names, or leave out consume"):
        write(plan(), consume=True)
    os.unlink("src/model-00001-of-00005.safetensors")
    os.symlink(os.path.abspath("elsewhere"), "src/model-00001-of-00005.safetensors")
    with pytest.raises(cs.OutputError, match="Use the folder that has the file itself, or leave out consume"):
        write(plan(), consume=True)
    assert not Path("out").exists()


@pytest.mark.costly
@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"output": "out.npz"}, "Leave out --consume: the format npz does not write shards one after the other."),
        ({"to": "fsdp", "ranks": 2}, "Leave out --consume: the format fsdp does not write shards one after the other."),
        ({}, "Write a folder of shards, with --max-shard-size smaller than the model."),
    ],
)
def test_the_hint_names_shards_only_if_the_format_has_them(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(cs.OutputError, match="needs an output of several shards") as caught:
        cs.apply(plan(), **{"output": "out/", "consume": True, **options})
    assert caught.value.hint == hint


@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_consume(verb: str) -> None:
    if verb == "dequantize":
        cs.apply(cs.convert("int8"), "wanted-int8", max_shard_size=SHARD)
    one = VERBS[verb]()
    receipt = cs.apply(one, "out", max_shard_size=SHARD, consume=True)
    assert receipt.notes[-1].startswith("consumed ")
    assert not any(Path(source.name).exists() for source in one.sources if source.name.endswith(".safetensors"))


def test_it_asks_twice_or_says_that_it_cannot(ckpt: Any) -> None:
    done = ckpt("convert", "src", "-o", "out/", "--max-shard-size", SHARD, "--consume")
    assert done.code == 2
    assert "so nobody can answer. Add --yes" in " ".join(done.err.split())
    assert ckpt("convert", "src", "-o", "out/", "--yes").code == 2
    assert ckpt("convert", "src", "-o", "out/", "--max-shard-size", SHARD, "--consume", "--yes").code == 0
    assert ckpt("verify", "out").code == 0


def _place(info: Any) -> int:
    return info.storage.offset + info.offset
