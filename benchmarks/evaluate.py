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


def timed(model, device):
    """What passes through a model: seconds, forward passes and token slots (padding too), prefill and decode apart.

    ``part`` says which is under way; None: a pass of one token a row is decode.
    """
    import torch

    spent = {f"{part}_{what}": 0 for part in ("prefill", "decode") for what in ("s", "passes", "slots")} | {
        "part": None
    }

    def clock():
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(module, arguments, given):
        module.begun = clock()

    def after(module, arguments, given, output):
        ids = given["input_ids"] if "input_ids" in given else arguments[0]
        part = spent["part"] or ("decode" if ids.shape[1] == 1 else "prefill")
        for what, amount in (("s", clock() - module.begun), ("passes", 1), ("slots", ids.numel())):
            spent[f"{part}_{what}"] += amount

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)
    return spent


def cut(text, stops):
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def loaded(job):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).to(job["device"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer, timed(model, job["device"])


def ours(job):
    from layerswap import generate as kernel

    model, tokenizer, spent = loaded(job)
    forward, run_prefix = kernel.forward, kernel.run_prefix

    def told(model, cache, new, starts, every=False):
        spent["part"] = "decode" if every else "prefill"
        return forward(model, cache, new, starts, every)

    def first(model, ids):
        spent["part"] = "prefill"
        return run_prefix(model, ids)

    kernel.forward, kernel.run_prefix, started = told, first, time.perf_counter()
    answers = kernel.generate(model, tokenizer, job["prompts"], job["max_new_tokens"], job["stops"])
    return [answer.text for answer in answers], time.perf_counter() - started, spent


def transformers(job, **settings):
    import torch

    model, tokenizer, spent = loaded(job)
    order = sorted(range(len(job["prompts"])), key=lambda i: -len(tokenizer(job["prompts"][i]).input_ids))
    texts, size, started = {}, job["size"], time.perf_counter()
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        given = tokenizer([job["prompts"][i] for i in batch], return_tensors="pt", padding=True).to(job["device"])
        with torch.inference_mode():
            made = model.generate(
                **given, max_new_tokens=job["max_new_tokens"], do_sample=False, stop_strings=job["stops"],
                tokenizer=tokenizer, **settings,
            )  # fmt: skip
        said = tokenizer.batch_decode(made[:, given.input_ids.shape[1] :], skip_special_tokens=True)
        texts |= {i: cut(text, job["stops"]) for i, text in zip(batch, said, strict=True)}
    return [texts[i] for i in range(len(order))], time.perf_counter() - started, spent


def static(job):
    return transformers(job, cache_implementation="static")


def continuous(job):
    from transformers import GenerationConfig

    model, tokenizer, spent = loaded(job)
    settings = GenerationConfig(
        max_new_tokens=job["max_new_tokens"], do_sample=False, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )  # fmt: skip
    started = time.perf_counter()
    made = model.generate_batch(inputs=tokenizer(job["prompts"]).input_ids, generation_config=settings)
    made = sorted(made.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    texts = [cut(tokenizer.decode(each.generated_tokens, skip_special_tokens=True), job["stops"]) for _, each in made]
    return texts, time.perf_counter() - started, spent


def lm_eval(job):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=job["model"], dtype=job["dtype"], device=job["device"], batch_size=job["size"])
    settings = {"until": job["stops"], "max_gen_toks": job["max_new_tokens"], "do_sample": False}
    requests = [Instance("generate_until", {}, (prompt, dict(settings)), i) for i, prompt in enumerate(job["prompts"])]
    spent, started = timed(model.model, job["device"]), time.perf_counter()
    texts = model.generate_until(requests, disable_tqdm=True)
    return [cut(text, job["stops"]) for text in texts], time.perf_counter() - started, spent


KINDS = {"ours": ours, "generate": transformers, "generate, static cache": static, "generate_batch": continuous,
         "lm-eval hf": lm_eval}  # fmt: skip


def run(kind, job, limit=None):
    """What a contestant reports of a job; how long it had if it was stopped, and its last words if it failed."""
    asked, told = WORK / "job.json", WORK / "told.json"
    asked.write_text(json.dumps(job | {"kind": kind}))
    told.unlink(missing_ok=True)
    python = peers.environment("lm-eval") / "python" if kind == "lm-eval hf" else sys.executable
    try:
        done = subprocess.run([python, __file__, "--job", asked, told], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"s": limit, "stopped": True}
    if done.returncode:
        return {"s": math.inf, "failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(told.read_text())


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


def shown(kind, size, told, mine, tokenizer, lengths):
    """One line of the table. lengths: tokens of all prompts. A slot is a token, or padding, that the model works on."""
    name = f"{kind}{f', batches of {size}' if size else ''}"
    if "failed" in told:
        return f"  {name:38} failed: {told['failed']}"
    if told.get("stopped"):
        return f"  {name:38} more than {told['s']:.0f} s, {told['s'] / mine['s']:.0f} x ours"
    kept = sum(map(len, tokenizer(told["texts"], add_special_tokens=False).input_ids))
    line = (
        f"  {name:38} {told['s']:6.1f} s {told['s'] / mine['s']:5.2f} x ours {len(lengths) / told['s']:6.2f} problems/s"
    )
    line += f" {kept / told['s']:5.0f} tokens/s"
    for part in ("prefill", "decode"):
        seconds, passes, slots = (told[f"{part}_{what}"] for what in ("s", "passes", "slots"))
        line += f"   {part} {seconds:6.1f} s, {passes} passes, {slots:,} slots"
    a, b = told["prefill_slots"] / sum(lengths), told["decode_slots"] / kept
    return f"{line}; {a:.2f} slots a prompt token, {b:.2f} a token kept"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "random"], choices=["smollm2", "random"])
    parser.add_argument("--languages", nargs="+", default=["sw", "ja"])
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--peers", nargs="+", default=list(KINDS)[1:], choices=list(KINDS)[1:])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    from layerswap import generate, mgsm, sources

    WORK.mkdir(parents=True, exist_ok=True)
    smollm2 = sources.base("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    print(measure.machine(), f"{options.device}, {options.dtype}, answers of at most {options.max_new_tokens} tokens")
    for model in options.models:
        folder, best = smollm2 if model == "smollm2" else random_model(WORK / "random", tokenizer), {}
        for language in options.languages:
            problems = mgsm.load("local", language, limit=options.problems)
            shots = mgsm.exemplars("local", language, 8)
            prompts = [mgsm.prompt(problem, shots, "native_cot") for problem in problems]
            job = {
                "model": str(folder), "device": options.device, "dtype": options.dtype, "prompts": prompts,
                "stops": list(mgsm.stops(language, "native_cot")), "max_new_tokens": options.max_new_tokens,
            }  # fmt: skip
            mine, encoded = run("ours", job), tokenizer(prompts).input_ids
            lengths, shared = list(map(len, encoded)), generate.shared_length(encoded)
            mean = sum(lengths) / len(prompts)
            print(
                f"{model}, {language}: {len(prompts)} prompts of {mean:.0f} tokens, {shared} of them shared", flush=True
            )
            print(shown("ours", None, mine, mine, tokenizer, lengths), flush=True)
            for kind in options.peers:
                sizes = [None] if kind == "generate_batch" else [best[kind]] if kind in best else options.batches
                found = {size: run(kind, job | {"size": size}, 10 * mine["s"]) for size in sizes}
                best[kind] = min(found, key=lambda size: found[size]["s"])
                for size, told in found.items():
                    print(shown(kind, size, told, mine, tokenizer, lengths), flush=True)
                    same = sum(a == b for a, b in zip(told.get("texts", []), mine["texts"], strict=False))
                    if "texts" in told and same < len(prompts):
                        print(f"    {same} of {len(prompts)} texts are as ours")
                        assert kind != "generate" or options.dtype != "float32", "ours must be those of generate"
            again = run("ours", job)
            print(shown("ours, again", None, again, mine, tokenizer, lengths), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job = json.loads(Path(sys.argv[2]).read_text())
        texts, seconds, spent = KINDS[job["kind"]](job)
        Path(sys.argv[3]).write_text(json.dumps({"texts": texts, "s": seconds, **spent}))
    else:
        main()
