"""The common part of all verbs with a plan: checks the output, shows or carries out the plan, shows the receipt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from ..util.text import escape
from ..util.torchrun import is_started_again, number_of_processes, rank_of_process
from .failing import is_for_memory
from .options import (
    Axis,
    Consume,
    DryRun,
    Engine,
    Force,
    KeepExtras,
    Key,
    MaxShard,
    Mesh,
    OutputUnlessDry,
    Processes,
    Prove,
    Ranks,
    Restart,
    Root,
    SetMetadata,
    To,
    Unwrap,
    Wait,
    Yes,
)
from .printing import Printer, check_output, show_plan, show_receipt
from .showing import show_proof
from .stopping import say

if TYPE_CHECKING:
    from ..analysis.prove.proof import Proof
    from ..api.inputs.output_form import OutputOptions
    from ..planning.plan.plan import Plan
    from ..planning.plan.receipt import Receipt

__all__ = ["AdapterWriting", "StateDict", "StateDictAndExtras", "Writing", "metadata_of", "numbers"]


@dataclass(frozen=True)
class StateDict:
    """The group of options for the state dict of a source, and for the metadata of the output."""

    set_metadata: SetMetadata = None
    root: Root = None
    unwrap: Unwrap = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The options as arguments for the functions of the Python API."""
        given = vars(self).copy()
        return {"metadata": metadata_of(given.pop("set_metadata")), **given}


@dataclass(frozen=True)
class StateDictAndExtras(StateDict):
    """The group of options for the state dict of a source, and for other entries of its file."""

    keep_extras: KeepExtras = False


def metadata_of(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the entries of --set-metadata as a dict.

    Raises ConfigError for a string that is not KEY=VALUE, or for a key that gets two values.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(
                f"--set-metadata {escape(text)} does not have the form KEY=VALUE.",
                hint="Write --set-metadata KEY=VALUE.",
            )
        if found.setdefault(key, value) != value:
            raise ConfigError(f"--set-metadata gives {escape(key)} two values.", hint="Leave one of the two out.")
    return found


def numbers(option: str, text: str | None) -> list[float] | None:
    """Return the numbers in the comma-separated string ``text``; None if ``text`` is None.

    Raises ConfigError if ``text`` is not a list of numbers; ``option`` is the name of the option, for the message.
    """
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} {escape(text or '')} is not a list of numbers.", hint="Write numbers with commas, as in 0.7,0.3."
        ) from None


