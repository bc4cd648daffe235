"""Lays out one file per rank of FSDP: archives as ``torch.save`` writes them, with state dicts of DTensors.

The pickles have the form of torch 2.13 (``torch/distributed/tensor/_dtensor_spec.py``, ``device_mesh.py``); the files
have the same names as in verl (``verl/utils/checkpoint/fsdp_checkpoint_manager.py``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Mapping, Sequence

from ...errors import OutputError
from ...tensors.dtypes import DTYPES, contiguous_stride
from ...util.text import escape
from ..base.header import ExtraEntries, IndexFile, OutputLayout, OutTensor
from ..base.limits import RANK_PIECES
from ..base.rank_layout import RankShares, SpreadLayout, is_buffer, part_of
from ..zip.layout import ZipLayout
from .pickle_writer import PickleWriter
from .zip_writer import ZipWriter, torch_archive

__all__ = ["FsdpWriter"]

_FILE = re.compile(r"model_world_size_\d+_rank_\d+\.pt")
_DTENSOR = "torch.distributed.tensor"
_SPEC = "torch.distributed.tensor._dtensor_spec"
_LAYOUT = "torch.distributed._mesh_layout"
_RANKS = "\0ranks"
"""The key of an additional tensor in each file, which has the ranks of the mesh.

Keys of the model must not begin with a zero byte.
"""


class _RankPickle(PickleWriter):
    """Builds the pickle of the state dict of one rank."""

    def __init__(self, shares: RankShares, rank: int, ranks_record: str) -> None:
        super().__init__()
        self._shares, self._rank, self._ranks_record = shares, rank, ranks_record

    def begin(self, module: str, name: str) -> None:
        """Append the pickle instructions that begin an object of a class; the object's attributes must follow."""
        self.name(module, name)
        self.out += b")\x81}("

    def end(self) -> None:
        """Append the pickle instructions that end the attributes of an object."""
        self.out += b"ub"

    def attribute(self, name: str, code: bytes) -> None:
        """Append an attribute; ``code`` is the instructions that make its value."""
        self.word(name)
        self.out += code

    def dtensor(self, whole: OutTensor, part: OutTensor, record: str) -> None:
        """Append the DTensor ``whole``; the bytes of this rank's ``part`` are in the record ``data/<record>``."""
        self.name("torch._tensor", "_rebuild_from_type_v2")
        self.out += b"("
        self.name("torch._utils", "_rebuild_wrapper_subclass")
        self.name(_DTENSOR, "DTensor")
        self.out += b"("
        self.name(_DTENSOR, "DTensor")
        self.name("torch", whole.dtype)
        self.integers(whole.shape)
        self.integers(contiguous_stride(whole.shape))
        self.out += b"K\x00"
        self._called("torch.serialization", "_get_layout", "torch.strided")
        self._called("torch", "device", "cpu")
        self.out += b"\x89tN}("
        self.word("_local_tensor")
        self.tensor(part, record)
        self.word("_spec")
        self._spec(whole, self._shares.axes[whole.key])
        self.out += b"u\x86tR"

    def _called(self, module: str, name: str, argument: str) -> None:
        what = ("called", module, name, argument)
        if not self.fetched(what):
            self.name(module, name)
            self.word(argument)
            self.out += b"\x85R"
            self.kept(what)

    def _spec(self, whole: OutTensor, axis: int) -> None:
        self.begin(_SPEC, "DTensorSpec")
        self.word("mesh")
        self._mesh()
        self.word("placements")
        if not self.fetched(("placements", axis)):
            self.begin(f"{_DTENSOR}.placement_types", "Shard")
            self.word("dim")
            self.integer(axis)
            self.end()
            self.out += b"\x85"
            self.kept(("placements", axis))
        self.word("tensor_meta")
        self.name(_SPEC, "TensorMeta")
        self.name("torch", "Size")
        self.integers(whole.shape)
        self.out += b"\x85R"
        self.integers(contiguous_stride(whole.shape))
        self.name("torch", whole.dtype)
        self.out += b"\x87\x81"
        self.word("shard_order")
        if not self.fetched(("order", axis)):
            self.name(_SPEC, "ShardOrderEntry")
            self.integer(axis)
            self.integers((0,))
            self.out += b"\x86\x81\x85"
            self.kept(("order", axis))
        self.attribute("use_strided_shard_as_shard_order", b"\x89")
        self.attribute("_hash", b"N")
        self.end()

    def _mesh(self) -> None:
        """Append the DeviceMesh, which has one dimension and is shared by all tensors."""
        if self.fetched("mesh"):
            return
        ranks, (device, dimension) = self._shares.ranks, self._shares.mesh
        self.begin("torch.distributed.device_mesh", "DeviceMesh")
        self.word("_device_type")
        self.text(device)
        self.word("_layout")
        self.begin(_LAYOUT, "_MeshLayout")
        self.word("axes")
        self.begin(_LAYOUT, "_FlatLayout")
        self.word("shape")
        self.integers((ranks,))
        self.word("stride")
        self.integers((1,))
        self.end()
        self.out += b"\x85"
        self.end()
        self.word("_rank_map")
        self.tensor(OutTensor(_RANKS, "int32", (ranks,), 4 * ranks), self._ranks_record)
        self.word("_mesh_dim_names")
        self.text(dimension)
        self.out += b"\x85"
        self.attribute("_root_mesh", b"N")
        self.word("_flatten_rank_map")
        self.integers(range(ranks))
        self.attribute("_thread_id", b"N")
        self.attribute("_flatten_mapping", b"}")
        self.word("_dim_group_names")
        self.out += b"]"
        self.text("0")  # the name of the group of all processes
        self.out += b"a"
        self.word("_rank")
        self.integer(self._rank)
        self.word("_coordinate_on_dim")
        self.integers((self._rank,))
        self.attribute("_hash", b"N")
        self.end()
        self.kept("mesh")


