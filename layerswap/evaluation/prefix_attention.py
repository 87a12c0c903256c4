"""Shared-prefix attention: keys and values of a prefix that all rows of a batch begin with are held, and read, once.

This is the shared-prefix decomposition of Hydragen (Juravsky et al., arXiv 2402.05099), called *cascade attention* in
FlashInfer (Ye et al., arXiv 2501.01005): attention to the prefix is one matrix product for the queries of all rows,
attention to its own suffix is computed for each row. Eight exemplars are nine tenths of an MGSM prompt and the same for
all problems of a language; they run through the model once. The new tokens of all rows run through the model packed
into one line, so no padding is computed; only in the attention to its suffix does each row stand by itself.
"""

import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from layerswap.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "layerswap"  # of this attention in transformers
GROWTH = 64  # tokens by which the buffers of the suffixes grow
MAX_SPLIT_TOKENS = 8  # new tokens a row, up to which a copy of the prefix for each row costs more than it saves
CONTEXT_FIELDS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")  # what families call it
SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}

LayerKV = tuple[Tensor, Tensor]  # keys and values of one layer


class SuffixKVLayer(DynamicLayer):
    """Keys and values of the rows' suffixes in one layer, [kv heads, rows, capacity, head]: column j is token j.

    The heads come first, as in the scores of all rows for the prefix, so that both kinds of scores lie in one tensor.
    """

    def __init__(self, cache: "SharedCache") -> None:
        super().__init__()
        self.cache = weakref.proxy(cache)  # a circle would hold the memory until the garbage is collected
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> LayerKV:
        """Write new tokens [1, kv heads, new, head] to their places.

        Returns:
            Keys and values of the rows of this step, [kv heads, step rows, columns, head].
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self.cache
        new_states = (key_states[0], value_states[0])  # [kv heads, new, head] each
        if not self.buffers:  # zeros: what no row may see must still be a number
            shapes = [(x.shape[0], cache.n_rows, cache.n_columns + GROWTH, x.shape[2]) for x in new_states]
            self.buffers = [x.new_zeros(shape) for x, shape in zip(new_states, shapes, strict=True)]
        elif cache.n_columns > (capacity := self.buffers[0].shape[2]):
            self.buffers = [F.pad(buffer, (0, 0, 0, cache.n_columns - capacity + GROWTH)) for buffer in self.buffers]
        for buffer, states in zip(self.buffers, new_states, strict=True):
            buffer[:, cache.token_row, cache.token_column] = states  # [kv heads, new, head]
        self.keys, self.values = (buffer[:, cache.step_rows, : cache.n_columns] for buffer in self.buffers)
        return self.keys, self.values


class SharedCache(Cache):
    """The cache of rows that share a prefix: the prefix once, and a ``SuffixKVLayer`` for each layer.

    Args:
        model: the decoder.
        prefix: each layer's keys and values [kv heads, length, head], as ``run_prefix`` returns them; may be empty.
        n_rows: rows of the batch.

    The new tokens of a step, in their packed order, are described by ``token_row`` (of the batch), ``token_column`` (of
    the suffix), ``token_slot`` (among the new tokens of its row) and ``token_step_row`` (row within ``step_rows``), all
    int64 [new].
    """

    def __init__(self, model: "PreTrainedModel", prefix: Sequence[LayerKV], n_rows: int) -> None:
        config = model.config.get_text_config()
        super().__init__(layers=[SuffixKVLayer(self) for _ in range(config.num_hidden_layers)])
        self.prefix, self.n_rows, self.device = prefix, n_rows, model.device
        # No token of an answer is ever read at the last position.
        self.last_column = int(min(context_length(config), 1 << 62)) - self.prefix_length - 1

    @property
    def prefix_length(self) -> int:
        """Tokens of the shared prefix."""
        return self.prefix[0][0].shape[1] if self.prefix else 0

    def begin_step(self, new_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Set up a forward pass over new tokens.

        A column once written may be written again: what a row may see ends at the column of the token that looks.

        Args:
            new_ids: token ids of each row, empty for a row that has none in this step.
            starts: the column of each row's first new token.

        Returns:
            The ids packed into one line, int64 [new].
        """
        rows = [row for row, ids in enumerate(new_ids) if ids]
        self.step_width = max(len(new_ids[row]) for row in rows)
        is_narrow = self.step_width <= MAX_SPLIT_TOKENS  # then a matrix product of some rows would copy their keys
        self.step_rows = slice(0, self.n_rows) if is_narrow else slice(rows[0], rows[-1] + 1)
        places = [(token, row, starts[row] + slot, slot) for row in rows for slot, token in enumerate(new_ids[row])]
        columns = torch.tensor(places, device=self.device).T
        packed_ids, self.token_row, self.token_column, self.token_slot = columns  # [new] each
        self.token_step_row = self.token_row - self.step_rows.start
        self.n_columns = max(starts[row] + len(new_ids[row]) for row in rows)
        self.begin_masks(is_fixed=False)
        return packed_ids

    def begin_fixed_step(self, inputs: Tensor, n_columns: int) -> Tensor:
        """Set up a forward pass over as many new tokens of every row, without a word from the device.

        Args:
            inputs: int64 [rows, slots + 1]: ids, and the column of the first of them.
            n_columns: of the suffixes, at least those that are in use.

        Returns:
            The ids in one line, int64 [rows * slots].
        """
        n_slots = inputs.shape[1] - 1
        slots = torch.arange(n_slots, device=self.device)
        self.step_rows, self.step_width, self.n_columns = slice(0, self.n_rows), n_slots, n_columns
        self.token_row = torch.arange(self.n_rows, device=self.device)[:, None].expand(-1, n_slots).flatten()
        self.token_column = (inputs[:, -1:] + slots).clamp(max=self.last_column).flatten()  # [rows * slots]
        self.begin_masks(is_fixed=True)
        return inputs[:, :-1].flatten()

    def begin_masks(self, is_fixed: bool) -> None:
        """Forget what was made for the step before."""
        self.is_fixed = is_fixed  # every row has ``step_width`` new tokens
        self.masks: dict[tuple[int | None, bool], Tensor] = {}
        self.biases: dict[tuple[int | None, torch.Size], Tensor] = {}
        self.n_attended = 0  # layers that came to ``attention`` in this step

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these; a row that is named several times is there as often."""
        self.n_rows = len(rows)
        for layer in self.layers:  # those that reuse the keys of another have no buffers
            layer.buffers = [buffer[:, torch.tensor(rows, device=self.device)] for buffer in layer.buffers]

    def pad(self, tokens: Tensor) -> Tensor:
        """Packed tokens [new, ..., last] -> [step rows, ..., width, last], zeros where a row has no token."""
        n_rows = self.step_rows.stop - self.step_rows.start
        padded = tokens.new_zeros(n_rows, *tokens.shape[1:-1], self.step_width, tokens.shape[-1])
        padded.movedim(-2, 1)[self.token_step_row, self.token_slot] = tokens
        return padded

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of ``pad``: [step rows, ..., width, last] -> packed tokens [new, ..., last]."""
        return padded.movedim(-2, 1)[self.token_step_row, self.token_slot]

    def attention_mask(self, window: int | None, padded: bool = False) -> Tensor:
        """Which keys each new token may see; True: may.

        Args:
            window: of sliding attention, in tokens; None for full attention.
            padded: one mask a row, rather than one a packed token.

        Returns:
            bool [new, prefix + columns], or if ``padded`` [step rows, width, prefix + columns].
        """
        if (window, padded) not in self.masks:
            position = self.prefix_length + self.token_column[:, None]  # [new, 1]
            if padded:
                position = self.pad(position)  # [step rows, width, 1]
            keys = torch.arange(self.prefix_length + self.n_columns, device=position.device)
            mask = keys <= position
            self.masks[window, padded] = mask if window is None else mask & (keys > position - window)
        return self.masks[window, padded]

    def attention_bias(self, window: int | None, queries: Tensor) -> Tensor:
        """What is added to the scores of a fixed step: 0 where a token may see a key, else minus infinity.

        Args:
            window: as in ``attention_mask``.
            queries: [kv heads, rows, group, slots, head].

        Returns:
            [kv heads, rows * group * slots, prefix + columns] of the queries' dtype; not to be written to.
        """
        key = (window, queries.shape)
        if key not in self.biases:
            mask = self.attention_mask(window).view(self.n_rows, 1, self.step_width, -1)  # [rows, 1, slots, all]
            bias = queries.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)
            self.biases[key] = bias.expand(*queries.shape[:-1], -1).flatten(1, 3)
        return self.biases[key]


