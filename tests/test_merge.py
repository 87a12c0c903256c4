"""Merges on disk: every tensor is what the plan says, bit for bit; bad inputs stop before a write."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bits, same_bits, split, tensors, word_tokenizer, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import checkpoint, merge, provenance
from layerswap.blend import blend, mean
from layerswap.paths import UserError
from layerswap.plan import Plan, layer_swap, soup, uniform
from layerswap.vectors import TaskVectors

SWAP = layer_swap(4, 1, 1, outside=0)
TIES = TaskVectors("ties", "ties", density=0.3, scale=0.7)


def misplaced(merged, math, language, sources):
    """Names of the tensors that are not bit-equal to their source (part -> math or language)."""
    experts = {"math": tensors(math), "language": tensors(language)}
    merged, wrong = tensors(merged), []
    assert merged.keys() == experts["math"].keys()
    for name, tensor in merged.items():
        part = int(name.split(".")[2]) if name.startswith("model.layers.") else "outside"
        if not same_bits(tensor, experts[sources[part]][name]):
            wrong.append(name)
    return wrong


# --- what a merge holds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", [None, "12KB"])
def test_swapped_tensors_keep_every_bit(checkpoint_factory, tmp_path, dtype, tied, shard):
    math = checkpoint_factory("math", 1, dtype=dtype, tied=tied, special=True)
    language = checkpoint_factory("language", 2, dtype=dtype, tied=tied, special=True, shard=shard)
    assert len(list(language.glob("*.safetensors"))) > 1 or shard is None
    merge.merge(math, language, SWAP, tmp_path / "out")
    sources = {0: "language", 1: "math", 2: "math", 3: "language", "outside": "math"}
    assert misplaced(tmp_path / "out", math, language, sources) == []
    zeros = [bits(t) for t in tensors(tmp_path / "out").values() if ((t == 0) & t.signbit()).any() and t.isnan().any()]
    assert len(zeros) == len(tensors(math))  # the planted values are still there


@pytest.mark.parametrize("shift", [1, -1])
def test_a_swap_off_by_one_layer_is_caught(experts, tmp_path, shift):
    layers = tuple(SWAP.layers[(i - shift) % 4] for i in range(4))
    merge.merge(*experts, Plan("off by one", layers, 0), tmp_path / "out")
    sources = {0: "language", 1: "math", 2: "math", 3: "language", "outside": "math"}
    wrong = misplaced(tmp_path / "out", *experts, sources)
    assert {int(name.split(".")[2]) for name in wrong} == ({1, 3} if shift == 1 else {0, 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weight", [0.5, 0.25, 0.3, 1 / 3, 0.9])
def test_mixed_tensors_are_the_float64_mean_rounded_once(tmp_path, dtype, weight):
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(700_000, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    for name, tensor in (("math", a), ("language", b)):  # large enough for several pieces
        (tmp_path / name).mkdir()
        save_file({"x": tensor}, tmp_path / name / "model.safetensors")
    pair = {name: checkpoint.read_header(tmp_path / name)["x"] for name in ("math", "language")}
    merged = b"".join(bytes(made) for _, made in blend(pair, uniform(1, weight, "x"), weight))
    got = torch.frombuffer(bytearray(merged), dtype=dtype).double()
    expected = (1 - weight) * a.double() + weight * b.double()
    if dtype in (torch.bfloat16, torch.float16):  # torch goes by way of float32, and rounds twice
        fraction, exponent = np.frexp(expected.numpy())
        bits_kept = {torch.bfloat16: 8, torch.float16: 11}[dtype]
        fraction = np.rint(np.ldexp(fraction, bits_kept + np.minimum(0, exponent + 13) * (dtype == torch.float16)))
        once = np.ldexp(fraction, exponent - bits_kept - np.minimum(0, exponent + 13) * (dtype == torch.float16))
        assert torch.equal(got, torch.from_numpy(once))
    else:
        assert torch.equal(got, expected.to(dtype).double())


def test_a_mean_that_float32_would_call_a_tie_is_none():
    pair = [bytearray(np.array([bits16], np.uint16).tobytes()) for bits16 in (0xBAB3, 0x3B14)]
    got = mean(*pair, 0.9, "BF16").view(np.uint16)[0]  # of 0.00189590454101562524, between ...8921 and ...8997
    assert torch.tensor([got], dtype=torch.uint16).view(torch.bfloat16).item() == 0.00189971923828125


def test_numbers_at_the_edge_are_mixed_as_torch_does():
    edge = [0.0, -0.0, 1e-45, -1e-40, 3.38e38, -3.38e38, float("inf"), -float("inf"), float("nan"), 1.0, 256.5]
    for dtype in (torch.bfloat16, torch.float32):
        grid = torch.tensor(edge).to(dtype)
        a, b = grid.repeat_interleave(len(edge)), grid.repeat(len(edge))
        for weight in (0.5, 0.3):
            pieces = [bytearray(bits(tensor).tobytes()) for tensor in (a, b)]
            got = mean(*pieces, weight, {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype])
            expected = ((1 - weight) * a.double() + weight * b.double()).to(dtype)
            assert torch.equal(torch.from_numpy(got).view(dtype).isnan(), expected.isnan())
            assert ((got == bits(expected)).reshape(len(a), -1).all(1) | expected.isnan().numpy()).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.3]), min_size=4, max_size=4), st.sampled_from([0.0, 1.0, 0.5]))
def test_any_plan(experts, layers, outside):
    plan = Plan("any", tuple(layers), outside)
    with tempfile.TemporaryDirectory() as folder:
        manifest = merge.merge(*experts, plan, Path(folder) / "out")
        merged, math, language = (tensors(each) for each in (Path(folder) / "out", *experts))
        assert manifest["digest"] == checkpoint.digest(Path(folder) / "out")
        assert provenance.verify(Path(folder) / "out") == len(merged)
        stored = {
            role: {name: checkpoint.tensor_digest(t) for name, t in checkpoint.read_header(path).items()}
            for role, path in zip(("math", "language", "out"), (*experts, Path(folder) / "out"), strict=True)
        }
    for name, tensor in merged.items():
        weight = layers[int(name.split(".")[2])] if "layers" in name else outside
        expected = {0: math[name], 1: language[name]}.get(weight)
        mixed = expected is None
        expected = math[name] + weight * (language[name] - math[name]) if mixed else expected
        torch.testing.assert_close(tensor, expected, rtol=1e-5 * mixed, atol=1e-7 * mixed)
        source = {0: "math", 1: "language"}.get(weight, "math+language")
        entry = {"source": source, "weight": weight, "sha256": stored["out"][name]}
        if mixed:
            entry["from"] = {role: stored[role][name] for role in ("math", "language")}
        assert manifest["tensors"][name] == entry


def test_merged_folder_opens_in_transformers(checkpoint_factory, tmp_path):
    math = checkpoint_factory("math", 1, tied=False)
    language = checkpoint_factory("language", 2, tied=False, shard="20KB")
    (math / "chat_template.jinja").write_text("{{ messages }}")
    (math / "optimizer.pt").write_bytes(b"not wanted")
    manifest = merge.merge(math, language, layer_swap(4, 1, 1, 1), tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    stored = tensors(tmp_path / "out")
    assert all(same_bits(stored[name], parameter) for name, parameter in model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == word_tokenizer().get_vocab()
    assert json.loads((tmp_path / "out" / "layerswap.json").read_text()) == manifest
    names = {path.name for path in math.iterdir()} - {"optimizer.pt"} | {"layerswap.json", "README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all((tmp_path / "out" / n).read_bytes() == (math / n).read_bytes() for n in names if n.startswith("tok"))
    assert str(tmp_path) not in json.dumps(manifest)


def test_tensors_are_aligned_whatever_the_shards(checkpoint_factory, tmp_path):
    steps, flags = torch.arange(3), torch.tensor([True, False, True])
    for name in ("math", "language"):
        data = tensors(checkpoint_factory(name)) | {"flags": flags, "steps": steps}
        split(tmp_path / name, {"a.safetensors": ["flags"], "b.safetensors": data.keys() - {"flags"}}, data)
    merge.merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "out")
    header = checkpoint.read_header(tmp_path / "out")
    assert all(t.start % checkpoint.BYTES[t.dtype] == 0 for t in header.values())
    merged = tensors(tmp_path / "out")
    assert torch.equal(merged["steps"], steps) and torch.equal(merged["flags"], flags)


# --- bad inputs ---------------------------------------------------------------------------------------------


def config(**fields):
    """Change fields of the language expert's config.json."""

    def change(math, language):
        path = language / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def both(change):
    """Make the same change to both experts."""
    return lambda math, language: (change(math, math), change(language, language))


