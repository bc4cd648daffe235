"""A stand-in for the package ``espnet2``: the seam of ESPnet that we use, made of what was recorded of it.

Its tasks have the parser's defaults that the real ones had, read the arguments that the real ones read, and build
modules of the keys, shapes and dtypes that the real ones built. ``write_stub`` writes it as a package.
"""

from __future__ import annotations

from pathlib import Path

from fixtures.espnet_models import GOLDEN

_TASK = """
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

MODELS = json.loads(Path({models!r}).read_text())


def which(args):
    if hasattr(args, "lm"):
        return "lm"
    if args.input_size is None:
        return "ebranchformer" if args.encoder == "e_branchformer" else "conformer"
    if getattr(args, "preprocessor", None) == "s2t":
        return "s2t"
    return {{"transducer": "transducer", "rnn": "rnn", None: "ctc"}}[args.decoder]


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


class {task}:
    @classmethod
    def get_parser(cls):
        parser = argparse.ArgumentParser()
        names = {{}}
        for model in {names!r}:
            names.update(MODELS[model]["reads"])
        for name, default in names.items():
            parser.add_argument(f"--{{name}}", default=default)
        return parser

    @classmethod
    def build_model(cls, args):
        assert type(args) is argparse.Namespace
        model = MODELS[which(args)]
        for name in model["reads"]:
            getattr(args, name)
        if isinstance(args.token_list, str):
            with open(args.token_list, encoding="utf-8") as file:
                args.token_list = [line.rstrip() for line in file]
        stats = stats_of(args.normalize_conf["stats_file"]) if getattr(args, "normalize", "") == "global_mvn" else {{}}
        return module_of(model["layout"], stats)
"""

_TASKS = {
    "asr": ("ASRTask", ["conformer", "ebranchformer", "ctc", "rnn", "transducer"]),
    "lm": ("LMTask", ["lm"]),
    "s2t": ("S2TTask", ["s2t"]),
}


def write_stub(folder: Path) -> None:
    """Write the package into a folder from which it can be imported."""
    tasks = folder / "espnet2" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "__init__.py").write_text("")
    (folder / "espnet2" / "__init__.py").write_text('__version__ = "202511"\n')
    for module, (task, names) in _TASKS.items():
        text = _TASK.format(models=str(GOLDEN / "models.json"), task=task, names=names)
        (tasks / f"{module}.py").write_text(text)
