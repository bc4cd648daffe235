"""A stand-in for the package ``espnet2``: the seam of ESPnet that we use, made of what was recorded of it.

Its tasks have the entries, defaults and classes that the real ones had, read the arguments that the real ones read, and
build modules of the keys, shapes and dtypes that the real ones built: of the recorded model of the task that has most
of the classes that are asked for. ``write_stub`` writes it as a package.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from fixtures.espnet_models import GOLDEN, recorded

TABLE = Path(__file__).parents[2] / "ckptsurgeon" / "destinations" / "_espnet_tasks.json"

_TASK = """
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

MODELS = json.loads(Path({models!r}).read_text())
TABLE = json.loads(Path({table!r}).read_text())
DECLARED = TABLE["tasks"][{module!r}]
CONFIGS = json.loads({configs!r})


def which(args):
    for entry, names in DECLARED["classes"].items():
        chosen = getattr(args, entry, None)
        if isinstance(chosen, str) and chosen.lower() not in names:
            raise KeyError(chosen)

    def alike(name):
        asked = {{entry: value for entry, value in CONFIGS[name].items() if entry in (*DECLARED["classes"], "input_size")}}
        return sum(1 if str(getattr(args, entry, None)).lower() == str(value).lower() else -1 for entry, value in asked.items())

    return max(CONFIGS, key=alike)


def none_or_text(text):
    return None if text.lower() in ("none", "null", "nil") else text


def module_of(layout, stats):
    root = nn.Module()
    for key, dtype, shape in layout:
        *path, leaf = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        if leaf in stats and path == ["normalize"]:
            module.register_buffer(leaf, torch.from_numpy(stats[leaf]))
        elif dtype == "int64":
            module.register_buffer(leaf, torch.zeros(shape, dtype=torch.int64))
        else:
            module.register_parameter(leaf, nn.Parameter(torch.empty(shape, dtype=getattr(torch, dtype)).normal_()))
    return root


def stats_of(path):
    found = np.load(path)
    mean = found["sum"] / found["count"]
    return {{"mean": mean, "std": np.sqrt(found["sum_square"] / found["count"] - mean * mean)}}


class Parser(argparse.ArgumentParser):
    # reads the file of --config, as ESPnet does, whether it is given or the default

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        if found.config is not None and not Path(found.config).exists():
            self.error(f"No such file: {{found.config}}")
        return found, rest


class {task}:
    @classmethod
    def get_parser(cls):
        parser = Parser()
        names = dict.fromkeys([*TABLE["common"], *DECLARED["entries"]])
        for model in CONFIGS:
            names.update(MODELS[model]["reads"])
        for name, default in names.items():
            parser.add_argument(f"--{{name}}", default=default, type=none_or_text)
        return parser

    @classmethod
    def build_model(cls, args):
        assert type(args) is argparse.Namespace
        model = MODELS[which(args)]
        for name in model["reads"]:
            getattr(args, name)
        if isinstance(getattr(args, "token_list", None), str):
            with open(args.token_list, encoding="utf-8") as file:
                args.token_list = [line.rstrip() for line in file]
        stats = stats_of(args.normalize_conf["stats_file"]) if getattr(args, "normalize", "") == "global_mvn" else {{}}
        return module_of(model["layout"], stats)
"""


def write_stub(folder: Path) -> None:
    """Write the package into a folder from which it can be imported."""
    written = folder / "espnet2" / "tasks"
    written.mkdir(parents=True)
    (written / "__init__.py").write_text("")
    (folder / "espnet2" / "__init__.py").write_text('__version__ = "202511"\n')
    models = recorded("models")
    for module, declared in json.loads(TABLE.read_text())["tasks"].items():
        names = [name for name, model in models.items() if model["task"] == module and name != "spelled"]
        configs = {name: yaml.safe_load((GOLDEN / f"{name}.yaml").read_text()) for name in names}
        text = _TASK.format(
            models=str(GOLDEN / "models.json"), table=str(TABLE), module=module, task=declared["class"],
            configs=json.dumps(configs),
        )  # fmt: skip
        (written / f"{module}.py").write_text(text)
