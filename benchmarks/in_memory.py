"""A plan change in memory against copying and against writing a checkpoint and loading it.

    python benchmarks/in_memory.py [--layers 24] [--device cuda]

Makes (or takes) the two checkpoints of benchmarks/merge.py. Every way must give the same logits, bit for bit.
"""

import argparse
import statistics
import time

import measure
import torch
from merge import new_folder, random_experts
from transformers import AutoModelForCausalLM

from layerswap.merging import ExpertPair, layer_swap, merge


def seconds(call, device):
    """(wall seconds of a call, its result)."""
    started = time.perf_counter()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    math, language = random_experts(options.layers)
    plans = [
        layer_swap(options.layers, 4, 2, 2, 2, non_layer_weight=0),
        layer_swap(options.layers, 8, 6, non_layer_weight=1),
        layer_swap(options.layers, 0, 6, 0, 2, non_layer_weight=0.5),
    ]
    tokens = torch.arange(32, device=options.device)[None]  # [1, length]
    alias, static = (ExpertPair(math, language, device=options.device, dtype=torch.bfloat16, static=static)
                     for static in (False, True))  # fmt: skip
    first = {}
    for plan in plans:
        first[plan.name], model = seconds(lambda plan=plan: alias.apply(plan), options.device)
        out = new_folder("in-memory")
        written, _ = seconds(lambda plan=plan, out=out: merge(math, language, plan, out), options.device)
        loaded, from_file = seconds(
            lambda out=out: AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).to(options.device).eval(),
            options.device,
        )
        with torch.inference_mode():
            expected = from_file(tokens).logits
            assert torch.equal(model(tokens).logits, expected), plan.name
            assert torch.equal(static.apply(plan)(tokens).logits, expected), plan.name
        print(f"{plan.name}: logits equal; merge on disk {written:.2f} s + load {loaded:.2f} s; "
              f"first time in memory {first[plan.name]:.2f} s")  # fmt: skip
    times = {"alias": [], "copy": []}
    for _ in range(options.runs):  # both ways change between the same two plans, their transition zones computed before
        for plan in plans[:2]:
            for name, pair in (("alias", alias), ("copy", static)):
                times[name].append(seconds(lambda pair=pair, plan=plan: pair.apply(plan), options.device)[0])
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{measure.machine()}, {options.device}, {options.layers} layers, {math.name}")
    print(f"plan change by alias: median {1000 * medians['alias']:.3f} ms, worst {1000 * max(times['alias']):.3f} ms")
    ratio = medians["copy"] / medians["alias"]
    print(f"plan change into static buffers: median {1000 * medians['copy']:.1f} ms, {ratio:.0f} x")
    print(f"merge on disk and load / alias: {(written + loaded) / medians['alias']:.0f}")


if __name__ == "__main__":
    main()
