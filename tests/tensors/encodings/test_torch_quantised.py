"""torch's own quantised tensors: they are read and named, and never computed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ...helpers.zoo import IN, LAYERS, OUT, PLAIN

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
Run = Callable[..., Any]
METHOD = "quantised by torch"


def by_tensor(values: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(values, 0.1, 0, torch.qint8)


def by_channel(values: torch.Tensor) -> torch.Tensor:
    scales = torch.full((OUT,), 0.1, dtype=torch.float64)
    return torch.quantize_per_channel(values, scales, torch.zeros(OUT, dtype=torch.int64), 0, torch.qint8)


@pytest.fixture(params=[by_tensor, by_channel])
def models(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised a.pth and b.pth, of other values, and plain.pth, with what the codes of the first stand for."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {PLAIN[0]: torch.randn(10, IN, generator=generator), PLAIN[1]: torch.randn(IN, generator=generator)}
        codes = {f"{one}.weight": request.param(torch.randn(OUT, IN, generator=generator)) for one in LAYERS}
        torch.save({**state, **codes}, f"{name}.pth")
        if not seed:
            torch.save({**state, **{key: one.dequantize() for key, one in codes.items()}}, "plain.pth")


@pytest.mark.usefixtures("models")
def test_they_are_named_and_counted_and_not_measured(ckpt: Run) -> None:
    found = cs.inspect("a.pth", stats=True)
    assert found.codes.methods() == {METHOD: 2}
    assert found.parameters == 10 * IN + IN + 2 * OUT * IN
    assert {key for key, stats in (found.stats or {}).items() if stats is None} == {f"{one}.weight" for one in LAYERS}
    done = ckpt("inspect", "a.pth", "--stats")
    assert (done.code, "2 not measured" in done.out, METHOD in done.out) == (0, True, True)


@pytest.mark.costly
@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_found(bad: float, ckpt: Run) -> None:
    name = f"{LAYERS[0]}.weight"
    state = torch.load("a.pth", weights_only=False)
    codes = state[name].int_repr()
    if state[name].qscheme() == torch.per_tensor_affine:
        state[name] = torch._make_per_tensor_quantized_tensor(codes, bad, 0)
    else:
        scales = state[name].q_per_channel_scales()
        scales[1] = bad
        points = state[name].q_per_channel_zero_points()
        state[name] = torch._make_per_channel_quantized_tensor(codes, scales, points, 0)
    torch.save(state, "bad.pth")
    done = ckpt("inspect", "bad.pth", "--stats")
    assert done.code == 1
    assert f"not decoded: {name}" in " ".join(done.out.split())
    done = ckpt("check", "bad.pth")
    assert done.code == 1
    assert name in done.out
    assert ckpt("check", "a.pth").code == 0
    assert ckpt("convert", "bad.pth", "--dequantize", "-o", "x.pth").code == 3


@pytest.mark.costly
@pytest.mark.usefixtures("models")
def test_they_are_compared_by_what_they_decode_to(ckpt: Run) -> None:
    done = ckpt("diff", "a.pth", "b.pth", "--values")
    assert done.code == 1
    assert "not compared" not in done.out
    found = cs.diff("a.pth", "b.pth", values=True)
    assert {pair.key for pair in found.decoded} == {f"{one}.weight" for one in LAYERS}
    assert all(pair.numbers is not None and pair.numbers.differing for pair in found.decoded)
    done = ckpt("diff", "a.pth", "a.pth", "--values")
    assert (done.code, "not compared" in done.out) == (0, False)
    one, other = torch.load("a.pth", weights_only=False), {}
    for key, value in one.items():
        other[key] = value
        if value.is_quantized and value.qscheme() == torch.per_tensor_affine:  # the same values by other codes
            other[key] = torch._make_per_tensor_quantized_tensor(value.int_repr() // 2 * 2, 0.1, 0)
            one[key] = torch._make_per_tensor_quantized_tensor(value.int_repr() // 2, 0.2, 0)
    torch.save(one, "one.pth")
    torch.save(other, "other.pth")
    found = cs.diff("one.pth", "other.pth", values=True)
    assert len(found.decoded) in (0, 2)
    assert found.identical + len(found.decoded) == 4


VERBS: dict[str, Callable[[str, str], object]] = {
    "average": lambda one, other: cs.average([one, other]),
    "merge": lambda one, other: cs.merge([one, other], method="linear", weights=[1, 1]),
}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("pair", [("a.pth", "b.pth"), ("a.pth", "plain.pth")], ids=str)
def test_what_would_compute_on_them_says_that_they_are_quantised_and_by_what(verb: str, pair: tuple[str, str]) -> None:
    with pytest.raises(cs.PlanError, match=rf"is quantised \({METHOD}\)") as error:
        VERBS[verb](*pair)
    assert error.value.exit_code == 4
    assert "--encoding dequantize" in error.value.hint


WRITING: dict[str, tuple[list[str], int, str, str]] = {
    "source": (
        ["transplant", "a.pth", "plain.pth", "-o", "x.pth"],
        4,
        "can only copy it as it is",
        "--encoding dequantize",
    ),
    "destination": (
        ["transplant", "plain.pth", "a.pth", "-o", "x.pth"],
        4,
        "its new values cannot be stored that way",
        "--encoding dequantize",
    ),
    "init": (["init", "a.pth"], 4, "can only copy it as it is", "ckpt convert --dequantize"),
    "safetensors": (
        ["convert", "a.pth", "-o", "x.safetensors"],
        5,
        "does not support qint8",
        "ckpt convert --dequantize",
    ),
}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("case", WRITING)
def test_what_would_change_them_says_that_it_cannot_and_what_can_be_done(case: str, ckpt: Run) -> None:
    command, code, said, hint = WRITING[case]
    Path("scale.yaml").write_text(f"- {{scale: {LAYERS[0]}.weight, by: 2}}\n")
    done = ckpt(*command)
    assert done.code == code
    assert said in done.err
    assert hint in done.err
    assert not any(Path(name).exists() for name in ("x.pth", "x.safetensors"))


@pytest.mark.usefixtures("models")
def test_a_dtype_does_not_apply_to_them(ckpt: Run) -> None:
    done = ckpt("convert", "a.pth", "--dtype", "bf16", "-o", "x.pth")
    assert done.code == 0
    assert "does not apply to 2 quantised weights" in " ".join(done.err.split())


@pytest.mark.costly
@pytest.mark.usefixtures("models")
def test_what_is_said_can_be_done(ckpt: Run) -> None:
    assert ckpt("convert", "a.pth", "--dequantize", "--dtype", "float32", "-o", "x.pth").code == 0
    assert ckpt("transplant", "a.pth", "plain.pth", "--encoding", "dequantize", "-o", "y.pth").code == 0
    assert ckpt("merge", "a.pth", "-m", "passthrough", "--encoding", "dequantize", "-o", "z.pth").code == 0
    assert all(ckpt("diff", name, "plain.pth", "--values").code == 0 for name in ("x.pth", "y.pth"))
    assert cs.filter("a.pth", exclude=list(LAYERS)).counts == {"copied": 2}


@pytest.mark.costly
@pytest.mark.usefixtures("models")
def test_a_quantised_destination_of_another_encoding_gets_them_encoded_again(ckpt: Run) -> None:
    assert ckpt("convert", "plain.pth", "--quantize", "int8", "-o", "int8.safetensors").code == 0
    assert ckpt("transplant", "a.pth", "int8.safetensors", "-o", "x.safetensors").code == 0
    found = cs.open_checkpoint("x.safetensors").codes
    assert found.methods() == cs.open_checkpoint("int8.safetensors").codes.methods()


def test_tied_ones_stay_tied_and_a_scale_of_nan_equals_itself() -> None:
    for name, make in (("tensor", by_tensor), ("channel", by_channel)):
        codes = make(torch.randn(OUT, IN))
        unsound = torch.quantize_per_tensor(torch.randn(2, 2), float("nan"), 0, torch.qint8)
        torch.save({"embed.weight": codes, "head.weight": codes, "l.weight": unsound}, f"{name}.pth")
        cs.apply(cs.rename(f"{name}.pth", map=["embed=wte"]), f"{name}.out.pth")
        found = torch.load(f"{name}.out.pth", weights_only=False)
        assert found["wte.weight"].data_ptr() == found["head.weight"].data_ptr() != found["l.weight"].data_ptr()
        assert torch.equal(found["wte.weight"].int_repr(), codes.int_repr())
        assert cs.verify(f"{name}.out.pth").ok
