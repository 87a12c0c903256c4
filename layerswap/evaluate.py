"""Scored answers, kept: a result is known by the weights, the prompt and the decoding that made it.

Every answer is one line of a JSONL store, appended and flushed to the disk; a condition that was scored before is read,
not computed, and an interrupted run goes on where it stopped. A path plays no part in the key.
"""

import fcntl
import json
import os

import pandas as pd
from tqdm import tqdm

from layerswap import mgsm
from layerswap.generate import generate, nll
from layerswap.paths import digest

COLUMNS = "condition language id gold value correct rule stop n_tokens text answer_nll answer_tokens".split()
CHUNK = 512  # problems between two appends


def read_store(path):
    """key -> stored answer. A last line that a crash tore is left out."""
    answers = {}
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                answers[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                continue
    return answers


def append(path, rows):
    """Append rows to the store as whole lines, flushed; a torn line before them is closed. Safe among processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        file.write(b"\n" * bool(torn) + lines.encode())
        file.flush()
        os.fsync(file.fileno())


def evaluate(conditions, tokenizer, problems, shots, store, *, style, max_new_tokens):
    """One row a (condition, problem), columns ``COLUMNS``; ``value`` is a string or None, answer_nll in nats.

    conditions: (label, key of the weights, load); load() -> model is called only if an answer is missing. shots: solved
    problems before each question. style: as in ``mgsm.prompt``. Decoding is greedy, at most ``max_new_tokens`` tokens.
    The answer loss is that of the worked answer in the lab and of the bare number on MGSM.
    """
    known, frame = read_store(store), []
    stop = mgsm.stops(problems[0].language, style)
    prompts = [mgsm.prompt(problem, shots, style) for problem in problems]
    golds = [mgsm.gold(problem, style) for problem in problems]
    for label, weights, load in conditions:
        decoding = [weights, max_new_tokens, list(stop)]
        keys = [digest([*decoding, prompt, gold]) for prompt, gold in zip(prompts, golds, strict=True)]
        missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        bar = tqdm(total=len(missing), desc=f"{label}, {problems[0].language}", disable=None, leave=False)
        for start in range(0, len(missing), CHUNK):
            chunk, model = missing[start : start + CHUNK], load()
            texts = [prompts[i] for i in chunk]
            answers = generate(
                model, tokenizer, texts, max_new_tokens, stop, told=lambda i, answer, bar=bar: bar.update()
            )
            losses = nll(model, tokenizer, texts, [golds[i] for i in chunk])
            rows = [
                {"key": keys[i], **vars(answer), "answer_nll": loss, "answer_tokens": n}
                for i, answer, (loss, n) in zip(chunk, answers, losses, strict=True)
            ]
            append(store, rows)
            known |= {row["key"]: row for row in rows}
        bar.close()
        frame += [score(label, problem, known[key]) for key, problem in zip(keys, problems, strict=True)]
    return pd.DataFrame(frame, columns=COLUMNS)


def score(label, problem, row):
    """The result row of a stored answer: what it says, and whether it is the problem's number."""
    found = mgsm.extract(row["text"], problem.language)
    return {
        "condition": label, "language": problem.language, "id": problem.id, "gold": problem.number,
        "value": None if found.value is None else str(found.value), "correct": found.value == problem.number,
        "rule": found.rule, **{name: row[name] for name in COLUMNS[7:]},
    }  # fmt: skip
