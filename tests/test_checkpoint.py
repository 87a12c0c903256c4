"""Checkpoints: headers, digests of content, and which differences keep two experts from being merged."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import split, tensors, write_checkpoint
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from layerswap.checkpoints import compatibility, safetensors
from layerswap.checkpoints.architecture import LLAMAS, llama_shapes, unloaded_tensors
from layerswap.checkpoints.compatibility import check_compatible, mergeable_headers
from layerswap.checkpoints.model_files import copy_model_files, tokenizer_digest
from layerswap.errors import UserError

NORM = "model.norm.weight"


def test_digest_is_of_content_not_of_layout(experts, tmp_path):
    weights, digests = tensors(experts[0]), []
    names = sorted(weights)
    split(tmp_path / "1", {"a.safetensors": names}, weights)
    split(tmp_path / "2", {"b.safetensors": names[::2], "a.safetensors": names[1::2]}, weights)
    for folder in (tmp_path / "1", tmp_path / "2"):
        digests.append(safetensors.weights_digest(folder))
    assert digests == [safetensors.weights_digest(experts[0])] * 2
    name = names[5]
    zero = torch.zeros_like(weights[name])
    changes = {
        "a bit": {name: zero},
        "the sign of zero": {name: -zero},
        "a shape": {name: zero.reshape(1, -1)},
        "a dtype": {name: zero.view(torch.int32)},
        "a name": {name + "x": zero},
    }
    for change in changes.values():
        changed = {key: tensor for key, tensor in weights.items() if key != name} | change
        split(tmp_path / "1", {"a.safetensors": changed}, changed)
        digests.append(safetensors.weights_digest(tmp_path / "1"))
    assert len(set(digests)) == 1 + len(changes)


def test_storage_fields_may_differ(checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    config = json.loads((language / "config.json").read_text())
    config |= {"use_cache": False, "transformers_version": "4.0.0", "_name_or_path": "elsewhere"}
    (language / "config.json").write_text(json.dumps(config))
    compatibility.check_compatible(math, language)


def test_vocabulary_files_without_a_tokenizer_json(tmp_path, checkpoint_factory):
    folders = [checkpoint_factory("math", 1), checkpoint_factory("language", 2)]
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    compatibility.check_compatible(*folders)
    (folders[1] / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(UserError, match="tokenizer.model"):
        compatibility.check_compatible(*folders)


def test_a_file_that_shrinks_while_read_is_an_error(checkpoint_factory):
    folder = checkpoint_factory("math")
    tensor = safetensors.read_header(folder)[NORM]
    (folder / "model.safetensors").write_bytes(tensor.file.read_bytes()[: tensor.end - 1])
    with pytest.raises(UserError, match="ended at byte"):
        list(safetensors.read_chunks(tensor))


# --- files that people bring ----------------------------------------------------------------------------------------

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"


def edit_json(path, **fields):
    """Set fields of a JSON file; ``...`` removes one."""
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))


def edit_weights(folder, edit):
    """Replace a folder's tensors by those of edit(tensors)."""
    save_file(edit(tensors(folder)), folder / "model.safetensors", {"format": "pt"})


def pair(tmp_path, **config):
    """Two experts to edit."""
    return [write_checkpoint(tmp_path / name, i, layers=2, **config) for i, name in enumerate(("math", "language"), 1)]


def write_header(path, tensors_of_header, n_bytes):
    """A safetensors file by hand, of dtypes that torch may not have."""
    text = json.dumps(tensors_of_header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(n_bytes))


@pytest.mark.parametrize(("dtype", "shape", "n_bytes"), [
    ("C64", [3], 24), ("F8_E8M0", [2, 3], 6), ("F8_E4M3FNUZ", [5], 5), ("F8_E5M2FNUZ", [5], 5), ("F4", [4, 3], 6),
    ("F6_E2M3", [4], 3), ("F6_E3M2", [8], 6), ("BOOL", [1], 1), ("U64", [2], 16),
])  # fmt: skip
def test_every_dtype_of_safetensors_is_read(tmp_path, dtype, shape, n_bytes):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, n_bytes]}
    write_header(tmp_path / "model.safetensors", {"scale": entry}, n_bytes)
    assert safetensors.read_header(tmp_path)["scale"].n_bytes == n_bytes
    write_header(tmp_path / "model.safetensors", {"scale": entry | {"data_offsets": [0, n_bytes + 1]}}, n_bytes + 1)
    with pytest.raises(UserError, match=rf"tensor scale \({dtype} .*lies at bytes"):
        safetensors.read_header(tmp_path)


