"""Conditions scored with the pair of experts that their roles name, and losses of texts."""

import os
import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch
from conftest import word_tokenizer, write_checkpoint
from transformers import AutoModelForCausalLM

from layerswap.errors import UserError
from layerswap.evaluation.answers import RECORD, AnswerCache
from layerswap.evaluation.engine import generate
from layerswap.evaluation.ranking import RANKING
from layerswap.experts import index as index_module
from layerswap.experts.index import ExpertIndex, save_index
from layerswap.lab.task import LabTask
from layerswap.merging.in_memory import ExpertPair
from layerswap.merging.on_disk import merge
from layerswap.merging.plans import Plan, uniform
from layerswap.merging.task_vectors import TaskVectors
from layerswap.run import scores as scores_module
from layerswap.run.experiments import Condition, experts_alone
from layerswap.run.scores import ProfileScores, held_out_losses, without_text
from layerswap.tasks import Problem
from layerswap.workers import RAY

TASK = LabTask()
HALF = TaskVectors("language x 0.5", "task arithmetic", 0.0, 0.5)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """base, math, sw and te under a project of their own; the index is saved as profile "p"."""
    for module in (index_module, scores_module):
        for name in {"ROOT", "BUILD"} & vars(module).keys():
            monkeypatch.setattr(module, name, tmp_path / name.lower() if name != "ROOT" else tmp_path)
    folders = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate(["base", "math", "sw", "te"])}
    index = ExpertIndex(
        source="lab", seeds=[1], note="", base=folders.pop("base"), joint={}, frozen={},
        experts={name: [folder] for name, folder in folders.items()},
    )  # fmt: skip
    save_index("p", index)
    return index


@pytest.fixture
def larger_index(index, tmp_path):
    """The index with two seeds, joint and frozen models; te is left out."""
    new_seeds = iter(range(10, 20))

    def more(n):
        return [write_checkpoint(tmp_path / f"more-{seed}", seed) for seed in islice(new_seeds, n)]

    larger = replace(
        index, seeds=[5, 7], experts={name: [*index.experts[name], *more(1)] for name in ("math", "sw")},
        joint={"sw": more(2)}, frozen={"math": more(2), "sw": more(2)},
    )  # fmt: skip
    save_index("p", larger)
    return larger


def scorer(languages, **settings):
    """Scores of profile "p": prompts of the lab, four new tokens."""
    return ProfileScores("p", languages, "lab", **{"exemplars": 0, "max_new_tokens": 4} | settings)


def prompts_of(language, n):
    return [TASK.prompt(problem, []) for problem in TASK.problems(language, "test", n)]


def texts(answers):
    return [answer.text for answer in answers]


def test_each_language_is_scored_with_its_own_pair(index):
    frame = scorer(["en", "sw", "te"]).score(experts_alone(4), 3)
    assert frame.groupby(["language", "condition"]).size().eq(3).all() and len(frame) == 27
    for (condition, language), rows in frame.groupby(["condition", "language"]):
        math = index.experts["math"]
        language_expert = index.experts.get(language, math)
        folder = {"base": index.base, "math expert": math[0], "language expert": language_expert[0]}[condition]
        model = AutoModelForCausalLM.from_pretrained(folder)
        expected = generate(model, word_tokenizer(), prompts_of(language, 3), 4)
        assert list(rows.text) == texts(expected), (condition, language)


def test_every_condition_takes_the_models_of_its_roles(larger_index, tmp_path):
    """Whatever it is called: every condition of every pair answers as its two models do, merged or alone."""
    swap, whole = Plan("swap", (1.0, 0.0, 0.0, 1.0), 0.0), uniform(4, 0.0, "whole")
    conditions = [
        Condition("base", swap),  # a name that says something else than its roles
        Condition("a", whole, ("joint", "joint")),
        Condition("b", swap, ("frozen math", "frozen language")),
        Condition("c", whole, ("base", "base")),
        Condition("d", swap, ("math", "base")),
        Condition("TIES", TaskVectors("TIES", "ties", density=0.5)),
        Condition("e", swap, ("math", HALF)),
    ]
    frame = scorer(["sw"], pairs="2x2").score(conditions, 3)
    assert list(dict.fromkeys(frame.condition)) == [condition.name for condition in conditions], "in their order"
    assert len(frame) == 7 * 4 * 3
    for (name, math_seed, language_seed), rows in frame.groupby(["condition", "math_seed", "language_seed"]):
        i, j = larger_index.seeds.index(math_seed), larger_index.seeds.index(language_seed)
        experts, frozen, base = larger_index.experts, larger_index.frozen, larger_index.base
        pair = experts["math"][i], experts["sw"][j]
        if name == "a":
            model = AutoModelForCausalLM.from_pretrained(larger_index.joint["sw"][j])
        elif name == "c":
            model = AutoModelForCausalLM.from_pretrained(base)
        else:
            half = tmp_path / f"half-{i}-{j}"
            if name == "e":
                merge(*pair, HALF, half, base=base)
            others = {"b": (frozen["math"][i], frozen["sw"][j]), "d": (pair[0], base), "e": (pair[0], half)}
            folders = others.get(name, pair)
            models = ExpertPair(*folders, base if name == "TIES" else None)
            model = models.apply(next(condition.plan for condition in conditions if condition.name == name))
        expected = generate(model, word_tokenizer(), prompts_of("sw", 3), 4)
        assert list(rows.text) == texts(expected), (name, math_seed, language_seed)


