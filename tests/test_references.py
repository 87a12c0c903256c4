"""What a model may be named by: adapters folded as PEFT does, GGUF files, and a hub that answers like the real one."""

import errno
import hashlib
import json
import math
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
from conftest import SPECIAL, WORDS, bits, same_bits, tensors, write_checkpoint
from huggingface_hub import constants, file_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_sources import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import checkpoint, merge, references
from layerswap.paths import UserError, file_digest
from layerswap.plan import Plan

WEIGHTS = "adapter_model.safetensors"
PLAIN = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
QUERY = "model.layers.1.self_attn.q_proj"
A, B = (f"base_model.model.{QUERY}.lora_{side}.weight" for side in "AB")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """References look below tmp_path, and what they make lies there."""
    monkeypatch.setattr(references, "ROOT", tmp_path)
    monkeypatch.setattr(references, "BUILD", tmp_path / "build")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that no test writes to."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", layers=2)


def write_adapter(base, folder, *, seed=5, saved=None, **settings):
    """A LoRA adapter of random matrices by PEFT, of dtype ``saved`` if given; returns ``folder``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **PLAIN | settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    if saved:
        file = folder / WEIGHTS
        save_file({name: value.to(saved) for name, value in load_file(file).items()}, file)
    return folder


def plain_adapter(folder, stored=None, **settings):
    """An adapter on one matrix without PEFT; returns ``folder``. stored: other tensors; settings: None leaves out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | settings
    text = json.dumps({field: value for field, value in settings.items() if value is not None})
    (folder / "adapter_config.json").write_text(text)
    save_file({A: torch.ones(2, 32), B: torch.ones(32, 2)} if stored is None else stored, folder / WEIGHTS)
    return folder


