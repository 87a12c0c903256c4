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
from layerswap.prefix import SharedCache, check_ordinary, forward, run_prefix, shared_attention

SHORTEST = 16  # tokens from which on a shared prefix is worth its own pass
PREFILL = 2048  # tokens of prompts that run through the model at once
LOGITS = 1 << 28  # logits of continuations held at once (1 GiB in float32)
SCORES = 1 << 28  # attention scores held at once, where torch's own kernel cannot be used
NGRAM, DRAFT = 3, 4  # tokens that must have come before, and how many that followed them are tried


@dataclass(frozen=True)
class Loss:
    """Negative log likelihood of a text after its prompt: ``nats`` in all, over its tokens and its bytes of UTF-8."""

    nats: float
    n_tokens: int
    n_bytes: int


@dataclass(frozen=True)
class Generation:
    """An answer without its end mark; ``stop`` says why it ended: "eos", "stop string" or "length".

    ``loss`` is that of the prompt's continuation, where one was given.
    """

    text: str
    n_tokens: int
    stop: str
    loss: Loss | None


def encode(tokenizer, texts, special, model, room):
    """Token ids of each text, with the tokenizer's special tokens if ``special``.

    UserError names the longest text and counts them all if some, with ``room`` (tokens a text) more, exceed the model's
    context: nothing is cut.
    """
    check_ordinary(model)
    encoded = tokenizer(texts, add_special_tokens=special).input_ids if texts else []
    if any(ids[-1:] == [tokenizer.eos_token_id] for ids in encoded if special):
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer ends every text; set add_eos_token to false")
    context, rope = model.config.max_position_embeddings, getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond that, what was calculated before would have to change
        context = min(context, rope["original_max_position_embeddings"])
    over = [(len(ids) + more, i) for i, (ids, more) in enumerate(zip(encoded, room, strict=True))]
    over = [(total, i) for total, i in over if total > context]
    if over:
        total, i = max(over)
        raise UserError(
            f"{len(over)} of {len(texts)} prompts do not fit the model's context of {context} tokens: the longest, "
            f"ending {texts[i][-40:]!r}, has {len(encoded[i])} and needs {room[i]} more"
        )
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise UserError(f"prompt {text[:40]!r} has no tokens, expected some")
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


