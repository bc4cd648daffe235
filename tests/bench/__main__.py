"""``make bench``: the numbers that are promised, measured side by side in one run.

    python -m tests.bench [--dir FOLDER] [--rounds 5] [--quick]

Needs about 25 GB of disk for a while (2 GB with --quick, whose figures are not those that are promised).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .batching import batching
from .builds import builds
from .checking import checking
from .deepseek import deepseek
from .dequantising import dequantising
from .editing import editing
from .factorising import factorising
from .files import make_many, make_model
from .growing import growing
from .harness import MB, Measured, Row, ckpt, python, rounds, run
from .lora import lora
from .merge_quality import merge_quality
from .merging import merging
from .patching import patching
from .proving import proving
from .resizing import resizing
from .scanning import scanning
from .searching import searching
from .sharing import sharing
from .small import small
from .spectra import spectra
from .training import loading, saving, training

COMPARED = Path(__file__).resolve().parents[2] / "docs" / "merging-compared.md"
SEEDS = 3
"""The number of seeds with which merges are judged."""
IN_PROCESS = """
import sys, time
{setup}
times = []
for _ in range(6):
    t = time.perf_counter()
    {body}
    times.append(time.perf_counter() - t)
print(sorted(times[1:])[2], file=sys.stderr)
"""


def start_up(folder: str, number: int) -> Iterator[Row]:
    """Starting costs less than importing torch."""
    seen = rounds(
        {
            "torch": python("import torch"),
            "inspect": ckpt("inspect", "big.pth"),
            "help": ckpt("--help"),
        },
        folder,
        number=number,
    )
    torch = seen["torch"]
    for name, what in (
        ("inspect", "ckpt inspect of a 2 GB .pth / import torch"),
        ("help", "ckpt --help / import torch"),
    ):
        yield Row(what, seen[name].time / torch.time, 0.25, seen=f"{seen[name].time:.2f} s / {torch.time:.2f} s")


def in_process(setup: str, body: str, folder: str) -> float:
    """Median seconds of a statement in a warm process."""
    done = subprocess.run(
        python(IN_PROCESS.format(setup=setup, body=body)), cwd=folder, capture_output=True, text=True, check=True
    )
    return float(done.stderr.strip().splitlines()[-1])


def header(folder: str) -> Iterator[Row]:
    """Reading a header of many tensors."""
    ours = in_process("import ckptsurgeon as cs; cs.open_checkpoint", "cs.open_checkpoint('many.pth').close()", folder)
    theirs = in_process("import torch", "torch.load('many.pth', mmap=True, weights_only=True)", folder)
    yield Row(
        "header of 92,000 tensors / torch.load(mmap=True)", ours / theirs, 0.25, seen=f"{ours:.2f} s / {theirs:.2f} s"
    )


def loop(load: str) -> list[str]:
    """What people do by hand."""
    return python(
        f"import torch, os\nd = torch.load('big.pth', {load})\n"
        "d = {k: v for k, v in d.items() if not k.startswith('decoder')}\n"
        "torch.save(d, 'out.pth')\nos.sync()"
    )


def copying(folder: str, number: int) -> Iterator[Row]:
    """Writing runs at the speed of the disk."""

    def clean() -> None:
        for name in ("out.pth", "out.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        os.sync()

    def transplant(source: str, config: str = "big.yaml") -> list[str]:
        return ckpt("transplant", source, config, "--exclude", "decoder", "-o", "out.safetensors")

    seen = rounds(
        {
            "cp": ["sh", "-c", "cp big.pth out.pth && sync out.pth"],
            "pth": transplant("big.pth"),
            "safetensors": transplant("big.safetensors"),
            "draw": transplant("big.pth", "big.draw.yaml"),
            "loop": loop("weights_only=True"),
            "mmap": loop("weights_only=True, mmap=True"),
            "torch": python("import torch"),
            "pass": python("pass"),
        },
        folder,
        before=clean,
        number=number,
    )
    clean()
    yield from _ratios(seen)


def _ratios(seen: dict[str, Measured]) -> Iterator[Row]:
    for name in ("pth", "safetensors"):
        ours = seen[name]
        for other, bound, what in (
            ("cp", 1.3, "cp and sync"),
            ("loop", 0.4, "torch.load, filter, torch.save, sync"),
            ("mmap", 0.6, "the same with mmap=True"),
        ):
            theirs = seen[other]
            seconds = f"{ours.time:.2f} s / {theirs.time:.2f} s"
            yield Row(f"transplant 2 GB .{name} / {what}", ours.time / theirs.time, bound, seen=seconds)
        peak = (ours.peak - seen["pass"].peak) / MB
        yield Row(f"peak memory, 2 GB .{name}, over python -c pass", peak, 64, unit="MB")
    draw, torch = seen["draw"], seen["torch"]
    more = (draw.time - torch.time) / seen["cp"].time
    yield Row(
        "transplant that draws 8.4 MB, less import torch / cp and sync", more, 1.3,
        seen=f"{draw.time:.2f} s - {torch.time:.2f} s / {seen['cp'].time:.2f} s",
    )  # fmt: skip
    yield Row(
        "peak memory where torch draws 8.4 MB, over import torch", (draw.peak - torch.peak) / MB, 8.4 + 64, unit="MB"
    )


def sizes(folder: str, names: list[str]) -> Iterator[Row]:
    """Memory does not grow with the model."""
    base = run(python("pass"), folder)[1]
    for name in names:
        command = ckpt(
            "transplant", f"{name}.pth", f"{name}.yaml", "--exclude", "decoder", "-o", "out.safetensors", "--force"
        )
        peak = (run(command, folder)[1] - base) / MB
        size = os.path.getsize(os.path.join(folder, f"{name}.pth")) / 1e9
        yield Row(f"peak memory, {size:.1f} GB .pth, over python -c pass", peak, 64, unit="MB")


def show(row: Row) -> None:
    mark = "met" if row.held else "MISSED"
    print(f"| {row.what} | {row.value:.2f} {row.unit} | {row.bound:.3g} {row.unit} | {mark} | {row.seen} |", flush=True)


def machine() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, commit {commit or 'unknown'}"


Rows = Iterator[Row]


def large(folder: str, number: int, quick: bool) -> Rows:
    """Files of 200 MB to 8 GB, and what is edited of them."""
    make_model(folder, "big", 200_000_000 if quick else 2_000_000_000)
    yield from start_up(folder, number)
    yield from copying(folder, number)
    make_many(folder)
    yield from editing(folder, number)
    make_model(folder, "small", 200_000_000)
    names = ["small", "big"]
    if not quick:
        make_model(folder, "huge", 8_000_000_000)
        names.append("huge")
    yield from header(folder)
    yield from sizes(folder, names)


def only_editing(folder: str, number: int, quick: bool) -> Rows:
    """Diff, rename and average."""
    make_model(folder, "big", 200_000_000 if quick else 2_000_000_000)
    make_many(folder)
    yield from editing(folder, number)


def all_training(folder: str, number: int, quick: bool) -> Rows:
    """The trainer's loop, its loading and its saving."""
    yield from training(folder, number)
    yield from loading(folder, number)
    yield from saving(folder, 1)


