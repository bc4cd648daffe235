"""Destination configurations: what is read, and what is refused with a word on where and why."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ckptsurgeon as cs


def config(text: str, name: str = "dst.yaml") -> cs.TargetSpec:
    Path(name).write_text(text)
    return cs.load_target(name)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no `model:` section"),
        ("a: 1", "has no `model:` section"),
        ("model: 3", "the section model: is 3, not a map of fields. Write `model:` with one of the fields"),
        ("model:\ntrain: {}", "the section model: is empty"),
        ("model: {}", "no field that defines the model"),
        ("model: {name: hybrid_asr, like: x.pth}", "both"),
        ("model: {tensors: {a: {shape: [1]}}\nmodel: 1", "line"),
        ("model: {name: a}\nmodel: {name: b}", "'model' occurs twice"),
        ("model: [", "line"),
        ("model: {nmae: x}", "no field that defines the model"),
        ("model: {name: hybrid_ars}", "there is no bundled model 'hybrid_ars'.*hybrid_asr"),
        ("model: {name: hybrid_asr}", "needs a token list"),
        ("model: {name: hybrid_asr, tokens: missing.txt}", r"missing.txt \(field tokens\) cannot be read"),
        ("model: {name: hybrid_asr, d_modle: 3}", "no field 'd_modle'. Did you mean d_model"),
        ("model: {tensors: []}", "must map"),
        ("model: {tensors: {a: {dtype: float32}}}", "has no shape"),
        ("model: {tensors: {a: {shape: 3}}}", "not a list of at most 64 sizes"),
        ("model: {tensors: {a: {shape: [-1]}}}", "not a list of at most 64 sizes"),
        ("model: {tensors: {a: {shape: [true]}}}", "not a list of at most 64 sizes"),
        ("model: {tensors: {a: {shape: [1], dtpye: x}}}", "Did you mean dtype"),
        ("model: {tensors: {a: {shape: [1], dtype: float31}}}", "no dtype 'float31'"),
        (f"model: {{tensors: {{a: {{shape: {[1] * 65}}}}}}}", "not a list of at most 64 sizes"),
        ("model: {tensors: {a: {shape: [1], init: magic}}}", "unknown initialiser: 'magic'. Use like, a number, or"),
        ("model: {tensors: {a: {shape: [1], init: xavier_uniform}}}", "it has 1 dimension, not 2 or more"),
        ("model: {tensors: {a: {shape: [1], init: {normal: {sdt: 1}}}}}", "Did you mean std"),
        ("model: {tensors: {a: {shape: [1], init: constant}}}", "needs the argument val"),
        ("model: {tensors: {a: {shape: [1], dtype: int64, init: normal}}}", "its dtype is int64, not a floating"),
        ("model: {tensors: {a: {shape: [1]}}, tied: [[a]]}", "two or more"),
        ("model: {tensors: {a: {shape: [1]}}, tied: [[{a: a}, a]]}", "is not a key of the field 'tensors'"),
        ("model: {tensors: {a: {shape: [1]}}, tied: [[a, a]]}", "'tied' has the key a twice"),
        (
            "model: {tensors: {a: {shape: [1]}, b: {shape: [1]}, c: {shape: [1]}}, tied: [[b, c], [a, b]]}",
            "'tied' has the key b twice",
        ),
        ("model: {tensors: {a: {shape: [1]}}, tied: 5}", "'tied' is 5, not a list of lists of keys"),
        ("model: {tensors: {a: {shape: [1]}}, tied: {a: a}}", "not a list of lists of keys"),
        (
            "model: {tensors: {a: {shape: [1]}, b: {shape: [2]}}, tied: [[a, b]]}",
            "tied tensors must have the same shape and dtype",
        ),
        ("model: {_target_: nothing}", "package.module.Class"),
        ("model: {_target_: no_such_package.Class}", "no module no_such_package"),
        ("model: {_target_: torch.nn.Linearr}", "torch.nn has no Linearr. Did you mean Linear"),
        ("model: {_target_: trch.nn.Linear}", "there is no module trch. Did you mean torch"),
        ("model: {_target_: torch.nn.modules.linaer.Linear}", "has no linaer.Linear. Did you mean linear"),
        ("model: {_target_: torch.nn.Linear}", "cannot be built.*missing"),
        ("model: {_target_: torch.nn.Linear, in_features: 2, out_features: 3, bais: false}", "unexpected keyword"),
        ("model: {_target_: builtins.dict}", "not an nn.Module"),
        ("model: {_target_: torch.nn.LazyLinear, out_features: 3}", "after a forward pass"),
        ("model: {_target_: torch.nn.Linear, in_features: '${x}', out_features: 3}", "interpolation"),
        ("model: {like: missing.pth}", "does not exist"),
        ("model: {like: 3}", "like is 3, not a file name"),
        ("model: {like: a.pth, root: 3}", "root is 3, not the dotted path of a state dict"),
    ],
)
def test_a_wrong_configuration_says_where_and_why(text: str, why: str) -> None:
    with pytest.raises(cs.CheckpointError, match=f"(?s){why}") as caught:
        config(text)
    assert caught.value.exit_code in (2, 3)
    if "does not exist" not in why:
        assert isinstance(caught.value, cs.ConfigError)


def test_a_task_of_espnet_is_refused_for_tensors_in_memory() -> None:
    with pytest.raises(cs.ConfigError, match="ESPnet have a task, and the destination is not a configuration"):
        cs.load_target({"a": torch.zeros(2)}, task="asr")


def test_a_missing_configuration_says_so() -> None:
    with pytest.raises(cs.ConfigError, match="nothing.yaml cannot be read"):
        cs.load_target("nothing.yaml")


def test_numbers_without_a_dot_are_numbers() -> None:
    spec = config("model: {_target_: torch.nn.LayerNorm, normalized_shape: 4, eps: 1e-3}")
    assert list(spec.tensors) == ["weight", "bias"]


def test_json_configurations_are_read_too() -> None:
    assert list(config('{"model": {"tensors": {"a": {"shape": [2]}}}}', "dst.json").tensors) == ["a"]


def test_other_sections_are_left_to_others() -> None:
    assert config("model: {tensors: {a: {shape: [2]}}}\ntrain: {lr: 1e-3}").tensors


def test_code_is_found_beside_the_configuration_and_said() -> None:
    Path("sub").mkdir()
    Path("sub/my_net.py").write_text("from torch import nn\nprint('hello')\nNet = lambda n: nn.Linear(n, n)\n")
    spec = config("model: {_target_: my_net.Net, n: 3}", "sub/dst.yaml")
    assert spec.ran == ("my_net.Net from sub/my_net.py",)
    assert spec.tensors["weight"].shape == (3, 3)


def test_what_code_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Path("loud_net.py").write_text(
        "from torch import nn\nprint('at import')\n\ndef net():\n    print('at build')\n    return nn.Linear(1, 1)\n"
    )
    config("model: {_target_: loud_net.net}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "at import" in captured.err
    assert "at build" in captured.err


def test_an_import_that_fails_names_the_package() -> None:
    Path("needy_net.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(cs.ConfigError, match="needs the package a_package_nobody_has. pip install .*of your own"):
        config("model: {_target_: needy_net.Net}")
    Path("near_net.py").write_text("import numpyy.linalg\n")
    with pytest.raises(cs.ConfigError, match="near_net.Net needs the package numpyy. Did you mean numpy"):
        config("model: {_target_: near_net.Net}")
    Path("old_net.py").write_text("import torch.nothing_like_it\n")
    with pytest.raises(
        cs.ConfigError, match="needs the module torch.nothing_like_it, which the package torch does"
    ) as caught:
        config("model: {_target_: old_net.Net}")
    assert "pip" not in str(caught.value)
    Path("strict_net.py").write_text("def Net(): assert False\n")
    with pytest.raises(cs.ConfigError, match=r"cannot be built: AssertionError\. This code"):
        config("model: {_target_: strict_net.Net}")
    Path("broken_net.py").write_text("1/0\n")
    with pytest.raises(cs.ConfigError, match="ZeroDivisionError"):
        config("model: {_target_: broken_net.Net}")


def test_nested_targets_are_built_innermost_first() -> None:
    spec = config("""
