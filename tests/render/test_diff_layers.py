"""``ckpt diff --by-layer``: layers down, roles across."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckptsurgeon.render.diff_layers import _letters, _number, _shade


def write() -> None:
    torch.manual_seed(0)
    names = [f"net.layers.{n}.{role}" for n in range(3) for role in ("attn.weight", "attn.bias", "mlp.weight")]
    first = {name: torch.randn(8, 8) for name in (*names, "head.weight", "norm.weight", "blocks.0.w")}
    second = {key: value.clone() for key, value in first.items()}
    second["net.layers.1.attn.weight"] *= 1.5
    second["net.layers.1.attn.bias"] *= 1.01
    second["net.layers.2.mlp.weight"] *= 1.02
    second["net.layers.2.attn.weight"][0, 0] = float("nan")
    second["head.weight"] *= 2
    save_file(first, "a.safetensors")
    save_file({**second, "more": torch.ones(1)}, "b.safetensors")


def test_the_table_has_the_largest_change_of_each_role(ckpt: Any) -> None:
    write()
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--by-layer")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "  net.layers: change in percent of the norm"
    assert lines[1].replace("\N{NO-BREAK SPACE}", " ").split("  ")[1:] == ["a attn", "b mlp"]
    rows = [re.sub(r"\s+", " ", line).strip() for line in lines[3:6]]
    assert rows == ["0 · · 0 of 3", "1 █ 50 · 2 of 3", "2 ? ░ 2 2 of 3"]
    said = re.sub(r"\s+", " ", done.out)
    assert "elsewhere head.weight 100 % 2 tensors the same" in said
    assert "only in B more" in said


def test_what_is_the_same_has_no_shade(ckpt: Any) -> None:
    write()
    done = ckpt("diff", "a.safetensors", "a.safetensors", "--by-layer")
    assert done.code == 0
    assert not set("░▒▓█?") & set(done.out)


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_a_narrow_terminal_gets_several_rows_of_roles(width: str, ckpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"layers.{n}.role{r}.weight": torch.ones(2) for n in range(2) for r in range(30)}
    save_file(tensors, "a.safetensors")
    monkeypatch.setenv("COLUMNS", width)
    lines = ckpt("diff", "a.safetensors", "a.safetensors", "--by-layer").out.splitlines()
    assert max(map(len, lines)) <= int(width)
    across = -(-30 // ((int(width) - 8 - 9) // 7))
    assert sum(line.startswith("     0") for line in lines) == across


def test_it_contradicts_renames(ckpt: Any) -> None:
    write()
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--by-layer", "--renames")
    assert done.code == 2
    assert "--by-layer and --renames contradict each other" in done.err


def test_depth_sets_the_second_table(ckpt: Any) -> None:
    write()
    branches = {
        depth: ckpt("diff", "a.safetensors", "b.safetensors", "--by-layer", *depth).out
        for depth in ((), ("--depth", "1"), ("--depth", "3"))
    }
    assert branches[()] == branches["--depth", "1"] != branches["--depth", "3"]
    assert all(out.startswith("  net.layers: change in percent of the norm") for out in branches.values())
    assert "net.layers.1" in branches["--depth", "3"]


def test_include_and_exclude_choose_columns_and_rows(ckpt: Any) -> None:
    write()
    two = ckpt("diff", "a.safetensors", "b.safetensors", "--by-layer", "--include", "**.mlp.**").out
    assert two.splitlines()[1].strip() == "a\N{NO-BREAK SPACE}mlp"
    assert "attn" not in two
    assert "head.weight" not in two
    three = ("a.safetensors", "b.safetensors", "a.safetensors")
    out = ckpt("diff", *three, "--by-layer", "--exclude", "**.attn.**").out
    assert "attn" not in out
    assert "mlp" in out


def test_each_of_several_models_has_a_table(ckpt: Any) -> None:
    write()
    done = ckpt("diff", "a.safetensors", "b.safetensors", "a.safetensors", "--by-layer")
    assert done.code == 1
    lines = done.out.splitlines()
    places = [at for at, line in enumerate(lines) if line.endswith("net.layers: change in percent of the norm")]
    assert [lines[at].split()[:2] for at in places] == [["A", "b.safetensors"], ["B", "a.safetensors"]]
    rows = [[re.sub(r"\s+", " ", line).strip() for line in lines[at + 3 : at + 6]] for at in places]
    assert rows[0] == ["0 · · 0 of 3", "1 █ 50 · 2 of 3", "2 ? ░ 2 2 of 3"]
    assert rows[1] == ["0 · · 0 of 3", "1 · · 0 of 3", "2 · · 0 of 3"]  # the NaN is in the other model
    assert "do the changes agree?" in done.out


def test_only_the_model_that_has_it_differs_by_what_is_not_finite(ckpt: Any) -> None:
    """Masks with -inf in one model: the tables of layers and of models count the same tensors."""
    base = {f"layers.{n}.{role}": torch.ones(4, 4) for n in range(2) for role in ("mask", "w")}
    other = {key: value.clone() for key, value in base.items()}
    for n in range(2):
        other[f"layers.{n}.mask"][0, 1] = -torch.inf
    for name, tensors in (("x", base), ("y", base), ("z", other)):
        save_file(tensors, f"{name}.safetensors")
    out = ckpt("diff", "x.safetensors", "y.safetensors", "z.safetensors", "--by-layer").out
    lines = [re.sub(r"\s+", " ", line).strip() for line in out.splitlines()]
    assert [line for line in lines if line[:2] in ("0 ", "1 ")] == [
        "0 · · 0 of 2", "1 · · 0 of 2", "0 ? · 1 of 2", "1 ? · 1 of 2"
    ]  # fmt: skip
    assert [line for line in lines if line.endswith(("y.safetensors", "z.safetensors"))] == [
        "A · 0 % 0 of 4 y.safetensors", "B ? 0 % 2 of 4, 2 by no other model z.safetensors"
    ]  # fmt: skip
    assert ckpt("diff", "z.safetensors", "z.safetensors", "z.safetensors", "--by-layer").code == 0


def test_shades_are_tenths_of_the_largest() -> None:
    assert [_shade(change, 1e-9, 1.0) for change in (0, 1e-6, 0.005, 0.05, 0.1, 0.5, 1.0)] == [0, 1, 2, 3, 3, 4, 4]


def test_numbers_have_two_digits() -> None:
    assert [_number(one) for one in (0, 1e-7, 0.0012, 0.034, 0.5, 1.234, 12.0)] == [
        "·", "1e-05", "0.12", "3.4", "50", "123", "1200"
    ]  # fmt: skip


def test_columns_have_letters() -> None:
    assert _letters(3) == ["a", "b", "c"]
    assert _letters(28)[24:] == ["y", "z", "aa", "ab"]
    assert _letters(704)[701:] == ["zz", "aaa", "aab"]
    assert len(set(_letters(20_000))) == 20_000


def test_unknown_changes_are_shown_before_the_largest(ckpt: Any) -> None:
    first = {f"w{chr(97 + n)}": torch.ones(4) for n in range(11)}
    second = {key: value * (1 + (n + 1) / 10) for n, (key, value) in enumerate(first.items())}
    unknown = ("wb", "wf", "wk")
    for key in unknown:
        second[key][0] = float("nan")
    save_file(first, "a.safetensors")
    save_file(second, "b.safetensors")
    out = ckpt("diff", "a.safetensors", "b.safetensors", "--by-layer").out
    rows = [line.split() for line in out.partition("elsewhere\n")[2].splitlines()]
    assert [row[0] for row in rows[:8]] == [*unknown, "wj", "wi", "wh", "wg", "we"]
    assert rows[8] == ["and", "3", "more"]


def test_a_layer_number_of_thousands_of_digits_is_no_layer(ckpt: Any) -> None:
    tensors = {f"layers.{'9' * 5000}.{role}.weight": torch.ones(2) for role in ("one", "two")}
    save_file(tensors, "a.safetensors")
    done = ckpt("diff", "a.safetensors", "a.safetensors", "--by-layer")
    assert (done.code, done.err) == (0, "")
    assert "2 tensors the same" in done.out


@pytest.mark.parametrize(
    ("changes", "shades"),
    [
        ([0.02, 0.025, 0.03, 0.035, 0.04], [1, 2, 3, 4, 4]),
        ([0.02, 0.0201], [4, 4]),  # as good as equal
        ([1e-5, 1e-3, 0.06, 0.5], [1, 2, 4, 4]),  # steps of ten
        ([0.0, 0.3], [0, 4]),
    ],
)
def test_shades_divide_the_range_of_changes_of_similar_size(changes: list[float], shades: list[int]) -> None:
    there = [one for one in changes if one]
    assert [_shade(one, min(there), max(there)) for one in changes] == shades