def content(name, data):
    """Overwrite a file of the language expert; None removes it."""

    def change(math, language):
        (language / name).unlink() if data is None else (language / name).write_bytes(data)

    return change


def header(edit, file="model.safetensors"):
    """Edit the JSON header of the language expert's file."""

    def change(math, language):
        raw = (language / file).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        edit(entries)
        text = json.dumps(entries).encode()
        (language / file).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return change


def raw(edit):
    """Edit the bytes of the language expert's model.safetensors."""

    def change(math, language):
        path = language / "model.safetensors"
        path.write_bytes(edit(path.read_bytes()))

    return change


def stored(edit):
    """Edit the language expert's tensors (a dict) in a well-formed file."""

    def change(math, language):
        data = load_file(language / "model.safetensors")
        save_file(edit(data) or data, language / "model.safetensors")

    return change


def sharded(edit):
    """Save the language expert as shards a and b, then edit (its folder, the weight map)."""

    def change(math, language):
        data = load_file(language / "model.safetensors")
        split(language, {"a.safetensors": sorted(data)[:9], "b.safetensors": sorted(data)[9:]}, data)
        index = language / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        edit(language, weight_map)
        index.write_text(json.dumps({"weight_map": weight_map}))

    return change


def tokenizer(edit):
    """Edit the language expert's tokenizer.json."""

    def change(math, language):
        data = json.loads((language / "tokenizer.json").read_text())
        edit(data)
        (language / "tokenizer.json").write_text(json.dumps(data))

    return change


