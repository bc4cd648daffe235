"""The command ``ckpt train``: trains from initial weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..printing import Printer, quoted
from ..stopping import set_run_folder, unwinding
from ..training import ProgressDisplay

if TYPE_CHECKING:
    from ...trainer.run.result import Trained

KEPT_BYTES = 1 << 30
"""The freed memory that a training process keeps for the tensors of the next step."""

NAME = "train"
HELP = """Train from initial weights, and check that it worked.

The configuration defines the model and, in its section train:, the training. Without a configuration, ckpt uses the
only *.init.safetensors in the working directory, and the configuration for which it was made; if that configuration
refers to code, it must be given on the command line. The run is checked before the first step, during training and
after the last step: PASS, WARN, FAIL, or NOT RUN with the reason. Exit status 1 if a check fails; if a check fails
before the first step, nothing is trained (unless --keep-going is given).
SIGTERM, SIGINT and SIGHUP end the run after the current step and save it; the exit status is 143, 130 or 129, and
--resume continues the run.
"""
EXAMPLES = """\b
Examples:
  ckpt train
  ckpt train ru.yaml --init ru.init.safetensors --run runs/ru --set lr=6e-3
  ckpt train --run runs/ru --resume
  ckpt train ru.yaml --init merged.safetensors --evaluate dev
"""


def run(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="The configuration; with --report, the folder of a run.")
    ] = None,
    init: Annotated[str | None, typer.Option("--init", metavar="CKPT", help="Begin with these weights.")] = None,
    folder: Annotated[
        str | None, typer.Option("--run", metavar="DIR", help="Write the run to this folder. [default: run]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder of --run.")] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a field of the section train:, such as lr=1e-3. Repeatable."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Train this many steps.")] = None,
    keep_optimizer: Annotated[
        bool,
        typer.Option(
            "--keep-optimizer",
            help="Start the optimizer with the Adam moments that the source stores, as in checkpoints of Coqui STT.",
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Compute on this device. [default: a GPU if there is one]"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Seed the order of examples, dropout and new weights with this number."
        ),
    ] = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Run only the checks before the first step.")
    ] = False,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Also train from scratch and from permuted weights, to see if the given weights help."
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", metavar="N", help="With --controls: train each control run with this many seeds. [default: 3]"
        ),
    ] = None,
    overfit_one_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-one-batch", help="Train on the first batch only: a model that can learn gets its loss near zero."
        ),
    ] = False,
    preprocess_only: Annotated[
        bool,
        typer.Option(
            "--preprocess-only",
            help="Do not train: only compute the features of the clips, and store them in the cache.",
        ),
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Train even if a check fails before the first step.")
    ] = False,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            metavar="ddp|fsdp",
            help="With several processes: each has the whole model (ddp), or a part of it (fsdp).",
        ),
    ] = "ddp",
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="dev|test",
            help="Do not train: evaluate the weights of --init on this split, and print one line NAME: NUMBER for "
            "each result; the metric is last.",
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Print the report of a run: the verdict, then failures and warnings.")
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Train a model, resume a run, or report on a finished run, as the options say."""
    if "WORLD_SIZE" in os.environ:
        # Set before torch is imported: otherwise DDP writes a line to stderr if a step uses all parameters.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ...errors import ConfigError
    from ...render.train import report_view, trained_view
    from ...trainer.run.report import read_report
    from ...trainer.run.train import train
    from ...util.freed_memory import keep_freed_memory

    if report:
        _check_report(
            init=init, resume=resume, set=sets, steps=steps, device=device, seed=seed, check_only=check_only,
            keep_optimizer=keep_optimizer,
            controls=controls, seeds=seeds, overfit_one_batch=overfit_one_batch, preprocess_only=preprocess_only,
            keep_going=keep_going, evaluate=evaluate, strategy=None if strategy == "ddp" else strategy,
        )  # fmt: skip
        if config is not None and folder is not None:
            raise ConfigError(
                f"--report needs one run, but two are given: {config} and --run {folder}.", hint="Leave one out."
            )
    if seeds is not None and not controls:
        raise ConfigError(
            "--seeds is only for --controls: it is the number of seeds of each control run.",
            hint="Add --controls, or leave --seeds out.",
        )
    if report:
        found = read_report(config or folder or "run")
        if not printer.answer(found):
            page = [] if found.run is None else [f"ckpt view {quoted(found.run)}"]
            printer.show(report_view(found, every=printer.verbose, next_steps=page))
        return
    keep_freed_memory(KEPT_BYTES)
    with unwinding(), closing(RunEvents(printer)) as events:
        found = train(
            config, init=init, run=folder, resume=resume, sets=_sets(sets, keep_optimizer=keep_optimizer),
            steps=steps, device=device, seed=seed,
            check_only=check_only, controls=controls, seeds=3 if seeds is None else seeds,
            overfit_one_batch=overfit_one_batch, preprocess_only=preprocess_only, keep_going=keep_going,
            evaluate=evaluate, strategy=strategy,
            observer=events.observe,
        )  # fmt: skip
    if found.rank:  # only the process of rank 0 prints
        printer.notes(found.notes)
    elif evaluate is not None and not printer.json:
        printer.notes(note for note in found.notes if note not in events.noted)
        names = sorted(found.figures, key=lambda name: name == found.metric)
        printer.lines(f"{name}: {found.figures[name]:.8g}" for name in names)
    elif not printer.answer(found):
        printer.notes(note for note in found.notes if note not in events.noted)
        if events.progress is not None:
            shown = events.progress.shown
            printer.show(trained_view(found, checked=shown, next_steps=_next(found), every=printer.verbose))
    if found.exit_code:
        raise typer.Exit(found.exit_code)


