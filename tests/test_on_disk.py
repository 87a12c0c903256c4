"""Merges on disk: every tensor is what the plan says, bit for bit; bad inputs stop before a write."""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, namedtuple
from pathlib import Path

import pytest
import torch
from conftest import bits, same_bits, split, tensors, word_tokenizer, write_checkpoint
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap.checkpoints import compatibility
from layerswap.checkpoints.safetensors import DTYPE_BYTES, read_chunks, read_header, tensor_digest, weights_digest
from layerswap.errors import UserError
from layerswap.merging.manifest import verify
from layerswap.merging.on_disk import merge
from layerswap.merging.plans import Plan, layer_swap, soup, uniform
from layerswap.merging.task_vectors import TaskVectors

SWAP = layer_swap(4, 1, 1, non_layer_weight=0)
TIES = TaskVectors("ties", "ties", density=0.3, scale=0.7)


def misplaced(merged, math, language, sources):
    """Names of the tensors that are not bit-equal to their source (layer, None: non-layer -> math or language)."""
    experts = {"math": tensors(math), "language": tensors(language)}
    merged, wrong = tensors(merged), []
    assert merged.keys() == experts["math"].keys()
    for name, tensor in merged.items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        if not same_bits(tensor, experts[sources[layer]][name]):
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
    merge(math, language, SWAP, tmp_path / "out")
    sources = {0: "language", 1: "math", 2: "math", 3: "language", None: "math"}
    assert misplaced(tmp_path / "out", math, language, sources) == []
    zeros = [bits(t) for t in tensors(tmp_path / "out").values() if ((t == 0) & t.signbit()).any() and t.isnan().any()]
    assert len(zeros) == len(tensors(math))  # the planted values are still there


@pytest.mark.parametrize("shift", [1, -1])
def test_a_swap_off_by_one_layer_is_caught(experts, tmp_path, shift):
    layers = tuple(SWAP.layers[(i - shift) % 4] for i in range(4))
    merge(*experts, Plan("off by one", layers, 0), tmp_path / "out")
    sources = {0: "language", 1: "math", 2: "math", 3: "language", None: "math"}
    wrong = misplaced(tmp_path / "out", *experts, sources)
    assert {int(name.split(".")[2]) for name in wrong} == ({1, 3} if shift == 1 else {0, 2})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.3]), min_size=4, max_size=4), st.sampled_from([0.0, 1.0, 0.5]))
def test_any_plan(experts, layers, non_layer_weight):
    plan = Plan("any", tuple(layers), non_layer_weight)
    with tempfile.TemporaryDirectory() as folder:
        manifest = merge(*experts, plan, Path(folder) / "out")
        merged, math, language = (tensors(path) for path in (Path(folder) / "out", *experts))
        assert manifest["digest"] == weights_digest(Path(folder) / "out")
        assert verify(Path(folder) / "out") == len(merged)
        digests = {
            role: {name: tensor_digest(tensor) for name, tensor in read_header(path).items()}
            for role, path in zip(("math", "language", "out"), (*experts, Path(folder) / "out"), strict=True)
        }
    for name, tensor in merged.items():
        weight = layers[int(name.split(".")[2])] if "layers" in name else non_layer_weight
        expected = {0: math[name], 1: language[name]}.get(weight)
        is_mixed = expected is None
        expected = math[name] + weight * (language[name] - math[name]) if is_mixed else expected
        torch.testing.assert_close(tensor, expected, rtol=1e-5 * is_mixed, atol=1e-7 * is_mixed)
        source = {0: "math", 1: "language"}.get(weight, "math+language")
        entry = {"source": source, "weight": weight, "sha256": digests["out"][name]}
        if is_mixed:
            entry["from"] = {role: digests[role][name] for role in ("math", "language")}
        assert manifest["tensors"][name] == entry


def test_merged_folder_opens_in_transformers(checkpoint_factory, tmp_path):
    math = checkpoint_factory("math", 1, tied=False)
    language = checkpoint_factory("language", 2, tied=False, shard="20KB")
    (math / "chat_template.jinja").write_text("{{ messages }}")
    (math / "optimizer.pt").write_bytes(b"not wanted")
    manifest = merge(math, language, layer_swap(4, 1, 1, 1), tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    saved = tensors(tmp_path / "out")
    assert all(same_bits(saved[name], parameter) for name, parameter in model.named_parameters())
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
    merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "out")
    header = read_header(tmp_path / "out")
    assert all(t.start % DTYPE_BYTES[t.dtype] == 0 for t in header.values())
    merged = tensors(tmp_path / "out")
    assert torch.equal(merged["steps"], steps) and torch.equal(merged["flags"], flags)