def vocabulary(edit):
    """Edit the vocabulary (word -> id) in the language expert's tokenizer.json."""
    return tokenizer(lambda data: edit(data["model"]["vocab"]))


def move_start(entry, by):
    entry["data_offsets"][0] += by


def pickled(math, language):
    (language / "model.safetensors").rename(language / "pytorch_model.bin")


NORM, Q = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
K = Q.replace("q_proj", "k_proj")
BAD = {
    "no such folder": (lambda math, language: shutil.rmtree(language), "language: no such folder"),
    "a pickle": (pickled, "pytorch_model.bin, a pickle; .*only safetensors"),
    "no weights": (content("model.safetensors", None), "expected model.safetensors"),
    "no config": (content("config.json", None), "config.json: expected a JSON object"),
    "broken config": (content("config.json", b"{"), "config.json: expected a JSON object"),
    "config is a number": (content("config.json", b"1"), "config.json: expected a JSON object"),
    "empty file": (content("model.safetensors", b""), "found 0 bytes"),
    "truncated file": (raw(lambda data: data[:-1]), r"model.safetensors: .*found \d+ bytes, expected \d+"),
    "bytes after the tensors": (raw(lambda data: data + b"\0"), r"found \d+ bytes, expected \d+"),
    "header longer than the file": (raw(lambda data: b"\xff" * 8 + data[8:]), "expected a header of"),
    "header is no JSON": (raw(lambda data: data[:8] + b"x" + data[9:]), "not a safetensors header"),
    "header is a list": (raw(lambda data: b"\2" + b"\0" * 7 + b"[]"), "not a safetensors header"),
    "header without offsets": (header(lambda h: h[Q].pop("data_offsets")), "not a safetensors header"),
    "nested without end": (content("config.json", b"[" * 200_000), "config.json: expected a JSON object"),
    "a header nested without end": (
        raw(lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000), "not a safetensors header"
    ),
    "a size that is no whole number": (header(lambda h: h[NORM].update(shape=[32.0])), "32.0 is no size"),
    "a size that is a truth": (header(lambda h: h[Q].update(shape=[True, 32])), "True is no size"),
    "a size beyond all disks": (header(lambda h: h[Q].update(shape=[10**4000])), "is no size"),
    "an offset in parts": (header(lambda h: h[Q].update(data_offsets=[0.0, 1.0])), "0.0 is no size"),
    "half a character": (header(lambda h: h.update({"\ud800": h.pop(Q)})), "not a safetensors header"),
    "layers in words": (both(config(num_hidden_layers="four")), "expected 'four' layers"),
    "layers without number": (both(config(num_hidden_layers=10**12)), "expected 1000000000000 layers"),
    "unknown dtype": (header(lambda h: h[Q].update(dtype="F12")), "not a safetensors header.*F12"),
    "wrong shape": (header(lambda h: h[Q].update(shape=[32, 31])), f"tensor {Q} .*lies at"),
    "negative shape": (header(lambda h: h[Q].update(shape=[-32, -32])), f"tensor {Q}: -32 is no size"),
    "overlapping tensors": (header(lambda h: h[Q].update(data_offsets=h[K]["data_offsets"])), "lies at byte"),
    "a start too early": (header(lambda h: move_start(h[Q], -4)), f"tensor {Q}.*(lies at bytes|is no size)"),
    "a gap": (header(lambda h: h.pop(Q)), "tensor .*lies at bytes"),
    "one file and an index": (
        content("model.safetensors.index.json", b"{}"),
        "both model.safetensors and model.safetensors.index.json",
    ),
    "index without a map": (
        lambda m, lang: ((lang / "model.safetensors").rename(lang / "model.safetensors.index.json"),
                         (lang / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')),
        "expected a weight_map",
    ),
    "missing shard": (sharded(lambda folder, _: (folder / "b.safetensors").unlink()), "b.*: no such file"),
    "shard outside the folder": (
        sharded(lambda folder, names: names.update({NORM: "../math/model.safetensors"})),
        "'../math/model.safetensors' is outside",
    ),
    "tensor in two shards": (
        sharded(lambda folder, names: shutil.copy(folder / "a.safetensors", folder / "b.safetensors")),
        "is in a.safetensors, found it in b.safetensors",
    ),
    "tensor not in the index": (
        sharded(lambda folder, names: names.pop(NORM)), f"{NORM} is in no file, found it in b.safetensors"
    ),
    "tensor in no shard": (
        sharded(lambda folder, names: names.update({"extra": "a.safetensors"})),
        "extra is in a.safetensors, it is not",
    ),
    "tensor missing": (stored(lambda data: data.pop(Q) is None), f"{Q} is F32 .* and missing in .*language"),
    "tensor too many": (
        stored(lambda data: data.update(extra=torch.zeros(1))), "tensor extra is missing in .*math and F32"
    ),
    "other dtype": (stored(lambda data: {k: v.bfloat16() for k, v in data.items()}), "is F32 .* and BF16"),
    "other shape": (stored(lambda data: data.update({NORM: torch.ones(3)})), r"is F32 \[32\] .* \[3\]"),
    "other rope": (config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}), "rope_.*500000"),
    "other eps": (config(rms_norm_eps=1e-5), "config field rms_norm_eps is 1e-06 .* and 1e-05"),
    "other activation": (config(hidden_act="gelu"), "hidden_act is silu .* and gelu"),
    "other heads": (config(num_attention_heads=2), "num_attention_heads is 4 .* and 2"),
    "other tying": (config(tie_word_embeddings=False), "tie_word_embeddings is True .* and False"),
    "other vocabulary size": (config(vocab_size=99), "vocab_size is .* and 99"),
    "other end of text": (config(eos_token_id=2), "eos_token_id is 1 .* and 2"),
    "a layer without tensors": (both(config(num_hidden_layers=5)), "expected 5 layers"),
    "a word more": (vocabulary(lambda v: v.update(new=len(v))), "token 'new' is missing in .*math and"),
    "two words exchanged": (vocabulary(lambda v: v.update(plus=v["one"], one=v["plus"])), "token 'one' is"),
    "another normalizer": (tokenizer(lambda data: data.update(normalizer={"type": "NFC"})), "tokenizer's normalizer"),
    "no tokenizer": (content("tokenizer.json", None), "token '.*' is .* and missing in .*language"),
    "broken tokenizer": (content("tokenizer.json", b'{"model": {}}'), "tokenizer.json: not a tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_experts_stop_before_anything_is_written(experts, tmp_path, case):
    change, message = BAD[case]
    math, language = (shutil.copytree(folder, tmp_path / folder.name) for folder in experts)
    change(math, language)
    with pytest.raises(UserError, match=message) as error:
        merge.merge(math, language, SWAP, tmp_path / "new" / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_bad_calls_stop_before_anything_is_written(experts, tmp_path):
    math, language = experts
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(UserError, match="out: exists already"):
        merge.merge(math, language, SWAP, tmp_path / "out")
    with pytest.raises(UserError, match="is both the math and the language model"):
        merge.merge(math, math.parent / "language" / ".." / "math", SWAP, tmp_path / "new")
    with pytest.raises(UserError, match="donor is 'base'"):
        merge.merge(math, language, SWAP, tmp_path / "new", donor="base")
    with pytest.raises(UserError, match="shard_size is 0"):
        merge.merge(math, language, SWAP, tmp_path / "new", shard_size=0)
    with pytest.raises(UserError, match="needs math, language, base; base is None"):
        merge.merge(math, language, TIES, tmp_path / "new")
    with pytest.raises(UserError, match="needs math, language; base is "):
        merge.merge(math, language, SWAP, tmp_path / "new", base=math)
    with pytest.raises(UserError, match="is both the language and the base model"):
        merge.merge(math, language, TIES, tmp_path / "new", base=language)
    with pytest.raises(UserError, match="has 5 layers, .*math has 4"):
        merge.merge(math, language, uniform(5, 0.5, "soup"), tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and [path.name for path in (tmp_path / "out").iterdir()] == [
        "kept"
    ]


def test_integers_are_copied_but_not_mixed(checkpoint_factory, tmp_path):
    for name in ("math", "language"):
        stored(lambda data: data.update(steps=torch.arange(3)))(None, checkpoint_factory(name))
    merge.merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "copied")
    with pytest.raises(UserError, match="steps is I64, which cannot be mixed"):
        merge.merge(tmp_path / "math", tmp_path / "language", uniform(4, 0.5, "soup"), tmp_path / "mixed")
    assert {path.name for path in tmp_path.iterdir()} == {"math", "language", "copied"}


# --- interruption -------------------------------------------------------------------------------------------

# Kills itself with SIGKILL at the nth line that runs in the merge's own code, whatever that line is doing.
KILLED = """
import os, signal, sys
from layerswap import checkpoint, merge, paths, plan
own, count, last = {checkpoint.__file__, merge.__file__, paths.__file__}, 0, int(sys.argv[4])
def trace(frame, event, argument):
    global count
    if frame.f_code.co_filename not in own:
        return None
    count += event == "line"
    if count == last > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
merge.merge(*sys.argv[1:3], plan.layer_swap(4, 1, 1, outside=0), sys.argv[3])
sys.settrace(None)
print(count)
"""


def test_killed_merges_leave_nothing_or_all(experts, tmp_path):
    def run(out, line):
        arguments = [str(argument) for argument in (*experts, out, line)]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)

    whole = run(tmp_path / "0" / "whole", 0)
    lines, expected = int(whole.stdout), (tmp_path / "0" / "whole" / "layerswap.json").read_bytes()
    moments = sorted(random.Random(0).sample(range(lines // 4, lines), 6)) + list(range(lines - 8, lines + 1))
    complete = 0
    for line in moments:
        out = tmp_path / str(line) / "out"  # alone there, so that each run has as many lines
        assert run(out, line).returncode == -9
        if out.exists():
            complete += 1
        else:
            merge.merge(*experts, SWAP, out)
        assert (out / "layerswap.json").read_bytes() == expected
        assert json.loads(expected)["digest"] == checkpoint.digest(out)
        assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "0" / "whole").iterdir()}
    assert 0 < complete < len(moments)  # moments on both sides of the rename


def test_fifty_kills_at_random_moments(tmp_path):
    experts = [write_checkpoint(tmp_path / name, seed, vocab_size=40_000) for seed, name in enumerate("ml")]
    command = [sys.executable, "-m", "layerswap", "merge", "--math", experts[0], "--language", experts[1]]
    command = [*map(str, command), "--transition-bottom", "0", "--transition-top", "0", "--outside", "0", "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    lasts, rng, complete = time.monotonic() - started, random.Random(0), 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    out = tmp_path / "new" / "out"
    for _ in range(50):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.05) * lasts)
        process.kill()
        process.wait()
        if out.exists():
            complete += 1
            assert {path.name: path.read_bytes() for path in out.iterdir()} == files
            shutil.rmtree(out)
    merge.merge(*experts, SWAP, out)
    assert list(out.parent.iterdir()) == [out]  # the next merge removed what the killed ones had left
    assert {path.name for path in out.iterdir()} == files.keys() and provenance.verify(out) == len(tensors(out))
    assert complete < 50


def test_untouched_experts(checkpoint_factory, tmp_path):
    math, language = write_checkpoint(tmp_path / "math", 1), write_checkpoint(tmp_path / "language", 2)
    before = {path: path.read_bytes() for folder in (math, language) for path in folder.iterdir()}
    merge.merge(math, language, uniform(4, 0.5, "soup"), tmp_path / "out")
    assert before == {path: path.read_bytes() for folder in (math, language) for path in folder.iterdir()}


# --- files, links, ways of copying --------------------------------------------------------------------------


def test_shards_are_cut_at_the_given_size(checkpoint_factory, tmp_path):
    math = checkpoint_factory("math", 1, tied=False)
    language = checkpoint_factory("language", 2, tied=False, shard="20KB")
    whole = merge.merge(math, language, SWAP, tmp_path / "whole")
    parts = merge.merge(math, language, SWAP, tmp_path / "parts", shard_size=9000)
    assert parts["digest"] == whole["digest"] and parts["tensors"] == whole["tensors"]
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    stored = tensors(tmp_path / "parts")
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in (tmp_path / "parts").glob("*.safetensors")]
    assert len(sizes) > 5 and max(sizes) <= 9000
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "parts", output_loading_info=True)
    assert not any(info.values())