model:
  _target_: torch.nn.Sequential
  _args_:
    - {_target_: torch.nn.Linear, in_features: 3, out_features: 4}
    - {_target_: torch.nn.LayerNorm, normalized_shape: 4}
""")
    assert list(spec.tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_like_takes_the_keys_and_keeps_the_values() -> None:
    torch.save({"model": {"module.a": torch.ones(2), "module.b": torch.zeros(3)}, "epoch": 1}, "like.pth")
    spec = config("model: {like: like.pth}")
    assert list(spec.tensors) == ["module.a", "module.b"]
    assert (spec.keeps, spec.keeps_root) == ("like.pth", "model")


def test_a_checkpoint_is_a_destination_itself() -> None:
    save_file({"a": torch.ones(2)}, "dst.safetensors")
    assert cs.load_target("dst.safetensors").keeps == "dst.safetensors"


def test_a_declared_model_draws_what_it_says() -> None:
    spec = config("""
model:
  tensors:
    a: {shape: [400, 300], init: {normal: {std: 0.02}}}
    b: {shape: [400, 300], dtype: bf16, init: {uniform: {a: -1, b: 1}}}
    c: {shape: [3], init: 7}
    d: {shape: [1, 4], dtype: int64, init: arange}
    e: {shape: [2, 2], init: eye}
    f: {shape: [2], init: ones}
    g: {shape: [0, 2], init: kaiming_uniform}
    h: {shape: [2]}
    i: {shape: [400, 300], init: {normal: {std: 0.02}}}
  tied: [[i, a]]
