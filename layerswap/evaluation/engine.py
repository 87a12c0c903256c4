"""The eval kernel: greedy answers and answer losses of many prompts at once, on transformers decoders.

What all prompts begin with runs through the model once (shared-prefix or cascade attention, see ``prefix_attention``).
The rest is sorted by length and batched by a token budget; finished rows leave their batch. Decoding verifies a draft
in each step, *prompt-lookup decoding* (Saxena 2023, "Prompt Lookup Decoding"): speculative decoding (Leviathan et al.,
arXiv 2211.17192) with n-grams of the context in place of a draft model. It is lossless under greedy decoding: the
tokens are those of ``model.generate`` (float32, one prompt at a time).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, StoppingCriteriaList

from layerswap.errors import UserError
from layerswap.evaluation.decode_steps import decode_steps
from layerswap.evaluation.prefix_attention import (
    SharedCache,
    context_length,
    forward,
    run_prefix,
    shared_attention,
    supports_shared_attention,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from layerswap.evaluation.prefix_attention import LayerKV

MIN_PREFIX = 16  # tokens from which on a shared prefix gets a pass of its own
PREFILL_TOKENS = 2048  # tokens of prompts that run through the model at once
MAX_LOGITS = 1 << 28  # logits of continuations held at once (1 GiB in float32)
MAX_SCORES = 1 << 28  # attention scores held at once, where torch's own kernel cannot be used
NGRAM = 3  # tokens looked up in the context, to draft those that followed them

NgramIndex = dict[tuple[int, ...], int]


@dataclass(frozen=True)
class Loss:
    """Negative log likelihood of a text after its prompt.

    Attributes:
        nats: sum over the text's tokens.
        n_tokens: tokens of the text.
        n_bytes: bytes of the text in UTF-8.
    """

    nats: float
    n_tokens: int
    n_bytes: int


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: without special tokens, cut before a stop string.
        n_tokens: tokens generated, without the end token.
        stop: why it ended: "eos", "stop string" or "length".
        loss: of the prompt's continuation, where one was passed.
    """

    text: str
    n_tokens: int
    stop: str
    loss: Loss | None


class GrowingAnswer:
    """The tokens of an answer, one after the other, until something ends it.

    Args:
        tokenizer: of the model.
        end_ids: token ids that end an answer.
        stop: strings that end it.
        max_new_tokens: of an answer.
        may_complete: token -> whether it may be the last of a stop string, so far; the same for all answers.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", end_ids: set[int], stop: Sequence[str], max_new_tokens: int,
        may_complete: dict[int, bool] | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.end_ids, self.stop, self.max_new_tokens = tokenizer, end_ids, stop, max_new_tokens
        self.may_complete = {} if may_complete is None else may_complete
        self.tokens: list[int] = []  # without the end token
        self.visible: list[int] = []  # without special tokens
        # Tokens, of a byte or more, that hold a stop string which has just been completed.
        self.n_tail = max((len(string.encode()) for string in stop), default=0) + 8
        self.special_ids = set(tokenizer.all_special_ids) if stop else set()
        self.last_characters = {string[-1] for string in stop}

    def add(self, token: int) -> str | None:
        """Add a token; returns why the answer ends with it ("eos", "stop string", "length"), or None."""
        if token in self.end_ids:
            return "eos"
        self.tokens.append(token)
        if self.stop and token not in self.special_ids:
            self.visible.append(token)
            if self.may_complete_stop(token):
                text = self.tokenizer.decode(self.visible[-self.n_tail :])
                if any(string in text for string in self.stop):
                    return "stop string"
        return "length" if len(self.tokens) == self.max_new_tokens else None

    def may_complete_stop(self, token: int) -> bool:
        """Whether a token can be the last one of a stop string: nearly all cannot, and need no look at the text."""
        if token not in self.may_complete:
            text = self.tokenizer.decode([token])  # alone it may be a piece of a character, or lose a blank
            self.may_complete[token] = "\ufffd" in text or any(c in text or c.isspace() for c in self.last_characters)
        return self.may_complete[token]

    def text(self) -> str:
        """The answer without special tokens, cut before a stop string."""
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text[: min((start for start in map(text.find, self.stop) if start >= 0), default=len(text))]


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], config: "PreTrainedConfig",
    token_budgets: Sequence[int], *, add_special_tokens: bool,
) -> list[list[int]]:  # fmt: skip
    """Token ids of each text.

    UserError names the longest text and counts them all if some, with ``token_budgets`` (tokens that follow each text),
    exceed the model's context: nothing is cut.
    """
    encoded = tokenizer(list(texts), add_special_tokens=add_special_tokens).input_ids if texts else []
    if any(ids[-1:] == [tokenizer.eos_token_id] for ids in encoded if add_special_tokens):
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer ends every text; set add_eos_token to false")
    config = config.get_text_config()
    context, rope = context_length(config), getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond that, what was calculated before would have to change
        context = min(context, rope["original_max_position_embeddings"])
    totals = [len(ids) + budget for ids, budget in zip(encoded, token_budgets, strict=True)]
    too_long = [(total, i) for i, total in enumerate(totals) if total > context]
    if too_long:
        _, i = max(too_long)
        raise UserError(
            f"{len(too_long)} of {len(texts)} prompts do not fit the model's context of {context} tokens: the longest, "
            f"ending {texts[i][-40:]!r}, has {len(encoded[i])} and needs {token_budgets[i]} more"
        )
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise UserError(f"prompt {text[:40]!r} has no tokens, expected some")
    return encoded


def check_continuations(n_continuations: int, n_prompts: int) -> None:
    """UserError unless there are as many of both."""
    if n_continuations != n_prompts:
        raise UserError(f"there are {n_continuations} continuations, expected one for each of {n_prompts} prompts")


def encode_continuations(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each continuation, without special tokens. UserError for one without tokens."""
    encoded = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    if not all(encoded):
        raise UserError(f"continuation {texts[encoded.index([])]!r} has no tokens, expected some")
    return encoded


