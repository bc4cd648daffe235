"""How the processes that test together (pytest-xdist) are told what to run, and what they tell of it.

With 28,000 tests, telling takes a minute of the processors' time if each test is looked for in the list of all, if after
each test all earlier ones are counted, and if six messages are sent of one that passed.
"""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["pytest_xdist_make_scheduler", "tell_less"]


class _Listed(list[str]):
    """The names of all tests, with the place of each."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.places = {name: place for place, name in enumerate(names)}

    def index(self, name: str, *_: Any) -> int:
        return self.places[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, as ``--dist loadfile`` does."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    done = set[str]()

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def add_node_collection(self, node: Any, collection: list[str]) -> None:
            super().add_node_collection(node, collection)
            if node in self.registered_collections:
                self.registered_collections[node] = _Listed(collection)

        def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
            """Count each file until it is done."""
            left = {name: list(file.values()).count(False) for name, file in workload.items() if name not in done}
            done.update(name for name, number in left.items() if not number)
            return sum(left.values())

    return Scheduling(config, log)


def tell_less(config: pytest.Config) -> None:
    """Send one report of a test that passes, not its beginning, preparation, output and end, unless they are asked for."""
    interactor = next((each for each in config.pluginmanager.get_plugins() if hasattr(each, "sendevent")), None)
    asked = [config.getoption(name, None) for name in ("durations", "xmlpath")]
    if interactor is None or config.option.verbose > 0 or any(asked) or {*"pPA"} & {*config.option.reportchars}:
        return
    send = interactor.sendevent

    def less(name: str, **of: Any) -> None:
        if name in ("logstart", "logfinish"):
            return
        if name == "testreport" and of["data"]["outcome"] == "passed":
            if of["data"]["when"] != "call":
                return
            of["data"] |= {"sections": [], "keywords": {}}
        send(name, **of)

    interactor.sendevent = less
