"""The eval kernel: greedy answers and answer losses of many prompts at once, on any transformers decoder.

Prompts are sorted by length and batched by a token budget; finished rows leave their batch, so a long answer costs
nothing to the others. The tokens are those of ``model.generate`` (greedy, one prompt at a time).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from layerswap.paths import UserError

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
        if len(ids) + room > context:
            raise UserError(
                f"prompt {text[:40]!r} has {len(ids)} tokens and needs {room} more, the model takes {context}"
            )
    return encoded


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


def pad(rows, device, value, left=True):
    """(ids, mask), both int64 [rows, longest], padded on the left or right."""
    longest = max(map(len, rows))
    blank = [[value] * (longest - len(row)) for row in rows]
    ids = [b + r if left else r + b for b, r in zip(blank, rows, strict=True)]
    mask = [
        [0] * len(b) + [1] * len(r) if left else [1] * len(r) + [0] * len(b) for b, r in zip(blank, rows, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def generate(model, tokenizer, prompts, max_new_tokens, stop=(), batch_tokens=16384):
    """Greedy answers, one ``Generation`` a prompt, in the order of ``prompts``.

    max_new_tokens: at most so many a prompt. stop: strings that end an answer. batch_tokens: prompt and answer tokens
    of a batch. UserError for a prompt that does not fit the model's context, and for no tokens.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    encoded = encode(tokenizer, prompts, model, max_new_tokens)
    answers = [None] * len(prompts)
    for group in batches([len(ids) + max_new_tokens for ids in encoded], batch_tokens):
        for i, tokens, reason in decode(model, tokenizer, [encoded[i] for i in group], max_new_tokens, stop):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            if reason == "stop string":
                text = text[: min(at for at in map(text.find, stop) if at >= 0)]
            answers[group[i]] = Generation(text, len(tokens), reason)
    return answers


def decode(model, tokenizer, rows, max_new_tokens, stop):
    """Yield (row, answer's token ids without the end token, stop reason) as rows of one batch finish."""
    device, ends = model.device, end_tokens(model, tokenizer)
    ids, mask = pad(rows, device, tokenizer.pad_token_id or 0)  # [rows, longest] each
    places = (mask.cumsum(1) - 1).clamp(min=0)  # [rows, longest] positions, counted from each prompt's first token
    cache, live, told = DynamicCache(config=model.config), list(range(len(rows))), [[] for _ in rows]
    for step in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, logits_to_keep=1)
        chosen = out.logits[:, -1].argmax(-1)  # [live rows]
        keep = []
        for row, (i, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            if token in ends:
                yield i, told[i], "eos"
                continue
            told[i].append(token)
            if stop and any(s in tokenizer.decode(told[i], skip_special_tokens=True) for s in stop):
                yield i, told[i], "stop string"
            elif step + 1 == max_new_tokens:
                yield i, told[i], "length"
            else:
                keep.append(row)
        if not keep:
            return
        if len(keep) < len(live):
            index = torch.tensor(keep, device=device)
            live = [live[row] for row in keep]
            chosen, mask, places = chosen[index], mask[index], places[index]
            cache.batch_select_indices(index)
        ids = chosen[:, None]  # [live rows, 1]
        mask = F.pad(mask, (0, 1), value=1)
        places = places[:, -1:] + 1  # [live rows, 1]


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
    lengths = [len(h) + len(t) for h, t in zip(heads, tails, strict=True)]
    if max(lengths, default=0) > model.config.max_position_embeddings:
        raise UserError(f"a prompt with its continuation has {max(lengths)} tokens, more than the model's context")
    results, budget = [None] * len(prompts), min(batch_tokens, LOGITS // model.config.vocab_size)
    for group in batches(lengths, budget):
        ids, mask = pad([heads[i] + tails[i] for i in group], model.device, tokenizer.pad_token_id or 0, left=False)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # [rows, longest, vocabulary]
        for row, i in enumerate(group):
            first, last = len(heads[i]) - 1, len(heads[i]) + len(tails[i]) - 1
            target = ids[row, first + 1 : last + 1]  # [continuation]
            loss = F.cross_entropy(logits[row, first:last].float(), target, reduction="sum")
            results[i] = (loss.item(), len(tails[i]))
    return results
