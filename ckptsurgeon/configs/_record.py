"""Watches a module being constructed without storage, and writes down what its constructor does to tensors.

Every tensor lives on the meta device and claims to be on the CPU. Each operation that makes or changes values
becomes a node; ``_replay`` later runs just those nodes that lead to the tensors somebody wants. Where a constructor
asks for a value (``linspace(…).tolist()`` for drop-path rates), the nodes behind it are run at once. What cannot be
followed raises Unrecordable, and the module is built for real instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["Node", "Recording", "Ref", "Unrecordable", "recording"]

aten = torch.ops.aten
CPU = torch.device("cpu")
META = torch.device("meta")

_ALLOCATES = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
}
_REBINDS = {"aten::set_", "aten::resize_", "aten::detach_", "aten::requires_grad_"}
_OVERWRITES = {
    "aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_", "aten::random_", "aten::bernoulli_",
    "aten::exponential_", "aten::log_normal_", "aten::cauchy_", "aten::geometric_", "aten::eye",
}  # fmt: skip
"""Operations that leave nothing of what was in their destination."""
_SMALL = {
    "aten::arange", "aten::eye", "aten::full", "aten::linspace", "aten::logspace", "aten::ones", "aten::zeros",
    "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices", "aten::hann_window", "aten::hamming_window",
}  # fmt: skip
"""Operations that make constants; small ones are made for real, so that constructors can look at them."""
_BY_SIZE = {aten.rand.default, aten.randn.default}
"""Draws whose result has the size of their first argument; torch's own shape rule for them imports sympy."""


MAX_CONSTANT = 1 << 24
"""Elements of a real tensor that are kept when it is drawn into; a larger one is only ever fresh memory."""


MAX_REAL = 1 << 20
"""Elements up to which a constant is made for real."""


class Unrecordable(Exception):  # noqa: N818 - a signal between two modules, never shown as an error
    """The constructor does what a recording cannot follow."""


class Ref(NamedTuple):
    """A view of a recorded storage: ``offset`` and ``stride`` in elements of ``dtype``."""

    storage: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class Node:
    """One operation: what it is called with (tensors as Ref), what it reads, changes and makes.

    ``overwrites`` is set where nothing of the destination's old values survives. ``outputs`` holds a Ref for each
    tensor it returns over a storage that it made.
    """

    index: int
    call: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    reads: frozenset[int]
    writes: frozenset[int]
    outputs: tuple[Ref | None, ...] = ()
    random: bool = False
    overwrites: bool = False