def shared_length(encoded: Sequence[list[int]]) -> int:
    """How many first tokens all prompts share, short of the last one of each; 0 if fewer than ``MIN_PREFIX``."""
    length = len(commonprefix([ids[:-1] for ids in encoded])) if len(encoded) > 1 else 0
    return length if length >= MIN_PREFIX else 0


def batch_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, longest first, so that rows x longest stays within ``batch_tokens``."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and (len(group) + 1) * lengths[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], max_new_tokens: int,
    stop: Sequence[str] = (), continuations: Sequence[str] | None = None, *,
    templated: bool = False, batch_tokens: int = 16384, on_finish: Callable[[int, Generation], object] | None = None,
) -> list[Generation]:  # fmt: skip
    """Greedy answers, one per prompt, in the order of ``prompts``; arguments and errors as in ``stream``."""
    answers: dict[int, Generation] = {}
    for batch in stream(model, tokenizer, prompts, max_new_tokens, stop, continuations,
                        templated=templated, batch_tokens=batch_tokens, on_finish=on_finish):  # fmt: skip
        answers |= batch
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def stream(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], max_new_tokens: int,
    stop: Sequence[str] = (), continuations: Sequence[str] | None = None, *,
    templated: bool = False, indices: set[int] | None = None, batch_tokens: int = 16384,
    on_finish: Callable[[int, Generation], object] | None = None,
) -> Iterator[dict[int, Generation]]:  # fmt: skip
    """Greedy answers to prompts, a batch at a time.

    Args:
        model: a decoder. One whose attention is not transformers' ordinary one, full or with a sliding window, answers
            one prompt at a time.
        tokenizer: the model's.
        prompts: texts.
        max_new_tokens: of each answer.
        stop: strings that end an answer.
        continuations: a text for each prompt, whose loss is measured on the way.
        templated: the prompts come from a chat template, which has put in every special token.
        indices: prompts to answer (None: all). Batches are always made of all prompts, so that an answer does not
            depend on which others are requested; batches without a requested prompt are left out.
        batch_tokens: tokens of a batch beside the shared prefix, answers included; a batch that does not fit the GPU's
            memory is halved.
        on_finish: called with (index, answer) as each answer ends; again where a halved batch answers it once more.

    Yields:
        {index of the prompt: its answer} of a batch.

    Raises:
        UserError: no new tokens or a bad ``stop``; continuations that are not one per prompt; texts without tokens,
            or beyond the model's context; a tokenizer that ends every text; too little memory for the shared prefix or
            for one prompt.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    if isinstance(stop, str) or "" in stop:
        raise UserError(f"stop is {stop!r}, expected a list of strings, none of them empty")
    continuation_ids: list[list[int]] = [[] for _ in prompts]
    if continuations is not None:
        check_continuations(len(continuations), len(prompts))
        continuation_ids = encode_continuations(tokenizer, continuations)
    token_budgets = [max(max_new_tokens, len(ids)) for ids in continuation_ids]
    encoded = encode_prompts(tokenizer, prompts, model.config, token_budgets, add_special_tokens=not templated)
    requested = set(range(len(prompts))) if indices is None else indices

    def to_generation(i: int, answer: GrowingAnswer, reason: str, nats: float) -> Generation:
        loss = None
        if continuations is not None:
            loss = Loss(nats, len(continuation_ids[i]), len(continuations[i].encode()))
        generation = Generation(answer.text(), len(answer.tokens), reason, loss)
        if on_finish:
            on_finish(i, generation)
        return generation

    if not supports_shared_attention(model):
        for i in sorted(requested):
            answer, reason = answer_alone(model, tokenizer, encoded[i], max_new_tokens, stop)
            yield {i: to_generation(i, answer, reason, continuation_nats(model, encoded[i], continuation_ids[i]))}
        return
    shared = shared_length(encoded)
    lengths = [len(ids) - shared + budget for ids, budget in zip(encoded, token_budgets, strict=True)]
    groups = [group for group in batch_by_length(lengths, batch_tokens) if not requested.isdisjoint(group)]
    prefix_ids = encoded[0][:shared] if groups else []
    prefix = run_prefix(model, prefix_ids)

    def answer_batch(group: Sequence[int]) -> dict[int, Generation]:
        suffixes, nats = [encoded[i][shared:] for i in group], [0.0] * len(group)
        cache, logits = prefill(model, prefix, suffixes)
        if continuations is not None:
            continuations_of_rows = [[continuation_ids[i]] for i in group]
            nats = [first for (first,) in score_continuations(model, cache, logits, suffixes, continuations_of_rows)]
        decoded = decode(model, tokenizer, cache, logits, suffixes, prefix_ids, max_new_tokens, stop)
        return {group[row]: to_generation(group[row], answer, reason, nats[row]) for row, answer, reason in decoded}

    with shared_attention(model):
        while groups:
            group = sorted(groups.pop(0), key=lambda i: -len(encoded[i]))
            try:
                batch = answer_batch(group)
            except torch.cuda.OutOfMemoryError:
                if len(group) == 1:
                    length = len(encoded[group[0]])
                    raise UserError(f"{model.device}: no memory for one prompt of {length} tokens") from None
                batch = {}
            if batch:
                yield batch
            else:
                torch.cuda.empty_cache()  # here, where the error no longer holds the tensors of the batch
                groups[:0] = [group[: len(group) // 2], group[len(group) // 2 :]]


def decode(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cache: SharedCache, logits: Tensor,
    suffixes: Sequence[Sequence[int]], prefix_ids: Sequence[int], max_new_tokens: int, stop: Sequence[str],
) -> Iterator[tuple[int, GrowingAnswer, str]]:  # fmt: skip
    """Greedy prompt-lookup decoding of one batch.

    Each step runs the next token of a row together with a draft: the tokens that followed the same ``NGRAM`` tokens
    earlier in its context (what an answer repeats, such as names and numbers, is drafted well). The drafted tokens that
    the model would have chosen itself are kept, so a step brings a row one or more tokens, and always the same ones as
    decoding token by token (speculative decoding, arXiv 2211.17192, with greedy verification).

    Args:
        cache, logits: as ``prefill`` returns them for ``suffixes``.
        suffixes: token ids of each prompt after the shared prefix.
        prefix_ids: token ids of the shared prefix.
        max_new_tokens, stop: as in ``stream``.

    Yields:
        (row, its answer, stop reason) as the rows finish.
    """
    end_ids = end_tokens(model, tokenizer)
    prefix_index = ngram_index(prefix_ids, {}, 0)
    contexts = [[*suffix] for suffix in suffixes]  # token ids of each row, without the prefix
    row_indices = [ngram_index(suffix, {}, 0) for suffix in suffixes]
    may_complete: dict[int, bool] = {}
    answers = [GrowingAnswer(tokenizer, end_ids, stop, max_new_tokens, may_complete) for _ in suffixes]
    active_rows, finished = list(range(len(suffixes))), set()
    new_tokens: list[Sequence[int]] = [[token] for token in logits.argmax(-1).tolist()]
    steps = decode_steps(model, cache)
    while True:
        for row, tokens in zip(active_rows, new_tokens, strict=True):
            n_before = len(contexts[row])
            contexts[row] += tokens
            ngram_index(contexts[row], row_indices[row], n_before)
            for token in tokens:
                if reason := answers[row].add(token):
                    finished.add(row)
                    yield row, answers[row], reason
                    break
        if len(finished) == len(suffixes):
            return
        n_idle = sum(row in finished for row in active_rows)
        if n_idle >= steps.max_idle * len(active_rows):  # to move the others costs more than a few idle rows
            cache.keep_rows([i for i, row in enumerate(active_rows) if row not in finished])
            active_rows = [row for row in active_rows if row not in finished]
        inputs: list[list[int]] = []
        starts = []
        for row in active_rows:
            starts.append(len(contexts[row]) - 1)
            if row in finished:
                inputs.append([])
            else:
                token_budget = min(steps.n_slots, max_new_tokens - len(answers[row].tokens)) - 1
                drafted = draft(contexts[row], row_indices[row], prefix_ids, prefix_index, token_budget)
                inputs.append([contexts[row][-1], *drafted])
        new_tokens = list(map(verify_draft, inputs, steps.predict(inputs, starts)))


def ngram_index(tokens: Sequence[int], index: NgramIndex, start: int) -> NgramIndex:
    """Add to ``index``, and return it: each ``NGRAM`` tokens from place ``start`` on -> the place after them."""
    for i in range(max(start, NGRAM), len(tokens)):
        index[tuple(tokens[i - NGRAM : i])] = i
    return index


def draft(
    context: Sequence[int], index: NgramIndex, prefix_ids: Sequence[int], prefix_index: NgramIndex, token_budget: int
) -> Sequence[int]:
    """Prompt lookup: up to ``token_budget`` tokens that followed the context's last ``NGRAM`` when they came before.

    The row itself is looked up first (continued as a loop if it ends), then the prefix.
    """
    last = tuple(context[-NGRAM:])
    if (start := index.get(last)) is not None:
        return [context[start + i % (len(context) - start)] for i in range(token_budget)]
    start = prefix_index.get(last, len(prefix_ids))
    return prefix_ids[start : start + token_budget]


def verify_draft(tokens: Sequence[int], predicted: Sequence[int]) -> Sequence[int]:
    """The next tokens, one or more: as many as the model agrees with, and its own after them.

    Args:
        tokens: the row's last token, which is certain, and the draft.
        predicted: the model's greedy choice after each of ``tokens``.
    """
    n_accepted = 0
    while n_accepted + 1 < len(tokens) and tokens[n_accepted + 1] == predicted[n_accepted]:
        n_accepted += 1
    return predicted[: n_accepted + 1]


def prefill(
    model: "PreTrainedModel", prefix: "Sequence[LayerKV]", suffixes: Sequence[Sequence[int]]
) -> tuple[SharedCache, Tensor]:
    """The cache of suffixes, sorted longest first, after a prefix; and logits of the next token [rows, vocabulary]."""
    cache, logits, batch_tokens = SharedCache(model, prefix, len(suffixes)), [], PREFILL_TOKENS
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):  # then all scores are held at once
        width = config.num_attention_heads * (cache.prefix_length + len(suffixes[0]))
        batch_tokens = min(batch_tokens, MAX_SCORES // width)
    for group in batch_by_length([len(suffix) for suffix in suffixes], batch_tokens):
        new_ids = [suffix if row in group else [] for row, suffix in enumerate(suffixes)]
        logits.append(forward(model, cache, new_ids, [0] * len(suffixes)))  # [rows of the group, vocabulary]
    return cache, torch.cat(logits)


def score_continuations(
    model: "PreTrainedModel", cache: SharedCache, logits: Tensor, suffixes: Sequence[Sequence[int]],
    continuation_ids: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:  # fmt: skip
    """Nats of each row's continuations, teacher-forced.

    Args:
        cache, logits: as ``prefill`` returned them for ``suffixes``; decoding may start from them afterwards.
        suffixes: token ids of each prompt after the shared prefix.
        continuation_ids: of each row one or more, of one token or more; those of a row differ in their last token only.
    """
    n_most = max(map(len, continuation_ids))
    nats = torch.zeros(len(suffixes) * n_most, dtype=torch.float64, device=logits.device)  # [rows * most of a row]

    def add_losses(predictions: Tensor, places: Sequence[tuple[int, int]]) -> None:
        """predictions [new, vocabulary]; places: (row, which token of its continuations) of each of them."""
        targets = torch.tensor([
            (i, ids[place], row * n_most + which)
            for i, (row, place) in enumerate(places)
            for which, ids in enumerate(continuation_ids[row])
        ], device=nats.device)  # [targets, 3]  # fmt: skip
        log_probabilities = F.log_softmax(predictions.float(), -1)[targets[:, 0], targets[:, 1]]  # [targets]
        nats.index_add_(0, targets[:, 2], -log_probabilities.double())

    add_losses(logits, [(row, 0) for row in range(len(suffixes))])
    step = max(1, MAX_LOGITS // logits.numel())
    for start in range(0, max(len(ids) for ids, *_ in continuation_ids) - 1, step):
        new_ids = [ids[start : min(start + step, len(ids) - 1)] for ids, *_ in continuation_ids]
        starts = [len(suffix) + start for suffix in suffixes]
        predictions = forward(model, cache, new_ids, starts, every_token=True)  # [new, vocabulary]
        add_losses(predictions, [(row, start + 1 + i) for row, ids in enumerate(new_ids) for i in range(len(ids))])
    return [row[: len(ids)] for row, ids in zip(nats.view(-1, n_most).tolist(), continuation_ids, strict=True)]


def answer_alone(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], max_new_tokens: int,
    stop: Sequence[str],
) -> tuple[GrowingAnswer, str]:  # fmt: skip
    """The answer to one prompt, and why it ended, by transformers' own generate: slow, and right for every model."""
    answer, reason = GrowingAnswer(tokenizer, end_tokens(model, tokenizer), stop, max_new_tokens), None

    def has_ended(ids: Tensor, scores: Tensor, **settings: Any) -> Tensor:  # ids [1, length]
        nonlocal reason
        reason = answer.add(int(ids[0, -1]))
        return torch.full((1,), reason is not None, device=ids.device)

    prompt = torch.tensor([[*ids]], device=model.device)  # [1, length]
    own_settings, model.generation_config = model.generation_config, GenerationConfig()  # they may sample, or penalise
    try:
        settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)
        criteria = StoppingCriteriaList([has_ended])
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, stopping_criteria=criteria
        )
    finally:
        model.generation_config = own_settings
    assert reason is not None  # max_new_tokens bounds both
    return answer, reason