PARTS: Mapping[str, tuple[Callable[[str, int, bool], Rows], str]] = {
    "large": (large, "large files"),
    "training": (all_training, "the trainer's loop"),
    "batching": (lambda folder, number, quick: batching(folder, number, 48 if quick else 256), "batches by seconds"),
    "merging": (lambda folder, number, quick: merging(folder, number), "merges"),
    "factorising": (
        lambda folder, number, quick: factorising(folder, number, 2 if quick else 128),
        "merges of whole matrices",
    ),
    "spectra": (lambda folder, number, quick: spectra(folder, number, 2 if quick else 32), "methods of whole matrices"),
    "searching": (lambda folder, number, quick: searching(folder, number), "the trials of ckpt search"),
    "dequantising": (
        lambda folder, number, quick: dequantising(folder, number, layers=2 if quick else 16),
        "convert --dequantize",
    ),
    "deepseek": (lambda folder, number, quick: deepseek(folder, number), "headers of a folder shaped like DeepSeek-V3"),
    "scanning": (lambda folder, number, quick: scanning(folder, number, 0.05 if quick else 1.0), "ckpt scan"),
    "checking": (lambda folder, number, quick: checking(folder, number, 0.1 if quick else 1.0), "ckpt check"),
    "proving": (lambda folder, number, quick: proving(folder, number), "ckpt prove"),
    "lora": (lambda folder, number, quick: lora(folder, number, 2 if quick else 18), "merges of adapters"),
    "small": (lambda folder, number, quick: small(folder, number, 2_000 if quick else 200_000), "many small tensors"),
    "patching": (lambda folder, number, quick: patching(folder, number, layers=2 if quick else 32), "ckpt patch"),
    "sharing": (lambda folder, number, quick: sharing(folder, number, layers=2 if quick else 16), "several processes"),
    "resizing": (lambda folder, number, quick: resizing(folder, number, 2 if quick else 18), "ckpt resize of 2 GB"),
    "growing": (
        lambda folder, number, quick: growing(folder, 1 if quick else 3, 10 if quick else 200),
        "ckpt resize, trained on",
    ),
    "builds": (lambda folder, number, quick: builds(folder, number), "configurations of transformers"),
}
"""What is measured, in this order, by the name of its option."""
PARTIAL: Mapping[str, tuple[Callable[[str, int, bool], Rows], str]] = {
    "editing": (only_editing, "diff, rename and average"),
}
"""Parts of those, which are measured alone if they are asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=None, help="where to make the files; else a new folder here")
    parser.add_argument("--rounds", type=int, default=5, help="after a warm-up; 0: one round, no warm-up")
    parser.add_argument("--quick", action="store_true", help="small files, one round: to see that it runs")
    known = {**PARTS, **PARTIAL}
    for name, (_, what) in known.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"only {what}")
    parser.add_argument(
        "--merge-quality", action="store_true", help="judge all merge methods: docs/merging-compared.md"
    )
    options = parser.parse_args()
    number = 1 if options.quick else options.rounds
    chosen = [name for name in known if getattr(options, name)] or list(PARTS)
    folder = tempfile.mkdtemp(prefix="bench-", dir=options.dir or os.getcwd())
    missed = 0
    try:
        if options.merge_quality:
            text = merge_quality(folder, 1 if options.quick else SEEDS, machine(), quick=options.quick)
            print(text) if options.quick else COMPARED.write_text(text)
            return
        print(machine())
        print("\n| what | measured | limit | | medians |\n|---|---|---|---|---|", flush=True)
        for name in chosen:
            for row in known[name][0](folder, number, options.quick):
                show(row)
                missed += not row.held
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{missed} missed" if missed else "\nall limits met")


if __name__ == "__main__":
    main()
