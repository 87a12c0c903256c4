"""The kernels on a GPU against what its memory and its arithmetic allow, and against transformers.

    python benchmarks/gpu.py                          random weights in the shape of Llama 3.1 8B, bfloat16, minutes
    python benchmarks/gpu.py --device cpu --tiny      the same steps on a model of a few thousand weights

Nothing is downloaded: weights are drawn on the device. Times are medians, after a first run that is not counted. A
floor is the time in which the device moves the bytes that must be moved (each weight, key and value read once), or does
the arithmetic, at the rates of a large copy and a large matrix product measured in the same run. What is compared is
checked to be the same: bits of merged tensors, tokens of answers. Writes benchmarks/results/gpu-<device>.txt, where a
section that failed says so.
"""

import argparse
import collections
import dataclasses
import gc
import math
import platform
import random
import re
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

import measure
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from layerswap.errors import one_line
from layerswap.evaluation import decode_steps, engine
from layerswap.evaluation.prefix_attention import run_prefix, shared_attention, supports_shared_attention
from layerswap.experts.finetune import finetune
from layerswap.merging.arithmetic import weighted_mean_in_memory, weighted_mean_on_device

DTYPES = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
WEIGHTS = (0.5, 0.9, 0.1, 1 / 3, 1e-3)


@dataclasses.dataclass(frozen=True)
class Size:
    """What is run.

    Attributes:
        model: fields of LlamaConfig.
        trained: fields that differ in the model that is fine-tuned.
        prefix: tokens of the exemplars that all prompts begin with.
        suffix: tokens of a problem, from and to.
        rows: rows of a decode step.
        n_problems: problems answered.
        peer_batches: transformers' batch sizes.
        new_tokens: of an answer.
        n_weights: elements of the large tensors whose bits are compared.
        n_tensors: small ones whose bits are compared.
        train: rows a step, tokens a row, steps.
    """

    model: dict
    trained: dict
    prefix: int
    suffix: tuple[int, int]
    rows: tuple[int, ...]
    n_problems: int
    peer_batches: tuple[int, ...]
    new_tokens: int
    n_weights: int
    n_tensors: int
    train: tuple[int, int, int]


LLAMA_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
FULL = Size(LLAMA_8B, LLAMA_1B, 1024, (64, 192), (32, 256), 256, (64, 128), 128, 1 << 22, 500, (16, 512, 12))
TINY = Size(
    {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
     "num_key_value_heads": 2, "max_position_embeddings": 512},
    {}, 40, (4, 12), (3, 8), 12, (4, 8), 8, 1 << 12, 5, (4, 24, 3),
)  # fmt: skip


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(call, device, n_runs=7):
    """Median wall seconds of a call, after two that are not counted; the device has finished."""
    seconds = []
    for _ in range(n_runs + 2):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def peak_gigabytes(device):
    """Memory held at most since the last call."""
    if device != "cuda":
        return math.nan
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure_ceilings(device, dtype, size):
    """(bytes a second of a copy, read and written counted; operations a second of a matrix product)."""
    n_bytes, width = (1 << 32, 8192) if size is FULL else (1 << 22, 128)
    source = torch.empty(n_bytes, dtype=torch.uint8, device=device).random_(256)
    target = torch.empty_like(source)
    bandwidth = 2 * n_bytes / median_seconds(lambda: target.copy_(source), device)
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    return bandwidth, 2 * width**3 / median_seconds(lambda: a @ b, device)


def random_bits(dtype, n, generator):
    """Elements of any bits: numbers of every size, infinities, NaNs, subnormals."""
    info = torch.iinfo(DTYPES[dtype])
    numbers = torch.randint(info.min, info.max, (n,), dtype=DTYPES[dtype], generator=generator)
    return numbers.view(dtype)


def same_bits(a, b):
    return torch.equal(a.cpu().view(DTYPES[a.dtype]), b.cpu().view(DTYPES[b.dtype]))


def special_numbers(dtype):
    """-0.0 and 0.0, the infinities, NaNs with a payload of either sign, the smallest and the largest subnormal."""
    info, bits = torch.finfo(dtype), torch.iinfo(DTYPES[dtype])
    numbers = torch.tensor([0.0, -0.0, math.inf, -math.inf, info.max, info.tiny], dtype=dtype)
    infinity = numbers[2].view(DTYPES[dtype]).item()
    subnormal_max = numbers[5].view(DTYPES[dtype]).item() - 1
    others = [infinity + 1, bits.min + infinity + 1, bits.max, 1, bits.min + 1, subnormal_max]
    return torch.cat([numbers, torch.tensor(others, dtype=DTYPES[dtype]).view(dtype)])


