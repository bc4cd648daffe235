"""The command ``ckpt merge``: merges models into one."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from ..options import Encoding, Memory
from ..showing import check_page, check_writes_no_model, show_explained, write_page
from ..writing import StateDict, Writing, numbers

NAME = "merge"
HELP = """Merge models into one by a method.

Values are computed slice by slice, so that memory does not grow with the models; statistics of whole tensors that a
method needs (norms, thresholds) are computed in a first pass. The value of a parameter is one number, one number for
each model (0.3,0.7), or a gradient from the first layer to the last ([0, 0.5, 1]); NAME:GLOB=VALUE sets it for some
keys, and the last match wins. Integers and booleans, such as BatchNorm's counter, are not merged (see --int-buffers).
ckpt merge --list shows all methods with their parameters and papers.

--page FILE.html writes a page to read before the merge, and no model. It shows how far the models' changes from the
base agree, by layer and role; the layers whose changes oppose each other most; and how much of the changes each method
would keep.

A recipe of mergekit (recipe.yaml, with merge_method) contains models, method and parameters; its paths are relative to
the working directory, or else to the recipe.
"""
EXAMPLES = """\b
Examples:
  ckpt merge a.safetensors b.safetensors --method linear --weights 0.3,0.7 -o soup.safetensors
  ckpt merge a b --method ties --base llama --param density=0.5 --weights 1,1 -o merged/
  ckpt merge a b --method slerp --param 't=[0, 0.5, 1]' --param 't:model.layers.*.mlp=0.3' -o merged/
  ckpt merge a b --method ties --base llama --explain 'model.layers.8.mlp.*'
  ckpt merge a b --method ties --base llama --page before.html
  ckpt merge a b --method regmean --statistics a=a.stats.safetensors --statistics b=b.stats.safetensors -o merged/
  ckpt merge a b --method linear --weights 0.5,0.5 --align -o merged/
  ckpt merge recipe.yaml -o merged/
  ckpt merge --list
"""


def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="CKPT…|RECIPE.yaml", help="The models to merge, in order, or a recipe."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", metavar="NAME", help="Merge by this method; --list shows all of them."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="CKPT", help="Name the model that the others were trained from.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="W,W,…", help="Give a weight for each model, in order; short for --param weight=W,W,…."
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME[:GLOB]=VALUE", help="Set a parameter of the method. Repeatable."),
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            "--statistics",
            metavar="MODEL=FILE",
            help="The statistics of a model that ckpt stats made, for methods such as regmean. Repeatable.",
        ),
    ] = None,
    on_missing: Annotated[
        str,
        typer.Option(
            metavar="error|base|skip|any",
            help="If some models lack a tensor: fail, take the base's, leave it out, or merge the models that have it.",
        ),
    ] = "error",
    on_mismatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[GLOB=]error|skip|slice|overlap",
            help="If shapes differ: fail, skip the model, use the leading part of the larger tensor, or merge the "
            "common part. Repeatable.",
        ),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            "--vocab",
            metavar="union|base|FILE|place",
            help="Merge the rows of the same token; the output has all tokens (union), those of the base, or those in "
            "FILE. place: merge row n with row n.",
        ),
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--tokens", metavar="MODEL=LIST", help="The token list of a model whose folder has none. Repeatable."
        ),
    ] = None,
    vocab_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--vocab-keys",
            metavar="GLOB[=AXIS]",
            help="The tensors with a vocabulary axis, if their sizes do not show it.",
        ),
    ] = None,
    int_buffers: Annotated[
        str,
        typer.Option(
            "--int-buffers",
            metavar="last|first|max",
            help="Take integer tensors from the last or first model, or the largest values of all.",
        ),
    ] = "last",
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Before the merge, reorder the channels, heads and experts of each model so that they match those "
            "of the base (or the first model), by their weights (Git Re-Basin).",
        ),
    ] = False,
    align_groups: Annotated[
        str | None,
        typer.Option(
            "--align-groups",
            metavar="FILE.yaml",
            help="With --align: read from this YAML file which axes may be reordered, if there is no config.json.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Write floating tensors in this dtype. [default: one that holds all inputs]",
        ),
    ] = None,
    compute: Annotated[
        str | None, typer.Option("--compute", metavar="float32|float64", help="Compute in this dtype.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed methods that draw at random with this number.")
    ] = 0,
    memory: Memory = None,
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Compute on this device; cuda needs torch.")
    ] = "cpu",
    plugin: Annotated[
        str | None,
        typer.Option("--plugin", metavar="FILE.py", help="Run this Python file, and use the merge methods in it."),
    ] = None,
    list_methods: Annotated[
        bool, typer.Option("--list", help="Show the methods with their parameters and papers.")
    ] = False,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain",
            metavar="KEY",
            help="Show how far the models agree on these tensors, and how much of their changes each method would "
            "keep; write nothing.",
        ),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(
            "--page",
            metavar="FILE.html",
            help="Write a page that shows where the changes of the models agree, and what each method would keep of "
            "them; write no model.",
        ),
    ] = None,
    encoding: Encoding = "keep",
    *,
    state_dict: StateDict,
    writing: Writing,
) -> None:
    """Merge models into one, and write the result."""
    from ...api.inputs.recipe_files import is_recipe
    from ...api.merge.merge import merge
    from ...api.merge.methods import list_methods as list_methods_api
    from ...errors import ConfigError

    printer = writing.printer
    if list_methods:
        found = list_methods_api(plugin)
        if not printer.answer(found):
            from ...render.methods import methods_view

            printer.show(methods_view(found))
        return
    recipe = models[0] if models and len(models) == 1 and is_recipe(models[0]) else ""
    if not models or (method is None and not recipe):
        lacks = "models" if not models else "method"
        raise ConfigError(
            f"no {lacks} given.", hint="Write, for example, ckpt merge A B --method linear --weights 0.5,0.5."
        )
    if recipe:
        from ...api.merge.mergekit import read_recipe

        read_recipe(recipe)  # so that an error in the recipe is reported before an error in the output
    if explain or page:
        others = {"explain": explain} if page else {"force": writing.force}
        check_writes_no_model(
            f"--{'page' if page else 'explain'}",
            output=writing.output, to=writing.to, max_shard_size=writing.max_shard_size, **others,
        )  # fmt: skip
        writing = replace(writing, dry_run=True)
    if page:
        check_page(page)
    writing.check()
    plan = merge(
        recipe or models, method=method, base=base, weights=numbers("--weights", weights),
        parameters=param or (), statistics=statistics or (), on_missing=on_missing,
        on_mismatch=on_mismatch or "error", vocab=vocab, tokens=tokens or (), vocab_keys=vocab_keys,
        int_buffers=int_buffers, align=align, align_groups=align_groups, encoding=encoding, dtype=dtype,
        compute=compute, seed=seed, plugin=plugin,
        memory=memory, device=device, **state_dict.arguments,
    )  # fmt: skip
    if page:
        write_page(printer, plan, page, force=writing.force, wait=writing.wait)
    elif explain:
        show_explained(printer, plan, explain)
    else:
        writing.carry_out(plan)
