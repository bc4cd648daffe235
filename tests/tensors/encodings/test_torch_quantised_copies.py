"""torch's own quantised tensors are copied with their scales and zero points: ``torch.load`` returns equal tensors."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ..decoders.test_torch_quantised import STATE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """q.pth has a tensor of every dtype and scheme; other.pth the same headers with other codes and scales."""
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "norm": torch.ones(6)}, "q.pth")
    torch.save({**{key: changed(one) for key, one in STATE.items()}, "norm": torch.zeros(6)}, "other.pth")


def changed(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same dtype, scheme and shape, with other numbers."""
    if tensor.qscheme() == torch.per_tensor_affine:
        return torch.quantize_per_tensor(tensor.dequantize() + 0.1, 0.05, 1, tensor.dtype)
    scales, points = tensor.q_per_channel_scales() * 2, tensor.q_per_channel_zero_points()
    return torch.quantize_per_channel(
        tensor.dequantize() * 2, scales, points, tensor.q_per_channel_axis(), tensor.dtype
    )


def check_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found.dtype, found.shape, found.qscheme()) == (wanted.dtype, wanted.shape, wanted.qscheme())
    assert torch.equal(found.dequantize(), wanted.dequantize())
    if wanted.dtype not in (torch.quint4x2, torch.quint2x4):
        assert torch.equal(found.int_repr(), wanted.int_repr())
    if wanted.qscheme() == torch.per_tensor_affine:
        assert (found.q_scale(), found.q_zero_point()) == (wanted.q_scale(), wanted.q_zero_point())
        return
    assert found.q_per_channel_axis() == wanted.q_per_channel_axis()
    for one, other in (
        (found.q_per_channel_scales(), wanted.q_per_channel_scales()),
        (found.q_per_channel_zero_points(), wanted.q_per_channel_zero_points()),
    ):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def loaded(path: str = "x.pth") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


COPIES: dict[str, list[str]] = {
    "convert": ["convert", "q.pth", "-o", "x.pth"],
    "filter": ["filter", "q.pth", "--exclude", "norm", "-o", "x.pth"],
    "rename": ["rename", "q.pth", "--map", "norm=after", "-o", "x.pth"],
    "passthrough": ["merge", "q.pth", "-m", "passthrough", "-o", "x.pth"],
    "transplant": ["transplant", "q.pth", "other.pth", "-o", "x.pth"],
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", COPIES)
def test_a_verb_that_copies_returns_equal_tensors(verb: str, ckpt: Run) -> None:
    done = ckpt(*COPIES[verb])
    assert done.code == 0, done.err
    found = loaded()
    assert found.keys() >= STATE.keys()
    for key, wanted in STATE.items():
        check_equal(found[key], wanted)
    assert ckpt("verify", "x.pth").code == 0
    assert ckpt("convert", "x.pth", "-o", "y.pth").code == 0
    for key, wanted in STATE.items():
        check_equal(loaded("y.pth")[key], wanted)


def test_new_names_and_shards_and_a_kept_destination(ckpt: Run) -> None:
    assert ckpt("rename", "q.pth", "--map", "qint8=net", "-o", "x.pth").code == 0
    check_equal(loaded()["net.axis0"], STATE["qint8.axis0"])
    assert ckpt("convert", "q.pth", "--to", "pth", "-o", "folder/").code == 0
    check_equal(loaded("folder/pytorch_model.bin")["qint8.axis1"], STATE["qint8.axis1"])
    assert ckpt("verify", "folder").code == 0
    command = ("transplant", "q.pth", "other.pth", "--reinit", "quint8.axis0", "-o", "z.pth")
    assert ckpt(*command).code == 0
    check_equal(loaded("z.pth")["quint8.axis0"], loaded("other.pth")["quint8.axis0"])
    check_equal(loaded("z.pth")["quint8.axis1"], STATE["quint8.axis1"])
    assert ckpt("verify", "z.pth").code == 0


def test_the_parameters_are_those_that_torch_writes(ckpt: Run) -> None:
    assert ckpt("convert", "q.pth", "-o", "x.pth").code == 0
    torch.save(loaded(), "again.pth")
    with cs.open_checkpoint("x.pth") as one, cs.open_checkpoint("again.pth") as other:
        assert cs.diff(one, other, values=True).identical == len(STATE) + 1


def test_those_in_memory_are_copied_and_decoded_as_those_of_files() -> None:
    state = {key: one for key, one in STATE.items() if not key.startswith(("quint4", "quint2"))}
    with cs.open_checkpoint(state) as opened:
        for key, wanted in state.items():
            check_equal(opened.tensor(key), wanted)
    cs.apply(cs.filter(state, exclude=["bias"]), "x.pth")
    found = loaded()
    assert found.keys() == state.keys() - {"bias"}
    for key, one in found.items():
        check_equal(one, state[key])
    cs.apply(cs.convert(state, dtype="float32", dequantize=True), "plain.pth")
    assert all(torch.equal(one, state[key].dequantize()) for key, one in loaded("plain.pth").items())


@pytest.mark.costly
@pytest.mark.parametrize("ending", [".scales", ".zero_points"])
@pytest.mark.parametrize("gone", [False, True], ids=["with its source", "without its source"])
def test_a_flipped_parameter_of_a_channel_is_found(ending: str, gone: bool, ckpt: Run) -> None:
    assert ckpt("convert", "q.pth", "-o", "x.pth").code == 0
    with zipfile.ZipFile("x.pth") as archive:
        records = {one.filename: archive.read(one) for one in archive.infolist()}
    name = next(one for one in records if one.endswith(ending))
    records[name] = bytes([records[name][0] ^ 1]) + records[name][1:]
    with zipfile.ZipFile("x.pth", "w") as archive:  # the checksums of the zip archive are right
        for one, data in records.items():
            archive.writestr(one, data)
    if gone:
        Path("q.pth").unlink()
    done = ckpt("verify", "x.pth")
    assert done.code == 1
    assert ("has other scales or zero points" in done.out) is not gone


def test_a_flipped_parameter_of_a_tensor_is_found(ckpt: Run) -> None:
    assert ckpt("filter", "q.pth", "--include", "qint8.tensor", "-o", "x.pth").code == 0
    raw = bytearray(Path("x.pth").read_bytes())
    place = raw.index(b"per_tensor_affine")
    scale = raw.index(b"G\x3f", place)
    raw[scale + 8] ^= 1
    Path("x.pth").write_bytes(raw)
    assert ckpt("verify", "x.pth").code != 0


@pytest.mark.parametrize("out", ["x.safetensors", "folder/"])
def test_safetensors_cannot_store_them_and_what_can_be_done(out: str, ckpt: Run) -> None:
    done = ckpt("convert", "q.pth", "-o", out)
    assert done.code != 0
    assert "safetensors does not support q" in done.err
    assert "Use --to pth. Or decode it: ckpt convert --dequantize." in done.err
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "command",
    [
        ["average", "q.pth", "other.pth"],
        ["merge", "q.pth", "other.pth", "-m", "linear", "--weights", "1,1"],
        ["transplant", "q.pth", "plain.pth"],
        ["transplant", "plain.pth", "q.pth"],
    ],
    ids=lambda one: " ".join(one[:2]),
)
def test_what_would_compute_on_them_is_refused(command: list[str], ckpt: Run) -> None:
    torch.save({**{key: one.dequantize() for key, one in STATE.items()}, "norm": torch.ones(6)}, "plain.pth")
    done = ckpt(*command, "-o", "x.pth")
    assert done.code == 4, done
    assert "quantised" in done.err


