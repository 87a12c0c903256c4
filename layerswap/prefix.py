"""Attention of many rows over a prefix that all of them share: its keys and values are held, and read, once.

Eight worked examples make nine tenths of an MGSM prompt, and are the same for all problems of a language. They run
through the model once; afterwards every row attends to them and to its own tokens. What a token may see is decided by
positions alone, so blanks may lie anywhere in a row, and sliding windows reach into the prefix as they should.
"""

from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from layerswap.paths import UserError

NAME = "layerswap"  # of this attention in transformers
BLANK = 1 << 40  # the position of padding: no token is so late as to see it
GROWTH = 64  # tokens by which a row's room grows
FEW = 8  # new tokens a row, up to which a copy of the prefix for each row costs more than it saves
SCORES = 1 << 28  # attention scores held at once (1 GiB in float32)


class Rows(DynamicLayer):
    """Keys and values of the rows' own tokens in one layer, written in place into room that grows."""

    used, room = 0, None

    def update(self, key_states, value_states, *args, **kwargs):
        """Append [rows, kv heads, new, head]; returns all of the rows' keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.used = self.used, self.used + key_states.shape[2]
        if start == 0:
            self.room = [key_states, value_states]
        else:
            for i, new in enumerate((key_states, value_states)):
                if self.used > self.room[i].shape[2]:
                    self.room[i] = F.pad(self.room[i][:, :, :start], (0, 0, 0, self.used - start + GROWTH))
                self.room[i][:, :, start : self.used] = new
        return self.view()

    def keep(self, index):
        """Drop all rows but those of ``index`` (int64)."""
        self.room = [room[index] for room in self.room]
        self.view()

    def crop(self, length):
        """Drop all tokens after the first ``length``."""
        self.used = length
        self.view()

    def view(self):
        self.keys, self.values = (room[:, :, : self.used] for room in self.room)
        return self.keys, self.values


class SharedCache(Cache):
    """The cache of rows after a prefix (a list of each layer's keys and values [kv heads, length, head], or empty)."""

    def __init__(self, model, prefix=()):
        super().__init__(layers=[Rows() for _ in range(model.config.num_hidden_layers)])
        self.prefix, self.seen, self.asking, self.masks, self.attended = prefix, None, None, {}, 0

    @classmethod
    def joined(cls, model, caches):
        """One cache of the rows of several that have the same prefix; what a row lacks in length is blank."""
        joint, longest = cls(model, caches[0].prefix), max(cache.seen.shape[1] for cache in caches)
        joint.seen = torch.cat([F.pad(cache.seen, (longest - cache.seen.shape[1], 0), value=BLANK) for cache in caches])
        for layer, parts in zip(joint.layers, zip(*(cache.layers for cache in caches), strict=True), strict=True):
            pairs = [[F.pad(each, (0, 0, longest - part.used, 0)) for each in part.view()] for part in parts]
            layer.update(*map(torch.cat, zip(*pairs, strict=True)))  # [rows, kv heads, longest, head] each
        return joint

    @property
    def shared(self):
        return self.prefix[0][0].shape[1] if self.prefix else 0  # tokens

    def ask(self, positions):
        """Take note of new tokens at ``positions`` [rows, new], int64, BLANK for padding."""
        self.asking, self.masks, self.attended = positions, {}, 0
        self.seen = positions if self.seen is None else torch.cat([self.seen, positions], 1)  # [rows, own]

    def keep(self, index):
        """Drop all rows but those of ``index`` (int64)."""
        self.seen = self.seen[index]
        for layer in self.layers:
            layer.keep(index)

    def crop(self, length):
        """Drop all of the rows' own tokens after the first ``length``."""
        self.seen = self.seen[:, :length]
        for layer in self.layers:
            layer.crop(length)

    def mask(self, window):
        """What the new tokens may see: bool [rows, new, shared + own]; window: in tokens, None for no limit."""
        if window not in self.masks:
            before = torch.arange(self.shared, device=self.seen.device).expand(len(self.seen), -1)
            seen = torch.cat([before, self.seen], 1)[:, None]  # [rows, 1, shared + own]
            asking = self.asking[..., None]  # [rows, new, 1]
            self.masks[window] = (seen <= asking) & (seen < BLANK)
            if window is not None:
                self.masks[window] &= seen > asking - window
        return self.masks[window]


ORDINARY = {"full_attention", "sliding_attention"}


def check_ordinary(model):
    """UserError unless all of a model's layers have ordinary attention, full or with a sliding window."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - ORDINARY
    if kinds or not model._can_set_attn_implementation():
        found = f"layers of {min(kinds)}" if kinds else "an attention of its own"
        raise UserError(f"{type(model).__name__} has {found}, which the evaluation kernel cannot run")


active = []  # the cache of the forward pass under way


def attend(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, **kwargs):
    """transformers' attention function over prefix and own tokens; query [rows, heads, new, head]."""
    cache = active[-1]
    cache.attended += 1
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None or query.shape[-1] != value.shape[-1]:
        raise UserError(f"{type(module).__name__}: attention with sinks, biases or unequal heads cannot be run here")
    mask = cache.mask(sliding_window)
    prefix = cache.prefix[module.layer_idx] if cache.prefix else None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.shape[2] > FEW and softcap is None:
        return flash(query, key, value, mask, prefix, scaling), None
    step = max(1, SCORES // (query.shape[1] * query.shape[2] * mask.shape[2]))  # rows at once
    parts = [
        rows_attention(*part, prefix, scaling, softcap)
        for part in zip(*(each.split(step) for each in (query, key, value, mask)), strict=True)
    ]
    return torch.cat(parts).transpose(1, 2), None  # [rows, new, heads, head]


def flash(query, key, value, mask, prefix, scaling):
    """Many new tokens a row: torch's own kernel, over a copy of the prefix for each row; [rows, new, heads, head]."""
    rows, heads = query.shape[:2]
    if prefix:
        pairs = zip(prefix, (key, value), strict=True)
        key, value = (torch.cat([shared.expand(rows, -1, -1, -1), own], 2) for shared, own in pairs)
    key, value = (each.repeat_interleave(heads // key.shape[1], 1) for each in (key, value))  # [rows, heads, all, head]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None], scale=scaling)
    return mixed.transpose(1, 2)


def rows_attention(query, key, value, mask, prefix, scaling, softcap):
    """The attention of some rows, [rows, heads, new, head]."""
    rows, heads, new, head = query.shape
    kv_heads, own = key.shape[1:3]
    grouped = query.reshape(rows, kv_heads, -1, head)  # [rows, kv heads, heads a kv head x new, head]
    scores = grouped @ key.transpose(2, 3)  # [rows, kv heads, group x new, own]
    if prefix:
        flat = grouped.transpose(0, 1).reshape(kv_heads, -1, head)  # [kv heads, rows x group x new, head]
        shared = flat @ prefix[0].transpose(1, 2)  # [kv heads, rows x group x new, shared]
        shared = shared.view(kv_heads, rows, -1, shared.shape[-1]).transpose(0, 1)
        scores = torch.cat([shared, scores], -1)
    scores = scores.view(rows, kv_heads, -1, new, scores.shape[-1]) * scaling  # [rows, kv heads, group, new, all]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype).view(rows, kv_heads, -1, scores.shape[-1])
    mixed = weights[..., -own:] @ value  # [rows, kv heads, group x new, head]
    if prefix:
        flat = weights[..., :-own].transpose(0, 1).reshape(kv_heads, -1, prefix[1].shape[1])
        mixed = mixed + (flat @ prefix[1]).view(kv_heads, rows, -1, head).transpose(0, 1)
    return mixed.reshape(rows, heads, new, head)


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


def forward(model, cache, ids, positions, keep=1):
    """Logits [rows, keep, vocabulary] of the last ``keep`` of new tokens, ids and positions int64 [rows, new]."""
    cache.ask(positions)
    active.append(cache)
    try:
        logits = model(
            input_ids=ids, position_ids=positions.where(positions < BLANK, 0), past_key_values=cache,
            logits_to_keep=keep,
        ).logits  # fmt: skip
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