def test_alternatives_are_ranked_by_every_condition_and_once_without_the_text(larger_index, tmp_path):
    scores = scorer(["sw"], pairs="2x2")
    frame = scores.rank(experts_alone(4), 3)
    assert frame.groupby(["condition", "math_seed", "language_seed"]).size().eq(3).all() and len(frame) == 36
    math = frame[frame.condition == "math expert"]
    assert math.groupby(["math_seed", "id"]).log_probability.nunique().eq(1).all()  # whatever the language expert
    blind = scores.rank(experts_alone(4)[1:2], 3, text_blind=True)
    assert set(blind.condition) == {"math expert, text-blind"}
    assert list(blind.label) == list(math.label)
    kept = AnswerCache(tmp_path / "build/p/rankings-3.jsonl", RANKING).rows
    assert len(kept) == (1 + 2 + 2 + 2) * 3
    assert scores.rank(experts_alone(4), 3).equals(frame)


def test_a_question_without_its_text_keeps_its_numbers():
    problem = Problem("x", "en", "Ben has 1,200 apples, 3.5 pies and 12 eggs.", None, 5)
    assert without_text(problem).question == "1,200 ... 3.5 ... 12"


def test_answers_are_kept(index, monkeypatch):
    first = scorer(["sw"]).score(experts_alone(4), 3)
    monkeypatch.setattr(ExpertPair, "apply", lambda *arguments: pytest.fail("answered again"))
    assert scorer(["sw"]).score(experts_alone(4), 3).equals(first)


def test_answers_do_not_depend_on_what_was_scored_before(index, tmp_path):
    """To the last digit: notebooks score in any order, or at the same time, and batches round by their problems."""
    before = [scorer(["sw"]).score(experts_alone(4), n) for n in (3, 17, 40)]
    shutil.rmtree(tmp_path / "build" / "p")
    save_index("p", index)
    after = [scorer(["sw"]).score(experts_alone(4), n) for n in (40, 17, 3)][::-1]
    assert all(first.equals(second) for first, second in zip(before, after, strict=True))


def test_all_languages_are_checked_before_the_first_answer(index, monkeypatch):
    prompt = LabTask.prompt
    monkeypatch.setattr(
        LabTask,
        "prompt",
        lambda task, problem, *rest: prompt(task, problem, *rest) + " one" * 200 * (problem.language == "te"),
    )
    with pytest.raises(UserError, match="3 of 3 prompts do not fit the model's context of 128 tokens"):
        scorer(["sw", "te"]).score(experts_alone(4), 3)
    assert not list(scores_module.BUILD.rglob("answers*.jsonl"))


@pytest.mark.parametrize("when", ["loading", "answering"])
def test_experts_that_change_meanwhile_leave_no_answers(index, tmp_path, monkeypatch, when):
    weights = tmp_path / "sw" / "model.safetensors"
    original, overwrite = weights.read_bytes(), (tmp_path / "te" / "model.safetensors").read_bytes()
    place, name = (ExpertPair, "apply") if when == "loading" else (AnswerCache, "add")
    unchanged = getattr(place, name)

    def changed_before(*arguments):
        weights.write_bytes(overwrite)  # in place: what is loaded without a copy changes with it
        return unchanged(*arguments)

    monkeypatch.setattr(place, name, changed_before)
    conditions = [Condition("language expert", uniform(4, 1.0, "whole"))]
    with pytest.raises(UserError, match="sw/model.safetensors: was changed or replaced meanwhile"):
        scorer(["sw"]).score(conditions, 3)
    monkeypatch.setattr(place, name, unchanged)
    weights.write_bytes(original)
    assert not [path for path in scores_module.BUILD.rglob("answers*.jsonl") if path.stat().st_size]


def test_a_tokenizer_that_is_replaced_between_two_pairs_leaves_no_answers(index, monkeypatch):
    """The digest of the first pair's tokenizer is that of the second's: it is the same folder, of the math expert."""
    conditions, evaluate = [Condition("math expert", uniform(4, 0.0, "math"))], scores_module.evaluate
    scorer(["sw"]).score(conditions, 3)  # so that the first pair below has nothing to load

    def then_replaced(*arguments, **settings):
        frame, path = evaluate(*arguments, **settings), index.experts["math"][0] / "tokenizer_config.json"
        path.write_text(path.read_text().replace("{", '{"add_prefix_space": true, ', 1))
        return frame

    monkeypatch.setattr(scores_module, "evaluate", then_replaced)
    with pytest.raises(UserError, match="math/tokenizer_config.json: was changed or replaced meanwhile"):
        scorer(["sw", "te"]).score(conditions, 3)
    (answers,) = scores_module.BUILD.rglob("answers*.jsonl")
    assert len(answers.read_text().splitlines()) == 3