def context_length(config: "PreTrainedConfig") -> float:
    """The tokens that a model can read; no bound where its config names none (ALiBi, for one)."""
    return next((length for field in CONTEXT_FIELDS if (length := getattr(config, field, None))), math.inf)


def supports_shared_attention(model: "PreTrainedModel") -> bool:
    """Whether a model can run with this attention; where it cannot, says why, once a model."""
    if model not in obstacles:
        obstacles[model] = find_obstacle(model)
        if obstacle := obstacles[model]:
            tqdm.write(f"{type(model).__name__} answers one prompt at a time, slowly: {obstacle}", file=sys.stderr)
    return obstacles[model] is None


def find_obstacle(model: "PreTrainedModel") -> str | None:
    """Why a model cannot run with this attention, or None.

    It is tried on two rows of different length that share a prefix: some families put more into a mask or a position
    than can be seen in their config.
    """
    config = model.config.get_text_config()
    if unsupported := set(getattr(config, "layer_types", None) or ()) - SUPPORTED_LAYERS:
        return f"it has layers of {min(unsupported)}"
    if not model._can_set_attn_implementation():
        return "it has an attention of its own"
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    try:
        difference = logits_difference(model)
        if difference > tolerance and model.dtype != torch.float32:  # the rounding alone of a deep model may be more
            tolerance = max(tolerance, 4 * logits_difference(model, by_own_cache=True))
    except torch.cuda.OutOfMemoryError:
        return None  # nothing is known; the batches that follow say what does not fit
    except Exception as error:
        return one_line(error)
    return None if difference <= tolerance else f"in a batch its logits differ by {difference:.2g} standard deviations"


