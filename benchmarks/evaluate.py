"""The evaluation kernel against transformers' generate and lm-eval's hf backend, on the same prompts and limits.

    LAYERSWAP_DATA=... python benchmarks/evaluate.py [--models smollm2 random] [--languages sw ja] [--problems 32]
                                                     [--device cuda --dtype bfloat16]

8-shot native chain of thought. "smollm2" is SmolLM2-135M from its wheel, "random" a random Llama in the shape of an
8B model (32 layers, 4 query heads to a key-value head, a wide MLP) at an eighth of its width. Every contestant is a
process of its own that loads the model, then answers all problems under the clock. Peers run at every batch size of
--batches in the first language, at their best one in the others; ours has one setting. In float32 the texts must be
those of ``generate``. lm-eval runs in an environment of its own. A contestant is stopped at ten times our time.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import measure
import peers

WORK = peers.ROOT / "build" / "benchmarks" / "evaluate"


def record_passes(model, device):
    """Hook a model so that what passes through it is counted.

    Returns a dict that grows: seconds, forward passes and token slots (padding too), of prefill and of decode. Its
    "phase" says which is under way; None: a pass of one token a row is decode.
    """
    import torch

    usage = {f"{phase}_{quantity}": 0 for phase in ("prefill", "decode") for quantity in ("s", "passes", "slots")}
    usage["phase"] = None

    def clock():
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(module, arguments, options):
        module.started = clock()

    def after(module, arguments, options, output):
        ids = options["input_ids"] if "input_ids" in options else arguments[0]
        phase = usage["phase"] or ("decode" if ids.shape[1] == 1 else "prefill")
        for quantity, amount in (("s", clock() - module.started), ("passes", 1), ("slots", ids.numel())):
            usage[f"{phase}_{quantity}"] += amount

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)
    return usage


def cut(text, stops):
    return text[: min((start for start in map(text.find, stops) if start >= 0), default=len(text))]


def load(job):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).to(job["device"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer, record_passes(model, job["device"])


def ours(job):
    from layerswap.evaluation import decode_steps, engine

    model, tokenizer, usage = load(job)
    forward, run_prefix = engine.forward, engine.run_prefix

    def recorded_forward(model, cache, new_ids, starts, every_token=False):
        usage["phase"] = "decode" if every_token else "prefill"
        return forward(model, cache, new_ids, starts, every_token)

    def recorded_prefix(model, ids):
        usage["phase"] = "prefill"
        return run_prefix(model, ids)

    engine.forward = decode_steps.forward = recorded_forward
    engine.run_prefix, started = recorded_prefix, time.perf_counter()
    answers = engine.generate(model, tokenizer, job["prompts"], job["max_new_tokens"], job["stops"])
    return [answer.text for answer in answers], time.perf_counter() - started, usage


def transformers(job, **settings):
    import torch

    model, tokenizer, usage = load(job)
    order = sorted(range(len(job["prompts"])), key=lambda i: -len(tokenizer(job["prompts"][i]).input_ids))
    texts, size, started = {}, job["size"], time.perf_counter()
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        inputs = tokenizer([job["prompts"][i] for i in batch], return_tensors="pt", padding=True).to(job["device"])
        with torch.inference_mode():
            outputs = model.generate(
                **inputs, max_new_tokens=job["max_new_tokens"], do_sample=False, stop_strings=job["stops"],
                tokenizer=tokenizer, **settings,
            )  # fmt: skip
        answers = tokenizer.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        texts |= {i: cut(text, job["stops"]) for i, text in zip(batch, answers, strict=True)}
    return [texts[i] for i in range(len(order))], time.perf_counter() - started, usage


def static(job):
    return transformers(job, cache_implementation="static")


def continuous(job):
    from transformers import GenerationConfig

    model, tokenizer, usage = load(job)
    settings = GenerationConfig(
        max_new_tokens=job["max_new_tokens"], do_sample=False, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )  # fmt: skip
    started = time.perf_counter()
    outputs = model.generate_batch(inputs=tokenizer(job["prompts"]).input_ids, generation_config=settings)
    outputs = [output for _, output in sorted(outputs.items(), key=lambda item: int(item[0].rpartition("_")[2]))]
    texts = [tokenizer.decode(output.generated_tokens, skip_special_tokens=True) for output in outputs]
    return [cut(text, job["stops"]) for text in texts], time.perf_counter() - started, usage


def lm_eval(job):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=job["model"], dtype=job["dtype"], device=job["device"], batch_size=job["size"])
    settings = {"until": job["stops"], "max_gen_toks": job["max_new_tokens"], "do_sample": False}
    requests = [Instance("generate_until", {}, (prompt, dict(settings)), i) for i, prompt in enumerate(job["prompts"])]
    usage, started = record_passes(model.model, job["device"]), time.perf_counter()
    texts = model.generate_until(requests, disable_tqdm=True)
    return [cut(text, job["stops"]) for text in texts], time.perf_counter() - started, usage


CONTESTANTS = {
    "ours": ours, "generate": transformers, "generate, static cache": static, "generate_batch": continuous,
    "lm-eval hf": lm_eval,
}  # fmt: skip


def run(contestant, job, limit=None):
    """What a contestant reports of a job; how long it had if it was stopped, and its last words if it failed."""
    job_file, result_file = WORK / "job.json", WORK / "result.json"
    job_file.write_text(json.dumps(job | {"contestant": contestant}))
    result_file.unlink(missing_ok=True)
    python = peers.environment("lm-eval") / "python" if contestant == "lm-eval hf" else sys.executable
    command = [python, __file__, "--job", job_file, result_file]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"s": limit, "stopped": True}
    if process.returncode:
        return {"s": math.inf, "failed": process.stderr.strip().splitlines()[-1]}
    return json.loads(result_file.read_text())


def random_model(folder, tokenizer):
    """A random Llama in an 8B model's shape at an eighth of its width, with SmolLM2's tokenizer; made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "tokenizer.json").is_file():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1792, num_hidden_layers=32,
            num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, initializer_range=0.1,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def table_line(contestant, size, result, reference, tokenizer, lengths):
    """One line of the table. lengths: tokens of all prompts. A slot is a token, or padding, that the model works on."""
    name = f"{contestant}{f', batches of {size}' if size else ''}"
    if "failed" in result:
        return f"  {name:38} failed: {result['failed']}"
    ratio = result["s"] / reference["s"]
    if result.get("stopped"):
        return f"  {name:38} more than {result['s']:.0f} s, {ratio:.0f} x ours"
    n_kept = sum(map(len, tokenizer(result["texts"], add_special_tokens=False).input_ids))
    line = f"  {name:38} {result['s']:6.1f} s {ratio:5.2f} x ours {len(lengths) / result['s']:6.2f} problems/s"
    line += f" {n_kept / result['s']:5.0f} tokens/s"
    for phase in ("prefill", "decode"):
        seconds, passes, slots = (result[f"{phase}_{quantity}"] for quantity in ("s", "passes", "slots"))
        line += f"   {phase} {seconds:6.1f} s, {passes} passes, {slots:,} slots"
    by_prompt, by_answer = result["prefill_slots"] / sum(lengths), result["decode_slots"] / n_kept
    return f"{line}; {by_prompt:.2f} slots a prompt token, {by_answer:.2f} a token kept"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "random"], choices=["smollm2", "random"])
    parser.add_argument("--languages", nargs="+", default=["sw", "ja"])
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--peers", nargs="+", default=list(CONTESTANTS)[1:], choices=list(CONTESTANTS)[1:])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    from layerswap.evaluation import engine  # here: lm-eval's environment, which runs this file too, has no layerswap
    from layerswap.run.profiles import find_base
    from layerswap.tasks import MGSM

    WORK.mkdir(parents=True, exist_ok=True)
    task, smollm2 = MGSM("local"), find_base("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    print(measure.machine(), f"{options.device}, {options.dtype}, answers of at most {options.max_new_tokens} tokens")
    for model in options.models:
        folder, best_sizes = smollm2 if model == "smollm2" else random_model(WORK / "random", tokenizer), {}
        for language in options.languages:
            exemplars = task.exemplars(language, 8)
            problems = task.problems(language, limit=options.problems)
            prompts = [task.prompt(problem, exemplars, "native_cot") for problem in problems]
            job = {
                "model": str(folder), "device": options.device, "dtype": options.dtype, "prompts": prompts,
                "stops": list(task.stops(language, "native_cot")), "max_new_tokens": options.max_new_tokens,
            }  # fmt: skip
            reference, encoded = run("ours", job), tokenizer(prompts).input_ids
            lengths, shared = list(map(len, encoded)), engine.shared_length(encoded)
            mean = sum(lengths) / len(prompts)
            sizes = f"{len(prompts)} prompts of {mean:.0f} tokens, {shared} of them shared"
            print(f"{model}, {language}: {sizes}", flush=True)
            print(table_line("ours", None, reference, reference, tokenizer, lengths), flush=True)
            for peer in options.peers:
                batch_sizes = [best_sizes[peer]] if peer in best_sizes else options.batches
                batch_sizes = [None] if peer == "generate_batch" else batch_sizes
                results = {size: run(peer, job | {"size": size}, 10 * reference["s"]) for size in batch_sizes}
                best_sizes[peer] = min(results, key=lambda size: results[size]["s"])
                for size, result in results.items():
                    print(table_line(peer, size, result, reference, tokenizer, lengths), flush=True)
                    same = sum(a == b for a, b in zip(result.get("texts", []), reference["texts"], strict=False))
                    if "texts" in result and same < len(prompts):
                        print(f"    {same} of {len(prompts)} texts are as ours")
                        assert peer != "generate" or options.dtype != "float32", "ours must be those of generate"
            print(table_line("ours, again", None, run("ours", job), reference, tokenizer, lengths), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job = json.loads(Path(sys.argv[2]).read_text())
        texts, seconds, usage = CONTESTANTS[job["contestant"]](job)
        Path(sys.argv[3]).write_text(json.dumps({"texts": texts, "s": seconds, **usage}))
    else:
        main()
