"""Scored answers: a row a model and problem with the number it gave, why it ended, and the loss of the reference text.

Answers are kept under a key of the weights, the prompt and the decoding, so a second run computes nothing.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from layerswap.errors import UserError, one_line
from layerswap.evaluation.answers import RECORD, AnswerCache
from layerswap.files import json_digest
from layerswap.progress import progress_options
from layerswap.tasks.base import Problem, Task
from layerswap.tasks.extraction import language_identifier, lm_eval_scores

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from layerswap.evaluation.engine import Generation

SCORES = "value correct whole_solution rule wrong_language lm_eval_strict lm_eval_flexible".split()
COLUMNS = ["condition", "language", "style", "stops", "id", "gold", *SCORES, *RECORD]
TODAY = "26 Jul 2024"  # for chat templates that tell the date, as Llama's do: a prompt must not change by the day


class ScoredModel(NamedTuple):
    """A model to be scored.

    Attributes:
        name: the ``condition`` of its rows; plays no part in the keys of its answers.
        digest: of its weights, dtype and tokenizer.
        load: returns (model, tokenizer); called only if an answer is missing from the cache.
        check: raises UserError if what was loaded is not what has the digest any more; called before answers are kept.
        has_chat_template: whether it is an instruct model, whose answers have paragraphs: no blank line ends them.
    """

    name: str
    digest: str
    load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"
    check: Callable[[], None] = lambda: None
    has_chat_template: bool = False


def evaluate(
    models: Iterable[ScoredModel], task: Task, problems: Sequence[Problem], exemplars: Sequence[Problem],
    cache: AnswerCache | str | Path, *, style: str, max_new_tokens: int, batch_tokens: int = 16384,
    stops: Sequence[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Score models on problems of one language: a row a (model, problem) with the columns ``COLUMNS``.

    Args:
        models: what is scored.
        task: the benchmark that the problems are of.
        problems: of one language.
        exemplars: solved problems before each question.
        cache: the answers' file, or what holds them already.
        style: of the prompts, one of the task's.
        max_new_tokens: of an answer; decoding is greedy.
        batch_tokens: as in ``engine.stream``.
        stops: strings that end an answer; None: the task's for this model.

    Returns:
        Among the columns: ``stops``, what may end an answer beside the end token; ``value``, the number as a string, or
        NaN; ``correct``, whether it is the problem's; ``whole_solution``, whether each step before it is right too
        (None: the task cannot tell); ``rule``, what found it; ``stop``, why the answer ended; ``answer_nll``, the loss
        in nats of the task's reference text.

    Raises:
        UserError: no problems, a file of something else than answers, prompts that do not fit a model's context, or a
            tokenizer without the chat template that style "chat" needs.
    """
    if not problems:
        raise UserError("problems is empty, expected one or more")
    cache, records = cache if isinstance(cache, AnswerCache) else AnswerCache(cache), []
    language, is_chat = problems[0].language, style == "chat"
    prompts = [task.prompt(problem, exemplars, style) for problem in problems]
    references = [task.reference_text(problem, style) for problem in problems]
    for model in models:
        stop = task.stops(language, style, bool(exemplars) and not model.has_chat_template) if stops is None else stops
        decoding = [model.digest, is_chat, max_new_tokens, list(stop)]
        keys = [json_digest([*decoding, *texts]) for texts in zip(prompts, references, strict=True)]
        missing = {i for i, key in enumerate(keys) if key not in cache.rows}
        if missing:
            from layerswap.evaluation.engine import stream  # here: a finished evaluation needs no torch

            cache.check()
            language_identifier()  # it needs a temporary file
            details = {"language": language, "style": style, "shots": len(exemplars), "weights": model.digest}
            with AnswerProgress(model.name, task, problems, missing) as progress:

                def on_finish(
                    i: int, answer: "Generation", progress: AnswerProgress = progress,
                    details: dict[str, Any] = details, keys: list[str] = keys,
                ) -> None:  # fmt: skip
                    progress.count(i, answer)
                    cache.add({"key": keys[i], "id": problems[i].id, **details, **to_record(answer, task)})

                network, tokenizer = model.load()
                cache.check_source = model.check
                texts = [apply_template(tokenizer, prompt) for prompt in prompts] if is_chat else prompts
                try:
                    for _ in stream(network, tokenizer, texts, max_new_tokens, stop, references, templated=is_chat,
                                    indices=missing, batch_tokens=batch_tokens, on_finish=on_finish):  # fmt: skip
                        cache.flush()
                finally:
                    cache.flush()
        records += [
            score_answer(model.name, task, problem, cache.rows[key], style)
            | {"stops": " or ".join(string.replace("\n\n", "a blank line") for string in stop)}
            for problem, key in zip(problems, keys, strict=True)
        ]
    return pd.DataFrame(records, columns=COLUMNS).astype({"value": "str", "answer_language": "str"})


