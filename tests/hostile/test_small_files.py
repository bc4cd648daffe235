"""Whatever small file a command is given or finds: it is neither waited for, nor read beyond what such a file has."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.storage.descriptors import IrregularError
from ckptsurgeon.storage.small_files import read_file, read_text
from ckptsurgeon.trainer.manifests._text import read_rows
from ckptsurgeon.trainer.speech.demo import read_words
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary

from ..promises.clauses import COSTS, SPECIAL, clause
from .holding import nothing_changed

Run = Callable[..., Any]
ROOT = Path(cs.__file__).parent
HUGE = 1 << 30
BEYOND = 257 << 20
"""More than is read of any file that a command finds, and no more than that: what it copies it also sums."""


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is at most 107 bytes long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def folder(path: Path) -> None:
    path.mkdir()


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, HUGE)


def hole_beside(path: Path) -> None:
    path.touch()
    os.truncate(path, BEYOND)


def newlines(path: Path) -> None:
    """More than is read of most small files, and many lines of a token list."""
    path.write_bytes(b"\n" * (1_000_000 if path.suffix == ".txt" else 17_000_000))


def read_rows_of(path: str) -> object:
    return list(read_rows(path, ["wav"]))


KINDS = {"a FIFO": fifo, "a device": device, "a socket": bound, "a folder": folder, "a hole": hole}
KINDS_BESIDE = {**KINDS, "a hole": hole_beside}
COSTLY = {"newlines": newlines}

NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "a configuration": ("x.yaml", ("transplant", "a.safetensors", "x.yaml", "-n")),
    "a configuration in JSON": ("x.json", ("transplant", "a.safetensors", "x.json", "-n")),
    "a plan": ("x.json", ("apply", "x.json")),
    "a recipe": ("x.yaml", ("apply", "x.yaml")),
    "a recipe of mergekit's": ("x.yaml", ("merge", "x.yaml", "-o", "out.safetensors")),
    "a map file": ("x.map", ("rename", "a.safetensors", "--map-file", "x.map", "-o", "out.safetensors")),
    "operations": ("x.yaml", ("rename", "a.safetensors", "--operations", "x.yaml", "-o", "out.safetensors")),
    "groups of axes": (
        "x.yaml", ("merge", "--method", "linear", "a.safetensors", "b.safetensors", "--align", "--align-groups", "x.yaml", "-o", "o.safetensors")
    ),
    "a plugin": (
        "x.py", ("merge", "--method", "mine", "--plugin", "x.py", "a.safetensors", "a.safetensors", "-o", "o.safetensors")
    ),
    "an old token list": ("x.txt", ("transplant", "a.safetensors", "b.safetensors", "--vocab", "x.txt:t.txt", "-n")),
    "a new token list": ("x.txt", ("transplant", "a.safetensors", "b.safetensors", "--vocab", "t.txt:x.txt", "-n")),
    "a configuration to train": ("x.yaml", ("train", "x.yaml", "--init", "a.safetensors", "--device", "cpu")),
}  # fmt: skip
"""What a command line names: the name of the file, and the command, which must say that it cannot be read."""

BESIDE = {
    name: ("model", commands)
    for name, commands in {
        "config.json": (
            ("inspect", "model"), ("convert", "model", "-o", "out"), ("transplant", "model", "b.safetensors", "-n"),
            ("transplant", "a.safetensors", "model", "-n"), ("merge", "--method", "linear", "model", "model", "-o", "out"),
        ),
        "generation_config.json": (("convert", "model", "-o", "out"),),
        "tokenizer.json": (("convert", "model", "-o", "out"), ("average", "model", "model", "-o", "out")),
        "hf_quant_config.json": (("inspect", "model"), ("convert", "model", "-o", "out")),
        "added_tokens.json": (("convert", "model", "-o", "out"),),
        "ckpt.recipe.json": (("convert", "a.safetensors", "-o", "model", "--force"), ("verify", "model")),
        "model.safetensors.index.json": (("inspect", "model"),),
    }.items()
}  # fmt: skip
"""What a command finds in a folder, and may go on without."""


@contextmanager
def not_waiting(seconds: int = 60) -> Iterator[None]:
    """Fail where something is waited for."""

    def late(*_: object) -> None:
        raise TimeoutError("it is waited for")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def material() -> None:
    save_file({"embed.weight": torch.ones(4, 2), "w": torch.ones(2, 2)}, "a.safetensors")
    save_file({"embed.weight": torch.ones(4, 2), "w": torch.zeros(2, 2)}, "b.safetensors")
    Path("t.txt").write_text("a\nb\nc\nd\n")
    Path("dst.yaml").write_text("model: {name: hybrid_asr, vocab: [a, b], encoder: {dim: 8, layers: 1, heads: 1}}\n")
    Path("model").mkdir()
    shutil.copy("a.safetensors", "model/model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4, "hidden_size": 2}
    Path("model/config.json").write_text(json.dumps(config))


@clause(SPECIAL)
@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.long) for kind in COSTLY)])
@pytest.mark.parametrize("role", NAMED)
def test_what_a_command_line_names_is_refused(role: str, kind: str, ckpt: Run) -> None:
    name, command = NAMED[role]
    material()
    {**KINDS, **COSTLY}[kind](Path(name))
    with not_waiting(), nullcontext() if kind == "a hole" else nothing_changed():
        told = ckpt(*command)
    assert told.code in (2, 3), told
    assert told.err.startswith("error: "), told
    assert "Traceback" not in told.err
    assert name in told.err


@clause(SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BESIDE)
def test_what_a_command_finds_is_not_waited_for(name: str, kind: str, ckpt: Run) -> None:
    place, commands = BESIDE[name]
    material()
    path = Path(place, name)
    path.unlink(missing_ok=True)
    KINDS_BESIDE[kind](path)
    for command in commands:
        with not_waiting():
            told = ckpt(*command)
        assert told.code in (0, 2, 3, 4, 5), told
        assert "Traceback" not in told.err
        if told.code:
            assert told.err.startswith("error: "), told
        shutil.rmtree("out", ignore_errors=True)


@clause(SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lineage.json", "result.json", "checks.json", "log.jsonl"])
def test_a_run_of_special_files_is_refused(name: str, kind: str, ckpt: Run) -> None:
    Path("run").mkdir()
    for one in ("lineage.json", "result.json", "checks.json"):
        Path("run", one).write_text("{}")
    Path("run/log.jsonl").touch()
    path = Path("run", name)
    path.unlink()
    KINDS_BESIDE[kind](path)
    for command in (("view", "run", "-o", "page.html"), ("train", "--resume", "--run", "run", "--device", "cpu")):
        with not_waiting():
            told = ckpt(*command)
        assert told.code in (0, 2, 3), told
        assert "Traceback" not in told.err


@clause(SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_words, read_rows_of, read_vocabulary])
def test_lists_of_words_and_of_clips_are_refused(read: Callable[[str], object], kind: str) -> None:
    KINDS[kind](Path("x.csv"))
    with not_waiting(), pytest.raises(cs.ConfigError, match=r"x\.csv cannot be read"):
        read("x.csv")


@clause(SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_whose_configuration_is_special(kind: str, ckpt: Run) -> None:
    Path("adapter").mkdir()
    save_file({"base_model.model.w.lora_A.weight": torch.ones(1, 2)}, "adapter/adapter_model.safetensors")
    KINDS[kind](Path("adapter/adapter_config.json"))
    material()
    for command in (("inspect", "adapter"), ("lora", "merge", "model", "adapter", "-o", "out")):
        with not_waiting():
            told = ckpt(*command)
        assert told.code in (0, 2, 3, 4), told
        assert "Traceback" not in told.err


@clause(COSTS)
def test_a_large_file_is_refused_by_its_size_alone() -> None:
    hole(Path("x"))
    tracemalloc.start()
    with pytest.raises(OSError, match=r"it has 1\.1 GB, and at most 16\.8 MB are read"):
        read_file("x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    Path("y").write_bytes(b"a\r\nb\rc\n")
    assert read_text("y") == "a\nb\nc\n"
    assert read_file("y", 7) == b"a\r\nb\rc\n"
    with pytest.raises(OSError, match="at most 6 B"):
        read_file("y", 6)
    fifo(Path("z"))
    with pytest.raises(IrregularError, match="it is a FIFO, not a regular file"):
        read_file("z")


def test_files_of_the_system_that_say_they_are_empty_are_read_and_bounded() -> None:
    assert b"MemTotal" in read_file("/proc/meminfo")
    with pytest.raises(OSError, match="at most 4 B"):
        read_file("/proc/meminfo", 4)


OPENERS = {"open", "fdopen", "memmap", "load", "fromfile", "read_text", "read_bytes", "FileIO", "open_code"}
CALLED = re.compile(rf"\b({'|'.join(OPENERS)})[\s)]*\(")
"""What a module has that calls one of these: the others need not be parsed, which takes seconds."""
MAY_OPEN = {
    "storage/descriptors.py": "the one place",
    "storage/small_files.py": "files that storage/descriptors.py opened",
    "api/prove/media/image_files.py": "files that are open already, by Pillow",
    "api/search/study.py": "the lines of a study, which are written",
    "api/pretrainer/loading.py": "torch's own function, which is wrapped",
    "cli/__init__.py": "standard streams",
    "cli/failing.py": "a module of ckptsurgeon that Python could not compile",
    "cli/completion/answers.py": "/dev/null",
    "trainer/run/judge_models.py": "the pipe for the answers, which is open already",
    "cli/completion/installing.py": "the shell's own start-up file, which is written, and the kernel's name of the shell",
    "destinations/hf/stock_code.py": "files of installed packages",
    "storage/cached_documents.py": "our own cache, which is written and checked against its checksum",
    "storage/upload/pending.py": "fsspec's own file systems",
    "storage/write/shard_deletion.py": "what is left of a shard, which is written, and the shard, which is deleted",
    "storage/write/folders.py": "descriptors of folders, and what is written",
    "storage/write/headers.py": "files whose headers are replaced, by no link, and the journal, which is written",
    "storage/write/journal.py": "the journal, which is written",
    "storage/write/output_paths.py": "the lock, which is written",
    "storage/fetch/store.py": "fsspec's own file systems",
    "analysis/page/html.py": "files of the package",
    "destinations/_espnet_tasks.py": "a file of the package",
    "api/model_folder/weights/required_parts.py": "a file of the package",
    "api/statistics/gram_sums.py": "temporary files without a name",
    "destinations/torch_module/child.py": "/dev/null",
    "analysis/scan/walk.py": "sources",
    "storage/read/http/spool.py": "what is written beside the cache, by no link",
    "storage/read/http/range_cache.py": "what is written beside the cache, by no link",
    "storage/read/uri.py": "sources",
    "util/lazy.py": "the stub of the façade, beside it",
    "trainer/data/cache.py": "a map of a file that was opened and found to be whole",
    "trainer/data/inputs.py": "pieces of the cache, and arrays, once they are known to be regular files",
    "trainer/log.py": "the log, which is written",
    "trainer/folder/run_folder.py": "the state of a run, by torch's reader of plain data; the lock, which is written",
    "trainer/speech/demo.py": "what is written",
}
"""Modules that open anything by another way than storage/descriptors.py, and what."""


def opened(tree: ast.AST) -> Iterator[str]:
    """Yield what a module calls that opens a file by its path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            func = node.func
            name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            of = getattr(getattr(func, "value", None), "id", "") if isinstance(func, ast.Attribute) else ""
            if name == "load" and of not in ("np", "numpy", "torch"):
                continue
            if name in OPENERS and not (name == "read_text" and isinstance(func, ast.Name)):
                yield f"{of}.{name}" if of else name


def test_nothing_but_one_module_opens_files() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in ROOT.rglob("*.py")
        if CALLED.search(text := path.read_text()) and (names := sorted(set(opened(ast.parse(text)))))
    }
    assert {name: names for name, names in found.items() if name not in MAY_OPEN} == {}
    assert MAY_OPEN.keys() <= found.keys()
