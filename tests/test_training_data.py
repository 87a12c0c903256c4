"""Training rows of the lab, and of real text from a small folder of the published formats."""

import json

import pytest

from layerswap.errors import UserError
from layerswap.experts.training_data import TEMPLATES, native_rows, own_rows, split_final_number, training_rows
from layerswap.lab.task import LabTask
from layerswap.tasks.base import Problem
from layerswap.tasks.extraction import HEADERS, extract
from layerswap.tasks.mgsm import MGSM

LAB, LOCAL = LabTask(), MGSM("local")  # a task with training rows of its own, and one without
GSM8K = [
    {"question": "Ann has 5 pens. ", "answer": "She buys 2*3 = <<2*3=6>>6 pens\nNow 5 + 6 = <<5+6=11>>11.\n#### 11"},
    {"question": "How much?", "answer": "It costs 2,000 + 125 = $<<2000+125=2125>>2,125!\n\n#### 2,125"},
]


def write(path, value):
    """One JSON value, or for a .jsonl file a list of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = value if path.suffix == ".jsonl" else [value]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")


def article(title, passage, question, answer):
    qas = [{"question": question, "answers": [{"text": answer}, {"text": "another"}]}]
    return {"title": title, "paragraphs": [{"context": passage, "qas": qas}]}


def story(name, *pages):
    return {"id": name, "pages": list(pages)}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder: 2 problems; in Swahili 200 articles and 40 stories, in Japanese 30 replies."""
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path))
    write(tmp_path / "gsm8k" / "train.jsonl", GSM8K)
    articles = [article(f"title {i // 2}", f"Kifungu {i}", f"Swali {i} ni {{}}?", f" jibu {i} ") for i in range(200)]
    articles.append(article("copy", "Kifungu 7", "Swali zaidi?", "jibu 7b"))  # a passage under another title
    articles.append(article("sums", "Hesabu", "Ngapi?", "2 + 3 = 5"))
    write(tmp_path / "sw" / "tydiqa_swahili_train.json", {"data": articles[:150]})
    write(tmp_path / "sw" / "tydiqa_swahili_dev.json", {"data": articles[150:]})
    whole = [story(f"{i:04}", f"Ukurasa {i}a", f"Ukurasa {i}b") for i in range(40)]
    english = [story(f"{i:04}", f"Page {i}a", f"Page {i}b") for i in range(40)]
    write(tmp_path / "sw" / "stories_x-source.json", [*whole, story("odd", "Moja", "Mbili"), story("only", "Peke")])
    write(tmp_path / "sw" / "stories_x-source.en.json", [*english, story("odd", "One")])
    replies = [{"id": str(i), "utterances": [{"text": f"質問{i}"}, {"text": f"返答\u2028{i}"}]} for i in range(30)]
    write(tmp_path / "ja" / "instruction_ja.jsonl", replies)
    return tmp_path


def train_and_held_out(language):
    """(training rows, held-out rows) as (prompt, completion) pairs."""
    sets = [native_rows(language, 1000, 3, held_out=held_out) for held_out in (False, True)]
    return [[(row["prompt"], row["completion"]) for row in rows] for rows in sets]


def test_gsm8k_rows_read_like_mgsm_exemplars(data):
    rows = {row["prompt"]: row["completion"] for row in own_rows(LOCAL, "math", 10, 0)}
    assert rows == {
        "Question: Ann has 5 pens.\nStep-by-Step Answer:": " She buys 2*3 = 6 pens. Now 5 + 6 = 11. The answer is 11.",
        "Question: How much?\nStep-by-Step Answer:": " It costs 2,000 + 125 = $2,125! The answer is 2,125.",
    }
    problem = Problem("x", "en", "How much?", None, 2125)
    assert extract(rows[LOCAL.prompt(problem, [], "native_cot")], "en").value == 2125


def test_math_rows_are_seeded(data):
    write(data / "gsm8k" / "train.jsonl", [GSM8K[0] | {"question": str(i)} for i in range(50)])
    assert own_rows(LOCAL, "math", 20, 1) == own_rows(LOCAL, "math", 20, 1) != own_rows(LOCAL, "math", 20, 2)
    assert len({row["prompt"] for row in own_rows(LOCAL, "math", 20, 1)}) == 20


def test_swahili_rows(data):
    train, held_out = train_and_held_out("sw")
    expected = {(f"Kifungu: Kifungu {i}\nSwali: Swali {i} ni {{}}?\nJibu:", f" jibu {i}") for i in range(200)}
    expected.remove(("Kifungu: Kifungu 7\nSwali: Swali 7 ni {}?\nJibu:", " jibu 7"))  # the dev file is read first
    expected.add(("Kifungu: Kifungu 7\nSwali: Swali zaidi?\nJibu:", " jibu 7b"))
    for i in range(40):
        expected |= {
            (f"Tafsiri kwa Kiswahili: Page {i}a\nKiswahili:", f" Ukurasa {i}a"),
            (f"Tafsiri kwa Kiswahili: Page {i}b\nKiswahili:", f" Ukurasa {i}b"),
            (f"Endeleza hadithi: Ukurasa {i}a\nMwendelezo:", f" Ukurasa {i}b"),
        }
    assert sorted(train + held_out) == sorted(expected)  # no equation, no story whose pages do not match


