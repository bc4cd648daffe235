"""Files of other toolkits: joblib, Keras, TorchServe, NeMo, TensorFlow, ONNX, GGUF, and what is packed in what."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ...helpers.hdf5_files import GOLDEN as HDF5_FILES
from .hostile import CANARY, as_torch_zip, payload

Run = Callable[..., Any]
GOLDEN = Path(__file__).parents[3] / "fixtures/golden/scan"
"""Written by ``fixtures/record_scan.py``."""


def names(found: cs.Scan) -> set[str]:
    return {f"{use.module}.{use.name}" for one in found.found for use in one.uses if use.verdict is cs.Verdict.CODE}


def as_zip(**records: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return out.getvalue()


def as_tar(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


# joblib, cloudpickle, dill and the pickles of other libraries.


@pytest.mark.parametrize("name", ["plain", "behind", "before", "objects"])
def test_a_file_of_joblib_is_decoded_to_its_first_array_and_this_is_said(name: str, ckpt: Run) -> None:
    shutil.copy(GOLDEN / f"{name}.joblib", "x.joblib")
    done = ckpt("scan", "x.joblib")
    assert done.code == 1
    assert "joblib stores arrays between the instructions" in " ".join(done.out.split())
    found = cs.scan("x.joblib")
    assert not found.whole
    assert found.found[0].format == "joblib"
    assert "joblib.numpy_pickle.NumpyArrayWrapper" in names(found)
    assert ("posix.system" in names(found)) is (name in ("before", "objects"))


@pytest.mark.parametrize("packing", ["zlib", "gzip", "bz2", "lzma", "xz"])
def test_what_joblib_compressed_is_unpacked(packing: str) -> None:
    shutil.copy(GOLDEN / f"before.{packing}.joblib", "x.joblib")
    assert {"posix.system", "joblib.numpy_pickle.NumpyArrayWrapper"} <= names(cs.scan("x.joblib"))


def test_what_is_compressed_as_we_cannot_unpack_is_said(ckpt: Run) -> None:
    shutil.copy(GOLDEN / "before.lz4.joblib", "x.joblib")
    done = ckpt("scan", "x.joblib")
    assert done.code == 1
    assert "ckpt cannot unpack lz4: unpack it, and scan the result" in done.out


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
        lambda data: lzma.compress(
            data, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "lc": 0, "lp": 2, "pb": 1, "dict_size": 4096}]
        ),
        lambda data: zlib.compress(data, wbits=9),
        lambda data: bz2.compress(data, 1),
        gzip.compress,
    ],
    ids=["lzma", "lzma of a small window", "lzma of other settings", "zlib of a small window", "bzip2", "gzip"],
)
def test_packings_are_known_by_more_than_their_usual_settings(pack: Callable[[bytes], bytes]) -> None:
    Path("x.bin").write_bytes(pack(payload()))
    assert cs.scan("x.bin").verdict is cs.Verdict.CODE


@pytest.mark.parametrize(
    ("name", "said"),
    [("cloudpickle", "cloudpickle.cloudpickle._make_function"), ("dill", "dill._dill._create_function")],
)
def test_pickled_functions_are_unknown_code(name: str, said: str) -> None:
    shutil.copy(GOLDEN / f"function.{name}", "x.pkl")
    assert said in names(cs.scan("x.pkl"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sklearn.ensemble._forest", "RandomForestClassifier"),
        ("xgboost.core", "Booster"),
        ("lightgbm.basic", "Booster"),
        ("argparse", "Namespace"),
    ],
)
def test_models_of_other_libraries_are_unknown_code_by_their_names(module: str, name: str) -> None:
    Path("x.pkl").write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")\x81}X\1\0\0\0aK\1sb.")
    assert names(cs.scan("x.pkl")) == {f"{module}.{name}"}


# Keras.


def layers(*many: dict[str, Any]) -> bytes:
    """What Keras writes of a model."""
    config = {"name": "m", "layers": [{"registered_name": None, "build_config": {}, **one} for one in many]}
    return json.dumps(
        {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}
    ).encode()


DENSE: dict[str, Any] = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {
        "units": 3,
        "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}},
        "kernel_initializer": {"module": "keras.initializers", "class_name": "GlorotUniform", "config": {"seed": None}},
    },
}
HARMLESS = {
    "Keras 3": layers(DENSE),
    "Keras 2": b'{"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"units": 3}}]}}',
}
CODE = {
    "Lambda": layers(DENSE, {"module": "keras.layers", "class_name": "Lambda", "config": {}}),
    "Lambda of Keras 2": b'{"class_name": "Sequential", "config": [{"class_name" : "Lambda", "config": {}}]}',
    "Lambda by its number": layers({"class_name": "Lambda", "config": {}}).replace(b"Lambda", b"\\u004cambda"),
    "key by its number": layers({"class_name": "Lambda", "config": {}}).replace(b"class_name", b"cl\\u0061ss_name"),
    "Lambda said first": b'{"class_name": "Lambda", "class_name": "Dense", "config": {}}',
    "Lambda said last": b'{"class_name": "Dense", "class_name": "Lambda", "config": {}}',
    "registered Lambda": layers({"class_name": "Custom>Lambda", "config": {}}),
    "compiled function": layers({"class_name": "__lambda__", "config": {"value": "4wA="}}),
    "operation": layers({"class_name": "TFOpLambda", "config": {"function": "math.add"}}),
    "wrapped torch module": layers({"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}}),
    "any function": layers({"module": "os", "class_name": "function", "config": "system"}),
    "any class": layers({"module": "subprocess", "class_name": "Popen", "config": {"args": ["true"]}}),
    "a known name of another module": layers({"module": "evil", "class_name": "Dense", "config": {}}),
    "not at the top": layers({**DENSE, "config": {"layer": {"module": "evil", "class_name": "Dense", "config": {}}}}),
}


def as_hdf5(config: bytes) -> bytes:
    """What a scan sees of HDF5: its mark, and the name and value of an attribute, which HDF5 does not compress."""
    return b"\x89HDF\r\n\x1a\n" + b"\0" * 5000 + b"model_config\0" + b"\0" * 99 + config + b"\0" * 5000


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("where", ["x.keras", "x.h5", "x.json"])
def test_what_keras_would_import_beyond_its_own_layers_is_unknown_code(where: str, name: str, ckpt: Run) -> None:
    made = {"x.keras": as_zip(**{"config.json": CODE[name]}), "x.h5": as_hdf5(CODE[name]), "x.json": CODE[name]}
    Path(where).write_bytes(made[where])
    done = ckpt("scan", where)
    assert (done.code, "UNKNOWN CODE" in done.out) == (1, True), done


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("where", ["x.keras", "x.h5", "x.json"])
def test_the_layers_of_keras_itself_are_no_code(where: str, name: str, ckpt: Run) -> None:
    config = HARMLESS[name]
    made = {"x.keras": as_zip(**{"config.json": config}), "x.h5": as_hdf5(config), "x.json": config}
    Path(where).write_bytes(made[where])
    assert ckpt("scan", where).code == 0


def test_a_keras_model_whose_layers_are_not_found_is_not_judged(ckpt: Run) -> None:
    Path("x.h5").write_bytes(as_hdf5(zlib.compress(CODE["Lambda"])))
    done = ckpt("scan", "x.h5")
    assert (done.code, "UNREADABLE" in done.out) == (1, True), done


def test_a_class_across_two_reads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.analysis.scan.content import keras

    monkeypatch.setattr(keras, "_STEP", 1000)
    for before in range(900, 1000, 9):
        Path("x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * before + CODE["Lambda"])
        assert cs.scan("x.h5").verdict is cs.Verdict.CODE


@pytest.mark.parametrize(
    "name", ["outside_link_earliest.h5", "outside_link_latest.h5", "outside_data.h5", "few_v108.h5"]
)
def test_hdf5_that_leads_to_other_files_is_noted(name: str) -> None:
    found = cs.scan(str(HDF5_FILES / name))
    assert found.ok
    assert any("refers to other files" in note for one in found.found for note in one.notes) is name.startswith(
        "outside"
    )


# Archives of models.


@pytest.mark.parametrize(
    "made",
    [
        as_zip(**{"MAR-INF/MANIFEST.json": b"{}", "handler.py": b"import os\n", "model.pt": b"x"}),
        as_tar(**{"model_config.yaml": b"a: 1\n", "model_weights.ckpt": as_torch_zip(payload())}),
        as_tar(**{"1/saved_model.pb": b"\x08\x01\x12\x00"}),
        as_zip(**{"model/saved_model.pb": b"\x08\x01\x12\x00"}),
        as_zip(**{"a.tar": as_tar(**{"b.zip": as_zip(**{"c.bin": payload()})})}),
        gzip.compress(as_tar(**{"lib.so": b"\x7fELF" + b"\0" * 60})),
    ],
    ids=["mar", "nemo", "TensorFlow in tar", "TensorFlow in zip", "zip in tar in zip", "library"],
)
def test_code_in_archives_of_models_is_found(made: bytes, ckpt: Run) -> None:
    Path("x.bin").write_bytes(made)
    done = ckpt("scan", "x.bin")
    assert (done.code, "UNKNOWN CODE" in done.out) == (1, True), done
    assert not Path(CANARY).exists()


def test_weights_in_a_nemo_file_are_tensor_rebuilding_and_its_class_is_named() -> None:
    weights = as_torch_zip(pickle.dumps({"a": 1}))
    Path("x.nemo").write_bytes(
        as_tar(**{"./model_config.yaml": b"target: nemo.asr.Model\nx: 1\n", "./model_weights.ckpt": weights})
    )
    found = cs.scan("x.nemo")
    assert found.ok
    assert any("nemo.asr.Model" in note for one in found.found for note in one.notes)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"GGUF\3\0\0\0" + b"\0" * 60, "GGUF"),
        (b"lmgg\x99\xca\0\0" + b"\0" * 60, "GGML"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x80\x01\x0a\x04", "ONNX"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "HDF5"),
    ],
)
def test_formats_without_code_are_named(head: bytes, said: str) -> None:
    Path("model.pkl").write_bytes(head)
    found = cs.scan("model.pkl")
    assert (found.ok, found.found[0].format) == (True, said)
    assert "not decoded" in found.found[0].notes[0]
