"""What a proof says of weights that the inputs do not use: equal is said only of what was found to be so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from ckptsurgeon.analysis.prove.figures import Distance
from ckptsurgeon.analysis.prove.proof import BlockResult, Proof, ProvedNetwork
from ckptsurgeon.render.prove import proof_view

NETWORK = ProvedNetwork("a", "Net", 4, ("float32",))
SAME, FAR = Distance(0.0, 1.0, 0.0, same=True), Distance(0.5, 0.9, 0.5, same=False)
PROOF = Proof(
    NETWORK, NETWORK, "x", (BlockResult("b", 0, SAME),), BlockResult("", 0, SAME), unused=("p", "q", "r", "s")
)


def said(proof: Proof) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(proof_view(proof))
    return captured.get()


@pytest.mark.parametrize(
    ("proof", "text"),
    [
        (PROOF, "none of which differs by more than rounding explains: p, q, r, and 1 more (--json lists all)"),
        (replace(PROOF, unused_differing=("q",)), "1 of which differs by more than rounding explains: q"),
        (
            replace(PROOF, output=BlockResult("", 0, FAR, 1e-6), changed_elsewhere=("q", "r", "t")),
            "2 of which differ by more than rounding explains: q, r",
        ),
    ],
    ids=["no difference", "a difference", "a difference beside a drift"],
)
def test_weights_that_are_not_reached_are_called_equal_only_if_they_are(proof: Proof, text: str) -> None:
    assert f"4 tensors that these inputs do not use, {text}\n" in said(proof)


def test_blocks_that_are_not_shown_differ_only_beyond_rounding() -> None:
    near = [BlockResult(f"b{i}", 0, Distance(1e-7, 1.0, 1e-7, same=False), 1e-6) for i in range(9)]
    far = [BlockResult(f"c{i}", 0, FAR, 1e-6) for i in range(9)]
    proof = replace(PROOF, unused=(), blocks=(*near, *far), output=BlockResult("", 0, FAR, 1e-6))
    assert "and 13 more, 5 of which differ by more than rounding explains (-v shows all)" in said(proof)
