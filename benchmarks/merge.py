"""The merge on disk against cp and mergekit: how long, how much memory, and whether all made the same weights.

Makes two random bfloat16 Llama checkpoints and merges them, each command a process of its own, start-up included. The
result is checked tensor by tensor against a float64 reference that shares no code with the merge, and against mergekit.

    python benchmarks/merge.py                          0.7 GB, in one file and in 200 MB shards, 5 runs
    python benchmarks/merge.py --layers 96 --peak       peak memory alone, of a model four times as large
"""

import argparse
import json
import shutil
import subprocess
import sys

import measure
import peers
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from layerswap.checkpoints.layers import decoder_layers
from layerswap.merging.mergekit import to_mergekit
from layerswap.merging.plans import layer_swap, soup, uniform
from layerswap.merging.task_vectors import TaskVectors

WORK = peers.ROOT / "build" / "benchmarks" / "merge"
OURS = [sys.executable, "-m", "layerswap", "merge"]


def random_checkpoint(folder, seed, *, layers, hidden=1024, vocab=20_000, dtype=torch.bfloat16, shard=None):
    """A random Llama with a -0.0 in every matrix; made once. shard: bytes of a file, None: one file."""
    if (folder / "done").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, tie_word_embeddings=False, dtype=dtype,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    words = [*special.values(), *(f"w{i}" for i in range(len(special), vocab))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    generator, files, file, size = torch.Generator().manual_seed(seed), [], {}, 0
    for name, shape in shapes.items():
        tensor = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        tensor.view(-1)[seed] = -0.0
        if shard and file and size + tensor.nbytes > shard:
            files.append(file)
            file, size = {}, 0
        file[name] = tensor
        size += tensor.nbytes
    files.append(file)
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    for path, content in zip(names, files, strict=True):
        save_file(content, folder / path, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {name: path for path, content in zip(names, files, strict=True) for name in content}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "done").touch()
    return folder


def random_experts(layers, shard=None):
    """Math and language expert of the depth and layout."""
    roles = enumerate(("math", "language"))
    return [
        random_checkpoint(WORK / f"{role}-{layers}-{shard}", seed, layers=layers, shard=shard) for seed, role in roles
    ]


def read_tensors(folder):
    """name -> tensor of a folder, one at a time, by the safetensors library."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def compare(out, math, language, plan):
    """Assert that a merge is what the plan says; returns the fraction of mixed elements not rounded just once."""
    math_tensors, language_tensors = (dict(read_tensors(folder)) for folder in (math, language))
    names, n_different, n_mixed, layers = set(), 0, 0, decoder_layers(math)
    for name, tensor in read_tensors(out):
        a, b = math_tensors[name], language_tensors[name]
        weight = plan.weight(layers.index(name))
        names.add(name)
        if weight in (0, 1):
            assert torch.equal(tensor.view(torch.int16), (b if weight else a).view(torch.int16)), name
            continue
        exact = (1 - weight) * a.double() + weight * b.double()
        assert ((tensor.double() - exact).abs() <= torch.finfo(tensor.dtype).eps * exact.abs() + 1e-9).all(), name
        n_different += (tensor != exact.to(tensor.dtype)).sum().item()
        n_mixed += tensor.numel()
    assert names == math_tensors.keys()
    return n_different / n_mixed if n_mixed else 0.0


def plan_options(plan):
    """The command line's options for a plan."""
    path = WORK / f"{plan.layer_map()}-{plan.non_layer_weight}.json"
    path.write_text(json.dumps(plan.to_dict()))
    return ["--plan", path]


def mergekit_command(plan, math, language, out, shard):
    """The command that runs a plan's export in mergekit."""
    config = WORK / f"{out.name}.yml"
    config.write_text(yaml.safe_dump(to_mergekit(plan, math, language, "bfloat16")))
    return [peers.environment("mergekit") / "mergekit-yaml", config, out, "--out-shard-size", str(shard)]


def time_layout(layers, shard, n_runs):
    """Print the tables of one layout of the files, warm and cold."""
    name = "one file" if shard is None else f"{shard // 10**6} MB shards"
    math, language = random_experts(layers, shard)
    hard = layer_swap(layers, 4, 2, non_layer_weight=0)
    zone = layer_swap(layers, 4, 2, 2, 2, non_layer_weight=0)
    size = shard or 10**12
    experts = ["--math", math, "--language", language, "--shard-size", str(size)]
    out = {case: WORK / case.replace(" ", "-") for case in (
        "cp", "cp and fsync", "import torch", "ours", "ours without sha256", "mergekit passthrough",
        "ours 2+2", "ours 2+2 without sha256", "mergekit linear 2+2")}  # fmt: skip
    copy = ["cp", "-r", "--reflink=never", math]
    cases = {
        "cp": [*copy, out["cp"]],
        "cp and fsync": ["sh", "-c", '"$@" && sync "$0"/*', out["cp and fsync"], *copy, out["cp and fsync"]],
        "ours": [*OURS, *experts, *plan_options(hard), "--out", out["ours"]],
        "ours without sha256": [*OURS, *experts, *plan_options(hard), "--no-hash", "--out", out["ours without sha256"]],
        "mergekit passthrough": mergekit_command(hard, math, language, out["mergekit passthrough"], size),
        "import torch": [sys.executable, "-c", "import torch"],
        "ours 2+2": [*OURS, *experts, *plan_options(zone), "--out", out["ours 2+2"]],
        "ours 2+2 without sha256": [*OURS, *experts, *plan_options(zone), "--no-hash", "--out",
                                    out["ours 2+2 without sha256"]],
        "mergekit linear 2+2": mergekit_command(zone, math, language, out["mergekit linear 2+2"], size),
    }  # fmt: skip
    n_bytes = sum(path.stat().st_size for path in math.iterdir())
    for cache in ("warm", "cold"):

        def before(case, touch=measure.warm if cache == "warm" else measure.evict):
            shutil.rmtree(out[case], ignore_errors=True)
            subprocess.run(["sync"], check=True)
            for folder in (math, language):
                touch(folder)

        table = measure.interleaved(cases, n_runs, before)
        table["x_cp"] = table.wall_s / table.wall_s["cp"]
        table["x_cp_fsync"] = table.wall_s / table.wall_s["cp and fsync"]
        print(f"\n## {name}, {n_bytes / 1e6:,.0f} MB, {cache} cache, medians of {n_runs}\n")
        print(table.round(2).to_string())
        wall = table.wall_s
        for ours in ("ours", "ours without sha256"):
            print(f"mergekit passthrough / {ours}: {wall['mergekit passthrough'] / wall[ours]:.1f}")
        for ours in ("ours 2+2", "ours 2+2 without sha256"):
            print(f"mergekit linear / {ours}: {wall['mergekit linear 2+2'] / wall[ours]:.1f}")
    for case, plan in (
        ("ours", hard), ("ours without sha256", hard), ("ours 2+2", zone), ("ours 2+2 without sha256", zone)
    ):  # fmt: skip
        fraction = compare(out[case], math, language, plan)
        print(f"{case}: as the float64 reference; {fraction:.4%} of the mixed elements differ from rounding once")
    for case, ours in (("mergekit passthrough", "ours"), ("mergekit linear 2+2", "ours 2+2")):
        print(f"{case} against {ours}: {differences(out[case], out[ours])}")


def differences(peer, ours):
    """Count what differs between two folders, in values and in bits."""
    peer_tensors, values, bits, total = dict(read_tensors(peer)), 0, 0, 0
    for name, tensor in read_tensors(ours):
        other = peer_tensors.pop(name)
        values += (tensor != other).sum().item()
        integer = torch.int16 if tensor.element_size() == 2 else torch.int32
        bits += (tensor.view(integer) != other.view(integer)).sum().item()
        total += tensor.numel()
    assert not peer_tensors, f"only in {peer}: {sorted(peer_tensors)}"
    return f"{values} of {total:,} values differ, {bits} in bits"


def print_peak(layers):
    """Peak memory alone, for a model of another size."""
    math, language = random_experts(layers)
    for zone in (0, 2):
        plan = layer_swap(layers, 4, 2, zone, zone, non_layer_weight=0)
        out = new_folder("peak")
        command = [*OURS, "--math", math, "--language", language, *plan_options(plan), "--out", out]
        wall, _, rss = measure.time_command(command)
        print(f"{layers} layers, transition {zone}+{zone}: peak RSS {rss:.0f} MB, {wall:.1f} s")
        compare(out, math, language, plan)


def new_folder(name):
    """A path below WORK where no folder is; the last run's is removed."""
    shutil.rmtree(WORK / name, ignore_errors=True)
    return WORK / name


def small_models(dtype):
    """Math expert, language expert and base of 0.9 M parameters."""
    shape = {"layers": 4, "hidden": 128, "vocab": 256, "dtype": getattr(torch, dtype)}
    roles = enumerate(("math", "language", "base"))
    return [random_checkpoint(WORK / f"small-{role}-{dtype}", seed, **shape) for seed, role in roles]


def compare_with_mergekit():
    """Small experts and their base: every kind of merge, by mergekit and by us."""
    math, language, _ = small_models("bfloat16")
    for plan in (layer_swap(4, 1, 1, non_layer_weight=1), layer_swap(4, 1, 1, 1, 1, non_layer_weight=0.5), soup(4),
                 layer_swap(4, 1, 1, 1, 0, weight=0.3, non_layer_weight=0), uniform(4, 1.0, "language")):  # fmt: skip
        out, peer = new_folder("small-ours"), new_folder("small-mergekit")
        measure.time_command([*OURS, "--math", math, "--language", language, *plan_options(plan), "--out", out])
        measure.time_command(mergekit_command(plan, math, language, peer, 10**9))
        print(f"{plan.layer_map()}, weights {sorted({*plan.layers, plan.non_layer_weight})}: {differences(peer, out)}")
    for plan in (TaskVectors("added", "task arithmetic", 0.4, 0.7),
                 TaskVectors("ties", "ties", density=0.3),
                 TaskVectors("weighted", "ties", 0.3, 0.9, density=0.5, scale=0.8)):  # fmt: skip
        for dtype in ("bfloat16", "float32"):  # in bfloat16, elements tie for TIES's last place: we keep all of them
            math, language, base = small_models(dtype)
            out, peer = new_folder("small-ours"), new_folder("small-mergekit")
            file, config = WORK / "ours.yml", WORK / "mergekit.yml"
            file.write_text(yaml.safe_dump(plan.to_dict()))
            density = {"density": plan.density} if plan.method == "ties" else {}
            config.write_text(yaml.safe_dump({
                "merge_method": plan.method.replace(" ", "_"), "base_model": str(base), "dtype": "float32",
                "out_dtype": dtype, "parameters": {"lambda": plan.scale},
                "models": [{"model": str(folder), "parameters": {"weight": weight} | density}
                           for folder, weight in ((math, plan.math), (language, plan.language))],
            }))  # fmt: skip
            measure.time_command(
                [*OURS, "--math", math, "--language", language, "--base", base, "--plan", file, "--out", out]
            )
            measure.time_command([peers.environment("mergekit") / "mergekit-yaml", config, peer])
            print(f"{plan.method} {plan.math} {plan.language} {density}, scale {plan.scale}, {dtype}: "
                  f"{differences(peer, out)}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="24 layers are 0.7 GB")
    parser.add_argument("--shard-mb", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", action="store_true", help="only peak memory")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    print(f"{measure.machine()}, mergekit 0.1.5")
    if options.peak:
        print_peak(options.layers)
        return
    compare_with_mergekit()
    for shard in (None, options.shard_mb * 10**6):
        time_layout(options.layers, shard, options.runs)


if __name__ == "__main__":
    main()