@dataclass
class Recording:
    """The nodes of a construction, the writers of each storage, and the storages themselves (without bytes)."""

    nodes: list[Node] = field(default_factory=list)
    writers: dict[int, list[Node]] = field(default_factory=dict)
    storages: list[torch.UntypedStorage] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    twins: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def ref(self, tensor: Tensor) -> Ref:
        """Return the view that a recorded tensor is."""
        if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
            raise Unrecordable(f"makes a {tensor.layout} tensor")
        storage = tensor.untyped_storage()
        number = self.numbers.get(storage._cdata)
        if number is None:
            number = self.numbers[storage._cdata] = len(self.storages)
            self.storages.append(storage)  # kept, so that its address is never used again
        return Ref(number, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def adopt(self, tensor: Tensor) -> Ref:
        """Take a real tensor into the recording, with a twin without bytes for working out shapes."""
        ref = self.ref(tensor)
        nbytes = tensor.untyped_storage().nbytes()
        twin = torch.empty(nbytes, dtype=torch.uint8, device=META).untyped_storage()
        self.twins[ref.storage] = twin
        self.numbers[twin._cdata] = ref.storage
        return ref

    def twin(self, tensor: Tensor) -> Tensor:
        """Return a meta tensor that is the same view of the same recorded storage."""
        ref = self.ref(tensor)
        ghost = torch.empty(0, dtype=ref.dtype, device=META)
        return ghost.set_(self.twins[ref.storage], ref.offset, ref.size, ref.stride)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the storage of a tensor has been seen."""
        return tensor.untyped_storage()._cdata in self.numbers

    def add(self, node: Node) -> None:
        """Append a node."""
        self.nodes.append(node)
        made = {ref.storage for ref in node.outputs if ref is not None}
        for storage in node.writes | made:
            self.writers.setdefault(storage, []).append(node)


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd, runs it on the meta device and records it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no, or torch imports its compiler (a second and 100 MB) to keep it out of here."""
        return False

    def __init__(self, record: Recording, evaluate: Callable[[Recording, Ref], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record
        self.evaluate = evaluate

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # the disguise is for the constructor, not for us
            return self._run(func, args, dict(kwargs or {}))

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = _tensors((args, kwargs))
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and self.is_ghost(tensors[0]):
            return self.value(tensors[0]).item()
        written = _written(func, args, kwargs)
        if self._stays_real(func, args, tensors, written):
            if kwargs.get("device") is not None:
                kwargs["device"] = CPU
            return func(*args, **kwargs)
        for tensor in written:
            if not self.is_ghost(tensor):
                self._adopt(tensor)
        if _makes(func):
            kwargs["device"] = META
            kwargs.pop("pin_memory", None)
        kwargs.pop("generator", None)
        return self._ghost(func, args, kwargs, written)

    def is_ghost(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor are in the recording, not in the tensor."""
        return tensor.is_meta or self.record.knows(tensor)

    def _stays_real(self, func: Any, args: Any, tensors: list[Tensor], written: list[Tensor]) -> bool:
        """Whether an operation concerns small constants only: real tensors, no draw, nothing set as a whole."""
        if any(self.is_ghost(tensor) for tensor in tensors) or torch.Tag.nondeterministic_seeded in func.tags:
            return False
        name = func._schema.name
        if not tensors:
            return name in _SMALL and _elements(func, args) <= MAX_REAL
        if written and name in _OVERWRITES:
            return False
        return not _makes(func) or name in ("aten::_to_copy", "aten::lift_fresh")

    def _adopt(self, tensor: Tensor) -> None:
        """Go on in the recording with a tensor that was made for real (``torch.Tensor(3, 4)`` always is)."""
        if tensor.layout is not torch.strided:
            raise Unrecordable(f"draws into a {tensor.layout} tensor")
        values = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        ref = self.record.adopt(tensor)
        if tensor.numel() <= MAX_CONSTANT:
            whole = Ref(ref.storage, 0, tuple(values.shape), (1,), torch.uint8)
            self._add(aten.copy_.default, (whole, values.clone()), {}, name="aten::copy_", written=[whole])

    def _ghost(self, func: Any, args: Any, kwargs: Any, written: list[Tensor]) -> Any:
        """Run an operation without values, and write it down if it makes or changes some."""
        settled = {k: CPU if isinstance(v, torch.device) else v for k, v in kwargs.items()}
        recorded = pytree.tree_map_only(Tensor, self._operand, (args, settled))
        name = func._schema.name
        targets = [self.record.ref(tensor) for tensor in written]
        if name.endswith("_") and len(_tensors((args, kwargs))) == len(written) == 1 and name not in _REBINDS:
            self._add(func, *recorded, name=name, written=targets)  # in place: no shape to work out
            return written[0]
        originals = {id(tensor): tensor for tensor in _tensors((args, kwargs))}
        ghosts, ghostly = self._ghosts((args, kwargs))
        original = func
        if func in _BY_SIZE:
            func, ghosts = (
                aten.empty.memory_format,
                ((args[0],), {"dtype": kwargs.get("dtype"), "device": META}),
            )
        try:
            out = func(*ghosts[0], **ghosts[1])
        except (NotImplementedError, RuntimeError) as error:
            if written:
                raise Unrecordable(f"runs {func}, which needs values: {error}") from error
            return self._evaluated(func, args, kwargs)
        known = {id(ghost): originals[original] for original, ghost in ghostly.items()}
        made = tuple(None if id(t) in known or self.record.knows(t) else self.record.ref(t) for t in _tensors(out))
        if name not in _ALLOCATES and name not in _REBINDS and (written or any(made)):
            self._add(original, *recorded, name=name, written=targets, outputs=made)
        return pytree.tree_map_only(Tensor, lambda t: known.get(id(t), t), out)

    def _ghosts(self, tree: Any) -> tuple[Any, dict[int, Tensor]]:
        """Return arguments with every tensor on the meta device, and which tensor became which."""
        ghostly: dict[int, Tensor] = {}

        def ghost(tensor: Tensor) -> Tensor:
            if id(tensor) not in ghostly:
                if tensor.is_meta:
                    ghostly[id(tensor)] = tensor
                elif self.record.knows(tensor):
                    ghostly[id(tensor)] = self.record.twin(tensor)
                else:
                    ghostly[id(tensor)] = tensor.to(META)
            return ghostly[id(tensor)]

        return pytree.tree_map_only(Tensor, ghost, tree), ghostly

    def _add(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        *,
        name: str,
        written: list[Ref],
        outputs: tuple[Ref | None, ...] = (),
    ) -> None:
        random = torch.Tag.nondeterministic_seeded in func.tags
        operands = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Ref)]
        reads = frozenset(ref.storage for ref in operands)
        whole = len(written) == 1 and name in _OVERWRITES and covers(written[0], self.record)
        whole = whole and sum(ref.storage == written[0].storage for ref in operands) == 1
        if whole:
            reads -= {written[0].storage}
        writes = frozenset(ref.storage for ref in written)
        self.record.add(
            Node(len(self.record.nodes), func, args, kwargs, reads, writes, outputs, random, overwrites=whole)
        )

    def _operand(self, tensor: Tensor) -> Ref | Tensor:
        """Return what stands for an operand: a view of the recording, or a copy of a constant."""
        return self.record.ref(tensor) if self.is_ghost(tensor) else tensor.detach().clone()

    def value(self, tensor: Tensor) -> Tensor:
        """Return the values of a ghost; raises Unrecordable where they are random."""
        return self.evaluate(self.record, self.record.ref(tensor))

    def _evaluated(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation whose result depends on values (``nonzero``) on the values themselves."""

        def real(tensor: Tensor) -> Tensor:
            return self.value(tensor) if self.is_ghost(tensor) else tensor

        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        return func(*pytree.tree_map_only(Tensor, real, args), **pytree.tree_map_only(Tensor, real, kwargs))


def covers(ref: Ref, record: Recording) -> bool:
    """Whether a view is all of its storage, each element once."""
    elements = 1
    for size in ref.size:
        elements *= size
    return elements * ref.dtype.itemsize == record.storages[ref.storage].nbytes() and _dense(ref)


def _dense(ref: Ref) -> bool:
    expected = 1
    for stride, size in sorted(zip(ref.stride, ref.size, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested arguments; a Ref is one leaf, although it is a tuple."""
    return pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, Ref))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _elements(func: Any, args: Any) -> Any:
    """Return about how many elements a factory makes: the product of its sizes, or its largest number."""
    name = func._schema.name
    numbers = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, (int, float))]
    if name in ("aten::ones", "aten::zeros", "aten::full"):
        return math.prod(args[0])
    if name in ("aten::eye", "aten::tril_indices", "aten::triu_indices"):
        return math.prod(int(number) for number in numbers[:2]) * (numbers[0] if len(numbers) == 1 else 1)
    if name == "aten::arange" and len(numbers) == 3:
        return int(abs((numbers[1] - numbers[0]) / (numbers[2] or 1)))
    if name in ("aten::linspace", "aten::logspace"):
        return int(numbers[2])
    return int(max(map(abs, numbers), default=1))


def _makes(func: Any) -> bool:
    """Whether an operation lets one say on which device its result shall be."""
    return any(argument.name == "device" for argument in func._schema.arguments)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation changes, by its schema."""
    if torch.Tag.inplace_view in func.tags:
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += _tensors(value)
    return found


_LOOKS = {
    torch.Tensor.is_meta.__get__: False,  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: True,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__: CPU,
}
"""What a ghost answers when asked where it is. Otherwise constructors would skip their work on meta tensors."""

_SHOWS = {torch.Tensor.tolist, torch.Tensor.__repr__, torch.Tensor.__format__}
_ARRAYS: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}


class _Disguise(TorchFunctionMode):
    """Makes ghosts look like CPU tensors and hands out their values where Python asks for them."""

    def __init__(self, dispatch: _Dispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _LOOKS:
            return _LOOKS[func]
        if func is torch.Tensor.__deepcopy__:
            return self._copy(*args)
        if (func in _SHOWS or func in _ARRAYS) and self._dispatch.is_ghost(args[0]):
            return self._shown(func, *args, **kwargs)
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        if func is torch.Tensor.to:
            args = tuple(CPU if _is_device(arg) else arg for arg in args)
        return func(*args, **kwargs)

    def _copy(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copied: Tensor = memo[id(tensor)]
        return copied

    def _shown(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            value = func(self._dispatch.value(tensor), *args, **kwargs)
        if func in _ARRAYS:
            value.flags.writeable = False  # what is written there would not be recorded
        return value


def _is_device(arg: Any) -> bool:
    if isinstance(arg, torch.device):
        return True
    return isinstance(arg, str) and arg.partition(":")[0] in ("cuda", "cpu", "mps", "xpu", "meta")


@contextmanager
def recording(evaluate: Callable[[Recording, Ref], Tensor]) -> Iterator[Recording]:
    """Record what happens to tensors inside the block; ``evaluate`` gives the value of one where it is asked for."""
    record = Recording()
    dispatch = _Dispatch(record, evaluate)
    with _whole_draws(dispatch), _Disguise(dispatch), dispatch:
        yield record


@contextmanager
def _whole_draws(dispatch: _Dispatch) -> Iterator[None]:
    """Record a truncated normal as one operation: its rejection loop asks for values it has just drawn."""
    init = torch.nn.init
    original = getattr(init, "_no_grad_trunc_normal_", None)
    if original is None:
        yield
        return

    def recorded(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("generator", None)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            ref = dispatch.record.ref(tensor) if dispatch.is_ghost(tensor) else dispatch.record.adopt(tensor)
        whole = covers(ref, dispatch.record)
        reads = frozenset() if whole else frozenset({ref.storage})
        dispatch.record.add(
            Node(
                len(dispatch.record.nodes),
                original,
                (ref, *args),
                kwargs,
                reads,
                frozenset({ref.storage}),
                random=True,
                overwrites=whole,
            )
        )
        return tensor

    init._no_grad_trunc_normal_ = recorded
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original
