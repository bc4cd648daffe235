"""``ckpt merge``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import (
    Memory,
    Root,
    Unwrap,
    numbers,
)
from ..writing import Writing

NAME = "merge"
HELP = """Merge models into one, by a method.

Values are computed slice by slice, so that memory does not grow with the models; what a method has to know of whole
tensors (norms, thresholds) it finds in a pass before. A parameter is one number, one for each model (0.3,0.7), or
from the first layer to the last ([0, 0.5, 1]), everywhere or for some keys (NAME:GLOB=VALUE, the last match wins).
Integers and truth values, such as BatchNorm's counter, are not merged but taken. ckpt merge --list shows all methods
with their parameters and papers.

A recipe that mergekit reads (recipe.yaml, with merge_method) says models, method and parameters itself; its paths are
seen from here, else from where it lies.
"""
EXAMPLES = """\b
Examples:
  ckpt merge a.safetensors b.safetensors --method linear --weights 0.3,0.7 -o soup.safetensors
  ckpt merge a b --method ties --base llama --param density=0.5 --weights 1,1 -o merged/
  ckpt merge a b --method slerp --param 't=[0, 0.5, 1]' --param 't:model.layers.*.mlp=0.3' -o merged/
  ckpt merge recipe.yaml -o merged/
  ckpt merge --list
"""


def run(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="CKPT…|RECIPE.yaml", help="The models, in order, or a recipe.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", metavar="NAME", help="How; see --list.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="CKPT", help="What the models were trained from.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W,…", help="What each model counts: --param weight=W,W,….")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME[:GLOB]=VALUE", help="A parameter of the method; repeatable."),
    ] = None,
    on_missing: Annotated[
        str,
        typer.Option(
            metavar="error|base|skip|any",
            help="A tensor that some lack: an error, the base's, none, or of those that have it.",
        ),
    ] = "error",
    on_mismatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[GLOB=]error|skip|slice|overlap",
            help="A model whose shape differs: an error, not counted, its leading part, what all have; repeatable.",
        ),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            "--vocab",
            metavar="union|base|FILE|place",
            help="Merge rows by token: all tokens, the base's or first's, a list's; or by place, whatever they are.",
        ),
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--tokens", metavar="MODEL=LIST", help="A model's token list, where none lies beside it; repeatable."
        ),
    ] = None,
    vocab_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--vocab-keys", metavar="GLOB[=AXIS]", help="The tensors along the vocabulary, where sizes do not tell."
        ),
    ] = None,
    int_buffers: Annotated[
        str, typer.Option("--int-buffers", metavar="last|first|max", help="What becomes of integers.")
    ] = "last",
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="Of the output; by default the widest of the inputs.")
    ] = None,
    compute: Annotated[
        str | None, typer.Option("--compute", metavar="float32|float64", help="In what the values are computed.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of methods that draw.")] = 0,
    memory: Memory = None,
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Where it is computed; with a GPU, by torch.")
    ] = "cpu",
    plugin: Annotated[
        str | None, typer.Option("--plugin", metavar="FILE.py", help="A file of yours with merge methods; it is run.")
    ] = None,
    list_methods: Annotated[
        bool, typer.Option("--list", help="Show the methods, their parameters and papers.")
    ] = False,
    root: Root = None,
    unwrap: Unwrap = False,
    *,
    writing: Writing,
) -> None:
    """Merge models."""
    from ...api.merge.merge import list_methods as list_methods_api
    from ...api.merge.merge import merge
    from ...api.merge.mergekit import read_recipe
    from ...errors import ConfigError

    sink = writing.sink
    if list_methods:
        found = list_methods_api(plugin)
        if not sink.answer(found):
            from ...render.methods import methods_view

            sink.show(methods_view(found))
        return
    is_recipe = len(models or ()) == 1 and (models or [""])[0].lower().endswith((".yaml", ".yml"))
    if not models or (method is None and not is_recipe):
        lacks = "models" if not models else "a method"
        raise ConfigError(f"it does not say {lacks}.", hint="As in ckpt merge A B --method linear --weights 0.5,0.5.")
    if is_recipe:
        read_recipe((models or [""])[0])  # what is wrong in it comes before what is wrong with the output
    writing.check()
    plan = merge(
        models[0] if is_recipe else models, method=method, base=base, weights=numbers("--weights", weights),
        parameters=param or (), on_missing=on_missing,
        on_mismatch=on_mismatch or "error", vocab=vocab, tokens=tokens or (), vocab_keys=vocab_keys,
        int_buffers=int_buffers, dtype=dtype, compute=compute, seed=seed, plugin=plugin, memory=memory, device=device,
        unwrap=unwrap, root=root,
    )  # fmt: skip
    writing.carry_out(plan)