def compare_small_tensors(device, size):
    """Bits of many tensors of random lengths, each dtype and weight, special numbers in every one."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    for _ in range(size.n_tensors):
        n = rng.randint(12, 5000)
        for dtype in DTYPES:
            special = special_numbers(dtype)  # [12]
            pair = [random_bits(dtype, n, generator) for _ in range(2)]
            for tensor in pair:
                places = torch.randperm(len(tensor), generator=generator)[: len(special)]
                tensor[places] = special[torch.randperm(len(special), generator=generator)]
            for weight in WEIGHTS:
                expected = weighted_mean_in_memory(*pair, weight)
                merged = weighted_mean_in_memory(*(tensor.to(device) for tensor in pair), weight)
                assert same_bits(merged, expected), (n, dtype, weight)


def merge_lines(device, dtype, size, bandwidth):
    """A plan change: the mixed tensors of a transition of 1 + 1 layers and of all outside the layers."""
    generator = torch.Generator().manual_seed(0)
    for tensor_dtype in DTYPES:
        for weight in WEIGHTS:
            for draw in ("any bits", "close experts"):
                if draw == "any bits":
                    pair = [random_bits(tensor_dtype, size.n_weights, generator) for _ in range(2)]
                else:
                    first = 0.02 * torch.randn(size.n_weights, generator=generator, dtype=torch.float64)
                    step = 1e-3 * torch.randn(size.n_weights, generator=generator, dtype=torch.float64)
                    pair = [first.to(tensor_dtype), (first + step).to(tensor_dtype)]
                expected = weighted_mean_in_memory(*pair, weight)  # numpy, as on disk
                on_device = [tensor.to(device) for tensor in pair]
                for way in (weighted_mean_in_memory, weighted_mean_on_device):
                    assert same_bits(way(*on_device, weight), expected), (way, tensor_dtype, weight, draw)
    yield f"merge: {size.n_weights:,} elements x {len(DTYPES)} dtypes x 5 weights, any bits or close: bits equal"
    compare_small_tensors(device, size)
    yield f"  {size.n_tensors} tensors of 12 to 5,000 elements x the same, special numbers in each: bits equal"
    fields = size.model
    head = fields["hidden_size"] // fields["num_attention_heads"] * fields["num_key_value_heads"]
    layer = fields["hidden_size"] * (2 * fields["hidden_size"] + 2 * head + 3 * fields["intermediate_size"])
    sizes = [layer, layer, fields["vocab_size"] * fields["hidden_size"], fields["vocab_size"] * fields["hidden_size"]]
    pairs = [[torch.randn(n, device=device, dtype=dtype) for _ in range(2)] for n in sizes]
    peak_gigabytes(device)
    seconds = median_seconds(lambda: [weighted_mean_in_memory(*pair, 0.5) for pair in pairs], device)
    held = sum(sum(tensor.nbytes for tensor in pair) for pair in pairs) / 1e9
    peak, floor = peak_gigabytes(device), 3 * sum(pair[0].nbytes for pair in pairs) / bandwidth
    by_torch = median_seconds(lambda: [weighted_mean_on_device(*pair, 0.5) for pair in pairs], device)
    simple = median_seconds(lambda: [torch.lerp(*pair, 0.5) for pair in pairs], device)
    wrong = [(torch.lerp(*pair, 0.9) != weighted_mean_in_memory(*pair, 0.9)).sum().item() for pair in pairs]
    n = sum(sizes)
    yield (
        f"  transition of 1 + 1 layers and all outside ({n / 1e9:.2f} G weights): {1000 * seconds:.1f} ms, "
        f"{seconds / floor:.1f} x the floor of {1000 * floor:.1f} ms; {peak - held:.1f} GB beside the experts, "
        f"{n * pairs[0][0].element_size() / 1e9:.1f} of them the result"
    )
    yield (
        f"  operations of torch, with the same bits: {1000 * by_torch:.1f} ms; torch.lerp: {1000 * simple:.1f} ms, and "
        f"at weight 0.9 {100 * sum(wrong) / n:.2f} % of the elements are not the mean rounded once"
    )


def random_model(fields, device, dtype):
    torch.manual_seed(0)
    config = LlamaConfig(**fields, bos_token_id=None, eos_token_id=None, pad_token_id=None, dtype=dtype)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(previous)


def number_tokenizer(n_words):
    """A tokenizer of numbered words, one token each."""
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(n_words)}, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": word(0), "pad_token": word(1), "eos_token": word(2)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def word(token):
    return ("<unk>", "<pad>", "<eos>")[token] if token < 3 else f"w{token}"


def text_of(ids):
    return " ".join(map(word, ids))


def draw_prompts(size, n):
    """Token ids of prompts: a shared prefix, and a problem of some tokens each."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda length: torch.randint(3, size.model["vocab_size"], (length,), generator=generator).tolist()  # noqa: E731
    lengths = torch.randint(*size.suffix, (n,), generator=generator).tolist()
    return draw(size.prefix), [draw(length) for length in lengths]


