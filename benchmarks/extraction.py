"""Whether ``extraction.lm_eval_scores`` agrees with lm-eval's own filters and metric, text for text.

    python benchmarks/extraction.py answers.jsonl ...

Texts: up to 1,000 answers of these files (build/<profile>/answers.jsonl), and fuzz of numbers, marks and phrases
up to 2,000. lm-eval runs in an environment of its own.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import peers

from layerswap.tasks.extraction import LM_EVAL_STRICT, lm_eval_scores

PEER = """
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter, WhitespaceFilter
folder, rows = Path(lm_eval.__file__).parent / "tasks/mgsm", json.load(sys.stdin)
filters = {}
for style in ("native_cot", "en_cot", "direct"):
    for path in (folder / style).glob(f"mgsm_{style}_*.yaml"):
        task = yaml.safe_load(path.read_text())
        steps = (yaml.safe_load((path.parent / task["include"]).read_text()) | task)["filter_list"]
        filters[style, path.stem[-2:]] = [
            {k: v for k, v in step["filter"][0].items() if k != "function"} for step in steps]
results = []
for text, language, number, style in rows:
    scores = []
    for settings in filters[style, language]:
        answer_filter = RegexFilter(**settings) if settings else WhitespaceFilter()
        answer = answer_filter.apply([[text]], [{}])[0][0]
        match = exact_match_hf_evaluate([answer], [str(number)], ignore_case=True, ignore_punctuation=True)
        scores.append(bool(match["exact_match"]))
    results.append(scores)
print(json.dumps(results))
"""
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


def main():
    rng, rows, languages = random.Random(0), [], list(LM_EVAL_STRICT)
    for file in sys.argv[1:]:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            rows.append((text, rng.choice(languages), rng.choice([18, 8, 2125]), rng.choice(STYLES)))
    rows = rng.sample(rows, min(1000, len(rows)))
    n_answers = len(rows)
    while len(rows) < 2000:
        language = rng.choice(languages)
        before, after = LM_EVAL_STRICT[language]
        fragments = rng.choices([*FRAGMENTS, before, after], k=rng.randint(1, 9))
        if rng.random() < 0.5:
            announcement = f"{before}{rng.choice(['18', '-18', '1,800', '8.', '18,0'])}{after}"
            fragments.insert(rng.randint(0, len(fragments)), announcement)
        rows.append(("".join(fragments), language, rng.choice([18, 8, 1800]), rng.choice(STYLES)))
    process = subprocess.run([peers.environment("lm-eval") / "python", "-c", PEER], input=json.dumps(rows), text=True,
                             capture_output=True)  # fmt: skip
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    theirs = [tuple(scores) for scores in json.loads(process.stdout)]
    ours = [lm_eval_scores(*row) for row in rows]
    differences = [(row, a, b) for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]
    assert not differences, differences[:5]
    n_strict, n_flexible = (sum(scores[i] for scores in theirs) for i in (0, 1))
    print(f"{len(rows)} texts ({n_answers} of models) in three styles, scored as by lm-eval: {n_strict} right by its "
          f"strict filter, {n_flexible} by its flexible one")  # fmt: skip


if __name__ == "__main__":
    main()
