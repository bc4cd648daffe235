"""Which files the system makes: weights in /dev/shm are a user's."""

from __future__ import annotations

import pytest

from ckptsurgeon.storage.small_files import is_of_system


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/proc/self/status", True), ("/sys/kernel/x", True), ("/dev/null", True), ("/dev/shmx/weights.pt", True),
        ("/dev/shm/weights.pt", False), ("/home/weights.pt", False), ("dev/null", False),
    ],
)  # fmt: skip
def test_files_of_the_system_are_told_from_those_of_users(path: str, expected: bool) -> None:
    assert is_of_system(path) is expected