@torch.inference_mode()
def decode_lines(model, size, device, bandwidth, rate):
    """Prefill and a decode step of a few rows and of many, ours and transformers'."""
    n_weights = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    prefix_ids, _ = draw_prompts(size, 1)
    seconds = median_seconds(lambda: run_prefix(model, prefix_ids), device)
    operations = 2 * n_weights * len(prefix_ids)
    yield (
        f"prefill of {len(prefix_ids)} shared tokens: {1000 * seconds:.1f} ms, {operations / seconds / 1e12:.0f} "
        f"TFLOP/s of the {rate / 1e12:.0f} of a large matrix product"
    )
    prefix = run_prefix(model, prefix_ids)
    length = sum(size.suffix) // 2
    for n_rows in size.rows:
        _, suffixes = draw_prompts(dataclasses.replace(size, suffix=(length, length + 1)), n_rows)
        with shared_attention(model):
            peak_gigabytes(device)
            seconds = median_seconds(lambda suffixes=suffixes: engine.prefill(model, prefix, suffixes), device, 3)
            operations = 2 * n_weights * n_rows * length
            yield (
                f"prefill of {n_rows} problems of {length} tokens: {1000 * seconds:.0f} ms, "
                f"{operations / seconds / 1e12:.0f} TFLOP/s; {peak_gigabytes(device):.1f} GB in all"
            )
            times = step_seconds(model, prefix, suffixes, device)
            operations = operation_line(model, prefix, suffixes, device)
        head = model.config.hidden_size // model.config.num_attention_heads * model.config.num_key_value_heads
        kv = 2 * model.config.num_hidden_layers * head * (len(prefix_ids) + n_rows * length)
        floor = (n_weights + kv) * model.lm_head.weight.itemsize / bandwidth
        yield (
            f"decode step of {n_rows} rows after {len(prefix_ids)} + {length} tokens, floor {1000 * floor:.1f} ms: "
            + ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in times.items())
        )
        yield operations
        n_peer_rows = min(n_rows, 64)  # each of them holds the prefix
        seconds = peer_step_seconds(model, prefix, suffixes[:n_peer_rows], device)
        yield f"  transformers, a token in each of {n_peer_rows} rows: {1000 * seconds:.1f} ms"


def step_seconds(model, prefix, suffixes, device):
    """Name -> seconds of a decode step."""
    cache, _ = engine.prefill(model, prefix, suffixes)
    starts, times, choices = [len(suffix) for suffix in suffixes], {}, {}
    for n_slots in sorted({1, decode_steps.FixedSteps(model, cache).n_slots}):
        new_ids = [suffix[:n_slots] for suffix in suffixes]
        for name in ("packed", "fixed shape", "CUDA graph"):
            if name == "packed":
                steps = decode_steps.PackedSteps(model, cache)
            else:
                steps = decode_steps.FixedSteps(model, cache, capture=name == "CUDA graph" and device == "cuda")
            steps.predict(new_ids, starts)
            key = f"{name}, {n_slots} a row"
            times[key] = median_seconds(lambda steps=steps, new_ids=new_ids: steps.predict(new_ids, starts), device)
            choices[name] = steps.predict(new_ids, starts)
        assert choices["fixed shape"] == choices["CUDA graph"]
    return times


class OperationCount(TorchDispatchMode):
    """How often each operation that is no view is issued."""

    def __init__(self):
        super().__init__()
        self.operations = collections.Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if not operation.is_view and operation is not torch.ops.aten._unsafe_view.default:
            self.operations[str(operation)] += 1
        return operation(*arguments, **(options or {}))


