"""Model files of whisper.cpp: one that whisper.cpp ran (`make oracle-whisper_cpp`), and files that break rules."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import ckptsurgeon as cs

from ...helpers.whisper_cpp_files import SIZES, model, tensor

FIXTURES = Path(__file__).parents[3] / "fixtures" / "golden"
GOLDEN = FIXTURES / "whisper_cpp"
TINY, Q5_1 = str(GOLDEN / "tiny.bin"), str(GOLDEN / "tiny-q5_1.bin")
NOTE = "read the tensors and the sizes of a model of whisper.cpp, not its mel filters and its 5 tokens"
FLOATS = ("encoder.positional_embedding", "decoder.positional_embedding", "encoder.conv1.bias", "encoder.conv2.bias")


def recorded() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(GOLDEN / "tiny.npz") as found:
        return dict(found)


def weights() -> dict[str, np.ndarray[Any, Any]]:
    return {key: value for key, value in recorded().items() if key.startswith(("encoder.", "decoder."))}


def sizes() -> dict[str, int]:
    found: dict[str, int] = json.loads((GOLDEN / "tiny.json").read_text())["sizes"]
    return found


def opened(data: bytes) -> cs.Checkpoint:
    Path("x.bin").write_bytes(data)
    return cs.open_checkpoint("x.bin")


def test_every_tensor_has_the_shape_of_openai_and_the_weights_that_were_drawn() -> None:
    wanted = weights()
    with cs.open_checkpoint(TINY) as found:
        assert (found.format, list(found), found.notes) == ("whisper.cpp", list(wanted), (NOTE,))
        for key, value in wanted.items():
            is_half = value.ndim > 1 and key not in FLOATS
            assert (found[key].shape, found[key].dtype) == (value.shape, "float16" if is_half else "float32"), key
            assert np.array_equal(found.tensor(key).numpy(), value), key


def test_the_hyper_parameters_are_metadata_and_tokens_are_counted(ckpt: Any) -> None:
    with cs.open_checkpoint(Q5_1) as found:
        more = {"ftype": "9", "qntvr": "2", "mel_filters": "[8, 5]", "tokens": "5"}
        assert dict(found.metadata) == {key: str(value) for key, value in sizes().items()} | more
    told = ckpt("inspect", Q5_1, "--metadata")
    assert "n_audio_state = 32" in told.out
    assert "quantised  17 tensors GGUF q5_1" in told.out
    assert NOTE in told.err


def test_quantised_matrices_are_decoded_and_the_others_are_copied() -> None:
    cs.apply(cs.convert(Q5_1, dequantize=True, dtype="float32"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    found, wanted = load_file("out.safetensors"), weights()
    for key, value in wanted.items():
        if value.ndim != 2 or key in FLOATS:
            assert np.array_equal(found[key], value.astype("f4")), key
        else:  # the step of a block of q5_1 is 1/31 of its range
            blocks = value.astype("f4").reshape(-1, 32)
            steps = (np.ptp(blocks, 1, keepdims=True) / 31).repeat(32, 1).reshape(value.shape)
            assert (abs(found[key] - value) <= 0.55 * steps + 1e-3).all(), key


@pytest.mark.costly
@pytest.mark.parametrize(("path", "options", "error"), [(TINY, (), 0.003), (Q5_1, ("--dequantize",), 0.08)])
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_what_whisper_cpp_computed(
    path: str, options: tuple[str, ...], error: float, ckpt: Any
) -> None:
    """Of logits from -4 to 2; whisper.cpp rounds the inputs of quantised matrices to 8 bits."""
    transformers = pytest.importorskip("transformers")
    said, values = sizes(), recorded()
    Path("net").mkdir()
    config = transformers.WhisperConfig(
        d_model=said["n_audio_state"], num_mel_bins=said["n_mels"], vocab_size=said["n_vocab"],
        encoder_layers=said["n_audio_layer"], encoder_attention_heads=said["n_audio_head"],
        encoder_ffn_dim=4 * said["n_audio_state"], max_source_positions=said["n_audio_ctx"],
        decoder_layers=said["n_text_layer"], decoder_attention_heads=said["n_text_head"],
        decoder_ffn_dim=4 * said["n_text_state"], max_target_positions=said["n_text_ctx"],
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    config.save_pretrained("net")
    assert ckpt("convert", path, *options, "--layout", "transformers", "-o", "net/model.safetensors").code == 0
    kind = transformers.WhisperForConditionalGeneration
    network, report = kind.from_pretrained("net", dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    mel, tokens = (torch.tensor(values[key])[None] for key in ("mel", "tokens"))
    with torch.no_grad():
        logits = network.eval()(mel, decoder_input_ids=tokens).logits[0, -1].numpy()
    wanted = values[f"logits {Path(path).stem}"]
    assert abs(logits - wanted).max() < error
    other = values[f"logits {'tiny' if path == Q5_1 else 'tiny-q5_1'}"]
    assert abs(logits - other).max() > 0.3


def test_a_model_of_openai_in_this_container_is_converted_as_its_pth_file_is() -> None:
    """``convert-pt-to-ggml.py`` with ``use-f32``: the same bytes, but biases of convolutions are columns."""
    openai = str(FIXTURES / "layouts/whisper/openai.safetensors")
    parts = []
    for key, value in load_file(openai).items():
        shape = (1, *value.shape) if key in FLOATS[2:] else tuple(reversed(value.shape))
        parts.append(tensor(key, shape, 0, value.tobytes()))
    Path("x.bin").write_bytes(model(*parts, ftype=0))
    assert cs.diff("x.bin", openai, values=True).same
    cs.apply(cs.convert("x.bin", layout="transformers"), "ours.safetensors")
    cs.apply(cs.convert(openai, layout="transformers"), "theirs.safetensors")
    assert cs.diff("ours.safetensors", "theirs.safetensors", values=True).same


def test_the_types_are_those_of_gguf() -> None:
    numbers = {
        "q4_0": 2,
        "q4_1": 3,
        "q5_0": 6,
        "q5_1": 7,
        "q8_0": 8,
        "q2_k": 10,
        "q3_k": 11,
        "q4_k": 12,
        "q5_k": 13,
        "q6_k": 14,
    }
    parts, gguf = [], str(FIXTURES / "gguf/types.gguf")
    with cs.open_checkpoint(gguf) as found:
        for key, number in numbers.items():
            rows, columns = found[key].meant_shape
            raw = found.open_files()[""].read(found[key].storage.offset + found[key].offset, found[key].nbytes)
            parts.append(tensor(key, (columns, rows), number, raw))
    Path("x.bin").write_bytes(model(*parts, ftype=2002))
    cs.apply(cs.filter(gguf, include=list(numbers)), "same.gguf")
    cs.apply(cs.convert("x.bin", dequantize=True, dtype="float32"), "ours.safetensors")
    cs.apply(cs.convert("same.gguf", dequantize=True, dtype="float32"), "theirs.safetensors")
    assert cs.diff("ours.safetensors", "theirs.safetensors", values=True).same


def test_verbs_compare_and_check_such_files(ckpt: Any) -> None:
    assert ckpt("check", TINY).code == 0
    assert ckpt("check", Q5_1).code == 0
    told = ckpt("diff", TINY, Q5_1, "--values")
    assert "33 tensors identical byte for byte, 17 decoded" in told.out
    assert ckpt("layouts", TINY).out.startswith(f"{TINY}: layout openai of whisper")
    assert ckpt("scan", TINY).code == 0


def test_the_format_is_only_read(ckpt: Any) -> None:
    for name in ("whisper.cpp", "onnx"):
        told = ckpt("convert", TINY, "-o", "x.bin", "--to", name)
        assert (told.code, told.err.partition(". ")[0]) == (2, f"error: --to {name} is unknown")
    told = ckpt("convert", Q5_1, "-o", "x.safetensors")
    assert (told.code, "convert --dequantize" in told.err) == (5, True)


def test_a_folder_with_one_such_file_is_read() -> None:
    Path("net").mkdir()
    Path("net/ggml-tiny.bin").write_bytes(Path(TINY).read_bytes())
    with cs.open_checkpoint("net") as found:
        assert found.format == "whisper.cpp"


def test_blocks_of_version_1_are_read_if_they_have_not_changed_since() -> None:
    """As ggml-large-q5_0.bin of May 2023, whose ftype is 1008."""
    with opened(model(tensor("w", (32,), 6, bytes(22)), ftype=1008)) as found:
        assert (found["w"].dtype, found["w"].meant_shape, found.metadata["qntvr"]) == ("q5_0", (32,), "1")


def test_only_the_biases_of_convolutions_lose_a_dimension() -> None:
    data = bytes(12)
    names = ("encoder.conv1.bias", "encoder.blocks.0.attn.out.bias")
    with opened(model(*(tensor(name, (1, 3), 0, data) for name in names))) as found:
        assert [found[name].shape for name in names] == [(3,), (3, 1)]


W = tensor("w", (3, 2), 0, bytes(24))
TENSOR = len(model())
HOSTILE: dict[str, bytes] = {
    "the magic number alone": model()[:4],
    "cut in the hyper-parameters": model()[:40],
    "cut in the mel filters": model()[:100],
    "cut in front of the tokens": model(tokens=())[:-4],
    "cut in a token": model(tokens=[b"hello"])[:-1],
    "cut in the length of a token": model(tokens=[b"hello"])[:-7],
    "more tokens than bytes": model(number=100_000),
    "a token of 2^32 bytes": model(number=1, tokens=[]) + b"\xff" * 4,
    "mel filters of 2^33 bytes": model(W, filters=(8, 1 << 28))[:2000],
    "cut in a tensor's header": model(W)[: TENSOR + 7],
    "cut in a tensor's sizes": model(W)[: TENSOR + 15],
    "cut in a tensor": model(W)[:-1],
    "a second tensor that is cut": model(W, tensor("v", (3,), 1, bytes(5))),
    "2^32 tokens": model(number=(1 << 32) - 1),
    "a token of 5,000 bytes": model(tokens=[b"x" * 5000]),
    "no n_vocab": model(W, sizes=(0, *SIZES[1:])),
    "negative heads": model(W, sizes=(*SIZES[:3], -2, *SIZES[4:])),
    "mel filters without columns": model(W, filters=(8, 0)),
    "a negative ftype": model(W, ftype=-1),
    "big-endian": model(order=">"),
    "no tensors": model(),
    "five dimensions": model(tensor("w", (1, 1, 1, 1, 1), 0, bytes(4))),
    "minus one dimension": model(struct.pack("<3i", -1, 1, 0) + b"w"),
    "a name of 100,000 bytes": model(tensor("w" * 100_000, (1,), 0, bytes(4))),
    "a name of -1 bytes": model(tensor("w", (1,), 0, bytes(4), length=-1)),
    "a name that is not text": model(tensor(b"\xff\xfe", (1,), 0, bytes(4))),
    "a tensor twice": model(W, W),
    "a negative size": model(tensor("w", (-3, -2), 0, bytes(24))),
    "sizes whose product overflows": model(tensor("w", (0x7FFFFFFF,) * 4, 0, b"")),
    "sizes that overflow beside a 0": model(tensor("w", (0x7FFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF, 0), 0, b"")),
    "an unknown type": model(tensor("w", (1,), 99, bytes(4))),
    "a negative type": model(tensor("w", (1,), -1, bytes(4))),
    "a type that was dropped": model(tensor("w", (32,), 4, bytes(32))),
    "a row that is not a whole block": model(tensor("w", (33,), 8, bytes(40)), ftype=2007),
    "blocks of version 0": model(tensor("w", (32,), 7, bytes(24)), ftype=9),
    "blocks of version 1 that have changed since": model(tensor("w", (32,), 8, bytes(34)), ftype=1007),
    "blocks of version 3": model(tensor("w", (32,), 8, bytes(34)), ftype=3007),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.bin"):
        opened(HOSTILE[name]).close()


@pytest.mark.parametrize("number", range(4, len(model(W)), 3))
def test_a_file_that_is_cut_anywhere_is_refused(number: int) -> None:
    with pytest.raises(cs.FormatError, match=r"x\.bin") as caught:
        opened(model(W)[:number]).close()
    assert caught.value.rule == ("no state dict" if number == TENSOR else "cut short")


def test_messages_name_the_types_and_what_to_do() -> None:
    with pytest.raises(cs.FormatError, match=r"the tensor w is q8_0 of version 1 of ggml's") as caught:
        opened(HOSTILE["blocks of version 1 that have changed since"])
    assert "Quantise the float16 model again" in str(caught.value.hint)
    with pytest.raises(cs.FormatError, match=r"the tensor w is q8_0 of version 3 of ggml's") as caught:
        opened(HOSTILE["blocks of version 3"])
    assert caught.value.hint == ""
    with pytest.raises(cs.FormatError, match=r"of the type Q4_2, which llama\.cpp no longer reads"):
        opened(HOSTILE["a type that was dropped"])
    with pytest.raises(cs.FormatError, match="big-endian"):
        opened(HOSTILE["big-endian"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"lmgg" + struct.pack("<i", 10) + b"silero-16k" + bytes(100), "another model than Whisper"),
        (model(sizes=(*SIZES[:6], 64, *SIZES[7:])), "another model than Whisper"),
        (b"ggml is a library.\n", "a text file that begins: ggml is a library"),
        (b"fmgg\1\0\0\0" + bytes(64), r"a GGML file of llama\.cpp \(ggmf\)"),
        (b"tjgg\3\0\0\0" + bytes(64), r"a GGML file of llama\.cpp \(ggjt\)"),
    ],
)
def test_other_files_of_ggml_are_named(data: bytes, said: str) -> None:
    with pytest.raises(cs.FormatError, match=said):
        opened(data)


def test_a_file_cut_between_two_tensors_gets_a_note() -> None:
    data = (GOLDEN / "tiny.bin").read_bytes()
    with opened(data) as whole:
        assert not any("cut short" in note for note in whole.notes)
        last = list(whole)[-1]
        nbytes = whole[last].nbytes + 12 + 4 * len(whole[last].shape) + len(last)
    with opened(data[:-nbytes]) as cut:
        assert last not in cut
        assert any("has 50 tensors, but this file has 49: perhaps it was cut short" in note for note in cut.notes)
    Path("x.bin").write_bytes(model(tensor("encoder.conv1.weight", (32, 32), 0, bytes(4096))))
    (found,) = cs.check("x.bin").row("shard").found  # although its values are zeros, too
    assert (found.status.value, found.what.endswith("perhaps it was cut short")) == ("WARN", True)
    with opened(data + tensor("more", (4,), 0, bytes(16))) as longer:
        assert any(note.endswith("has 50 tensors, but this file has 51") for note in longer.notes)


def test_hyper_parameters_that_the_tensors_contradict_are_said() -> None:
    data = bytearray((GOLDEN / "tiny.bin").read_bytes())
    data[4:8] = (160).to_bytes(4, "little")
    with opened(bytes(data)) as found:
        assert "n_vocab is 160, but decoder.token_embedding.weight has 40 rows" in found.notes