def check_prompts(
    config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase", task: Task, problems: Sequence[Problem],
    exemplars: Sequence[Problem], *, style: str, max_new_tokens: int,
) -> None:  # fmt: skip
    """UserError unless a model could be given the prompts that ``evaluate`` makes of these; no weights are needed.

    That is what ``evaluate`` says too late of the second of many models: a chat template that fails, or prompts that do
    not fit the context.
    """
    from layerswap.evaluation.engine import encode_continuations, encode_prompts

    prompts, is_chat = [task.prompt(problem, exemplars, style) for problem in problems], style == "chat"
    texts = [apply_template(tokenizer, prompt) for prompt in prompts] if is_chat else prompts
    references = encode_continuations(tokenizer, [task.reference_text(p, style) for p in problems])
    token_budgets = [max(max_new_tokens, len(ids)) for ids in references]
    encode_prompts(tokenizer, texts, config, token_budgets, add_special_tokens=not is_chat)


def apply_template(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> str:
    """A prompt in the tokenizer's chat template. UserError if it has none, or one that fails."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template, which style chat needs")
    clock = "{%- macro strftime_now(form) -%}" + TODAY + "{%- endmacro -%}"
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], chat_template=clock + tokenizer.get_chat_template(),
            tokenize=False, add_generation_prompt=True, date_string=TODAY,
        )  # fmt: skip
    except (TemplateError, ValueError) as error:
        raise UserError(f"{tokenizer.name_or_path}: the chat template fails ({one_line(error)})") from None


def to_record(answer: "Generation", task: Task) -> dict[str, Any]:
    """What is kept of an answer that was generated with a continuation."""
    loss = answer.loss
    assert loss is not None
    return {
        "text": answer.text, "stop": answer.stop, "n_tokens": answer.n_tokens,
        "answer_language": task.answer_language(answer.text), "answer_nll": loss.nats,
        "answer_tokens": loss.n_tokens, "answer_bytes": loss.n_bytes,
    }  # fmt: skip


class AnswerProgress(tqdm):
    """A bar over missing answers, with tokens a second and the accuracy so far."""

    def __init__(self, name: str, task: Task, problems: Sequence[Problem], missing: Iterable[int]) -> None:
        self.task, self.problems, self.missing = task, problems, set(missing)
        super().__init__(total=len(self.missing), desc=f"{name}, {problems[0].language}", **progress_options())
        self.n_correct, self.n_tokens, self.started = 0, 0, time.monotonic()

    def count(self, i: int, answer: "Generation") -> None:
        """Take note that the problem with index ``i`` is answered."""
        problem = self.problems[i]
        if self.disable or i not in self.missing:
            return
        self.missing.discard(i)
        self.n_correct += self.task.extract(answer.text, problem.language).value == problem.number
        self.n_tokens += answer.n_tokens
        rate = self.n_tokens / max(time.monotonic() - self.started, 1e-9)
        self.set_postfix_str(f"{rate:.0f} tok/s, {self.n_correct / (self.n + 1):.0%} right", refresh=False)
        self.update()


def score_answer(name: str, task: Task, problem: Problem, record: dict[str, Any], style: str) -> dict[str, Any]:
    """The result row of a kept answer: what it says, and whether it is the problem's number."""
    extraction = task.extract(record["text"], problem.language)
    strict, flexible = lm_eval_scores(record["text"], problem.language, problem.number, style)
    return {
        "condition": name, "language": problem.language, "style": style, "id": problem.id, "gold": problem.number,
        "value": None if extraction.value is None else str(extraction.value),
        "correct": extraction.value == problem.number, "rule": extraction.rule,
        "whole_solution": task.is_whole_solution(problem, record["text"]),
        "lm_eval_strict": strict, "lm_eval_flexible": flexible,
        "wrong_language": record["answer_language"] not in (None, task.reply_language(problem.language, style)),
        **{field: record[field] for field in RECORD},
    }  # fmt: skip