@torch.inference_mode(False)
@torch.no_grad()
def operation_line(model, prefix, suffixes, device):
    """Operations, host synchronisations and kernels of a decode step of fixed shape; prints its slowest kernels."""
    cache, _ = engine.prefill(model, prefix, suffixes)
    steps = decode_steps.FixedSteps(model, cache, capture=device == "cuda")
    inputs = [suffix[: steps.n_slots] for suffix in suffixes], [len(suffix) for suffix in suffixes]
    steps.predict(*inputs)
    with decode_steps.fused(steps.norms), OperationCount() as issued:
        steps.step()
    n_operations = issued.operations.total() / model.config.num_hidden_layers
    line = f"  a step of {steps.n_slots} a row: {n_operations:.1f} operations a layer that are no views"
    if device == "cpu":
        return line
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        steps.predict(*inputs)
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        steps.predict(*inputs)
        wait(device)
    kernels, milliseconds = 0, collections.Counter()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels += 1
            milliseconds[event.name[:80]] += event.device_time / 1000
    print(*(f"    {value:6.2f} ms {name}" for name, value in milliseconds.most_common(14)), sep="\n")
    n_waits = sum("called a synchronizing" in str(one.message) for one in waits)
    return (
        f"{line}, {n_waits} waits for the device; as a graph {kernels:,} kernels and copies that take "
        f"{milliseconds.total():.1f} ms"
    )


def peer_step_seconds(model, prefix, suffixes, device):
    """Seconds of a step of transformers, one token a row, with a cache that repeats the prefix."""
    cache, n_rows = DynamicCache(), len(suffixes)
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1), layer)
    ids = torch.tensor(suffixes, device=device)
    model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    return median_seconds(lambda: model(input_ids=ids[:, :1], past_key_values=cache).logits.argmax(-1).tolist(), device)