def test_validation_and_test_problems_are_disjoint(index, tmp_path, monkeypatch):
    scorer(["sw", "te"]).check_disjoint(100, 320)
    folder = tmp_path / "data" / "mgsm"
    folder.mkdir(parents=True)
    (folder / "mgsm_sw.tsv").write_text("".join(f"question {i}\t{i}\n" for i in range(250)))
    monkeypatch.setenv("LAYERSWAP_DATA", str(folder.parent))
    save_index("p", replace(index, source="local"))
    local = scorer(["sw"])
    local.check_disjoint(50, 200)
    assert [problem.number for problem in local.task.problems("sw", "validation", 2)] == [200, 201]
    with pytest.raises(UserError, match="1 of 50 validation problems in sw are also tested, such as mgsm-200"):
        local.check_disjoint(50, 201)
    with pytest.raises(UserError, match="5 of 5 validation problems in sw are also tested"):
        scorer(["sw"], split="validation").check_disjoint(5, 10)
    with pytest.raises(UserError, match="n_validation is 51, but sw has 50 validation problems"):
        local.check_disjoint(51, 10)


def loss_by_hand(folder, prompt, completion):
    """Nats a token of a completion, from one unbatched forward of transformers."""
    tokenizer, model = word_tokenizer(), AutoModelForCausalLM.from_pretrained(folder)
    head, tail = tokenizer(prompt).input_ids, tokenizer(completion).input_ids
    log_p = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)  # [length, vocabulary]
    return -sum(log_p[len(head) + i - 1, token].item() for i, token in enumerate(tail)) / len(tail)


def test_held_out_losses_are_of_base_and_expert(index):
    row = {"prompt": "one plus", "completion": " two is three"}
    losses = held_out_losses(index, {"math": [row], "sw": [row]}).set_index(["language", "condition"]).loss
    for language, condition, folder in (
        ("en", "base", index.base),
        ("en", "math expert", index.experts["math"][0]),
        ("sw", "base", index.base),
        ("sw", "language expert", index.experts["sw"][0]),
    ):
        assert losses[language, condition] == pytest.approx(loss_by_hand(folder, **row), rel=1e-5)
    assert len(losses) == 4


def test_solution_losses_are_of_each_solution_after_the_others(index):
    base, _, language_expert = experts_alone(4)
    frame = scorer(["sw"], exemplars=1).solution_losses([base, language_expert])
    solved = TASK.exemplars("sw", 8)
    assert list(frame.condition) == ["base"] * 8 + ["language expert"] * 8
    for condition, folder in (("base", index.base), ("language expert", index.experts["sw"][0])):
        losses = frame[frame.condition == condition].set_index("id").loss
        for i, other in ((0, 1), (5, 0)):
            prompt = TASK.prompt(solved[i], [solved[other]])
            expected = loss_by_hand(folder, prompt, f" {solved[i].answer}")
            assert losses[i] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("workers", [2, RAY])
def test_workers_change_nothing(larger_index, tmp_path, workers, monkeypatch):
    if workers == RAY:
        pytest.importorskip("ray")
    conditions = [*experts_alone(4), Condition("swap", Plan("swap", (1.0, 0.5, 0.0, 1.0), 0.5))]
    scores = scorer(["en", "sw"], pairs="2x2")
    expected = [scores.score(conditions, 5), scores.rank(conditions, 5), scores.rank(conditions, 5, text_blind=True)]
    kept = {name: AnswerCache(tmp_path / "build/p" / f"{name}-5.jsonl", fields).rows
            for name, fields in (("answers", RECORD), ("rankings", RANKING))}  # fmt: skip
    for name in kept:
        os.rename(tmp_path / "build/p" / f"{name}-5.jsonl", tmp_path / f"{name}.jsonl")
    monkeypatch.setattr(ExpertPair, "apply", lambda *arguments: pytest.fail("computed here"))
    spread_out, run_cells, sent = replace(scores, workers=workers), scores_module.run_cells, []

    def recorded(*arguments):
        for row in run_cells(*arguments):
            sent.append(row["key"])
            yield row

    monkeypatch.setattr(scores_module, "run_cells", recorded)
    assert spread_out.score(conditions, 5).equals(expected[0])
    assert spread_out.rank(conditions, 5).equals(expected[1])
    assert spread_out.rank(conditions, 5, text_blind=True).equals(expected[2])
    assert len(set(sent)) == len(sent), "a model of several pairs is computed once"
    for name, fields in (("answers", RECORD), ("rankings", RANKING)):
        path = tmp_path / "build/p" / f"{name}-5.jsonl"
        assert AnswerCache(path, fields).rows == kept[name]
        assert len(path.read_text().splitlines()) == len(kept[name]), "no row twice"
    monkeypatch.setattr(scores_module, "make_pool", lambda *arguments: pytest.fail("nothing is missing"))
    assert spread_out.score(conditions, 5).equals(expected[0])