def test_a_scale_that_is_no_float_is_not_copied_silently(ckpt: Run) -> None:
    from ..decoders.test_torch_quantised import Rescaled

    torch.save({"w": Rescaled(STATE["qint8.tensor"], 1 << 1500)}, "bad.pth")  # type: ignore[arg-type]
    assert ckpt("convert", "bad.pth", "-o", "x.pth").code == 4


def test_a_state_dict_of_quantised_modules_is_copied(ckpt: Run) -> None:
    layer = torch.ao.nn.quantized.Conv2d(3, 4, 2)
    layer.set_weight_bias(
        torch.quantize_per_channel(
            torch.randn(4, 3, 2, 2),
            torch.rand(4, dtype=torch.float64) + 0.1,
            torch.zeros(4, dtype=torch.int64),
            0,
            torch.qint8,
        ),
        torch.randn(4),
    )
    layer.scale, layer.zero_point = 0.25, 7
    torch.save(layer.state_dict(), "conv.pth")
    assert ckpt("rename", "conv.pth", "--map", "=conv", "-o", "x.pth").code == 0
    found = {key.removeprefix("conv."): one for key, one in loaded().items()}
    other = torch.ao.nn.quantized.Conv2d(3, 4, 2)
    other.load_state_dict(found)
    check_equal(other.weight(), layer.weight())
    assert (other.scale, other.zero_point) == (0.25, 7)
    assert torch.equal(other.bias(), layer.bias())


def test_a_plan_says_the_dtype_and_is_carried_out_later(ckpt: Run) -> None:
    done = ckpt("filter", "q.pth", "--include", "qint8.axis0", "-n", "--json")
    assert json.loads(done.out)["steps"][0]["dtype"] == "qint8"
    Path("plan.json").write_text(done.out)
    assert ckpt("apply", "plan.json", "-o", "x.pth").code == 0
    check_equal(loaded()["qint8.axis0"], STATE["qint8.axis0"])


def test_none_is_copied_into_a_live_module() -> None:
    module = torch.nn.Module()
    module.register_buffer("w", STATE["qint8.tensor"].clone())
    torch.save({"w": STATE["qint8.tensor"]}, "w.pth")
    with pytest.raises(cs.PlanError, match="can only copy it as it is"):
        cs.load_into(module, "w.pth")


def test_an_adapter_of_other_layers_leaves_them_as_they_are() -> None:
    from safetensors.torch import save_file

    stem = "model.layers.0.self_attn"
    coded = torch.quantize_per_tensor(torch.randn(16, 16), 0.1, 0, torch.qint8)
    torch.save({f"{stem}.q_proj.weight": coded, f"{stem}.k_proj.weight": torch.randn(16, 16)}, "base.pth")
    for name in ("q_proj", "k_proj"):
        Path(name).mkdir()
        low = f"base_model.model.{stem}.{name}.lora_"
        factors = {f"{low}A.weight": torch.randn(2, 16), f"{low}B.weight": torch.randn(16, 2)}
        save_file(factors, f"{name}/adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [name]}
        Path(name, "adapter_config.json").write_text(json.dumps(config))
    cs.apply(cs.lora_merge("base.pth", "k_proj"), "x.pth")
    check_equal(loaded()[f"{stem}.q_proj.weight"], coded)
    assert cs.verify("x.pth").ok
    with pytest.raises(cs.PlanError, match="its new values cannot be stored that way"):
        cs.lora_merge("base.pth", "q_proj")
