"""The command ``ckpt average``: averages checkpoints of one model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer

from ..first_process import by_the_first
from ..options import Encoding
from ..searching import (
    ByTask,
    Evaluate,
    KeepModels,
    Maximize,
    Metric,
    Parallel,
    Searching,
    StudyFolder,
    TestCommand,
    TrialTimeout,
    check_soup,
)
from ..writing import StateDict, Writing

NAME = "average"
HELP = """Average checkpoints of one model.

Floats are averaged in double precision, block by block, so that memory does not grow with the number of files. Integers
and booleans, such as BatchNorm's counter, are not averaged, but taken from the last checkpoint (see --int-buffers). It
is an error if a checkpoint lacks a key. With --greedy, a command or a task scores the checkpoints; beginning with the
best, each checkpoint is added to the average only if the score does not become worse.
"""
EXAMPLES = """\b
Examples:
  ckpt average 38epoch.pth 39epoch.pth 40epoch.pth -o averaged.pth
  ckpt average step*.safetensors --ema 0.999 -o ema.safetensors
  ckpt average step*.safetensors --decay 1-sqrt -o annealed.safetensors
  ckpt average *epoch.pth --window 10 -o averages/
  ckpt average a.pth b.pth c.pth --greedy --evaluate 'python evaluate.py {model}' --maximize -o soup.pth
  ckpt average epoch-10.pt epoch-20.pt --root model_avg --running batch_idx_train -o average.safetensors
"""


def run(
    sources: Annotated[
        list[str], typer.Argument(metavar="CKPT CKPT…", help="Two or more checkpoints, the oldest first.")
    ],
    ema: Annotated[
        float | None,
        typer.Option(
            "--ema",
            metavar="DECAY",
            help="Compute an exponential moving average with this decay, such as 0.999, instead of the mean.",
        ),
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            "--decay",
            metavar="linear|1-sqrt|cosine",
            help="Weight the checkpoints of a run with a constant learning rate as if the learning rate had decayed "
            "by this curve.",
        ),
    ] = None,
    running: Annotated[
        str | None,
        typer.Option(
            "--running",
            metavar="ENTRY",
            help="Average the steps between two checkpoints that store running averages, as icefall's do. "
            "ENTRY is the entry with the number of steps, such as batch_idx_train.",
        ),
    ] = None,
    int_buffers: Annotated[
        str,
        typer.Option(
            "--int-buffers",
            metavar="last|first|max",
            help="Take integer tensors from the last or first checkpoint, or the largest values of all.",
        ),
    ] = "last",
    vocab: Annotated[
        str | None,
        typer.Option("--vocab", metavar="place", help="Average row n with row n even if the tokenisers differ."),
    ] = None,
    encoding: Encoding = "keep",
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="N",
            help="Write the mean of every N checkpoints in a row, each to a file in the output.",
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Average only checkpoints that do not make the score of --evaluate or --task worse: a greedy soup.",
        ),
    ] = False,
    evaluate: Evaluate = None,
    task: ByTask = None,
    maximize: Maximize = None,
    metric: Metric = None,
    test: TestCommand = None,
    study: StudyFolder = None,
    parallel: Parallel = 1,
    trial_timeout: TrialTimeout = None,
    keep_models: KeepModels = False,
    *,
    state_dict: StateDict,
    writing: Writing,
) -> None:
    """Average checkpoints of one model, and write the result."""
    from ...api.average import average

    given = {
        "--evaluate": evaluate, "--task": task, "--maximize": maximize is not None, "--metric": metric, "--test": test,
        "--study": study, "--parallel": parallel != 1, "--trial-timeout": trial_timeout, "--keep-models": keep_models,
    }  # fmt: skip
    others = {"--ema": ema, "--decay": decay, "--running": running, "--window": window, "--root": state_dict.root,
              "--unwrap": state_dict.unwrap, "--set-metadata": state_dict.set_metadata}  # fmt: skip
    check_soup(greedy=greedy, given=given, others=others, writing=writing)
    if greedy:
        from ...api.search.greedy import greedy_soup

        def soup() -> None:
            searching = Searching(writing.plain, 2 * len(sources) - 1)
            with searching.running(study):
                found = greedy_soup(
                    sources, searching.output, evaluate=evaluate, task=task, maximize=maximize, metric=metric,
                    test=test, study=study, int_buffers=int_buffers, vocab=vocab, encoding=encoding,
                    parallel=parallel, trial_timeout=trial_timeout, keep_models=keep_models, force=writing.force,
                    wait=writing.wait, key=writing.key, observe=searching.observe,
                )  # fmt: skip
            searching.show(found)

        by_the_first(soup)
        return
    writing.check()
    if window is not None:
        _write_windows(
            sources, window, {"--running": running}, writing, ema=ema, decay=decay,
            int_buffers=int_buffers, vocab=vocab, encoding=encoding, **state_dict.arguments,
        )  # fmt: skip
        return
    plan = average(
        sources, ema=ema, decay=decay, running=running, int_buffers=int_buffers, vocab=vocab, encoding=encoding,
        **state_dict.arguments,
    )  # fmt: skip
    writing.carry_out(plan)


def _write_windows(
    sources: list[str], window: int, others: Mapping[str, object], writing: Writing, **arguments: Any
) -> None:
    """Write the mean of every ``window`` checkpoints in a row, each to a file in the output.

    ``others`` are options that are for one output only, with their values; raises ConfigError if one of them is given.
    """
    from ...api.merge.moving_average import average_windows
    from ...errors import ConfigError

    wrong = [name for name, value in {**others, **writing.more, "-n": writing.dry_run}.items() if value]
    if wrong:
        raise ConfigError(f"{wrong[0]} cannot be used with --window.", hint="Leave it out.")
    assert writing.output is not None  # ``check`` ensures this
    with writing.printer.working("writing") as progress:  # a folder that exists says nothing of the means in it
        write = partial(average_windows, window=window, force=writing.force, wait=writing.wait, key=writing.key)
        receipts = by_the_first(partial(write, sources, writing.output, progress=progress, **arguments))
    rows = [
        {"output": one.output, "nbytes_written": one.nbytes_written, "plan_sha256": one.plan_sha256,
         "notes": list(one.notes)}
        for one in receipts
    ]  # fmt: skip
    if writing.printer.answer({"kind": "ckpt.windows", "version": 1, "outputs": rows}):
        return
    from ...render.verification import windows_view
    from ..printing import quoted

    writing.printer.notes(dict.fromkeys(note for receipt in receipts for note in receipt.notes))
    step = f"ckpt verify {quoted(receipts[-1].output)}"
    writing.printer.show(windows_view(receipts, sources, next_step=step, every=writing.printer.verbose))
