"""What a model may be named by: adapters folded as PEFT does, GGUF files, and a hub that answers like the real one."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gguf
import pytest
import torch
from conftest import same_bits, tensors, word_tokenizer, write_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from layerswap import merge, plan, references
from layerswap.paths import ROOT, UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """References look below tmp_path, and what they make lies there."""
    monkeypatch.setattr(references, "ROOT", tmp_path)
    monkeypatch.setattr(references, "BUILD", tmp_path / "build")


def write_adapter(base, folder, dtype=torch.float32, seed=5, **settings):
    """A LoRA adapter of random matrices for a base; returns ``folder``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"target_modules": "all-linear"}, {"rank_pattern": {"q_proj": 2}},
     {"alpha_pattern": {"layers.1.self_attn.v_proj": 3}}, {"layers_to_transform": [0, 3]}],
)  # fmt: skip
def test_a_folded_adapter_is_that_of_peft(tmp_path, dtype, settings):
    base = write_checkpoint(tmp_path / "base", dtype=dtype, special=True, tied=False)
    adapter = write_adapter(base, tmp_path / "adapter", dtype, **settings)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    expected = expected.merge_and_unload().state_dict()
    made = tensors(references.model("adapter", base))
    assert made.keys() == expected.keys()
    assert all(same_bits(made[name], expected[name]) for name in made)
    before = tensors(base)
    changed = {name for name in made if not same_bits(before[name], made[name])}
    assert changed == {f"{name[17:]}".replace(".lora_A", "") for name in tensors(adapter) if ".lora_A." in name}
    assert references.model("adapter", base) == references.model("adapter", base)


def test_folded_then_swapped_is_merged_by_peft_then_swapped(tmp_path):
    base, folders = write_checkpoint(tmp_path / "base", dtype=torch.bfloat16), {"ours": [], "peft": []}
    for seed in (1, 2):
        adapter = write_adapter(base, tmp_path / f"adapter-{seed}", torch.bfloat16, seed)
        folders["ours"].append(references.model(adapter, base))
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
        model.merge_and_unload().save_pretrained(tmp_path / f"peft-{seed}")
        word_tokenizer().save_pretrained(tmp_path / f"peft-{seed}")
        folders["peft"].append(tmp_path / f"peft-{seed}")
    swap = plan.layer_swap(4, 1, 0, 1, 1, name="swap")
    for name, pair in folders.items():
        merge.merge(*pair, swap, tmp_path / name)
    ours, known = tensors(tmp_path / "ours"), tensors(tmp_path / "peft")
    assert ours.keys() == known.keys() and all(same_bits(ours[name], known[name]) for name in ours)


def test_an_adapter_of_a_sharded_tied_base_keeps_config_and_tokenizer(tmp_path):
    base = write_checkpoint(tmp_path / "base", shard=20000)
    adapter = write_adapter(base, tmp_path / "adapter")
    made = references.model(adapter, base)
    kept = {file.name: file.read_bytes() for file in base.iterdir() if file.suffix == ".json"}
    assert {name: (made / name).read_bytes() for name in kept} == kept
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    loaded = AutoModelForCausalLM.from_pretrained(made).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.state_dict().items())


def test_another_adapter_or_base_at_the_same_path_is_folded_anew(tmp_path):
    base = write_checkpoint(tmp_path / "base")
    first = references.model(write_adapter(base, tmp_path / "adapter"), base)
    second = references.model(write_adapter(base, tmp_path / "adapter", seed=6), base)
    shutil.rmtree(base)
    write_checkpoint(base, 9)
    third = references.model(tmp_path / "adapter", base)
    assert len({first, second, third}) == 3
    assert (
        len({tensors(made)["model.layers.0.self_attn.q_proj.weight"].sum().item() for made in (first, second, third)})
        == 3
    )


def spoil(settings=None, weights=None):
    """A function that changes an adapter's settings, or its weights (a dict)."""

    def change(adapter):
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (settings or {})))
        if weights:
            data = load_file(adapter / "adapter_model.safetensors")
            weights(data)
            save_file(data, adapter / "adapter_model.safetensors")

    return change


def renamed(old, new):
    return spoil(weights=lambda data: [data.__setitem__(k.replace(old, new), data.pop(k)) for k in [*data] if old in k])


def first(value):
    """A function that puts ``value`` for the first tensor of a dict; None removes it."""
    return spoil(weights=lambda data: data.__setitem__(min(data), value) if value is not None else data.pop(min(data)))


