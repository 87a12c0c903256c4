"""What a model may be named by: folders, adapters, GGUF files, and a hub that answers like the real one."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import same_bits, tensors, write_checkpoint
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file
from test_adapters import WEIGHTS, small_adapter
from test_gguf import write_gguf
from transformers import AutoModelForCausalLM, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from layerswap.checkpoints import adapters, architecture, compatibility, gguf, loading, safetensors
from layerswap.errors import UserError
from layerswap.files import file_digest


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Names of models are below tmp_path, and what is made of them is written there."""
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    for module in (adapters, gguf, loading):
        monkeypatch.setattr(module, "BUILD", tmp_path / "build")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that no test writes to."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", layers=2)


def built(tmp_path):
    """All that lies under build."""
    return sorted(path for path in (tmp_path / "build").rglob("*") if path != tmp_path / "build" / "models")


# --- folders and files ----------------------------------------------------------------------------------------------


def test_a_folder_is_itself(tmp_path, base):
    shutil.copytree(base, tmp_path / "some" / "model")
    for name in ("some/model", tmp_path / "some" / "model"):
        assert loading.resolve_model(name) == tmp_path / "some" / "model"


def folder_with(files):
    """A function that writes files (name -> bytes) to a folder."""

    def write(folder):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return write


def config_only(folder):
    small_adapter(folder)
    (folder / WEIGHTS).unlink()


def pickled(folder):
    config_only(folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80")


def cut(folder):
    small_adapter(folder)
    os.truncate(folder / WEIGHTS, 300)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("it", config_only, f"{WEIGHTS}: no such file"),
        ("it", pickled, f"found adapter_model.bin, a pickle; expected {WEIGHTS}"),
        ("it", cut, f"{WEIGHTS}: "),
        ("it", folder_with({"adapter_config.json": b'{"peft_type": '}), "adapter_config.json: expected a JSON object"),
        ("it", folder_with({"adapter_config.json": b"[1]"}), "adapter_config.json: expected a JSON object"),
        ("it", folder_with({}), "model 'it': .*it holds no config.json$"),
        ("it", folder_with({"config.json": b"{}"}), "it: expected model.safetensors, only safetensors are read"),
        ("it", folder_with({"config.json": b"{}", "pytorch_model.bin": b""}), "found pytorch_model.bin, a pickle"),
        ("it", None, "holds no config.json; a model on the hub is named owner/name@revision"),
        ("owner/name", None, "holds no config.json; a model on the hub is named owner/name@revision"),
        ("../..@main", None, "holds no config.json; a model on the hub"),
        ("owner/name@main/../../x", None, "holds no config.json; a model on the hub"),
        ("owner/name@/main", None, "holds no config.json; a model on the hub"),
        ("it.gguf", None, "it.gguf: no such file"),
        ("it.gguf", lambda file: file.write_bytes(b"PK" * 90), "it.gguf: not a GGUF file with weights"),
        ("it.gguf", lambda file: file.write_bytes(b"GGUF"), "it.gguf: not a GGUF file with weights"),
        ("it.gguf", lambda file: write_gguf(file, "clip"), "it.gguf: transformers cannot load it"),
        ("it.gguf", lambda file: write_gguf(file, without="blk.1.ffn_up"), "has no tensor model.layers.1.mlp.up_proj"),
    ],
)
def test_a_name_of_no_usable_model_is_refused(tmp_path, base, name, write, message):
    if write:
        write(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        loading.resolve_model(name, base)
    assert "\n" not in str(error.value)
    assert built(tmp_path) == []


def test_an_adapter_needs_a_base(tmp_path):
    small_adapter(tmp_path / "it")
    with pytest.raises(UserError, match="^model 'it': is an adapter, expected a whole model to begin with$"):
        loading.resolve_model("it")


@pytest.mark.parametrize("shard", [None, 20_000])
def test_a_model_and_an_adapter_in_one_folder(tmp_path, base, shard):
    folder = write_checkpoint(tmp_path / "it", layers=2, shard=shard)
    small_adapter(tmp_path / "adapter")
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", folder)  # alone: merge_and_unload leaves it behind
    assert loading.resolve_model("it") == loading.resolve_model("it", base) == folder
    shutil.copy(tmp_path / "adapter" / WEIGHTS, folder)
    for options in ((), (base,)):
        with pytest.raises(UserError, match=f"it: holds both an adapter .adapter_config.json, {WEIGHTS}. and a whole"):
            loading.resolve_model("it", *options)


def test_a_model_that_is_no_causal_language_model_loads_as_its_own_class(tmp_path):
    config = Qwen2VLConfig(
        text_config={"vocab_size": 19, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "num_key_value_heads": 2},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    )  # fmt: skip
    Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path / "it")
    assert isinstance(loading.load_model(tmp_path / "it", torch.float32), Qwen2VLForConditionalGeneration)