# --- bad inputs ---------------------------------------------------------------------------------------------


def edit_config(**fields):
    """Change fields of the language expert's config.json."""

    def change(math, language):
        path = language / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def edit_both(change):
    """Make the same change to both experts."""
    return lambda math, language: (change(math, math), change(language, language))


def replace_file(name, data):
    """Overwrite a file of the language expert; None removes it."""

    def change(math, language):
        (language / name).unlink() if data is None else (language / name).write_bytes(data)

    return change


def edit_header(edit, file="model.safetensors"):
    """Edit the JSON header of the language expert's file."""

    def change(math, language):
        raw = (language / file).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        edit(entries)
        text = json.dumps(entries).encode()
        (language / file).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return change


def edit_bytes(edit):
    """Edit the bytes of the language expert's model.safetensors."""

    def change(math, language):
        path = language / "model.safetensors"
        path.write_bytes(edit(path.read_bytes()))

    return change


def edit_tensors(edit):
    """Edit the language expert's tensors (a dict) in a well-formed file."""

    def change(math, language):
        data = load_file(language / "model.safetensors")
        save_file(edit(data) or data, language / "model.safetensors")

    return change


def edit_shards(edit):
    """Save the language expert as shards a and b, then edit (its folder, the weight map)."""

    def change(math, language):
        data = load_file(language / "model.safetensors")
        split(language, {"a.safetensors": sorted(data)[:9], "b.safetensors": sorted(data)[9:]}, data)
        index = language / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        edit(language, weight_map)
        index.write_text(json.dumps({"weight_map": weight_map}))

    return change


def edit_tokenizer(edit):
    """Edit the language expert's tokenizer.json."""

    def change(math, language):
        data = json.loads((language / "tokenizer.json").read_text())
        edit(data)
        (language / "tokenizer.json").write_text(json.dumps(data))

    return change


def edit_vocabulary(edit):
    """Edit the vocabulary (word -> id) in the language expert's tokenizer.json."""
    return edit_tokenizer(lambda data: edit(data["model"]["vocab"]))


def move_start(entry, by):
    entry["data_offsets"][0] += by


def rename_to_pickle(math, language):
    (language / "model.safetensors").rename(language / "pytorch_model.bin")


