"""Fine-tuning against a plain torch loop, its refusals and re-runs; parameter change against loaded models."""

import json
import random

import pytest
import torch
from conftest import WORDS, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import finetune
from layerswap.paths import UserError

SETTINGS = {"steps": 10, "learning_rate": 1e-2, "batch_size": 3, "max_length": 16, "seed": 5, "threads": 1}


def made_up_rows(n, seed=0):
    """``n`` rows of 2-6 words each side, none of them a special token."""
    rng = random.Random(seed)
    text = lambda: " ".join(rng.choices(WORDS[3:], k=rng.randint(2, 6)))  # noqa: E731
    return [{"prompt": text(), "completion": f" {text()}"} for _ in range(n)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def expert(base, tmp_path_factory):
    """An expert that no test may write to."""
    return finetune.finetune(base, made_up_rows(20), tmp_path_factory.mktemp("expert") / "math", **SETTINGS)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def losses(folder):
    return json.loads((folder / "recipe.json").read_text())["losses"]


def plain_loop(base, rows, steps, learning_rate, batch_size, max_length, seed, threads):
    """The same training by hand, one unpadded row after another: (losses, state dict)."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer, warmup = AutoTokenizer.from_pretrained(base), steps // 10
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    wholes = [tokenizer(f"{row['prompt']}{row['completion']} <eos>").input_ids for row in rows]
    optimizer, found = torch.optim.AdamW(model.parameters(), weight_decay=0.0), []
    for step, group in enumerate(finetune.batches([len(ids) for ids in wholes], batch_size, steps, seed)):
        total, count = 0.0, 0
        for i in group:
            log_p = model(torch.tensor([wholes[i]])).logits[0].log_softmax(-1)  # [length, vocabulary]
            for place in range(len(prompts[i]), len(wholes[i])):
                total, count = total - log_p[place - 1, wholes[i][place]], count + 1
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate * min(
            step / warmup if step < warmup else 1.0, (steps - step) / (steps - warmup)
        )
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found, model.state_dict()


def test_equals_a_plain_torch_loop(base, expert):
    expected, weights = plain_loop(base, made_up_rows(20), **SETTINGS)
    assert losses(expert) == pytest.approx(expected, rel=1e-4)
    for name, tensor in load_file(expert / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_prompts_carry_no_loss_and_the_end_does(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    (row,) = finetune.encode([{"prompt": "Asha has two", "completion": " apples ."}], tokenizer, 16)
    assert row["input_ids"] == tokenizer("Asha has two apples . <eos>").input_ids
    assert row["labels"] == [finetune.IGNORED] * 3 + tokenizer("apples . <eos>").input_ids


def test_same_bytes_again(base, expert, tmp_path):
    assert content(finetune.finetune(base, made_up_rows(20), tmp_path / "again", **SETTINGS)) == content(expert)


def test_float32_weights_and_a_loadable_expert(base, expert):
    assert {tensor.dtype for tensor in load_file(expert / "model.safetensors").values()} == {torch.float32}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (base, expert)]
    assert {field for field in configs[0] if configs[0][field] != configs[1].get(field)} == {"dtype"}
    assert AutoTokenizer.from_pretrained(expert).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


def test_bfloat16_arithmetic_keeps_float32_weights(base, expert, tmp_path):
    low = finetune.finetune(base, made_up_rows(20), tmp_path / "low", **SETTINGS, dtype="bfloat16")
    weights = load_file(low / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16()).any() for tensor in weights.values())
    assert losses(low) != losses(expert)
    assert losses(low) == pytest.approx(losses(expert), rel=0.05)


def test_a_finished_expert_is_kept_and_another_recipe_replaces_it(base, tmp_path):
    settings, out = SETTINGS | {"steps": 1}, tmp_path / "expert"
    finetune.finetune(base, made_up_rows(4), out, **settings)
    (out / "mark").touch()
    finetune.finetune(base, made_up_rows(4), out, **settings)
    assert (out / "mark").exists()
    for rows, changed in ((made_up_rows(5), {}), (made_up_rows(5), {"seed": 6})):
        finetune.finetune(base, rows, out, **settings | changed)
        assert not (out / "mark").exists()
        (out / "mark").touch()
    with pytest.raises(UserError):
        finetune.finetune(base, [], out, **settings)
    assert (out / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["expert"]


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([], {}, "no training rows"),
        ([{"prompt": "Asha"}], {}, "row 0: completion is None"),
        ([{"completion": "Asha"}], {}, "row 0: prompt is None"),
        ([*made_up_rows(1), {"prompt": "Asha", "completion": " \n"}], {}, "row 1: completion is ' .n', expected text"),
        ([{"prompt": 3, "completion": "Asha"}], {}, "row 0: prompt is 3"),
        ([{"prompt": "Asha", "completion": "has two apples"}], {"max_length": 4}, "max_length 4: the shortest has 5"),
        (made_up_rows(3), {"steps": 0}, "steps 0"),
        (made_up_rows(3), {"batch_size": 0}, "batch_size 0"),
        (made_up_rows(3), {"max_length": 1}, "max_length 1"),
        (made_up_rows(3), {"learning_rate": 0.0}, "learning_rate 0.0"),
        (made_up_rows(3), {"learning_rate": float("nan")}, "learning_rate nan"),
        (made_up_rows(3), {"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(base, tmp_path, rows, changed, message):
    with pytest.raises(UserError, match=message) as error:
        finetune.finetune(base, rows, tmp_path / "expert", **SETTINGS | changed)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_fits_exactly_is_used(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert len(finetune.encode([{"prompt": "Asha", "completion": "has two apples"}], tokenizer, 5)) == 1


@pytest.mark.parametrize(("step", "word"), [(1, "has"), (3, "apples")])
def test_nan_stops_and_names_the_step(tmp_path, step, word):
    """The embedding of ``word`` is no number, and only the step that is to fail meets it."""
    base, out = write_checkpoint(tmp_path / "base", tied=False), tmp_path / "out" / "expert"
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][WORDS.index(word)] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    order = [i for group in finetune.batches([3] * 4, 1, 4, SETTINGS["seed"]) for i in group]
    rows = [{"prompt": "Asha", "completion": "zero"} for _ in range(4)]
    rows[order[step - 1]] = {"prompt": word, "completion": "zero"}
    with pytest.raises(UserError, match=f"loss is nan at step {step};"):
        finetune.finetune(base, rows, out, **SETTINGS | {"batch_size": 1})
    assert not out.exists()


def test_a_folder_that_is_no_expert_is_not_replaced(base, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no recipe.json"):
        finetune.finetune(base, made_up_rows(3), tmp_path, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=120), st.integers(1, 9), st.integers(1, 40), st.integers(0, 9))
def test_batches(lengths, batch_size, steps, seed):
    groups = finetune.batches(lengths, batch_size, steps, seed)
    assert groups == finetune.batches(lengths, batch_size, steps, seed)
    assert len(groups) == steps
    assert all(0 < len(group) <= batch_size for group in groups)
    a_pass = -(-len(lengths) // batch_size)  # steps that use every row once
    for start in range(0, steps - a_pass + 1, a_pass):
        assert sorted(i for group in groups[start : start + a_pass] for i in group) == list(range(len(lengths)))
    if len(lengths) <= finetune.STRETCH * batch_size and steps >= a_pass:  # a step's lengths are neighbours
        spans = sorted((min(lengths[i] for i in g), max(lengths[i] for i in g)) for g in groups[:a_pass])
        assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))


def test_change_equals_float64_on_loaded_models(base, expert, monkeypatch):
    monkeypatch.setattr(finetune, "BLOCK", 100)  # several blocks a tensor
    before, after = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float64).state_dict() for f in (base, expert))
    frame = finetune.change(base, expert).set_index(["layer", "matrix"])
    assert list(frame.loc[2].index) == ["q", "k", "v", "o", "gate", "up", "down", "norm"]
    assert list(frame.index[:1]) == [(-1, "outside")]
    layer = "model.layers.2"
    for key, names in {
        (2, "k"): [f"{layer}.self_attn.k_proj.weight"],
        (2, "down"): [f"{layer}.mlp.down_proj.weight"],
        (2, "norm"): [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight"],
        (-1, "outside"): ["model.embed_tokens.weight", "model.norm.weight"],
    }.items():
        old, new = (torch.cat([state[name].flatten() for name in names]) for state in (before, after))
        assert frame.loc[key, "mean_absolute"] == pytest.approx((new - old).abs().mean().item(), rel=1e-9)
        assert frame.loc[key, "relative"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-9)
    assert len(frame) == 4 * 8 + 1


def test_change_of_nothing_is_zero(base):
    assert (finetune.change(base, base)[["mean_absolute", "relative"]] == 0).all(axis=None)


@pytest.mark.parametrize("other", [{"layers": 5}, {"intermediate_size": 50}, {"tied": False}])
def test_change_refuses_other_tensors(base, checkpoint_factory, other):
    with pytest.raises(UserError, match="tensor (model.layers|lm_head).*expected the same"):
        finetune.change(base, checkpoint_factory("other", **other))