""")
    assert spec.ties == {"i": "a"}
    assert list(spec.undrawable) == ["h"]
    drawn = {}
    for key, data in spec.initial(["f", "a", "b", "c", "d", "e", "g"], 3):
        drawn[key] = (
            torch.frombuffer(bytearray(data), dtype=getattr(torch, spec.tensors[key].dtype)) if len(data) else None
        )
    a, b = drawn["a"], drawn["b"]
    assert a is not None
    assert b is not None
    assert abs(a.std().item() - 0.02) < 0.001
    assert b.float().abs().max() <= 1
    assert drawn["c"].tolist() == [7, 7, 7]  # type: ignore[union-attr]
    assert drawn["d"].tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert drawn["e"].tolist() == [1, 0, 0, 1]  # type: ignore[union-attr]
    (again,) = [bytes(data) for _, data in spec.initial(["a"], 3)]
    assert again == bytes(a.numpy())
    (other,) = [bytes(data) for _, data in spec.initial(["a"], 4)]
    assert other != again
    with pytest.raises(cs.ConfigError, match="does not say how to initialise the tensor h"):
        list(spec.initial(["h"], 0))


def test_init_writes_what_load_target_reads() -> None:
    tied = torch.randn(5, 4)
    torch.save({"model": {"module.emb.weight": tied, "module.out.weight": tied, "module.norm.weight": torch.ones(4),
                          "module.n": torch.tensor(3), "module.h": torch.ones(2).half()}}, "x.pth")  # fmt: skip
    text = cs.init_config("x.pth", output="dst.yaml")
    assert Path("dst.yaml").read_text() == text
    spec, source = cs.load_target("dst.yaml"), cs.open_checkpoint("x.pth")
    assert {k: (i.dtype, i.shape) for k, i in spec.tensors.items()} == {
        k: (i.dtype, i.shape) for k, i in source.items()
    }
    assert spec.ties == {"out.weight": "emb.weight"}
    assert not spec.undrawable
    with pytest.raises(cs.OutputError, match="exists"):
        cs.init_config("x.pth", output="dst.yaml")
    assert len(list(spec.initial([k for k in spec.tensors if k not in spec.ties], 0))) == 4


# What user code may not do.


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "def Net():\n    raise SystemExit(7)\n"])
def test_code_cannot_end_the_program(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ending_net", raising=False)
    Path("ending_net.py").write_text(text)
    with pytest.raises(cs.ConfigError, match="the code to which the file refers ended the program: sys.exit"):
        config("model: {_target_: ending_net.Net}")


def test_code_leaves_the_folder_and_the_path_as_they_were() -> None:
    Path("moving_net.py").write_text(
        "import os\nfrom torch import nn\n\ndef net():\n    os.chdir('/')\n    return nn.Linear(1, 1)\n"
    )
    before = os.getcwd(), list(sys.path)
    config("model: {_target_: moving_net.net}")
    assert (os.getcwd(), sys.path) == before


def test_the_file_of_the_class_is_read_too() -> None:
    Path("own_net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(1, 1)\n")
    assert config("model: {_target_: own_net.net}").files == ("own_net.py",)
    assert config("model: {_target_: torch.nn.Linear, in_features: 1, out_features: 1}").files == ()


def test_partial_and_not_recursive_are_hydra_s() -> None:
    Path("hydra_net.py").write_text(
        "from torch import nn\n\ndef net(norm, layer):\n"
        "    assert isinstance(layer, dict) == (not callable(norm)), (norm, layer)\n"
        "    return nn.Sequential(norm(3)) if callable(norm) else nn.Linear(layer['size'], 1)\n"
    )
    spec = config("""
