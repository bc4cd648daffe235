"""Weights that a constructor loads from files: found, named, copied, or left out."""

from __future__ import annotations

import socket
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import ckptsurgeon as cs
from ckptsurgeon.destinations._document import Document
from ckptsurgeon.destinations.torch_module.opened import watched
from ckptsurgeon.destinations.torch_module.user_code import user_code

BODY = {"0.weight": torch.arange(16.0).reshape(4, 4), "0.bias": torch.zeros(4), "1.weight": torch.full((4,), 2.0)}
LOADS = {
    "torch": "self.body.load_state_dict(torch.load('body.bin')['model'], strict=False)",
    "safetensors": "self.body.load_state_dict(safetensors.torch.load_file('body.bin'), strict=False)",
    "safe_open": """
        with safetensors.safe_open('body.bin', 'pt') as file, torch.no_grad():
            for key in file.keys():
                self.body.get_parameter(key).copy_(file.get_tensor(key))""",
    "numpy": """
        for key, array in np.load('body.bin').items():
            self.body.get_parameter(key).data = torch.from_numpy(array)""",
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    sys.modules.pop("loading", None)


def network(how: str) -> None:
    """Write a network whose constructor loads its body from ``body.bin``, and its source for the head."""
    sys.modules.pop("loading", None)
    Path("loading.py").write_text(
        textwrap.dedent("""
        import numpy as np, safetensors, safetensors.torch, torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
                self.head = nn.Linear(4, 2)
        """)
        + textwrap.indent(textwrap.dedent(how).strip(), " " * 8)
        + "\n"
    )
    Path("net.yaml").write_text("model: {_target_: loading.Net}\n")
    torch.save({"head.weight": torch.ones(2, 4), "head.bias": torch.ones(2)}, "src.pth")


def body(how: str) -> None:
    network(LOADS[how])
    if how == "torch":
        torch.save({"model": BODY, "epoch": 3}, "body.bin")
    elif how == "numpy":
        with open("body.bin", "wb") as file:
            np.savez(file, **{key: value.numpy() for key, value in BODY.items()})
    else:
        safetensors.torch.save_file(BODY, "body.bin")


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("how", LOADS)
def test_what_a_constructor_loads_is_copied_from_its_file(how: str, ckpt: Any) -> None:
    body(how)
    before = safetensors.safe_open
    plan = cs.transplant("src.pth", "net.yaml")
    assert safetensors.safe_open is before
    assert plan.counts == {"copied": 5, "initialised": 1}  # body.1.bias is in no file
    assert [(one.name, one.role) for one in plan.sources] == [("src.pth", "source"), ("body.bin", "initial")]
    assert {step.key: (step.source_key, step.rule) for step in plan.steps if step.source == 1} == {
        f"body.{key}": (key, "loaded by its constructor") for key in BODY
    }
    assert "its constructor loads 3 tensors from body.bin" in plan.notes
    cs.apply(plan, "out.pth")
    made = torch.load("out.pth")
    assert all(made[f"body.{key}"].equal(value) for key, value in BODY.items())
    assert "equal, bit for bit           5, compared with the sources" in ckpt("verify", "out.pth").out
    shown = " ".join(ckpt("transplant", "src.pth", "net.yaml", "-n", "--explain", "body.0.weight").out.split())
    assert "from body.bin: 0.weight (4, 4) float32 rule loaded by its constructor because no source has it" in shown


@pytest.mark.long
def test_a_source_goes_before_what_a_constructor_loads() -> None:
    body("torch")
    torch.save({"body.0.weight": torch.ones(4, 4)}, "src.pth")
    plan = cs.transplant("src.pth", "net.yaml", exclude=[])
    assert next(step for step in plan.steps if step.key == "body.0.weight").source == 0
    torch.save({f"body.{key}": value for key, value in BODY.items()}, "src.pth")
    plan = cs.transplant("src.pth", "net.yaml")
    assert [one.name for one in plan.sources] == ["src.pth"]  # the constructor's file is no input then


@pytest.mark.long
def test_loaded_weights_alone_are_nothing_from_a_source() -> None:
    body("torch")
    torch.save({"other": torch.ones(2)}, "src.pth")
    with pytest.raises(cs.PlanError, match="nothing would be loaded"):
        cs.transplant("src.pth", "net.yaml")
    torch.save({"head.bias": torch.ones(2)}, "src.pth")
    with pytest.raises(cs.PlanError, match="require=.body. is not met"):
        cs.transplant("src.pth", "net.yaml", require=["body"])
    with pytest.raises(cs.PlanError, match="5 tensors of the destination are in no source"):
        cs.transplant("src.pth", "net.yaml", on_missing="error")


@pytest.mark.long
def test_a_plan_in_a_file_refuses_weights_that_have_changed() -> None:
    body("torch")
    plan = cs.Plan.from_json(cs.transplant("src.pth", "net.yaml").to_json())
    cs.apply(plan, "out.pth")
    torch.save({"model": {**BODY, "0.weight": torch.ones(4, 4)}, "epoch": 3}, "body.bin")
    with pytest.raises(cs.PlanError, match=r"body.bin has changed"):
        cs.apply(plan, "again.pth")


@pytest.mark.long
def test_weights_of_another_dtype_are_casts_of_their_file() -> None:
    network("self.body.load_state_dict({k: v.float() for k, v in torch.load('half.bin').items()}, strict=False)")
    torch.save({key: value.bfloat16() for key, value in BODY.items()}, "half.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 2, "cast": 3, "initialised": 1}
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["body.0.weight"].equal(BODY["0.weight"])


@pytest.mark.long
def test_equal_values_are_not_taken_for_loaded() -> None:
    """What the constructor computes itself stays when the values in the file are changed; what it loads does not."""
    network("""
        loaded = torch.load('ones.bin')
        self.register_buffer('places', torch.arange(4.0))
        self.register_buffer('numbers', torch.arange(4))
        self.body[1].bias.data = loaded['body.1.bias']
    """)
    like = {"body.1.weight": torch.ones(4), "places": torch.arange(4.0), "numbers": torch.arange(4)}
    torch.save({**like, "body.1.bias": torch.zeros(4)}, "ones.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert [step.key for step in plan.steps if step.source == 1] == ["body.1.bias"]
    assert "its constructor loads 1 tensor from ones.bin" in plan.notes
    network("self.epoch = torch.load('ones.bin')['epoch']")
    torch.save({**like, "epoch": 3}, "ones.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 2, "initialised": 4}
    assert "its constructor reads ones.bin, but copies no tensor from this file unchanged" in plan.notes


READERS = {
    "of a part": "self.body[0].weight.data = safetensors.safe_open('x.bin', 'pt').get_slice('0.weight')[:]",
    "of numpy": "self.body[0].weight.data = torch.from_numpy(safetensors.numpy.load_file('x.bin')['0.weight'])",
    "of TorchScript": "self.body.load_state_dict(torch.jit.load('x.ts').state_dict(), strict=False)",
    "of an object": """
        with open('x.pth', 'rb') as file:
            self.body[0].weight.data = torch.load(file)['0.weight']""",
    "of a reader of its own": """
        import struct
        with open('x.bin', 'rb') as file:
            raw = file.read()
        begin = 8 + struct.unpack('<Q', raw[:8])[0]
        self.body[0].weight.data = torch.frombuffer(bytearray(raw[begin:]), dtype=torch.float32).reshape(4, 4)""",
}


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_is_heard(reader: str) -> None:
    network(READERS[reader].replace("safetensors.numpy", "__import__('safetensors.numpy').numpy"))
    state = {"0.weight": BODY["0.weight"]}
    safetensors.torch.save_file(state, "x.bin")
    torch.save(state, "x.pth")
    module = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    module.load_state_dict(state)
    torch.jit.script(module).save("x.ts")
    plan = cs.transplant("src.pth", "net.yaml")
    assert [step.key for step in plan.steps if step.source == 1] == ["body.0.weight"]


@pytest.mark.long
def test_a_constructor_that_checks_what_it_reads_is_believed() -> None:
    network("""
        loaded = torch.load('body.bin')
        assert loaded['0.bias'].sum() == 0
        self.body.load_state_dict(loaded, strict=False)
    """)
    torch.save(BODY, "body.bin")
    assert cs.transplant("src.pth", "net.yaml").counts == {"copied": 5, "initialised": 1}


@pytest.mark.long
def test_each_state_dict_of_a_file_is_found() -> None:
    network("""
        loaded = torch.load('gan.bin')
        self.body.load_state_dict(loaded['generator'], strict=False)
        self.head.load_state_dict(loaded['critic'])
    """)
    head = {"weight": torch.rand(2, 4), "bias": torch.rand(2)}
    torch.save({"generator": BODY, "critic": head}, "gan.bin")
    torch.save({"body.1.bias": torch.ones(4)}, "src.pth")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 6}
    assert [(one.path, one.root) for one in plan.sources[1:]] == [("gan.bin", "generator"), ("gan.bin", "critic")]
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["head.weight"].equal(head["weight"])


def test_a_file_of_one_tensor_is_named() -> None:
    network("self.register_buffer('mel', torch.load('mel.pt'))")
    torch.save(torch.rand(3, 3), "mel.pt")
    plan = cs.transplant("src.pth", "net.yaml")
    assert "its constructor reads mel.pt, but copies no tensor from this file unchanged" in plan.notes


def test_other_files_are_no_reason_to_build_with_storage() -> None:
    network("__import__('pathlib').Path('METADATA').read_text(); self.body[0].weight.sum().item()")
    Path("METADATA").write_text("Name: loading\n")
    (note,) = [
        note for note in cs.transplant("src.pth", "net.yaml").notes if "built with its weights in memory" in note
    ]
    assert "reads tensors from a file" not in note


def test_what_a_constructor_writes_itself_is_not_loaded() -> None:
    network("""
        torch.save({'0.weight': torch.eye(4)}, 'cache.bin')
        self.body.load_state_dict(torch.load('cache.bin'), strict=False)
    """)
    plan = cs.transplant("src.pth", "net.yaml")
    assert not any("cache.bin" in note for note in plan.notes)
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["body.0.weight"].equal(torch.eye(4))


@pytest.mark.long
def test_what_a_constructor_saves_of_what_it_reads_stays_as_it_is() -> None:
    """It is not run in this process with other values, nor anywhere where it could write."""
    network(
        """
        loaded = torch.load('body.bin')
        for path in ('copy.bin', 'moved.bin'):
            torch.save(loaded, 'new.bin')
            __import__('os').replace('new.bin', path)
        open('log.txt', 'a').write('built\\n')
        self.body.load_state_dict(loaded, strict=False)
    """.replace("open('log.txt', 'a').write", "__import__('pathlib').Path('log.txt').write_text")
    )
    torch.save(BODY, "body.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 5, "initialised": 1}
    for path in ("copy.bin", "moved.bin"):
        assert torch.load(path)["0.weight"].equal(BODY["0.weight"])


@pytest.mark.long
def test_what_a_constructor_keeps_of_what_it_reads_stays_as_it_is() -> None:
    network(
        """
        kept = sys.modules.setdefault('kept', {})
        kept.clear() if len(kept) > 1 else None
        kept.update(torch.load('body.bin'))
        self.body.load_state_dict(kept, strict=False)
    """.replace("sys.modules", "__import__('sys').modules")
    )
    torch.save(BODY, "body.bin")
    cs.transplant("src.pth", "net.yaml")
    assert sys.modules.pop("kept")["0.weight"].equal(BODY["0.weight"])


@pytest.mark.long
def test_downloads_are_loaded_files() -> None:
    network(
        """
        __import__('socket').getaddrinfo('localhost', 80)
        with open('hub.bin', 'wb') as file:
            file.write(open('there.bin', 'rb').read())
        self.body.load_state_dict(torch.load('hub.bin'), strict=False)
    """.replace("open('there.bin', 'rb').read()", "__import__('pathlib').Path('there.bin').read_bytes()")
    )
    torch.save(BODY, "there.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 5, "initialised": 1}


@pytest.mark.long
def test_safe_open_is_a_class_meanwhile() -> None:
    network("""
        safe_open = safetensors.safe_open
        hint = safe_open | None
        with safe_open('body.bin', 'pt') as file:
            assert isinstance(file, safe_open)
            self.body[0].weight.data = file.get_tensor('0.weight')
        class Reader:
            opener = safe_open
        with Reader().opener('body.bin', 'pt') as file:
            file.keys()
        from late import opened
        opened('body.bin')
    """)
    Path("late.py").write_text(
        "from safetensors import safe_open as other\n\ndef opened(path):\n    other(path, 'pt').keys()\n"
    )
    safetensors.torch.save_file(BODY, "body.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert [step.key for step in plan.steps if step.source == 1] == ["body.0.weight"]
    assert sys.modules.pop("late").other is safetensors.safe_open


@pytest.mark.long
def test_a_folder_is_given_only_if_all_of_it_was_read() -> None:
    network("""
        for name in ('enc', 'dec'):
            self.body.load_state_dict(torch.load(f'm/{name}.ckpt'), strict=False)
    """)
    Path("m").mkdir()
    torch.save({"0.weight": BODY["0.weight"]}, "m/enc.ckpt")
    torch.save({"1.weight": BODY["1.weight"]}, "m/dec.ckpt")
    safetensors.torch.save_file({"x": torch.ones(1)}, "m/model.safetensors")
    assert [one.path for one in cs.transplant("src.pth", "net.yaml").sources] == ["src.pth", "m/enc.ckpt", "m/dec.ckpt"]


@pytest.mark.long
def test_large_values_change_too() -> None:
    network("self.body[0].weight.data = torch.load('big.bin')['0.weight'].bfloat16()")
    torch.save({"0.weight": (torch.arange(16.0).reshape(4, 4) * 8 + 512).bfloat16()}, "big.bin")
    assert [step.key for step in cs.transplant("src.pth", "net.yaml").steps if step.source == 1] == ["body.0.weight"]


@pytest.mark.long
def test_two_threads_build_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hears of its own file alone, another thread loads as ever, and all functions are in place afterwards."""
    body("torch")
    before = safetensors.safe_open, socket.getaddrinfo, torch.jit.load, torch.nn.Module.load_state_dict
    code = Path("loading.py").read_text().replace("body.bin", "other.bin")
    waits = "import sys; sys.modules['gates'].inside.set(); sys.modules['gates'].go.wait(9)"
    Path("slow.py").write_text(code.replace("        super", f"        {waits}; super"))
    gates = SimpleNamespace(inside=threading.Event(), go=threading.Event())
    monkeypatch.setitem(sys.modules, "gates", gates)
    Path("slow.yaml").write_text("model: {_target_: slow.Net}\n")
    torch.save({"model": {"0.weight": torch.eye(4)}}, "other.bin")
    other = torch.nn.Linear(2, 2)
    loaded: list[bool] = []

    def load() -> None:
        gates.inside.wait(9)
        other.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
        loaded.append(bool(other.weight.eq(1).all()))
        torch.load("src.pth")
        gates.go.set()

    loading = threading.Thread(target=load)
    with ThreadPoolExecutor(2) as pool:
        waiting = threading.Barrier(2)

        def plan(config: str, **options: Any) -> cs.Plan:
            waiting.wait()
            return cs.transplant("src.pth", config, **options)

        loading.start()
        plans = list(pool.map(plan, ["net.yaml", "slow.yaml"]))
    loading.join()
    assert loaded == [True]
    assert [[one.name for one in made.sources] for made in plans] == [["src.pth", "body.bin"], ["src.pth", "other.bin"]]
    assert not any("src.pth" in note for made in plans for note in made.notes)
    after = safetensors.safe_open, socket.getaddrinfo, torch.jit.load, torch.nn.Module.load_state_dict
    assert after == before
    sys.modules.pop("slow", None)


@pytest.mark.long
def test_threads_that_import_leave_the_import_path_and_stdout_as_they_were() -> None:
    """sys.path and sys.stdout belong to all threads: who ends first may not take the other's folder away."""
    path, stdout = list(sys.path), sys.stdout
    begun, ended = threading.Event(), threading.Event()

    def first() -> None:
        with user_code(Document("a/net.yaml", "", None, {})):
            begun.set()
            ended.wait(0.2)  # as long as it takes another thread to begin, where it does not wait
        ended.set()

    def second() -> bool:
        begun.wait(9)
        with user_code(Document("b/net.yaml", "", None, {})):
            ended.wait(9)
            return str(Path("b").resolve()) in sys.path

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(first), pool.submit(second)
        one.result()
        assert other.result()
    assert (sys.path, sys.stdout) == (path, stdout)


def test_blocks_in_blocks_hear_each_of_their_own() -> None:
    for name in ("a", "b", "c"):
        Path(name).write_text(name)
    with watched() as outer:
        Path("a").read_text()
        with watched() as inner:
            Path("b").read_text()
        Path("c").read_text()
    Path("a").read_text()
    assert [list(one.files) for one in (outer, inner)] == [["a", "c"], ["b"]]


def test_modules_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With transformers there are thousands, and a plan builds its network several times."""

    class Counted:
        times = 0

        @property
        def __dict__(self) -> dict[str, object]:  # type: ignore[override]
            Counted.times += 1
            return {}

    monkeypatch.setitem(sys.modules, "counted", Counted())  # type: ignore[arg-type]
    with watched():
        pass
    assert Counted.times == 1


@pytest.mark.parametrize(("module", "name"), [(safetensors, "safe_open"), (torch.jit, "load")])
def test_a_function_that_a_block_put_into_a_module_is_watched_by_the_next(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = ModuleType("late")
    monkeypatch.setitem(sys.modules, "late", late)
    original = getattr(module, name)
    with watched():
        setattr(late, name, getattr(module, name))
    with watched() as seen, suppress(Exception):
        getattr(late, name)("nothing.pt", "pt")
    assert list(seen.files) == ["nothing.pt"]
    assert getattr(late, name) is original


@pytest.mark.long
def test_shards_are_given_as_their_folder() -> None:
    network("""
        for name in ('a', 'b'):
            self.body.load_state_dict(safetensors.torch.load_file(f'folder/{name}.safetensors'), strict=False)
    """)
    Path("folder").mkdir()
    safetensors.torch.save_file({"0.weight": BODY["0.weight"]}, "folder/a.safetensors")
    safetensors.torch.save_file({"1.weight": BODY["1.weight"]}, "folder/b.safetensors")
    Path("folder/model.safetensors.index.json").write_text(
        '{"weight_map": {"0.weight": "a.safetensors", "1.weight": "b.safetensors"}}'
    )
    plan = cs.transplant("src.pth", "net.yaml")
    assert [(one.name, one.path) for one in plan.sources] == [("src.pth", "src.pth"), ("folder", "folder")]
    assert plan.counts == {"copied": 4, "initialised": 2}


# Without them.


@pytest.mark.costly
@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_without_constructor_weights_the_model_keeps_its_own_initial_values(how: str, ckpt: Any) -> None:
    body(how)
    plan = cs.transplant("src.pth", "net.yaml", constructor_weights=False)
    assert plan.counts == {"copied": 2, "initialised": 4}
    assert "its constructor reads body.bin, whose weights are left out" in plan.notes
    cs.apply(cs.Plan.from_json(plan.to_json()), "out.pth")
    assert torch.load("out.pth")["body.1.weight"].eq(1).all()  # torch's own
    done = ckpt("transplant", "src.pth", "net.yaml", "--no-constructor-weights", "-o", "same.pth")
    assert done.code == 0
    assert torch.load("same.pth")["body.0.weight"].equal(torch.load("out.pth")["body.0.weight"])


@pytest.mark.long
def test_what_the_model_computes_itself_is_no_weight_to_leave_out() -> None:
    network("""
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer('places', torch.arange(4.0).sin())
        for name in ('body', 'norm'):
            self.get_submodule(name).load_state_dict(torch.load('all.bin')[name], strict=False)
    """)
    norm = torch.nn.BatchNorm1d(4).state_dict()
    torch.save({"body": BODY, "norm": norm, "more": {"places": torch.arange(4.0).sin()}}, "all.bin")
    plan = cs.transplant("src.pth", "net.yaml", constructor_weights=False)
    assert plan.counts == {"copied": 2, "initialised": 10}


@pytest.mark.long
def test_weights_that_cannot_be_left_out_have_to_come_from_a_source() -> None:
    body("numpy")
    with pytest.raises(
        cs.PlanError,
        match=r"has a constructor that reads body.0.weight, .* from body.bin, but constructor_weights=False leaves the "
        r"values of this file out.*leave constructor_weights=False",
    ):
        cs.transplant("src.pth", "net.yaml", constructor_weights=False)
    torch.save({f"body.{key}": value for key, value in BODY.items()}, "src.pth")
    assert cs.transplant("src.pth", "net.yaml", constructor_weights=False).counts == {"copied": 3, "initialised": 3}


def test_only_built_destinations_have_a_constructor() -> None:
    network("pass")
    for destination in ("src.pth", {"a": torch.ones(1)}):
        with pytest.raises(cs.ConfigError, match="constructor_weights=False needs a model that is built by code"):
            cs.transplant("src.pth", destination, constructor_weights=False)


# Hosts.


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", gone)


@pytest.mark.usefixtures("_no_network")
def test_a_host_that_cannot_be_reached_is_an_error_at_once() -> None:
    network("""
        with open('tried', 'a') as file:
            file.write('x')
        import urllib.request
        urllib.request.urlopen('http://weights.example/body.bin')
    """)
    before = socket.create_connection
    with pytest.raises(
        cs.SourceError, match=r"its constructor contacts weights.example, which cannot be reached. URLError"
    ):
        cs.transplant("src.pth", "net.yaml")
    assert Path("tried").read_text() == "x"  # not a second time with storage
    assert socket.create_connection is before


@pytest.mark.usefixtures("_no_network")
def test_a_constructor_that_does_without_its_host_is_built_and_the_host_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network("""
        import socket
        try:
            socket.create_connection(('weights.example', 80))
        except OSError:
            pass
    """)
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 2, "initialised": 4}


def test_a_host_that_was_asked_is_named() -> None:
    network("import socket; socket.getaddrinfo('localhost', 80)")
    assert "its constructor contacted localhost" in cs.transplant("src.pth", "net.yaml").notes