@torch.inference_mode()
def logits_difference(model: "PreTrainedModel", by_own_cache: bool = False) -> float:
    """How far the logits of two rows, run in steps, lie from those of whole rows by the model's own attention.

    Args:
        model: the decoder.
        by_own_cache: take the steps row by row with transformers' cache: then the difference is rounding alone.

    Returns:
        That of the worst token: root mean square over the vocabulary, in standard deviations of the logits.
    """
    n_prefix, n_first, lengths = 12, 6, (9, 17)  # the second step has few tokens for one row, many for the other
    config = model.config.get_text_config()
    n_ids = min(config.vocab_size, 1 << 10)
    ids = torch.randint(n_ids, (n_prefix + sum(lengths),), generator=torch.Generator().manual_seed(0)).tolist()
    prefix, suffixes = ids[:n_prefix], [ids[n_prefix : n_prefix + lengths[0]], ids[n_prefix + lengths[0] :]]
    whole = [model(input_ids=torch.tensor([[*prefix, *suffix]], device=model.device)).logits[0] for suffix in suffixes]
    expected = torch.cat([logits[n_prefix:] for logits in whole]).float()  # [tokens, vocabulary]
    steps: list[list[Tensor]]  # row by row, [new of the step, vocabulary] each
    if by_own_cache:
        steps = []
        for suffix in suffixes:
            cache = DynamicCache(config=config)
            segments = [prefix, suffix[:n_first], suffix[n_first:]]
            inputs = [torch.tensor([segment], device=model.device) for segment in segments]
            steps.append([model(input_ids=segment, past_key_values=cache).logits[0] for segment in inputs][1:])
    else:
        shared = SharedCache(model, run_prefix(model, prefix), len(suffixes))
        with shared_attention(model):
            first = forward(model, shared, [row[:n_first] for row in suffixes], [0] * 2, every_token=True)
            second = forward(model, shared, [row[n_first:] for row in suffixes], [n_first] * 2, every_token=True)
        lasts = second.split([length - n_first for length in lengths])
        steps = [list(pair) for pair in zip(first.split(n_first), lasts, strict=True)]
    difference = torch.cat([*map(torch.cat, steps)]).float() - expected  # [tokens, vocabulary]
    return (difference.square().mean(-1).sqrt().max() / expected.std()).item()


