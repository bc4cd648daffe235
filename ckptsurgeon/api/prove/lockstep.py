"""Runs several networks at once, each in a thread of its own, which wait for each other before each block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError, ConfigError
from ...util.text import escape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .inputs import Inputs
    from .network import Network

__all__ = ["InLockstep"]

Merge = Callable[[str, Sequence[Callable[[], Any]]], "dict[str, Tensor]"]
"""A function that gets the name of a block, and for each network a function that runs its block on its own inputs.

It returns the parameters with which all networks then run the block."""
Holding = Callable[[int, "Mapping[str, Tensor]"], Any]
"""A function of the index of a network and parameters: it returns a context in which the network has the parameters."""


class _StoppedError(BaseException):
    """Raised in the thread of a network if another one has failed."""


class InLockstep:
    """Runs networks block by block; only one thread works at a time.

    Before a block, all networks wait until each has reached it. Then ``merge`` is called in the main thread, and each
    network runs the block with the parameters that ``merge`` returned. If a block runs again, ``merge`` is not called
    again: the block keeps its parameters.
    """

    def __init__(self, modules: Sequence[nn.Module], blocks: Sequence[str], merge: Merge, holding: Holding) -> None:
        self._modules, self._blocks, self._merge, self._holding = modules, blocks, merge, holding
        self._reached: SimpleQueue[tuple[int, str, Any]] = SimpleQueue()
        self._turns = [Event() for _ in modules]
        self._known: dict[str, Mapping[str, Tensor]] = {}
        self._is_merging = self._stopped = False

    def run(self, networks: Sequence[Network], inputs: Sequence[Inputs]) -> None:
        """Run all networks on their inputs.

        Raises ConfigError if a network raises an exception, or if the networks do not run the same blocks in the same
        order.
        """
        from ...destinations.hf.model import offline

        with offline(), ExitStack() as hooks:
            for number, module in enumerate(self._modules):
                self._hook(number, module, hooks)
            threads = [
                Thread(target=self._call, args=(number, *pair), daemon=True)
                for number, pair in enumerate(zip(networks, inputs, strict=True))
            ]
            try:
                self._coordinate(threads)
            finally:
                self._stop()
                for one in threads:
                    if one.ident is not None:
                        one.join()

    def _hook(self, number: int, model: nn.Module, hooks: ExitStack) -> None:
        modules = dict(model.named_modules())
        for name in self._blocks:
            held = ExitStack()
            before = partial(self._before, number, name, held)
            hooks.callback(modules[name].register_forward_pre_hook(before, with_kwargs=True).remove)
            after = modules[name].register_forward_hook(partial(self._after, held), always_call=True)
            hooks.callback(after.remove)

    def _before(self, number: int, name: str, held: ExitStack, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_merging:
            return
        self._tell(number, name, partial(module, *args, **kwargs))
        held.enter_context(self._holding(number, self._known[name]))

    def _after(self, held: ExitStack, *_: Any) -> None:
        if not self._is_merging:
            held.close()

    def _tell(self, number: int, name: str, run: Any) -> None:
        """Report the block that a network has reached, and wait for the turn of this network.

        Raises _StoppedError if the run of all networks is stopped meanwhile.
        """
        self._turns[number].clear()
        self._reached.put((number, name, run))
        self._turns[number].wait()
        if self._stopped:
            raise _StoppedError

    def _call(self, number: int, network: Network, inputs: Inputs) -> None:
        import torch

        error: Exception | None = None
        try:
            with torch.inference_mode():
                network.module(**inputs.arguments_for(network.module))
        except _StoppedError:
            return
        except Exception as raised:  # a network is foreign code, which may raise anything
            error = raised
        self._reached.put((number, "", error))

    def _coordinate(self, threads: Sequence[Thread]) -> None:
        waiting: dict[int, tuple[str, Any]] = {}
        for number, thread in enumerate(threads):
            thread.start()
            self._take(waiting)
            assert number in waiting
        while any(run is not None for _, run in waiting.values()):
            self._check(waiting)
            name = waiting[0][0]
            if name not in self._known:
                self._is_merging = True
                self._known[name] = self._merge(
                    name, [partial(_guarded, number, waiting[number][1]) for number in range(len(threads))]
                )
                self._is_merging = False
            for number in range(len(threads)):
                del waiting[number]
                self._turns[number].set()
                self._take(waiting)

    def _take(self, waiting: dict[int, tuple[str, Any]]) -> None:
        """Wait until a network has reached a block, or has finished; raises CheckpointError if a network fails."""
        number, name, run = self._reached.get()
        if isinstance(run, Exception):
            raise _failed(number, run) from run
        waiting[number] = name, run

    def _check(self, waiting: Mapping[int, tuple[str, Any]]) -> None:
        """Raise ConfigError unless all networks have reached the same block."""
        names = {name or "the end" for name, _ in waiting.values()}
        if len(names) > 1:
            raise ConfigError(
                f"with these inputs, the networks do not run the same blocks: {', '.join(map(escape, sorted(names)))}.",
                hint="Give all networks inputs of the same kind.",
            )

    def _stop(self) -> None:
        self._stopped = True
        for one in self._turns:
            one.set()


def _guarded(number: int, run: Callable[[], Any]) -> Any:
    """Run a block of a network; raises ConfigError for any exception of the network."""
    try:
        return run()
    except CheckpointError:
        raise
    except Exception as error:  # a network is foreign code, which may raise anything
        raise _failed(number, error) from error


def _failed(number: int, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError(
        f"network {number + 1} does not run: {escape(said, 300).rstrip('.')}.",
        hint="Give inputs that fit the network: --inputs FILE.safetensors.",
    )
