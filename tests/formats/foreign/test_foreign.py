"""What is not read says what it is and what to do, by its content: one generated file of each kind."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.unsupported.files import HEAD, foreign, in_tar, in_zip


def zipped(*names: str, deflated: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as made:
        for name in names:
            made.writestr(name, save({"a": torch.ones(2)}) if name.endswith(".safetensors") else b"x" * 40)
    return out.getvalue()


def tarred(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") or name == "." else tarfile.REGTYPE
            info.size = 0 if info.type == tarfile.DIRTYPE else 600
            made.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


def hdf5(at: int) -> bytes:
    return b"text".ljust(at) + b"\x89HDF\r\n\x1a\n" + b"\0" * 200


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
S3 = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message>'
    b"<RequestId>1</RequestId></Error>"
)
PIPELINE = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0"}
NEMO = ("./model_config.yaml", "./model_weights.ckpt")
ANEW = "Fetch it again, from the address of the file itself."

FILES: dict[str, tuple[str, bytes | Callable[[], bytes], str, str]] = {
    "nemo in xz": (
        "x.nemo", lzma.compress(tarred(*NEMO)),
        "a NeMo model, a tar archive compressed with xz", "use its model_weights.ckpt: tar xf x.nemo",
    ),
    "tar": ("x.tar", tarred("readme", "net/a.pth"), "a tar archive that contains net/a.pth", "tar xf x.tar net/a.pth"),
    "ggml": ("model.bin", b"tjgg\3\0\0\0" + bytes(64), "a GGML file of llama.cpp", "Use the .pth"),
    "core ml": ("x.mlmodel", b"\x08\x04\x12\xb4\x01\x0a\x10\x0a\x05image" + bytes(200), "a Core ML model", "converted"),
    "saved model": (
        "saved_model.pb", b"\x08\x01\x12\xb4\x8a\x01\x0a\x90\x01\x0a\x05" + bytes(200),
        "the graph of a TensorFlow SavedModel", "variables/variables",
    ),
    "tflite": ("x.tflite", b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite model", "TensorFlow checkpoint"),
    "list of tensorflow": (
        "checkpoint", b'model_checkpoint_path: "model-5"\n', "the list of checkpoints of a TensorFlow run (checkpoint), without weights", "Pass the folder",
    ),
    "executorch": ("x.pte", b"\x1c\0\0\0ET12" + bytes(40), "an ExecuTorch program", "exported from"),
    "tensorrt": ("x.engine", b"ftrt\xe8\0\0\0" + bytes(40), "a TensorRT engine, compiled for one GPU", "built from"),
    "hdf5 sent as text": ("x.pth", b"\x89HDF\n\x1a\n" + bytes(200), "an HDF5 file whose bytes were changed, as by a transfer in text mode", ANEW),
    "hdf5 behind a user block": ("x.h5", hdf5(512), "an HDF5 file after other data (a user block)", "h5unjam -i x.h5 -o new.h5"),
    "hdf5 behind a larger one": ("x.h5", hdf5(2048), "an HDF5 file after other data", "h5unjam -i x.h5"),
    "keras": (
        "x.keras", zipped("metadata.json", "config.json", "model.weights.h5", deflated=True),
        "a compressed Keras model, a zip archive", "Unpack model.weights.h5, and use it",
    ),
    "zip of safetensors": (
        "x.zip", zipped("net/", "net/model.safetensors", deflated=True),
        "a zip archive that contains net/model.safetensors", "unzip x.zip net/model.safetensors",
    ),
    "zip of shards": (
        "x.zip", zipped("net/model-00001-of-00002.safetensors", "net/model-00002-of-00002.safetensors", deflated=True),
        "a zip archive that contains net/model-00001-of-00002.safetensors",
        "Unpack it, and use the checkpoint inside: unzip x.zip",
    ),
    "zip of zoo files": ("x.zip", zipped("data", "policy.pth", deflated=True), "a zip archive that contains policy.pth", "policy.pth"),
    "torchserve": (
        "x.mar", zipped("MAR-INF/MANIFEST.json", "w.pt", deflated=True),
        "a model archive of TorchServe", "unzip x.mar w.pt",
    ),
    "s3 error": ("x.pth", S3, "an error message of a storage server (AccessDenied: Access Denied)", ANEW),
    "openvino": ("x.xml", b'<?xml version="1.0"?>\n<net name="m" version="11">', "an OpenVINO model", "converted from"),
    "json error": (
        "model.safetensors", b'{"error":"Repository not found"}',
        "the answer of a server: Repository not found", ANEW,
    ),
    "json error in an index": (
        "model.safetensors.index.json", b'{"error":{"code":401,"message":"Sign in."}}',
        "the answer of a server: Sign in", ANEW,
    ),
    "configuration": ("config.json", b'{"model_type": "bert"}', "the configuration of a model", "Pass the folder"),
    "adapter's configuration": ("a.json", b'{"peft_type": "LORA"}', "the configuration of an adapter", "the folder"),
    "other json": ("x.pth", b"[1, 2]", "a JSON file", "fetch it again"),
    "long json": ("x.pth", b"[" + b"1, " * HEAD + b"2]", "a JSON file", "fetch it again"),
    "web page": (
        "x.pth", b"\n<!DOCTYPE html>\n<html><head><title>Sign in &amp; go</title>", "a web page (Sign in & go)", ANEW,
    ),
    "lfs": ("x.pth", LFS, "a Git LFS pointer, not the file itself", "git lfs pull"),
    "plain answer": ("x.pth", b"Entry not found", "a text file that begins: Entry not found", "fetch it again"),
    "plain sentence": ("x.pth", b"Sign in.\n", "a text file that begins: Sign in.", "Give the file with the weights."),
    "gzip": ("x.pth.gz", gzip.compress(b"PK"), "compressed with gzip", "gunzip x.pth.gz"),
    "gzip without its suffix": (
        "x.pth", gzip.compress(b"PK"), "compressed with gzip", "unpacked file: gunzip -c x.pth > unpacked",
    ),
    "tar.gz": ("x.tgz", gzip.compress(tarred("a")), "a tar archive compressed with gzip", "tar xf x.tgz"),
    "bzip2": ("x.pth", bz2.compress(b"PK"), "compressed with bzip2", "bunzip2 x.pth"),
    "tar.bz2": ("a b.tar.bz2", bz2.compress(b"PK"), "a tar archive compressed with bzip2", "tar xf 'a b.tar.bz2'"),
    "xz": ("x.xz", lzma.compress(b"PK"), "compressed with xz", "unxz x.xz"),
    "zstd": ("x.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd", "unzstd x.zst"),
    "lz4": ("x.lz4", b"\x04\x22\x4d\x18" + bytes(20), "compressed with lz4", "unlz4 x.lz4"),
    "7z": ("x.7z", b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive", "7z x x.7z"),
    "rar": ("x.rar", b"Rar!\x1a\x07\x01\0" + bytes(20), "a rar archive", "unrar x x.rar"),
    "pickle": ("x.pkl", pickle.dumps({"a": 1}), "a pickle that torch did not write", "ckpt scan x.pkl shows"),
    "old pickle": ("x.pkl", pickle.dumps({"a": 1}, 0), "a pickle that torch did not write", "ckpt scan x.pkl shows"),
    "zeros": ("x.pth", bytes(9000), "a file that begins with zeros", "Fetch it again."),
    "parquet": ("x.bin", b"PAR1" + bytes(20), "a Parquet table", "Pass a checkpoint."),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_says_what_it_is_and_what_to_do(kind: str) -> None:
    name, data, what, advice = FILES[kind]
    Path(name).write_bytes(data() if callable(data) else data)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint(name)
    assert caught.value.message.startswith(f"{name} is not a checkpoint that ckpt can read: it is {what}")
    assert caught.value.message.endswith(".")
    assert advice in caught.value.hint
    assert bool(advice) == bool(caught.value.hint)


@pytest.mark.parametrize("kind", ["nemo in xz", "json error in an index", "keras", "lfs"])
@pytest.mark.parametrize("verb", [["inspect"], ["convert", "-o", "y.pth"], ["view", "-o", "y.html"], ["diff", "x.pth"]])
def test_every_verb_says_so_and_ends_with_3(kind: str, verb: list[str], ckpt: Any) -> None:
    torch.save({"a": torch.ones(1)}, "x.pth")
    name, data, what, advice = FILES[kind]
    name = f"other-{name}"
    Path(name).write_bytes(data() if callable(data) else data)
    done = ckpt(*verb, name)
    said = " ".join(done.err.split())
    assert done.code == 3, said
    assert f"it is {what}" in said
    assert advice.replace(FILES[kind][0], name) in said


def test_advice_names_the_file_where_it_lies() -> None:
    os.mkdir("deep er")
    Path("deep er/x.tar").write_bytes(tarred("readme", "net/a.pth"))
    Path("deep er/x.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name, advice in (("x.tar", "tar xf 'deep er/x.tar' net/a.pth"), ("x.pkl", "ckpt scan 'deep er/x.pkl' shows")):
        with pytest.raises(cs.FormatError) as caught:
            cs.open_checkpoint(f"deep er/{name}")
        assert advice in caught.value.hint


def test_nothing_is_said_of_what_cannot_be_told() -> None:
    chance = bytes(range(256)) * 40
    assert foreign(chance[3:], "x.pth", len(chance)) is None
    Path("x.pth").write_bytes(chance[3:])
    with pytest.raises(cs.FormatError, match=r"^x\.pth is not a checkpoint\.$"):
        cs.open_checkpoint("x.pth")
    assert in_zip(["a.txt"], "x.zip") is None
    assert in_tar(["a.txt"], "x.tar") is None


@pytest.mark.parametrize("names", [["data.pkl", "data/0"], ["archive/data.pkl", "archive_format", "x.pth"]])
def test_an_archive_of_torch_s_keeps_the_message_of_its_reader(names: list[str]) -> None:
    assert in_zip(names, "x.pth") is None
    Path("x.pth").write_bytes(zipped(*names))
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.pth")
    assert "it is" not in caught.value.message


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    evil = "\x1b[31m\u202e"
    Path("x.pth").write_bytes(b'{"error": "' + evil.encode() + b" " + b"long " * 200 + b'"}')
    Path("x.zip").write_bytes(zipped(f"{evil}$(touch pwned).pth", deflated=True))
    Path("x.tar").write_bytes(tarred(f"{evil}; rm x.pth"))
    Path("y.pth").write_bytes(f"<error><code>{evil}</code>".encode())
    for name in ("x.pth", "x.zip", "x.tar", "y.pth"):
        with pytest.raises(cs.FormatError) as caught:
            cs.open_checkpoint(name)
        assert str(caught.value).isprintable()
        assert len(caught.value.message) < 300
    with pytest.raises(cs.FormatError, match=r"unzip x\.zip '"):
        cs.open_checkpoint("x.zip")


def pipeline(folder: str, components: dict[str, str], extra: dict[str, Any] | None = None) -> None:
    """A folder as diffusers writes one; components without a file have a configuration alone."""
    index: dict[str, Any] = {**PIPELINE, **{name: ["diffusers", "X"] for name in components}, **(extra or {})}
    os.makedirs(folder)
    Path(folder, "model_index.json").write_text(json.dumps(index))
    for name, weights in components.items():
        os.makedirs(f"{folder}/{name}")
        Path(folder, name, "config.json").write_text("{}")
        if weights:
            save_file({"a": torch.ones(2)}, f"{folder}/{name}/{weights}")


COMPONENTS = {
    "scheduler": "",
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model-00001-of-00002.safetensors",
}


@pytest.mark.parametrize("verb", [["inspect"], ["convert", "-o", "y.pth"], ["view", "-o", "x.html"]])
def test_a_diffusers_pipeline_says_where_its_weights_are(verb: list[str], ckpt: Any) -> None:
    pipeline("sd", COMPONENTS, {"safety_checker": [None, None]})
    done = ckpt(*verb, "sd/")
    said = " ".join(done.err.split())
    assert done.code == 3
    assert "sd/ is not a checkpoint that ckpt can read: it is a diffusers pipeline (StableDiffusionPipeline)" in said
    assert "; its weights are in text_encoder, unet, vae." in said
    assert "ckpt inspect sd/unet" in said
    assert ckpt("inspect", "sd/unet").code == 0


def test_a_pipeline_at_an_address_says_so_too(hub: Any) -> None:
    pipeline("sd", COMPONENTS)
    files = {str(path.relative_to("sd")): path.read_bytes() for path in Path("sd").rglob("*") if path.is_file()}
    repository = hub.repository("org/sd", files)
    with pytest.raises(cs.FormatError, match=r"its weights are in text_encoder, unet, vae\.") as caught:
        cs.open_checkpoint("hf://org/sd")
    assert f"ckpt inspect hf://org/sd@{repository.main}/unet" in caught.value.hint
    assert len(hub.requests) < 14  # the index is read to see whether the components are one model, and for the error


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "a diffusers pipeline; its weights are in transformer"),
        ('{"_class_name": ["x"], "transformer": 5}', "a diffusers pipeline; its weights are in transformer"),
        ('{"../../etc": ["a", "b"], "_class_name": "\\u001b[31m"}', "a diffusers pipeline (\\x1b[31m); its weights"),
        ('{"scheduler": ["a", "b"]}', "a diffusers pipeline without weights"),
    ],
)
def test_an_index_of_a_pipeline_may_hold_anything(index: str, said: str) -> None:
    pipeline("sd", {"scheduler": "", "transformer": "diffusion_pytorch_model.safetensors"})
    Path("sd/model_index.json").write_text(index)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("sd")
    assert said in caught.value.message


def test_a_pipeline_with_a_checkpoint_of_its_own_is_read_and_said() -> None:
    pipeline("sd", COMPONENTS)
    save_file({"a": torch.ones(2)}, "sd/v1-5-pruned.safetensors")
    with cs.open_checkpoint("sd") as found:
        assert any("is also a diffusers pipeline (model_index.json)" in note for note in found.notes)


FOLDERS: dict[str, tuple[list[str], str, str]] = {
    "saved model": (
        ["saved_model.pb", "variables/variables.index"], "a SavedModel of TensorFlow", "ckpt inspect m/variables/variables",
    ),
    "core ml": (["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"], "a Core ML model", "converted from"),
    "lightning": (
        ["hparams.yaml", "metrics.csv", "checkpoints/epoch=1.ckpt"],
        "a run of Lightning with checkpoints in its subfolders: checkpoints", "ckpt inspect m/checkpoints",
    ),
    "trainer": (
        ["README.md", "checkpoint-10/model.safetensors", "checkpoint-20/model.safetensors", "logs/x"],
        "a folder with checkpoints in its subfolders: checkpoint-10, checkpoint-20", "ckpt inspect m/checkpoint-10",
    ),
    "others": (
        ["config.json", "model.tflite", "x.pte"], "a folder with model.tflite, x.pte", "ckpt inspect m/model.tflite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_says_what_it_is_and_what_to_do(kind: str) -> None:
    names, what, advice = FOLDERS[kind]
    for name in names:
        path = Path("m", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("m")
    assert caught.value.message == f"m is not a checkpoint that ckpt can read: it is {what}."
    assert advice in caught.value.hint
    assert caught.value.rule == "no checkpoint"


@pytest.mark.parametrize(
    ("tag", "said", "hint"),
    [
        ("run/3", "a folder whose latest says run/3", "Pass that folder: ckpt inspect m/run/3"),
        ("lost", "", ""),
        ("../m/run/3", "", ""),
    ],
)
def test_a_tag_of_deepspeed_that_is_a_folder_further_inside_is_said(tag: str, said: str, hint: str) -> None:
    os.makedirs("m/run/3")
    Path("m/run/3/mp_rank_00_model_states.pt").touch()
    Path("m/latest").write_text(tag)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("m")
    message = f"m is not a checkpoint that ckpt can read: it is {said}." if said else "m contains no checkpoint."
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_large_size_in_a_header_of_a_tar_archive_ends_the_look() -> None:
    data = bytearray(tarred("a", "model_config.yaml"))
    data[124:136] = b"77777777777\0"
    total = sum(data[:148]) + sum(data[156:512]) + 8 * 32
    data[148:156] = b"%06o\0 " % total
    Path("x.tar").write_bytes(data)
    with pytest.raises(cs.FormatError, match="truncated"):
        cs.open_checkpoint("x.tar")


def test_what_begins_like_safetensors_is_told_by_its_reader() -> None:
    Path("x.safetensors").write_bytes(struct.pack("<Q", 5) + b"{....")
    with pytest.raises(cs.FormatError, match="is not a valid safetensors file"):
        cs.open_checkpoint("x.safetensors")