cache_stack: list[SharedCache] = []  # its last one is the cache of the forward pass under way
obstacles: "WeakKeyDictionary[PreTrainedModel, str | None]" = WeakKeyDictionary()  # what was found of models so far


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    scaling: float | None = None, softcap: float | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Cascade attention as an attention function of transformers (``AttentionInterface``).

    query [1, heads, new, head]; key and value as ``SuffixKVLayer.update`` returns them. Returns [1, new, heads, head].
    """
    cache = cache_stack[-1]
    cache.n_attended += 1
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None or query.shape[-1] != value.shape[-1]:
        raise UserError(f"{type(module).__name__}: attention with sinks, biases or unequal heads cannot be run here")
    if attention_mask is not None:
        raise UserError(f"{type(module).__name__}: attention with a mask of the model's own cannot be run here")
    owner = next((i for i, layer in enumerate(cache.layers) if layer.is_initialized and layer.keys is key), None)
    if owner is None:  # not those that ``SuffixKVLayer.update`` returned; a layer may reuse the keys of another
        raise UserError(f"{type(module).__name__}: attention to keys that are in no cache cannot be run here")
    prefix = cache.prefix[owner] if cache.prefix else None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cache.is_fixed:
        return fixed_attention(cache, query[0], key, value, prefix, sliding_window, softcap, scaling)[None], None
    query = query[0].transpose(0, 1) * scaling  # [new, heads, head]
    if cache.step_width > MAX_SPLIT_TOKENS and softcap is None:
        output = sdpa_attention(cache, query, key, value, prefix, sliding_window)
    else:
        output = split_attention(cache, query, key, value, prefix, sliding_window, softcap)
    return output[None], None


def sdpa_attention(
    cache: SharedCache, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, window: int | None
) -> Tensor:
    """Many new tokens a row (prefill): torch's kernel, over a copy of the prefix for each row; [new, heads, head]."""
    key, value = key.transpose(0, 1), value.transpose(0, 1)  # [rows, kv heads, columns, head]
    n_rows, kv_heads = key.shape[:2]
    if prefix:
        pairs = zip(prefix, (key, value), strict=True)
        key, value = (torch.cat([shared.expand(n_rows, -1, -1, -1), suffix], 2) for shared, suffix in pairs)
    padded = cache.pad(query)  # [rows, heads, width, head]
    mask = cache.attention_mask(window, padded=True)[:, None]  # [rows, 1, width, all]
    mask = mask.expand(-1, padded.shape[1] // kv_heads, -1, -1).flatten(1, 2)[:, None]  # [rows, 1, group x width, all]
    grouped = padded.reshape(n_rows, kv_heads, -1, padded.shape[-1])  # [rows, kv heads, group x width, head]
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=1.0)
    return cache.unpad(output.reshape(padded.shape))  # a GPU's kernels lay it out in their own ways


