"""Attention of many rows over a prefix that all of them share: its keys and values are held, and read, once.

Eight worked examples make nine tenths of an MGSM prompt, and are the same for all problems of a language. They run
through the model once; afterwards every row attends to them and to its own tokens. The new tokens of all rows run
through the model as one packed line, so that no padding is ever calculated; only in the attention to its own tokens
does each row stand by itself.
"""

from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from layerswap.paths import UserError

NAME = "layerswap"  # of this attention in transformers
GROWTH = 64  # tokens by which a row's room grows
FEW = 8  # new tokens a row, up to which a copy of the prefix for each row costs more than it saves


class Rows(DynamicLayer):
    """Keys and values of the rows' own tokens in a layer, [rows, kv heads, room, head]: column j is the j-th token."""

    def __init__(self, cache):
        super().__init__()
        self.cache, self.room = cache, None

    def update(self, key_states, value_states, *args, **kwargs):
        """Put new tokens [1, kv heads, new, head] into their places; returns the asked rows' up to the longest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, longest = (key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)), self.cache.longest
        if self.room is None:  # zeros: what no row may see must still be a number
            shapes = [(self.cache.n_rows, x.shape[1], longest + GROWTH, x.shape[2]) for x in new]
            self.room = [x.new_zeros(shape) for x, shape in zip(new, shapes, strict=True)]
        elif longest > (have := self.room[0].shape[2]):
            self.room = [F.pad(room, (0, 0, 0, longest - have + GROWTH)) for room in self.room]
        for room, states in zip(self.room, new, strict=True):
            room[self.cache.row, :, self.cache.column] = states  # [new, kv heads, head]
        self.keys, self.values = (room[self.cache.asked, :, :longest] for room in self.room)
        return self.keys, self.values


class SharedCache(Cache):
    """The cache of rows after a prefix (a list of each layer's keys and values [kv heads, length, head], or empty)."""

    def __init__(self, model, prefix, n_rows):
        super().__init__(layers=[Rows(self) for _ in range(model.config.num_hidden_layers)])
        self.prefix, self.n_rows, self.device = prefix, n_rows, model.device

    @property
    def shared(self):
        return self.prefix[0][0].shape[1] if self.prefix else 0  # tokens

    def ask(self, new, starts):
        """Take note of new tokens, a list of ids a row (or none) from the columns ``starts`` on; returns the ids [new].

        A column once written may be written again: what a row may see ends at the column of the token that looks.
        """
        rows = [row for row, ids in enumerate(new) if ids]
        self.asked = slice(rows[0], rows[-1] + 1)
        places = [(token, row, starts[row] + slot, slot) for row in rows for slot, token in enumerate(new[row])]
        ids, self.row, self.column, self.slot = torch.tensor(places, device=self.device).T  # [new] each
        self.line = self.row - rows[0]  # among the rows asked
        self.width = max(len(new[row]) for row in rows)
        self.longest = max(starts[row] + len(new[row]) for row in rows)
        self.masks, self.attended = {}, 0
        return ids

    def keep(self, index):
        """Drop all rows but those of ``index`` (a list)."""
        self.n_rows = len(index)
        for layer in self.layers:
            layer.room = [room[torch.tensor(index, device=self.device)] for room in layer.room]

    def apart(self, packed):
        """The rows by themselves, [asked, ..., width, last], of new tokens [new, ..., last]; zeros where none is."""
        rows = self.asked.stop - self.asked.start
        made = packed.new_zeros(rows, *packed.shape[1:-1], self.width, packed.shape[-1])
        made.movedim(-2, 1)[self.line, self.slot] = packed
        return made

    def packed(self, apart):
        """New tokens [new, ..., last] of rows by themselves [asked, ..., width, last]."""
        return apart.movedim(-2, 1)[self.line, self.slot]

    def seen(self, window, apart=False):
        """What tokens may see: bool [new, shared + longest], or [asked, width, shared + longest] of rows apart.

        window: in tokens, None for no limit.
        """
        if (window, apart) not in self.masks:
            at = self.shared + self.column[:, None]  # [new, 1]
            if apart:
                at = self.apart(at)  # [asked, width, 1]
            places = torch.arange(self.shared + self.longest, device=at.device)
            self.masks[window, apart] = (places <= at) if window is None else (places <= at) & (places > at - window)
        return self.masks[window, apart]


ORDINARY = {"full_attention", "sliding_attention"}


def check_ordinary(model):
    """UserError unless all of a model's layers have ordinary attention, full or with a sliding window."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - ORDINARY
    if kinds or not model._can_set_attn_implementation():
        found = f"layers of {min(kinds)}" if kinds else "an attention of its own"
        raise UserError(f"{type(model).__name__} has {found}, which the evaluation kernel cannot run")


active = []  # the cache of the forward pass under way


def attend(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, **kwargs):
    """transformers' attention function; query [1, heads, new, head], key and value as ``Rows.update`` returns them."""
    cache = active[-1]
    cache.attended += 1
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None or query.shape[-1] != value.shape[-1]:
        raise UserError(f"{type(module).__name__}: attention with sinks, biases or unequal heads cannot be run here")
    prefix = cache.prefix[module.layer_idx] if cache.prefix else None
    query = query[0].transpose(0, 1) * (query.shape[-1] ** -0.5 if scaling is None else scaling)  # [new, heads, head]
    if cache.width > FEW and softcap is None:
        mixed = flash(cache, query, key, value, prefix, sliding_window)
    else:
        mixed = plain(cache, query, key, value, prefix, sliding_window, softcap)
    return mixed[None], None  # [1, new, heads, head]


def flash(cache, query, key, value, prefix, window):
    """Many new tokens a row: torch's own kernel, over a copy of the prefix for each row; [new, heads, head]."""
    rows, kv_heads = key.shape[:2]
    if prefix:
        pairs = zip(prefix, (key, value), strict=True)
        key, value = (torch.cat([shared.expand(rows, -1, -1, -1), own], 2) for shared, own in pairs)
    apart = cache.apart(query)  # [rows, heads, width, head]
    mask = cache.seen(window, apart=True)[:, None]  # [rows, 1, width, all]
    mask = mask.expand(-1, apart.shape[1] // kv_heads, -1, -1).flatten(1, 2)[:, None]  # [rows, 1, group x width, all]
    grouped = apart.reshape(rows, kv_heads, -1, apart.shape[-1])  # [rows, kv heads, group x width, head]
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=1.0)
    return cache.packed(mixed.view(apart.shape))


def plain(cache, query, key, value, prefix, window, softcap):
    """A few new tokens a row: the prefix is read once for all of them; [new, heads, head]."""
    new, heads, head = query.shape
    rows, kv_heads = key.shape[:2]
    grouped = cache.apart(query.view(new, kv_heads, -1, head))  # [rows, kv heads, group, width, head]
    own = grouped.flatten(2, 3) @ key.transpose(2, 3)  # [rows, kv heads, group x width, own]
    own = cache.packed(own.view(*grouped.shape[:-1], -1)).permute(1, 2, 0, 3)  # [kv heads, group, new, own]
    lines = query.view(new, kv_heads, -1, head).permute(1, 2, 0, 3).flatten(1, 2)  # [kv heads, group x new, head]
    shared = (lines @ prefix[0].transpose(1, 2)).view(*own.shape[:3], -1) if prefix else own[..., :0]
    scores = torch.cat([shared, own], -1)  # [kv heads, group, new, all]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    hidden, lowest = ~cache.seen(window), torch.finfo(scores.dtype).min  # [new, all]
    if window is None:  # all of the prefix may be seen
        scores[..., cache.shared :].masked_fill_(hidden[:, cache.shared :], lowest)
    else:
        scores.masked_fill_(hidden, lowest)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    own = cache.apart(weights[..., cache.shared :].permute(2, 0, 1, 3))  # [rows, kv heads, group, width, own]
    mixed = (own.flatten(2, 3) @ value).view(grouped.shape)  # [rows, kv heads, group, width, head]
    mixed = cache.packed(mixed)  # [new, kv heads, group, head]
    if prefix:
        shared = weights[..., : cache.shared].flatten(1, 2) @ prefix[1]  # [kv heads, group x new, head]
        mixed = mixed + shared.view(kv_heads, -1, new, head).permute(2, 0, 1, 3)
    return mixed.reshape(new, heads, head)


AttentionInterface.register(NAME, attend)


@contextmanager
def shared_attention(model):
    """The model with this attention while the block lasts."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def forward(model, cache, new, starts, every=False):
    """Logits after the last new token of each row that has some, [rows, vocabulary]; ``every``: after each new token.

    new: a list of token ids a row, empty for none. starts: the column of each row's first one.
    """
    ids = cache.ask(new, starts)
    ends = torch.tensor([len(row) for row in new if row]).cumsum(0) - 1  # [rows]
    active.append(cache)
    try:
        logits = model(
            input_ids=ids[None], position_ids=(cache.shared + cache.column)[None], past_key_values=cache,
            logits_to_keep=0 if every else ends.to(model.device),
        ).logits[0]  # fmt: skip
    finally:
        active.pop()
    if cache.attended != len(cache.layers):  # it would have answered without what it should have seen
        found = f"{cache.attended} of {len(cache.layers)} layers asked"
        raise UserError(f"{type(model).__name__}: {found} for transformers' attention, which the kernel needs of all")
    return logits


def run_prefix(model, ids):
    """Keys and values of a prefix (token ids), by the model's own attention: what ``SharedCache`` takes.

    UserError, before anything runs, for a model whose layers have another attention than ``SharedCache`` can serve.
    """
    check_ordinary(model)
    if not ids:
        return []
    cache = DynamicCache()  # without the config: every layer keeps all, also those with a window
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, logits_to_keep=1)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # [kv heads, length, head] each
