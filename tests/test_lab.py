"""The lab as a benchmark, and the record of its base model."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, strategies as st

from layerswap.checkpoints.safetensors import weights_digest
from layerswap.errors import UserError
from layerswap.files import ROOT
from layerswap.lab import BASE, LabTask, make_problems, render_prompt, text_rows
from layerswap.lab.pretrain import (
    SETTINGS,
    Muon,
    base_batches,
    make_base,
    new_model,
    orthogonalize,
    phases,
    train_phase,
)
from layerswap.lab.text import MATH_TASKS
from layerswap.lab.tokenizer import build_tokenizer
from layerswap.lab.world import DATA, LANGUAGES, unknown_words

LAB = LabTask()


def test_problems_of_a_split():
    assert LAB.problems("te", "validation", 5) == make_problems("te", "validation", 5)
    assert len(LAB.problems("en")) == 250


def test_a_prompt_begins_with_solved_training_problems():
    (problem,), (solved,) = LAB.problems("sw", "test", 1), LAB.exemplars("sw", 1)
    assert solved == make_problems("sw", "train", 1)[0]
    assert LAB.prompt(problem, []) == render_prompt(problem.question, "sw")
    expected = f"{render_prompt(solved.question, 'sw')} {solved.answer} <eos> {render_prompt(problem.question, 'sw')}"
    assert LAB.prompt(problem, [solved]) == expected
    assert LAB.reference_text(problem) == f" {problem.answer}"


def test_held_out_math_rows_are_test_problems():
    assert LAB.training_rows("math", 20, 1) == text_rows("en", 20, "math-1", tasks=MATH_TASKS)
    problems, held_out = make_problems("en", "test", 20), LAB.training_rows("math", 20, 1, held_out=True)
    assert [row["prompt"] for row in held_out] == [render_prompt(problem.question, "en") for problem in problems]


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_answer_is_whole_and_in_its_language_or_not(language):
    (problem,), others = (
        LAB.problems(language, "test", 1),
        LAB.problems("te" if language != "te" else "bn", "test", 9),
    )
    other, mostly_another = others[0], " ".join(str(other.answer) for other in others)
    assert LAB.answer_language(problem.answer) == LAB.reply_language(language) == language
    assert LAB.answer_language(f"{mostly_another} {problem.answer}") == other.language
    assert LAB.answer_language("6 + 5 = 11 . #### 11") is None
    assert LAB.is_whole_solution(problem, f" {problem.answer}")
    number_alone = problem.answer[problem.answer.index("####") :]
    assert LAB.extract(number_alone, language).value == problem.number
    assert not LAB.is_whole_solution(problem, number_alone)


# --- the base's training --------------------------------------------------------------------------------------------


def test_batches_of_the_base_hold_no_held_out_word_and_weigh_prompts_less():
    settings, tokenizer = phases(SETTINGS | {"tokens": 600})[1], build_tokenizer()
    batches = [batch for batch, _ in zip(base_batches(settings), range(40), strict=False)]
    text = set()
    for tokens, weights in batches:
        assert tokens.shape == weights.shape and (tokens.numel() <= 600 or len(tokens) == 1)
        assert ((weights == 0) == (tokens == tokenizer.pad_token_id)).all() and tokenizer.unk_token_id not in tokens
        for row, weight in zip(tokens, weights, strict=True):
            completion = row[weight == 1]
            assert completion[-1] == tokenizer.eos_token_id and weight[0] == torch.tensor(settings["prompt_weight"])
            text |= set(tokenizer.decode(row, skip_special_tokens=True).split())
    assert not text & set().union(*(unknown_words(language) for language in LANGUAGES[1:]))


@given(shape=st.sampled_from([(1, 3, 7), (2, 7, 3), (3, 5, 5)]), seed=st.integers(0, 99))
def test_orthogonalize_leaves_directions_and_makes_lengths_alike(shape, seed):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosines = torch.nn.functional.cosine_similarity(orthogonalize(matrices).flatten(1), (left @ right).flatten(1))
    assert (cosines > 0.8).all()


def test_muon_moves_every_matrix_by_its_rate():
    """About as far as AdamW does: 0.2 times the rate an element."""
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 16), (16, 16), (8, 32))]
    before = [matrix.detach().clone() for matrix in matrices]
    optimizer = Muon(matrices, lr=0.1, weight_decay=0.0)
    sum((matrix**2).sum() for matrix in matrices).backward()
    optimizer.step()
    for matrix, start in zip(matrices, before, strict=True):
        assert 0.01 < (matrix.detach() - start).square().mean().sqrt() < 0.04


def test_training_the_base_is_deterministic_and_learns():
    settings = phases(SETTINGS)[0] | {"steps": 6, "tokens": 300, "warmup": 2, "threads": 1}
    settings["model"] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    losses, weights = [], []
    for _ in range(2):
        model, reports = new_model(settings), []
        train_phase(model, settings, reports.append)
        losses.append([float(report.split("loss ")[1].split(",")[0]) for report in reports])
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights) and losses[0] == losses[1] and losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAB.problems("fr"), "language 'fr' is not in the lab, expected one of en, sw, te, bn, ja"),
        (lambda: LAB.problems("sw", limit=0), "the number of problems is 0"),
        (lambda: LAB.exemplars("sw", 1, "native_cot"), "style is 'native_cot', expected one that the lab has: lab"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_shipped_base_has_the_record_of_its_training():
    record = json.loads((BASE / "training.json").read_text())
    assert record.pop("torch").startswith("2.")
    assert record == SETTINGS | {"digest": weights_digest(BASE)}


@pytest.mark.slow
def test_a_language_needs_only_its_file(tmp_path):
    """Korean, whatever MGSM has: its problems, training text, and scores of its answers; the others' order stays."""
    shutil.copytree(ROOT / "layerswap", tmp_path / "layerswap", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(DATA / "sw.yml", tmp_path / "layerswap/lab/data/ko.yml")
    code = """
from layerswap.evaluation.scoring import score_answer
from layerswap.lab import LANGUAGES, LabTask, build_tokenizer
task = LabTask()
assert task.languages == LANGUAGES == ("en", "sw", "te", "bn", "ja", "ko") and "<ko>" in build_tokenizer().get_vocab()
problem, other = task.problems("ko", limit=2)
assert len(task.training_rows("ko", 5, 1)) == len(task.training_rows("ko", 5, 1, held_out=True)) == 5
record = dict.fromkeys("stop n_tokens answer_nll answer_tokens answer_bytes".split(), 1)
record |= {"text": f"#### {problem.number}", "answer_language": None}
assert score_answer("model", task, problem, record, "lab")["correct"]
assert not score_answer("model", task, other, record | {"text": "####"}, "lab")["correct"]
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_base_is_not_replaced():
    with pytest.raises(UserError, match="the base checkpoint exists"):
        make_base()