def merged(base, adapter):
    """The base with the adapter merged by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def made(tmp_path):
    """All that lies under build."""
    return sorted(path for path in (tmp_path / "build").rglob("*") if path != tmp_path / "build" / "models")


# --- folders and adapters -------------------------------------------------------------------------------------------


def test_a_folder_is_itself(tmp_path, base):
    shutil.copytree(base, tmp_path / "some" / "model")
    assert references.model("some/model") == references.model(tmp_path / "some" / "model") == tmp_path / "some/model"


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SETTINGS = [
    {}, {"use_rslora": True}, {"target_modules": "all-linear"}, {"layers_to_transform": [1]},
    {"rank_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 2}, "alpha_pattern": {"1.self_attn.v_proj": 3}},
    {"rank_pattern": {r"model\.layers\.\d+\.mlp.*": 5}, "alpha_pattern": {"down_proj": 7.5}, "use_rslora": True},
]  # fmt: skip
FOLDS = [(settings, None) for settings in SETTINGS] + [({}, saved) for saved in DTYPES[1:]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("settings", "saved"), FOLDS)
def test_a_folded_adapter_is_that_of_peft(tmp_path, dtype, settings, saved):
    base = write_checkpoint(tmp_path / "base", layers=2, dtype=dtype, tied="use_rslora" in settings, shard=30_000)
    adapter = write_adapter(base, tmp_path / "adapter", saved=saved, **settings)
    found, expected = tensors(references.model("adapter", base)), merged(base, adapter).state_dict()
    assert expected.keys() - found.keys() <= {"lm_head.weight"}
    assert all(same_bits(found[name], expected[name]) for name in found)
    assert any(not same_bits(found[name], value) for name, value in tensors(base).items())


def test_what_no_adapter_touches_stays_and_the_files_are_those_of_the_base(tmp_path):
    base = write_checkpoint(tmp_path / "base", layers=2, dtype=torch.bfloat16, special=True, shard=20_000)
    for file in base.glob("*.safetensors"):  # specials only where nothing is folded
        data = load_file(file)
        data = {name: value.nan_to_num() if name == f"{QUERY}.weight" else value for name, value in data.items()}
        save_file(data, file, {"format": "pt"})
    before, adapter = tensors(base), plain_adapter(tmp_path / "adapter")
    out = references.model("adapter", "base")
    after = tensors(out)
    assert [name for name in before if not same_bits(before[name], after[name])] == [f"{QUERY}.weight"]
    assert bits(after["model.norm.weight"]).view("uint16")[5] == SPECIAL[torch.bfloat16][1]
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()} | {"adapter.json"}
    told = json.loads((out / "adapter.json").read_text())
    assert (told["base"], told["adapter"]) == (str(base), str(adapter))
    assert told["settings"] == {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def test_swapped_layers_of_folded_experts_are_those_of_merged_ones(tmp_path):
    base, folders = write_checkpoint(tmp_path / "base", dtype=torch.bfloat16), {}
    for seed, role in enumerate(["math", "language"]):
        adapter = write_adapter(base, tmp_path / role, seed=seed)
        merged(base, adapter).save_pretrained(tmp_path / f"{role}-peft")
        for file in base.glob("tokenizer*"):
            shutil.copy(file, tmp_path / f"{role}-peft")
        folders[role] = references.model(role, base), tmp_path / f"{role}-peft"
    plan = Plan("swap", (1, 0.25, 0, 1), 0.5)
    for i, out in enumerate(["folded", "peft"]):
        merge.merge(folders["math"][i], folders["language"][i], plan, tmp_path / out)
    found, expected = tensors(tmp_path / "folded"), tensors(tmp_path / "peft")
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in found)


def test_a_fold_is_made_once_for_the_same_content(tmp_path, base):
    plain_adapter(tmp_path / "adapter", base_model_name_or_path="somewhere/else")
    first = references.model("adapter", base)
    assert first.parent == tmp_path / "build" / "models" and first.name.startswith("adapter-")
    written = (first / "model.safetensors").stat().st_mtime_ns
    shutil.copytree(base, tmp_path / "copy")
    assert references.model("adapter", "copy") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    others = set()
    for change in (
        lambda: plain_adapter(tmp_path / "adapter", lora_alpha=5),
        lambda: plain_adapter(tmp_path / "adapter", {A: torch.ones(2, 32), B: torch.zeros(32, 2)}),
        lambda: (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages }}"),
        lambda: write_checkpoint(tmp_path / "copy", 9, layers=2),
    ):
        change()
        others.add(references.model("adapter", "copy"))
    assert len(others - {first}) == 4


def test_a_killed_fold_leaves_nothing(tmp_path, base, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    plain_adapter(tmp_path / "adapter")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(references, "folded", killed)
        references.model("adapter", base)
    assert made(tmp_path) == []
    assert tensors(references.model("adapter", base)).keys() == tensors(base).keys()


def test_of_two_at_once_the_first_one_stays(tmp_path, base, monkeypatch):
    plain_adapter(tmp_path / "adapter")
    folded, others = references.folded, []

    def late(*args):
        if not others:
            others.append(None)
            others.append(references.model("adapter", base))
        return folded(*args)

    monkeypatch.setattr(references, "folded", late)
    out = references.model("adapter", base)
    assert others[1:] == [out] == list((tmp_path / "build" / "models").iterdir())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path):
    def peak(layers):  # MB that folding a model of 4 MB a layer adds at most
        names, folder = [f"model.layers.{i}.mlp.up_proj" for i in range(layers)], tmp_path / f"base{layers}"
        folder.mkdir()
        save_file({f"{n}.weight": torch.ones(1024, 1024) for n in names}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        stored = {f"base_model.model.{n}.lora_A.weight": torch.ones(2, 1024) for n in names}
        stored |= {f"base_model.model.{n}.lora_B.weight": torch.ones(1024, 2) for n in names}
        plain_adapter(tmp_path / "adapter", stored)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        references.model("adapter", folder)
        return status("VmHWM") - before

    def status(field):
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1e3

    peak(1)  # what is imported and allocated once
    assert peak(20) < 40


BAD = {
    "a loha": ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
    "no peft_type": ({"peft_type": None}, "peft_type is None"),
    "dora": ({"use_dora": True}, "has use_dora, expected plain LoRA"),
    "bias": ({"lora_bias": True}, "has lora_bias"),
    "transposed": ({"fan_in_fan_out": True}, "has fan_in_fan_out"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base"),
    "no alpha": ({"lora_alpha": None}, f"lora_alpha of {QUERY} is None, expected a number"),
    "alpha in words": ({"lora_alpha": "16"}, "lora_alpha of .* is '16', expected a number"),
    "alpha is true": ({"lora_alpha": True}, "lora_alpha of .* is True, expected a number"),
    "alpha is no number": ({"lora_alpha": math.nan}, "lora_alpha of .* is nan, expected a number"),
    "alpha by pattern": ({"alpha_pattern": {"q_proj": [1]}}, r"lora_alpha of .* is \[1\], expected a number"),
    "no rank": ({"r": 2.0}, "r of .* is 2.0, expected a number"),
    "rank 0": ({"r": 0}, "r of .* is 0, expected 1 or more"),
    "another rank": ({"r": 8}, r"module .* has lora_A, lora_B of \[\(2, 32\), \(32, 2\)\], expected \[\(8, 32\)"),
    "a broken pattern": ({"rank_pattern": {"(": 1}}, "rank_pattern is no table of patterns"),
    "patterns in a list": ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is no table of patterns"),
    "a lone A": ({"stored": {A: torch.ones(2, 32)}}, f"module {QUERY} has lora_A alone, expected lora_A and lora_B"),
    "a lone B": ({"stored": {B: torch.ones(32, 2)}}, "has lora_B alone"),
    "nothing": ({"stored": {}}, "holds no LoRA matrices"),
    "another shape": ({"stored": {A: torch.ones(2, 16), B: torch.ones(32, 2)}}, "adapter of another base?"),
    "an unknown module": (
        {"stored": {name.replace("layers.1", "layers.7"): torch.ones(2, 2) for name in (A, B)}},
        "module model.layers.7.self_attn.q_proj is not one of .*, an adapter of another base.$",
    ),
    "the tied head": (
        {"stored": {name.replace(QUERY, "lm_head"): torch.ones(2, 2) for name in (A, B)}},
        "module lm_head cannot be folded: the base's embeddings are tied to it",
    ),
    "an embedding": (
        {"stored": {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 19)}},
        r"tensor .*lora_embedding_A \(F32 \[2, 19\]\) is not plain LoRA's A or B",
    ),
    "a saved module": ({"stored": {"base_model.model.lm_head.weight": torch.ones(19, 32)}}, "is not plain LoRA's A"),
    "a magnitude": (
        {"stored": {f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(32)}},
        "lora_magnitude_vector .* is not plain",
    ),
    "whole numbers": (
        {"stored": {A: torch.ones(2, 32, dtype=torch.int32), B: torch.ones(32, 2)}},
        r"\(I32 \[2, 32\]\) is not plain",
    ),
    "a norm": (
        {"stored": {n.replace(QUERY, "model.layers.0.input_layernorm"): torch.ones(2, 2) for n in (A, B)}},
        r"module .*input_layernorm of .* is F32 \[32\], expected a matrix of one of F64, ",
    ),
    "not finite": ({"stored": {A: torch.full((2, 32), math.inf), B: torch.ones(32, 2)}}, f"{QUERY}.weight .*NaN"),
    "too large": ({"stored": {A: torch.full((2, 32), 1e30), B: torch.full((32, 2), 1e30)}}, "it makes NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_an_adapter_that_cannot_be_folded_is_refused(tmp_path, base, settings, message):
    plain_adapter(tmp_path / "adapter", **settings)
    with pytest.raises(UserError, match=message) as error:
        references.model("adapter", base)
    assert "\n" not in str(error.value) and str(tmp_path / "adapter") in str(error.value)
    assert made(tmp_path) == []


def test_a_head_that_is_stored_though_tied_is_not_folded(tmp_path, base):
    shutil.copytree(base, tmp_path / "base")
    data = tensors(base)
    save_file(data | {"lm_head.weight": data["model.embed_tokens.weight"].clone()}, tmp_path / "base/model.safetensors")
    head = {A.replace(QUERY, "lm_head"): torch.ones(2, 32), B.replace(QUERY, "lm_head"): torch.ones(len(WORDS), 2)}
    plain_adapter(tmp_path / "adapter", head)
    with pytest.raises(UserError, match="module lm_head cannot be folded: the base's embeddings are tied to it"):
        references.model("adapter", "base")


def folder_with(files):
    """What writes files (name -> bytes) to a folder."""

    def write(folder):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return write


def config_only(folder):
    plain_adapter(folder)
    (folder / WEIGHTS).unlink()


def pickled(folder):
    config_only(folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80")


def cut(folder):
    plain_adapter(folder)
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
        references.model(name, base)
    assert "\n" not in str(error.value)
    assert made(tmp_path) == []


def test_an_adapter_needs_a_base(tmp_path):
    plain_adapter(tmp_path / "it")
    with pytest.raises(UserError, match="^model 'it': is an adapter, expected a whole model to begin with$"):
        references.model("it")


# --- GGUF -----------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once(tmp_path):
    expected, file = write_gguf(tmp_path / "some.Q4.gguf"), tmp_path / "some.Q4.gguf"
    (tmp_path / "tokenizer.json").write_text("another one")  # lies beside it, and is not its own
    out = references.model("some.Q4.gguf")
    assert out == tmp_path / "build" / "models" / f"some.Q4-{file_digest(file)[:16]}"
    weights = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert AutoTokenizer.from_pretrained(out)("ab").input_ids == [5]
    told = {"file": "some.Q4.gguf", "sha256": file_digest(file), "note": "dequantised from Q4_1"}
    assert json.loads((out / "provenance.json").read_text()) == told
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert references.model(file) == out == references.model(out)
    assert (out / "model.safetensors").stat().st_mtime_ns == written


# --- the hub --------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = ("pytorch_model.bin", "modeling_x.py", "tokenizer.py", "consolidated.safetensors", "onnx/x.safetensors")


class Hub(ThreadingHTTPServer):
    """A hub with one model, owner/name, whose branch main is COMMIT; it answers as the real one does."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url, self.folder = f"http://127.0.0.1:{self.server_port}", folder
        self.gated, self.breaks = False, []  # breaks: after how many bytes of weights the next transfers break
        self.asked = []  # (method, path, Range, Authorization)

    def handle_error(self, request, client_address):
        """A connection that the test broke is no news."""

    def files(self, method="GET"):
        """The names of the files that were asked for."""
        return sorted(p.split(f"/resolve/{COMMIT}/")[1] for m, p, *_ in self.asked if m == method and "/resolve/" in p)