def test_a_shard_that_is_one_experts_can_be_a_link(checkpoint_factory, tmp_path):
    folders = []
    for seed, name in enumerate(("math", "language")):
        data = tensors(checkpoint_factory(name, seed))
        groups = {f"{i}.safetensors": [n for n in data if f"layers.{i}." in n] for i in range(4)}
        split(tmp_path / name, groups | {"4.safetensors": [n for n in data if "layers" not in n]}, data)
        folders.append(tmp_path / name)
    plan = layer_swap(4, 1, 0, 1, outside=0)
    linked = merge.merge(*folders, plan, tmp_path / "linked", link=True)
    copied = merge.merge(*folders, plan, tmp_path / "copied")
    assert linked["tensors"] == copied["tensors"] and linked["digest"] == copied["digest"]
    assert provenance.verify(tmp_path / "linked") == len(copied["tensors"])
    origin = {
        path.stat().st_ino: f"{path.parent.name}/{path.name}" for f in folders for path in f.glob("*.safetensors")
    }
    found = [origin.get(path.stat().st_ino) for path in sorted((tmp_path / "linked").glob("*.safetensors"))]
    assert found == ["language/0.safetensors", None, "math/2.safetensors", "math/3.safetensors", "math/4.safetensors"]


@pytest.mark.parametrize("lacking", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("short", [False, True])
def test_every_way_of_copying_gives_the_same_file(checkpoint_factory, tmp_path, monkeypatch, lacking, short):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "not here")

    def by_three(way, at):  # systems may copy less than was asked for
        return lambda *arguments: way(*arguments[:at], min(3000, arguments[at]), *arguments[at + 1 :])

    math, language = checkpoint_factory("math", 1, special=True), checkpoint_factory("language", 2, special=True)
    merge.merge(math, language, SWAP, tmp_path / "expected")
    for name, at in (("copy_file_range", 2), ("sendfile", 3)):
        way = getattr(os, name)
        monkeypatch.setattr(os, name, refuse if name in lacking else by_three(way, at) if short else way)
    merge.merge(math, language, SWAP, tmp_path / "out", hashing=False)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "expected" / file).read_bytes()