def generate(model, tokenizer, prompts, max_new_tokens, stop=(), continuations=None, **settings):
    """Greedy answers, one ``Generation`` a prompt, in the order of ``prompts``; all else as in ``stream``."""
    answers = {}
    for batch in stream(model, tokenizer, prompts, max_new_tokens, stop, continuations, **settings):
        answers |= batch
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def stream(
    model, tokenizer, prompts, max_new_tokens, stop=(), continuations=None, *,
    templated=False, wanted=None, batch_tokens=16384, told=None,
):  # fmt: skip
    """Yield {index of the prompt: Generation}, a batch at a time.

    max_new_tokens: at most so many a prompt. stop: strings that end an answer. continuations: a text for each prompt,
    whose loss is measured on the way. templated: the prompts come from a chat template, which has put in every special
    token. wanted: indices that are asked for (default: all); batches are always made of all prompts, so that an answer
    never depends on what else was asked, and those without a wanted one are left out. batch_tokens: tokens of a batch
    beside the shared prefix, answers included; halved where the GPU's memory does not suffice. told: called with
    (index, Generation) as each answer ends. UserError for prompts that do not fit the model's context, and for none.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    if isinstance(stop, str) or "" in stop:
        raise UserError(f"stop is {stop!r}, expected a list of strings, none of them empty")
    tails = encode_tails(tokenizer, continuations) if continuations else [[] for _ in prompts]
    room = [max(max_new_tokens, len(tail)) for tail in tails]
    encoded = encode(tokenizer, prompts, not templated, model, room)
    shared = shared_length(encoded)
    groups = list(batches([len(ids) - shared + n for ids, n in zip(encoded, room, strict=True)], batch_tokens))
    groups = [group for group in groups if wanted is None or not wanted.isdisjoint(group)]
    prefix = run_prefix(model, encoded[0][:shared] if groups else [])
    with shared_attention(model):
        while groups:
            group = sorted(groups.pop(0), key=lambda i: -len(encoded[i]))
            rows, found, losses = [encoded[i][shared:] for i in group], {}, [None] * len(group)
            try:
                cache, last = prefill(model, prefix, rows)
                if continuations:
                    nats = follow(model, cache, last, rows, [tails[i] for i in group])
                    losses = [loss(n, tails[i], continuations[i]) for n, i in zip(nats, group, strict=True)]
                for row, tokens, reason in decode(
                    model, tokenizer, cache, last, rows, encoded[0][:shared], max_new_tokens, stop
                ):
                    text = tokenizer.decode(tokens, skip_special_tokens=True)
                    text = text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
                    found[group[row]] = Generation(text, len(tokens), reason, losses[row])
                    if told:
                        told(group[row], found[group[row]])
            except torch.cuda.OutOfMemoryError:
                if len(group) == 1:
                    raise UserError(
                        f"{model.device}: no memory for one prompt of {len(encoded[group[0]])} tokens"
                    ) from None
                found = None
            cache = last = None  # or the next batch would find less room
            if found is None:
                torch.cuda.empty_cache()  # here, where the error no longer holds what was tried
                groups[:0] = [group[: len(group) // 2], group[len(group) // 2 :]]
            else:
                yield found


def loss(nats, tail, text):
    return Loss(nats, len(tail), len(text.encode()))


def encode_tails(tokenizer, continuations):
    """Token ids of each continuation, without special tokens. UserError for one that has none."""
    tails = tokenizer(list(continuations), add_special_tokens=False).input_ids if continuations else []
    if not all(tails):
        raise UserError(f"continuation {continuations[tails.index([])]!r} has no tokens, expected some")
    return tails


def decode(model, tokenizer, cache, last, rows, known, max_new_tokens, stop):
    """Yield (row, answer's token ids without the end token, stop reason) as rows of one batch finish.

    cache, last: as ``prefill`` returns them for ``rows``. known: the prefix's token ids. What a row said before is
    likely to be said again: the tokens that followed its last three before are tried along with the next one, and
    those that the model would have chosen are kept. So a step may bring a row several tokens, and the same ones.
    """
    ends = end_tokens(model, tokenizer)
    tail = max((len(s.encode()) for s in stop), default=0) + 8  # tokens, of a byte or more, that hold what just ended
    heard, table = [[*row] for row in rows], followers(known, {}, NGRAM)  # what each row's next token comes after
    tables, answers = [followers(row, {}, NGRAM) for row in rows], [[] for _ in rows]
    live, done, fresh = list(range(len(rows))), set(), [[token] for token in last.argmax(-1).tolist()]
    while True:
        for row, tokens in zip(live, fresh, strict=True):
            for token in tokens:
                reason = None
                if token in ends:
                    reason = "eos"
                else:
                    answers[row].append(token)
                    text = tokenizer.decode(answers[row][-tail:], skip_special_tokens=True) if stop else ""
                    if any(s in text for s in stop):
                        reason = "stop string"
                    elif len(answers[row]) == max_new_tokens:
                        reason = "length"
                if reason:
                    done.add(row)
                    yield row, answers[row], reason
                    break
        if len(done) == len(rows):
            return
        if 4 * sum(row in done for row in live) >= len(live):  # to move the others costs more than a few idle rows
            cache.keep([i for i, row in enumerate(live) if row not in done])
            live = [row for row in live if row not in done]
        new, starts = [], []
        for row in live:
            before = len(heard[row])
            heard[row] = rows[row] + answers[row]
            starts.append(len(heard[row]) - 1)
            room = min(DRAFT, max_new_tokens - len(answers[row]) - 1)
            new.append([] if row in done else [heard[row][-1], *draft(heard[row], tables[row], known, table, room)])
            followers(heard[row], tables[row], before)
        chosen = iter(forward(model, cache, new, starts, every=True).argmax(-1).tolist())  # [new]
        fresh = [accepted(tried, [next(chosen) for _ in tried]) for tried in new]


def followers(tokens, table, start):
    """The table, filled: each run of NGRAM tokens from place ``start`` on -> the place of the token after it."""
    for i in range(max(start, NGRAM), len(tokens)):
        table[tuple(tokens[i - NGRAM : i])] = i
    return table


def draft(heard, table, known, known_table, room):
    """Up to ``room`` tokens that followed the last NGRAM before, in the row itself (as a loop) or in the prefix."""
    last = tuple(heard[-NGRAM:])
    if (at := table.get(last)) is not None:
        return [heard[at + i % (len(heard) - at)] for i in range(room)]
    at = known_table.get(last, len(known))
    return known[at : at + room]


def accepted(tried, chosen):
    """The model's next tokens, one or more, given those tried (the first is certain) and what it chose after each."""
    n = 0
    while n + 1 < len(tried) and tried[n + 1] == chosen[n]:
        n += 1
    return chosen[: n + 1]


def prefill(model, prefix, rows):
    """(cache, logits of the next token [rows, vocabulary]) of rows sorted longest first, after a prefix."""
    cache, last, budget = SharedCache(model, prefix, len(rows)), [], PREFILL
    if getattr(model.config, "attn_logit_softcapping", None):  # then all scores are held at once
        width = model.config.num_attention_heads * (cache.shared + len(rows[0]))
        budget = min(budget, SCORES // width)
    for part in batches([len(row) for row in rows], budget):
        new = [row if i in part else [] for i, row in enumerate(rows)]
        last.append(forward(model, cache, new, [0] * len(rows)))  # [rows of the part, vocabulary]
    return cache, torch.cat(last)


def follow(model, cache, last, rows, tails):
    """Nats of each row's tail (token ids, one or more) after what ``prefill`` returned for ``rows``, left as it was."""
    first = torch.tensor([tail[0] for tail in tails], device=last.device)  # [rows]
    nats = F.cross_entropy(last.float(), first, reduction="none").double()  # [rows]
    step = max(1, LOGITS // last.numel())
    for start in range(0, max(map(len, tails)) - 1, step):
        new = [tail[start : start + step] if len(tail) > start + step else tail[start:-1] for tail in tails]
        said = [tail[start + 1 : start + 1 + len(asked)] for tail, asked in zip(tails, new, strict=True)]
        logits = forward(model, cache, new, [len(row) + start for row in rows], every=True)  # [new, vocabulary]
        said = torch.tensor([token for tokens in said for token in tokens], device=last.device)  # [new]
        nats.index_add_(0, cache.row, F.cross_entropy(logits.float(), said, reduction="none").double())
    return nats.tolist()


def end_tokens(model, tokenizer):
    """The token ids that end an answer: the tokenizer's and those of the model's generation settings."""
    found = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])} - {None}


@torch.inference_mode()
def nll(model, tokenizer, prompts, continuations, batch_tokens=PREFILL):
    """The ``Loss`` of each continuation given its prompt.

    The prompt's tokens are those of the prompt alone, the continuation's those of the continuation alone, and the end
    of text is not scored. UserError for a pair that does not fit the model's context, and for a part without tokens.
    """
    tails = encode_tails(tokenizer, continuations)
    heads = encode(tokenizer, prompts, True, model, list(map(len, tails)))
    shared, losses = shared_length(heads), [None] * len(prompts)
    prefix = run_prefix(model, heads[0][:shared] if heads else [])
    with shared_attention(model):
        for group in batches([len(h) + len(t) - shared for h, t in zip(heads, tails, strict=True)], batch_tokens):
            group.sort(key=lambda i: -len(heads[i]))
            rows = [heads[i][shared:] for i in group]
            cache, last = prefill(model, prefix, rows)
            for i, nats in zip(group, follow(model, cache, last, rows, [tails[i] for i in group]), strict=True):
                losses[i] = loss(nats, tails[i], continuations[i])
    return losses