def continuation_nats(model: "PreTrainedModel", ids: Sequence[int], continuation_ids: Sequence[int]) -> float:
    """Nats of one prompt's continuation by the model's own attention; 0 of none."""
    if not continuation_ids:
        return 0.0
    line = torch.tensor([[*ids, *continuation_ids]], device=model.device)  # [1, length]
    logits = model(input_ids=line).logits[0, len(ids) - 1 : -1]  # [continuation, vocabulary]
    return F.cross_entropy(logits.float(), line[0, len(ids) :], reduction="none").double().sum().item()


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The token ids that end an answer: the tokenizer's and those of the model's generation settings."""
    eos = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}


@torch.inference_mode()
def nll(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str],
    continuations: Sequence[str], batch_tokens: int = PREFILL_TOKENS,
) -> list[Loss]:  # fmt: skip
    """The loss of each continuation given its prompt: ``alternatives_nll`` with one text a prompt."""
    alternatives = [[text] for text in continuations]
    return [loss for (loss,) in alternatives_nll(model, tokenizer, prompts, alternatives, batch_tokens)]


@torch.inference_mode()
def alternatives_nll(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str],
    alternatives: Sequence[Sequence[str]], batch_tokens: int = PREFILL_TOKENS, *, templated: bool = False,
) -> list[list[Loss]]:  # fmt: skip
    """The losses of several texts given the same prompt, as of the choices of lm-eval's multiple-choice tasks.

    The prompt's tokens are those of the prompt alone, a text's those of the text alone, and the end of text is not
    scored. The prompt runs through the model once, and texts that differ in their last token only once together.

    Args:
        model, tokenizer: as in ``stream``.
        prompts: texts.
        alternatives: texts for each prompt, one or more.
        batch_tokens: of a batch beside the shared prefix.
        templated: as in ``stream``.

    Returns:
        For each prompt the losses of its texts, in their order.

    Raises:
        UserError: as ``stream`` for prompts, continuations, tokenizer and model; too little memory for the shared
            prefix or a batch.
    """
    check_continuations(len(alternatives), len(prompts))
    encoded = iter(encode_continuations(tokenizer, [text for texts in alternatives for text in texts]))
    text_ids = [[next(encoded) for _ in texts] for texts in alternatives]
    token_budgets = [max(map(len, ids)) for ids in text_ids]
    prompt_ids = encode_prompts(tokenizer, prompts, model.config, token_budgets, add_special_tokens=not templated)
    if not supports_shared_attention(model):
        return [
            [Loss(continuation_nats(model, prompt, ids), len(ids), len(text.encode()))
             for ids, text in zip(ids_of_texts, texts, strict=True)]
            for prompt, ids_of_texts, texts in zip(prompt_ids, text_ids, alternatives, strict=True)
        ]  # fmt: skip
    shared, nats = shared_length(prompt_ids), [[0.0] * len(texts) for texts in alternatives]
    prefix = run_prefix(model, prompt_ids[0][:shared] if prompt_ids else [])
    heads = list(map(alike_but_for_the_last, text_ids))  # each has a row of its own
    lengths = [
        (len(ids) + budget - shared) * len(groups)
        for ids, budget, groups in zip(prompt_ids, token_budgets, heads, strict=True)
    ]
    with shared_attention(model):
        for group in batch_by_length(lengths, batch_tokens):
            group.sort(key=lambda i: -len(prompt_ids[i]))
            suffixes = [prompt_ids[i][shared:] for i in group]
            rows = [(row, which) for row, i in enumerate(group) for which in heads[i]]  # which of its texts
            try:
                cache, logits = prefill(model, prefix, suffixes)
                if len(rows) > len(group):
                    cache.keep_rows([row for row, _ in rows])
                    logits = logits[[row for row, _ in rows]]  # [rows, vocabulary]
                scored = score_continuations(
                    model, cache, logits, [suffixes[row] for row, _ in rows],
                    [[text_ids[group[row]][k] for k in which] for row, which in rows],
                )  # fmt: skip
            except torch.cuda.OutOfMemoryError:
                raise UserError(f"{model.device}: no memory for {len(group)} texts; lower batch_tokens") from None
            for (row, which), totals in zip(rows, scored, strict=True):
                for k, total in zip(which, totals, strict=True):
                    nats[group[row]][k] = total
    return [
        [Loss(total, len(ids), len(text.encode())) for total, ids, text in zip(*of_prompt, strict=True)]
        for of_prompt in zip(nats, text_ids, alternatives, strict=True)
    ]


def alike_but_for_the_last(text_ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of the texts, together where all tokens but the last are the same."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, ids in enumerate(text_ids):
        groups.setdefault(tuple(ids[:-1]), []).append(k)
    return list(groups.values())