class RunEvents:
    """Shows the events of a training run: its notes, and also its progress unless --quiet or --json is given.

    ``noted`` has the notes that have been shown.
    """

    def __init__(self, printer: Printer) -> None:
        self.noted: tuple[str, ...] = ()
        self.progress = None if printer.quiet or printer.json else ProgressDisplay(printer)
        self._printer = printer

    def observe(self, row: Mapping[str, Any]) -> None:
        """Show an event, as plain data: this method is the argument ``observer`` of ``train``."""
        event = row.get("event")
        if event == "begin":
            set_run_folder(row["folder"])
        if event == "notes":
            self._printer.notes(row["notes"])
            self.noted += tuple(row["notes"])
        elif self.progress is not None:
            self.progress.observe(row)

    def close(self) -> None:
        """Remove the line of progress from the terminal."""
        if self.progress is not None:
            self.progress.close()


def _sets(sets: list[str] | None, *, keep_optimizer: bool) -> list[str]:
    """Return the settings of --set, and ``keep_optimizer=true`` if --keep-optimizer was given."""
    return [*(sets or []), *(["keep_optimizer=true"] if keep_optimizer else [])]


def _check_report(**asked: object) -> None:
    """Raise ConfigError if --report, which does not train, is given with an option for training.

    ``asked`` has the options for training by name, with their values.
    """
    from ...errors import ConfigError

    given = [
        f"--{name.replace('_', '-')}"
        for name, value in asked.items()
        if value not in (None, [], ()) and value is not False
    ]
    if given:
        raise ConfigError(
            f"--report and {given[0]} contradict each other: --report does not train.", hint="Leave one out."
        )


def _next(found: Trained) -> list[str]:
    if found.run is None:
        return []
    at = "" if found.run == "run" else f" --run {quoted(found.run)}"
    if found.ended.startswith("SIG") or found.ended == "lost":
        return [f"ckpt train{at} --resume"]
    if not found.ok:
        return [f"ckpt train --report {quoted(found.run)} -v"]
    adapter, best = os.path.join(found.run, "adapter"), os.path.join(found.run, "best.safetensors")
    if os.path.isdir(adapter) and found.init:
        output = "merged/" if os.path.isdir(found.init) else "model.safetensors"
        return [f"ckpt lora merge {quoted(found.init)} {quoted(adapter)} -o {output}"]
    return [f"ckpt inspect {quoted(best)}", f"ckpt train --report {quoted(found.run)}"] if os.path.exists(best) else []
