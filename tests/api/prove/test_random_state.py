"""A network is built without a change of the random state, whatever other threads draw."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from ckptsurgeon.api.prove import opening
from ckptsurgeon.destinations.torch_module.user_code import PROCESS_STATE


def is_held() -> bool:
    """Whether this thread keeps others from changing the random state."""

    def taken() -> bool:
        found = PROCESS_STATE.acquire(blocking=False)
        if found:
            PROCESS_STATE.release()
        return found

    with ThreadPoolExecutor(1) as other:
        return not other.submit(taken).result()


def test_the_state_is_saved_when_no_other_thread_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waited after it saved the state of another would put it back as that of the process."""
    get: Callable[[], Tensor] = torch.get_rng_state
    held = list[bool]()
    before = get()
    monkeypatch.setattr(torch, "get_rng_state", lambda: (held.append(is_held()), get())[1])
    made = opening.built_module(lambda: nn.Linear(2, 3))
    assert set(held) == {True}
    assert torch.equal(get(), before)
    assert not is_held()
    assert next(made.parameters()).is_meta
