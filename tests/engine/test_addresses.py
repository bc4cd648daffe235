"""Outputs at addresses: the bytes of a local output, and until all of them are there, what was there before."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.apply import output_formats
from ckptsurgeon.engine import staged_output
from ckptsurgeon.storage.upload import file_systems
from ckptsurgeon.storage.upload.scratch import UploadedFolder, scratch_path
from ckptsurgeon.storage.write.output_paths import output_lock

from ..conftest import Result
from ..helpers.addresses import Place, disk_place, hub_place, memory_place, s3_place
from ..helpers.hub.server import Hub
from .sharded import SHARD, VERBS, files, write_sources

KINDS = ("memory", "disk", "s3", "hub")
pytestmark = [
    pytest.mark.costly,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of huggingface_hub's own uploads
]

OTHER = {".gitattributes": b"*.safetensors filter=lfs\n"}
"""What the repository of a hub has from the beginning."""


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "s3":
        with s3_place(monkeypatch) as found:
            yield found
    elif request.param == "hub":
        yield hub_place(request.getfixturevalue("hub"))
    else:
        yield memory_place() if request.param == "memory" else disk_place(tmp_path)


@pytest.fixture
def memory() -> Place:
    return memory_place()


def convert(dtype: str = "float64") -> cs.Plan:
    return cs.convert("a.safetensors", dtype=dtype)


def written(place: Place) -> dict[str, bytes]:
    return {name: data for name, data in place.files().items() if OTHER.get(name) != data}


def check_clean(place: Place) -> None:
    """Nothing is left of an upload, neither there nor here."""
    assert not [name for name in place.files() if "ckpt-upload" in name]
    assert not place.pending()
    assert not os.listdir("scratch")


# The bytes.


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["convert", "merge", "transplant"])
def test_shards_are_those_of_a_local_output(place: Place, verb: str) -> None:
    cs.apply(VERBS[verb](), "local", max_shard_size=SHARD)
    receipt = cs.apply(VERBS[verb](), place.uri, max_shard_size=SHARD)
    assert written(place) == files("local")
    assert receipt.output == place.uri
    assert receipt.nbytes_written == sum(map(len, files("local").values()))
    check_clean(place)


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["convert", "merge", "transplant"])
def test_a_single_file_is_that_of_a_local_output(place: Place, verb: str) -> None:
    cs.apply(VERBS[verb](), "local.safetensors")
    cs.apply(VERBS[verb](), f"{place.uri}/local.safetensors")
    assert written(place) == {"local.safetensors": Path("local.safetensors").read_bytes()}
    check_clean(place)


@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_writes_to_an_address(memory: Place, verb: str) -> None:
    cs.apply(VERBS[verb](), "local", max_shard_size=SHARD)
    cs.apply(VERBS[verb](), memory.uri, max_shard_size=SHARD)
    assert memory.files() == files("local")


@pytest.mark.costly
@pytest.mark.parametrize("to", sorted({*output_formats()} - {"diffusers"}))  # fills a folder that is there
def test_every_format_is_written_to_an_address(memory: Place, to: str) -> None:
    suffix = {"flax": ".msgpack", "gguf": ".gguf", "hdf5": ".h5", "npz": ".npz", "pth": ".pth"}.get(to, "")
    more = {"ranks": 2} if to in ("fsdp", "tp") else {}
    cs.apply(cs.convert("a.safetensors"), f"local{suffix}", to=to, **more)
    cs.apply(cs.convert("a.safetensors"), f"{memory.uri}/far{suffix}", to=to, **more)
    found = {name.removeprefix("far/"): data for name, data in memory.files().items()}
    assert found == ({f"far{suffix}": Path(f"local{suffix}").read_bytes()} if suffix else files("local"))


@pytest.mark.long
@pytest.mark.costly
def test_the_files_of_a_model_folder_go_along(place: Place) -> None:
    cs.apply(cs.convert("a.safetensors"), "tuned", max_shard_size=SHARD)
    Path("tuned/config.json").write_text('{"model_type": "none"}')
    Path("tuned/tokenizer.json").write_text("{}")
    cs.apply(cs.convert("tuned", dtype="float64"), "local", max_shard_size=SHARD)
    cs.apply(cs.convert("tuned", dtype="float64"), place.uri, max_shard_size=SHARD)
    assert written(place) == files("local")
    assert {"config.json", "tokenizer.json"} <= place.files().keys()


def test_this_machine_needs_room_for_one_part(memory: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, seen = UploadedFolder._upload, []

    def look(folder: UploadedFolder, name: str) -> None:
        seen.append(sum(os.stat(one.path).st_blocks > 0 for one in os.scandir(folder.path)))
        upload(folder, name)

    monkeypatch.setattr(UploadedFolder, "_upload", look)
    cs.apply(convert(), memory.uri, max_shard_size=SHARD)
    assert seen[:5] == [1] * 5


@pytest.mark.costly
@pytest.mark.parametrize("name", ["", "/x.safetensors"])
def test_progress_counts_what_is_written_and_what_is_sent(memory: Place, name: str) -> None:
    told: list[tuple[int, int]] = []
    cs.apply(convert(), memory.uri + name, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][1] >= told[-1][0] > 2 * 5 * 300 * 1000 * 8


# What was there before.


def test_a_checkpoint_there_is_refused_without_force(place: Place) -> None:
    cs.apply(cs.convert("a.safetensors"), place.uri)
    before = place.files()
    with pytest.raises(
        cs.OutputError, match=r"holds a checkpoint: .*model\.safetensors.*force=True to replace the files"
    ):
        cs.apply(convert(), place.uri, max_shard_size=SHARD)
    with pytest.raises(cs.OutputError, match="exists. Use force=True"):
        cs.apply(convert(), f"{place.uri}/model.safetensors")
    assert place.files() == before
    check_clean(place)


def test_a_configuration_alone_there_is_not_said_to_be_a_checkpoint(memory: Place) -> None:
    os.mkdir("from")
    shutil.copy("a.safetensors", "from/model.safetensors")
    Path("from/config.json").write_text('{"model_type": "llama"}')
    memory.fill({"config.json": b"{}"})
    with pytest.raises(cs.OutputError, match=r" has files that the output would replace: config\.json\. "):
        cs.apply(cs.convert("from"), memory.uri)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("old", "new"), [("", SHARD), (SHARD, ""), (SHARD, "3MB"), (SHARD, SHARD)])
def test_force_replaces_the_checkpoint_and_leaves_other_files(place: Place, old: str, new: str) -> None:
    cs.apply(cs.convert("a.safetensors"), place.uri, max_shard_size=old or None)
    place.fill({"notes.txt": b"mine"})
    cs.apply(convert(), place.uri, max_shard_size=new or None, force=True)
    cs.apply(convert(), "local", max_shard_size=new or None)
    assert written(place) == files("local") | {"notes.txt": b"mine"}
    assert cs.verify(place.uri).ok
    check_clean(place)


@pytest.mark.costly
def test_force_replaces_a_single_file(place: Place) -> None:
    cs.apply(cs.convert("a.safetensors"), f"{place.uri}/x.safetensors")
    cs.apply(convert(), f"{place.uri}/x.safetensors", force=True)
    cs.apply(convert(), "local.safetensors")
    assert place.files()["x.safetensors"] == Path("local.safetensors").read_bytes()
    check_clean(place)


@pytest.mark.costly
def test_files_of_the_earlier_model_go_if_they_are_as_they_were_written(place: Place) -> None:
    cs.apply(cs.convert("a.safetensors"), "tuned", max_shard_size=SHARD)
    for name in ("config.json", "vocab.json", "merges.txt"):
        Path("tuned", name).write_text('{"model_type": "none"}')
    cs.apply(cs.convert("tuned"), place.uri)
    place.fill({"vocab.json": b"{}"})
    receipt = cs.apply(convert(), place.uri, force=True)
    assert {"config.json", "merges.txt", "vocab.json"} & place.files().keys() == {"vocab.json"}
    assert any(
        "files of the earlier output that are kept, because they were changed since: vocab.json" in one
        for one in receipt.notes
    )


@pytest.mark.costly
def test_a_failure_leaves_what_was_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cs.apply(cs.convert("a.safetensors"), place.uri, max_shard_size=SHARD)
    before, frame, done = place.files(), staged_output.write_frame, []

    def fail(run: object) -> None:
        done.append(run)
        if len(done) == 3:
            raise cs.SourceError("the source is gone.")
        frame(run)  # type: ignore[arg-type]

    monkeypatch.setattr(staged_output, "write_frame", fail)
    with pytest.raises(cs.SourceError, match="the source is gone"):
        cs.apply(convert(), place.uri, max_shard_size=SHARD, force=True)
    assert place.files() == before
    check_clean(place)


def test_what_a_killed_run_left_goes_with_the_next_run(tmp_path: Path) -> None:
    place = disk_place(tmp_path)
    place.fill({".ckpt-upload/model-00001-of-00005.safetensors": b"part", ".ckpt-upload/.moved": b"ckpt"})
    with pytest.raises(cs.CheckpointError):
        cs.open_checkpoint(place.uri)
    Path(f"{scratch_path(place.uri).replace('ckpt-', '.ckpt-')}.0123abcd.ckpt-tmp").mkdir()
    cs.apply(convert(), place.uri, max_shard_size=SHARD)
    assert cs.verify(place.uri).ok
    check_clean(place)


def test_an_upload_of_another_size_is_an_error_before_the_index_appears(
    memory: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, calls = file_systems.MovedUploads.put, []

    def cut(self: file_systems.MovedUploads, path: str, *given: object) -> int:
        calls.append(path)
        return send(self, path, *given) + (len(calls) == 2)  # type: ignore[arg-type]

    monkeypatch.setattr(file_systems.MovedUploads, "put", cut)
    with pytest.raises(cs.OutputError, match=r"has \d+ bytes there, although \d+ were sent"):
        cs.apply(convert(), memory.uri, max_shard_size=SHARD)
    assert "model.safetensors.index.json" not in memory.files()
    assert "ckptsurgeon.json" not in memory.files()


# The command line.


@pytest.mark.costly
@pytest.mark.parametrize("name", ["", "/out.safetensors"])
def test_what_is_printed_names_the_address_and_the_next_step_works(
    place: Place, name: str, ckpt: Callable[..., Result]
) -> None:
    done = ckpt("convert", "a.safetensors", "--dtype", "bf16", "-o", place.uri + name)
    assert done.code == 0, done.err
    assert f"wrote{place.uri}{name}" in "".join(done.out.split())
    assert done.out.splitlines()[-1].strip() == f"next: ckpt verify {place.uri}{name}"
    assert ckpt("verify", place.uri + name).code == 0
    again = ckpt("convert", "a.safetensors", "-o", place.uri + name, "--json")
    assert (again.code, again.out) == (5, "")
    assert json.loads(again.err)["message"].startswith(place.uri)
    told = ckpt("convert", "a.safetensors", "-o", place.uri + name, "--json", "--force")
    assert json.loads(told.out)["output"] == place.uri + name


def test_a_damaged_output_fails_to_verify(memory: Place, ckpt: Callable[..., Result]) -> None:
    cs.apply(convert(), memory.uri)
    data = memory.files()["model.safetensors"]
    memory.fill({"model.safetensors": data[:-1] + bytes([data[-1] ^ 1])})
    assert ckpt("verify", memory.uri).code == 1


def test_a_dry_run_asks_nobody(place: Place, ckpt: Callable[..., Result]) -> None:
    before, asked = place.files(), place.asked()
    assert ckpt("convert", "a.safetensors", "-o", place.uri, "-n").code == 0
    assert ckpt("convert", "a.safetensors", "-o", f"{place.uri}/x.safetensors", "-n", "--json").code == 0
    assert place.asked() == asked
    assert place.files() == before


def test_a_recipe_names_an_address(memory: Place, ckpt: Callable[..., Result]) -> None:
    Path("recipe.yaml").write_text(f"verb: convert\nsource: a.safetensors\noutput: {memory.uri}\n")
    done = ckpt("apply", "recipe.yaml")
    assert done.code == 0, done.err
    assert "model.safetensors" in memory.files()


# What an address does not support, and what it must not be.


def test_options_that_an_address_does_not_support_say_why(memory: Place, ckpt: Callable[..., Result]) -> None:
    cs_key = Path("key.pem")
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as keys
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    cs_key.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, keys.NoEncryption())
    )
    for options, why in (
        (["--restart"], "no finished parts are kept there"),
        (["--key", cs_key], "a signature is made from all files"),
    ):
        done = ckpt("convert", "a.safetensors", "-o", memory.uri, *options)
        assert done.code == 2
        assert why in done.err
    assert not memory.files()


def test_an_input_is_never_replaced(memory: Place) -> None:
    memory.fill({"x.safetensors": Path("a.safetensors").read_bytes()})
    for output in (memory.uri, f"{memory.uri}/", f"{memory.uri}/x.safetensors"):
        with pytest.raises(cs.OutputError, match="x.safetensors is an input, and inputs are never changed"):
            cs.apply(cs.convert(f"{memory.uri}/x.safetensors", dtype="float64"), output, force=True)


def test_a_file_is_no_folder_and_a_folder_no_file(memory: Place) -> None:
    memory.fill({"x": b"file", "y.safetensors/z": b"in a folder"})
    with pytest.raises(cs.OutputError, match="is a file, not a folder"):
        cs.apply(convert(), f"{memory.uri}/x", max_shard_size=SHARD)
    with pytest.raises(cs.OutputError, match="is a folder, not a file"):
        cs.apply(convert(), f"{memory.uri}/y.safetensors")


def test_one_run_at_a_time_on_this_machine(memory: Place) -> None:
    with (
        output_lock(scratch_path(memory.uri)),
        pytest.raises(cs.OutputError, match=f"{memory.uri} is being written by"),
    ):
        cs.apply(convert(), memory.uri)


def test_a_file_system_without_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(
        known_implementations,
        "nowhere",
        {"class": "no_such_package.Far", "err": "Install no_such_package"},
    )
    with pytest.raises(cs.ConfigError, match=r"nowhere://b/x: .* need a package .*Install no_such_package"):
        cs.apply(convert(), "nowhere://b/x")


def test_secrets_of_an_address_are_not_told(memory: Place) -> None:
    receipt = cs.apply(convert(), "memory://me:hunter2@bucket/model")
    assert "hunter2" not in repr(receipt) + receipt.output
    with pytest.raises(cs.OutputError) as error:
        cs.apply(convert(), "memory://me:hunter2@bucket/model")
    assert "hunter2" not in str(error.value)


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_to_be_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(cs.OutputError, match="HF_HUB_OFFLINE is set"):
        cs.apply(convert(), "hf://org/model")
    assert not hub.requests


@pytest.mark.costly
@pytest.mark.parametrize("place", ["memory", "disk", "s3"], indirect=True)
def test_uploads_that_another_machine_took_for_left_overs_change_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cs.apply(convert("float32"), place.uri, max_shard_size=SHARD)
    before, publish = place.files(), file_systems.FsspecDestination.publish

    def late(destination: file_systems.FsspecDestination, names: Sequence[str], removed: Collection[str]) -> None:
        other = file_systems.FsspecDestination(place.uri)
        other.begin([])
        other.discard()
        publish(destination, names, removed)

    monkeypatch.setattr(file_systems.FsspecDestination, "publish", late)
    with pytest.raises(cs.OutputError, match=r"are no longer there.*: .*\. No existing file has changed"):
        cs.apply(convert("float64"), place.uri, max_shard_size="10MB", force=True)
    assert place.files() == before


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_an_address_of_this_machine_never_replaces_an_input(scheme: str, tmp_path: Path) -> None:
    cs.apply(convert("float32"), "model", max_shard_size=SHARD)
    os.symlink("model", "link")
    before = files("model")
    for name in ("model", "link"):
        with pytest.raises(cs.OutputError, match="is an input, and inputs are never changed"):
            cs.apply(cs.filter("model", exclude="layers.0.*"), f"{scheme}://{tmp_path}/{name}", force=True)
    with pytest.raises(cs.OutputError, match="is an input, and inputs are never changed"):
        cs.apply(cs.filter("a.safetensors", exclude="layers.0.*"), f"{scheme}://{tmp_path}/a.safetensors", force=True)
    assert files("model") == before