@torch.inference_mode()
def answer_lines(model, tokenizer, size, device):
    """Problems a second of an MGSM-like evaluation, ours and transformers' generate."""
    prefix, suffixes = draw_prompts(size, size.n_problems)
    prompts = [text_of(prefix + suffix) for suffix in suffixes]
    use = "used" if supports_shared_attention(model) else "refused"
    yield f"shared attention of this model in {model.dtype}: {use}"
    peak_gigabytes(device)
    rates, kept = {}, engine.decode_steps
    ways = {"as ever": kept, "packed": decode_steps.PackedSteps}
    for name, way in ways.items():
        rows, seconds = [], []

        def recorded_steps(model, cache, way=way, rows=rows, seconds=seconds):
            steps = way(model, cache)
            predict = steps.predict

            def recorded(*arguments):
                step_started = time.perf_counter()
                predicted = predict(*arguments)  # waits for the device
                seconds.append(time.perf_counter() - step_started)
                rows.append(len(arguments[0]))
                return predicted

            steps.predict = recorded
            return steps

        engine.decode_steps = recorded_steps
        wait(device)
        started = time.perf_counter()
        answers = engine.generate(model, tokenizer, prompts, size.new_tokens, ["no such text"], batch_tokens=1 << 17)
        wait(device)
        rates[name] = len(prompts) / (time.perf_counter() - started)
        n_tokens = sum(answer.n_tokens for answer in answers)
        yield (
            f"{len(prompts)} problems of {len(prefix)} + {size.suffix[0]} to {size.suffix[1]} tokens, "
            f"{size.new_tokens} new, steps {name}: {rates[name]:.2f} problems/s, "
            f"{rates[name] * n_tokens / len(prompts):.0f} tokens/s, {len(rows)} steps that took {sum(seconds):.1f} of "
            f"{len(prompts) / rates[name]:.1f} s, {n_tokens / sum(rows):.2f} tokens a row and step, "
            f"{peak_gigabytes(device):.1f} GB"
        )
        gc.collect()  # the recorded steps are a circle, and hold the cache
    engine.decode_steps = kept
    texts = [answer.text for answer in answers]
    for batch in size.peer_batches:
        wait(device)
        started, outputs = time.perf_counter(), {}
        order = sorted(range(len(prompts)), key=lambda i: -len(suffixes[i]))
        for first in range(0, len(order), batch):
            group = order[first : first + batch]
            inputs = tokenizer([prompts[i] for i in group], return_tensors="pt", padding=True, padding_side="left").to(
                device
            )
            tokens = model.generate(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=size.new_tokens,
                do_sample=False, pad_token_id=1,
            )  # fmt: skip
            new = tokens[:, inputs.input_ids.shape[1] :]
            outputs |= dict(zip(group, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
        wait(device)
        rate = len(prompts) / (time.perf_counter() - started)
        same = sum(outputs[i] == texts[i] for i in range(len(prompts)))
        yield (
            f"  transformers' generate, batches of {batch}: {rate:.2f} problems/s, ours is "
            f"{rates['as ever'] / rate:.1f} x; {same} of {len(prompts)} texts are as ours ({model.dtype}), "
            f"{peak_gigabytes(device):.1f} GB"
        )


@torch.inference_mode()
def exact_lines(tokenizer, size, device):
    """In float32 the answers of a small model are those of generate, one prompt at a time."""
    fields = size.model | {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }  # fmt: skip
    model = random_model(fields, device, torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.mul_(4.0)
    prefix, suffixes = draw_prompts(size, min(64, size.n_problems))
    prompts = [text_of(prefix + suffix) for suffix in suffixes]
    answers, same = engine.generate(model, tokenizer, prompts, 32), 0
    for suffix, answer in zip(suffixes, answers, strict=True):
        ids = torch.tensor([prefix + suffix], device=device)
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=1
        )
        same += answer.text == tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    yield f"float32, 4 layers: {same} of {len(prompts)} answers of 32 tokens are those of generate, one at a time"
    assert same == len(prompts)


def training_lines(tokenizer, size, device, dtype):
    """Tokens a second of fine-tuning, all weights and LoRA, with the memory it takes."""
    n_rows, n_tokens, steps = size.train
    model = random_model(size.model | size.trained, device, dtype)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, size.model["vocab_size"], (n_rows * steps, n_tokens - 1), generator=generator).tolist()
    half = n_tokens // 2
    rows = [{"prompt": text_of(row[:half]), "completion": f" {text_of(row[half:])}"} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        model.config.eos_token_id, model.generation_config.eos_token_id = 2, 2
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        n_weights = sum(p.numel() for p in model.parameters())
        del model
        gc.collect()
        for name, changed in (("LoRA of rank 16", {"lora_rank": 16}), ("all weights", {})):
            seconds = []
            for n_steps in (1, 2, steps):  # the first one warms up; what a training takes beside its steps is in all
                peak_gigabytes(device)
                started = time.perf_counter()
                finetune(
                    base, rows, Path(folder) / "expert", steps=n_steps, learning_rate=1e-4, batch_size=n_rows,
                    max_length=n_tokens, seed=0, threads=1, device=device,
                    dtype="bfloat16" if device == "cuda" else "float32", **changed,
                )  # fmt: skip
                wait(device)
                seconds.append(time.perf_counter() - started)
            rate = n_rows * n_tokens * (steps - 2) / (seconds[2] - seconds[1])
            yield (
                f"fine-tuning {n_weights / 1e9:.2f} G weights, {name}: {rate:,.0f} tokens/s, {n_rows} rows of "
                f"{n_tokens} tokens a step, {peak_gigabytes(device):.1f} GB; start and end {seconds[1]:.0f} s"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device, size = options.device, TINY if options.tiny else FULL
    dtype = torch.float32 if options.tiny else torch.bfloat16
    lines, failed, started = [], [], time.perf_counter()

    def show(new_lines):
        try:
            for line in new_lines:
                lines.append(line)
                print(f"[{time.perf_counter() - started:5.0f} s] {line}", flush=True)
        except Exception:  # a section that fails does not take the others along
            traceback.print_exc()
            failed.append(new_lines.__name__)
            lines.append(f"{new_lines.__name__} FAILED: {one_line(sys.exc_info()[1])}")
            gc.collect()
        out.write_text("\n".join(lines) + "\n")

    name = torch.cuda.get_device_name() if device == "cuda" else measure.processor_name()
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.txt"
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    show([f"{name}, {platform.machine()}, Python {platform.python_version()}, {versions}"])
    bandwidth, rate = measure_ceilings(device, dtype, size)
    show([f"copy {bandwidth / 1e9:.0f} GB/s read and written, matrix product {rate / 1e12:.1f} TFLOP/s ({dtype})"])
    tokenizer = number_tokenizer(size.model["vocab_size"])
    show(exact_lines(tokenizer, size, device))
    model = random_model(size.model, device, dtype)
    show([f"model of {sum(p.numel() for p in model.parameters()) / 1e9:.2f} G weights, {dtype}"])
    show(decode_lines(model, size, device, bandwidth, rate))
    show(answer_lines(model, tokenizer, size, device))
    del model
    gc.collect()
    show(training_lines(tokenizer, size, device, dtype))
    show(merge_lines(device, dtype, size, bandwidth))
    show([f"all of it: {time.perf_counter() - started:.0f} s"])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