def test_a_dtype_of_the_future_is_named_with_its_tensor(tmp_path):
    entry = {"dtype": "F2", "shape": [4], "data_offsets": [0, 1]}
    write_header(tmp_path / "model.safetensors", {"scale": entry}, 1)
    with pytest.raises(UserError, match="tensor scale is F2, expected one of F4, "):
        safetensors.read_header(tmp_path)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=20, max_size=20))
def test_shards_without_an_index_are_read_if_they_are_whole(experts, shard_of):
    weights = tensors(experts[0])
    files = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    shards = {file: [] for file in files}
    for i, name in enumerate(sorted(weights)):
        shards[files[shard_of[i % 20]]].append(name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split(folder, shards, weights)
        (folder / "model.safetensors.index.json").unlink()
        assert safetensors.weights_digest(folder) == safetensors.weights_digest(experts[0])
        shutil.copy(folder / files[0], folder / "model-00005-of-00005.safetensors")
        with pytest.raises(
            UserError, match="no model.safetensors.index.json, and model-00005-of-00005.* of another set"
        ):
            safetensors.read_header(folder)
        (folder / "model-00005-of-00005.safetensors").unlink()
        (folder / files[2]).unlink()
        with pytest.raises(
            UserError, match=f"has shards, but no model.safetensors.index.json, and {files[2]} is missing"
        ):
            safetensors.read_header(folder)


def test_a_tensor_in_two_shards_without_an_index_is_named(tmp_path, experts):
    weights = tensors(experts[0])
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    split(tmp_path, {files[0]: sorted(weights), files[1]: [NORM]}, weights)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=f"tensor {NORM} is in {files[0]} and in {files[1]}"):
        safetensors.read_header(tmp_path)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model", "vocab.json"]
)
def test_a_pointer_of_lfs_is_named(tmp_path, file):
    folders = pair(tmp_path)
    for folder in folders:
        (folder / file).write_text(POINTER)
    with pytest.raises(UserError, match=f"math/{file}: is a pointer of Git LFS"):
        check_compatible(*folders)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
             "tokenizer.json", "tokenizer.model", "tekken.json", "processor_config.json"]
)  # fmt: skip
def test_a_link_to_nothing_is_named(tmp_path, file):
    folders = pair(tmp_path)
    for folder in folders:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to("../../blobs/0123")
    with pytest.raises(UserError, match=f"math/{file}: is a link to ../../blobs/0123, which is not there"):
        check_compatible(*folders)


def test_links_to_what_no_copy_gets_may_lead_nowhere(tmp_path):
    folders = pair(tmp_path)
    for file in ("pytorch_model.bin", "README.md"):  # of which the hub's cache was cleaned
        (folders[0] / file).symlink_to("../../blobs/0123")
    assert check_compatible(*folders) == []


@pytest.mark.parametrize(("file", "message"), [
    ("pytorch_model.bin", "found pytorch_model.bin, a pickle; expected model.safetensors"),
    ("adapter_model.safetensors", "found adapter_model.safetensors; expected model.safetensors"),
    ("llama.gguf", "found llama.gguf; expected model.safetensors"),
    ("README.md", "folder: expected model.safetensors"),
])  # fmt: skip
def test_other_weights_are_named(tmp_path, file, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / file).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        safetensors.read_header(tmp_path / "folder")


# --- configs --------------------------------------------------------------------------------------------------------

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
SAME = {  # of the language expert's config, where the math expert's is as transformers writes it
    "version 4": {"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": LLAMA3, "head_dim": ..., "mlp_bias": ...,
                  "dtype": ..., "torch_dtype": "float32"},
    "version 4, first spelling": {"rope_parameters": ..., "rope_theta": 500000,
                                  "rope_scaling": {"type": "llama3"} | LLAMA3},
    "numbers without a point": {"rope_parameters": {"rope_theta": 500000} | LLAMA3 | {"factor": 8}},
    "left out": {name: ... for name in ("attention_bias", "mlp_bias", "pretraining_tp", "hidden_act", "use_cache")},
    "the end of text in a list": {"eos_token_id": [1]},
    "an option of generation": {"temperature": 0.7},
    "null for a field of other classes": {"sliding_window": None, "quantization": None, "sep_token_id": None},
}  # fmt: skip
STAMPED = {"pad_token_id": 3, "bos_token_id": 2, "unsloth_version": "2025.1", "_attn_implementation_autoset": True,
           "architectures": ["FSDPLlamaForCausalLM"], "attention_dropout": 0.1, "trainer_note": {"loss": float("nan")},
           "num_labels": 3, "_unsloth_fixed": True, "use_liger_kernel": True, "add_cross_attention": False,
           "training": {"steps": 3}}  # fmt: skip