class Answer(BaseHTTPRequestHandler):
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
        hub.asked.append((self.command, path, self.headers["Range"], self.headers["Authorization"]))
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
        told = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Repo_Commit": COMMIT}
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        part = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        told |= part | {"Content_Length": len(body) - start}
        if self.command == "GET" and path.endswith(".safetensors") and hub.breaks:
            body = body[: start + hub.breaks.pop(0)]  # shorter than was said
        return self.content(body[start:], 206 if part else 200, **told)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch, base):
    """A hub that serves ``base`` with a pickle and code beside it, and the library set to it in this process."""
    shutil.copytree(base, tmp_path / "served")
    for name in UNWANTED:
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


def refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        references.model(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_model_is_fetched_once_without_pickles_and_code(tmp_path, hub, base, revision):
    out = references.model(f"owner/name@{revision}")
    assert checkpoint.digest(out) == checkpoint.digest(base)
    assert hub.files() == sorted(path.name for path in base.iterdir())
    assert hub.files("HEAD") == hub.files()
    assert {authorization for *_, authorization in hub.asked} == {None}
    assert references.model(f"owner/name@{revision}") == out
    assert hub.files() == sorted(path.name for path in base.iterdir())


def test_an_adapter_on_the_hub_is_folded(tmp_path, hub, base):
    shutil.rmtree(hub.folder)
    plain_adapter(hub.folder)
    out = references.model("owner/name@main", base)
    assert out.name.startswith("name-")
    assert checkpoint.digest(out) == checkpoint.digest(references.model("served", base))
    refused("owner/name@main", "'owner/name@main': is an adapter, expected a whole model")


def test_a_broken_transfer_goes_on_where_it_ended(hub, base):
    hub.breaks = [40 * 1024, 3 * 1024]
    out = references.model("owner/name@main")
    assert file_digest(out / "model.safetensors") == file_digest(base / "model.safetensors")
    ranges = [where for method, path, where, _ in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, f"bytes={40 * 1024}-", f"bytes={43 * 1024}-"]


def test_after_a_connection_that_stays_broken_only_the_rest_is_fetched(tmp_path, hub, base):
    hub.breaks = [4096, *[0] * 20]
    refused("owner/name@main", "model owner/name@main: cannot be fetched .RemoteProtocolError: ")
    hub.breaks, before = [], hub.files()
    assert checkpoint.digest(references.model("owner/name@main")) == checkpoint.digest(base)
    assert "config.json" in before
    assert sorted({*before, *hub.files()[len(before) :]}) == sorted(path.name for path in base.iterdir())
    assert hub.files().count("config.json") == 1


def test_a_gated_model_is_for_those_with_a_token(hub, base, monkeypatch):
    hub.gated = True
    hint = f"is gated; accept its terms on {hub.url}/owner/name, then log in .hf auth login. or set HF_TOKEN$"
    refused("owner/name@main", f"^model owner/name@main: {hint}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.asked.clear()
    assert checkpoint.digest(references.model("owner/name@main")) == checkpoint.digest(base)
    assert {authorization for *_, authorization in hub.asked} == {"Bearer hf_secret"}


def test_what_the_hub_does_not_have_is_named(hub):
    refused("owner/other@main", "^model owner/other@main: no such model on the hub, or a private one; HF_TOKEN opens")
    refused("owner/name@v2.0", "^model owner/name@v2.0: the model has no such commit, tag or branch$")
    refused(f"owner/name@{'f' * 40}", "the model has no such commit, tag or branch$")
    refused("owner/na--me@main", "^model owner/na--me@main: cannot be fetched .HFValidationError: ")
    for file in hub.folder.glob("*.safetensors"):
        file.unlink()
    refused("owner/name@main", "^model owner/name@main: holds no .safetensors files, only safetensors are read$")


def test_a_full_disk_is_named(tmp_path, hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    refused("owner/name@main", f"^model owner/name@main: no space left for it in {tmp_path / 'hub'}$")


def test_offline_only_the_cache_counts(tmp_path, hub, base, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("owner/name@main", r"^model owner/name@main: is not \(wholly\) in the cache, and HF_HUB_OFFLINE is set$")
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    out = references.model("owner/name@main")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert references.model("owner/name@main") == references.model(f"owner/name@{COMMIT}") == out
    (out / "model.safetensors").unlink()
    refused("owner/name@main", "is not .wholly. in the cache, and HF_HUB_OFFLINE is set$")
    assert hub.asked == []


def test_without_a_connection_the_cache_serves_or_the_address_is_named(hub, base):
    hub.shutdown()
    hub.server_close()
    refused("owner/name@main", f"^model owner/name@main: {hub.url} cannot be reached .ConnectError: ")


def test_the_hub_is_set_by_the_environment(tmp_path, hub, base):
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    code = f"from layerswap.references import fetch; print(fetch('owner/name', '{COMMIT}'))"

    def fetched(**more):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | more
        environment["PYTHONPATH"] = str(Path(references.__file__).parents[1])
        return Path(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip())

    out = fetched(HF_TOKEN="hf_secret")
    assert out.is_relative_to(tmp_path / "home") and checkpoint.digest(out) == checkpoint.digest(base)
    assert {authorization for _, path, _, authorization in hub.asked if "owner/name" in path} == {"Bearer hf_secret"}
    hub.asked.clear()
    assert fetched(HF_HUB_OFFLINE="1") == out
    assert hub.asked == []


def test_folders_of_other_dtypes_become_float32(tmp_path):
    low = write_checkpoint(tmp_path / "low", dtype=torch.bfloat16, shard=20000)
    whole = write_checkpoint(tmp_path / "whole", 1)
    assert references.alike([low, low]) == [low, low] and references.alike([whole]) == [whole]
    made, kept = references.alike([low, whole])
    assert kept == whole and references.alike([low, whole]) == [made, whole]
    before, after = tensors(low), tensors(made)
    assert before.keys() == after.keys()
    assert all(same_bits(after[name], before[name].float()) for name in before)
    checkpoint.check_fit(made, whole)
    loaded = AutoModelForCausalLM.from_pretrained(made).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in after.items())


def test_integers_do_not_become_float32(tmp_path):
    odd = write_checkpoint(tmp_path / "odd", dtype=torch.bfloat16)
    data = load_file(odd / "model.safetensors")
    data["model.norm.weight"] = data["model.norm.weight"].to(torch.int16)
    save_file(data, odd / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="tensor model.norm.weight is I16, which float32 does not hold"):
        references.alike([odd, write_checkpoint(tmp_path / "whole")])