def split_attention(
    cache: SharedCache, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, window: int | None,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    """A few new tokens a row (decoding): the prefix is read once for the queries of all rows; [new, heads, head].

    The scores of both parts enter one softmax, so no log-sum-exp merge as in Hydragen is needed.
    """
    n_new, n_heads, head = query.shape
    kv_heads = key.shape[0]
    query = query.reshape(n_new, kv_heads, -1, head)  # [new, kv heads, group, head]
    grouped = cache.pad(query).movedim(1, 0)  # [kv heads, rows, group, width, head]
    suffix_scores = grouped.flatten(2, 3) @ key.transpose(2, 3)  # [kv heads, rows, group x width, columns]
    suffix_scores = suffix_scores.view(*grouped.shape[:-1], -1).movedim(0, 1)
    suffix_scores = cache.unpad(suffix_scores)  # [new, kv heads, group, columns]
    suffix_scores = suffix_scores.permute(1, 2, 0, 3)  # [kv heads, group, new, columns]
    prefix_scores = suffix_scores[..., :0]
    if prefix:
        queries = query.permute(1, 2, 0, 3).flatten(1, 2)  # [kv heads, group x new, head]
        prefix_scores = (queries @ prefix[0].transpose(1, 2)).view(*suffix_scores.shape[:3], -1)
    scores = torch.cat([prefix_scores, suffix_scores], -1)  # [kv heads, group, new, all]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    masked, lowest = ~cache.attention_mask(window), torch.finfo(scores.dtype).min  # [new, all]
    if window is None:  # all of the prefix may be seen
        scores[..., cache.prefix_length :].masked_fill_(masked[:, cache.prefix_length :], lowest)
    else:
        scores.masked_fill_(masked, lowest)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    suffix_weights = weights[..., cache.prefix_length :].permute(2, 0, 1, 3)  # [new, kv heads, group, columns]
    suffix_weights = cache.pad(suffix_weights).movedim(1, 0)  # [kv heads, rows, group, width, columns]
    output = (suffix_weights.flatten(2, 3) @ value).view(grouped.shape)  # [kv heads, rows, group, width, head]
    output = cache.unpad(output.movedim(0, 1))  # [new, kv heads, group, head]
    if prefix:
        prefix_output = weights[..., : cache.prefix_length].flatten(1, 2) @ prefix[1]  # [kv heads, group x new, head]
        output = output + prefix_output.view(kv_heads, -1, n_new, head).permute(2, 0, 1, 3)
    return output.reshape(n_new, n_heads, head)


def fixed_attention(
    cache: SharedCache, query: Tensor, key: Tensor, value: Tensor, prefix: LayerKV | None, window: int | None,
    softcap: float | None, scaling: float,
) -> Tensor:  # fmt: skip
    """As ``split_attention`` where every row has as many new tokens, in as few operations as can be.

    query [heads, new, head] is not yet scaled. Returns [new, heads, head].
    """
    kv_heads, n_rows, _, head = key.shape
    grouped = query.unflatten(0, (kv_heads, -1)).unflatten(2, (n_rows, -1))  # [kv heads, group, rows, slots, head]
    grouped = grouped.transpose(1, 2).contiguous()  # [kv heads, rows, group, slots, head]
    bias = cache.attention_bias(window, grouped)  # [kv heads, rows x group x slots, all]
    scores = torch.zeros_like(bias) if softcap else bias.clone()

    def split(both: Tensor) -> tuple[Tensor, Tensor]:
        """Views of what belongs to the prefix, of all rows together, and to the suffixes, row by row."""
        by_row = both.view(kv_heads * n_rows, -1, both.shape[-1])  # [kv heads x rows, group x slots, all]
        return both[..., : cache.prefix_length], by_row[..., cache.prefix_length :]

    prefix_scores, suffix_scores = split(scores)
    if prefix:
        prefix_scores.baddbmm_(grouped.flatten(1, 3), prefix[0].transpose(1, 2), alpha=scaling)
    suffix_scores.baddbmm_(grouped.flatten(2, 3).flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scaling)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap + bias
    prefix_weights, suffix_weights = split(scores.softmax(-1))  # in float32, rounded once
    output = suffix_weights @ value.flatten(0, 1)  # [kv heads x rows, group x slots, head]
    if prefix:
        output = torch.baddbmm(output.view(kv_heads, -1, head), prefix_weights, prefix[1])
    output = output.view(grouped.shape)  # [kv heads, rows, group, slots, head]
    return output.permute(1, 3, 0, 2, 4).reshape(query.shape[1], query.shape[0], head)


AttentionInterface.register(NAME, attention)


@contextmanager
def shared_attention(model: "PreTrainedModel") -> Iterator[None]:
    """The model with this attention while the block lasts."""
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


def forward(
    model: "PreTrainedModel", cache: SharedCache, new_ids: Sequence[Sequence[int]], starts: Sequence[int],
    every_token: bool = False,
) -> Tensor:  # fmt: skip
    """Run new tokens through a model within ``shared_attention``.

    Args:
        model: the decoder.
        cache: of the rows; the new tokens are added to it.
        new_ids, starts: as in ``SharedCache.begin_step``.
        every_token: return logits after each new token, not only after the last one of each row.

    Returns:
        Logits [rows with new tokens, vocabulary], or [new, vocabulary] if ``every_token``.

    Raises:
        UserError: a layer did not come to this attention; it would have answered without its context.
    """
    ids = cache.begin_step(new_ids, starts)
    if every_token:
        return run_step(model, cache, ids)
    last_tokens = torch.tensor([len(row) for row in new_ids if row]).cumsum(0) - 1  # [rows]
    return run_step(model, cache, ids, last_tokens.to(model.device))


def run_step(model: "PreTrainedModel", cache: SharedCache, ids: Tensor, logits_to_keep: Tensor | int = 0) -> Tensor:
    """Run the tokens of a step that has begun; ``logits_to_keep``: places in ``ids``, 0: all.

    Returns:
        Logits [places, vocabulary].

    Raises:
        UserError: as ``forward``.
    """
    cache_stack.append(cache)
    try:
        logits = model(
            input_ids=ids[None], position_ids=(cache.prefix_length + cache.token_column)[None], past_key_values=cache,
            logits_to_keep=logits_to_keep,
        ).logits[0]  # fmt: skip
    finally:
        cache_stack.pop()
    if cache.n_attended != len(cache.layers):  # those that reuse keys come here too
        observed = f"{cache.n_attended} of {len(cache.layers)} layers call"
        raise UserError(f"{type(model).__name__}: {observed} transformers' attention, which the kernel needs of all")
    return logits


def run_prefix(model: "PreTrainedModel", ids: Sequence[int]) -> list[LayerKV]:
    """Keys and values of a prefix by the model's own attention, each [kv heads, length, head], for ``SharedCache``.

    For models that ``supports_shared_attention``. UserError if the memory does not suffice.
    """
    if not ids:
        return []
    cache = DynamicCache()  # without the config: every layer keeps all, also those with a window
    try:
        model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, logits_to_keep=1)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"{model.device}: no memory for the shared prefix of {len(ids)} tokens") from None
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]
