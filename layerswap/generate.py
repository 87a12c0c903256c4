"""The eval kernel: greedy answers and answer losses of many prompts at once, on transformers decoders.

What all prompts begin with runs through the model once. The rest is sorted by length and batched by a token budget;
finished rows leave their batch, so a long answer costs nothing to the others. The tokens are those of
``model.generate`` (plain greedy, float32, one prompt at a time). Decoders whose attention is not transformers' ordinary
one, full or with a sliding window, are refused.
"""

from dataclasses import dataclass
from os.path import commonprefix

import torch
from torch.nn import functional as F

from layerswap.paths import UserError
from layerswap.prefix import BLANK, SharedCache, forward, run_prefix, shared_attention

SHORTEST = 16  # tokens from which on a shared prefix is worth its own pass
PREFILL = 2048  # tokens of prompts that run through the model at once
LOGITS = 1 << 28  # logits held at once by ``nll`` (1 GiB in float32)


@dataclass(frozen=True)
class Generation:
    """An answer without its end mark; ``stop`` says why it ended: "eos", "stop string" or "length"."""

    text: str
    n_tokens: int
    stop: str


def encode(tokenizer, texts, model, room):
    """Token ids of each text. UserError if one of them and ``room`` more tokens exceed the model's context."""
    encoded = tokenizer(texts).input_ids if texts else []
    context = model.config.max_position_embeddings
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise UserError(f"prompt {text[:40]!r} has no tokens, expected some")
        if len(ids) + room > context:
            raise UserError(
                f"prompt {text[:40]!r} has {len(ids)} tokens and needs {room} more, the model takes {context}"
            )
    return encoded


def shared_length(encoded):
    """How many first tokens all prompts share, short of the last one of each; 0 if too few to be worth it."""
    shared = len(commonprefix([ids[:-1] for ids in encoded])) if len(encoded) > 1 else 0
    return shared if shared >= SHORTEST else 0


