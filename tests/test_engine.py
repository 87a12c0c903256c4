"""The eval kernel against transformers' own generate and forward."""

import dataclasses
import gc

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, word_tokenizer
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from layerswap.errors import UserError
from layerswap.evaluation import decode_steps, engine, prefix_attention
from layerswap.evaluation.engine import alternatives_nll, generate, nll, shared_length, stream

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
FAMILIES = {
    "llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "olmo2": Olmo2Config,
    # windows so short that they end within the prefix, within the rows, and between
    "mistral": lambda **fields: MistralConfig(sliding_window=9, **fields),
    "phi3": lambda **fields: Phi3Config(sliding_window=5, **fields),
    "gemma2": lambda **fields: Gemma2Config(sliding_window=7, head_dim=8, query_pre_attn_scalar=8, **fields),
    "gemma3": lambda **fields: Gemma3TextConfig(sliding_window=6, sliding_window_pattern=2, head_dim=8, **fields),
}  # fmt: skip


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def model_and_tokenizer(request, device):
    tokenizer = word_tokenizer()
    return random_model(FAMILIES[request.param], tokenizer).to(device), tokenizer


def random_model(family, tokenizer):
    torch.manual_seed(0)
    config = family(
        vocab_size=len(tokenizer), max_position_embeddings=128, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **SIZES,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(15.0)  # so that the next token depends on the prompt, and rows end at different steps
    return model


def make_prompts(tokenizer, shared=0):
    """Texts of 1 to 17 words, after ``shared`` words that all of them begin with."""
    words = [word for word in sorted(tokenizer.get_vocab()) if word not in tokenizer.all_special_tokens]
    prefix = [words[i * i % len(words)] for i in range(shared)]
    rows = [[words[(i * 7 + j * (i + 1)) % len(words)] for j in range(1 + (i * 5) % 17)] for i in range(24)]
    return [" ".join(prefix + row) for row in rows]


STEPS = {
    "of this device": engine.decode_steps,
    "packed": decode_steps.PackedSteps,
    "of fixed shape": lambda *arguments: decode_steps.FixedSteps(*arguments, capture=False),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shared", [0, 40])
def test_tokens_are_those_of_generate(model_and_tokenizer, shared, steps, monkeypatch):
    monkeypatch.setattr(engine, "decode_steps", STEPS[steps])
    monkeypatch.setattr(decode_steps, "FREE_TOKENS", 60)
    monkeypatch.setattr(decode_steps, "COLUMN_STEP", 8)
    model, tokenizer = model_and_tokenizer
    texts, finished = make_prompts(tokenizer, shared), {}
    assert shared_length(tokenizer(texts).input_ids) == shared
    implementation = model.config._attn_implementation
    answers = generate(model, tokenizer, texts, 12, on_finish=finished.__setitem__)
    assert model.config._attn_implementation == implementation and [finished[i] for i in range(24)] == answers
    for batch_tokens in (1, 90, 200, 700):
        assert generate(model, tokenizer, texts, 12, batch_tokens=batch_tokens) == answers
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        tokens = output[0, ids.shape[1] :]
        ended = tokens[-1].item() == tokenizer.eos_token_id
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert (answer.stop, answer.n_tokens) == (("eos", len(tokens) - 1) if ended else ("length", 12))
    assert len({answer.text for answer in answers}) > 6


@pytest.mark.parametrize("steps", STEPS)
def test_answers_that_fill_the_context_of_learned_positions(steps, device, monkeypatch):
    """Slots that are filled up must not lie behind the last position."""
    monkeypatch.setattr(engine, "decode_steps", STEPS[steps])
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=30, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None,
        pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().to(device)
    texts = [" ".join(["one two three four"] * 5)[: -5 * cut or None] for cut in (0, 1)]
    lengths = [len(tokenizer(text).input_ids) for text in texts]
    assert prefix_attention.supports_shared_attention(model) and max(lengths) == 20
    for text, length, answer in zip(texts, lengths, generate(model, tokenizer, texts, 10), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids.to(device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        assert answer.text == tokenizer.decode(output[0, length:], skip_special_tokens=True)


def test_tokens_do_not_depend_on_how_a_kernel_lays_out_its_output(model_and_tokenizer, monkeypatch, capsys):
    """torch's attention on a GPU returns what is contiguous in another order of dimensions."""
    model, tokenizer = model_and_tokenizer
    texts, kernel = make_prompts(tokenizer, 40), F.scaled_dot_product_attention
    expected = generate(model, tokenizer, texts, 12)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **o: kernel(*a, **o).transpose(1, 2).contiguous().transpose(1, 2)
    )
    prefix_attention.obstacles.clear()
    assert generate(model, tokenizer, texts, 12) == expected
    assert "one prompt at a time" not in capsys.readouterr().err


@pytest.mark.parametrize(("n_layers", "scale"), [(16, 6), (24, 15)])
def test_rounding_to_bfloat16_is_no_obstacle(n_layers, scale):
    """The deeper a model and the larger its weights, the further apart are two right ways of running it."""
    config = LlamaConfig(
        vocab_size=300, **SIZES | {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": n_layers}
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
    assert prefix_attention.logits_difference(model) < 1e-4
    assert prefix_attention.logits_difference(model.bfloat16()) > 0.05
    assert prefix_attention.supports_shared_attention(model)


def test_the_prefix_runs_once(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    n_tokens, embeddings = [], model.get_input_embeddings()
    generate(model, tokenizer, ["one"], 1)  # the first time, the attention is tried
    embeddings.register_forward_hook(lambda module, inputs, output: n_tokens.append(inputs[0].numel()))
    texts = make_prompts(tokenizer, 40)
    generate(model, tokenizer, texts, 1)
    n_suffix = sum(len(text.split()) - 40 for text in texts)
    assert n_tokens[0] == 40 and n_suffix <= sum(n_tokens[1:]) <= 24 * 17


def test_a_batch_is_halved_where_the_memory_does_not_suffice(model_and_tokenizer, monkeypatch):
    model, tokenizer = model_and_tokenizer
    texts, decode, batch_sizes = make_prompts(tokenizer, 20), engine.decode, []

    def decode_with_little_memory(model, tokenizer, cache, logits, *arguments):
        batch_sizes.append(len(logits))
        if len(logits) > 5:
            raise torch.cuda.OutOfMemoryError("no memory")
        return decode(model, tokenizer, cache, logits, *arguments)

    expected = generate(model, tokenizer, texts, 6)
    monkeypatch.setattr(engine, "decode", decode_with_little_memory)
    assert generate(model, tokenizer, texts, 6) == expected
    assert max(batch_sizes) == 24 and sum(size <= 5 for size in batch_sizes) > 4


class OperationCount(TorchDispatchMode):
    """Operations that are no views, as far as torch's Python issues them one by one."""

    n = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.n += not operation.is_view and operation is not torch.ops.aten._unsafe_view.default
        return operation(*arguments, **(options or {}))


@pytest.fixture(params=["llama", "qwen3", "gemma3"])
def fixed_steps(request, device, monkeypatch):
    """Steps of fixed shape of a deep model, their inputs, and what packed steps predict."""
    tokenizer = word_tokenizer()
    monkeypatch.setitem(SIZES, "num_hidden_layers", 12)
    model = random_model(FAMILIES[request.param], tokenizer).to(device)
    suffixes = [[6, 7, 8, 9], [7, 8, 9], [6, 5]]
    with torch.inference_mode():
        prefix = prefix_attention.run_prefix(model, [5, 9] * 10)
        with prefix_attention.shared_attention(model):
            caches = [engine.prefill(model, prefix, suffixes)[0] for _ in range(2)]
            inputs = [ids[:2] for ids in suffixes], [len(ids) for ids in suffixes]
            expected = decode_steps.PackedSteps(model, caches[0]).predict(*inputs)
            steps = decode_steps.FixedSteps(model, caches[1], capture=False)
            assert steps.predict(*inputs) == expected
            yield steps, inputs, expected


def test_a_step_of_fixed_shape_is_few_operations(fixed_steps):
    steps, _, _ = fixed_steps
    with decode_steps.fused(steps.norms), OperationCount() as issued:
        steps.step()
    assert issued.n / 12 <= 40


def test_a_step_of_fixed_shape_is_one_graph(fixed_steps):
    """torch's compiler finds nothing in it that it could not capture, also with norms of one operation."""
    steps, _, expected = fixed_steps
    step = torch.compile(steps.step, fullgraph=True, dynamic=False, backend="eager")
    with decode_steps.fused(steps.norms):
        predicted = step().tolist()
    assert [row[:2] for row in predicted] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_one_operation_are_those_of_the_model(model_and_tokenizer, dtype):
    model = model_and_tokenizer[0].to(dtype)
    fused_norms = decode_steps.find_fused_norms(model)
    assert set(fused_norms) == {module for module in model.modules() if type(module).__name__.endswith("RMSNorm")}
    with torch.inference_mode():
        for norm, forward in fused_norms.items():
            states = (3 * torch.randn(5, len(norm.weight))).to(norm.weight)
            torch.testing.assert_close(forward(states), norm(states), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    own = model.model.norm
    with decode_steps.fused(fused_norms):
        assert own.forward is fused_norms[own]
    assert "forward" not in own.__dict__


def test_a_norm_of_another_kind_stays_as_it_is():
    class GatedRMSNorm(torch.nn.RMSNorm):
        def forward(self, states):
            return states.sigmoid() * super().forward(states)

    assert not decode_steps.find_fused_norms(torch.nn.Sequential(GatedRMSNorm(8, eps=1e-6)))


def test_the_memory_of_a_batch_is_free_when_it_has_ended(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    generate(model, tokenizer, ["one"], 1)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(thing, prefix_attention.SharedCache) for thing in gc.get_objects())
        generate(model, tokenizer, make_prompts(tokenizer, 20), 4, batch_tokens=200)
        assert sum(isinstance(thing, prefix_attention.SharedCache) for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def piece_tokenizer(pre_tokenizer, decoder):
    """A tokenizer of pieces of words: of bytes, or with a mark for the blank before a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=280, show_progress=False, initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), *CHARACTERS]
    )
    tokenizer.train_from_iterator(["ab ab\n\nQ: a Q: b", "Q:\nba é ab:é Q"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


CHARACTERS = "ab \nQ:é"
PIECES = [
    piece_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    piece_tokenizer(pre_tokenizers.Metaspace(), decoders.Metaspace()),
]


@given(
    st.sampled_from(PIECES), st.text(CHARACTERS, max_size=40),
    st.lists(st.text(CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=2),
)  # fmt: skip
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(tokenizer, text, stop):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    answer, n_read = engine.GrowingAnswer(tokenizer, set(), stop, 100), 0
    while n_read < len(ids) and answer.add(ids[n_read]) is None:
        n_read += 1
    so_far = [tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    assert n_read == next((n for n, piece in enumerate(so_far) if any(string in piece for string in stop)), len(ids))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_model_that_cannot_be_captured_answers_the_same(family, capsys):
    tokenizer = word_tokenizer()
    model = random_model(FAMILIES[family], tokenizer).cuda()
    texts = make_prompts(tokenizer, 40)
    expected = generate(model, tokenizer, texts, 12)
    assert "cannot be captured" not in capsys.readouterr().err
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.sum().item() and None)
    assert generate(model, tokenizer, texts, 12) == expected
    assert "steps cannot be captured as CUDA graphs" in capsys.readouterr().err


def test_losses_and_prefixes_beyond_the_memory_are_refused(model_and_tokenizer, monkeypatch):
    def without_memory(*arguments, **settings):
        raise torch.cuda.OutOfMemoryError("no memory")

    model, tokenizer = model_and_tokenizer
    message = f"{model.device}: no memory for 1 texts; lower batch"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
        patch.setattr(engine, "prefill", without_memory)
        nll(model, tokenizer, ["one"], ["two"])
    monkeypatch.setattr(model, "forward", without_memory)
    with pytest.raises(UserError, match=f"{model.device}: no memory for the shared prefix of 40 tokens"):
        generate(model, tokenizer, make_prompts(tokenizer, 40), 3)


def test_a_prompt_beyond_the_memory_is_refused(model_and_tokenizer, monkeypatch):
    def decode_without_memory(*arguments):
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(engine, "decode", decode_without_memory)
    with pytest.raises(UserError, match=f"{model_and_tokenizer[0].device}: no memory for one prompt of 2 tokens"):
        generate(*model_and_tokenizer, ["one two"], 6)


def test_a_stop_string_ends_an_answer(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    texts = make_prompts(tokenizer)
    for text, complete in zip(texts, generate(model, tokenizer, texts, 12), strict=True):
        words = complete.text.split()
        if len(words) > 3:
            (answer,) = generate(model, tokenizer, [text], 12, stop=(words[2],))
            end = complete.text.index(words[2])
            assert (answer.text, answer.stop) == (complete.text[:end], "stop string")


@pytest.mark.parametrize("shared", [0, 40])
def test_nll_is_that_of_a_forward_pass(model_and_tokenizer, shared, monkeypatch):
    model, tokenizer = model_and_tokenizer
    texts, continuations = make_prompts(tokenizer, shared), make_prompts(tokenizer)[::-1]
    exact = model.double()
    losses = nll(model.float(), tokenizer, texts, continuations, batch_tokens=200)
    for text, continuation, loss in zip(texts, continuations, losses, strict=True):
        first, second = tokenizer(text).input_ids, tokenizer(continuation).input_ids
        with torch.no_grad():
            ids = torch.tensor([first + second], device=model.device)
            logits = exact.double()(ids).logits[0, len(first) - 1 : -1].log_softmax(-1)
        expected = -sum(logits[i, token].item() for i, token in enumerate(second))
        assert (loss.n_tokens, loss.n_bytes) == (len(second), len(continuation.encode()))
        assert loss.nats == pytest.approx(expected, rel=1e-4)
        model.float()
    answers = generate(model, tokenizer, texts, 6)
    for batch_tokens in (1, 300, 9999):
        scored = generate(model, tokenizer, texts, 6, continuations=continuations, batch_tokens=batch_tokens)
        assert [(a.text, a.n_tokens, a.stop) for a in scored] == [(a.text, a.n_tokens, a.stop) for a in answers]
        assert [a.loss.nats for a in scored] == pytest.approx([loss.nats for loss in losses], rel=1e-4)
    monkeypatch.setattr(engine, "MAX_LOGITS", 1)  # one token at a time
    by_token = nll(model, tokenizer, texts, continuations)
    assert [loss.nats for loss in by_token] == pytest.approx([loss.nats for loss in losses], rel=1e-4)


@pytest.mark.parametrize("shared", [0, 40])
def test_alternatives_have_the_losses_that_each_has_alone(model_and_tokenizer, shared, monkeypatch):
    model, tokenizer = model_and_tokenizer
    texts = make_prompts(tokenizer, shared)
    words = [word for word in sorted(tokenizer.get_vocab()) if word not in tokenizer.all_special_tokens]
    # One to four texts a prompt: alike but for the last token, of other lengths, one twice.
    heads = ["", f"{words[3]} ", f"{words[5]} {words[9]} "]
    alternatives = [
        [heads[(i + j // 2) % 3] + words[(i * j) % len(words)] for j in range(1 + i % 4)] for i in range(len(texts))
    ]
    scored = alternatives_nll(model, tokenizer, texts, alternatives, batch_tokens=200)
    assert list(map(len, scored)) == list(map(len, alternatives))
    for text, of_prompt, losses in zip(texts, alternatives, scored, strict=True):
        for alternative, loss in zip(of_prompt, losses, strict=True):
            first, second = tokenizer(text).input_ids, tokenizer(alternative).input_ids
            with torch.no_grad():
                ids = torch.tensor([first + second], device=model.device)
                logits = model(ids).logits[0, len(first) - 1 : -1].double().log_softmax(-1)
            expected = -sum(logits[i, token].item() for i, token in enumerate(second))
            assert (loss.n_tokens, loss.n_bytes) == (len(second), len(alternative.encode()))
            assert loss.nats == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(engine, "MAX_LOGITS", 1)  # one token at a time
    by_token = alternatives_nll(model, tokenizer, texts, alternatives)
    assert [[loss.nats for loss in row] for row in by_token] == [
        pytest.approx([loss.nats for loss in row], rel=1e-4) for row in scored
    ]


@pytest.mark.parametrize("shared", [0, 40])
def test_drafts_save_passes_and_change_nothing(shared, monkeypatch):
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **SIZES)
    ).eval()
    with torch.no_grad():  # each token has one that follows it, so all answers end in a loop
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
    texts, forward, passes = make_prompts(tokenizer, shared), decode_steps.forward, []
    monkeypatch.setattr(decode_steps, "forward", lambda *a, **options: passes.append(options) or forward(*a, **options))
    drafted = generate(model, tokenizer, texts, 60)
    n_drafted = len(passes)
    monkeypatch.setattr(decode_steps, "MAX_DRAFT", 0)
    assert generate(model, tokenizer, texts, 60) == drafted and n_drafted < 0.7 * (len(passes) - n_drafted)


@given(st.lists(st.integers(0, 3), min_size=1), st.data())
def test_accepted_tokens_are_those_of_one_step_after_another(drafted, data):
    predicted = data.draw(st.lists(st.integers(0, 3), min_size=len(drafted), max_size=len(drafted)))
    expected = [predicted[0]]  # after the first, which is certain; then on, while the next one drafted was predicted
    for i in range(1, len(drafted)):
        if drafted[i] != expected[-1]:
            break
        expected.append(predicted[i])
    assert engine.verify_draft(drafted, predicted) == expected


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30), st.integers(0, 6))
def test_a_draft_is_what_followed_the_same_tokens(prefix_ids, context, token_budget):
    n = engine.NGRAM
    indices = [engine.ngram_index(ids, {}, 0) for ids in (context, prefix_ids)]
    drafted = engine.draft(context, indices[0], prefix_ids, indices[1], token_budget)
    places = [i for i in range(n, len(context)) if context[i - n : i] == context[-n:]]
    if places:
        repeated = context[max(places) :]
        assert drafted == (repeated * (token_budget + 1))[:token_budget]
    else:
        places = [i for i in range(n, len(prefix_ids)) if prefix_ids[i - n : i] == context[-n:]]
        assert drafted == (prefix_ids[max(places) :][:token_budget] if places else [])


def test_an_answer_does_not_depend_on_which_others_are_requested(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    texts = make_prompts(tokenizer, 40)
    batches = list(stream(model, tokenizer, texts, 6, continuations=texts, batch_tokens=90))
    assert len(batches) > 3 and sorted(i for batch in batches for i in batch) == list(range(24))
    requested = list(stream(model, tokenizer, texts, 6, continuations=texts, batch_tokens=90, indices={5, 6}))
    assert requested == [batch for batch in batches if batch.keys() & {5, 6}] and len(requested) < 3
    assert list(stream(model, tokenizer, texts, 6, indices=set())) == []


def test_a_templated_prompt_gets_no_special_tokens():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, pad_token_id=None, **SIZES)
    model, inputs = AutoModelForCausalLM.from_config(config).eval(), []
    model.get_input_embeddings().register_forward_hook(lambda _, arguments, __: inputs.append(arguments[0].tolist()))
    tokenizer.pad_token = None  # nor is one needed
    for templated, ids in ((False, [1, 4, 5]), (True, [4, 5])):
        generate(model, tokenizer, ["one two"], 1, templated=templated)
        assert inputs.pop() == [ids]


def test_a_prompt_beyond_the_context_is_named(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    text = make_prompts(tokenizer)[3]
    message = "1 of 2 prompts do not fit the model's context of 128 tokens: the longest, ending .*, has 16 and needs "
    with pytest.raises(UserError, match=message + "120 more"):
        generate(model, tokenizer, [text, "one"], 120)
    with pytest.raises(UserError, match=message + "320 more"):
        nll(model, tokenizer, [text, "one"], [" ".join([text] * 20), "two"])
    with pytest.raises(UserError, match=message + "320 more"):
        generate(model, tokenizer, [text, "one"], 1, continuations=[" ".join([text] * 20), "two"])


def test_an_answer_of_no_tokens_is_refused(model_and_tokenizer):
    with pytest.raises(UserError, match="max_new_tokens is 0, expected 1 or more"):
        generate(*model_and_tokenizer, ["a"], 0)


def test_a_prompt_without_tokens_is_named(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    for call in (lambda: generate(model, tokenizer, ["", "one"], 5), lambda: nll(model, tokenizer, [""], ["one"])):
        with pytest.raises(UserError, match="prompt '' has no tokens"):
            call()
    with pytest.raises(UserError, match="continuation '' has no tokens"):
        nll(model, tokenizer, ["one", "two"], ["one", ""])
    for call in (nll, lambda *arguments: generate(*arguments[:3], 5, continuations=arguments[3])):
        with pytest.raises(UserError, match="there are 0 continuations, expected one for each of 1 prompts"):
            call(model, tokenizer, ["one"], [])
    assert generate(model, tokenizer, [], 5) == [] and nll(model, tokenizer, [], []) == []


@pytest.mark.parametrize("stop", ["plus", ("",)])
def test_stop_strings_are_a_list_of_text(model_and_tokenizer, stop):
    with pytest.raises(UserError, match="stop is "):
        generate(*model_and_tokenizer, ["one"], 5, stop=stop)


# Families that the shared attention does not serve: the reason, and fields beside SIZES.
ALONE = {
    "bloom": ("an attention of its own", BloomConfig(hidden_size=32, n_layer=2, n_head=4)),
    "gpt_oss": ("sinks", GptOssConfig(num_local_experts=4, head_dim=8, **SIZES)),
    "llama4": ("layers of chunked_attention", Llama4TextConfig(
        num_local_experts=2, head_dim=8, intermediate_size_mlp=64, **SIZES)),
    "llama4 without chunks": ("its logits differ by", Llama4TextConfig(
        num_local_experts=2, head_dim=8, intermediate_size_mlp=64, layer_types=["full_attention"] * 3,
        no_rope_layers=[1, 0, 0], attn_temperature_tuning=True, floor_scale=8, attn_scale=0.5,
        **SIZES)),
    "doge": ("a mask of the model's own", DogeConfig(**SIZES)),
    "mamba": ("layers of linear_attention", MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8)),
}  # fmt: skip


@pytest.mark.parametrize("family", ALONE)
def test_models_with_another_attention_answer_one_prompt_at_a_time(family, capsys):
    reason, config = ALONE[family]
    tokenizer = word_tokenizer()
    config.vocab_size, config.pad_token_id, config.eos_token_id = len(tokenizer), 0, tokenizer.eos_token_id
    if hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = 128
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_log" not in name:
                parameter.mul_(15.0)
    texts = make_prompts(tokenizer, 40)[:8]
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        expected.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=1.5)
    finished = {}
    answers = generate(model, tokenizer, texts, 6, continuations=["two"] * 8, on_finish=finished.__setitem__)
    assert [answer.text for answer in answers] == expected and [finished[i] for i in range(8)] == answers
    assert model.generation_config.do_sample
    assert [answer.loss for answer in answers] == nll(model, tokenizer, texts, ["two"] * 8)
    for text, answer in zip(texts, answers, strict=True):
        ids, (target,) = tokenizer(text, return_tensors="pt").input_ids, tokenizer("two").input_ids
        with torch.inference_mode():
            log_likelihood = model(ids).logits[0, -1].double().log_softmax(-1)[target].item()
        assert answer.loss.nats == pytest.approx(-log_likelihood, rel=1e-3)
    word = next(text.split()[2] for text in expected if len(text.split()) > 2)
    for answer, text in zip(generate(model, tokenizer, texts, 6, stop=[word]), expected, strict=True):
        assert answer.text == text.split(word)[0] and (answer.stop == "stop string") == (word in text)
    assert next(stream(model, tokenizer, texts, 6, indices={3})) == {3: dataclasses.replace(answers[3], loss=None)}
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{type(model).__name__} answers one prompt at a time, slowly: ") and reason in line


def test_a_tokenizer_that_ends_every_text_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=1, **SIZES)
    with pytest.raises(UserError, match="ends every text; set add_eos_token to false"):
        generate(AutoModelForCausalLM.from_config(config), tokenizer, ["one two"], 1)


def test_a_longrope_model_is_held_to_its_first_context():
    tokenizer, factors = word_tokenizer(), {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config = Phi3Config(vocab_size=len(tokenizer), max_position_embeddings=80, pad_token_id=0,
                        rope_parameters=rope, original_max_position_embeddings=20,
                        bos_token_id=None, eos_token_id=1, **SIZES)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert generate(model, tokenizer, ["one two"], 18)
    with pytest.raises(UserError, match="do not fit the model's context of 20 tokens"):
        generate(model, tokenizer, ["one two"], 19)