class _RankFiles:
    """Gives the names of the files of the ranks."""

    def names(self, number: int) -> list[str]:
        """Return the names of the files of ``number`` ranks."""
        return [f"model_world_size_{number}_rank_{rank}.pt" for rank in range(number)]

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return {}: there is no index."""
        return {}

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return those of ``present``, the names of a folder's files, that belong to a checkpoint of this format."""
        return {name for name in present if _FILE.fullmatch(name)}


class FsdpWriter:
    """Writes one file per rank, which the rank reads with ``torch.load`` as a state dict of DTensors."""

    name = "fsdp"
    sharding = _RankFiles()
    suffixes: tuple[str, ...] = ()
    carries = False
    shares = False
    most = RANK_PIECES
    dtypes = frozenset(name for name in ZipWriter.dtypes if DTYPES[name].kind != "quantized")

    def axis_of(self, tensor: OutTensor) -> int | None:
        """Return 0, as FSDP2 splits parameters along axis 0; None for scalars, integer tensors and known buffers."""
        is_split = tensor.shape and DTYPES[tensor.dtype].is_floating and not is_buffer(tensor.key)
        return 0 if is_split else None

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> OutputLayout:
        """Return the layout of one file with all tensors, for a single rank; ``spread`` lays out several ranks."""
        return self.spread(tensors, metadata, RankShares(1, {})).files[self.sharding.names(1)[0]]

    def spread(self, tensors: Sequence[OutTensor], metadata: Mapping[str, str], shares: RankShares) -> SpreadLayout:
        """Return the layout of all files; ``metadata`` is stored only in the recipe file in the same folder.

        Raises OutputError for a key that begins with a zero byte.
        """
        odd = next((tensor.key for tensor in tensors if tensor.key.startswith("\0")), None)
        if odd is not None:
            raise OutputError(
                f"the key {escape(odd)} begins with a zero byte, which is reserved in the files of ranks."
            )
        names, aliases = self.sharding.names(shares.ranks), _aliases(tensors, shares)
        files = {name: _layout(tensors, shares, rank, aliases) for rank, name in enumerate(names)}
        ranks = struct.pack(f"<{shares.ranks}i", *range(shares.ranks))
        cut = any(tensor.key in shares.axes for tensor in tensors)
        constants = {name: {_RANKS: ranks} for name in names} if cut else {}
        owners = [tensor for tensor in tensors if tensor.key not in aliases]
        return SpreadLayout(files, owners, shares, constants, aliases)

    def index_of(self, shares: RankShares) -> Mapping[str, IndexFile]:
        """Return {}: the files of the ranks contain everything."""
        return {}


def _aliases(tensors: Sequence[OutTensor], shares: RankShares) -> dict[str, str]:
    """Return {key of a tied tensor: key of the tensor whose parts it shares}.

    A tied tensor is left out if it is split in another way.
    """
    tied = {tensor.key: tensor.alias_of for tensor in tensors if tensor.alias_of}
    return {key: own for key, own in tied.items() if shares.axes.get(key) == shares.axes.get(own)}


def _layout(tensors: Sequence[OutTensor], shares: RankShares, rank: int, aliases: Mapping[str, str]) -> ZipLayout:
    """Return the layout of the file of one rank; tied tensors share a record, as ``torch.save`` stores them."""
    parts = [part_of(tensor, shares, rank) for tensor in tensors if tensor.key not in aliases]
    records = {part.key: str(number) for number, part in enumerate(parts)}
    writer = _RankPickle(shares, rank, str(len(parts)))
    writer.out += b"}("
    for tensor in tensors:
        writer.text(tensor.key)
        record = records[aliases.get(tensor.key, tensor.key)]
        if tensor.key in shares.axes:
            writer.dtensor(tensor, part_of(tensor, shares, rank), record)
        else:
            writer.tensor(part_of(tensor, shares, rank), record)
    writer.out += b"u."
    cut = any(tensor.key in shares.axes for tensor in tensors)
    ranks = OutTensor(_RANKS, "int32", (shares.ranks,), 4 * shares.ranks)
    return torch_archive(bytes(writer.out), [*parts, *([ranks] if cut else [])])