def batches(lengths, budget):
    """Indices grouped by similar length, longest first, so that rows x longest stays within ``budget`` tokens."""
    order, group = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)), []
    for i in order:
        if group and (len(group) + 1) * lengths[group[0]] > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def pad(rows, start, device):
    """(ids, positions), int64 [rows, longest], blanks on the left; each row's first token is at position ``start``."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    places = [[BLANK] * (longest - len(row)) + list(range(start, start + len(row))) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(places, device=device)


@torch.inference_mode()
def generate(model, tokenizer, prompts, max_new_tokens, stop=(), batch_tokens=16384, told=None):
    """Greedy answers, one ``Generation`` a prompt, in the order of ``prompts``.

    max_new_tokens: at most so many a prompt. stop: strings that end an answer. batch_tokens: tokens of a batch beside
    the shared prefix, answers included; halved where the GPU's memory does not suffice. told: called with (index,
    Generation) as each answer ends. UserError for a prompt that does not fit the model's context, and for no tokens.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    if isinstance(stop, str) or "" in stop:
        raise UserError(f"stop is {stop!r}, expected a list of strings, none of them empty")
    encoded = encode(tokenizer, prompts, model, max_new_tokens)
    shared, answers = shared_length(encoded), [None] * len(prompts)
    prefix = run_prefix(model, encoded[0][:shared] if encoded else [])
    groups = list(batches([len(ids) - shared + max_new_tokens for ids in encoded], batch_tokens))
    with shared_attention(model):
        while groups:
            group = [i for i in groups.pop(0) if answers[i] is None]
            try:
                rows = [encoded[i][shared:] for i in group]
                for row, tokens, reason in decode(model, tokenizer, prefix, rows, max_new_tokens, stop):
                    text = tokenizer.decode(tokens, skip_special_tokens=True)
                    text = text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
                    answers[group[row]] = Generation(text, len(tokens), reason)
                    if told:
                        told(group[row], answers[group[row]])
                continue
            except torch.cuda.OutOfMemoryError:
                if len(group) == 1:
                    raise
            torch.cuda.empty_cache()  # here, where the error no longer holds what was tried
            groups[:0] = [group[: len(group) // 2], group[len(group) // 2 :]]
    return answers


def decode(model, tokenizer, prefix, rows, max_new_tokens, stop):
    """Yield (row, answer's token ids without the end token, stop reason) as rows of one batch finish."""
    ends, (cache, last) = end_tokens(model, tokenizer), prefill(model, prefix, rows)
    places = torch.tensor([[cache.shared + len(row) - 1] for row in rows], device=model.device)  # [rows, 1]
    tail = max((len(s.encode()) for s in stop), default=0) + 8  # tokens, of a byte or more, that hold what just ended
    live, answers = list(range(len(rows))), [[] for _ in rows]
    done = set()
    for step in range(max_new_tokens):
        chosen = last.argmax(-1)  # [live rows]
        for row, token in zip(live, chosen.tolist(), strict=True):
            if row in done:
                continue
            reason = None
            if token in ends:
                reason = "eos"
            else:
                answers[row].append(token)
                text = tokenizer.decode(answers[row][-tail:], skip_special_tokens=True) if stop else ""
                if any(s in text for s in stop):
                    reason = "stop string"
                elif step + 1 == max_new_tokens:
                    reason = "length"
            if reason:
                done.add(row)
                yield row, answers[row], reason
        if len(done) == len(rows):
            return
        places = places + 1  # [live rows, 1]
        if 8 * sum(row in done for row in live) >= len(live):  # to move the others costs more than a few idle rows
            index = torch.tensor([i for i, row in enumerate(live) if row not in done], device=model.device)
            live = [row for row in live if row not in done]
            chosen, places = chosen[index], places[index]
            cache.keep(index)
        last = forward(model, cache, chosen[:, None], places)[:, -1]  # [live rows, vocabulary]


def prefill(model, prefix, rows):
    """(cache, logits of the next token [rows, vocabulary]) of rows sorted longest first, after a prefix.

    Rows of like length go together, so that hardly a blank is calculated.
    """
    caches, last = [], []
    for part in batches([len(row) for row in rows], PREFILL):
        caches.append(SharedCache(model, prefix))
        ids, places = pad([rows[i] for i in part], caches[-1].shared, model.device)  # [rows of the part, longest]
        last.append(forward(model, caches[-1], ids, places)[:, -1])
    return SharedCache.joined(model, caches), torch.cat(last)


def end_tokens(model, tokenizer):
    """The token ids that end an answer: the tokenizer's and those of the model's generation settings."""
    found = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])} - {None}


@torch.inference_mode()
def nll(model, tokenizer, prompts, continuations, batch_tokens=16384):
    """Negative log likelihood of each continuation given its prompt: (sum in nats, number of tokens) a pair.

    The prompt's tokens are those of the prompt alone, the continuation's those of the continuation alone, and the end
    of text is not scored. UserError for a pair that does not fit the model's context.
    """
    heads = encode(tokenizer, prompts, model, 0)
    tails = [tokenizer(text, add_special_tokens=False).input_ids for text in continuations]
    context = model.config.max_position_embeddings
    longest = max((len(h) + len(t) for h, t in zip(heads, tails, strict=True)), default=0)
    if longest > context:
        raise UserError(f"a prompt with its continuation has {longest} tokens, the model takes {context}")
    shared, results = shared_length(heads), [None] * len(prompts)
    prefix = run_prefix(model, heads[0][:shared] if heads else [])
    lengths = [len(h) + len(t) - shared for h, t in zip(heads, tails, strict=True)]
    with shared_attention(model):
        for group in batches(lengths, min(batch_tokens, PREFILL, LOGITS // model.config.vocab_size)):
            rows = [heads[i][shared:] + tails[i] for i in group]
            keep = max(len(tails[i]) for i in group) + 1
            ids, places = pad(rows, shared, model.device)  # [rows, longest]
            logits = forward(model, SharedCache(model, prefix), ids, places, keep)  # [rows, keep, vocabulary]
            for row, i in enumerate(group):
                n = len(tails[i])
                target = ids[row, ids.shape[1] - n :]  # [continuation]
                predicted = logits[row, logits.shape[1] - n - 1 : -1].float()  # [continuation, vocabulary]
                results[i] = (F.cross_entropy(predicted, target, reduction="sum").item(), n)
    return results
