"""What the first run of the tests in a checkout prepares, shared out among the processes that test together.

pytest rewrites the assertions of 700 modules, and hypothesis looks for the constants of 1,400. Both keep what they found
for the next run, but processes that begin together would each do all of it: 13 seconds of a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

__all__ = ["NONE_YET", "prepare_a_share", "pytest_configure_node"]

ROOT = Path(__file__).parents[2]
NONE_YET = "no_constants_yet"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that is about to start whether it finds the constants of an earlier run."""
    node.workerinput[NONE_YET] = not (ROOT / ".hypothesis/constants").is_dir()


def prepare_a_share(config: pytest.Config) -> None:
    """Prepare what is this process's share: of the files each process takes another."""
    told = getattr(config, "workerinput", {})
    number, of = int(str(told.get("workerid", "gw0"))[2:]), int(told.get("workercount", 1))
    if of == 1:
        return
    with suppress(ImportError, AttributeError):  # other versions of pytest or hypothesis: each process prepares all
        _rewrite(config, list(_tests(config))[number::of])
        if told.get(NONE_YET) and [*config.args] == config.getini("testpaths"):  # some tests may need none
            _find_constants(sorted(ROOT.glob("ckptsurgeon/**/*.py"))[number::of])


def _tests(config: pytest.Config) -> Iterator[Path]:
    """Yield the files of tests that were asked for."""
    for given in config.args:
        path = config.invocation_params.dir / given.partition("::")[0]
        yield from sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def _rewrite(config: pytest.Config, paths: list[Path]) -> None:
    from _pytest.assertion import rewrite

    for path in paths:
        folder = rewrite.get_cache_dir(path)
        kept = folder / (path.stem + rewrite.PYC_TAIL)
        if not kept.exists() and rewrite.try_makedirs(folder):  # one that is too old is replaced by who imports it
            mark, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, mark, kept)


def _find_constants(paths: list[Path]) -> None:
    from hypothesis.internal.constants_ast import constants_from_module

    for path in paths:
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        constants_from_module(module)