CHANGING = {"rms_norm_eps": 1e-5, "attention_bias": True, "num_key_value_heads": 4, "max_position_embeddings": 99,
            "rope_parameters": LLAMA3 | {"rope_theta": 1e4}, "quantization_config": {"bits": 4}, "eos_token_id": [1, 2],
            "sliding_window": 9}  # fmt: skip


@pytest.fixture
def llama3_pair(tmp_path):
    return pair(tmp_path, rope_parameters={"rope_theta": 5e5} | LLAMA3)


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_configs_that_mean_the_same_are_the_same(llama3_pair, fields):
    edit_json(llama3_pair[1] / "config.json", **fields)
    assert check_compatible(*llama3_pair) == []


def test_nan_is_nan(llama3_pair):
    for folder in llama3_pair:
        edit_json(folder / "config.json", router_jitter=float("nan"), nested={"a": [float("nan")]})
    edit_json(llama3_pair[1] / "config.json", mlp_bias=...)  # transformers is asked
    assert check_compatible(*llama3_pair) == []


@pytest.mark.parametrize("field", STAMPED)
def test_what_trainers_stamp_is_listed(llama3_pair, field):
    edit_json(llama3_pair[1] / "config.json", **{field: STAMPED[field]})
    differences = check_compatible(*llama3_pair)
    assert {difference.name.partition(".")[0] for difference in differences} <= {field, "id2label", "label2id"}
    assert differences and not any(difference.changes_function for difference in differences)


def test_a_field_with_a_point_in_its_name_is_listed(llama3_pair):
    edit_json(llama3_pair[0] / "config.json", **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}})
    (difference,) = check_compatible(*llama3_pair)
    assert difference.name == "transformers.js_config.kv_cache_dtype.fp16" and not difference.changes_function


# What version 4 wrote of every config within another, whether the class has it or not.
GENERAL_FIELDS = {
    "add_cross_attention": False, "begin_suppress_tokens": None, "decoder_start_token_id": None, "is_decoder": False,
    "early_stopping": False, "finetuning_task": None, "max_length": 20, "num_beams": 1, "prefix": None, "top_k": 50,
    "pruned_heads": {}, "sep_token_id": None, "tf_legacy_loss": False, "torchscript": False, "use_bfloat16": False,
}  # fmt: skip


def test_configs_within_another_may_be_written_out(tmp_path):
    config = Gemma3Config(text_config=SMALL, vision_config={"num_hidden_layers": 1})
    folders = [tmp_path / "math", tmp_path / "language"]
    for folder in folders:
        config.save_pretrained(folder)
    names = ("text_config", "vision_config")
    written = {name: getattr(config, name).to_dict() | GENERAL_FIELDS for name in names}
    edit_json(folders[1] / "config.json", **written)
    assert not [d for d in compatibility.config_differences(*folders) if d.changes_function]
    edit_json(folders[1] / "config.json", text_config=written["text_config"] | {"sliding_window": 7})
    (changing,) = [d for d in compatibility.config_differences(*folders) if d.changes_function]
    assert changing.name == "text_config.sliding_window"


