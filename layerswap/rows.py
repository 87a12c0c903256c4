"""Training rows as tokens: prompt and completion, the rows of each step, rows laid end to end."""

import random

import torch

from layerswap.paths import UserError

IGNORED = -100  # the label of a token without loss
STRETCH = 8  # steps among whose rows those of similar length are put together


def encode(rows, tokenizer, max_length):
    """The rows that fit ``max_length`` tokens, as {"input_ids", "labels"}: prompt, completion, end of text.

    Prompt and completion are tokenized apart, as they are when an answer is generated or scored. Labels are IGNORED
    over the prompt. UserError for a row without text, or if no row fits.
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
    heads = tokenizer([row["prompt"] for row in rows]).input_ids
    tails = tokenizer([row["completion"] for row in rows], add_special_tokens=False).input_ids
    ends = [[*tail, tokenizer.eos_token_id] for tail in tails]
    encoded = [{"input_ids": h + e, "labels": [IGNORED] * len(h) + e} for h, e in zip(heads, ends, strict=True)]
    if tokenizer(["a"]).input_ids[0][-1:] == [tokenizer.eos_token_id]:
        raise UserError(
            "the base's tokenizer ends every text, also a prompt, with its end of text; expected one that does not"
        )
    for i, head in enumerate(heads):
        if not head:
            raise UserError(f"training row {i}: the prompt {rows[i]['prompt']!r} has no tokens")
    fit = [row for row in encoded if len(row["input_ids"]) <= max_length]
    if not fit:
        shortest = min(len(row["input_ids"]) for row in encoded)
        raise UserError(f"none of {len(rows)} training rows fits max_length {max_length}: the shortest has {shortest}")
    return fit


def batches(lengths, batch_size, steps, seed, least=1):
    """The rows of each step, as lists of ``batch_size`` indices; every pass over the rows is shuffled anew.

    Rows of similar length share a step, so that little of it is padding. The last step of a pass may have fewer rows;
    it is left out if they are fewer than ``least``.
    """
    rng, groups = random.Random(seed), []
    while len(groups) < steps:
        order, one_pass = rng.sample(range(len(lengths)), len(lengths)), []
        for start in range(0, len(order), STRETCH * batch_size):
            part = sorted(order[start : start + STRETCH * batch_size], key=lengths.__getitem__)
            one_pass += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        groups += [group for group in rng.sample(one_pass, len(one_pass)) if len(group) >= least]
    return groups[:steps]


def pack(rows, width):
    """Rows laid end to end in as few lines as first fit finds: input_ids, labels and position_ids [lines, length].

    ``width``: the longest line. Positions restart with each row, by which transformers keeps attention within rows;
    what is left of a line is one more row, without labels.
    """
    lines = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        room = (line for line in lines if sum(len(r["input_ids"]) for r in line) + len(row["input_ids"]) <= width)
        line = next(room, None)
        if line is None:
            lines.append(line := [])
        line.append(row)
    length = max(sum(len(row["input_ids"]) for row in line) for line in lines)
    packed = {"input_ids": [], "labels": [], "position_ids": []}
    for line in lines:
        rest = length - sum(len(row["input_ids"]) for row in line)
        line = [*line, {"input_ids": [0] * rest, "labels": [IGNORED] * rest}]
        for field in ("input_ids", "labels"):
            packed[field].append([token for row in line for token in row[field]])
        packed["position_ids"].append([i for row in line for i in range(len(row["input_ids"]))])
    return {field: torch.tensor(value) for field, value in packed.items()}
