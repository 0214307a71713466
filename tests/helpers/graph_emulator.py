"""CUDA graphs without a GPU: a capture records operations, a replay runs these on the very same tensors.

What a graph gets wrong, this gets wrong too: an input that is not copied in, a number that Python read,
memory that moved. What a capture forbids is an error here. Works on the CPU and on meta tensors.
"""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from live2diff.model.attention import Window, attend_once
from live2diff.model.kv_cache import KVCache

FORBIDDEN = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_pin_memory"}
# Random numbers need a generator that is registered with the graph.
FORBIDDEN |= {"randn", "rand", "randn_like", "rand_like", "normal_", "uniform_", "random_", "bernoulli"}


class IllegalInCapture(RuntimeError):
    """An operation that a capture forbids; it ends the capture."""


class Recorder(TorchDispatchMode):
    """Keeps the operations that compute something, with their tensors; `fault` may raise before each."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Tensor | None]]] = []  # and new tensors
        self.written: list[tuple[Tensor, Tensor]] = []  # what it was before
        self.fault = fault

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, schema = kwargs or {}, function._schema
        self.fault(schema.name)
        inputs = tensors((args, kwargs))
        name = schema.name.removeprefix("aten::")
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        masked = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        masked = masked and not (name == "index_put_" and args[2].numel() == 1)  # CUDA fills by the mask then
        if name in FORBIDDEN or masked:
            raise IllegalInCapture(f"operation not permitted when stream is capturing: {schema.name}")
        mutates = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        self.written += [(tensor, tensor.clone()) for tensor in inputs if mutates]
        result = function(*args, **kwargs)
        outputs = tensors(result)
        if len({tensor.device for tensor in inputs + outputs if tensor.dim() or tensor.is_meta}) > 1:
            raise IllegalInCapture(f"a capture must not copy from or to the host: {schema.name}")
        known = {storage(tensor) for tensor in inputs}
        new = [None if storage(tensor) in known else tensor for tensor in outputs]
        if mutates or any(tensor is not None for tensor in new):
            self.operations.append((function, args, kwargs, new))
        return result


class Graphs:
    """The part of `torch.cuda` that captures and replays, with what it did so far."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self.streams = [self.Stream()]
        self.fault: Callable[[str], None] = lambda operation: (
            None
        )  # raises an error in a capture, if it likes

    class Stream:
        def wait_stream(self, other: "Graphs.Stream") -> None:
            pass

    def new_graph(self) -> "EmulatedGraph":
        return EmulatedGraph(self)

    def current_stream(self) -> Stream:
        return self.streams[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextlib.contextmanager
    def graph(self, graph: "EmulatedGraph", stream: Stream, **options: Any) -> Iterator[None]:
        """Capture; after an error the side stream stays the current one, as with CUDA's `capture_end`."""
        recorder = Recorder(self.fault)
        self.streams.append(stream)
        try:
            with recorder, torch.compiler.set_stance("force_eager"):  # which traces nothing under a recorder
                yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise RuntimeError(f"operation failed due to a previous error during capture: {error}") from error
        self.streams.pop()
        self.captured += 1
        graph.operations = recorder.operations
        for tensor, before in reversed(recorder.written):  # a capture computes nothing
            tensor.copy_(before)
        for *_, new in graph.operations:  # garbage until a replay
            for tensor in new:
                if tensor is not None:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


class EmulatedGraph:
    def __init__(self, graphs: Graphs) -> None:
        self.graphs, self.operations = graphs, []

    def replay(self) -> None:
        self.graphs.replayed += 1
        with torch.no_grad():
            for function, args, kwargs, new in self.operations:
                again = tensors(function(*args, **kwargs))
                with _disable_current_modes():  # a GPU's operation writes to where it did in the capture
                    for old, value in zip(new, again, strict=True):
                        if old is not None:
                            old.copy_(value)


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def storage(tensor: Tensor) -> int:
    """Return what tells one allocation from another; meta tensors have no address."""
    return tensor.untyped_storage()._cdata


class PlainKernel:
    """Takes the place of the attention kernel where there is no GPU: the plain form on the same arguments."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.run

    @staticmethod
    def run(
        new: Tensor, tables: Tensor, index: Tensor, count: Tensor,
        keys: Tensor, values: Tensor, scales: Tensor, out: Tensor,
        *strides: int, SCALED: bool, D: int, **constants: int,
    ) -> None:  # fmt: skip
        cache = KVCache([keys], [values], count, [scales] if SCALED else None, index)
        window = Window.stream(cache.counts)
        query, key, value = new.chunk(3, dim=-1)
        query = (query + tables[0][window.own][:, :, None]) * D**-0.5
        pieces = cache.write(0, key, value, window.slots)
        positions = (table[window.positions] for table in tables[1:])
        out.copy_(attend_once(query, *pieces, *positions, window.mask))


def emulate(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Have `torch.cuda` capture and replay operations on the CPU."""
    graphs = Graphs()
    for name in ("current_stream", "stream", "graph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(graphs, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graphs.new_graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    if find_spec("triton"):
        from live2diff.runtime import kernels

        monkeypatch.setattr(kernels, "attend_kernel", PlainKernel())
    return graphs
