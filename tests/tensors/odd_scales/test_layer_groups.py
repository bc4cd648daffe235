"""Single layers that are larger, or smaller, than all others in every role."""

from __future__ import annotations

import pytest

from ckptsurgeon.tensors.odd_scales.layer_groups import outlying_layers

ROLES = ("q", "k", "up")


def sizes(number: int, odd: dict[tuple[int, str], float]) -> dict[str, float]:
    return {f"layers.{at}.{role}": odd.get((at, role), 0.1 * at) for at in range(number) for role in ROLES}


@pytest.mark.parametrize("by", [4.0, -4.0])
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_layer_that_is_unlike_the_others_in_all_roles(at: int, by: float) -> None:
    large, small = outlying_layers(sizes(6, {(at, role): by for role in ROLES}), 3)
    wanted = [f"layers.{at}.{role}" for role in ROLES]
    assert (large, small) == ((wanted, []) if by > 0 else ([], wanted))


def test_one_role_that_is_like_the_others_acquits_a_layer() -> None:
    assert outlying_layers(sizes(6, {(2, "q"): 4, (2, "k"): 4}), 3) == ([], [])


def test_a_role_that_was_not_looked_at_says_nothing() -> None:
    found = sizes(6, {(2, role): 4 for role in ROLES})
    del found["layers.2.q"]
    assert outlying_layers(found, 3) == ([], [])
    assert outlying_layers(found, 3, 2) == (["layers.2.k", "layers.2.up"], [])


def test_many_layers_or_too_few_are_no_single_ones() -> None:
    two = {(at, role): 4.0 for at in (1, 2) for role in ROLES}
    assert outlying_layers(sizes(6, two), 3) == ([], [])
    assert len(outlying_layers(sizes(8, two), 3)[0]) == 6
    assert outlying_layers(sizes(3, {(0, role): 4 for role in ROLES}), 3) == ([], [])


def test_all_experts_of_a_layer_count() -> None:
    found = {
        f"layers.{at}.experts.{one}.{role}": 4.0 * (at == 1) for at in range(4) for one in range(2) for role in ROLES
    }
    assert len(outlying_layers(found, 3)[0]) == 6
    found["layers.1.experts.0.q"] = 0
    assert outlying_layers(found, 3) == ([], [])
