"""A merged folder is an ordinary checkpoint: transformers opens it without a warning, lm-eval's hf backend scores it.

    python benchmarks/standard_tools.py

Merges two small random experts into one file and into shards. lm-eval (in an environment of its own) runs a task of
four local questions on the folder through its command line; its log likelihoods must be ours.
"""

import json
import subprocess
import sys

import measure
import peers
import torch
from merge import OURS, WORK, new_folder, small_models
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap.evaluation.engine import nll

TASK = """
task: local
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""

OPEN = """
import sys, warnings
from transformers import AutoModelForCausalLM
warnings.simplefilter("error")
_, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
"""


def main():
    math, language, _ = small_models("bfloat16")
    folder = WORK / "tasks"
    folder.mkdir(exist_ok=True)
    rows = [{"question": f"w{i} w{i + 3} w{2 * i}", "answer": f" w{i + 5} w{i + 1}"} for i in range(4, 8)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "local.yaml").write_text(TASK.replace("QUESTIONS", str(folder / "questions.jsonl")))
    print(f"{measure.machine()}, lm-eval 0.4.13")
    for name, options in (("one file", []), ("shards", ["--shard-size", "200KB"])):
        out, results = new_folder("standard"), new_folder("standard-results")
        measure.time_command([*OURS, "--math", math, "--language", language, "--out", out, *options])
        loading = subprocess.run([sys.executable, "-c", OPEN, out], capture_output=True, text=True, check=True)
        warnings = [line for line in loading.stderr.splitlines() if "arn" in line and "Loading weights" not in line]
        assert not warnings, warnings
        lm_eval = subprocess.run(
            [peers.environment("lm-eval") / "lm_eval", "run", "--model", "hf", "--model_args",
             f"pretrained={out},dtype=float32", "--tasks", "local", "--include_path", folder, "--device", "cpu",
             "--batch_size", "1", "--log_samples", "--output_path", results], capture_output=True, text=True,
        )  # fmt: skip
        if lm_eval.returncode:
            raise RuntimeError(lm_eval.stderr[-3000:])
        (samples,) = results.rglob("samples_local*.jsonl")
        records = [json.loads(line) for line in samples.read_text().splitlines()]
        expected = [float(row["resps"][0][0][0]) for row in sorted(records, key=lambda row: row["doc_id"])]
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(out)
        losses = nll(model, tokenizer, [row["question"] for row in rows], [row["answer"] for row in rows])
        assert all(abs(loss.nats + other) < 1e-3 for loss, other in zip(losses, expected, strict=True)), (
            losses,
            expected,
        )
        print(f"{name}: {len(list(out.glob('*.safetensors')))} file(s), transformers without a warning, "
              f"lm_eval --model hf: {[round(x, 3) for x in expected]}, as ours")  # fmt: skip


if __name__ == "__main__":
    main()
