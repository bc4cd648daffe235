"""CTranslate2's int8 and int16 weights: their values are those that CTranslate2 computes with; AWQ's are copied."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

import ckptsurgeon as cs

from ...helpers.ctranslate2_files import FLOAT32, INT8, INT16, INT32, model, variable

FIXTURES = Path(__file__).parents[3] / "fixtures/golden"
GOLDEN = FIXTURES / "ctranslate2"
NETWORK = FIXTURES / "layouts/whisper.ctranslate2"
CODED = {"int8": "CTranslate2, 8 bits", "int8_float16": "CTranslate2, 8 bits", "int16": "CTranslate2, 16 bits"}
Arrays = dict[str, np.ndarray[Any, Any]]


def decoded(source: Path | str, **options: Any) -> Arrays:
    """The weights of a checkpoint, written and verified."""
    cs.apply(cs.convert(source, dequantize=True, **{"dtype": "float32", **options}), "out.safetensors", force=True)
    assert cs.verify("out.safetensors").ok
    return load_file("out.safetensors")


def stored(source: Path) -> Arrays:
    with cs.open_checkpoint(source) as found:
        return {key: found.tensor(key).numpy() for key in found}


@pytest.mark.costly
@pytest.mark.parametrize("name", CODED)
def test_values_are_codes_times_the_reciprocal_of_their_scale(name: str) -> None:
    """Bit for bit as ``dequantize_kernel`` in CTranslate2's src/ops/dequantize_cpu.cc."""
    parts, made = stored(GOLDEN / name), decoded(GOLDEN / name)
    scales = [key for key in parts if key.endswith("weight_scale")]
    assert len(scales) == 26
    for key in scales:
        weight, scale = key.removesuffix("_scale"), parts[key]
        inverse = (np.float32(1) / scale).reshape(scale.shape + (1,) * (parts[weight].ndim - scale.ndim))
        wanted = parts[weight].astype("<f4") * inverse
        assert made[weight].tobytes() == wanted.tobytes(), weight
        assert made[weight].shape == parts[weight].shape
    assert made.keys() == parts.keys() - {*scales}


@pytest.mark.costly
@pytest.mark.parametrize("name", CODED)
def test_weights_are_those_of_the_network_up_to_rounding(name: str) -> None:
    original, parts, made = (
        load_file(NETWORK / "ctranslate2.safetensors"),
        stored(GOLDEN / name),
        decoded(GOLDEN / name),
    )
    for key, scale in ((key, parts[f"{key}_scale"]) for key in original if f"{key}_scale" in parts):
        error = abs(made[key] - original[key]).max(axis=tuple(range(1, original[key].ndim)))
        assert (error <= 0.501 / scale).all(), key
        assert error.max() > 0


@pytest.mark.costly
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", *CODED])
def test_the_encoder_computes_what_ctranslate2_computes(name: str) -> None:
    """CTranslate2 itself decoded the weights and ran the encoder."""
    import transformers

    recorded = load_tensors(GOLDEN / "encoded.safetensors")
    options = {"dequantize": True} if name in CODED else {}
    cs.apply(cs.convert(GOLDEN / name, layout="transformers", dtype="float32", **options), "model.safetensors")
    network = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig.from_pretrained(NETWORK))
    network.load_state_dict(load_tensors("model.safetensors"), strict=True)
    with torch.no_grad():
        made = network.eval().model.encoder(recorded["features"]).last_hidden_state
    torch.testing.assert_close(made, recorded[name], rtol=1e-5, atol=1e-5)
    others = [one for key, one in recorded.items() if key not in ("features", name, "int8", "int8_float16")]
    assert all(abs(made - one).max() > 1e-4 for one in others)


@pytest.mark.costly
@pytest.mark.parametrize("key", ["encoder/conv2/weight", "decoder/layer_1/ffn/linear_0/weight"])
@pytest.mark.parametrize("name", ["int8", "int16"])
def test_a_part_of_a_weight_is_decoded_alone(name: str, key: str) -> None:
    from ckptsurgeon.api.inputs.operations import operate
    from ckptsurgeon.engine.compute.reading import read_part

    whole = decoded(GOLDEN / name)[key]
    box = ((2, 7), (1, 4), *((0, size) for size in whole.shape[2:]))
    with cs.open_checkpoint(GOLDEN / name) as opened:
        made = operate([opened], [{"dequantize": key}])[0].checkpoint
        assert np.array_equal(read_part(made, made[key], box), whole[2:7, 1:4])