def pickled(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil({"peft_type": "IA3"}), "peft_type is IA3, expected LORA"),
        (spoil({"use_dora": True}), "use_dora is set; DoRA cannot be folded"),
        (spoil({"lora_bias": True}), "lora_bias is set"),
        (spoil({"fan_in_fan_out": True}), "fan_in_fan_out is set"),
        (spoil({"lora_alpha": None}), "lora_alpha is None, expected a number"),
        (spoil({"lora_alpha": "16"}), "lora_alpha is '16'"),
        (spoil({"lora_alpha": 1e60}), "the change of module model.layers.0.mlp.down_proj is no finite number"),
        (renamed("layers.0", "layers.9"), "the base has no module model.layers.9.*of another base"),
        (renamed("q_proj", "query"), "the base has no module model.layers.0.self_attn.query"),
        (renamed("lora_A.weight", "lora_embedding_A"), "lora_embedding_A is no lora_A or lora_B of a matrix"),
        (renamed("lora_A", "lora_magnitude_vector"), "cannot be folded"),
        (first(None), "has no lora_A"),
        (first(torch.zeros(4, 99)), r"is B \[32, 4\] times A \[4, 99\], \[32, 48\] in the base"),
        (first(torch.zeros(3, 48)), r"B \[32, 4\] times A \[3, 48\]"),
        (first(torch.zeros(4)), r"times A \[4\]"),
        (first(torch.zeros(4, 48, dtype=torch.int8)), "is I8, expected one of"),
        (first(torch.full((4, 48), float("nan"))), "is no finite number"),
        (spoil(weights=dict.clear), "holds no LoRA matrices"),
        (pickled, "found adapter_model.bin, a pickle"),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: no such file"),
        (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"x" * 50), "expected a header"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "adapter_config.json: expected a JSON obj"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit(tmp_path, change, message):
    base = write_checkpoint(tmp_path / "base")
    change(write_adapter(base, tmp_path / "adapter"))
    with pytest.raises(UserError, match=message) as error:
        references.model("adapter", base)
    assert "\n" not in str(error.value) and not list((tmp_path / "build").rglob("*.safetensors"))


def test_no_room_to_fold(tmp_path, monkeypatch):
    base = write_checkpoint(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match="needs 0.1 MB, .* has 0.0 MB free"):
        references.model(adapter, base)
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter", "is an adapter, expected a whole model"),
        ("nothing", "nothing: no such folder; a model on the hub is owner/name@revision"),
        ("empty", "empty holds no config.json"),
        ("owner/name", "name: no such folder; a model on the hub is owner/name@revision"),
        ("../../etc@main", "no such folder"),
        ("owner/name@../x", "no such folder"),
        ("a/b/c@main", "no such folder"),
        ("words.gguf", "words.gguf: not a GGUF file"),
        ("odd.gguf", "odd.gguf: transformers cannot load it"),
    ],
)
def test_names_that_are_no_model(tmp_path, name, message):
    write_adapter(write_checkpoint(tmp_path / "base"), tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.gguf").write_text("some words")
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "abacus")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(UserError, match=message) as error:
        references.model(name)
    assert "\n" not in str(error.value) and not (tmp_path / "build").exists()


def test_a_whole_folder_is_itself(tmp_path):
    base = write_checkpoint(tmp_path / "base")
    assert references.model("base") == references.model(base) == base


