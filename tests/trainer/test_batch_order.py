"""The order of batches: a pure function of seed and epoch, of clips of like length."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ckptsurgeon.trainer.data.loader import BatchSize, epoch_batches, padding, sorted_batches

LENGTHS = [random.Random(i).uniform(0.5, 3.5) for i in range(1600)]


def test_each_clip_is_in_one_batch() -> None:
    for number in (1, 31, 32, 33, 1600):
        batches = epoch_batches(LENGTHS[:number], BatchSize(32), seed=0, epoch=0)
        assert sorted(place for batch in batches for place in batch) == list(range(number))
        assert len(batches) == -(-number // 32)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = epoch_batches(LENGTHS, BatchSize(32), seed=1, epoch=2)
    assert first == epoch_batches(LENGTHS, BatchSize(32), seed=1, epoch=2)
    assert first != epoch_batches(LENGTHS, BatchSize(32), seed=1, epoch=3)
    assert first != epoch_batches(LENGTHS, BatchSize(32), seed=2, epoch=2)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_batches([3, 1, 2, 5, 4, 6], BatchSize(2), seed=0, epoch=0) == [[1, 2], [0, 4], [3, 5]]


def test_company_changes_every_epoch() -> None:
    together = [{frozenset(batch) for batch in epoch_batches(LENGTHS, BatchSize(8), seed=0, epoch=e)} for e in range(2)]
    assert len(together[0] & together[1]) < 10


def test_no_global_random_state_is_touched() -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    epoch_batches(LENGTHS, BatchSize(32), seed=0, epoch=0)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_clips_of_like_length_go_together() -> None:
    mixed = [list(range(begin, begin + 32)) for begin in range(0, 1600, 32)]
    assert padding(LENGTHS, mixed) > 0.35
    assert padding(LENGTHS, epoch_batches(LENGTHS, BatchSize(32), seed=0, epoch=0)) < 0.05
    assert padding(LENGTHS, sorted_batches(LENGTHS, BatchSize(32))) < 0.02


def test_padding_is_a_share_of_what_is_computed() -> None:
    assert padding([1, 3], [[0, 1]]) == 1 - 4 / 6
    assert padding([1, 3], [[0], [1]]) == 0
    assert padding([], []) == padding([0, 0], [[0, 1]]) == 0


def test_sorted_batches_begin_with_the_longest() -> None:
    assert sorted_batches([1, 3, 2, 3], BatchSize(2)) == [[1, 3], [2, 0]]


@pytest.mark.parametrize("seconds", [2.0, 20.0, 100.0])
def test_batches_by_seconds_have_each_clip_once_and_never_more_than_was_asked_for(seconds: float) -> None:
    lengths = [random.Random(i).uniform(1, 15) for i in range(800)]
    size = BatchSize(seconds=seconds)
    for epoch in range(2):
        batches = epoch_batches(lengths, size, seed=0, epoch=epoch)
        assert sorted(place for batch in batches for place in batch) == list(range(800))
        rooms = [len(batch) * max(lengths[place] for place in batch) for batch in batches]
        assert all(room <= seconds or len(batch) == 1 for room, batch in zip(rooms, batches, strict=True))
        assert epoch_batches(lengths, size, seed=0, epoch=epoch) == batches
    (longest, *_) = sorted_batches(lengths, size)
    assert lengths[longest[0]] == max(lengths)


def test_batches_by_seconds_need_half_the_memory_for_no_more_padding_and_are_of_like_work() -> None:
    """Against 16 clips each, of speech of 1 to 15 s; nobody's clips are in the order of their lengths."""
    lengths = [random.Random(i).uniform(1, 15) for i in range(1600)]
    made = {
        "clips": epoch_batches(lengths, BatchSize(16), seed=0, epoch=0),
        "seconds": epoch_batches(lengths, BatchSize(seconds=122.0), seed=0, epoch=0),
    }
    rooms = {
        name: [len(batch) * max(lengths[place] for place in batch) for batch in batches]
        for name, batches in made.items()
    }
    assert len(made["seconds"]) < 1.15 * len(made["clips"])
    assert max(rooms["seconds"]) < 0.55 * max(rooms["clips"])
    assert padding(lengths, made["seconds"]) < padding(lengths, made["clips"])
    mixed = [list(range(begin, begin + 16)) for begin in range(0, 1600, 16)]
    assert padding(lengths, made["seconds"]) < 0.1 * padding(lengths, mixed)


def test_pools_by_seconds_differ_in_every_epoch() -> None:
    lengths = [random.Random(i).uniform(1, 15) for i in range(3000)]
    size = BatchSize(seconds=100.0)
    together = [{frozenset(batch) for batch in epoch_batches(lengths, size, seed=0, epoch=e)} for e in range(2)]
    assert len(together[0] & together[1]) < 0.1 * len(together[0])