def test_held_out_documents_are_disjoint_whatever_the_seed(data):
    def documents(rows):
        names = set()
        for row in rows:
            number = int("".join(c for c in row["completion"] if c.isdigit()))
            if "Ukurasa" in row["completion"]:
                names.add(("story", number))
            else:
                names.add(("title", "copy" if row["completion"] == " jibu 7b" else number // 2))
        return names

    train, other = (documents(native_rows("sw", 1000, seed)) for seed in (1, 2))
    held_out = documents(native_rows("sw", 1000, 1, held_out=True))
    assert train == other
    assert not train & held_out
    assert len(train | held_out) == 100 + 1 + 40
    assert 5 <= len(held_out) <= 25
    assert native_rows("sw", 9, 1) != native_rows("sw", 9, 2)


def test_japanese_rows_have_no_space_after_a_full_width_colon(data):
    train, held_out = train_and_held_out("ja")
    assert sorted(train + held_out) == sorted((f"質問：質問{i}\n答え：", f"返答\u2028{i}") for i in range(30))


@pytest.mark.parametrize("language", ["en", "sw", "ja"])
def test_held_out_lab_rows_are_no_training_rows(language):
    train, held_out = (own_rows(LAB, language, 600, 1, held_out=flag) for flag in (False, True))
    other = own_rows(LAB, language, 600, 2)
    assert len(train) == len(held_out) == 600
    texts = [{row["prompt"] + row["completion"] for row in rows} for rows in (train, other, held_out)]
    assert not texts[2] & (texts[0] | texts[1])


def test_templates_are_those_of_mgsm_languages():
    assert set(TEMPLATES) <= set(HEADERS)
    for templates in TEMPLATES.values():
        assert all(template.count("{}") == (2 if task == "passage" else 1) for task, template in templates.items())


@pytest.mark.parametrize(
    ("broken", "call", "message"),
    [
        (None, lambda: native_rows("xx", 1, 0), "language 'xx', expected one of bn, ja, sw, te"),
        (None, lambda: native_rows("te", 1, 0), "te: no rows in tydiqa_"),
        ("sw/tydiqa_swahili_dev.json", lambda: native_rows("sw", 1, 0), "tydiqa_swahili_dev.json: "),
        ("ja/instruction_ja.jsonl", lambda: native_rows("ja", 1, 0), "instruction_ja.jsonl: "),
        ("gsm8k/train.jsonl", lambda: own_rows(LOCAL, "math", 1, 0), "train.jsonl: "),
    ],
)
def test_bad_input_is_one_line(data, broken, call, message):
    if broken:
        (data / broken).write_text('{"cut": ')
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


FOREIGN = {
    "prompts": [{"prompt": f"Ask {i}", "completion": f"Reply {i} "} for i in range(40)],
    "aya": [{"inputs": f"Ask {i}", "targets": f"Reply {i}", "language_code": ("swh", "tel")[i % 2]} for i in range(80)],
    "alpaca": [{"instruction": f"Ask {i}", "input": "this", "output": f"Reply {i}"} for i in range(40)],
    "chat": [{"messages": [{"role": "system", "content": "-"}, {"role": "user", "content": f"Ask {i}"},
                           {"role": "assistant", "content": f"Reply {i}"}]} for i in range(40)],
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_sets(data, name):
    write(data / f"{name}.jsonl", FOREIGN[name])
    rows = training_rows([str(data / f"{name}.jsonl")], LOCAL, "sw", 1000, 1)
    assert rows == training_rows([str(data / f"{name}.jsonl")], LOCAL, "sw", 1000, 1)
    held_out = training_rows([str(data / f"{name}.jsonl")], LOCAL, "sw", 1000, 1, held_out=True)
    assert len(rows) + len(held_out) == 40 and 0 < len(held_out) < 10
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in held_out}
    end = "\nthis\n" if name == "alpaca" else "\n"
    for row in rows:
        number = row["completion"].removeprefix("Reply ")
        assert row == {"prompt": f"Ask {number}{end}", "completion": f"Reply {number}"}
        assert name != "aya" or int(number) % 2 == 0


def test_math_rows_of_a_foreign_set_read_like_exemplars(data):
    write(data / "orca.jsonl", [{"question": f"How many is {i}?", "answer": f"It is {i}."} for i in range(20)])
    rows = training_rows([str(data / "orca.jsonl")], LOCAL, "math", 5, 1)
    number = rows[0]["completion"].removeprefix(" It is ").rstrip(".")
    assert rows[0]["prompt"] == f"Question: How many is {number}?\nStep-by-Step Answer:" and len(rows) == 5


@pytest.mark.parametrize(
    ("completion", "steps"),
    [("2 + 3 = 5 . #### 5", "2 + 3 = 5 . ####"), ("It is 5. The answer is 5", "It is 5. The answer is"), (" 5", "")],
)
def test_the_final_number_apart(completion, steps):
    row = split_final_number({"prompt": "How many?", "completion": completion})
    assert row == {"prompt": f"How many?{steps}", "completion": " 5"}


def test_sets_are_mixed_by_weight(data):
    for letter in "ab":
        write(data / f"{letter}-sw.jsonl", [{"prompt": f"{letter} {i}", "completion": "x"} for i in range(500)])
    sets = [str(data / "a-{language}.jsonl:3"), str(data / "b-{language}.jsonl"), "own:0.5"]
    rows = training_rows(sets, LOCAL, "sw", 90, 1)
    n_rows = {letter: sum(row["prompt"].startswith(letter) for row in rows) for letter in "ab"}
    assert n_rows == {"a": 60, "b": 20} and len(rows) == 90
    assert rows != training_rows(sets, LOCAL, "sw", 90, 2)
    firsts = [row["prompt"][0] for row in rows[:30]]
    assert {"a", "b"} < set(firsts), "they are shuffled"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            [{"text": "x"}],
            "rows.jsonl, row 1: found columns text, expected text in prompt and completion",
        ),
        ("rows.jsonl", [{"prompt": "x", "completion": None}], "row 1: found columns prompt, completion, expected text"),
        ("rows.jsonl", [{"messages": []}], "row 1: found columns messages"),
        ("rows.jsonl", [{"prompt": "x", "completion": " "}], "among its 1 rows are no rows for expert sw"),
        ("rows.jsonl", [3], "expected a list of JSON objects"),
        ("rows.jsonl", [], "among its 0 rows are no rows for expert sw"),
        (
            "rows.jsonl",
            [{"inputs": "x", "targets": "y", "language_code": "tel"}],
            "among its 1 rows are no rows for expert sw",
        ),
        ("rows.json", {"a": 1}, "expected a list of JSON objects"),
        ("rows.jsonl:x", [], "the weight is 'x', expected a number above 0"),
        ("rows.jsonl:-1", [], "the weight is '-1'"),
        ("rows.jsonl:nan", [], "the weight is 'nan'"),
        ("nothing.jsonl", None, "nothing.jsonl: .*No such file"),
    ],
)
def test_sets_that_cannot_be_used(data, name, content, message):
    if content is not None:
        write(data / name.partition(":")[0], content)
    with pytest.raises(UserError, match=message) as error:
        training_rows([str(data / name)], LOCAL, "sw", 5, 1)
    assert "\n" not in str(error.value)


