"""Scored answers, kept: a result is known by the weights, the prompt and the decoding that made it.

Every answer is one line of a JSONL store, appended and flushed to the disk; a condition that was scored before is read,
not computed, and an interrupted run goes on where it stopped. A path plays no part in the key.
"""

import fcntl
import json
import os
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from layerswap import mgsm, stats
from layerswap.paths import UserError, digest, shown

STORED = "stop n_tokens text answer_language answer_nll answer_tokens answer_bytes".split()
SCORED = "value correct rule wrong_language lm_eval_strict lm_eval_flexible".split()
TODAY = "26 Jul 2024"  # for chat templates that tell the date, as Llama's do: what is asked must not change by the day
COLUMNS = ["condition", "language", "style", "id", "gold", *SCORED, *STORED]


class Store:
    """The answers of a JSONL file by key, ``rows``. Several processes may append to it at once."""

    def __init__(self, path):
        self.path, self.rows, self.seen = Path(path), {}, 0
        self.waiting, self.flushed = [], time.monotonic()
        self.read()

    def read(self):
        """Take in the lines that were added since the last time. A line that a crash tore is passed over."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self.seen)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.seen += len(line)
                try:
                    row = json.loads(line)
                    self.rows.setdefault(row["key"], row)
                except (ValueError, KeyError, TypeError):
                    continue

    def check(self):
        """UserError unless the file can be written to; before any work is done for it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there = self.path.is_file() or not self.path.exists()
        if not there or not os.access(self.path if self.path.exists() else self.path.parent, os.W_OK):
            raise UserError(f"{self.path}: answers cannot be written there")

    def add(self, row):
        """Append a row, with others of the same second."""
        self.waiting.append(row)
        if time.monotonic() - self.flushed > 1:
            self.flush()

    def flush(self):
        """Append the rows that wait and whose key is not there yet, as whole lines, and flush them to the disk."""
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a torn line
                file.write(b"\n")
                file.flush()
            self.read()
            new = {}
            for row in self.waiting:
                if row["key"] not in self.rows:
                    new.setdefault(row["key"], row)
            lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in new.values())
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
            self.read()
        self.waiting, self.flushed = [], time.monotonic()


def evaluate(conditions, problems, shots, store, *, style, max_new_tokens, batch_tokens=16384):
    """One row a (condition, problem), columns ``COLUMNS``; ``value`` is a string or None, answer_nll in nats.

    conditions: (label, key of weights and tokenizer, load); load() -> (model, tokenizer) is called only if an answer is
    missing. problems: of one language. shots: solved problems before each question. store: the answers' path, or a
    ``Store``. style: as in ``mgsm.prompt``. Decoding is greedy, at most ``max_new_tokens`` tokens. The answer loss is
    that of the worked answer in the lab and of the bare number on MGSM. UserError for prompts that do not fit the
    model's context and for a tokenizer without the chat template that style "chat" needs.
    """
    store, frame = store if isinstance(store, Store) else Store(store), []
    stop = mgsm.stops(problems[0].language, style, bool(shots))
    prompts = [mgsm.prompt(problem, shots, style) for problem in problems]
    golds = [mgsm.gold(problem, style) for problem in problems]
    for label, weights, load in conditions:
        decoding = [weights, style == "chat", max_new_tokens, list(stop)]
        keys = [digest([*decoding, prompt, gold]) for prompt, gold in zip(prompts, golds, strict=True)]
        missing = {i for i, key in enumerate(keys) if key not in store.rows}
        if missing:
            store.check()
            about = {"language": problems[0].language, "style": style, "shots": len(shots), "weights": weights}
            with Progress(label, problems, missing) as bar:

                def told(i, answer, bar=bar, about=about, keys=keys):
                    bar.told(i, answer)
                    store.add({"key": keys[i], "id": problems[i].id, **about, **stored(answer)})

                model, tokenizer = load()
                texts = [in_chat(tokenizer, prompt) for prompt in prompts] if style == "chat" else prompts
                for _ in stream(model, tokenizer, texts, max_new_tokens, stop, golds, templated=style == "chat",
                                wanted=missing, batch_tokens=batch_tokens, told=told):  # fmt: skip
                    store.flush()
        rows = [store.rows[key] for key in keys]
        frame += [score(label, problem, row, style) for problem, row in zip(problems, rows, strict=True)]
    return pd.DataFrame(frame, columns=COLUMNS).astype({"value": "str", "answer_language": "str"})


