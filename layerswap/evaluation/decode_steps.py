"""The forward passes of decoding: packed without padding, or in fixed shapes that a GPU replays as a CUDA graph.

Launched one by one, the operations of a step take a GPU several times as long as their work. A graph launches them all
at once, and needs shapes and addresses that stay: so every row has the same number of slots, and what it lacks of them
is filled with tokens whose keys no later token sees before they are written over. What then counts is the number of
operations: a norm is torch's own, one, in place of the eight in which families write it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from layerswap.errors import one_line
from layerswap.evaluation.prefix_attention import SharedCache, forward, run_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_DRAFT = 4  # tokens drafted for a row
FREE_TOKENS = 256  # new tokens, up to which a step takes a GPU as long as it takes to read the weights
COLUMN_STEP = 128  # columns of the suffixes by which the shape of a step grows


class PackedSteps:
    """Steps that hold nothing but new tokens.

    Attributes:
        n_slots: new tokens that a row may have, its draft among them.
        max_idle: part of the rows that may be finished before the others are moved together.
    """

    max_idle = 1 / 4

    def __init__(self, model: "PreTrainedModel", cache: SharedCache) -> None:
        self.model, self.cache = model, cache

    @property
    def n_slots(self) -> int:
        """New tokens that a row may have in a step."""
        return 1 + MAX_DRAFT

    def predict(self, new_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        """The greedy choice after each new token of each row; arguments as in ``SharedCache.begin_step``."""
        predicted = iter(
            forward(self.model, self.cache, new_ids, starts, every_token=True).argmax(-1).tolist()
        )  # [new]
        return [[next(predicted) for _ in ids] for ids in new_ids]


class FixedSteps(PackedSteps):
    """Steps of ``n_slots`` tokens in every row, replayed as a CUDA graph where ``capture`` is true.

    A model that cannot be captured is run as ever, in the same shapes, and so with the same results.
    """

    max_idle = 1 / 2  # a smaller batch needs a graph of its own

    def __init__(self, model: "PreTrainedModel", cache: SharedCache, capture: bool = True) -> None:
        super().__init__(model, cache)
        self.capture = capture
        self.norms = find_fused_norms(model)
        self.shape: tuple[int, int] | None = None  # rows and columns of the graph
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def n_slots(self) -> int:
        """As many as cost nothing."""
        return max(1, min(1 + MAX_DRAFT, FREE_TOKENS // self.cache.n_rows))

    def predict(self, new_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        """As in ``PackedSteps``."""
        n_slots, n_rows = self.n_slots, self.cache.n_rows
        n_columns = -(-(max(starts) + n_slots) // COLUMN_STEP) * COLUMN_STEP
        lines = [[*ids, *[0] * (n_slots - len(ids)), start] for ids, start in zip(new_ids, starts, strict=True)]
        if self.shape != (n_rows, n_columns):
            self.shape, self.graph = (n_rows, n_columns), None  # the buffers may move
            self.inputs = torch.tensor(lines, device=self.cache.device)  # [rows, slots + 1], the last one the start
            self.host_inputs = torch.empty_like(self.inputs, device="cpu", pin_memory=self.inputs.is_cuda)
            self.begin_shape()
        self.host_inputs.copy_(torch.tensor(lines))
        self.inputs.copy_(self.host_inputs, non_blocking=True)
        if self.graph is None:
            with fused(self.norms):
                self.predicted = self.step()  # [rows, slots]
        else:
            self.graph.replay()
        return [row[: len(ids)] for row, ids in zip(self.predicted.tolist(), new_ids, strict=True)]

    def step(self) -> Tensor:
        """The greedy choices after ``inputs``, int64 [rows, slots]."""
        assert self.shape is not None
        ids = self.cache.begin_fixed_step(self.inputs, self.shape[1])  # [rows * slots]
        return run_step(self.model, self.cache, ids).argmax(-1).view(self.inputs.shape[0], -1)

    def begin_shape(self) -> None:
        """Capture the graph of a new shape. A step may be run any number of times: it writes the same keys."""
        if not self.capture:
            return
        graph, stream = torch.cuda.CUDAGraph(), capture_stream(self.cache.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), fused(self.norms):
            self.step()  # what is allocated and looked up once, is so outside the graph
            try:
                graph.capture_begin()
                try:
                    self.predicted = self.step()
                finally:
                    graph.capture_end()
                self.graph = graph
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                self.capture = False
                name = type(self.model).__name__
                tqdm.write(f"{name}: steps cannot be captured as CUDA graphs: {one_line(error)}", file=sys.stderr)
        torch.cuda.current_stream().wait_stream(stream)


Forward = Callable[[Tensor], Tensor]


def find_fused_norms(model: "PreTrainedModel") -> dict[torch.nn.Module, Forward]:
    """The root-mean-square norms of a model -> a forward of one operation, or three where it multiplies by 1 + weight.

    What a norm does is read off its result for random numbers; one of another kind stays as it is. The weights are
    those of now.
    """
    forwards: dict[torch.nn.Module, Forward] = {}
    weights_of_kinds: dict[type, Callable[[Tensor], Tensor] | None] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        epsilon: float | None = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
        if not type(module).__name__.endswith("RMSNorm") or weight is None or weight.dim() != 1 or epsilon is None:
            continue
        if type(module) not in weights_of_kinds:
            generator = torch.Generator().manual_seed(0)
            states = torch.randn(4, len(weight), generator=generator).to(weight)  # [4, size]
            expected, tolerance = module(states), 4 * torch.finfo(weight.dtype).eps
            weights_of_kinds[type(module)] = next(
                (form for form in WEIGHT_FORMS if torch.allclose(
                    fused_forward(form(weight), epsilon)(states), expected, rtol=tolerance, atol=tolerance
                )), None,
            )  # fmt: skip
        if (form := weights_of_kinds[type(module)]) is not None:
            forwards[module] = fused_forward(form(weight), epsilon)
    return forwards


EPSILONS = ("variance_epsilon", "eps")  # what families call the number added to the mean square
WEIGHT_FORMS = (lambda weight: weight, lambda weight: 1.0 + weight.float())


def fused_forward(weight: Tensor, epsilon: float) -> Forward:
    """The norm of states [..., size] in the dtype of ``weight`` [size], float32 within."""
    return lambda states: F.rms_norm(states.to(weight.dtype), weight.shape, weight, epsilon).to(states.dtype)


@contextmanager
def fused(forwards: dict[torch.nn.Module, Forward]) -> Iterator[None]:
    """Modules with other forwards while the block lasts."""
    previous = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    for module in forwards:
        module.forward = forwards[module]
    try:
        yield
    finally:
        for module in forwards:
            del module.forward
        for module in previous:
            module.forward = previous[module]


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which graphs are captured: one for all, as matrix products keep memory for each stream they met."""
    return torch.cuda.Stream(device)


def decode_steps(model: "PreTrainedModel", cache: SharedCache) -> PackedSteps:
    """The way of decoding that suits the model's device."""
    return FixedSteps(model, cache) if cache.device.type == "cuda" else PackedSteps(model, cache)
