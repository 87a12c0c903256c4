"""What is read of answers, beside lm-eval and math-verify, which run in environments of their own.

    python benchmarks/extraction.py answers.jsonl ...

Whether ``extraction.lm_eval_scores`` agrees with lm-eval's own filters and metric, text for text. Texts: up to 1,000
answers of these files (build/<profile>/answers*.jsonl), and fuzz of numbers, marks and phrases up to 2,000.

    python benchmarks/extraction.py --outputs outputs.jsonl

How many right answers are credited, by language and style. A row of the file: language, style, text, gold (the
problem's number) and second_reader (the number that another extraction read, or null). A row counts if the second
reader or this one credits it. Disputed are credits of rows in which the second reader read something else; whether one
of those is wrong takes a reader.
"""

import argparse
import json
import random
import subprocess
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import peers

from layerswap.tasks.extraction import HEADERS, LANGUAGES, extract, lm_eval_scores

PEER = """
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter, WhitespaceFilter
folder, rows = Path(lm_eval.__file__).parent / "tasks/mgsm", json.load(sys.stdin)
filters, until = {}, {}
for style in ("native_cot", "en_cot", "direct"):
    for path in (folder / style).glob(f"mgsm_{style}_*.yaml"):
        task = yaml.safe_load(path.read_text())
        steps = (yaml.safe_load((path.parent / task["include"]).read_text()) | task)["filter_list"]
        until[style, path.stem[-2:]] = task["generation_kwargs"]["until"]
        filters[style, path.stem[-2:]] = [
            {k: v for k, v in step["filter"][0].items() if k != "function"} for step in steps]
results = []
for text, language, number, style in rows:
    scores = []
    for string in until[style, language]:  # as lm-eval's models do after they have generated
        text = text.split(string)[0]
    for settings in filters[style, language]:
        answer_filter = RegexFilter(**settings) if settings else WhitespaceFilter()
        answer = answer_filter.apply([[text]], [{}])[0][0]
        match = exact_match_hf_evaluate([answer], [str(number)], ignore_case=True, ignore_punctuation=True)
        scores.append(bool(match["exact_match"]))
    results.append(scores)
print(json.dumps(results))
"""
MATH_VERIFY = """
import json, logging, sys
from math_verify import parse, verify
logging.disable(logging.CRITICAL)
print(json.dumps([bool(verify(parse(str(gold)), parse(text))) for text, gold in json.load(sys.stdin)]))
"""
READERS = ("this project", "lm-eval strict", "lm-eval flexible", "math-verify", "second reader")
FRAGMENTS = [
    ".",
    ",",
    "$",
    "-",
    " ",
    "\n",
    "0",
    "1",
    "8",
    "18",
    "1,800",
    "18.0",
    "18.",
    "...",
    "১৮",
    "１８",
    "。",
    "**",
    "x",
]
STYLES = ["native_cot", "native_cot", "en_cot", "direct"]


def run_peer(peer, code, rows):
    """What the code of a peer prints of rows, both as JSON."""
    process = subprocess.run([peers.environment(peer) / "python", "-c", code], input=json.dumps(rows), text=True,
                             capture_output=True)  # fmt: skip
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    return json.loads(process.stdout)


def compare_recall(file):
    """Print the share of right answers that each reader credits, by language and style."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    verified = run_peer("math-verify", MATH_VERIFY, [(row["text"], row["gold"]) for row in rows])
    numbers, credits, disputed = defaultdict(int), defaultdict(int), [0] * len(READERS)
    for row, is_verified in zip(rows, verified, strict=True):
        text, language, gold = row["text"], row["language"], row["gold"]
        extraction = extract(text, language)
        second = row["second_reader"] is not None and Decimal(row["second_reader"].replace(",", "")) == gold
        scores = [extraction.value == gold, *lm_eval_scores(text, language, gold, row["style"]), is_verified, second]
        for i, is_credited in enumerate(scores):
            disputed[i] += is_credited and not second
        if scores[0] or second:
            for group in ("all", language, row["style"]):
                numbers[group] += 1
                for i, is_credited in enumerate(scores):
                    credits[group, i] += is_credited
    print(f"{'':12}{'rows':>6}" + "".join(f"{reader:>18}" for reader in READERS))
    for group, n in sorted(numbers.items(), key=lambda item: (item[0] != "all", len(item[0]) > 2, item[0])):
        print(f"{group:12}{n:6}" + "".join(f"{credits[group, i] / n:>18.2%}" for i in range(len(READERS))))
    print(f"{'disputed':12}{'':6}" + "".join(f"{n:>18}" for n in disputed))


def compare_filters(files):
    """Compare ``lm_eval_scores`` with lm-eval."""
    rng, rows, languages = random.Random(0), [], list(LANGUAGES)
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            rows.append((text, rng.choice(languages), rng.choice([18, 8, 2125]), rng.choice(STYLES)))
    rows = rng.sample(rows, min(1000, len(rows)))
    n_answers = len(rows)
    while len(rows) < 2000:
        language = rng.choice(languages)
        before, after = LANGUAGES[language]["lm_eval"]
        ends = [HEADERS[language][0].rstrip(), "</s>", "<|im_end|>"]
        fragments = rng.choices([*FRAGMENTS, before, after, rng.choice(ends)], k=rng.randint(1, 9))
        if rng.random() < 0.5:
            announcement = f"{before}{rng.choice(['18', '-18', '1,800', '8.', '18,0'])}{after}"
            fragments.insert(rng.randint(0, len(fragments)), announcement)
        rows.append(("".join(fragments), language, rng.choice([18, 8, 1800]), rng.choice(STYLES)))
    theirs = [tuple(scores) for scores in run_peer("lm-eval", PEER, rows)]
    ours = [lm_eval_scores(*row) for row in rows]
    differences = [(row, a, b) for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]
    assert not differences, differences[:5]
    n_strict, n_flexible = (sum(scores[i] for scores in theirs) for i in (0, 1))
    print(f"{len(rows)} texts ({n_answers} of models) in three styles, scored as by lm-eval: {n_strict} right by its "
          f"strict filter, {n_flexible} by its flexible one")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="answers.jsonl")
    parser.add_argument("--outputs", metavar="outputs.jsonl")
    options = parser.parse_args()
    if options.outputs:
        compare_recall(options.outputs)
    else:
        compare_filters(options.files)


if __name__ == "__main__":
    main()
