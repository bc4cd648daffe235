"""Archives with a checkpoint in them, as ESPnet, NeMo and SpeechBrain's users pack models: read in place."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.util.text import human_bytes

STATE = {"encoder.weight": torch.arange(12.0).reshape(3, 4), "ctc.bias": torch.randn(5)}
LANGUAGE_MODEL = {"lm.weight": torch.ones(2)}
META = """
espnet: '202511'
files:
  lm_file: exp/lm/valid.loss.best.pth
  asr_model_file: exp/asr/valid.acc.ave.pth
yaml_files:
  asr_train_config: exp/asr/config.yaml
"""


@pytest.fixture
def model() -> None:
    """The files of a model of ESPnet, one of NeMo's and a folder of SpeechBrain's, in folders of their own."""
    for folder in ("espnet/exp/asr", "espnet/exp/lm", "nemo", "sb/CKPT+one", "hf"):
        os.makedirs(folder)
    Path("espnet/meta.yaml").write_text(META)
    Path("espnet/exp/asr/config.yaml").write_text("encoder: transformer\n")
    torch.save(STATE, "espnet/exp/asr/valid.acc.ave.pth")
    torch.save(LANGUAGE_MODEL, "espnet/exp/lm/valid.loss.best.pth")
    Path("nemo/model_config.yaml").write_text("sample_rate: 16000\n")
    torch.save(STATE, "nemo/model_weights.ckpt")
    torch.save(STATE, "sb/CKPT+one/model.ckpt")
    Path("sb/CKPT+one/CKPT.yaml").write_text("end-of-epoch: true\nunixtime: 1.0\n")
    save_file(STATE, "hf/model.safetensors")
    Path("hf/config.json").write_text('{"model_type": "bert"}')


def zipped(path: str, folder: str, method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(Path(folder).rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def compressed(path: str, folder: str, arcname: str = ".") -> str:
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, arcname)
    return path


def tarred(path: str, folder: str, arcname: str = ".", form: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=form) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname)
    return path


def the_same(path: str, state: Mapping[str, torch.Tensor] = STATE) -> tuple[str, ...]:
    """Check the tensors of a checkpoint; return its notes."""
    with cs.open_checkpoint(path) as found:
        assert sorted(found) == sorted(state)
        assert all(torch.equal(found.tensor(key), value) for key, value in state.items())
        return found.notes


ARCHIVES: dict[str, Callable[[], str]] = {
    "ESPnet's zip": lambda: zipped("asr.zip", "espnet"),
    "ESPnet's tar": lambda: tarred("asr.tar", "espnet"),
    "a .nemo": lambda: tarred("asr.nemo", "nemo"),
    "a tar of GNU": lambda: tarred("asr.nemo", "nemo", form=tarfile.GNU_FORMAT),
    "a tar of POSIX": lambda: tarred("asr.nemo", "nemo", form=tarfile.USTAR_FORMAT),
    "a compressed .nemo": lambda: compressed("asr.nemo", "nemo"),
    "a compressed tar of NeMo's files": lambda: compressed(
        "asr.tar.gz", "nemo/model_weights.ckpt", "model_weights.ckpt"
    ),
    "SpeechBrain's folder": lambda: tarred("save.tar", "sb"),
    "a zip of a folder": lambda: zipped("hf.zip", os.path.dirname(shutil.copytree("hf", "top/hf"))),
    "long names of GNU": lambda: tarred("long.tar", "hf", "a" * 150 + "/" + "b" * 120, tarfile.GNU_FORMAT),
    "long names of pax": lambda: tarred("long.tar", "hf", "ä" * 150 + "/" + "b" * 120),
    "long names of POSIX": lambda: tarred("long.tar", "hf", "a" * 80 + "/" + "b" * 70, tarfile.USTAR_FORMAT),
}


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_a_source(kind: str) -> None:
    path = ARCHIVES[kind]()
    assert any("read from the archive" in note for note in the_same(path))
    assert cs.inspect(path).nbytes_files == os.path.getsize(path)
    cs.apply(cs.convert(path), "out.safetensors")
    cs.verify("out.safetensors").raise_if_failed()
    the_same("out.safetensors")


@pytest.mark.usefixtures("model")
def test_the_files_that_stay_in_the_archive_are_said() -> None:
    (note,) = the_same(tarred("hf.tar", "hf"))
    assert note == "read from the archive: model.safetensors; the archive's other files are not copied: config.json"


@pytest.mark.usefixtures("model")
def test_files_in_other_folders_of_the_archive_and_compressed_files_are_said_too() -> None:
    with zipfile.ZipFile("hf.zip", "w") as made:
        made.write("hf/model.safetensors", "model.safetensors")
        made.write("hf/config.json", "config.json", zipfile.ZIP_DEFLATED)
        made.writestr("assets/vocab.txt", "a")
    (note,) = the_same("hf.zip")
    assert note.endswith("the archive's other files are not copied: assets/vocab.txt, config.json")
    with pytest.raises(cs.FormatError, match=r"hf\.zip has compressed files: config\.json cannot be read from it"):
        cs.open_checkpoint("hf.zip/config.json")


@pytest.mark.usefixtures("model")
def test_a_tar_that_ends_in_the_padding_of_a_file_is_truncated() -> None:
    path = Path(tarred("hf.tar", "hf", "hf", tarfile.USTAR_FORMAT))
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    assert last.size % 512
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size])
    with pytest.raises(cs.FormatError, match=r"hf\.tar: the tar archive is truncated"):
        cs.open_checkpoint("hf.tar")


def test_a_tar_of_a_folder_without_a_checkpoint_is_no_checkpoint_of_torch() -> None:
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("a")
    path = tarred("notes.tar", "notes", "notes")
    with pytest.raises(
        cs.FormatError, match="is a tar archive that contains notes/, not a checkpoint of torch"
    ) as caught:
        cs.open_checkpoint(path)
    assert caught.value.hint == "If it contains a checkpoint, unpack the archive, and use that checkpoint."


@pytest.mark.usefixtures("model")
def test_folders_that_are_nested_too_deeply_are_refused() -> None:
    """Each level of each path was looked at: a thousand paths of 20,000 folders took minutes."""
    the_same(tarred("hf.tar", "hf", "a/" * 63 + "hf"))
    with pytest.raises(cs.UnsafeError, match=r"deep\.tar has folders that are nested more than 64 levels deep"):
        cs.open_checkpoint(tarred("deep.tar", "hf", "a/" * 64 + "hf"))


@pytest.mark.usefixtures("model")
def test_a_member_may_be_named() -> None:
    path = zipped("asr.zip", "espnet")
    the_same(f"{path}/exp/lm/valid.loss.best.pth", LANGUAGE_MODEL)
    plan = cs.transplant(f"{path}/exp/asr/valid.acc.ave.pth", "hf/model.safetensors")
    assert plan.counts["copied"] == 2
    with pytest.raises(cs.FormatError, match=r"asr\.zip does not contain exp/no\.pth"):
        cs.open_checkpoint(f"{path}/exp/no.pth")
    with pytest.raises(cs.SourceError, match="does not exist"):
        cs.open_checkpoint("meta.yaml/x.pth")


@pytest.mark.usefixtures("model")
def test_a_choice_among_several_can_be_taken_from_the_hint() -> None:
    torch.save(LANGUAGE_MODEL, "hf/lm.bin.pth")
    os.rename("hf/model.safetensors", "hf/one.safetensors")
    path = zipped("two.zip", "hf")
    with pytest.raises(cs.FormatError, match="has several checkpoints") as error:
        cs.open_checkpoint(path)
    assert "two.zip/lm.bin.pth" in error.value.hint
    the_same("two.zip/lm.bin.pth", LANGUAGE_MODEL)


@pytest.mark.usefixtures("model")
def test_a_large_nemo_has_a_folder_of_shards() -> None:
    os.remove("nemo/model_weights.ckpt")
    cs.apply(cs.convert("hf/model.safetensors"), "nemo/model_weights", to="dcp")
    os.remove("nemo/model_weights/ckptsurgeon.json")
    the_same(tarred("large.nemo", "nemo"))


@pytest.mark.usefixtures("model")
def test_an_archive_is_an_input_that_is_never_replaced() -> None:
    path = zipped("asr.zip", "espnet")
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.apply(cs.convert(path), path, to="pth", force=True)


@pytest.mark.usefixtures("model")
def test_a_changed_archive_needs_a_new_plan() -> None:
    path = zipped("asr.zip", "espnet")
    plan = cs.convert(path)
    data = Path(path).read_bytes()
    at = data.index(b"transformer")
    Path(path).write_bytes(data[:at] + b"T" + data[at + 1 :])
    with pytest.raises(cs.PlanError, match="has changed since its header was read"):
        cs.apply(plan, "out.pth")


def test_a_part_of_a_checkpoint_of_torch_names_the_checkpoint() -> None:
    torch.save({"w": torch.ones(2)}, "m.pth")
    for part in ("m/data.pkl", "m/data/0"):
        with pytest.raises(cs.FormatError, match=r"m\.pth is one checkpoint of torch: m/data.* Give the path m\.pth"):
            cs.inspect(f"m.pth/{part}")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("pack", [zipped, partial(zipped, method=zipfile.ZIP_DEFLATED), tarred])
def test_a_path_to_a_folder_in_an_archive_is_not_said_to_be_missing(pack: Callable[[str, str], str]) -> None:
    path = pack("asr.pack", "espnet")
    for name in ("exp", "exp/asr/"):
        with pytest.raises(cs.FormatError, match=rf"{name.rstrip('/')} is a folder in the archive asr\.pack"):
            cs.open_checkpoint(f"{path}/{name}")
    with pytest.raises(cs.FormatError, match=r"asr\.pack is a file, not a folder. Give the path asr\.pack\."):
        cs.open_checkpoint(f"{path}/")


@pytest.mark.usefixtures("model")
def test_a_compressed_member_is_to_be_unpacked() -> None:
    path = zipped("asr.zip", "espnet", zipfile.ZIP_DEFLATED)
    with pytest.raises(cs.FormatError, match="it is a zip archive that contains exp/asr") as error:
        cs.open_checkpoint(path)
    assert "unzip asr.zip" in error.value.hint
    with pytest.raises(
        cs.FormatError, match=r"asr\.zip has compressed files: exp/asr/valid\.acc\.ave\.pth cannot be read"
    ):
        cs.open_checkpoint("asr.zip/exp/asr/valid.acc.ave.pth")
    with pytest.raises(cs.FormatError, match=r"the archive asr\.zip does not contain exp/no\.pth"):
        cs.open_checkpoint("asr.zip/exp/no.pth")


@pytest.mark.usefixtures("model")
def test_a_compressed_nemo_may_have_several_members_and_padding_and_says_where_it_is_unpacked() -> None:
    path = Path(tarred("asr.nemo", "nemo"))
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(whole[:3000]) + gzip.compress(whole[3000:]) + bytes(512))
    (note,) = the_same(str(path))
    assert f"unpacked to a temporary file of {human_bytes(len(whole))}" in note
    with pytest.raises(cs.FormatError, match="a tar archive compressed with gzip"):
        cs.open_checkpoint(compressed("hf.tar.gz", "hf"))


@pytest.mark.usefixtures("model")
def test_a_compressed_nemo_that_has_changed_needs_a_new_plan() -> None:
    path = Path(compressed("asr.nemo", "nemo"))
    plan = cs.convert(path)
    Path("nemo/model_config.yaml").write_text("sample_rate: 8000\n")
    compressed("asr.nemo", "nemo")
    with pytest.raises(cs.PlanError, match="has changed since its header was read"):
        cs.apply(plan, "out.pth")


def one_byte_changed(packed: bytes) -> bytes:
    return packed[:-600] + bytes([packed[-600] ^ 1]) + packed[-599:]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda packed: packed[:-600], "is truncated: its compressed data do not end"),
        (lambda packed: packed[:-8] + bytes(8), "is damaged: .*checksum"),
        (one_byte_changed, "is damaged|is truncated"),
        (lambda packed: packed + b"more", "has other bytes after its compressed data"),
    ],
)
def test_a_damaged_compressed_nemo_is_an_error(broken: Callable[[bytes], bytes], said: str) -> None:
    path = Path(compressed("asr.nemo", "nemo"))
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(cs.FormatError, match=said):
        cs.open_checkpoint(path)


@pytest.mark.usefixtures("model")
def test_a_compressed_nemo_that_would_fill_the_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPANSION_FREE", 1 << 20)
    Path("nemo/z").write_bytes(bytes(8 << 20))
    with pytest.raises(cs.UnsafeError, match="unpacks to over 100 times as many bytes"):
        cs.open_checkpoint(compressed("asr.nemo", "nemo"))


def cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:2000])


def twice(path: str) -> None:
    with tarfile.open(path, "a") as archive:
        archive.add("hf/model.safetensors", "./model_weights.ckpt")


def outside(path: str) -> None:
    with tarfile.open(path, "a") as archive:
        archive.add("hf/model.safetensors", "../model.safetensors")


def linked(path: str) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("model_weights.ckpt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


def damaged(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[data.index(b"model_config.yaml")] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "truncated"),
        (twice, "occurs twice"),
        (outside, "leads out of the tar archive"),
        (linked, "x.nemo"),
        (damaged, "does not match its checksum"),
    ],
)
def test_a_broken_tar_is_refused(damage: Callable[[str], None], said: str) -> None:
    tarred("x.nemo", "nemo")
    damage("x.nemo")
    with pytest.raises(cs.FormatError) as error:
        cs.open_checkpoint("x.nemo")
    assert said in error.value.message
    assert "x.nemo" in error.value.message


@pytest.mark.usefixtures("model")
def test_sizes_in_base_256_are_read() -> None:
    """As GNU's tar gives those of members over 8 GiB."""
    data = bytearray(
        Path(tarred("x.tar", "hf/model.safetensors", "model.safetensors", tarfile.GNU_FORMAT)).read_bytes()
    )
    data[124:136] = b"\x80" + os.path.getsize("hf/model.safetensors").to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    Path("x.tar").write_bytes(data)
    the_same("x.tar")


@pytest.mark.usefixtures("model")
def test_an_archive_in_an_archive_is_not_opened() -> None:
    zipped("inner.zip", "hf")
    with zipfile.ZipFile("outer.zip", "w") as archive:
        archive.write("inner.zip", "model.pth")
    with pytest.raises(cs.FormatError, match=r"outer\.zip/model\.pth is not a checkpoint"):
        cs.open_checkpoint("outer.zip")


@pytest.mark.costly
@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("make", [lambda: zipped("asr.zip", "espnet"), lambda: tarred("asr.nemo", "nemo")])
def test_an_archive_at_an_address_is_read_by_ranges(hub: Any, make: Callable[[], str]) -> None:
    for folder in ("espnet", "nemo"):
        Path(folder, "recordings.dat").write_bytes(bytes(12_000_000))
    path = make()
    the_same(hub.file(path, Path(path).read_bytes()))
    assert hub.sent < os.path.getsize(path) // 2
