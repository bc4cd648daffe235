"""How several models have changed from one base, and how far their changes agree: ``ckpt diff BASE A B``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..helpers.zoo import BY_NAME


def saved(name: str, **tensors: Any) -> str:
    save_file({key: torch.as_tensor(value) for key, value in tensors.items()}, f"{name}.safetensors")
    return f"{name}.safetensors"


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_figures_are_those_of_numpy() -> None:
    base, a, b = drawn(700, 300, seed=0), drawn(700, 300, seed=1), drawn(700, 300, seed=2)
    a[a.abs() < 1] = 0
    found = cs.compare_changes(
        saved("base", w=base), [saved("a", w=base + a), saved("b", w=base + b), saved("c", w=base)]
    )
    x, y = ((base + one).double() - base.double() for one in (a, b))
    total = found.total
    assert total.models[0].changed == int((x != 0).sum())
    assert total.models[0].relative == pytest.approx(float(x.norm() / base.double().norm()))
    assert total.models[2].changed == 0
    assert total.models[2].relative == 0
    agreement = total.pairs[0, 1]
    assert agreement.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()))
    both = (x != 0) & (y != 0)
    assert agreement.both == int(both.sum())
    assert agreement.share_of_same_sign == pytest.approx(float((x.sign() == y.sign())[both].double().mean()))
    assert total.pairs[0, 2].cosine is None
    assert total.pairs[0, 2].share_of_same_sign is None
    assert found.differs


def test_models_that_are_their_base_do_not_differ(ckpt: Any) -> None:
    one = saved("base", w=drawn(4, 4, seed=0), steps=torch.arange(3))
    found = cs.compare_changes(one, [one, one])
    assert not found.differs
    assert ckpt("diff", one, one, one).code == 0


def test_large_integers_are_compared_exactly() -> None:
    far = 2**60
    found = cs.compare_changes(
        saved("base", n=torch.tensor([far, 1, 5])),
        [saved("a", n=torch.tensor([far + 1, 1, 5])), saved("b", n=torch.tensor([far - 1, 2, 5]))],
    )
    assert [found.total.models[index].changed for index in (0, 1)] == [1, 2]
    assert found.total.pairs[0, 1].share_of_same_sign == 0


def test_extreme_magnitudes_have_figures() -> None:
    base = torch.tensor([1e200, 1e-200], dtype=torch.float64)
    found = cs.compare_changes(saved("base", w=base), [saved("a", w=base * 2), saved("b", w=base * 3)])
    assert found.total.models[0].relative == pytest.approx(1)
    assert found.total.pairs[0, 1].cosine == pytest.approx(1)
    assert found.total.models[0].changed == 2
    assert (found.total.pairs[0, 1].both, found.total.pairs[0, 1].same_sign) == (2, 2)


def test_values_that_are_not_finite_are_counted_and_left_out(ckpt: Any) -> None:
    base = torch.tensor([1.0, 2.0, 3.0, 4.0])
    names = [
        saved("base", w=base),
        saved("a", w=torch.tensor([math.nan, 2.0, 4.0, 4.0])),
        saved("b", w=torch.tensor([1.0, math.inf, 5.0, 4.0])),
    ]
    found = cs.compare_changes(names[0], names[1:])
    assert found.total.not_finite == 2
    assert [found.total.models[index].changed for index in (0, 1)] == [1, 1]
    assert "2 NaN or Inf values left out of all figures" in ckpt("diff", *names).out
    same = cs.compare_changes(names[1], [names[1], names[1]])
    assert same.total.not_finite == 1
    assert "1 NaN or Inf value left out of all figures" in ckpt("diff", names[1], names[1], names[1]).out


def test_tensors_that_a_model_lacks_adds_or_reshapes_are_named(ckpt: Any) -> None:
    names = [
        saved("base", w=torch.ones(2), x=torch.ones(3), y=torch.ones(2, 2)),
        saved("a", w=torch.ones(2), y=torch.ones(4)),
        saved("b", w=torch.ones(2), x=torch.ones(3), y=torch.ones(2, 2), z=torch.ones(1)),
    ]
    found = cs.compare_changes(names[0], names[1:])
    assert (found.missing[0], found.reshaped[0], found.added[1]) == (("x",), ("y",), ("z",))
    done = ckpt("diff", *names)
    assert done.code == 1
    assert "A lacks  x" in done.out
    assert "A has another shape of  y" in done.out
    assert "B adds  z" in done.out


def test_patterns_select_keys() -> None:
    names = [
        saved(name, w=torch.full((2,), value), x=torch.ones(2))
        for name, value in zip("oab", (0.0, 1.0, 2.0), strict=True)
    ]
    found = cs.compare_changes(names[0], names[1:], exclude=["w"])
    assert not found.differs
    assert found.left_out == 1
    with pytest.raises(cs.PatternError, match="matches none"):
        cs.compare_changes(names[0], names[1:], include=["q"])


def test_quantised_models_are_compared_by_their_weights(tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "fp8")
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), "plain")
    state = load_file("plain/model.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, "moved.safetensors")
    found = cs.compare_changes("plain", [folder, "moved.safetensors"])
    assert {one.key for one in found.tensors} == state.keys()
    for one in found.tensors:
        assert one.sums.models[0].changed == 0
        assert one.sums.models[1].changed == state[one.key].numel()


def test_a_note_says_that_changes_include_rounding() -> None:
    base = drawn(8, 8, seed=0)
    found = cs.compare_changes(saved("base", w=base), [saved("a", w=base.bfloat16()), saved("b", w=base)])
    assert any("a.safetensors has 1 tensor in bfloat16 that the base has in float32" in note for note in found.notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base.safetensors", "base.safetensors", "nothing.safetensors"], "nothing.safetensors"),
        (
            ["base.safetensors", "base.safetensors", "base.safetensors", "--rtol", "1"],
            "--rtol compares two checkpoints",
        ),
        (["base.safetensors", "base.safetensors", "base.safetensors", "--renames"], "--renames compares two"),
        (["base.safetensors", "base.safetensors", "m.yaml"], "m.yaml is a configuration"),
    ],
)
def test_bad_input_is_refused(ckpt: Any, arguments: list[str], said: str) -> None:
    saved("base", w=torch.ones(2))
    Path("m.yaml").write_text("model: {tensors: {w: {shape: [2]}}}\n")
    done = ckpt("diff", *arguments)
    assert done.code in (2, 3)
    assert said in done.err


def test_one_model_is_not_enough() -> None:
    with pytest.raises(cs.ConfigError, match="two or more models are needed, but the list has 1 model"):
        cs.compare_changes(saved("base", w=torch.ones(2)), ["base.safetensors"])


def test_the_terminal_shows_models_pairs_and_layers(ckpt: Any) -> None:
    def state(change: float, layer: int) -> dict[str, torch.Tensor]:
        return {f"layers.{n}.w": torch.ones(4) + change * (n == layer) for n in range(2)}

    names = [saved("base", **state(0, 0)), saved("a", **state(0.5, 1)), saved("b", **state(-0.5, 1))]
    done = ckpt("diff", *names)
    rows = [line.split() for line in done.out.splitlines()]
    assert ["A", "35", "50", "%", "1", "of", "2", "a.safetensors"] in rows
    assert ["A", "and", "B", "-1.00", "0", "%", "50", "%"] in rows
    assert ["layers.0", "·", "·", "-"] in rows
    assert ["layers.1", "50", "50", "-1.00"] in rows
    for options, what in (((), "layer"), (("--depth", "1"), ""), (("--depth", "2"), "module"), (("-v",), "tensor")):
        out = ckpt("diff", *names, *options).out
        assert (f"  by {what}: change in percent of the norm" in out) == bool(what)
    answer = json.loads(ckpt("diff", *names, "--json").out)
    assert answer["kind"] == "ckpt.changes"
    assert answer["total"]["agreements"] == [{"models": [0, 1], "both": 4, "cosine": -1.0, "same_sign": 0.0}]


def test_complex_and_real_values_are_compared_element_by_element() -> None:
    base = torch.tensor([1.0, 2.0, 3.0])
    torch.save({"w": base}, "base.pth")
    torch.save({"w": base + torch.tensor([1j, 0, 1])}, "a.pth")
    torch.save({"w": base + torch.tensor([2j, 1, -1])}, "b.pth")
    found = cs.compare_changes("base.pth", ["a.pth", "b.pth"])
    assert [found.total.models[index].changed for index in (0, 1)] == [2, 3]
    agreement = found.total.pairs[0, 1]
    assert (agreement.both, agreement.same_sign) == (2, 1)
    assert agreement.cosine == pytest.approx((2 - 1) / math.sqrt(2) / math.sqrt(6))


def test_tensors_without_elements_are_there() -> None:
    one = saved("base", w=torch.ones(2), e=torch.ones(0, 3))
    found = cs.compare_changes(one, [one, saved("a", w=torch.zeros(2), e=torch.ones(0, 3))])
    (empty,) = (tensor for tensor in found.tensors if tensor.key == "e")
    assert list(empty.sums.models) == [0, 1]
    assert not found.missing[1]


def test_tied_tensors_are_compared_once() -> None:
    for name, value in (("base", 1.0), ("a", 2.0), ("b", 3.0)):
        shared = torch.full((4,), value)
        torch.save({"e": shared, "h": shared}, f"{name}.pth")
    found = cs.compare_changes("base.pth", ["a.pth", "b.pth"])
    assert [one.key for one in found.tensors] == ["e"]
    assert found.total.models[0].values == 4
    assert any("tied tensors are compared once" in note for note in found.notes)
    found = cs.compare_changes("base.pth", ["a.pth", "b.pth"], include=["h"])  # without the key that it is tied to
    assert ([one.key for one in found.tensors], found.notes) == (["h"], ())


def test_a_damaged_record_is_an_error_and_no_change() -> None:
    for name in ("base", "a", "b"):
        torch.save({"w": drawn(64, 64, seed=0)}, f"{name}.pth")
    data = bytearray(Path("b.pth").read_bytes())
    data[data.index(drawn(64, 64, seed=0).numpy().tobytes()[:64]) + 5] ^= 1
    Path("b.pth").write_bytes(data)
    with pytest.raises(cs.FormatError, match="checksum"):
        cs.compare_changes("base.pth", ["a.pth", "b.pth"])


@pytest.mark.parametrize("models", ["ab", Path("a.safetensors"), {"w": torch.ones(2)}])
def test_one_model_is_no_list(models: Any) -> None:
    with pytest.raises(cs.ConfigError, match=r"the argument models is .*, not a list of .* Give a list: \["):
        cs.compare_changes(saved("base", w=torch.ones(2)), models)


def test_integers_are_in_no_sum_of_several_tensors() -> None:
    """The norm of position ids would make that of all changes look small."""
    ids = torch.arange(512)
    base = {"a": torch.ones(4), "b": torch.zeros(2), "ids": ids}
    models = [
        {"a": torch.full((4,), 1.5), "b": torch.ones(2), "ids": ids},
        {"a": torch.ones(4), "b": torch.zeros(2), "ids": ids + 1},
    ]
    found = cs.compare_changes(base, models)
    assert found.total.models[0].relative == pytest.approx(3**0.5 / 2)
    assert found.total.models[1].changed == 0
    assert found.differs
    (own,) = [one.sums for one in found.tensors if one.key == "ids"]
    assert own.changed_by == (1,)
    assert any(
        "integers are compared, but left out of the figures of layers" in note and "ids" in note for note in found.notes
    )
    assert cs.compare_changes({"ids": ids}, [{"ids": ids + 1}, {"ids": ids}]).total.models[0].changed == 512


def test_a_change_from_zeros_is_said_to_be_new(ckpt: Any) -> None:
    base = saved("base", a=torch.ones(4), b=torch.zeros(2))
    done = ckpt("diff", base, saved("x", a=torch.ones(4), b=torch.ones(2)), base, "-v")
    assert [line.split() for line in done.out.splitlines() if line.startswith("  b ")] == [["b", "new", "·", "-"]]


def test_a_configuration_that_contradicts_its_weights_is_said() -> None:
    for name in ("base", "a", "b"):
        Path(name).mkdir()
        save_file({"embed_tokens.weight": torch.randn(6, 4)}, f"{name}/model.safetensors")
        fields = {"model_type": "llama", "vocab_size": 6, "hidden_size": 4 if name == "base" else 5}
        Path(name, "config.json").write_text(json.dumps(fields))
    said = [
        note for note in cs.compare_changes("base", ["a", "b"]).notes if "hidden_size" in note and "columns" in note
    ]
    assert [note.partition(":")[0] for note in said] == ["a", "b"]
