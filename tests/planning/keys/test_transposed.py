"""Square matrices beside transposed ones: which of them may be transposed, too."""

from __future__ import annotations

from ckptsurgeon.planning.keys.transposed import is_transposed, square_siblings


def test_shapes_that_are_each_other_s_transpose() -> None:
    assert is_transposed((4, 6), (6, 4))
    assert is_transposed((2, 4, 6), (2, 6, 4))
    assert not is_transposed((4, 4), (4, 4))
    assert not is_transposed((4, 6), (4, 6))
    assert not is_transposed((4, 6), (6, 5))
    assert not is_transposed((2, 4, 6), (4, 2, 6))
    assert not is_transposed((4,), (6,))


def test_a_square_matrix_counts_if_all_others_of_its_layers_are_transposed() -> None:
    turned = ["h.0.mlp.weight"]
    assert square_siblings(turned, {"h.0.proj.weight": (4, 4), "h.1.proj.weight": (4, 4)}) == [
        "h.0.proj.weight", "h.1.proj.weight"
    ]  # fmt: skip
    assert not square_siblings(turned, {"h.0.proj.weight": (4, 4), "h.0.attn.weight": (12, 4)})
    assert not square_siblings(turned, {"h.0.mask": (4, 4), "wte.weight": (4, 4), "g.0.proj.weight": (4, 4)})
    assert not square_siblings(["mlp.weight"], {"proj.weight": (4, 4)})