def stream(*arguments, **settings):
    """``generate.stream``, which a finished evaluation does without: it needs torch."""
    from layerswap import generate

    return generate.stream(*arguments, **settings)


def in_chat(tokenizer, prompt):
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
        raise UserError(f"{tokenizer.name_or_path}: the chat template fails ({' '.join(str(error).split())})") from None


def stored(answer):
    """What is stored of a ``Generation``."""
    return {
        "text": answer.text, "stop": answer.stop, "n_tokens": answer.n_tokens,
        "answer_language": mgsm.language_of(answer.text), "answer_nll": answer.loss.nats,
        "answer_tokens": answer.loss.n_tokens, "answer_bytes": answer.loss.n_bytes,
    }  # fmt: skip


class Progress(tqdm):
    """A bar over missing answers where somebody looks, with tokens a second and the accuracy so far."""

    def __init__(self, label, problems, missing):
        super().__init__(total=len(missing), desc=f"{label}, {problems[0].language}", **shown())
        self.problems, self.missing = problems, set(missing)
        self.right, self.tokens, self.begun = 0, 0, time.monotonic()

    def told(self, i, answer):
        """Take note that the problem with index ``i`` is answered."""
        problem = self.problems[i]
        if self.disable or i not in self.missing:
            return
        self.missing.discard(i)
        self.right += mgsm.extract(answer.text, problem.language).value == problem.number
        self.tokens += answer.n_tokens
        rate = self.tokens / max(time.monotonic() - self.begun, 1e-9)
        self.set_postfix_str(f"{rate:.0f} tok/s, {self.right / (self.n + 1):.0%} right", refresh=False)
        self.update()


def score(label, problem, row, style):
    """The result row of a stored answer: what it says, and whether it is the problem's number."""
    found = mgsm.extract(row["text"], problem.language)
    strict, flexible = mgsm.lm_eval_scores(row["text"], problem.language, problem.number, style)
    return {
        "condition": label, "language": problem.language, "style": style, "id": problem.id, "gold": problem.number,
        "value": None if found.value is None else str(found.value), "correct": found.value == problem.number,
        "rule": found.rule, "lm_eval_strict": strict, "lm_eval_flexible": flexible,
        "wrong_language": row["answer_language"] not in (None, mgsm.spoken(problem.language, style)),
        **{name: row[name] for name in STORED},
    }  # fmt: skip


def counts(frame, by=("condition", "language")):
    """``stats.accuracy`` of each group, and how many answers were cut off at the token limit (``truncated``), had no
    number (``no_answer``), were in another language than asked (``wrong_language``), ended by eos or at a stop string,
    and are right by lm-eval's strict and flexible filters; nll_token and nll_byte: the answer loss in nats a token and
    a byte over all problems.
    """
    table = stats.accuracy(frame, list(by))
    groups = frame.assign(
        truncated=frame.stop == "length", no_answer=frame.value.isna(), eos=frame.stop == "eos",
        stop_string=frame.stop == "stop string",
    ).groupby(list(by), sort=False)  # fmt: skip
    for name in ("truncated", "no_answer", "wrong_language", "eos", "stop_string", "lm_eval_strict",
                 "lm_eval_flexible"):  # fmt: skip
        table[name] = groups[name].sum().to_numpy()
    sums = groups[["answer_nll", "answer_tokens", "answer_bytes"]].sum()
    return table.assign(nll_token=(sums.answer_nll / sums.answer_tokens).to_numpy(),
                        nll_byte=(sums.answer_nll / sums.answer_bytes).to_numpy())  # fmt: skip
