"""Training rows as tokens: prompt and completion, the rows of each step, rows laid end to end."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from layerswap.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # the label of a token without loss, as in torch's cross entropy
BUCKET_STEPS = 8  # steps among whose rows those of similar length are put together

EncodedRow = dict[str, list[int]]  # {"input_ids", "labels"}, equally long


def encode_rows(rows: Sequence[Any], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[EncodedRow]:
    """Tokenize rows as prompt, completion and end of text, without loss on the prompt.

    Prompt and completion are tokenized apart, as they are when an answer is generated or scored.

    Args:
        rows: of {"prompt", "completion"}.
        tokenizer: of the base model; it must have an end of text, and not add it to a prompt.
        max_length: tokens; longer rows are left out.

    Returns:
        {"input_ids", "labels"} of each row that fits; the labels of a prompt are ``IGNORE_INDEX``.

    Raises:
        UserError: a row without text, a tokenizer that cannot be used, or no row that fits.
    """
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"training row {i}: expected prompt and completion, found {row!r}")
        for field in ("prompt", "completion"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f"training row {i}: {field} is {row.get(field)!r}, expected text")
    if not rows:
        raise UserError("there are no training rows")
    if tokenizer.eos_token_id is None:
        raise UserError("the base's tokenizer has no end of text (eos_token), which every row is to end in")
    prompts = tokenizer([row["prompt"] for row in rows]).input_ids
    completions = tokenizer([row["completion"] for row in rows], add_special_tokens=False).input_ids
    encoded = []
    for prompt, completion in zip(prompts, completions, strict=True):
        target = [*completion, tokenizer.eos_token_id]
        encoded.append({"input_ids": prompt + target, "labels": [IGNORE_INDEX] * len(prompt) + target})
    if tokenizer(["a"]).input_ids[0][-1:] == [tokenizer.eos_token_id]:
        raise UserError(
            "the base's tokenizer ends every text, also a prompt, with its end of text; expected one that does not"
        )
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"training row {i}: the prompt {rows[i]['prompt']!r} has no tokens")
    short_enough = [row for row in encoded if len(row["input_ids"]) <= max_length]
    if not short_enough:
        shortest = min(len(row["input_ids"]) for row in encoded)
        raise UserError(f"none of {len(rows)} training rows fits max_length {max_length}: the shortest has {shortest}")
    return short_enough


def training_batches(
    lengths: Sequence[int], batch_size: int, steps: int, seed: int, min_rows: int = 1
) -> list[list[int]]:
    """The rows of each step; every pass over the rows is shuffled anew.

    Rows of similar length share a step, so that little of it is padding.

    Args:
        lengths: tokens of each row.
        batch_size: rows a step; the last step of a pass may have fewer.
        steps: how many steps.
        seed: of the order.
        min_rows: a step of fewer rows is left out.

    Returns:
        Indices of rows, one list a step.
    """
    rng = random.Random(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        order, epoch = rng.sample(range(len(lengths)), len(lengths)), []
        for start in range(0, len(order), BUCKET_STEPS * batch_size):
            bucket = sorted(order[start : start + BUCKET_STEPS * batch_size], key=lengths.__getitem__)
            epoch += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        batches += [batch for batch in rng.sample(epoch, len(epoch)) if len(batch) >= min_rows]
    return batches[:steps]


def pack_rows(rows: Sequence[EncodedRow], width: int) -> dict[str, torch.Tensor]:
    """Lay rows end to end, in as few lines as first fit (longest row first) finds.

    Positions restart with each row, by which transformers keeps attention within rows; what is left of a line is one
    more row, without labels.

    Args:
        rows: as of ``encode_rows``, none longer than ``width``.
        width: tokens of the longest line.

    Returns:
        input_ids, labels and position_ids, int64 [lines, length].
    """
    lines: list[list[EncodedRow]] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        fitting_lines = (line for line in lines if n_tokens(line) + len(row["input_ids"]) <= width)
        line = next(fitting_lines, None)
        if line is None:
            lines.append(line := [])
        line.append(row)
    length = max(n_tokens(line) for line in lines)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for line in lines:
        n_left = length - n_tokens(line)
        line = [*line, {"input_ids": [0] * n_left, "labels": [IGNORE_INDEX] * n_left}]
        for field in ("input_ids", "labels"):
            columns[field].append([token for row in line for token in row[field]])
        columns["position_ids"].append([i for row in line for i in range(len(row["input_ids"]))])
    return {field: torch.tensor(column) for field, column in columns.items()}


def n_tokens(line: Sequence[EncodedRow]) -> int:
    """Tokens of several rows."""
    return sum(len(row["input_ids"]) for row in line)
