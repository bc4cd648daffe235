"""The tree in which what repeats is shown once."""

from __future__ import annotations

import pytest

from ckptsurgeon.render import tree as trees
from ckptsurgeon.render.tree import Branch, build_tree, numbers_text
from ckptsurgeon.render.tree_table import _joined
from ckptsurgeon.tensors.info import TensorInfo


def info(*shape: int) -> TensorInfo:
    return TensorInfo("float32", shape)


def names(node: Branch) -> list[str]:
    return [child.name for child in node.children.values()]


def leaves(node: Branch) -> int:
    return 1 if node.info is not None else sum(child.times * leaves(child) for child in node.children.values())


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([0], "0"),
        ([0, 1], "0,1"),
        ([0, 1, 2], "0..2"),
        ([2, 0, 1], "0..2"),
        ([0, 2], "0,2"),
        ([0, 1, 3, 4, 5, 9], "0,1,3..5,9"),
        ([7, 8, 10, 11, 12], "7,8,10..12"),
        ([], ""),
    ],
)
def test_three_numbers_in_a_row_are_a_range_and_two_are_not(numbers: list[int], text: str) -> None:
    assert numbers_text(numbers) == text


def test_equal_siblings_are_joined_and_others_are_not() -> None:
    tree = build_tree({f"layers.{i}.w": info(2, 3 if i == 2 else 2) for i in range(5)})
    assert names(tree.children["layers"]) == ["{0,1,3,4}.w", "2.w"]


def test_a_list_of_many_or_long_names_is_cut() -> None:
    few = build_tree({f"n{chr(97 + i)}": info(2) for i in range(6)})
    assert names(few) == ["{na,nb,nc,nd,ne,nf}"]
    many = build_tree({f"n{chr(97 + i)}": info(2) for i in range(7)})
    assert names(many) == ["{na,nb,nc,nd,ne,… 2 more}"]
    long = build_tree({chr(97 + i) * 200: info(2) for i in range(4)})
    assert names(long) == [f"{{{'a' * 200},… 3 more}}"]
    for tree, number in ((few, 6), (many, 7), (long, 4)):
        assert [(child.times, child.nbytes) for child in tree.children.values()] == [(number, 8 * number)]


@pytest.mark.parametrize("order", [["a", "a.b"], ["a.b", "a"]])
def test_a_key_that_is_a_module_too_hides_nothing(order: list[str]) -> None:
    tree = build_tree({key: info(2 if key == "a" else 3) for key in order})
    assert sorted(names(tree)) == ["a", "a.b"]
    assert (leaves(tree), tree.nbytes) == (2, 20)


def test_modules_whose_joined_names_are_equal_are_all_shown() -> None:
    tensors = {"{a,b}.w": info(5), "a.w": info(2), "b.w": info(2), "x.{0,1}": info(3), "x.0": info(2), "x.1": info(2)}
    tree = build_tree(tensors)
    assert leaves(tree) == len(tensors)
    assert tree.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_by_size_the_largest_come_first() -> None:
    tree = build_tree({"a.w": info(2), "b.w": info(9), "b.x": info(1), "c.w": info(5)}, by_size=True)
    assert names(tree) == ["b", "c.w", "a.w"]
    assert names(tree.children["b"]) == ["w", "x"]


def test_what_repeats_is_collapsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joins: list[int] = []
    before = trees._join
    monkeypatch.setattr(trees, "_join", lambda group: joins.append(len(group)) or before(group))
    keys = [f"layers.{i}.experts.{j}.{name}.weight" for i in range(20) for j in range(30) for name in ("up", "down")]
    found = build_tree({key: TensorInfo("float32", (2,)) for key in keys})
    assert [child.name for child in found.children.values()] == ["layers.{0..19}.experts.{0..29}.{up,down}.weight"]
    assert sorted(joins) == [1, 1, 1, 2, 20, 30]


@pytest.mark.parametrize("encoding", ["mxfp4", "fp8 with block scales"])
def test_an_encoding_is_separated_from_dtypes_by_a_semicolon(encoding: str) -> None:
    assert _joined(["float32", "bfloat16"]) == "bfloat16 float32"
    assert _joined([encoding, "bfloat16"]) == f"bfloat16; {encoding}"