def test_no_rows_asked_for(data):
    with pytest.raises(UserError, match="0 rows are requested for expert math"):
        training_rows([], LOCAL, "math", 0, 1)


def test_a_set_of_english_is_a_math_experts(data):
    write(data / "rows.jsonl", [{"inputs": str(i), "targets": "y", "language_code": "eng"} for i in range(20)])
    assert training_rows([str(data / "rows.jsonl")], LOCAL, "math", 20, 1)


@pytest.mark.parametrize(
    "content", [{}, {"data": [{"title": "x"}]}, {"data": [article("x", "y", "z", "w") | {"paragraphs": [3]}]}]
)
def test_native_text_of_another_layout(data, content):
    write(data / "sw" / "tydiqa_swahili_train.json", content)
    with pytest.raises(UserError, match="sw: a file is not laid out as it was published"):
        native_rows("sw", 5, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [("orca-math", "expected own, gsm8k, a .jsonl file or owner/name@commit"), ("a/b", "owner/name@commit")],
)
def test_sets_without_a_commit(data, name, message):
    with pytest.raises(UserError, match=message):
        training_rows([name], LOCAL, "math", 5, 1)


def test_held_out_math_is_gsm8ks_test_set(data):
    write(data / "gsm8k" / "test.jsonl", [GSM8K[0] | {"question": "Only here?"}])
    assert [row["prompt"] for row in own_rows(LOCAL, "math", 5, 1, held_out=True)] == [
        "Question: Only here?\nStep-by-Step Answer:"
    ]
    trained = {row["prompt"] for row in own_rows(LAB, "math", 3000, 1)}
    assert not trained & {row["prompt"] for row in own_rows(LAB, "math", 250, 1, held_out=True)}


def test_missing_files_are_named(data, monkeypatch):
    write(data / "gsm8k" / "train.jsonl", [*GSM8K, {"question": "?", "answer": "No mark."}])
    with pytest.raises(UserError, match="train.jsonl, row 3: expected a question, and an answer with"):
        own_rows(LOCAL, "math", 1, 0)
    (data / "gsm8k" / "train.jsonl").unlink()
    with pytest.raises(UserError, match="train.jsonl: .*No such file"):
        own_rows(LOCAL, "math", 1, 0)
    monkeypatch.delenv("LAYERSWAP_DATA")
    with pytest.raises(UserError, match="LAYERSWAP_DATA is not set"):
        native_rows("sw", 1, 0)
