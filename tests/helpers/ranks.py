"""Folders as the ranks of real runs save them: torch's own DTensors, over gloo, in processes of their own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from .forked import Forked

__all__ = ["RANKS", "layers", "loaded", "rank_name", "save_all", "saved", "tensors"]

RANKS = 4
Tensors = dict[str, torch.Tensor]


def rank_name(rank: int, ranks: int = RANKS) -> str:
    """The name that verl gives to the file of a rank."""
    return f"model_world_size_{ranks}_rank_{rank}.pt"


def tensors() -> Tensors:
    """Sizes that four ranks share evenly, unevenly, and so that the last ranks have nothing."""
    torch.manual_seed(0)
    shapes = {
        "even": (8, 4),
        "uneven": (5, 6),
        "few": (3, 2),
        "one": (1, 3),
        "vector": (7,),
        "cube": (4, 6, 2),
        "none": (0, 4),
    }
    made = {key: torch.randn(shape) for key, shape in shapes.items()}
    return {**made, "half": torch.randn(6, 4).bfloat16(), "number": torch.arange(12).reshape(4, 3)}


def layers() -> nn.Sequential:
    """Two linear layers whose sizes two ranks of tensor parallelism share unevenly."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))


def save_all(rank: int, folder: str, ranks: int = RANKS) -> None:
    """Save, as one of the ranks, a folder for each layout, each with what it should be in ``whole.st``."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    for name, make in LAYOUTS.items():
        state, whole = make(ranks)
        path = Path(folder, name)
        path.mkdir(exist_ok=True)
        torch.save(state, path / rank_name(rank, ranks))
        if rank == 0:
            save_file({key: value.detach().clone().contiguous() for key, value in whole.items()}, path / "whole.st")
    _leave()


def _leave() -> None:
    """End this rank when all are done; gloo's threads may abort a process that Python ends in its usual way."""
    dist.barrier()
    os._exit(0)


def _mesh(sizes: tuple[int, ...], names: tuple[str, ...]) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def _shared_out(mesh: Any, placements: list[Any], dims: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import distribute_tensor

    whole = {key: value for key, value in tensors().items() if value.ndim >= dims}
    state = {key: distribute_tensor(value, mesh, placements) for key, value in whole.items()}
    buffer = torch.arange(3.0)
    return {**state, "buffer": buffer}, {**whole, "buffer": buffer}


def _rows(ranks: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import Shard

    return _shared_out(_mesh((ranks,), ("fsdp",)), [Shard(0)], 1)


def _columns(ranks: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import Shard

    return _shared_out(_mesh((ranks,), ("fsdp",)), [Shard(-1)], 2)


def _replicas(ranks: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import Replicate, Shard

    return _shared_out(_mesh((2, ranks // 2), ("ddp", "fsdp")), [Replicate(), Shard(0)], 1)


def _part_of_mesh(ranks: int) -> tuple[dict[str, Any], Tensors]:
    """Each half of the ranks has a mesh of its own: a part of the whole mesh."""
    from torch.distributed.tensor import Shard

    return _shared_out(_mesh((2, ranks // 2), ("ddp", "fsdp"))["fsdp"], [Shard(0)], 1)


def _grid(ranks: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import Shard

    return _shared_out(_mesh((2, ranks // 2), ("fsdp", "tp")), [Shard(0), Shard(1)], 2)


def _twice(ranks: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import Shard

    return _shared_out(_mesh((2, ranks // 2), ("fsdp", "tp")), [Shard(0), Shard(0)], 1)


def _same(ranks: int) -> tuple[dict[str, Any], Tensors]:
    from torch.distributed.tensor import Replicate

    return _shared_out(_mesh((ranks,), ("ddp",)), [Replicate()], 1)


def _fully_sharded(ranks: int) -> tuple[dict[str, Any], Tensors]:
    """FSDP2 over tensor parallelism, which makes strided shards."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh, model = _mesh((2, ranks // 2), ("fsdp", "tp")), layers()
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["fsdp"])
    return model.state_dict(), layers().state_dict()


def _first_fsdp(ranks: int) -> tuple[dict[str, Any], Tensors]:
    """FSDP1, whose state dicts have ShardedTensors."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType

    model = FullyShardedDataParallel(layers(), device_id=torch.device("cpu"))
    config = ShardedStateDictConfig(offload_to_cpu=False)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT, config):
        return model.state_dict(), layers().state_dict()


LAYOUTS = {
    "rows": _rows,
    "columns": _columns,
    "replicas": _replicas,
    "part of mesh": _part_of_mesh,
    "grid": _grid,
    "twice": _twice,
    "same": _same,
    "fsdp2 and tp": _fully_sharded,
    "fsdp1": _first_fsdp,
}  # fmt: skip


def _load_all(rank: int, folder: str, ranks: int) -> None:
    """Load what ckpt has written, as one of the ranks, and compare it with the whole tensors."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=ranks)
    mesh, whole = _mesh((ranks,), ("fsdp",)), load_file(f"{folder}.whole")
    state = torch.load(f"{folder}/{rank_name(rank, ranks)}", weights_only=False)
    assert list(state) == list(whole) or set(state) == set(whole)
    for key, value in state.items():
        if isinstance(value, DTensor):
            assert value.device_mesh == mesh, value.device_mesh
            assert torch.equal(value.full_tensor(), whole[key]), key
        else:
            assert torch.equal(value, whole[key]), key
    model = layers()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    fully_shard(model, mesh=mesh)
    model.load_state_dict({key: value for key, value in state.items() if key in layers().state_dict()})
    for key, found in model.state_dict().items():
        assert torch.equal(found.full_tensor(), whole[key]), key
    _leave()


def loaded(folder: str, ranks: int) -> None:
    """Let real ranks load a folder, and compare it with the tensors in ``folder.whole``."""
    _together(lambda rank: _load_all(rank, folder, ranks), ranks)


def saved(folder: str) -> None:
    """Run the ranks, and wait for them."""
    _together(lambda rank: save_all(rank, folder), RANKS)


def _together(work: Callable[[int], None], ranks: int) -> None:
    # So that each rank has imported them when it is forked, which takes longer than what it does.
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401

    forked = [Forked(partial(work, rank)) for rank in range(ranks)]
    assert [one.ended() for one in forked] == [0] * ranks, [one.err for one in forked]
