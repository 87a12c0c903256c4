"""Fine-tuning against a plain torch loop and PEFT, its refusals, re-runs and kills."""

import errno
import importlib
import json
import multiprocessing
import random
import resource
import shutil
import time

import pytest
import torch
import yaml
from conftest import DEVICES, WORDS, word_tokenizer, write_checkpoint
from hypothesis import given, strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from layerswap.checkpoints.compatibility import check_compatible
from layerswap.errors import UserError
from layerswap.experts.batching import BUCKET_STEPS, IGNORE_INDEX, encode_rows, pack_rows, training_batches
from layerswap.experts.finetune import NON_LAYER, finetune
from layerswap.files import ROOT, locked
from layerswap.merging.on_disk import merge
from layerswap.merging.plans import layer_swap

MODULE = importlib.import_module("layerswap.experts.finetune")  # the face has the function under this name
SETTINGS = {"steps": 20, "learning_rate": 1e-2, "batch_size": 3, "max_length": 16, "seed": 5, "threads": 1}


def random_rows(n, seed=0):
    """``n`` rows of 2-6 words as prompt and as completion, none of them a special token."""
    rng = random.Random(seed)
    text = lambda: " ".join(rng.choices(WORDS[3:], k=rng.randint(2, 6)))  # noqa: E731
    return [{"prompt": text(), "completion": f" {text()}"} for _ in range(n)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def expert(base, tmp_path_factory):
    """An expert that no test may write to."""
    return finetune(base, random_rows(20), tmp_path_factory.mktemp("expert") / "math", **SETTINGS)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def losses(folder):
    return json.loads((folder / "training.json").read_text())["losses"]


def reference_loop(
    base, rows, steps, learning_rate, batch_size, max_length, seed, threads, prepare=lambda model: model, possible=None
):
    """The same training by hand, one unpadded row after another: (losses, state dict).

    ``prepare`` freezes weights of the model, or makes it one of PEFT's. ``possible``: all tokens it can predict.
    """
    torch.manual_seed(seed)
    model = prepare(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    tokenizer, warmup = AutoTokenizer.from_pretrained(base), steps // 10
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    texts = [tokenizer(f"{row['prompt']}{row['completion']} <eos>").input_ids for row in rows]
    optimizer, step_losses = torch.optim.AdamW(model.parameters(), weight_decay=0.0), []
    for step, batch in enumerate(training_batches([len(ids) for ids in texts], batch_size, steps, seed)):
        total, count = 0.0, 0
        for i in batch:
            logits = model(torch.tensor([texts[i]])).logits[0]  # [length, vocabulary]
            if possible:
                impossible = torch.ones(logits.shape[1], dtype=torch.bool)
                impossible[list(possible)] = False
                logits = logits.masked_fill(impossible, -torch.inf)
            log_p = logits.log_softmax(-1)
            for position in range(len(prompts[i]), len(texts[i])):
                total, count = total - log_p[position - 1, texts[i][position]], count + 1
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate * min(
            step / warmup if step < warmup else 1.0, (steps - step) / (steps - warmup)
        )
        optimizer.step()
        optimizer.zero_grad()
        step_losses.append(loss.item())
    return step_losses, model.state_dict()


@pytest.mark.parametrize("device", DEVICES)
def test_equals_a_plain_torch_loop(base, expert, tmp_path, device):
    if device != "cpu":
        expert = finetune(base, random_rows(20), tmp_path / "expert", **SETTINGS, device=device)
    expected, weights = reference_loop(base, random_rows(20), **SETTINGS)
    assert losses(expert) == pytest.approx(expected, rel=1e-4)
    for name, tensor in load_file(expert / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("packing", [False, True])
def test_a_softmax_over_the_tokens_of_the_rows_is_a_full_one_without_the_others(base, tmp_path, packing):
    rows = [{"prompt": row["prompt"], "completion": " one two"} for row in random_rows(6)]
    tokenizer = AutoTokenizer.from_pretrained(base)
    possible = {token for row in rows for token in tokenizer(f"{row['prompt']}{row['completion']} <eos>").input_ids}
    assert 5 < len(possible) < len(tokenizer)
    expert = finetune(base, rows, tmp_path / "expert", **SETTINGS, packing=packing, softmax="rows")
    expected, weights = reference_loop(base, rows, **SETTINGS, possible=possible)
    assert losses(expert) == pytest.approx(expected, rel=1e-4)
    trained = load_file(expert / "model.safetensors")
    assert trained.keys() == weights.keys() - {"lm_head.weight"}  # tied
    for name, tensor in trained.items():  # the whole head is saved
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("changed", [{"packing": True}, {"micro_batch": 1}, {"micro_batch": 1, "packing": True}])
def test_packed_and_cut_steps_have_the_same_loss(base, tmp_path, changed):
    settings = SETTINGS | {"batch_size": 4}
    expected = losses(finetune(base, random_rows(20), tmp_path / "whole", **settings))
    out = finetune(base, random_rows(20), tmp_path / "other", **settings | changed)
    assert losses(out) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def launch(tmp_path_factory):
    """The project's file for several GPUs, with two processes."""
    content = yaml.safe_load((ROOT / "params" / "accelerate" / "gpus.yaml").read_text()) | {"num_processes": 2}
    path = tmp_path_factory.mktemp("launch") / "two.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_two_processes_train_what_one_does(base, tmp_path, launch):
    settings = SETTINGS | {"batch_size": 4, "steps": 3}
    outs = [finetune(base, random_rows(20), tmp_path / name, **settings, launch=launch)
            for name, launch in (("one", ""), ("two", launch))]  # fmt: skip
    assert [json.loads((out / "training.json").read_text())["processes"] for out in outs] == [1, 2]
    assert losses(outs[1]) == pytest.approx(losses(outs[0]), rel=1e-5)
    weights = [load_file(out / "model.safetensors") for out in outs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_frozen_layers_keep_every_bit(base, tmp_path):
    def freeze(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.1." in name or "layers.2." in name)
        return model

    frozen = [0, 3, NON_LAYER]
    out = finetune(base, random_rows(20), tmp_path / "expert", **SETTINGS, frozen=frozen)
    assert losses(out) == pytest.approx(reference_loop(base, random_rows(20), **SETTINGS, prepare=freeze)[0], rel=1e-4)
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    same = {name: torch.equal(t, before[name]) for name, t in load_file(out / "model.safetensors").items()}
    assert same == {name: not ("layers.1." in name or "layers.2." in name) for name in same}


@pytest.mark.parametrize("frozen", [[], [1, 2]])
def test_lora_is_that_of_peft(base, tmp_path, frozen):
    matrices = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    trained = [layer for layer in range(4) if layer not in frozen]
    config = LoraConfig(r=3, lora_alpha=6.0, target_modules=sorted(matrices), layers_to_transform=trained)
    out = finetune(base, random_rows(20), tmp_path / "expert", **SETTINGS, lora_rank=3, lora_alpha=6.0, frozen=frozen)
    expected, weights = reference_loop(base, random_rows(20), **SETTINGS, prepare=lambda m: get_peft_model(m, config))
    assert losses(out) == pytest.approx(expected, rel=1e-4)
    adapter = load_file(out / "adapter_model.safetensors")
    assert len(adapter) == 2 * len(matrices) * len(trained)
    for name, tensor in adapter.items():
        reference = weights[name.replace(".weight", ".default.weight")]
        torch.testing.assert_close(tensor, reference, rtol=1e-3, atol=1e-4, msg=name)
    assert not list(out.glob("*.bin")) and (out / "training.json").is_file()


def test_kills_cost_nothing(base, expert, tmp_path, monkeypatch):
    """kill -9 in five trainings, each at another moment; what goes on ends in the same bytes."""
    monkeypatch.setattr(MODULE, "CHECKPOINT_SECONDS", 0)  # after each step
    out, fork, rng = tmp_path / "math", multiprocessing.get_context("fork"), random.Random(0)
    earlier, last_steps = set(), []
    for _ in range(5):
        training = fork.Process(target=finetune, args=(base, random_rows(20), out), kwargs=SETTINGS)
        training.start()
        while not (new := set(tmp_path.glob(".math.training/checkpoint-*")) - earlier) and training.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))  # into the middle of a checkpoint, or some steps on
        training.kill()
        training.join()
        assert new and training.exitcode == -9 and not out.exists(), "ended before it could be killed"
        complete = [int(file.parent.name[11:]) for file in tmp_path.glob(".math.training/checkpoint-*/complete")]
        last_steps.append(max(complete, default=0))
        earlier |= set(tmp_path.glob(".math.training/checkpoint-*"))
    assert last_steps == sorted(last_steps) and last_steps[-1] > 2, "every try went on from the last one's checkpoint"
    assert content(finetune(base, random_rows(20), out, **SETTINGS)) == content(expert)
    assert [path.name for path in tmp_path.iterdir()] == ["math"]


def test_half_checkpoints_do_not_push_out_whole_ones(base, expert, tmp_path, monkeypatch):
    """Two checkpoints are kept: what a kill left of others must not count."""
    out, fork = tmp_path / "math", multiprocessing.get_context("fork")
    monkeypatch.setattr(MODULE, "CHECKPOINT_SECONDS", 0)
    training = fork.Process(target=finetune, args=(base, random_rows(20), out), kwargs=SETTINGS)
    training.start()
    while not list(tmp_path.glob(".math.training/checkpoint-4/complete")):
        time.sleep(0.002)
    training.kill()
    training.join()
    scratch = tmp_path / ".math.training"
    for step in (18, 19):
        (scratch / f"checkpoint-{step}").mkdir()
        (scratch / f"checkpoint-{step}" / "trainer_state.json").write_text("{")
    assert content(finetune(base, random_rows(20), out, **SETTINGS)) == content(expert)


def test_a_training_that_ended_without_its_parent_is_used(base, expert, tmp_path, monkeypatch):
    out, error = tmp_path / "math", OSError(errno.EIO, "gone")
    monkeypatch.setattr(MODULE, "atomic_folder", lambda out: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match="gone"):
        finetune(base, random_rows(20), out, **SETTINGS)
    monkeypatch.undo()
    monkeypatch.setattr(MODULE, "train", lambda scratch: pytest.fail("trained again"))
    assert content(finetune(base, random_rows(20), out, **SETTINGS)) == content(expert)


def test_config_and_tokenizer_stay_the_bases(tmp_path):
    """Of a base without a pad token, as Llama 3.1 8B, whose config has two ends where its tokenizer has one."""
    base = write_checkpoint(tmp_path / "base", pad_token_id=None, eos_token_id=[1, 2])
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    out = finetune(base, random_rows(5), tmp_path / "out", **SETTINGS | {"steps": 2})
    check_compatible(base, out)
    for path in base.glob("*token*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    reverted = merge(out, base, layer_swap(4, 2, 1, non_layer_weight=0.0, name="revert"), tmp_path / "reverted")
    assert {entry["source"] for entry in reverted["tensors"].values()} == {"math", "language"}
    tuned, original = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    for name, tensor in load_file(tmp_path / "reverted" / "model.safetensors").items():
        is_reverted = any(f"layers.{layer}." in name for layer in (0, 1, 3))
        assert torch.equal(tensor, (original if is_reverted else tuned)[name])


def test_a_base_with_missing_weights_is_not_trained(tmp_path):
    base = write_checkpoint(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="missing_keys.*layers.2.mlp.up_proj"):
        finetune(base, random_rows(5), tmp_path / "out", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_rows_of_one_length_and_a_single_row_are_packed(base, tmp_path):
    rows = [{"prompt": word, "completion": "zero"} for word in WORDS[4:9]]
    for n in (5, 1):
        out = finetune(base, rows[:n], tmp_path / str(n), **SETTINGS | {"steps": 2, "batch_size": n}, packing=True)
        assert len(losses(out)) == 2


def test_packing_is_refused_where_rows_would_see_each_other(tmp_path):
    """OPT counts positions by its mask."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    config = OPTConfig(
        vocab_size=len(WORDS), num_attention_heads=2, max_position_embeddings=64, eos_token_id=1, **sizes
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="packing is True, but in a opt rows would see each other"):
        finetune(tmp_path / "base", random_rows(5), tmp_path / "out", **SETTINGS, packing=True)


def test_checkpoints_of_another_training_are_not_used(base, expert, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "CHECKPOINT_SECONDS", 0)
    out, other = tmp_path / "math", {"steps": 9, "seed": 6}
    monkeypatch.setattr(MODULE, "atomic_folder", lambda out: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(UserError, match="math: .*disk full; run again, it goes on from its last checkpoint"):
        finetune(base, random_rows(20), out, **SETTINGS | other)
    assert list(tmp_path.glob(".math.training/checkpoint-8/complete")) and not out.exists()
    monkeypatch.undo()
    assert content(finetune(base, random_rows(20), out, **SETTINGS)) == content(expert)


def test_no_room_for_the_expert_or_for_checkpoints(base, expert, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(MODULE, "checkpoint_bytes", lambda model: 1 << 60)
    monkeypatch.setattr(MODULE.CheckpointCallback, "on_save", lambda *a, **k: pytest.fail("saved"))
    assert content(finetune(base, random_rows(20), tmp_path / "a", **SETTINGS)) == content(expert)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="b: needs 0.1 MB, .* has 0.0 MB free"):
        finetune(base, random_rows(20), tmp_path / "b", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("seconds", [0, 300])
def test_a_disk_that_fills_up_while_training(base, expert, tmp_path, monkeypatch, seconds):
    """Files may hold 60 kB: then neither a checkpoint nor the expert can be written."""
    monkeypatch.setattr(MODULE, "CHECKPOINT_SECONDS", seconds)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(UserError, match="math: .*too large.*; run again, it goes on") as error:
            finetune(base, random_rows(20), tmp_path / "math", **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value) and not (tmp_path / "math").exists()
    assert content(finetune(base, random_rows(20), tmp_path / "math", **SETTINGS)) == content(expert)


def test_one_process_at_a_time(base, tmp_path):
    (tmp_path / ".expert.training").mkdir()
    with locked(tmp_path / ".expert.training"), pytest.raises(UserError, match="another process is fine-tuning it"):
        finetune(base, random_rows(3), tmp_path / "expert", **SETTINGS)


def test_an_error_in_a_launched_process_is_the_same_line(tmp_path, launch):
    base = write_checkpoint(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="fine-tuning: loss is nan at step 1;"):
        finetune(base, random_rows(20), tmp_path / "out", **SETTINGS | {"batch_size": 4}, launch=launch)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_packed_rows_do_not_see_each_other(base):
    rows = encode_rows(random_rows(6), AutoTokenizer.from_pretrained(base), 16)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    inputs = pack_rows(rows, 30)
    labels = inputs.pop("labels")
    assert inputs["input_ids"].shape[1] <= 30 and len(inputs["input_ids"]) < len(rows)
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits  # [lines, length, vocabulary]
        for row in rows:
            alone = model(torch.tensor([row["input_ids"]])).logits[0]
            positions = [(line, start) for line in range(len(labels)) for start in range(labels.shape[1])
                      if inputs["input_ids"][line, start : start + len(alone)].tolist() == row["input_ids"]
                      and inputs["position_ids"][line, start] == 0]  # fmt: skip
            line, start = positions[0]
            torch.testing.assert_close(logits[line, start : start + len(alone)], alone, rtol=1e-4, atol=1e-5)
            assert labels[line, start : start + len(alone)].tolist() == row["labels"]


def test_prompts_carry_no_loss_and_the_end_does(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    (row,) = encode_rows([{"prompt": "Asha has two", "completion": " apples ."}], tokenizer, 16)
    assert row["input_ids"] == tokenizer("Asha has two apples . <eos>").input_ids
    assert row["labels"] == [IGNORE_INDEX] * 3 + tokenizer("apples . <eos>").input_ids


def test_same_bytes_again(base, expert, tmp_path):
    assert content(finetune(base, random_rows(20), tmp_path / "again", **SETTINGS)) == content(expert)


def test_float32_weights_and_a_loadable_expert(base, expert):
    assert {tensor.dtype for tensor in load_file(expert / "model.safetensors").values()} == {torch.float32}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (base, expert)]
    assert {field for field in configs[0] if configs[0][field] != configs[1].get(field)} == {"dtype"}
    assert AutoTokenizer.from_pretrained(expert).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({}, "float32"), ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "float32"),
     ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")],
)  # fmt: skip
def test_a_processor_without_bfloat16_trains_in_float32(base, tmp_path, monkeypatch, capabilities, dtype):
    """Unless it is told otherwise: emulated, bfloat16 takes longer."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    expert = finetune(base, random_rows(20), tmp_path / "expert", **SETTINGS | {"steps": 1}, dtype="auto")
    assert json.loads((expert / "training.json").read_text())["fingerprint"]["dtype"] == dtype


def test_bfloat16_arithmetic_keeps_float32_weights(base, expert, tmp_path):
    """Only steps with equal weights can be compared: how later ones drift apart depends on the processor's kernels."""
    low = finetune(base, random_rows(20), tmp_path / "low", **SETTINGS, dtype="bfloat16")
    weights = load_file(low / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16()).any() for tensor in weights.values())
    ours, theirs = losses(low), losses(expert)
    before_any_update = slice(0, 2)  # the warm-up begins at a learning rate of 0
    assert ours[before_any_update] != theirs[before_any_update]
    step_of_bfloat16 = 2**-7
    assert ours[before_any_update] == pytest.approx(theirs[before_any_update], rel=4 * step_of_bfloat16)
    assert sum(ours[-5:]) < 0.8 * sum(ours[:5]), "it learns as float32 does"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "changed", [{}, {"lora_rank": 4, "learning_rate": 5e-2}, {"packing": True}, {"micro_batch": 1}]
)
def test_a_gpu_trains_in_bfloat16(base, tmp_path, changed):
    settings = SETTINGS | {"batch_size": 4} | changed
    out = finetune(base, random_rows(20), tmp_path / "expert", **settings, device="cuda", dtype="auto")
    assert json.loads((out / "training.json").read_text())["fingerprint"]["dtype"] == "bfloat16"
    assert sum(losses(out)[-5:]) < 0.8 * sum(losses(out)[:5])


def test_a_finished_expert_is_kept_and_another_training_replaces_it(base, tmp_path):
    settings, out = SETTINGS | {"steps": 1}, tmp_path / "expert"
    finetune(base, random_rows(4), out, **settings)
    (out / "mark").touch()
    finetune(base, random_rows(4), out, **settings)
    assert (out / "mark").exists()
    for rows, changed in ((random_rows(5), {}), (random_rows(5), {"seed": 6})):
        finetune(base, rows, out, **settings | changed)
        assert not (out / "mark").exists()
        (out / "mark").touch()
    with pytest.raises(UserError):
        finetune(base, [], out, **settings)
    assert (out / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["expert"]


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([], {}, "no training rows"),
        ([{"prompt": "Asha"}], {}, "row 0: completion is None"),
        ([{"completion": "Asha"}], {}, "row 0: prompt is None"),
        ([*random_rows(1), {"prompt": "Asha", "completion": " \n"}], {}, "row 1: completion is ' .n', expected text"),
        ([{"prompt": 3, "completion": "Asha"}], {}, "row 0: prompt is 3"),
        ([{"prompt": "Asha", "completion": "has two apples"}], {"max_length": 4}, "max_length 4: the shortest has 5"),
        (random_rows(3), {"steps": 0}, "steps is 0, expected 1 or more"),
        (random_rows(3), {"batch_size": 0}, "batch_size is 0"),
        (random_rows(3), {"max_length": 1}, "max_length is 1, expected 2 to the model.s 128 tokens"),
        (random_rows(3), {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (random_rows(3), {"learning_rate": float("nan")}, "learning_rate is nan"),
        (random_rows(3), {"dtype": "float16"}, "dtype is 'float16'"),
        (random_rows(3), {"max_length": 129}, "max_length is 129, expected 2 to the model's 128 tokens"),
        (random_rows(3), {"threads": 0}, "threads is 0, expected 1 or more"),
        (random_rows(3), {"device": "gpu"}, "device is 'gpu', expected cpu or cuda"),
        ([3], {}, "row 0: expected prompt and completion, found 3"),
        (random_rows(3), {"lora_rank": -1}, "lora_rank is -1"),
        (random_rows(3), {"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha is 0.0"),
        (random_rows(3), {"micro_batch": -1}, "micro_batch is -1"),
        (random_rows(3), {"micro_batch": 2}, "batch_size 3 of 3 rows, expected a multiple of 2"),
        (random_rows(2), {"micro_batch": 1}, "batch_size 3 of 2 rows"),
        (random_rows(3), {"frozen": [4]}, r"frozen is \[4\], expected layers 0 to 3, or -1"),
        (random_rows(3), {"frozen": [-1, 0, 1, 2, 3]}, "expected something to train"),
        (random_rows(3), {"frozen": [0, 1, 2, 3], "lora_rank": 2}, "expected a layer to train"),
        (random_rows(3), {"launch": "nowhere.yaml"}, "launch is 'nowhere.yaml', expected a file for accelerate"),
        (random_rows(3), {"device": "cuda"}, "device is 'cuda', expected cpu"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(base, tmp_path, monkeypatch, rows, changed, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message) as error:
        finetune(base, rows, tmp_path / "expert", **SETTINGS | changed)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_an_end(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of text"):
        encode_rows(random_rows(1), tokenizer, 16)


def test_a_row_that_fits_exactly_is_used(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert len(encode_rows([{"prompt": "Asha", "completion": "has two apples"}], tokenizer, 5)) == 1


@pytest.mark.parametrize(("step", "word"), [(1, "has"), (3, "apples")])
def test_nan_stops_and_names_the_step(tmp_path, step, word):
    """The embedding of ``word`` is no number, and only the step that is to fail meets it."""
    base, out = write_checkpoint(tmp_path / "base", tied=False), tmp_path / "out" / "expert"
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][WORDS.index(word)] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    order = [i for batch in training_batches([3] * 4, 1, 4, SETTINGS["seed"]) for i in batch]
    rows = [{"prompt": "Asha", "completion": "zero"} for _ in range(4)]
    rows[order[step - 1]] = {"prompt": word, "completion": "zero"}
    with pytest.raises(UserError, match=f"loss is nan at step {step};"):
        finetune(base, rows, out, **SETTINGS | {"batch_size": 1})
    assert not out.exists()


def test_a_folder_that_is_no_expert_is_not_replaced(base, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no training.json"):
        finetune(base, random_rows(3), tmp_path, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_expert_of_an_earlier_version_is_replaced(base, tmp_path):
    out = tmp_path / "expert"
    out.mkdir()
    (out / "recipe.json").write_text("{}")
    finetune(base, random_rows(4), out, **SETTINGS | {"steps": 1})
    assert (out / "training.json").is_file() and not (out / "recipe.json").exists()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=120), st.integers(1, 9), st.integers(1, 40), st.integers(0, 9))
def test_batches(lengths, batch_size, steps, seed):
    batches = training_batches(lengths, batch_size, steps, seed)
    assert batches == training_batches(lengths, batch_size, steps, seed)
    assert len(batches) == steps
    assert all(0 < len(batch) <= batch_size for batch in batches)
    epoch = -(-len(lengths) // batch_size)  # steps that use every row once
    for start in range(0, steps - epoch + 1, epoch):
        assert sorted(i for batch in batches[start : start + epoch] for i in batch) == list(range(len(lengths)))
    if len(lengths) <= BUCKET_STEPS * batch_size and steps >= epoch:  # a step's lengths are neighbours
        spans = sorted((min(lengths[i] for i in batch), max(lengths[i] for i in batch)) for batch in batches[:epoch])
        assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