@dataclass(frozen=True)
class RankChoices:
    """The group of options for formats that write one file for each rank."""

    ranks: Ranks = None
    axis: Axis = None
    mesh: Mesh = None

    @property
    def given(self) -> dict[str, Any]:
        """The given options as arguments for the functions of the Python API; {} if none is given."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Writing:
    """The group of options for writing an output; ``output`` is None only if --dry-run is given."""

    output: OutputUnlessDry = None
    to: To = None
    max_shard_size: MaxShard = None
    shared: RankChoices = field(default_factory=RankChoices)
    force: Force = False
    wait: Wait = None
    key: Key = None
    restart: Restart = False
    consume: Consume = False
    yes: Yes = False
    engine: Engine = None
    prove: Prove = False
    dry_run: DryRun = False
    processes: Processes = None
    printer: Printer = field(default_factory=Printer)

    @property
    def plain(self) -> AdapterWriting:
        """The options that apply to every output."""
        return AdapterWriting(self.output, self.force, self.wait, self.key, self.dry_run, self.printer)

    @property
    def more(self) -> dict[str, Any]:
        """{name on the command line: value} for the options that do not apply to every output."""
        names = ("to", "max_shard_size", "restart", "consume", "yes", "engine", "prove", "processes")
        return {
            **{f"--{name.replace('_', '-')}": getattr(self, name) for name in names},
            **{f"--{name}": value for name, value in self.shared.given.items()},
        }

    @property
    def is_gguf(self) -> bool:
        """True if the output is a GGUF file, by its name or by --to."""
        return self.to == "gguf" or (self.output or "").lower().endswith(".gguf")

    def check(self) -> None:
        """Raise ConfigError if the output cannot be written; this is checked before any file is opened."""
        from ..api.apply import check_output as api_check_output

        self.check_consent()
        if self.prove and self.dry_run:
            raise ConfigError(
                "--prove runs the network of the output, but -n writes no output.", hint="Leave one of them out."
            )
        if self.output is None:
            if not self.dry_run:
                raise ConfigError("no output given.", hint="Set the output with -o, or show the plan with -n.")
            if self.to or self.max_shard_size or self.shared.given:
                api_check_output("output/", to=self.to, max_shard_size=self.max_shard_size, **self.shared.given)
            return
        check_output(self.output)
        api_check_output(self.output, to=self.to, max_shard_size=self.max_shard_size, **self.shared.given)

    def check_consent(self) -> None:
        """Raise ConfigError if --consume cannot ask because there is no terminal, or if options contradict each other.

        --yes needs --consume; --processes needs --dry-run, and cannot be used with the options for ranks.
        """
        if self.yes and not self.consume:
            raise ConfigError("--yes is only for --consume.", hint="Leave --yes out: only --consume asks a question.")
        if self.consume and not (self.yes or self.dry_run):
            from .confirm_consume import check_can_ask

            check_can_ask()
        if self.processes is not None and not self.dry_run:
            raise ConfigError(
                "--processes is only for a dry run (-n): it does not start processes.",
                hint="To start processes, run torchrun --nproc-per-node N -m ckptsurgeon …",
            )
        if self.processes is not None and self.shared.given:
            raise ConfigError(
                "--processes cannot be used with --ranks, --axis or --mesh: one process writes the files of all ranks.",
                hint="Leave --processes out.",
            )

    def carry_out(self, plan: Plan) -> None:
        """Write the output of a plan, prove it with --prove, and show the receipt; with --dry-run, only show the plan.

        Asks before it consumes the sources. Exits with 1 if the proof finds that the networks differ. If several
        processes write, only the first one shows the result.
        """
        if self.dry_run:
            self.show_unwritten(plan)
            return
        assert self.output is not None  # ``check`` ensures this
        self._ask(plan)
        receipt = self._written(plan, self.output)
        if rank_of_process():
            return  # the first process reports the whole output
        self._report(plan, receipt, self.output)

    def _ask(self, plan: Plan) -> None:
        """Raise the errors of --prove that are known before the output is written, and ask for --consume."""
        if self.prove:
            from ..api.prove.output import check_runs

            check_runs(plan)
        if self.consume and not self.yes:
            from .confirm_consume import ask_to_consume

            ask_to_consume(plan)

    def _written(self, plan: Plan, output: str) -> Receipt:
        """Write the output of a plan, and return its receipt."""
        from ..api.apply import apply

        with self.printer.working("writing", output) as progress:
            return apply(
                plan,
                output,
                to=self.to,
                max_shard_size=self.max_shard_size,
                force=self.force,
                wait=self.wait,
                key=self.key,
                restart=self.restart and not is_started_again(),
                consume=self.consume,
                processes=number_of_processes() > 1,
                engine=self.engine,
                progress=progress,
                **self.shared.given,
            )

    def _report(self, plan: Plan, receipt: Receipt, output: str) -> None:
        """Prove a written output if asked, and show the receipt and the proof; exit with 1 if the networks differ."""
        try:
            proof = self._proof(plan, output)
        except CheckpointError:
            self._show_receipt(plan, receipt)
            raise
        if proof is not None:
            receipt = replace(receipt, proved=proof.verdict)
        shown: tuple[str, ...] = ()
        try:
            shown = self._show_receipt(plan, receipt)
        except Exception as error:
            if not is_for_memory(error):
                raise
            say(f"note: {escape(output)} is written, but there is not enough memory to show the receipt.")
        if proof is not None:
            show_proof(self.printer, proof, shown)

    def _proof(self, plan: Plan, output: str) -> Proof | None:
        """Compare the networks of source and output, and return the result; None without --prove."""
        if not self.prove:
            return None
        from ..api.prove.output import prove_output

        with self.printer.working("proving"):
            return prove_output(plan, output)

    def show_unwritten(self, plan: Plan, options: OutputOptions | None = None) -> None:
        """Show a plan, with the notes on the output that would be written; with --processes, also how it is shared.

        With --json, a note names the options of the output, which are not part of the plan. ``options`` are these
        options if a recipe has some of them.
        """
        is_formed = self.output is not None or self.to or self.max_shard_size or self.shared.given
        if is_formed or self.key or self.engine or self.consume:
            from ..api.apply import check_form
            from ..api.inputs.output_form import OutputOptions, options_notes, without_notes

            options = options or OutputOptions.of(self.output, self.to, self.max_shard_size, **self.shared.given)
            path = options.path if self.output is not None else "output/"
            options = replace(options, path=path, key=self.key or "", consume=self.consume)
            notes = [
                *without_notes(plan.notes, options, self.engine), *(check_form(options, plan) if is_formed else ()),
                *(options_notes(options, self.engine) if self.printer.json else ()),
            ]  # fmt: skip
            plan = replace(plan, notes=tuple(dict.fromkeys(notes)))
        if self.processes is not None:
            self._show_sharing(plan, self.processes)
        elif not self.printer.answer(plan):
            self._show(plan)

    def _show_sharing(self, plan: Plan, processes: int) -> None:
        """Show a plan and the work of each of ``processes`` processes; with --json, print only the work."""
        from ..api.process_shares import sharing
        from ..render.process_shares import sharing_view

        found = sharing(plan, processes, output=self.output, to=self.to, max_shard_size=self.max_shard_size)
        if not self.printer.answer(found):
            self._show(plan)
            self.printer.show(sharing_view(found, every=self.printer.verbose))

    def _show_receipt(self, plan: Plan, receipt: Receipt) -> tuple[str, ...]:
        """Show the plan and its receipt, or print only the receipt if --json is given; return the notes shown."""
        if self.printer.answer(receipt):
            return ()
        shown = self._show(plan)
        show_receipt(self.printer, receipt, shown)
        return (*shown, *receipt.notes)

    def _show(self, plan: Plan) -> tuple[str, ...]:
        """Show the plan; return the notes that were shown."""
        from ..api.apply import notes_of

        notes = notes_of(plan, self.output, to=self.to, max_shard_size=self.max_shard_size)
        show_plan(self.printer, plan, notes)
        return notes


@dataclass(frozen=True)
class AdapterWriting:
    """The options for writing an adapter. They do not set format and shard size, which the tensors' names determine."""

    output: OutputUnlessDry = None
    force: Force = False
    wait: Wait = None
    key: Key = None
    dry_run: DryRun = False
    printer: Printer = field(default_factory=Printer)

    def check(self) -> None:
        """Raise ConfigError if the output cannot be written, as ``Writing`` does."""
        Writing(**vars(self)).check()

    def carry_out(self, plan: Plan) -> None:
        """Write the output of a plan and show the receipt; with --dry-run, only show the plan."""
        Writing(**vars(self)).carry_out(plan)