def test_the_donor_gives_config_and_tokenizer(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    for folder in (math, language):
        (folder / "chat_template.jinja").write_text(folder.name)
    for donor in ("math", "language"):
        merge.merge(math, language, SWAP, tmp_path / f"of-{donor}", donor=donor)
        assert (tmp_path / f"of-{donor}" / "chat_template.jinja").read_text() == donor


def test_progress_counts_every_byte(experts, tmp_path):
    done = []
    merge.merge(*experts, soup(4), tmp_path / "out", progress=done.append)
    assert sum(done) == sum(tensor.nbytes for tensor in tensors(tmp_path / "out").values())


# --- verify -------------------------------------------------------------------------------------------------


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def reshape(path):
    data = load_file(path)
    save_file({name: tensor.reshape(1, *tensor.shape) for name, tensor in data.items()}, path)


CHANGED = {
    "a bit of a tensor": (lambda out: flip(out / "model.safetensors"), "tensor .* has sha256"),
    "a shape": (lambda out: reshape(out / "model.safetensors"), "dtypes or shapes"),
    "the config": (lambda out: flip(out / "config.json"), "config.json: sha256 is"),
    "the model card": (lambda out: flip(out / "README.md"), "README.md: sha256 is"),
    "a file more": (lambda out: (out / "model-1.safetensors").touch(), "model-1.safetensors: is not in the manifest"),
    "a file less": (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "no manifest": (lambda out: (out / "layerswap.json").unlink(), "layerswap.json: expected a JSON object"),
    "a manifest of lists": (
        lambda out: (out / "layerswap.json").write_text('{"files": [], "tensors": {}, "digest": 1}'),
        "not a manifest",
    ),
    "another manifest": (lambda out: (out / "layerswap.json").write_text("{}"), "has no 'files'"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_verify_names_what_changed(experts, tmp_path, case):
    change, message = CHANGED[case]
    merge.merge(*experts, layer_swap(4, 1, 1, 1), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        provenance.verify(tmp_path / "out")


def test_a_merge_without_hashes_says_so(experts, tmp_path):
    plan = layer_swap(4, 1, 1, 1)
    manifest = merge.merge(*experts, plan, tmp_path / "out", hashing=False)
    assert "digest" not in manifest and "sha256" not in manifest["tensors"][NORM]
    assert checkpoint.digest(tmp_path / "out") == merge.merge(*experts, plan, tmp_path / "hashed")["digest"]
    with pytest.raises(UserError, match="nothing to check against"):
        provenance.verify(tmp_path / "out")


# --- a disk that is full, a folder that is closed -----------------------------------------------------------


def test_a_full_disk_is_told_before_anything_is_written(experts, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"out: needs 0.\d MB, .* has 0.0 MB free"):
        merge.merge(*experts, SWAP, tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hashing", [True, False])
def test_a_disk_that_fills_up_leaves_nothing(experts, tmp_path, hashing):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # what a full disk does: writes fail
    try:
        with pytest.raises(OSError, match="too large"):
            merge.merge(*experts, SWAP, tmp_path / "out", hashing=hashing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


# --- task vectors -------------------------------------------------------------------------------------------


def oracle(plan, math, language, base):
    """Task arithmetic and TIES in float64, element by element."""
    math, language, base = (tensor.double().numpy() for tensor in (math, language, base))
    deltas = [math - base, language - base]
    if plan.method == "ties":
        for i, delta in enumerate(deltas):
            kept = np.argsort(-np.abs(delta).ravel(), kind="stable")[: max(1, int(plan.density * delta.size))]
            trimmed = np.zeros(delta.size)
            trimmed[kept] = delta.ravel()[kept]
            deltas[i] = trimmed.reshape(delta.shape)
    weighted = [plan.math * deltas[0], plan.language * deltas[1]]
    added = weighted[0] + weighted[1]
    if plan.method == "ties":
        for at in np.ndindex(added.shape):
            sign = 1 if added[at] >= 0 else -1
            agreeing = [
                (w, d[at]) for w, d in zip((plan.math, plan.language), deltas, strict=True) if w * d[at] * sign > 0
            ]
            total = sum(w for w, _ in agreeing)
            added[at] = sum(w * d for w, d in agreeing) / total if total else 0
    return base + plan.scale * added


VECTORS = [
    TaskVectors("sum", "task arithmetic", 0.4, 0.4),
    TaskVectors("one", "task arithmetic", 0.0, 1.5, scale=0.5),
    TIES,
    TaskVectors("weighted", "ties", 0.7, 0.2, density=0.6),
    TaskVectors("all", "ties"),
]


@pytest.mark.parametrize("plan", VECTORS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_task_vectors(checkpoint_factory, tmp_path, plan, dtype):
    folders = [checkpoint_factory(name, seed, dtype=dtype) for seed, name in enumerate(("math", "language", "base"))]
    manifest = merge.merge(*folders[:2], plan, tmp_path / "out", base=folders[2])
    assert manifest["plan"] == plan.to_dict() and provenance.verify(tmp_path / "out")
    stored = [tensors(folder) for folder in folders]
    different = total = 0
    for name, tensor in tensors(tmp_path / "out").items():
        expected = torch.from_numpy(oracle(plan, *(each[name] for each in stored)))
        error = (tensor.double() - expected).abs()
        different += (error > torch.finfo(dtype).eps * expected.abs() + 1e-6).sum().item()
        total += tensor.numel()
        assert manifest["tensors"][name]["source"] == "math+language+base"
    assert different <= (
        0 if dtype == torch.float32 else 0.01 * total
    )  # bfloat16 differences can tie for the last place


def test_two_equal_experts_merge_to_themselves(checkpoint_factory, tmp_path):
    math, base = checkpoint_factory("math", 1), checkpoint_factory("base", 3)
    language = shutil.copytree(math, tmp_path / "language")
    for i, plan in enumerate((TaskVectors("half", "task arithmetic", 0.5, 0.5), TaskVectors("ties", "ties"))):
        merge.merge(math, language, plan, tmp_path / str(i), base=base)
        for name, tensor in tensors(tmp_path / str(i)).items():
            torch.testing.assert_close(tensor, tensors(math)[name])
