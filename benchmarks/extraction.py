"""Whether ``mgsm.lm_eval_scores`` says what lm-eval's own filters and metric say, text for text.

    python benchmarks/extraction.py answers.jsonl ...

Texts: up to 1,000 answers in the given stores (build/<profile>/answers.jsonl), and fuzz of numbers, marks and phrases
up to 2,000. lm-eval runs in an environment of its own.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import peers

from layerswap import mgsm

PEER = """
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter, WhitespaceFilter
folder, rows, found = Path(lm_eval.__file__).parent / "tasks/mgsm", json.load(sys.stdin), []
filters = {}
for style in ("native_cot", "en_cot", "direct"):
    for path in (folder / style).glob(f"mgsm_{style}_*.yaml"):
        task = yaml.safe_load(path.read_text())
        steps = (yaml.safe_load((path.parent / task["include"]).read_text()) | task)["filter_list"]
        filters[style, path.stem[-2:]] = [
            {k: v for k, v in step["filter"][0].items() if k != "function"} for step in steps]
for text, language, number, style in rows:
    scores = []
    for settings in filters[style, language]:
        chosen = RegexFilter(**settings) if settings else WhitespaceFilter()
        said = chosen.apply([[text]], [{}])[0][0]
        match = exact_match_hf_evaluate([said], [str(number)], ignore_case=True, ignore_punctuation=True)
        scores.append(bool(match["exact_match"]))
    found.append(scores)
print(json.dumps(found))
"""
PIECES = [
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
    rng, rows = random.Random(0), []
    for store in sys.argv[1:]:
        for line in Path(store).read_text(encoding="utf-8").splitlines():
            rows.append(
                (json.loads(line)["text"], rng.choice(list(mgsm.STRICT)), rng.choice([18, 8, 2125]), rng.choice(STYLES))
            )
    rows = rng.sample(rows, min(1000, len(rows)))
    real = len(rows)
    while len(rows) < 2000:
        language = rng.choice(list(mgsm.STRICT))
        parts = rng.choices([*PIECES, *mgsm.STRICT[language]], k=rng.randint(1, 9))
        if rng.random() < 0.5:
            before, after = mgsm.STRICT[language]
            parts.insert(
                rng.randint(0, len(parts)), f"{before}{rng.choice(['18', '-18', '1,800', '8.', '18,0'])}{after}"
            )
        rows.append(("".join(parts), language, rng.choice([18, 8, 1800]), rng.choice(STYLES)))
    done = subprocess.run([peers.environment("lm-eval") / "python", "-c", PEER], input=json.dumps(rows), text=True,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    theirs = [tuple(scores) for scores in json.loads(done.stdout)]
    ours = [mgsm.lm_eval_scores(*row) for row in rows]
    wrong = [(row, a, b) for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]
    assert not wrong, wrong[:5]
    hits = [sum(score[i] for score in theirs) for i in (0, 1)]
    print(f"{len(rows)} texts ({real} of models) in three styles, scored as by lm-eval: {hits[0]} right by its strict "
          f"filter, {hits[1]} by its flexible one")  # fmt: skip


if __name__ == "__main__":
    main()
