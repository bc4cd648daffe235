"""Intercepts each operation of a constructor below autograd, runs the operation without values and records it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .graph import META, Node, Recording, StorageView, covers, instances_in, replaced, tensors_in

__all__ = ["CPU", "Dispatch", "aten"]

CPU = torch.device("cpu")

MAX_CONSTANT = 1 << 24
"""The largest size (in elements) of a real tensor that may be changed in part: the recording then stores its values."""
MAX_REAL = 1 << 20
"""The largest size (in elements) of a constant tensor that is made with storage."""


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Intercepts every operation below autograd, runs it on the meta device and records it.

    Operations that make small constants, or that have only real tensors as inputs, run on the CPU and are not recorded.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise torch would import its compiler (one second, 100 MB) only to disable it here."""
        return False

    def __init__(self, record: Recording, evaluate: Callable[[Recording, StorageView], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record
        self.evaluate = evaluate
        self.shown: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # _Disguise is for the constructor's code only
            return self._run(func, args, dict(kwargs or {}))

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = tensors_in((args, kwargs))
        name = func._schema.name
        self._check_origin(name, args, tensors)
        if name == "aten::_local_scalar_dense" and self.is_ghost(tensors[0]):
            return self.value(tensors[0]).item()
        written = changed_by(func, args, kwargs)
        if self._stays_real(func, args, tensors, written):
            if kwargs.get("device") is not None:
                kwargs["device"] = CPU
            return func(*args, **kwargs)
        for tensor in written:
            if not self.is_ghost(tensor):
                self._adopt(tensor, overwritten=name in OVERWRITES)
        if makes(func):
            kwargs["device"] = META
            kwargs.pop("pin_memory", None)
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None  # use the default generator, which is seeded for each draw
        return self._ghost(func, args, kwargs, written)

    def is_ghost(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a ghost, which has no values, but recorded operations that can compute them."""
        return tensor.is_meta or self.record.knows(tensor)

    def _stays_real(self, func: Any, args: Any, tensors: list[Tensor], written: list[Tensor]) -> bool:
        """Return whether an operation is run on real tensors and is not recorded.

        This is true if the operation uses no recorded tensor and no random generator, makes no tensor or a small
        constant, and overwrites nothing. ``tensors`` are the tensors in its arguments, ``written`` the tensors that it
        changes.
        """
        if any(self.is_ghost(tensor) for tensor in tensors) or draws(func):
            return False
        name = func._schema.name
        if not tensors:
            return name in SMALL and constant_size(func, args) <= MAX_REAL
        if written and name in OVERWRITES:
            return False
        return not makes(func) or name in ("aten::_to_copy", "aten::lift_fresh")

    def _check_origin(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        """Raise Unrecordable if a tensor is from another recording or a cache, or if its values are in a file."""
        if any(tensor.is_meta and not self._is_own(tensor) for tensor in tensors):
            raise self.record.lost("uses a meta tensor (one without values) that it did not make itself")
        if name == "aten::set_" and any(
            isinstance(arg, torch.UntypedStorage) and arg._cdata not in self.record.numbers for arg in args
        ):
            raise self.record.lost("reads tensors from a file")

    def _is_own(self, tensor: Tensor) -> bool:
        return tensor.layout is not torch.strided or self.record.knows(tensor)

    def _adopt(self, tensor: Tensor, *, overwritten: bool) -> None:
        """Add to the recording a tensor that was allocated with real memory, without a recorded operation.

        ``torch.Tensor(3, 4)`` makes such a tensor. ``overwritten`` is true if the next operation overwrites all values
        of the tensor. A tensor with more than ``MAX_CONSTANT`` values is added only in this case, because its old
        values are then not needed. Raises Unrecordable for other large tensors, for tensors that are not strided, and
        for tensors that share their memory with an array.
        """
        if tensor.layout is not torch.strided:
            raise self.record.lost(f"changes a {tensor.layout} tensor")
        storage = tensor.untyped_storage()
        if not storage.resizable() or storage._cdata in self.shown:
            raise self.record.lost("changes a tensor that shares its memory with an array")
        ref = self.record.adopt(tensor)
        if tensor.numel() <= MAX_CONSTANT:
            values = torch.empty(0, dtype=torch.uint8).set_(storage)
            whole = StorageView(ref.storage, 0, tuple(values.shape), (1,), torch.uint8)
            self._add(aten.copy_.default, (whole, values.clone()), {}, name="aten::copy_", written=[whole])
        elif not (overwritten and covers(ref, self.record)):
            raise self.record.lost("changes part of a large tensor that has storage")

    def _ghost(self, func: Any, args: Any, kwargs: Any, written: list[Tensor]) -> Any:
        """Run an operation without values, and record it if it makes or changes tensors."""
        settled = {k: CPU if isinstance(v, torch.device) else v for k, v in kwargs.items()}
        recorded = replaced((args, settled), Tensor, self._operand)
        name = func._schema.name
        targets = [self.record.ref(tensor) for tensor in written]
        if name.endswith("_") and len(tensors_in((args, kwargs))) == len(written) == 1 and name not in REBINDS:
            self._add(func, *recorded, name=name, written=targets)  # in place: the shape does not change
            return written[0]
        originals = {id(tensor): tensor for tensor in tensors_in((args, kwargs))}
        ghosts, ghostly = self._ghosts((args, kwargs))
        original = func
        if func in BY_SIZE:
            func, ghosts = (
                aten.empty.memory_format,
                ((args[0],), {"dtype": kwargs.get("dtype"), "device": META}),
            )
        try:
            out = func(*ghosts[0], **ghosts[1])
        except RuntimeError as error:
            # torch raises nothing more specific for operations that need values (NotImplementedError is a subclass).
            # An error in the constructor itself is raised again when it is run with values.
            if written:
                raise self.record.lost(f"runs {func}, which needs values: {error}") from error
            return self._evaluated(func, args, kwargs)
        known = {id(ghost): originals[original] for original, ghost in ghostly.items()}
        made = tuple(None if id(t) in known or self.record.knows(t) else self.record.ref(t) for t in tensors_in(out))
        self.record.ghosts += [weakref.ref(t) for t in tensors_in(out) if id(t) not in known]
        if name not in ALLOCATES and name not in REBINDS and (written or any(made)):
            self._add(original, *recorded, name=name, written=targets, outputs=made)
        return replaced(out, Tensor, lambda t: known.get(id(t), t))

    def _ghosts(self, tree: Any) -> tuple[Any, dict[int, Tensor]]:
        """Return nested arguments with each tensor replaced by a tensor on the meta device.

        The second result maps the ``id`` of each original tensor to its replacement.
        """
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

        return replaced(tree, Tensor, ghost), ghostly

    def _add(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        *,
        name: str,
        written: list[StorageView],
        outputs: tuple[StorageView | None, ...] = (),
    ) -> None:
        random = draws(func)
        operands = instances_in((args, kwargs), StorageView)
        reads = frozenset(ref.storage for ref in operands)
        whole = len(written) == 1 and name in OVERWRITES and covers(written[0], self.record)
        whole = whole and sum(ref.storage == written[0].storage for ref in operands) == 1
        if whole:
            reads -= {written[0].storage}
        writes = frozenset(ref.storage for ref in written)
        self.record.add(
            Node(
                len(self.record.nodes),
                func,
                args,
                kwargs,
                reads,
                writes,
                outputs,
                random=random,
                overwrites=whole,
                copies=name in COPIES,
            )
        )

    def _operand(self, tensor: Tensor) -> StorageView | Tensor:
        """Return an operand in the form that the recording stores: a StorageView, or a copy of a constant tensor."""
        return self.record.ref(tensor) if self.is_ghost(tensor) else tensor.detach().clone()

    def value(self, tensor: Tensor) -> Tensor:
        """Return the values of a recorded tensor; raises Unrecordable if they depend on a random operation."""
        return self.evaluate(self.record, self.record.ref(tensor))

    def _evaluated(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on real values, as is needed if the shape of its result depends on values (``nonzero``)."""

        def real(tensor: Tensor) -> Tensor:
            return self.value(tensor) if self.is_ghost(tensor) else tensor

        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        return func(*replaced(args, Tensor, real), **replaced(kwargs, Tensor, real))


# The effects of torch's operations on tensors, by the names and schemas of the operations.

aten = torch.ops.aten

ALLOCATES = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
}
"""Operations that allocate memory, but write no values."""
COPIES = {"aten::clone", "aten::copy_", "aten::detach", "aten::alias"}
"""Operations that copy values unchanged."""
REBINDS = {"aten::set_", "aten::resize_", "aten::detach_", "aten::requires_grad_"}
"""Operations that change a tensor's storage, size or autograd state, but no values."""
OVERWRITES = {
    "aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_", "aten::random_", "aten::bernoulli_",
    "aten::exponential_", "aten::log_normal_", "aten::cauchy_", "aten::geometric_", "aten::eye",
}  # fmt: skip
"""Operations that overwrite every element of the tensor that they change."""
SMALL = {
    "aten::arange", "aten::eye", "aten::full", "aten::linspace", "aten::logspace", "aten::ones", "aten::zeros",
    "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices", "aten::hann_window", "aten::hamming_window",
}  # fmt: skip
"""Operations that make constants; small constants are made with storage, so that constructors can read them."""
BY_SIZE = {aten.rand.default, aten.randn.default, aten.rand.generator, aten.randn.generator}
"""Random operations whose first argument is the size of the result; torch's shape function would import sympy."""


@cache
def draws(func: Any) -> bool:
    """Return whether an operation uses the random generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def constant_size(func: Any, args: Any) -> Any:
    """Return an estimate of how many elements an operation such as ``torch.arange`` makes with ``args``.

    If the arguments do not determine this, the estimate is the largest number in them.
    """
    name = func._schema.name
    numbers = instances_in(args, (int, float))
    if name in ("aten::ones", "aten::zeros", "aten::full"):
        return math.prod(args[0])
    if name in ("aten::eye", "aten::tril_indices", "aten::triu_indices"):
        return math.prod(int(number) for number in numbers[:2]) * (numbers[0] if len(numbers) == 1 else 1)
    if name == "aten::arange" and len(numbers) == 3:
        return int(abs((numbers[1] - numbers[0]) / (numbers[2] or 1)))
    if name in ("aten::linspace", "aten::logspace"):
        return int(numbers[2])
    return int(max(map(abs, numbers), default=1))


@cache
def makes(func: Any) -> bool:
    """Return whether an operation makes a new tensor: it has an argument for the device of its result."""
    return any(argument.name == "device" for argument in func._schema.arguments)


def changed_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors in the arguments that an operation changes according to its schema."""
    if _changes_view(func):
        return []
    found: list[Tensor] = []
    for position, name in _written(func):
        found += tensors_in(args[position] if position < len(args) else kwargs.get(name))
    return found or _changed_unsaid(func, args)


@cache
def _changes_view(func: Any) -> bool:
    return torch.Tag.inplace_view in func.tags


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the position and the name of each argument to which an operation writes according to its schema."""
    arguments = enumerate(func._schema.arguments)
    return tuple((at, one.name) for at, one in arguments if one.alias_info is not None and one.alias_info.is_write)


def _changed_unsaid(func: Any, args: Any) -> list[Tensor]:
    """Return the running statistics that a batch norm changes in training, although its schema does not declare it."""
    if func is not aten.native_batch_norm.default or not args[5]:
        return []
    return tensors_in(args[3:5])
