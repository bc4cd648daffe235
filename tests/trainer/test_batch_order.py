"""The order of batches: a pure function of seed and epoch, of clips of like length."""

from __future__ import annotations

import random

import numpy as np
import torch

from ckptsurgeon.trainer.data.loader import epoch_batches, padding, sorted_batches

LENGTHS = [random.Random(i).uniform(0.5, 3.5) for i in range(1600)]


def test_each_clip_is_in_one_batch() -> None:
    for number in (1, 31, 32, 33, 1600):
        batches = epoch_batches(LENGTHS[:number], 32, seed=0, epoch=0)
        assert sorted(place for batch in batches for place in batch) == list(range(number))
        assert len(batches) == -(-number // 32)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = epoch_batches(LENGTHS, 32, seed=1, epoch=2)
    assert first == epoch_batches(LENGTHS, 32, seed=1, epoch=2)
    assert first != epoch_batches(LENGTHS, 32, seed=1, epoch=3)
    assert first != epoch_batches(LENGTHS, 32, seed=2, epoch=2)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_batches([3, 1, 2, 5, 4, 6], 2, seed=0, epoch=0) == [[1, 2], [0, 4], [3, 5]]


def test_company_changes_every_epoch() -> None:
    together = [{frozenset(batch) for batch in epoch_batches(LENGTHS, 8, seed=0, epoch=e)} for e in range(2)]
    assert len(together[0] & together[1]) < 10


def test_no_global_random_state_is_touched() -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    epoch_batches(LENGTHS, 32, seed=0, epoch=0)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_clips_of_like_length_go_together() -> None:
    mixed = [list(range(begin, begin + 32)) for begin in range(0, 1600, 32)]
    assert padding(LENGTHS, mixed) > 0.35
    assert padding(LENGTHS, epoch_batches(LENGTHS, 32, seed=0, epoch=0)) < 0.05
    assert padding(LENGTHS, sorted_batches(LENGTHS, 32)) < 0.02


def test_padding_is_a_share_of_what_is_computed() -> None:
    assert padding([1, 3], [[0, 1]]) == 1 - 4 / 6
    assert padding([1, 3], [[0], [1]]) == 0
    assert padding([], []) == padding([0, 0], [[0, 1]]) == 0


def test_sorted_batches_begin_with_the_longest() -> None:
    assert sorted_batches([1, 3, 2, 3], 2) == [[1, 3], [2, 0]]