def test_other_dtypes_are_rounded_once() -> None:
    wanted = decoded(GOLDEN / "int8")["encoder/conv1/weight"].astype("<f2")
    assert np.array_equal(decoded(GOLDEN / "int8", dtype="float16")["encoder/conv1/weight"], wanted)


def test_codes_are_no_numbers_to_other_verbs() -> None:
    source = GOLDEN / "int8"
    with pytest.raises(cs.PlanError, match=r"quantised \(CTranslate2, 8 bits\): a cast"):
        cs.convert(source, dtype="float16")
    with pytest.raises(cs.PlanError, match="no encoder writes CTranslate2, 8 bits"):
        cs.average([source, source])
    assert len(cs.average([source, source], encoding="dequantize").steps) == 102 - 26
    with pytest.raises(cs.PlanError, match=r"its parts have no names that fit encoder\.conv1\.weight") as caught:
        cs.rename(source, map=["encoder/conv1/weight=encoder.conv1.weight"])  # there, scales multiply
    assert caught.value.hint == "Give the tensor a name that ends with /weight."
    cs.apply(cs.rename(source, map=["encoder/conv1/weight=first/weight"]), "renamed.safetensors")
    assert np.array_equal(decoded("renamed.safetensors")["first/weight"], decoded(source)["encoder/conv1/weight"])


def written(kind: int, sizes: tuple[int, ...], scale: tuple[float, ...]) -> str:
    """A file of a weight of zeros and ones with these scales."""
    codes = bytes(number % 2 for number in range(int(np.prod(sizes)) * (1 if kind == INT8 else 2)))
    numbers = struct.pack(f"<{len(scale)}f", *scale)
    parts = [
        variable("a/weight", sizes, kind, codes),
        variable("a/weight_scale", (len(scale),), FLOAT32, numbers),
    ]
    Path("x.bin").write_bytes(model(parts))
    return "x.bin"


@pytest.mark.parametrize(("scale", "why"), [(float("nan"), "NaN or infinite"), (float("inf"), "NaN or"), (0.0, "is 0")])
def test_scales_that_no_one_can_divide_by_are_errors(scale: float, why: str) -> None:
    with pytest.raises(cs.FormatError, match=why):
        decoded(written(INT8, (2, 3), (1.0, scale)))


@pytest.mark.parametrize(
    ("kind", "scale", "method", "why"),
    [
        (INT8, (1.0, 1.0, 1.0), "an unknown encoding", "fit no encoding"),
        (INT8, (1.0,), "an unknown encoding", "fit no encoding"),
        (
            INT16,
            (1.0, 1.0),
            "CTranslate2, 16 bits",
            r"the scale is float32 \[2\], but that of int16 codes has to be float32 \[\]",
        ),
    ],
)
def test_scales_of_another_shape_are_not_used(kind: int, scale: tuple[float, ...], method: str, why: str) -> None:
    path = written(kind, (2, 3), scale)
    with cs.open_checkpoint(path) as found:
        assert found.codes.methods() == {method: 1}
    with pytest.raises(cs.PlanError, match=why):
        cs.convert(path, dequantize=True)


def test_weights_that_scales_make_large_are_warned_of(ckpt: Any) -> None:
    assert "scales" not in ckpt("check", written(INT8, (2, 3), (1e7, 1.0))).out
    assert "perhaps they are inverse scales" in ckpt("check", written(INT8, (2, 3), (127.0, 0.001))).out


def test_weights_of_awq_are_named_and_copied() -> None:
    parts = [
        variable("a/weight", (16, 4), INT32, bytes(256)),
        variable("a/weight_scale", (1, 32), FLOAT32, bytes(128)),
        variable("a/weight_zero", (1, 4), INT32, bytes(16)),
    ]
    Path("x.bin").write_bytes(model(parts, spec="TransformerDecoderSpec"))
    found = cs.inspect("x.bin")
    assert found.codes.methods() == {"CTranslate2, AWQ, 4 bits": 1}
    assert found.parameters == 16 * 32
    cs.apply(cs.convert("x.bin"), "copy.safetensors")
    assert load_file("copy.safetensors").keys() == {"a/weight", "a/weight_scale", "a/weight_zero"}
    with pytest.raises(cs.PlanError, match="no decoder knows the order of AWQ's codes in CTranslate2"):
        cs.convert("copy.safetensors", dequantize=True)
