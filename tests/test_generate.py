"""The eval kernel against transformers' own generate and forward."""

import pytest
import torch
from conftest import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from layerswap.generate import generate, nll
from layerswap.paths import UserError

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


@pytest.fixture(params=FAMILIES)
def model_and_tokenizer(request):
    tokenizer = word_tokenizer()
    config, build = FAMILIES[request.param]
    torch.manual_seed(0)
    model = build(config(vocab_size=len(tokenizer), max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id,
                         pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **SIZES)).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that the next token depends on the prompt, and rows end at different steps
    return model, tokenizer


def prompts(tokenizer):
    words = [word for word in sorted(tokenizer.get_vocab()) if word not in tokenizer.all_special_tokens]
    return [" ".join(words[(i * 7 + j * (i + 1)) % len(words)] for j in range(1 + (i * 5) % 17)) for i in range(24)]


@pytest.mark.parametrize("budget", [1, 90, 400, 16384])
def test_tokens_are_those_of_generate(model_and_tokenizer, budget):
    model, tokenizer = model_and_tokenizer
    texts = prompts(tokenizer)
    answers = generate(model, tokenizer, texts, 12, batch_tokens=budget)
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[
            0, ids.shape[1] :
        ]
        ended = tokens[-1].item() == tokenizer.eos_token_id
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert (answer.stop, answer.n_tokens) == (("eos", len(tokens) - 1) if ended else ("length", 12))


def test_a_stop_string_ends_an_answer(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    texts = prompts(tokenizer)
    for text, whole in zip(texts, generate(model, tokenizer, texts, 12), strict=True):
        words = whole.text.split()
        if len(words) > 3:
            (answer,) = generate(model, tokenizer, [text], 12, stop=(words[2],))
            cut = whole.text.index(words[2])
            assert (answer.text, answer.stop) == (whole.text[:cut], "stop string")


def test_nll_is_that_of_a_forward_pass(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    heads, tails = prompts(tokenizer), prompts(tokenizer)[::-1]
    exact = model.double()
    results = nll(model.float(), tokenizer, heads, tails, batch_tokens=200)
    for head, tail, (loss, n) in zip(heads, tails, results, strict=True):
        first, second = tokenizer(head).input_ids, tokenizer(tail).input_ids
        with torch.no_grad():
            logits = exact.double()(torch.tensor([first + second])).logits[0, len(first) - 1 : -1].log_softmax(-1)
        expected = -sum(logits[i, token].item() for i, token in enumerate(second))
        assert n == len(second) and loss == pytest.approx(expected, rel=1e-4)
        model.float()


def test_a_prompt_beyond_the_context_is_named(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    text = prompts(tokenizer)[3]
    with pytest.raises(UserError, match="the model takes 64"):
        generate(model, tokenizer, [text], 64)
    with pytest.raises(UserError, match="more than the model's context"):
        nll(model, tokenizer, [text], [" ".join([text] * 20)])


def test_an_answer_of_no_tokens_is_refused(model_and_tokenizer):
    with pytest.raises(UserError, match="max_new_tokens is 0, expected 1 or more"):
        generate(*model_and_tokenizer, ["a"], 0)