# --- the hub --------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_FILES = ("pytorch_model.bin", "modeling_x.py", "tokenizer.py", "consolidated.safetensors", "onnx/x.safetensors")


class Hub(ThreadingHTTPServer):
    """A hub with one model, owner/name, whose branch main is COMMIT; it answers as the real one does."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url, self.folder = f"http://127.0.0.1:{self.server_port}", folder
        self.gated, self.breaks = False, []  # breaks: after how many bytes of weights the next transfers break
        self.requests = []  # (method, path, Range, Authorization)

    def handle_error(self, request, client_address):
        """A connection that the test broke is no news."""

    def files(self, method="GET"):
        """The names of the files that were asked for."""
        return sorted(
            p.split(f"/resolve/{COMMIT}/")[1] for m, p, *_ in self.requests if m == method and "/resolve/" in p
        )


class HubHandler(BaseHTTPRequestHandler):
    """Answers a request to the hub."""

    def log_message(self, *args):
        pass

    def fail(self, code, reason):
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def content(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers["Range"], self.headers["Authorization"]))
        if not path.startswith(("/api/models/owner/name/", "/owner/name/")):
            return self.fail(404, "RepoNotFound")
        if path == "/api/models/owner/name/revision/main":
            return self.content(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            files = [file for file in hub.folder.rglob("*") if file.is_file()]
            rows = [{"type": "file", "oid": "0" * 40, "size": file.stat().st_size,
                     "path": str(file.relative_to(hub.folder))} for file in files]  # fmt: skip
            return self.content(json.dumps(rows).encode())
        if not path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            return self.fail(404, "RevisionNotFound")
        if hub.gated and self.headers["Authorization"] != "Bearer hf_secret":
            return self.fail(401, "GatedRepo")
        body = (hub.folder / path.split(f"/resolve/{COMMIT}/")[1]).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Repo_Commit": COMMIT}
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        content_range = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        headers |= content_range | {"Content_Length": len(body) - start}
        if self.command == "GET" and path.endswith(".safetensors") and hub.breaks:
            body = body[: start + hub.breaks.pop(0)]  # shorter than was said
        return self.content(body[start:], 206 if content_range else 200, **headers)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch, base):
    """A hub that serves ``base`` with a pickle and code beside it, and the library set to it in this process."""
    shutil.copytree(base, tmp_path / "served")
    for name in OTHER_FILES:
        (tmp_path / "served" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "served" / name).write_bytes(b"import os")
    server = Hub(tmp_path / "served")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    settings = {
        "ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True, "DOWNLOAD_CHUNK_SIZE": 1024,
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between two attempts
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()  # the next one reads NO_PROXY
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def check_refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        loading.resolve_model(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_model_is_fetched_once_without_pickles_and_code(tmp_path, hub, base, revision):
    out = loading.resolve_model(f"owner/name@{revision}")
    assert safetensors.weights_digest(out) == safetensors.weights_digest(base)
    assert hub.files() == sorted(path.name for path in base.iterdir())
    assert hub.files("HEAD") == hub.files()
    assert {authorization for *_, authorization in hub.requests} == {None}
    assert loading.resolve_model(f"owner/name@{revision}") == out
    assert hub.files() == sorted(path.name for path in base.iterdir())


def test_all_files_of_a_model_are_fetched(hub, base):
    names = ["preprocessor_config.json", "spiece.model", "tokenizer.model.v3", "vocab.txt", "qwen.tiktoken", "LICENSE",
             "additional_chat_templates/tools.jinja"]  # fmt: skip
    for name in names:
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_text(json.dumps(name))  # another content, or one is enough for all
    out = loading.resolve_model("owner/name@main")
    assert {*hub.files()} == {*names, *(path.name for path in base.iterdir())}
    assert all((out / name).is_file() for name in names)


def test_an_adapter_on_the_hub_is_merged(tmp_path, hub, base):
    shutil.rmtree(hub.folder)
    small_adapter(hub.folder)
    out = loading.resolve_model("owner/name@main", base)
    assert out.name.startswith("name-")
    assert safetensors.weights_digest(out) == safetensors.weights_digest(loading.resolve_model("served", base))
    check_refused("owner/name@main", "'owner/name@main': is an adapter, expected a whole model")


def test_a_broken_transfer_goes_on_where_it_ended(hub, base):
    hub.breaks = [40 * 1024, 3 * 1024]
    out = loading.resolve_model("owner/name@main")
    assert file_digest(out / "model.safetensors") == file_digest(base / "model.safetensors")
    ranges = [
        where for method, path, where, _ in hub.requests if method == "GET" and path.endswith("model.safetensors")
    ]
    assert ranges == [None, f"bytes={40 * 1024}-", f"bytes={43 * 1024}-"]


def test_after_a_connection_that_stays_broken_only_the_rest_is_fetched(tmp_path, hub, base):
    hub.breaks = [4096, *[0] * 20]
    check_refused("owner/name@main", "model owner/name@main: cannot be fetched .RemoteProtocolError: ")
    hub.breaks, before = [], hub.files()
    assert safetensors.weights_digest(loading.resolve_model("owner/name@main")) == safetensors.weights_digest(base)
    assert "config.json" in before
    assert sorted({*before, *hub.files()[len(before) :]}) == sorted(path.name for path in base.iterdir())
    assert hub.files().count("config.json") == 1


def test_a_gated_model_is_for_those_with_a_token(hub, base, monkeypatch):
    hub.gated = True
    hint = f"is gated; accept its terms on {hub.url}/owner/name, then log in .hf auth login. or set HF_TOKEN$"
    check_refused("owner/name@main", f"^model owner/name@main: {hint}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.requests.clear()
    assert safetensors.weights_digest(loading.resolve_model("owner/name@main")) == safetensors.weights_digest(base)
    assert {authorization for *_, authorization in hub.requests} == {"Bearer hf_secret"}


def test_what_the_hub_does_not_have_is_named(hub):
    check_refused(
        "owner/other@main", "^model owner/other@main: no such model on the hub, or a private one; HF_TOKEN opens"
    )
    check_refused("owner/name@v2.0", "^model owner/name@v2.0: the model has no such commit, tag or branch$")
    check_refused(f"owner/name@{'f' * 40}", "the model has no such commit, tag or branch$")
    check_refused("owner/na--me@main", "^model owner/na--me@main: cannot be fetched .HFValidationError: ")
    for file in hub.folder.glob("*.safetensors"):
        file.unlink()
    check_refused("owner/name@main", "^model owner/name@main: holds no .safetensors files, only safetensors are read$")


def test_a_full_disk_is_named(tmp_path, hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    check_refused("owner/name@main", f"^model owner/name@main: no space left for it in {tmp_path / 'hub'}$")


def test_offline_only_the_cache_counts(tmp_path, hub, base, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_refused(
        "owner/name@main", r"^model owner/name@main: is not \(wholly\) in the cache, and HF_HUB_OFFLINE is set$"
    )
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    out = loading.resolve_model("owner/name@main")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert loading.resolve_model("owner/name@main") == loading.resolve_model(f"owner/name@{COMMIT}") == out
    (out / "model.safetensors").unlink()
    check_refused("owner/name@main", "is not .wholly. in the cache, and HF_HUB_OFFLINE is set$")
    assert hub.requests == []


def test_without_a_connection_the_cache_serves_or_the_address_is_named(hub, base):
    hub.shutdown()
    hub.server_close()
    check_refused("owner/name@main", f"^model owner/name@main: {hub.url} cannot be reached .ConnectError: ")


def test_the_hub_is_set_by_the_environment(tmp_path, hub, base):
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    code = f"from layerswap.checkpoints.loading import fetch_from_hub; print(fetch_from_hub('owner/name', '{COMMIT}'))"

    def fetch(**more):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | more
        environment["PYTHONPATH"] = str(Path(loading.__file__).parents[2])
        return Path(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip())

    out = fetch(HF_TOKEN="hf_secret")
    assert out.is_relative_to(tmp_path / "home") and safetensors.weights_digest(out) == safetensors.weights_digest(base)
    assert {authorization for _, path, _, authorization in hub.requests if "owner/name" in path} == {"Bearer hf_secret"}
    hub.requests.clear()
    assert fetch(HF_HUB_OFFLINE="1") == out
    assert hub.requests == []


def without_index(folder):
    """The shards of a folder without their index."""
    (folder / "model.safetensors.index.json").unlink()


def with_stray_adapter(folder):
    small_adapter(folder.parent / "adapter")
    shutil.copytree(folder.parent / "adapter", folder, dirs_exist_ok=True)


def with_other_shards(folder):
    shutil.copy(folder / "config.json", folder / "shard-00001-model-00001-of-00001.safetensors")


@pytest.mark.parametrize(("shard", "edit"), [
    (None, lambda folder: None), (20000, lambda folder: None), (20000, without_index), (None, with_stray_adapter),
    (None, with_other_shards),
], ids=["one file", "shards", "without an index", "an adapter beside", "other shards beside"])  # fmt: skip
def test_what_is_loaded_is_what_is_read(tmp_path, shard, edit):
    folder = write_checkpoint(tmp_path / "model", layers=2, shard=shard)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    edit(folder)
    model, weights = loading.load_model(folder, torch.float32), safetensors.read_header(folder)
    assert dict(model.named_parameters()).keys() == weights.keys() and model.generation_config.eos_token_id == [1, 5]
    on_disk = {name: load_file(tensor.file)[name] for name, tensor in weights.items()}
    assert all(same_bits(tensor, on_disk[name]) for name, tensor in model.named_parameters())
    assert model.config.name_or_path == str(folder)


def test_constants_of_former_versions_are_passed_over(tmp_path):
    folder = write_checkpoint(tmp_path / "model", layers=2)
    weights = load_file(folder / "model.safetensors")
    expected = loading.load_model(folder, torch.float32).state_dict()
    constants = {"model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(8, 4),
                 "model.layers.0.attn.masked_bias": torch.tensor(-1e9),
                 "model.layers.1.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}  # fmt: skip
    save_file(weights | constants, folder / "model.safetensors", {"format": "pt"})
    loaded = loading.load_model(folder, torch.float32).state_dict()
    assert loaded.keys() == expected.keys() and all(same_bits(loaded[name], expected[name]) for name in expected)
    save_file(weights | {"model.layers.1.attn.bias": torch.ones(8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="unexpected_keys': .'model.layers.1.attn.bias'"):
        loading.load_model(folder, torch.float32)


def test_an_adapter_is_merged_into_shards_without_an_index(tmp_path):
    bases = [write_checkpoint(tmp_path / name, layers=2, shard=shard) for name, shard in (("one", None), ("n", 20000))]
    without_index(bases[1])
    small_adapter(tmp_path / "adapter")
    one, several = (tensors(loading.resolve_model("adapter", base)) for base in bases)
    assert one.keys() == several.keys() and all(same_bits(one[name], several[name]) for name in one)


def test_weights_that_the_config_names_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "model", layers=2)
    shutil.copy(write_checkpoint(tmp_path / "other", 1, layers=2) / "model.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": "other.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"^{folder}: transformers cannot load it .*{folder}/other.safetensors"):
        loading.load_model(folder, torch.float32)
    with pytest.raises(UserError, match="config.json names other weights .other.safetensors., expected model.safe"):
        architecture.unloaded_tensors(folder, safetensors.read_header(folder))


BAD_CONFIGS = {"num_attention_heads": "4", "rope_parameters": 5, "text_config": {}, "auto_map": 5, "hidden_act": "odd",
               "quantization_config": 5}  # fmt: skip


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_whatever_transformers_raises_is_one_line(tmp_path, field):
    folder = write_checkpoint(tmp_path / "model", layers=2)
    config = json.loads((folder / "config.json").read_text()) | {field: BAD_CONFIGS[field]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model: transformers cannot load it \(\w+Error: .*\)$"):
        loading.load_model(folder, torch.float32)
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": 5}')
    with pytest.raises(UserError, match=r"model: transformers cannot load its tokenizer \(\w+Error: .*\)$"):
        loading.load_tokenizer(folder)


def test_nobody_is_asked_whether_code_may_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("asked"))
    folder = write_checkpoint(tmp_path / "model", layers=2)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "novel.Config", "AutoModelForCausalLM": "novel.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "novel", "auto_map": auto_map}))
    (folder / "novel.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="transformers cannot load it .*contains custom code"):
        loading.load_model(folder, torch.float32)
    settings = {"tokenizer_class": "Novel", "auto_map": {"AutoTokenizer": ["novel.Novel", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="transformers cannot load its tokenizer .*contains custom code"):
        loading.load_tokenizer(folder)


def test_folders_of_other_dtypes_become_float32(tmp_path):
    low = write_checkpoint(tmp_path / "low", dtype=torch.bfloat16, shard=20000)
    whole = write_checkpoint(tmp_path / "whole", 1)
    assert loading.unify_dtypes([low, low]) == [low, low] and loading.unify_dtypes([whole]) == [whole]
    converted, unchanged = loading.unify_dtypes([low, whole])
    assert unchanged == whole and loading.unify_dtypes([low, whole]) == [converted, whole]
    before, after = tensors(low), tensors(converted)
    assert before.keys() == after.keys()
    assert all(same_bits(after[name], before[name].float()) for name in before)
    compatibility.check_compatible(converted, whole)
    loaded = AutoModelForCausalLM.from_pretrained(converted).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in after.items())


def test_integers_do_not_become_float32(tmp_path):
    odd = write_checkpoint(tmp_path / "odd", dtype=torch.bfloat16)
    weights = load_file(odd / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int16)
    save_file(weights, odd / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="tensor model.norm.weight is I16, which float32 does not hold"):
        loading.unify_dtypes([odd, write_checkpoint(tmp_path / "whole")])