model:
  _target_: hydra_net.net
  norm: {_target_: torch.nn.LayerNorm, _partial_: true}
  layer: {_target_: torch.nn.Identity}
""")
    assert spec.tensors["0.weight"].shape == (3,)
    spec = config("""
model: {_target_: hydra_net.net, _recursive_: false, norm: {_target_: torch.nn.LayerNorm}, layer: {size: 5}}
""")
    assert spec.tensors["weight"].shape == (1, 5)


# What a declaration may say.


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("shape: [2], init: {uniform: {a: 3, b: 1}}", "its lower bound a is 3, above its upper bound b, 1"),
        ("shape: [2], init: {normal: {std: big}}", "std is 'big', not a number"),
        ("shape: [2], init: {trunc_normal: {a: 3}}", "its lower bound a is 3, above its upper bound b, 2.0"),
        ("shape: [2], init: {normal: {std: -1}}", "std is -1, below zero"),
        ("shape: [2], init: {normal: {std: .nan}}", "std is nan, not a finite number"),
        (f"shape: [2], init: 1{'0' * 400}", r"val is 10+...0+, not a finite number"),
        ("shape: [2], dtype: int64, init: .nan", "nan is not a value of int64"),
        ("shape: [2], dtype: uint8, init: {constant: {val: .inf}}", "inf is not a value of uint8"),
        ("shape: [2, 2], init: {sparse: {sparsity: 2}}", "not between 0 and 1"),
        ("shape: [2, 2], init: {kaiming_uniform: {mode: fan_up}}", "mode is 'fan_up', not one of fan_in"),
        ("shape: [3, 2, 2], init: {dirac: {groups: 2}}", "divides the size of the first axis, 3"),
        ("shape: [2], dtype: int64, init: 2.5", "2.5 is not a value of int64"),
        ("shape: [2], dtype: int8, init: 300", "300 is not a value of int8"),
        ("shape: [2], dtype: uint8, init: -1", "-1 is not a value of uint8"),
        ("shape: [2], dtype: bool, init: 2", "2 is not a value of bool"),
        ("shape: [300], dtype: int8, init: arange", "int8 cannot represent the last value, 299"),
        ("shape: [2], dtype: float4_e2m1fn_x2, init: ones", "can only be initialised with zeros"),
    ],
)
def test_an_initialiser_that_cannot_be_is_refused_at_once(row: str, why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        config(f"model: {{tensors: {{a: {{{row}}}}}}}")


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ("shape: [3], dtype: int8, init: 127", [127] * 3),
        ("shape: [128], dtype: int8, init: arange", list(range(128))),
        ("shape: [2], dtype: bool, init: 1", [True] * 2),
        ("shape: [2], dtype: uint16, init: 65535", [65535] * 2),
        ("shape: [2], dtype: float8_e4m3fn, init: ones", [1.0] * 2),
        ("shape: [2], dtype: complex64, init: 2", [2 + 0j] * 2),
    ],
)
def test_constants_of_every_type_are_what_they_say(row: str, values: list[Any]) -> None:
    spec = config(f"model: {{tensors: {{a: {{{row}}}}}}}")
    ((_, data),) = spec.initial(["a"], 0)
    dtype = getattr(torch, spec.tensors["a"].dtype)
    made = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
    assert made.to(torch.complex64 if dtype.is_complex else torch.float64).tolist() == values


def test_ties_agree_on_their_initialiser() -> None:
    tensors = "a: {shape: [2], init: ones}, b: {shape: [2], init: zeros}, c: {shape: [2]}"
    with pytest.raises(cs.ConfigError, match="b is tied to a, but has a different initialiser"):
        config(f"model: {{tensors: {{{tensors}}}, tied: [[a, b]]}}")
    with pytest.raises(cs.ConfigError, match="b is tied to d, but has a different initialiser"):
        config(f"model: {{values: x.pth, tensors: {{d: {{shape: [2], init: like}}, {tensors}}}, tied: [[b, d]]}}")
    spec = config(f"model: {{tensors: {{{tensors}}}, tied: [[b, c]]}}")
    assert not spec.undrawable


def test_a_key_that_is_a_number_must_be_quoted() -> None:
    with pytest.raises(cs.ConfigError, match='the tensor key 1 is not a string. Write it in quotes: "1"'):
        config("model: {tensors: {1: {shape: [2]}}}")
    with pytest.raises(cs.ConfigError, match=r"the tensor key None is not a string. Write it in quotes\."):
        config("model: {tensors: {null: {shape: [2]}}}")


def test_equal_declared_tensors_start_different() -> None:
    spec = config("model: {tensors: {a: {shape: [4], init: normal}, b: {shape: [4], init: normal}}}")
    (_, a), (_, b) = spec.initial(["a", "b"], 0)
    assert bytes(a) != bytes(b)


def test_configurations_are_known_by_their_suffix_of_whatever_case() -> None:
    assert list(config("model: {tensors: {a: {shape: [2]}}}", "DST.YAML").tensors) == ["a"]
    assert list(config('{"model": {"tensors": {"a": {"shape": [2]}}}}', "DST.JSON").tensors) == ["a"]


def test_a_checkpoint_with_values_that_are_not_plain_is_no_destination() -> None:
    torch.save({"a": torch.ones(2).to_sparse()}, "sparse.pth")
    with pytest.raises(cs.FormatError, match="a of sparse.pth cannot be in a destination"):
        cs.load_target("sparse.pth")


def test_a_module_with_a_sparse_buffer_is_no_destination() -> None:
    Path("sparse_net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('s', torch.eye(3).to_sparse())\n"
    )
    with pytest.raises(cs.ConfigError, match="tensor s has the layout sparse_coo"):
        config("model: {_target_: sparse_net.Net}")


# What ckpt init writes.


@pytest.mark.long
def test_init_suggests_by_name_and_shape_and_can_be_carried_out(tmp_path: Path) -> None:
    tensors = {
        "w.weight": torch.ones(3, 2), "norm.weight": torch.ones(3), "norm.bias": torch.ones(3),
        "bn.running_var": torch.ones(3), "position_ids": torch.arange(4)[None], "steps": torch.tensor(5),
        "v.weight_g": torch.ones(2, 1), "lstm.weight_ih_l0_reverse": torch.ones(4, 2), "lstm.bias_hh_l0": torch.ones(4),
        "attn.bias": torch.ones(1, 1, 3, 3), "norm.std": torch.ones(3), "bn.num_batches_tracked": torch.tensor(3),
        "w8": torch.ones(4, 4).to(torch.float8_e4m3fn), "z": torch.ones(2, 2, dtype=torch.complex64),
    }  # fmt: skip
    torch.save(tensors, "src.pth")
    for name in ("made.yaml", "made.json"):
        cs.init_config("src.pth", output=name)
        text = Path(name).read_text()
        rows = (json.loads(text) if name.endswith("json") else yaml.safe_load(text))["model"]["tensors"]
        slope = {"kaiming_uniform": {"a": 2.23607}}
        assert {key: row["init"] for key, row in rows.items()} == {
            "w.weight": slope, "norm.weight": "ones", "norm.bias": "zeros", "bn.running_var": "ones", "position_ids": "arange",
            "steps": "like", "v.weight_g": "ones", "w8": "like", "z": "like", "lstm.weight_ih_l0_reverse": slope,
            "lstm.bias_hh_l0": "zeros", "attn.bias": "like", "norm.std": "like", "bn.num_batches_tracked": "zeros",
        }  # fmt: skip
        cs.apply(cs.transplant("src.pth", name, exclude=["w.weight", "w8", "position_ids"]), "out.pth", force=True)
        assert cs.verify("out.pth").ok
    assert text.count("\n") > 5
    lines = Path("made.yaml").read_text().splitlines()
    assert len([line for line in lines if line.startswith("    ") and "shape" in line]) == len(tensors)