NORM, Q = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
K = Q.replace("q_proj", "k_proj")
BAD = {
    "no such folder": (lambda math, language: shutil.rmtree(language), "language: no such folder"),
    "a pickle": (rename_to_pickle, "pytorch_model.bin, a pickle; .*only safetensors"),
    "no weights": (replace_file("model.safetensors", None), "expected model.safetensors"),
    "no config": (replace_file("config.json", None), "config.json: no such file"),
    "broken config": (replace_file("config.json", b"{"), "config.json: expected a JSON object"),
    "config is a number": (replace_file("config.json", b"1"), "config.json: expected a JSON object"),
    "empty file": (replace_file("model.safetensors", b""), "found 0 bytes"),
    "truncated file": (edit_bytes(lambda data: data[:-1]), r"model.safetensors: .*found \d+ bytes, expected \d+"),
    "bytes after the tensors": (edit_bytes(lambda data: data + b"\0"), r"found \d+ bytes, expected \d+"),
    "header longer than the file": (edit_bytes(lambda data: b"\xff" * 8 + data[8:]), "expected a header of"),
    "header is no JSON": (edit_bytes(lambda data: data[:8] + b"x" + data[9:]), "not a safetensors header"),
    "header is a list": (edit_bytes(lambda data: b"\2" + b"\0" * 7 + b"[]"), "not a safetensors header"),
    "header without offsets": (edit_header(lambda h: h[Q].pop("data_offsets")), "not a safetensors header"),
    "nested without end": (replace_file("config.json", b"[" * 200_000), "config.json: expected a JSON object"),
    "a header nested without end": (
        edit_bytes(lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000), "not a safetensors header"
    ),
    "a size that is no whole number": (edit_header(lambda h: h[NORM].update(shape=[32.0])), "32.0 is no size"),
    "a size that is a truth": (edit_header(lambda h: h[Q].update(shape=[True, 32])), "True is no size"),
    "a size beyond all disks": (edit_header(lambda h: h[Q].update(shape=[10**4000])), "is no size"),
    "an offset in parts": (edit_header(lambda h: h[Q].update(data_offsets=[0.0, 1.0])), "0.0 is no size"),
    "half a character": (edit_header(lambda h: h.update({"\ud800": h.pop(Q)})), "not a safetensors header"),
    "layers in words": (edit_both(edit_config(num_hidden_layers="four")), "expected 'four' layers"),
    "layers without number": (edit_both(edit_config(num_hidden_layers=10**12)), "expected 1000000000000 layers"),
    "unknown dtype": (edit_header(lambda h: h[Q].update(dtype="F12")), "not a safetensors header.*F12"),
    "wrong shape": (edit_header(lambda h: h[Q].update(shape=[32, 31])), f"tensor {Q} .*lies at"),
    "negative shape": (edit_header(lambda h: h[Q].update(shape=[-32, -32])), f"tensor {Q}: -32 is no size"),
    "overlapping tensors": (edit_header(lambda h: h[Q].update(data_offsets=h[K]["data_offsets"])), "lies at byte"),
    "a start too early": (edit_header(lambda h: move_start(h[Q], -4)), f"tensor {Q}.*(lies at bytes|is no size)"),
    "a gap": (edit_header(lambda h: h.pop(Q)), "tensor .*lies at bytes"),
    "one file and an index": (
        replace_file("model.safetensors.index.json", b"{}"),
        "both model.safetensors and model.safetensors.index.json",
    ),
    "index without a map": (
        lambda m, lang: ((lang / "model.safetensors").rename(lang / "model.safetensors.index.json"),
                         (lang / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')),
        "expected a weight_map",
    ),
    "missing shard": (edit_shards(lambda folder, _: (folder / "b.safetensors").unlink()), "b.*: no such file"),
    "shard outside the folder": (
        edit_shards(lambda folder, names: names.update({NORM: "../math/model.safetensors"})),
        "'../math/model.safetensors' is outside",
    ),
    "tensor in two shards": (
        edit_shards(lambda folder, names: shutil.copy(folder / "a.safetensors", folder / "b.safetensors")),
        "is in a.safetensors, found it in b.safetensors",
    ),
    "tensor not in the index": (
        edit_shards(lambda folder, names: names.pop(NORM)), f"{NORM} is in no file, found it in b.safetensors"
    ),
    "tensor in no shard": (
        edit_shards(lambda folder, names: names.update({"extra": "a.safetensors"})),
        "extra is in a.safetensors, it is not",
    ),
    "tensor missing": (edit_tensors(lambda data: data.pop(Q) is None), f"{Q} is F32 .* and missing in .*language"),
    "tensor too many": (
        edit_tensors(lambda data: data.update(extra=torch.zeros(1))), "tensor extra is missing in .*math and F32"
    ),
    "other dtype": (edit_tensors(lambda data: {k: v.bfloat16() for k, v in data.items()}), "is F32 .* and BF16"),
    "other shape": (edit_tensors(lambda data: data.update({NORM: torch.ones(3)})), r"is F32 \[32\] .* \[3\]"),
    "other rope": (edit_config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}), "rope_.*500000"),
    "other eps": (edit_config(rms_norm_eps=1e-5), "config field rms_norm_eps is 1e-06 .* and 1e-05"),
    "other activation": (edit_config(hidden_act="gelu"), "hidden_act is silu .* and gelu"),
    "other heads": (edit_config(num_attention_heads=2), "num_attention_heads is 4 .* and 2"),
    "other tying": (edit_config(tie_word_embeddings=False), "tie_word_embeddings is True .* and False"),
    "other vocabulary size": (edit_config(vocab_size=99), "vocab_size is .* and 99"),
    "other end of text": (edit_config(eos_token_id=2), "eos_token_id is 1 .* and 2"),
    "a layer without tensors": (edit_both(edit_config(num_hidden_layers=5)), "expected 5 layers"),
    "a word more": (edit_vocabulary(lambda v: v.update(new=len(v))), "token 'new' is missing in .*math and"),
    "two words exchanged": (edit_vocabulary(lambda v: v.update(plus=v["one"], one=v["plus"])), "token 'one' is"),
    "another normalizer": (
        edit_tokenizer(lambda data: data.update(normalizer={"type": "NFC"})), "tokenizer's normalizer"
    ),
    "no tokenizer": (replace_file("tokenizer.json", None), "tokenizer.json is there in .* and missing in .*language"),
    "broken tokenizer": (replace_file("tokenizer.json", b'{"model": {}}'), "tokenizer.json: not a tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_experts_stop_before_anything_is_written(experts, tmp_path, case):
    change, message = BAD[case]
    math, language = (shutil.copytree(folder, tmp_path / folder.name) for folder in experts)
    change(math, language)
    with pytest.raises(UserError, match=message) as error:
        merge(math, language, SWAP, tmp_path / "new" / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_bad_calls_stop_before_anything_is_written(experts, tmp_path):
    math, language = experts
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(UserError, match="out: exists already"):
        merge(math, language, SWAP, tmp_path / "out")
    with pytest.raises(UserError, match="is both the math and the language model"):
        merge(math, math.parent / "language" / ".." / "math", SWAP, tmp_path / "new")
    with pytest.raises(UserError, match="donor is 'base'"):
        merge(math, language, SWAP, tmp_path / "new", donor="base")
    with pytest.raises(UserError, match="shard_size is 0"):
        merge(math, language, SWAP, tmp_path / "new", shard_size=0)
    with pytest.raises(UserError, match="needs math, language, base; base is None, expected the base"):
        merge(math, language, TIES, tmp_path / "new")
    with pytest.raises(UserError, match="needs math, language; base is .*, expected none"):
        merge(math, language, SWAP, tmp_path / "new", base=math)
    with pytest.raises(UserError, match="is both the language and the base model"):
        merge(math, language, TIES, tmp_path / "new", base=language)
    with pytest.raises(UserError, match="has 5 layers, .*math has 4"):
        merge(math, language, uniform(5, 0.5, "soup"), tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


def test_integers_are_mixed_only_where_they_are_equal(checkpoint_factory, tmp_path):
    for steps, name in enumerate(("math", "language", "other"), 3):
        data = {"table": torch.arange(3), "steps": torch.arange(min(steps, 4))[-3:]}
        edit_tensors(lambda tensors, data=data: tensors.update(data))(None, checkpoint_factory(name))
    merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "copied")
    soup = uniform(4, 0.5, "soup")
    with pytest.raises(UserError, match="steps is I64, which cannot be mixed"):
        merge(tmp_path / "math", tmp_path / "language", soup, tmp_path / "mixed")
    entry = merge(tmp_path / "language", tmp_path / "other", soup, tmp_path / "equal")["tensors"]["steps"]
    assert (entry["source"], entry["weight"]) == ("math", 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"math", "language", "other", "copied", "equal"}


# --- interruption -------------------------------------------------------------------------------------------

# Kills itself with SIGKILL at the nth line that runs in the merge's own code, whatever that line is doing.
KILLED = """
import os, signal, sys
from layerswap import files
from layerswap.checkpoints import safetensors
from layerswap.merging import on_disk, plans
own, count, last = {files.__file__, safetensors.__file__, on_disk.__file__}, 0, int(sys.argv[4])
def trace(frame, event, argument):
    global count
    if frame.f_code.co_filename not in own:
        return None
    count += event == "line"
    if count == last > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
on_disk.merge(*sys.argv[1:3], plans.layer_swap(4, 1, 1, non_layer_weight=0), sys.argv[3])
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
            merge(*experts, SWAP, out)
        assert (out / "layerswap.json").read_bytes() == expected
        assert json.loads(expected)["digest"] == weights_digest(out)
        assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "0" / "whole").iterdir()}
    assert 0 < complete < len(moments)  # moments on both sides of the rename


def test_fifty_kills_at_random_moments(tmp_path):
    experts = [write_checkpoint(tmp_path / name, seed, vocab_size=40_000) for seed, name in enumerate("ml")]
    command = [sys.executable, "-m", "layerswap", "merge", "--math", experts[0], "--language", experts[1]]
    (tmp_path / "plan.json").write_text(json.dumps(SWAP.to_dict()))
    command = [*map(str, command), "--plan", str(tmp_path / "plan.json"), "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    duration, rng, complete = time.monotonic() - started, random.Random(0), 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    out = tmp_path / "new" / "out"
    for _ in range(50):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.05) * duration)
        process.kill()
        process.wait()
        if out.exists():
            complete += 1
            assert {path.name: path.read_bytes() for path in out.iterdir()} == files
            shutil.rmtree(out)
    merge(*experts, SWAP, out)
    assert list(out.parent.iterdir()) == [out]  # the next merge removed what the killed ones had left
    assert {path.name for path in out.iterdir()} == files.keys() and verify(out) == len(tensors(out))
    assert complete < 50


def test_untouched_experts(checkpoint_factory, tmp_path):
    math, language = write_checkpoint(tmp_path / "math", 1), write_checkpoint(tmp_path / "language", 2)
    before = {path: path.read_bytes() for folder in (math, language) for path in folder.iterdir()}
    merge(math, language, uniform(4, 0.5, "soup"), tmp_path / "out")
    assert before == {path: path.read_bytes() for folder in (math, language) for path in folder.iterdir()}


# --- files and options --------------------------------------------------------------------------------------


def test_shards_are_cut_at_the_given_size(checkpoint_factory, tmp_path):
    math = checkpoint_factory("math", 1, tied=False)
    language = checkpoint_factory("language", 2, tied=False, shard="20KB")
    whole = merge(math, language, SWAP, tmp_path / "whole")
    shards = merge(math, language, SWAP, tmp_path / "shards", shard_size=9000)
    assert shards["digest"] == whole["digest"] and shards["tensors"] == whole["tensors"]
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    saved = tensors(tmp_path / "shards")
    assert index["weight_map"].keys() == saved.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in saved.values())
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in (tmp_path / "shards").glob("*.safetensors")]
    assert len(sizes) > 5 and max(sizes) <= 9000
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", output_loading_info=True)
    assert not any(info.values())


def test_files_without_sha256s_are_the_same(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1, special=True), checkpoint_factory("language", 2, special=True)
    for plan in (SWAP, layer_swap(4, 1, 1, 1)):
        hashed, unhashed = tmp_path / f"{plan.layer_map()}-hashed", tmp_path / f"{plan.layer_map()}-unhashed"
        merge(math, language, plan, hashed)
        merge(math, language, plan, unhashed, hashing=False)
        for file in ("model.safetensors", "config.json"):
            assert (unhashed / file).read_bytes() == (hashed / file).read_bytes()


def test_the_donor_gives_config_and_tokenizer(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    for folder in (math, language):
        (folder / "chat_template.jinja").write_text(folder.name)
    for donor in ("math", "language"):
        merge(math, language, SWAP, tmp_path / f"of-{donor}", donor=donor)
        assert (tmp_path / f"of-{donor}" / "chat_template.jinja").read_text() == donor


def test_what_differs_is_allowed_or_not(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    edit_config(rms_norm_eps=1e-5, pad_token_id=3)(math, language)
    with pytest.raises(UserError, match="rms_norm_eps is 1e-06 .* --allow rms_norm_eps takes the donor's"):
        merge(math, language, SWAP, tmp_path / "out")
    with pytest.raises(UserError, match="allow names 'rms_norm', which does not differ"):
        merge(math, language, SWAP, tmp_path / "out", allow=["rms_norm_eps", "rms_norm"])
    assert not (tmp_path / "out").exists()
    manifest = merge(math, language, SWAP, tmp_path / "out", allow=["rms_norm_eps"], donor="language")
    assert manifest["allow"] == ["rms_norm_eps"] and manifest["differences"] == {
        "config field rms_norm_eps": {"math": 1e-6, "language": 1e-5},
        "config field pad_token_id": {"math": 0, "language": 3},
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (language / "config.json").read_bytes()


def test_a_base_that_differs_is_listed_under_its_role(checkpoint_factory, tmp_path):
    folders = [checkpoint_factory(name, i) for i, name in enumerate(("math", "language", "base"))]
    edit_config(pad_token_id=5)(None, folders[2])
    manifest = merge(*folders[:2], TIES, tmp_path / "out", base=folders[2])
    assert manifest["differences"] == {"config field pad_token_id": {"math": 0, "base": 5}}


def test_what_is_no_weight_in_all_is_left_out(checkpoint_factory, tmp_path):
    folders = [checkpoint_factory(name, i) for i, name in enumerate(("math", "language", "base"))]
    constant, head = "model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"
    for folder in folders[:2]:
        edit_tensors(lambda data: data | {constant: torch.ones(4)})(None, folder)
    edit_tensors(lambda data: data | {head: data["model.embed_tokens.weight"].clone()})(None, folders[0])
    manifest = merge(*folders[:2], layer_swap(4, 1, 1, 1, weight=0.3), tmp_path / "out")
    merged = tensors(tmp_path / "out")
    assert same_bits(merged[constant], torch.ones(4)) and head not in merged
    assert manifest["differences"] == {
        f"tensor {head}, which no loader reads,": {"math": "there", "language": "missing"}
    }
    assert merged.keys() == manifest["tensors"].keys() and verify(tmp_path / "out") == len(merged)
    assert constant not in tensors_of_merge(*folders, tmp_path / "ties")


def test_a_tied_head_is_read_once_for_the_comparison(checkpoint_factory, tmp_path, monkeypatch):
    folders = [checkpoint_factory(name, i) for i, name in enumerate(("math", "language", "base"))]
    for folder in folders:
        edit_tensors(lambda data: data | {"lm_head.weight": data["model.embed_tokens.weight"].clone()})(None, folder)
    digested = Counter()

    def counting_digest(tensor):
        digested[tensor.file, tensor.start] += 1
        return tensor_digest(tensor)

    monkeypatch.setattr(compatibility, "tensor_digest", counting_digest)
    merge(*folders[:2], TIES, tmp_path / "out", base=folders[2])
    assert len(digested) == 6 and set(digested.values()) == {1}


def tensors_of_merge(math, language, base, out):
    """The tensors of a merge of task vectors."""
    merge(math, language, TIES, out, base=base)
    return tensors(out)


def test_tensors_that_the_model_does_not_load_are_named(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    for folder in (math, language):
        edit_tensors(lambda data: data.update({"mtp.fc.weight": torch.ones(3)}))(None, folder)
    assert merge(math, language, SWAP, tmp_path / "out")["unloaded"] == ["mtp.fc.weight"]
    for folder in (math, language):
        edit_tensors(lambda data: data.pop(NORM) is None)(None, folder)
    with pytest.raises(UserError, match=f"has no tensor {NORM}, which LlamaForCausalLM of its config.json has"):
        merge(math, language, SWAP, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_of_a_class_that_transformers_has_not_is_merged(checkpoint_factory, tmp_path):
    for seed, name in enumerate(("math", "language")):
        folder = checkpoint_factory(name, seed)
        edit_tensors(lambda data: data.update({"model.layers.1.mixer.weight": data.pop(Q)}))(None, folder)
    unloaded = merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "out")["unloaded"]
    assert unloaded == ["model.layers.1.mixer.weight"]
    for name in ("math", "language"):  # a prefix that no loader knows is another matter
        edit_tensors(lambda data: data.update({f"student.{k}": data.pop(k) for k in list(data)}))(None, tmp_path / name)
    with pytest.raises(UserError, match="has no tensor lm_head.weight, which LlamaForCausalLM"):
        merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "new")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "C64", "F4"])
def test_dtypes_of_scales_are_copied(checkpoint_factory, tmp_path, dtype):
    for i, name in enumerate(("math", "language"), 1):
        folder = checkpoint_factory(name, i)
        entry = {"dtype": dtype, "shape": [2], "data_offsets": [0, DTYPE_BYTES[dtype] * (1 if dtype == "F4" else 2)]}
        text = json.dumps({"model.layers.0.scale": entry}).encode()
        raw = len(text).to_bytes(8, "little") + text + bytes([i] * entry["data_offsets"][1])
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model-00002-of-00002.safetensors").write_bytes(raw)
    merge(tmp_path / "math", tmp_path / "language", SWAP, tmp_path / "out")
    tensor = read_header(tmp_path / "out")["model.layers.0.scale"]
    assert tensor.dtype == dtype and b"".join(read_chunks(tensor)) == bytes([2] * tensor.n_bytes)
    with pytest.raises(UserError, match=f"model.layers.0.scale is {dtype}, which cannot be mixed"):
        merge(tmp_path / "math", tmp_path / "language", soup(4), tmp_path / "new")


def test_progress_counts_every_byte(experts, tmp_path):
    n_bytes = []
    merge(*experts, soup(4), tmp_path / "out", progress=n_bytes.append)
    assert sum(n_bytes) == sum(tensor.nbytes for tensor in tensors(tmp_path / "out").values())


# --- a disk that is full, a folder that is closed -----------------------------------------------------------


def test_a_full_disk_is_reported_before_anything_is_written(experts, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"out: needs 0.\d MB, .* has 0.0 MB free"):
        merge(*experts, SWAP, tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hashing", [True, False])
def test_a_disk_that_fills_up_leaves_nothing(experts, tmp_path, hashing):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # what a full disk does: writes fail
    try:
        with pytest.raises(OSError, match="too large"):
            merge(*experts, SWAP, tmp_path / "out", hashing=hashing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
