"""What the first run of the tests in a checkout prepares, while another process collects them.

pytest rewrites the assertions of 700 modules, and hypothesis looks for the constants of 1,400. Both keep what they found
for the next run, but processes that begin together would each look for all constants: 13 seconds of a processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

__all__ = ["none_yet", "prepare", "prepare_for"]

ROOT = Path(__file__).parents[2]


def none_yet() -> bool:
    """Return whether there is nothing of an earlier run."""
    return not (ROOT / ".hypothesis/constants").is_dir()


def prepare_for(args: Sequence[str]) -> None:
    """Prepare what the tests need that pytest runs with these arguments."""
    from _pytest.config import _prepareconfig

    prepare(_prepareconfig([*args]))


def prepare(config: pytest.Config) -> None:
    """Prepare from the last file of tests to the first: who collects them begins with the first, and they meet."""
    with suppress(ImportError, AttributeError):  # other versions of pytest or hypothesis: each process prepares all
        _rewrite(config, [*_tests(config)][::-1])
        if [*config.args] == config.getini("testpaths"):  # some tests may need none
            _find_constants(sorted(ROOT.glob("ckptsurgeon/**/*.py")))


def _tests(config: pytest.Config) -> Iterator[Path]:
    """Yield the files of tests that were asked for."""
    for given in config.args:
        path = config.invocation_params.dir / given.partition("::")[0]
        yield from sorted(path.rglob("test_*.py")) if path.is_dir() else [path][: path.is_file()]


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
