"""Loggers: what Weights & Biases and MLflow are told of a run, that nothing is sent unasked, and that they end no run.

The two are stood in for by modules that record the calls, since their packages do not go together with the versions of
constraints.txt. Tests at the end use the packages themselves if they are installed: make test-loggers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.loggers._logger import LoggedRun, Logger, Summary, scalars
from ckptsurgeon.trainer.run import run_loggers
from ckptsurgeon.trainer.run.run_loggers import LoggerThread

from . import together, toy

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("cheap")

VARIABLES = (
    "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_ERROR_REPORTING",
    "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of both packages, unset, and set back after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class FakeWandb(ModuleType):
    """Records what wandb.init and the run are given."""

    Settings = staticmethod(lambda **given: given)

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.exit_codes: list[int] = []
        self.fails_at = -1

    def init(self, **given: Any) -> Any:
        self.inits.append({**given, "reporting": os.environ.get("WANDB_ERROR_REPORTING")})
        made = given["id"] or f"id{len(self.inits)}"
        folder = os.path.abspath(os.path.join(given["dir"], "wandb", f"offline-run-{made}", "files"))
        return SimpleNamespace(
            id=made, dir=folder, url="https://wandb.test/run", log=self.log, summary=self.summary,
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )  # fmt: skip

    def log(self, figures: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise RuntimeError("the service is gone\nwith details")
        self.rows.append((step, figures))


class FakeMLflow(ModuleType):
    """Records what an MlflowClient is given; runs are known by their ids."""

    class MlflowException(Exception):  # noqa: N818
        error_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.uris: list[str] = []
        self.telemetry: list[str | None] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.entities = ModuleType("mlflow.entities")
        self.entities.Metric = self.entities.Param = self.entities.RunTag = lambda *given: given  # type: ignore[attr-defined]

    def MlflowClient(self, tracking_uri: str) -> FakeMLflow:
        self.uris.append(tracking_uri)
        self.telemetry.append(os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def create_run(self, experiment: str, run_name: str) -> Any:
        made = f"r{len(self.runs)}"
        self.runs[made] = {"name": run_name, "experiment": experiment, "metrics": [], "params": [], "tags": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=made))

    def update_run(self, run: str, status: str) -> None:
        if run not in self.runs:
            raise self.MlflowException(f"Run '{run}' not found")
        self.runs[run]["status"] = status

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return [SimpleNamespace(step=step) for key, _, _, step in self.runs[run]["metrics"] if key == name]

    def log_batch(
        self, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for kind, given in (("metrics", metrics), ("params", params), ("tags", tags)):
            self.runs[run][kind] += given

    def log_metric(self, run: str, name: str, value: float, now: int) -> None:
        self.runs[run]["metrics"].append((name, value, now, 0))

    def set_terminated(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status

    def steps(self, run: str) -> list[int]:
        return [step for key, _, _, step in self.runs[run]["metrics"] if key == "loss"]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    made = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    made = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    monkeypatch.setitem(sys.modules, "mlflow.entities", made.entities)
    return made


def train(run: str = "run", **options: Any) -> cs.Trained:
    return cs.train(None if options.get("resume") else toy.write(warmup=0), run=run, device="cpu", **options)


@pytest.mark.long
def test_wandb_gets_settings_rows_checks_and_result(wandb: FakeWandb) -> None:
    found = train(sets=["loggers=wandb", "steps=8"])
    (begun,) = wandb.inits
    assert (begun["project"], begun["name"], begun["dir"], begun["id"]) == ("ckptsurgeon", "toy-run", "run", None)
    assert (begun["config"]["lr"], begun["config"]["data"]["workers"], begun["config"]["config"]) == (
        0.01,
        None,
        "toy.yaml",
    )
    assert begun["settings"] == {"mode": "offline", "silent": True, "console": "off"}
    assert begun["reporting"] == "false"  # else errors of the client itself are sent, offline too
    logged = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert wandb.rows == [(row["step"], scalars(row)) for row in logged]
    assert {"loss", "parts/ce", "grad_norm", "clips_s"} <= wandb.rows[0][1].keys()
    assert [step for step, figures in wandb.rows if "dev/error" in figures] == [4, 8]
    assert wandb.summary["best"] == found.best
    assert wandb.summary["checks/first loss"] == "PASS"
    assert (wandb.summary["ended"], wandb.summary["final/error"]) == ("done", found.figures["error"])
    assert wandb.exit_codes == [0]
    assert "wandb logs to run/wandb/offline-run-id1, and sends nothing" in found.notes[-1]


@pytest.mark.long
def test_mlflow_gets_settings_rows_checks_and_result(mlflow: FakeMLflow) -> None:
    found = train(sets=["loggers=mlflow", "steps=8", "freeze={'body.first*': 4}"])
    assert mlflow.uris == [Path("run/mlruns").absolute().as_uri()]
    assert mlflow.telemetry == ["true"]
    (made,) = mlflow.runs.values()
    params = dict(made["params"])
    assert (made["name"], params["lr"], params["data.max_s"]) == ("toy-run", "0.01", "None")
    assert params["freeze.body.first_"] == "4"
    assert mlflow.experiments == {"ckptsurgeon": "e0"}
    assert mlflow.steps("r0") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [(key, step) for key, _, _, step in made["metrics"] if key == "dev/error"] == [
        ("dev/error", 4),
        ("dev/error", 8),
    ]
    assert ("ended", "done") in made["tags"]
    assert ("checks/first loss", "PASS") in made["tags"]
    assert next(value for key, value, _, _ in made["metrics"] if key == "best") == found.best
    assert made["status"] == "FINISHED"


@pytest.mark.long
def test_the_environment_says_where_to_and_under_which_names(
    mlflow: FakeMLflow, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"WANDB_MODE": "online", "WANDB_PROJECT": "speech", "WANDB_NAME": "mine", "WANDB_DIR": "elsewhere",
             "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_EXPERIMENT_NAME": "speech"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = train(sets=["loggers=[wandb, mlflow]", "steps=2"])
    (begun,) = wandb.inits
    assert (begun["project"], begun["name"], begun["dir"]) == ("speech", "mine", "elsewhere")
    assert (begun["settings"]["mode"], begun["reporting"]) == ("online", None)
    assert mlflow.uris == ["http://127.0.0.1:9"]
    assert mlflow.experiments == {"speech": "e0"}
    assert "wandb logs to https://wandb.test/run" in found.notes
    assert "mlflow logs to the store of MLFLOW_TRACKING_URI, as run r0" in found.notes


@pytest.mark.long
def test_a_resumed_run_goes_on_in_the_same_run_of_each_logger(wandb: FakeWandb, mlflow: FakeMLflow) -> None:
    train(sets=["loggers=[wandb, mlflow]", "schedule=constant"], steps=6)
    assert json.loads(Path("run/loggers.json").read_text()) == {"wandb": "id1", "mlflow": "r0"}
    mlflow.runs["r0"]["metrics"].append(("loss", 1.0, 0, 7))  # a step that was logged, and then lost with the process
    train(resume=True, steps=8)
    assert [one["id"] for one in wandb.inits] == [None, "id1"]
    assert sorted({step for step, _ in wandb.rows}) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert mlflow.steps("r0") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert mlflow.runs["r0"]["status"] == "FINISHED"
    mlflow.runs.clear()  # another store, which does not have the run
    train(resume=True, steps=9)
    assert mlflow.steps("r0") == [9]


@pytest.mark.long
def test_loggers_may_change_when_a_run_is_resumed(wandb: FakeWandb) -> None:
    train(sets=["schedule=constant"], steps=2)
    assert not os.path.exists("run/loggers.json")
    Path("run/loggers.json").write_text("{")  # damaged: the loggers begin anew, the run does not end
    train(resume=True, steps=3, sets=["loggers=wandb"])
    assert [step for step, _ in wandb.rows if step] == [3, 3]
    assert json.loads(Path("run/loggers.json").read_text()) == {"wandb": "id1"}


@pytest.mark.long
def test_an_error_of_a_logger_ends_the_logger_alone_and_is_said_once(
    ckpt: Run, wandb: FakeWandb, mlflow: FakeMLflow
) -> None:
    wandb.fails_at = 2
    path = toy.write(loggers=["wandb", "mlflow"])
    done = ckpt("train", path, "--device", "cpu", "--steps", "8")
    said = " ".join(done.err.split())
    assert done.code == 0
    assert said.count("the logger wandb failed, and the run goes on without it: RuntimeError: the service is gone") == 1
    assert "details" not in said + done.out
    assert mlflow.runs["r0"]["status"] == "FINISHED"
    assert json.loads(Path("run/result.json").read_text())["ended"] == "done"


@pytest.mark.long
def test_a_logger_that_fails_at_the_end_is_said_to_fail_there(
    ckpt: Run, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*given: Any, **others: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("ckptsurgeon.trainer.loggers.wandb.WeightsAndBiases.finish", finish)
    done = ckpt("train", toy.write(loggers=["wandb"], steps=2, warmup=0), "--device", "cpu")
    said = " ".join(done.err.split())
    assert "the logger wandb failed at the end of the run: ConnectionError: no route" in said
    assert "goes on" not in said


@pytest.mark.long
def test_a_logger_that_cannot_begin_is_left_out(ckpt: Run, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**given: Any) -> None:
        raise ConnectionError("no key")

    monkeypatch.setattr(wandb, "init", init)
    done = ckpt("train", toy.write(loggers=["wandb"], steps=2, warmup=0), "--device", "cpu")
    assert done.code == 0
    assert " ".join(done.err.split()).count("the logger wandb failed") == 1


@pytest.mark.long
def test_a_run_that_fails_is_told_as_failed(
    wandb: FakeWandb, mlflow: FakeMLflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "3")
    monkeypatch.setenv("TOY_NAN_TO", "100")
    found = train(sets=["loggers=[wandb, mlflow]", "nonfinite=2"])
    assert found.exit_code == 1
    assert wandb.exit_codes == [1]
    assert (wandb.summary["ended"], wandb.summary["checks/finite steps"]) == ("nonfinite", "FAIL")
    assert mlflow.runs["r0"]["status"] == "FAILED"


@pytest.mark.long
def test_an_error_in_a_step_is_told_too(wandb: FakeWandb) -> None:
    def observer(row: Mapping[str, Any]) -> None:
        if row.get("step") == 3 and "loss" in row:
            raise OSError("what the caller cannot do")

    with pytest.raises(OSError, match="cannot do"):
        train(sets=["loggers=wandb"], observer=observer)
    assert (wandb.summary, wandb.exit_codes) == ({"ended": "OSError"}, [1])


def test_a_stopped_run_is_told_as_killed() -> None:
    run = cs.Trained(
        config="", run="r", init=None, task="", device="cpu", step=1, steps=2, ended="SIGTERM", checks=(), exit_code=143
    )
    summary = run_loggers.summary_of(run)
    assert (summary.is_stopped, summary.exit_code, summary.values["ended"]) == (True, 143, "SIGTERM")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_an_error_that_names_the_extra(
    ckpt: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    done = ckpt("train", toy.write(loggers=[name]), "--device", "cpu")
    assert done.code == 2
    assert f"pip install 'ckptsurgeon[{name}]' installs it." in " ".join(done.err.split())
    assert not os.path.exists("run")


def test_a_name_that_no_logger_has(ckpt: Run) -> None:
    done = ckpt("train", toy.write(loggers=["wandbd"]), "--device", "cpu")
    assert (done.code, "Did you mean wandb?" in done.err) == (2, True)


@pytest.mark.long
def test_only_rank_0_logs() -> None:
    path = together.write(loggers=["mlflow"], steps=2, warmup=0)
    Path("mlflow").mkdir()
    Path("mlflow/__init__.py").write_text("import os\nprint('imported by rank', os.environ['RANK'])\n")
    Path("mlflow/entities.py").touch()
    ended = together.train(path, "--device", "cpu", size=2)
    assert [one.code for one in ended] == [0, 0], ended
    assert ["imported by rank" in one.out for one in ended] == [True, False]
    assert "the logger mlflow failed" in " ".join(ended[0].err.split())


class Slow(Logger):
    package, extra = "slow", "slow"

    def __init__(self, run: LoggedRun) -> None:
        self.rows: list[list[int]] = []
        self.began, self.goes_on = threading.Event(), threading.Event()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows.append([row["step"] for row in rows])
        self.began.set()
        self.goes_on.wait(100)

    def finish(self, summary: Summary) -> None:
        self.rows.append([])


def test_a_slow_logger_gets_together_what_has_come_meanwhile() -> None:
    logger = Slow(LoggedRun("a", "."))
    thread = LoggerThread(logger)
    thread.write({"step": 1})
    logger.began.wait(100)
    for step in (2, 3, 4):
        thread.write({"step": step})
    logger.goes_on.set()
    thread.finish(Summary({}))
    assert logger.rows == [[1], [2, 3, 4], []]
    assert thread.error is None


def test_the_end_of_a_run_does_not_wait_for_ever() -> None:
    logger = Slow(LoggedRun("a", "."))
    thread = LoggerThread(logger, wait_s=0.01)
    thread.write({"step": 1})
    thread.finish(Summary({}))
    assert isinstance(thread.error, TimeoutError)
    logger.goes_on.set()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_package_itself(name: str) -> None:
    pytest.importorskip(name, exc_type=ImportError)
    first = train(sets=[f"loggers={name}", "schedule=constant"], steps=4)
    assert not [note for note in first.notes if "failed" in note]
    known = json.loads(Path("run/loggers.json").read_text())[name]
    train(resume=True, steps=6)
    assert json.loads(Path("run/loggers.json").read_text())[name] == known
    if name == "wandb":
        files = list(Path("run/wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
        assert len(files) == 2
        assert all(b"dev/error" in file.read_bytes() for file in files)
    else:
        (home,) = Path("run/mlruns").glob(f"*/{known}")
        lines = (home / "metrics/loss").read_text().splitlines()
        assert [int(line.split()[2]) for line in lines] == [1, 2, 3, 4, 5, 6]
        assert (home / "tags/checks/first loss").read_text() == "PASS"


def test_every_logger_names_its_package_and_an_extra() -> None:
    known = run_loggers.discover(run_loggers.LOGGERS, "LOGGER")
    assert known.keys() == {"mlflow", "tensorboard", "wandb"}
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert all(any(one.startswith(kind.package) for one in extras[kind.extra]) for kind in known.values())  # type: ignore[attr-defined]
