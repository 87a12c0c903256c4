"""Merges on disk: every tensor is what the plan says, bit for bit; bad inputs stop before a write."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bits, word_tokenizer, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import checkpoint
from layerswap.paths import UserError
from layerswap.plan import Plan, layer_swap, uniform

SWAP = layer_swap(4, 1, 1, outside=0)


def tensors(folder):
    """name -> tensor of a folder, read by the safetensors library."""
    return {k: v for file in Path(folder).glob("*.safetensors") for k, v in load_file(file).items()}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bits(a), bits(b))


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


def split(folder, shards, data):
    """Write ``data`` (name -> tensor) to a folder as shards (file -> names) with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    for shard, names in shards.items():
        save_file({name: data[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


# --- what a merge holds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", [None, "12KB"])
def test_swapped_tensors_keep_every_bit(checkpoint_factory, tmp_path, dtype, tied, shard):
    math = checkpoint_factory("math", 1, dtype=dtype, tied=tied, special=True)
    language = checkpoint_factory("language", 2, dtype=dtype, tied=tied, special=True, shard=shard)
    assert len(list(language.glob("*.safetensors"))) > 1 or shard is None
    checkpoint.merge(math, language, SWAP, tmp_path / "out")
    sources = {0: "language", 1: "math", 2: "math", 3: "language", "outside": "math"}
    assert misplaced(tmp_path / "out", math, language, sources) == []
    zeros = [bits(t) for t in tensors(tmp_path / "out").values() if ((t == 0) & t.signbit()).any() and t.isnan().any()]
    assert len(zeros) == len(tensors(math))  # the planted values are still there


@pytest.mark.parametrize("shift", [1, -1])
def test_a_swap_off_by_one_layer_is_caught(experts, tmp_path, shift):
    layers = tuple(SWAP.layers[(i - shift) % 4] for i in range(4))
    checkpoint.merge(*experts, Plan("off by one", layers, 0), tmp_path / "out")
    sources = {0: "language", 1: "math", 2: "math", 3: "language", "outside": "math"}
    wrong = misplaced(tmp_path / "out", *experts, sources)
    assert {int(name.split(".")[2]) for name in wrong} == ({1, 3} if shift == 1 else {0, 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weight", [0.5, 0.25, 0.3, 1 / 3, 0.9])
def test_mixed_tensors_are_the_float64_mean_within_one_rounding(tmp_path, dtype, weight):
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(700_000, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    for name, tensor in (("math", a), ("language", b)):  # large enough for several pieces
        (tmp_path / name).mkdir()
        save_file({"x": tensor}, tmp_path / name / "model.safetensors")
    pair = (checkpoint.read_header(tmp_path / name)["x"] for name in ("math", "language"))
    merged = b"".join(bytes(piece) for *_, piece in checkpoint.blend(*pair, weight))
    got = torch.frombuffer(bytearray(merged), dtype=dtype).double()
    expected = (1 - weight) * a.double() + weight * b.double()
    inside = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    bound = torch.finfo(dtype).eps * expected.abs() + 2 * inside * torch.maximum(a.abs(), b.abs()).double()
    assert got.shape == expected.shape and ((got - expected).abs() <= bound + torch.finfo(dtype).tiny * 1e-3).all()
    if weight == 0.5 and dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(got, expected.to(dtype).double())  # the mean of two is exact inside: rounded once


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.3]), min_size=4, max_size=4), st.sampled_from([0.0, 1.0, 0.5]))
def test_any_plan(experts, layers, outside):
    plan = Plan("any", tuple(layers), outside)
    with tempfile.TemporaryDirectory() as folder:
        manifest = checkpoint.merge(*experts, plan, Path(folder) / "out")
        merged, math, language = (tensors(each) for each in (Path(folder) / "out", *experts))
        assert manifest["digests"] == {
            "math": checkpoint.digest(experts[0]),
            "language": checkpoint.digest(experts[1]),
            "merged": checkpoint.digest(Path(folder) / "out"),
        }
    for name, tensor in merged.items():
        weight = layers[int(name.split(".")[2])] if "layers" in name else outside
        expected = {0: math[name], 1: language[name]}.get(weight)
        source = {0: "math", 1: "language"}.get(weight, "both")
        expected = math[name] + weight * (language[name] - math[name]) if expected is None else expected
        torch.testing.assert_close(tensor, expected, rtol=1e-5 * (source == "both"), atol=1e-7 * (source == "both"))
        assert {k: manifest["tensors"][name][k] for k in ("source", "weight")} == {
            "source": source,
            "weight": weight,
        }


def test_merged_folder_opens_in_transformers(checkpoint_factory, tmp_path):
    math = checkpoint_factory("math", 1, tied=False)
    language = checkpoint_factory("language", 2, tied=False, shard="20KB")
    (math / "chat_template.jinja").write_text("{{ messages }}")
    (math / "optimizer.pt").write_bytes(b"not wanted")
    manifest = checkpoint.merge(math, language, layer_swap(4, 1, 1, 1), tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    stored = tensors(tmp_path / "out")
    assert all(same_bits(stored[name], parameter) for name, parameter in model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == word_tokenizer().get_vocab()
    assert json.loads((tmp_path / "out" / "layerswap.json").read_text()) == manifest
    names = {path.name for path in math.iterdir()} - {"optimizer.pt"} | {"layerswap.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all((tmp_path / "out" / n).read_bytes() == (math / n).read_bytes() for n in names if n.startswith("tok"))
    assert str(tmp_path) not in json.dumps(manifest)


def test_tensors_are_aligned_whatever_the_shards(checkpoint_factory, tmp_path):
    steps, flags = torch.arange(3), torch.tensor([True, False, True])
    for name in ("math", "language"):
        data = tensors(checkpoint_factory(name)) | {"flags": flags, "steps": steps}
        split(tmp_path / name, {"a.safetensors": ["flags"], "b.safetensors": data.keys() - {"flags"}}, data)
    checkpoint.merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "out")
    header = checkpoint.read_header(tmp_path / "out")
    assert all(t.start % checkpoint.BYTES[t.dtype] == 0 for t in header.values())
    merged = tensors(tmp_path / "out")
    assert torch.equal(merged["steps"], steps) and torch.equal(merged["flags"], flags)


def test_digest_is_of_content_not_of_layout(experts, tmp_path):
    stored, digests = tensors(experts[0]), []
    names = sorted(stored)
    split(tmp_path / "1", {"a.safetensors": names}, stored)
    split(tmp_path / "2", {"b.safetensors": names[::2], "a.safetensors": names[1::2]}, stored)
    for folder in (tmp_path / "1", tmp_path / "2"):
        digests.append(checkpoint.digest(folder))
    assert digests == [checkpoint.digest(experts[0])] * 2
    name = names[5]
    zero = torch.zeros_like(stored[name])
    changed = {
        "a bit": {name: zero},
        "the sign of zero": {name: -zero},
        "a shape": {name: zero.reshape(1, -1)},
        "a dtype": {name: zero.view(torch.int32)},
        "a name": {name + "x": zero},
    }
    for tensor in changed.values():
        data = {n: t for n, t in stored.items() if n != name} | tensor
        split(tmp_path / "1", {"a.safetensors": data}, data)
        digests.append(checkpoint.digest(tmp_path / "1"))
    assert len(set(digests)) == 1 + len(changed)


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


def vocabulary(edit):
    """Edit the vocabulary (word -> id) in the language expert's tokenizer.json."""

    def change(math, language):
        data = json.loads((language / "tokenizer.json").read_text())
        edit(data["model"]["vocab"])
        (language / "tokenizer.json").write_text(json.dumps(data))

    return change


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
    "unknown dtype": (header(lambda h: h[Q].update(dtype="F12")), "not a safetensors header.*F12"),
    "wrong shape": (header(lambda h: h[Q].update(shape=[32, 31])), f"tensor {Q} .*lies at"),
    "negative shape": (header(lambda h: h[Q].update(shape=[-32, -32])), f"tensor {Q} .*lies at"),
    "overlapping tensors": (header(lambda h: h[Q].update(data_offsets=h[K]["data_offsets"])), "lies at byte"),
    "a start too early": (header(lambda h: move_start(h[Q], -4)), f"tensor {Q} .*lies at bytes"),
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
    "no tokenizer": (content("tokenizer.json", None), "token '.*' is .* and missing in .*language"),
    "broken tokenizer": (content("tokenizer.json", b'{"model": {}}'), "tokenizer.json: not a tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_experts_stop_before_anything_is_written(experts, tmp_path, case):
    change, message = BAD[case]
    math, language = (shutil.copytree(folder, tmp_path / folder.name) for folder in experts)
    change(math, language)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.merge(math, language, SWAP, tmp_path / "new" / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_bad_calls_stop_before_anything_is_written(experts, tmp_path):
    math, language = experts
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: exists already"):
        checkpoint.merge(math, language, SWAP, tmp_path / "out")
    with pytest.raises(UserError, match="one folder, expected two"):
        checkpoint.merge(math, math.parent / "language" / ".." / "math", SWAP, tmp_path / "new")
    with pytest.raises(UserError, match="has 5 layers, .*math has 4"):
        checkpoint.merge(math, language, uniform(5, 0.5, "soup"), tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and not list((tmp_path / "out").iterdir())


def test_integers_are_copied_but_not_mixed(checkpoint_factory, tmp_path):
    for name in ("math", "language"):
        stored(lambda data: data.update(steps=torch.arange(3)))(None, checkpoint_factory(name))
    checkpoint.merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "copied")
    with pytest.raises(UserError, match="I64 cannot be mixed"):
        checkpoint.merge(tmp_path / "math", tmp_path / "language", uniform(4, 0.5, "soup"), tmp_path / "mixed")
    assert {path.name for path in tmp_path.iterdir()} == {"math", "language", "copied"}


def test_storage_fields_may_differ(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    config(use_cache=False, transformers_version="4.0.0", _name_or_path="elsewhere")(math, language)
    checkpoint.check_fit(math, language)


def test_vocabulary_files_without_a_tokenizer_json(tmp_path, checkpoint_factory):
    folders = [checkpoint_factory("math", 1), checkpoint_factory("language", 2)]
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    checkpoint.check_fit(*folders)
    (folders[1] / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(UserError, match="tokenizer.model"):
        checkpoint.check_fit(*folders)


# --- interruption -------------------------------------------------------------------------------------------

# Kills itself with SIGKILL at the nth line that runs in the merge's own code, whatever that line is doing.
KILLED = """
import os, signal, sys
from layerswap import checkpoint, paths, plan
own, count, last = {checkpoint.__file__, paths.__file__}, 0, int(sys.argv[4])
def trace(frame, event, argument):
    global count
    if frame.f_code.co_filename not in own:
        return None
    count += event == "line"
    if count == last > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
checkpoint.merge(*sys.argv[1:3], plan.layer_swap(4, 1, 1, outside=0), sys.argv[3])
sys.settrace(None)
print(count)
"""


def test_killed_merges_leave_nothing_or_all(experts, tmp_path):
    def run(out, line):
        arguments = [str(argument) for argument in (*experts, out, line)]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)

    whole = run(tmp_path / "whole", 0)
    lines, expected = int(whole.stdout), (tmp_path / "whole" / "layerswap.json").read_bytes()
    moments = sorted(random.Random(0).sample(range(lines // 4, lines), 6)) + list(range(lines - 12, lines + 1, 3))
    complete = 0
    for line in moments:
        out = tmp_path / f"out-{line}"
        assert run(out, line).returncode == -9
        if out.exists():
            complete += 1
        else:
            checkpoint.merge(*experts, SWAP, out)
        assert (out / "layerswap.json").read_bytes() == expected
        assert json.loads(expected)["digests"]["merged"] == checkpoint.digest(out)
        assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert 0 < complete < len(moments)  # moments on both sides of the rename


def test_a_file_that_shrinks_while_read_is_an_error(checkpoint_factory):
    folder = checkpoint_factory("math")
    tensor = checkpoint.read_header(folder)[NORM]
    (folder / "model.safetensors").write_bytes(tensor.file.read_bytes()[: tensor.end - 1])
    with pytest.raises(UserError, match="ended at byte"):
        list(checkpoint.read_pieces(tensor))


def test_layer_count(experts):
    assert checkpoint.layer_count(experts[0]) == 4


def test_untouched_experts(checkpoint_factory, tmp_path):
    math, language = write_checkpoint(tmp_path / "math", 1), write_checkpoint(tmp_path / "language", 2)
    before = {path: path.read_bytes() for folder in (math, language) for path in folder.iterdir()}
    checkpoint.merge(math, language, uniform(4, 0.5, "soup"), tmp_path / "out")
    assert before == {path: path.read_bytes() for folder in (math, language) for path in folder.iterdir()}
