"""Rankings: labels whose texts count together, calibration, and what is kept of them."""

import math

import numpy as np
import pytest
import torch
from conftest import write_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap.errors import UserError
from layerswap.evaluation import RANKING, AnswerCache, ScoredModel, rank
from layerswap.evaluation.ranking import choices, label_log_probabilities
from layerswap.tasks import MGSM, Alternatives, Problem

TASK = MGSM("owner/name@commit")
TWO = Alternatives(((" a", "x"), (" b", "x"), (" c", "y")), "x")


def problem(i, numbers, gold):
    return Problem(f"p-{i}", "en", "one two " + " and ".join(map(str, numbers)), None, gold)


def test_likelihoods_of_texts_with_one_label_are_added():
    values = label_log_probabilities(TWO, [-math.log(0.1), -math.log(0.2), -math.log(0.2)])
    assert values == pytest.approx({"x": math.log(0.6), "y": math.log(0.4)})


def test_the_largest_label_is_the_choice_and_calibration_takes_away_a_liking():
    problems = [problem(i, [1], 1) for i in range(3)]
    alternatives = [Alternatives(TWO.texts, gold) for gold in "xyy"]
    likings = [{"x": math.log(p), "y": math.log(1 - p)} for p in (0.9, 0.7, 0.6)]  # always x, least where it is wrong
    frame = choices(problems, alternatives, likings)
    assert list(frame.ranked) == [True, False, False] and list(frame.calibrated) == [True, True, True]
    assert list(frame.log_probability) == pytest.approx(np.log([0.9, 0.3, 0.4]))
    assert list(frame.n_labels) == [2, 2, 2] and list(frame.label) == ["x", "y", "y"]


def test_a_tie_is_no_choice():
    values = [{"x": math.log(0.5), "y": math.log(0.5)}]
    frame = choices([problem(0, [1], 1)], [TWO], values)
    assert not frame.ranked.any() and not frame.calibrated.any()


def test_problems_with_labels_of_their_own_are_not_calibrated():
    alternatives = [TWO, Alternatives(((" d", "z"), (" c", "y")), "z")]
    values = [{"x": -1.0, "y": -2.0}, {"z": -1.0, "y": -2.0}]
    frame = choices([problem(0, [1], 1), problem(1, [1], 1)], alternatives, values)
    assert frame.calibrated.isna().all() and frame.ranked.all()


@pytest.fixture
def model(tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    loads = []

    def load():
        loads.append(1)
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    return ScoredModel("a model", "digest", load), loads, load


class Words(MGSM):
    """Alternatives of words that the tiny tokenizer knows."""

    def alternatives(self, problem, style):
        return Alternatives(((" one two", "1"), (" one one", "2"), (" two", "1")), "2")


def test_rankings_are_those_of_a_plain_forward_pass_and_kept(tmp_path, model):
    scored, loads, load = model
    problems = [problem(i, [i + 2, 3], 5) for i in range(4)]
    task, cache = Words("owner/name@commit"), AnswerCache(tmp_path / "rankings.jsonl", RANKING)
    frame = rank([scored], task, problems, [], cache, style="direct")
    network, tokenizer = load()
    for row, of_problem in zip(frame.itertuples(), problems, strict=True):
        nats = []
        for text, _ in task.alternatives(of_problem, "direct").texts:
            prompt = tokenizer(task.prompt(of_problem, [], "direct")).input_ids
            ids = tokenizer(text, add_special_tokens=False).input_ids
            with torch.no_grad():
                log_p = network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            nats.append(-sum(log_p[i, token].item() for i, token in enumerate(ids)))
        expected = label_log_probabilities(task.alternatives(of_problem, "direct"), nats)
        assert row.log_probability == pytest.approx(expected["2"], abs=1e-4)
        assert row.ranked == (expected["2"] > expected["1"])
    n_loads = len(loads)
    again = rank([scored], task, problems, [], AnswerCache(tmp_path / "rankings.jsonl", RANKING), style="direct")
    assert len(loads) == n_loads and again.equals(frame)
    other = rank([scored._replace(digest="another")], task, problems, [], cache, style="direct")
    assert len(loads) == n_loads + 1 and other.equals(frame)


def test_a_chat_is_ranked_in_the_chat_template(tmp_path, model):
    scored, _, load = model
    network, tokenizer = load()
    tokenizer.chat_template = "{{ messages[0].content }} two two"
    templated = scored._replace(digest="chat", load=lambda: (network, tokenizer))
    task, problems = Words("owner/name@commit"), [problem(i, [i + 2, 3], 5) for i in range(2)]
    frame = rank([templated], task, problems, [], AnswerCache(tmp_path / "r.jsonl", RANKING), style="chat")
    texts = [text for text, _ in task.alternatives(problems[0], "chat").texts]
    prompt = tokenizer(task.prompt(problems[0], [], "chat") + " two two", add_special_tokens=False).input_ids
    nats = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            log_p = network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        nats.append(-sum(log_p[i, token].item() for i, token in enumerate(ids)))
    expected = label_log_probabilities(task.alternatives(problems[0], "chat"), nats)
    assert frame.log_probability[0] == pytest.approx(expected["2"], abs=1e-4)


def test_a_file_of_answers_is_no_file_of_rankings(tmp_path):
    (tmp_path / "rankings.jsonl").write_text('{"key": "k", "text": "a"}\n')
    with pytest.raises(UserError, match="a line has no field 'log_probabilities'"):
        AnswerCache(tmp_path / "rankings.jsonl", RANKING)


def test_a_model_that_changed_meanwhile_keeps_nothing(tmp_path, model):
    scored, _, _ = model

    def check():
        raise UserError("changed")

    cache = AnswerCache(tmp_path / "rankings.jsonl", RANKING)
    with pytest.raises(UserError, match="changed"):
        rank([scored._replace(check=check)], Words("o/n@c"), [problem(0, [1], 1)], [], cache, style="direct")
    assert not cache.rows