OF_VERSION_4 = {  # a class with its fields of today, and what version 4 wrote instead of the last of them
    "gemma3": (Gemma3TextConfig(num_hidden_layers=7, sliding_window=512), {
        "rope_parameters": ..., "layer_types": ..., "rope_theta": 1e6, "rope_local_base_freq": 10000,
        "rope_scaling": None, "sliding_window_pattern": 6, "cache_implementation": "hybrid"}),
    "phi4": (Phi3Config(rope_parameters={"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.75}), {
        "rope_parameters": ..., "rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 0.75}),
}  # fmt: skip


@pytest.mark.parametrize(("config", "fields"), OF_VERSION_4.values(), ids=OF_VERSION_4)
def test_fields_that_a_class_makes_others_of(tmp_path, config, fields):
    folders = [tmp_path / "math", tmp_path / "language"]
    for folder in folders:
        config.save_pretrained(folder)
    edit_json(folders[1] / "config.json", **fields)
    assert not [d for d in compatibility.config_differences(*folders) if d.changes_function]
    changing = {"sliding_window_pattern": 2} if "sliding_window_pattern" in fields else {"partial_rotary_factor": 0.5}
    edit_json(folders[1] / "config.json", **changing)
    assert [d for d in compatibility.config_differences(*folders) if d.changes_function]


def test_a_word_in_code_of_the_folder_counts(llama3_pair):
    edit_json(llama3_pair[1] / "config.json", depth_scale=3)
    assert [difference.changes_function for difference in check_compatible(*llama3_pair)] == [False]
    for folder in llama3_pair:
        (folder / "modeling.py").write_text("scale = options.depth_scale")
    with pytest.raises(UserError, match="config field depth_scale is missing in .* and 3 in "):
        check_compatible(*llama3_pair)


@pytest.mark.parametrize("field", CHANGING)
def test_what_changes_the_function_is_refused_unless_it_is_allowed(llama3_pair, field):
    edit_json(llama3_pair[1] / "config.json", **{field: CHANGING[field]})
    with pytest.raises(UserError, match=rf"config field {field}[\w.]* is .* in .*, expected the same; --allow {field}"):
        check_compatible(*llama3_pair)
    allowed = check_compatible(*llama3_pair, allow=[field])
    assert {difference.name.partition(".")[0] for difference in allowed} == {field}


def test_where_a_text_ends_counts_also_in_generation_config(tmp_path):
    folders = pair(tmp_path)
    edit_json(folders[1] / "generation_config.json", eos_token_id=[1], top_p=0.5)
    assert [difference.name for difference in check_compatible(*folders)] == ["top_p"]
    (folders[1] / "generation_config.json").unlink()  # config.json says the same
    check_compatible(*folders)
    edit_json(folders[0] / "generation_config.json", eos_token_id=[1, 5])
    with pytest.raises(UserError, match=r"generation_config's eos_token_id is \[1, 5\] in .* and 1 in "):
        check_compatible(*folders)
    assert [d.values for d in check_compatible(*folders, allow=["eos_token_id"]) if d.changes_function] == [([1, 5], 1)]


def test_a_model_that_transformers_does_not_know_is_compared_as_written(tmp_path):
    folders = pair(tmp_path)
    for folder in folders:
        edit_json(folder / "config.json", model_type="novel", width=float("nan"))
    edit_json(folders[1] / "config.json", pad_token_id=7)
    assert [difference.name for difference in check_compatible(*folders)] == ["pad_token_id"]
    edit_json(folders[1] / "config.json", depth=3)
    with pytest.raises(UserError, match="config field depth is missing in .* and 3 in "):
        check_compatible(*folders)


# --- tokenizers -----------------------------------------------------------------------------------------------------


def write_bpe(path, edit):
    """A byte-level BPE tokenizer, whose JSON is edited."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<eos>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(["apples and apples", "seven plus seven"], trainer)
    data = json.loads(tokenizer.to_str())
    edit(data)
    path.write_text(json.dumps(data))


def surround(*single):
    """Put pieces around a text: "<eos>", or "A" for the text."""
    pieces = [{"Sequence": {"id": "A", "type_id": 0}} if piece == "A" else {"SpecialToken": {"id": piece, "type_id": 0}}
              for piece in single]  # fmt: skip
    special = {"<eos>": {"id": "<eos>", "ids": [0], "tokens": ["<eos>"]}}
    second = [{"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": pieces, "pair": pieces + second, "special_tokens": special}
    return lambda data: data.update(post_processor=processor)


SAME_TOKENS = {
    "merges as text": lambda data: data["model"].update(merges=[" ".join(merge) for merge in data["model"]["merges"]]),
    "no post-processor": lambda data: data.update(post_processor=None),
    "nothing around the text": surround("A"),
    "offsets": lambda data: data["pre_tokenizer"].update(trim_offsets=not data["pre_tokenizer"]["trim_offsets"]),
    "options that decoding ignores": lambda data: data["decoder"].update(add_prefix_space=False, use_regex=False),
    "a default left out": lambda data: data["model"].pop("ignore_merges"),
    "truncation": lambda data: data.update(
        truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    ),
}
OTHER_TOKENS = {
    "a merge less": (lambda data: data["model"]["merges"].pop(), "merges"),
    "a beginning": (surround("<eos>", "A"), "post_processor"),
    "an end": (surround("A", "<eos>"), "post_processor"),
    "a space before the text": (lambda data: data["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer"),
    "no decoder": (lambda data: data.update(decoder=None), "decoder"),
    "a token that takes spaces": (lambda data: data["added_tokens"][0].update(lstrip=True), "added_tokens"),
    "another rule": (lambda data: data["model"].update(byte_fallback=True), "model"),
}


@pytest.mark.parametrize("edit", SAME_TOKENS.values(), ids=SAME_TOKENS)
def test_tokenizers_that_do_the_same_are_the_same(tmp_path, edit):
    folders = pair(tmp_path)
    write_bpe(folders[0] / "tokenizer.json", lambda data: None)
    write_bpe(folders[1] / "tokenizer.json", edit)
    assert check_compatible(*folders) == []


@pytest.mark.parametrize(("edit", "name"), OTHER_TOKENS.values(), ids=OTHER_TOKENS)
def test_tokenizers_that_do_something_else_are_not(tmp_path, edit, name):
    folders = pair(tmp_path)
    write_bpe(folders[0] / "tokenizer.json", lambda data: None)
    write_bpe(folders[1] / "tokenizer.json", edit)
    with pytest.raises(UserError, match=rf"tokenizer's {name} \(sha256\) is .*, expected the same; --allow {name} "):
        check_compatible(*folders)
    assert [difference.name for difference in check_compatible(*folders, allow=[name])] == [name]


def test_scores_of_pieces_count(tmp_path):
    folders = pair(tmp_path)
    for folder, score in zip(folders, (-1.0, -2.0), strict=True):
        pieces = [["<unk>", 0.0], ["a", score], ["b", -1.5]]
        data = json.loads(Tokenizer(models.Unigram([("<unk>", 0.0)], 0)).to_str())
        data["model"]["vocab"] = pieces
        (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="tokenizer's model"):
        check_compatible(*folders)


@pytest.mark.parametrize("name", ["tekken.json", "spiece.model", "vocab.txt", "qwen.tiktoken", "added_tokens.json"])
def test_vocabularies_in_other_files(tmp_path, name):
    folders = pair(tmp_path)
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_text('{"a": 1}')
    assert check_compatible(*folders) == []
    digest = tokenizer_digest(folders[1])
    (folders[1] / name).write_text('{"b": 1}')
    assert tokenizer_digest(folders[1]) != digest
    with pytest.raises(UserError, match=f"tokenizer's file {name}"):
        check_compatible(*folders)


def test_one_slow_and_one_fast_tokenizer_are_named(tmp_path):
    folders = pair(tmp_path)
    for folder in folders:
        (folder / "tokenizer.model").write_bytes(b"pieces")
    (folders[0] / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json is missing in .*math and there in "):
        check_compatible(*folders)
    assert [d.name for d in check_compatible(*folders, allow=["tokenizer.json"])] == ["tokenizer.json"]


def test_settings_of_a_tokenizer(tmp_path):
    folders = pair(tmp_path)
    config = folders[1] / "tokenizer_config.json"
    edit_json(
        config, padding_side="right", model_max_length=99, eos_token={"content": "<eos>"}, chat_template="{{ 1 }}"
    )
    stamped = ["tokenizer_config's model_max_length", "tokenizer_config's padding_side"]
    assert sorted(d.description for d in check_compatible(*folders)) == ["chat template 'default' (sha256)", *stamped]
    edit_json(config, eos_token="<pad>")
    with pytest.raises(UserError, match="tokenizer_config's eos_token is <eos> in .* and <pad> in "):
        check_compatible(*folders)
    for templates in (["{{ 1 }}"], [{"name": "default"}]):
        edit_json(config, eos_token="<eos>", chat_template=templates)
        with pytest.raises(UserError, match="tokenizer_config.json: chat_template is .* expected text, or a list of"):
            check_compatible(*folders)


def test_settings_count_more_without_a_tokenizer_json(tmp_path):
    folders = pair(tmp_path)
    for i, folder in enumerate(folders):
        edit_json(folder / "tokenizer_config.json", legacy=bool(i))
        (folder / "tokenizer.model").write_bytes(b"pieces")
    (difference,) = check_compatible(*folders)
    assert difference.description == "tokenizer_config's legacy" and not difference.changes_function
    for folder in folders:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer_config's legacy is False in .* and True in .* --allow legacy takes"):
        check_compatible(*folders)


def test_another_vocabulary_beside_the_same_tokenizer_json_is_listed(tmp_path):
    folders = pair(tmp_path)
    (folders[1] / "tokenizer.model").write_bytes(b"pieces")
    (difference,) = check_compatible(*folders)
    assert difference.description == "file tokenizer.model (sha256)" and not difference.changes_function


# --- tensors --------------------------------------------------------------------------------------------------------


def with_buffers(data, value=1.0, dtype=torch.float32):
    """Tensors with the constants that older versions stored."""
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    return data | {name: torch.full((4,), value, dtype=dtype) for name in names}


def test_constants_are_no_weights(tmp_path):
    folders = pair(tmp_path)
    weights = safetensors.read_header(folders[0]).keys()
    edit_weights(folders[0], with_buffers)
    (difference,) = check_compatible(*folders)
    assert difference.description == "tensor model.layers.*.self_attn.rotary_emb.inv_freq, which no loader reads,"
    assert [header.keys() for header in mergeable_headers(folders)] == [weights, weights]
    edit_weights(folders[1], with_buffers)
    assert check_compatible(*folders) == []
    assert all("rotary_emb" in min(header.keys() - weights) for header in mergeable_headers(folders))
    assert unloaded_tensors(folders[0], safetensors.read_header(folders[0])) == []
    for folder in folders:
        edit_weights(folder, lambda data: with_buffers(data, dtype=torch.bool))
    assert check_compatible(*folders) == []
    for changed in ({"value": 2.0}, {"dtype": torch.float16}):
        edit_weights(folders[1], lambda data, changed=changed: with_buffers(data, **changed))
        assert len(check_compatible(*folders)) == 1
        assert [header.keys() for header in mergeable_headers(folders)] == [weights, weights]


def test_a_bias_of_attention_is_a_weight(tmp_path):
    folders = pair(tmp_path)
    edit_weights(folders[0], lambda data: data | {"model.layers.0.attention.bias": torch.ones(32)})
    with pytest.raises(UserError, match="tensor model.layers.0.attention.bias is F32 .* and missing"):
        check_compatible(*folders)


HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def test_a_stored_head_that_is_the_embeddings_is_no_weight(tmp_path):
    folders = pair(tmp_path)
    edit_weights(folders[1], lambda data: data | {HEAD: data[EMBEDDINGS].clone()})
    assert [d.description for d in check_compatible(*folders)] == [f"tensor {HEAD}, which no loader reads,"]
    assert all(HEAD not in header for header in mergeable_headers(folders))
    edit_weights(folders[0], lambda data: data | {HEAD: data[EMBEDDINGS].clone()})
    assert check_compatible(*folders) == [] and all(HEAD in header for header in mergeable_headers(folders))


def test_a_tied_head_that_is_not_the_embeddings_is_refused(tmp_path):
    folders = pair(tmp_path)
    for folder in folders:
        edit_weights(folder, lambda data: data | {HEAD: data[EMBEDDINGS] + 1})
    with pytest.raises(UserError, match=f"{HEAD} is not the embeddings, which config.json ties it to"):
        check_compatible(*folders)
    for folder in folders:
        edit_json(folder / "config.json", tie_word_embeddings=False)
    assert check_compatible(*folders) == []


WRAPPED = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", "model._checkpoint_wrapped_module.")


@pytest.mark.parametrize("prefix", WRAPPED)
def test_names_of_a_wrapper_are_refused(tmp_path, prefix):
    folders = pair(tmp_path)
    edit_weights(folders[0], lambda data: {prefix + name: tensor for name, tensor in data.items()})
    with pytest.raises(
        UserError, match=f"math: tensor {prefix}.* has .* in its name, of torch.compile, FSDP, DDP or an"
    ):
        check_compatible(*folders)


@pytest.mark.parametrize(
    "addition", ["lora_A.default", "base_layer", "lora_magnitude_vector", "modules_to_save.default"]
)
def test_an_adapter_inside_is_refused(tmp_path, addition):
    folders, name = pair(tmp_path), f"model.layers.0.self_attn.q_proj.{addition}.weight"
    for folder in folders:
        edit_weights(folder, lambda data: data | {name: torch.ones(2, 32)})
    with pytest.raises(UserError, match=f"tensor {name} has .* an adapter that was not merged"):
        check_compatible(*folders)


@pytest.mark.parametrize("n_empty", [1, 2])
def test_empty_weights_are_refused(tmp_path, n_empty):
    folders = pair(tmp_path)
    for folder in folders[:n_empty]:
        edit_weights(folder, lambda data: {name: t if t.ndim == 1 else torch.zeros(0) for name, t in data.items()})
    with pytest.raises(UserError, match=r"math: tensor .* is empty, F32 \[0\], expected weights; ZeRO-3"):
        check_compatible(*folders)


SMALL = {"vocab_size": 19, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
FAMILIES = {
    "qwen2": Qwen2Config(**SMALL), "qwen3": Qwen3Config(**SMALL, head_dim=16), "gpt_neox": GPTNeoXConfig(**SMALL),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=2),
    "qwen2 tied": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gemma3": Gemma3Config(
        text_config=SMALL | {"head_dim": 8},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14},
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_tensors_that_a_model_does_not_load_are_found(tmp_path, config):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    header = safetensors.read_header(tmp_path)
    assert unloaded_tensors(tmp_path, header) == []
    name = sorted(name for name in header if name.endswith("weight"))[-1]
    assert unloaded_tensors(tmp_path, header | {"extra": header[name]}) == ["extra"]
    with pytest.raises(UserError, match=f"{name}|transformers cannot load it"):
        unloaded_tensors(tmp_path, {other: tensor for other, tensor in header.items() if other != name})
    renamed = {f"net.{other}": tensor for other, tensor in header.items()}
    with pytest.raises(UserError, match="has no tensor|transformers cannot load it"):
        unloaded_tensors(tmp_path, renamed)


@pytest.mark.parametrize("model_type", LLAMAS)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_of_llamas_are_known_without_transformers(tmp_path, model_type, tied):
    config = AutoConfig.for_model(model_type, **SMALL, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    shapes = {name: tensor.shape for name, tensor in safetensors.read_header(tmp_path).items()}
    assert llama_shapes(json.loads((tmp_path / "config.json").read_text())) == shapes
    assert llama_shapes({"model_type": model_type}) == {}


def test_a_shape_that_is_not_the_configs_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "model", layers=2)
    edit_json(folder / "config.json", intermediate_size=40)
    with pytest.raises(UserError, match=r"down_proj.weight is \[32, 48\], expected \[32, 40\] as LlamaForCausalLM"):
        unloaded_tensors(folder, safetensors.read_header(folder))


# --- copies ---------------------------------------------------------------------------------------------------------


def test_what_a_copy_gets_and_what_is_left_out(tmp_path):
    folder, out = write_checkpoint(tmp_path / "model"), tmp_path / "copy"
    out.mkdir()
    before = {path.name for path in folder.iterdir()} - {"model.safetensors"}
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_x.X", "AutoTokenizer": ["tokenizing.T", None]})
    copied = [
        "preprocessor_config.json",
        "LICENSE",
        "notes.txt",
        "tekken.json",
        "additional_chat_templates/tools.jinja",
    ]
    left_out = {"pytorch_model.bin": "weights", "optimizer.pt": "weights", "adapter_config.json": "weights",
                "README.md": "of this model", ".gitattributes": "of this model", "modeling_x.py": "custom code",
                "onnx/model.onnx": "a folder"}  # fmt: skip
    for name in [*copied, *left_out]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    reasons = copy_model_files(folder, out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == before | {*copied}
    assert reasons.keys() == {name.partition("/")[0] for name in left_out} | {"tokenizing.py"}
    assert all(reasons[name.partition("/")[0]].startswith(reason) for name, reason in left_out.items())
    assert "modeling_x.py" not in copy_model_files(folder, out, custom_code=True) and (out / "modeling_x.py").is_file()


def test_files_that_differ_are_listed(tmp_path):
    folders = pair(tmp_path)
    (folders[1] / "preprocessor_config.json").write_text("{}")
    assert [d.description for d in check_compatible(*folders)] == ["file preprocessor_config.json (sha256)"]
    (folders[0] / "preprocessor_config.json").write_text("{ }")  # the same JSON
    assert check_compatible(*folders) == []