# --- the hub --------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """The hub's answers; ``server.cuts``: after how many bytes the next transfers of weights break."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        hub.seen.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        found = re.fullmatch(r"(?:/api/models)?/(\w+/\w+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        repo, kind, revision, name = found.groups() if found else ("", "", "", "")
        if repo not in hub.repos:
            return self.reply(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if repo == "gated/name" and self.headers.get("Authorization") != "Bearer hf_right":
            return self.reply(401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if revision not in ("main", COMMIT):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        files = hub.repos[repo]
        if kind != "resolve":
            tree = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()]  # fmt: skip
            siblings = [{"rfilename": name} for name in files]
            answer = tree if kind == "tree" else {"id": repo, "sha": COMMIT, "siblings": siblings}
            return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")
        data, start = files[name], 0
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and hub.cuts and name.endswith(".safetensors"):
            self.send_response(206 if start else 200)
            for header, value in ({"Content-Length": len(data) - start} | headers).items():
                self.send_header(header.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(data[start : start + hub.cuts.pop()])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(2)
        self.reply(206 if start else 200, data[start:], **headers)


@pytest.fixture
def hub(tmp_path):
    """A running hub with a model that also has a pickle and code, a gated one, and one with nothing but a pickle."""
    model = {f.name: f.read_bytes() for f in write_checkpoint(tmp_path / "owner").iterdir()}
    more = {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit", "README.md": b"words"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos = {"owner/name": model | more, "gated/name": model, "owner/bin": {"config.json": b"{}"} | more}
    server.seen, server.cuts = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def ask(hub, tmp_path, name, **environment):
    """What a process of its own prints for a reference: the folder, or the UserError's message."""
    program = """
import sys
from layerswap import references
try:
    print(references.model(sys.argv[1]))
except references.UserError as error:
    print("refused:", error)
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    kept |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    kept |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")} | {
        "PYTHONPATH": str(ROOT)
    }
    done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, env=kept | environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return line


def test_a_model_is_fetched_once_without_pickles_and_code(hub, tmp_path):
    folder = ask(hub, tmp_path, "owner/name@main")
    got, sent = tensors(folder), tensors(tmp_path / "owner")
    assert got.keys() == sent.keys() and all(same_bits(got[name], sent[name]) for name in sent)
    assert folder.endswith(COMMIT)
    requested = {path.rpartition("/")[2] for _, path, _, _ in hub.seen if "/resolve/" in path}
    assert "model.safetensors" in requested and "config.json" in requested and "tokenizer.json" in requested
    assert not {"pytorch_model.bin", "modeling.py"} & requested
    hub.seen.clear()
    assert ask(hub, tmp_path, f"owner/name@{COMMIT}") == folder
    assert not [path for command, path, _, _ in hub.seen if command == "GET" and "/resolve/" in path]
    assert ask(hub, tmp_path, "owner/name@main", HF_HUB_OFFLINE="1") == folder


def weights_asked(seen):
    """The Range of each transfer of weights."""
    return [asked for command, path, asked, _ in seen if command == "GET" and path.endswith(".safetensors")]


def test_a_broken_transfer_goes_on_where_it_stopped(hub, tmp_path):
    """The hub's library keeps what came in pieces of 10 MiB."""
    large = write_checkpoint(tmp_path / "large", layers=1, vocab_size=200_000)  # 26 MB
    hub.repos["owner/name"] |= {"model.safetensors": (large / "model.safetensors").read_bytes()}
    piece, hub.cuts = 10 << 20, [11 << 20, 12 << 20]
    got, sent = tensors(ask(hub, tmp_path, "owner/name@main")), tensors(large)
    assert all(same_bits(got[name], sent[name]) for name in sent)
    assert weights_asked(hub.seen) == [None, f"bytes={piece}-", f"bytes={2 * piece}-"]


def test_a_transfer_that_keeps_breaking_loses_no_file_that_came(hub, tmp_path):
    hub.cuts = [10] * 20
    assert "the transfer failed" in ask(hub, tmp_path, "owner/name@main")
    hub.cuts, before = [], len(hub.seen)
    folder = ask(hub, tmp_path, "owner/name@main")
    assert all(same_bits(tensor, tensors(tmp_path / "owner")[name]) for name, tensor in tensors(folder).items())
    assert len(weights_asked(hub.seen[before:])) == 1
    assert not [path for command, path, _, _ in hub.seen[before:] if command == "GET" and path.endswith("config.json")]


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("owner/name@v9", {}, "model owner/name@v9: the model has no such revision"),
        ("nobody/name@main", {}, "model nobody/name@main: no such model on the hub, or a private one"),
        ("gated/name@main", {}, "is gated; accept its terms on its page, then log in .hf auth login. or set HF_TOKEN"),
        ("gated/name@main", {"HF_TOKEN": "hf_wrong"}, "is gated; accept"),
        ("owner/bin@main", {}, "holds no safetensors"),
        ("owner/name@main", {"HF_HUB_OFFLINE": "1"}, "is not whole in the cache, and the hub was not reached"),
        ("owner/name@main", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "is not whole in the cache, and the hub was not re"),
    ],
)
def test_what_the_hub_refuses(hub, tmp_path, name, environment, message):
    assert re.search(f"^refused: .*{message}", ask(hub, tmp_path, name, **environment))


def test_a_token_opens_a_gated_model(hub, tmp_path):
    assert ask(hub, tmp_path, "gated/name@main", HF_TOKEN="hf_right").endswith(COMMIT)
    assert {token for _, path, _, token in hub.seen if path.startswith("/gated")} == {"Bearer hf_right"}
