"""The command line: what it prints, and that bad input is one line and exit code 2."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest
import torch
import tqdm  # noqa: F401 (imported late by the command, when a test may be another user)
import yaml
from conftest import same_bits, tensors
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from layerswap import checkpoint, plan, references
from layerswap.__main__ import main, n_bytes
from layerswap.vectors import TaskVectors


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of a call."""
    capsys.readouterr()  # what others said before
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_plan_as_text_json_yaml_and_mergekit(capsys, tmp_path):
    _, text, _ = run(capsys, "plan", "--layers", 32)
    assert "LLLLLx" + 23 * "M" + "xLL" in text and "outside the layers: language weight 0.5" in text
    _, as_json, _ = run(capsys, "plan", "--layers", 8, "--bottom", 2, "--outside", 0, "--format", "json")
    made = plan.Plan.from_dict(json.loads(as_json))
    assert made.layer_map() == "LLxMMMxL" and made.outside == 0
    _, as_yaml, _ = run(capsys, "plan", "--layers", 8, "--bottom", 2, "--outside", 0, "--format", "yaml")
    assert plan.Plan.from_dict(yaml.safe_load(as_yaml)) == made
    for form in ("yaml", "json", "mergekit"):
        (tmp_path / form).write_text(run(capsys, "plan", "--layers", 8, "--bottom", 2, "--format", form)[1])
        again = run(capsys, "plan", "--plan", tmp_path / form)
        assert again[0] == 0 and "LLxMMMxL" in again[1]


def test_a_plan_of_task_vectors_is_read(capsys, tmp_path):
    (tmp_path / "ties.yml").write_text("name: TIES\nmethod: ties\ndensity: 0.2\n")
    code, text, _ = run(capsys, "plan", "--plan", tmp_path / "ties.yml")
    assert code == 0 and re.search(r"method +ties", text) and re.search(r"density +0.2", text)


def test_merge_inspect_verify(capsys, checkpoint_factory, tmp_path):
    math, language, base = (checkpoint_factory(name, i) for i, name in enumerate(("math", "language", "base")))
    options = ["--math", math, "--language", language, "--out", tmp_path / "out"]
    code, text, error = run(capsys, "merge", *options, "--donor", "language", "--shard-size", "20KB")
    assert (code, error) == (0, "") and "LxxL" in text and "38 tensors" in text
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    code, text, _ = run(capsys, "inspect", tmp_path / "out")
    assert code == 0 and "LlamaForCausalLM: 4 layers" in text and "merged by layerswap" in text
    assert re.search(r"4 layers +F32 +\[32, 32\] +model.layers.\*.self_attn.q_proj.weight", text)
    assert run(capsys, "verify", tmp_path / "out")[:2] == (0, f"{tmp_path / 'out'}: 38 tensors and all files are as "
                                                           "layerswap.json says\n")  # fmt: skip
    (tmp_path / "ta.yml").write_text(yaml.safe_dump(TaskVectors("TA", "task arithmetic", 0.5, 0.5).to_dict()))
    options[-1] = tmp_path / "added"
    assert run(capsys, "merge", *options, "--base", base, "--plan", tmp_path / "ta.yml", "--no-hash")[0] == 0
    assert tensors(tmp_path / "added").keys() == tensors(math).keys()


def test_adapters_are_folded_into_the_base(capsys, checkpoint_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "BUILD", tmp_path / "build")
    base, adapters, wholes = checkpoint_factory("base", 0), [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        adapters.append(tmp_path / f"adapter-{seed}")
        model.save_pretrained(adapters[-1])
        wholes.append(shutil.copytree(base, tmp_path / f"whole-{seed}"))
        model.merge_and_unload().save_pretrained(wholes[-1])
    for out, (math, language), more in (("ours", adapters, ["--base", base]), ("known", wholes, [])):
        options = ["merge", "--math", math, "--language", language, "--out", tmp_path / out, *more]
        assert run(capsys, *options)[::2] == (0, "")
    ours, known = tensors(tmp_path / "ours"), tensors(tmp_path / "known")
    assert ours.keys() == known.keys() and all(same_bits(ours[name], known[name]) for name in ours)
    code, _, error = run(capsys, "merge", "--math", *adapters[:1], "--language", adapters[1], "--out", tmp_path / "x")
    assert code == 2 and "is an adapter, expected a whole model" in error and not (tmp_path / "x").exists()


def test_widths_of_the_command_are_those_of_the_plan(capsys, experts, tmp_path):
    widths = [
        "--bottom",
        2,
        "--top",
        0,
        "--transition-bottom",
        1,
        "--transition-top",
        0,
        "--weight",
        0.25,
        "--outside",
        1,
    ]
    run(capsys, "merge", "--math", experts[0], "--language", experts[1], "--out", tmp_path / "out", *widths)
    made = checkpoint.read_json(tmp_path / "out" / "layerswap.json")["plan"]
    assert made["layers"] == [1, 1, 0.25, 0] and made["outside"] == 1


@pytest.mark.parametrize("text", ["1", "200MB", "1.5gb", "7 KB"])
def test_sizes(text):
    assert n_bytes(text) == {"1": 1, "200MB": 200_000_000, "1.5gb": 1_500_000_000, "7 KB": 7000}[text]


MERGE = ["merge", "--math", "{math}", "--language", "{language}", "--out", "{new}"]
EVAL = ["eval", "--model", "{math}", "--languages", "en", "--exemplars", "1"]
BAD = {
    "nothing": ([], "required: command"),
    "unknown command": (["swap"], "invalid choice: 'swap'"),
    "unknown option": ([*MERGE, "--botom", "1"], "unrecognized arguments: --botom 1"),
    "missing option": (MERGE[:3], "required: --language, --out"),
    "a width in words": ([*MERGE, "--bottom", "two"], "--bottom: invalid int value: 'two'"),
    "a negative width": ([*MERGE, "--bottom", "-1"], "bottom is -1"),
    "zones overlap": ([*MERGE, "--bottom", "4"], "zones overlap: bottom 4"),
    "a weight above 1": ([*MERGE, "--weight", "1.5"], "weight is 1.5"),
    "a weight that is no number": ([*MERGE, "--outside", "nan"], "outside is nan"),
    "no size": ([*MERGE, "--shard-size", "big"], "'big' is no size"),
    "a size of nothing": ([*MERGE, "--shard-size", "0"], "shard_size is 0"),
    "unknown donor": ([*MERGE, "--donor", "base"], "invalid choice: 'base'"),
    "no folder": ([*MERGE[:2], "nowhere", *MERGE[3:]], "nowhere: no such folder"),
    "a file for a folder": ([*MERGE[:2], "{math}/config.json", *MERGE[3:]], "config.json: no such folder"),
    "one folder twice": ([*MERGE[:4], "{math}", *MERGE[5:]], "both the math and the language model"),
    "target in use": ([*MERGE[:6], "{language}"], "exists already; a folder is never written over"),
    "target is a file": ([*MERGE[:6], "{math}/config.json"], "exists already; a folder is never written over"),
    "target below a file": ([*MERGE[:6], "{math}/config.json/out"], "config.json"),
    "target on a read-only system": ([*MERGE[:6], "/proc/out"], "/proc"),
    "no plan file": ([*MERGE, "--plan", "nowhere.yml"], "nowhere.yml"),
    "plan is no YAML": ([*MERGE, "--plan", "{math}/model.safetensors"], "model.safetensors"),
    "plan is a list": ([*MERGE, "--plan", "{list}"], "expected fields with values"),
    "plan of another kind": (
        [*MERGE, "--plan", "{math}/config.json"],
        "a plan has the fields name, layers",
    ),
    "plan and widths": ([*MERGE, "--plan", "{plan}", "--top", "1"], "--top and --plan .* expected one"),
    "plan of another depth": ([*MERGE, "--plan", "{plan}"], "plan 'five' has 5 layers, .* has 4"),
    "task vectors without a base": ([*MERGE, "--plan", "{ties}"], "base is None"),
    "a base without task vectors": ([*MERGE, "--base", "{language}"], "needs math, language; base is"),
    "plan with a number for a name": ([*MERGE, "--plan", "{number}"], "number: name is 2024, expected text"),
    "plan with a date for a name": ([*MERGE, "--plan", "{date}"], "date: name is datetime"),
    "plan with half a character": ([*MERGE, "--plan", "{half}"], "half: name is "),
    "plan that is nested without end": ([*MERGE, "--plan", "{nested}"], "nested: "),
    "plan with a month too many": ([*MERGE, "--plan", "{month}"], "month: month must be"),
    "no plan at all": ([*MERGE, "--plan", ""], "No such file|Is a directory"),
    "plan and depth": (["plan", "--plan", "{plan}", "--layers", "4"], "plan 'five' has 5 layers, --layers has 4"),
    "task vectors for mergekit": (["plan", "--plan", "{ties}", "--format", "mergekit"], "only slices are written"),
    "a size beyond all disks": ([*MERGE, "--shard-size", "9" * 400 + "GB"], "is too large"),
    "target within an expert": ([*MERGE[:6], "{math}/new"], "new: lies in the math model's folder"),
    "target is the current folder": ([*MERGE[:6], "."], "is the current folder, expected a new folder"),
    "no depth": (["plan"], "how many layers"),
    "two depths": (["plan", "--layers", "3", "--model", "x"], "not allowed with"),
    "too few layers": (["plan", "--layers", "3"], "zones overlap"),
    "inspect nothing": (["inspect", "nowhere"], "nowhere: no such folder"),
    "eval without a folder": ([*EVAL[:2], "nowhere", *EVAL[3:]], "nowhere: no such folder"),
    "eval without a model": (["eval", "--languages", "en"], "required: --model"),
    "eval of no language": ([*EVAL[:3], "--languages", ""], "language '' is not in MGSM, expected one of bn, de"),
    "eval of an unknown language": ([*EVAL[:4], "en,xx", *EVAL[5:]], "language 'xx' is not in MGSM"),
    "eval in an unknown style": ([*EVAL, "--style", "cot"], "invalid choice: 'cot'"),
    "eval in the lab's style": ([*EVAL, "--style", "lab"], "style lab is for the lab's own problems"),
    "eval of no problems": ([*EVAL, "--limit", "0"], "the number of problems is 0, expected 1 or more"),
    "eval with too many exemplars": ([*EVAL, "--exemplars", "9"], "9 exemplars asked for, en has 1"),
    "eval with less than none": ([*EVAL, "--exemplars", "-1"], "--exemplars is -1, expected 0 or more"),
    "eval in a chat with exemplars": ([*EVAL, "--style", "chat"], "1 exemplars asked for, style chat takes 0"),
    "eval of no tokens": ([*EVAL, "--max-new-tokens", "0"], "--max-new-tokens is 0, expected 1 or more"),
    "eval in no batches": ([*EVAL, "--batch-tokens", "0"], "--batch-tokens is 0, expected 1 or more"),
    "eval beyond the context": ([*EVAL, "--max-new-tokens", "125"], "2 of 2 prompts do not fit .* of 128 tokens"),
    "eval without a template": ([*EVAL[:5], "--style", "chat"], "has no chat template"),
    "eval without a tokenizer": ([*EVAL[:2], "{bare}", *EVAL[3:]], "bare: transformers cannot load its tokenizer"),
    "eval of what is no model": ([*EVAL[:2], "{odd}", *EVAL[3:]], "odd: transformers cannot load it"),
    "eval on no device": ([*EVAL, "--device", "mps"], "invalid choice: 'mps'"),
    "eval on less than no thread": ([*EVAL, "--threads", "-1"], "--threads is -1, expected 0 or more"),
    "eval of an empty file": ([*EVAL[:4], "ja", *EVAL[5:]], "mgsm ja from local holds no problems"),
    "eval of another shape": ([*EVAL[:2], "{wide}", *EVAL[3:]], "wide: transformers cannot load it"),
    "eval on no GPU": ([*EVAL, "--device", "cuda"], "device is cuda, but torch finds no GPU"),
    "eval in a bare hub": ([*EVAL, "--source", "juletxara/mgsm"], "expected juletxara/mgsm@<commit>"),
    "eval of torn data": ([*EVAL[:4], "de", *EVAL[5:]], "mgsm_de.tsv, line 2: found 1 fields"),
    "eval of data that is no text": ([*EVAL[:4], "fr", *EVAL[5:]], "mgsm_fr.tsv: 'utf-8' codec can't decode"),
    "eval of data that is not there": ([*EVAL[:4], "sw", *EVAL[5:]], "found 0 files"),
    "eval without its exemplars": ([*EVAL[:4], "es", *EVAL[5:]], "exemplars.json: not the published exemplars of es"),
    "samples into a folder": ([*EVAL, "--samples", "{math}"], "answers cannot be written there"),
    "verify what is no merge": (["verify", "{math}"], "layerswap.json: expected a JSON object"),
}


def published(folder):
    """A data folder with MGSM in English, and other languages that are broken in some way."""
    (folder / "mgsm").mkdir(parents=True)
    files = {
        "en": b"one plus two is\t3\ntwo plus two is\t4\n",
        "de": b"eins\t1\nzwei\n",
        "fr": b"\xff\t1\n",
        "es": b"u\t1\n",
    }
    files["ja"] = b""
    for code, content in files.items():
        (folder / "mgsm" / f"mgsm_{code}.tsv").write_bytes(content)
    shots = {"en": {"1": {"q": "Question: one is", "a": "Step-by-Step Answer: one . The answer is 1."}}}
    (folder / "mgsm/exemplars.json").write_text(json.dumps({"MGSM_EXEMPLARS": shots}))
    return folder


def test_eval_prints_counts_and_keeps_the_answers(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSWAP_DATA", str(published(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--model", *experts, "--languages", "en,en", "--exemplars", 1, "--max-new-tokens", 4]
    code, text, _ = run(capsys, *arguments)
    assert code == 0 and "the answers lie in answers.jsonl" in text
    table = [line.split() for line in text.splitlines()[:3]]
    assert table[0][:4] == ["model", "language", "k", "n"] and [row[0] for row in table[1:]] == list(map(str, experts))
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and len({row["weights"] for row in rows}) == 2 and {row["shots"] for row in rows} == {1}
    assert run(capsys, *arguments)[1] == text and len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    code = (
        "import sys; from layerswap.__main__ import main\n"
        "code = main(sys.argv[1:]); assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )  # what is finished needs no model
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    assert done.stdout == text


def test_another_model_at_the_same_path_never_gets_its_answers(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSWAP_DATA", str(published(tmp_path / "data")))
    samples, model = tmp_path / "answers.jsonl", tmp_path / "model"
    arguments = ["eval", "--model", model, "--languages", "en", "--exemplars", 0, "--max-new-tokens", 4]
    seen = []
    for change in ("none", "weights", "tokenizer", "end", "dtype"):
        if change in ("none", "weights"):
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(experts[change == "weights"], model)
        elif change == "tokenizer":
            path = model / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"add_prefix_space": True}))
        elif change == "end":
            (model / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
        options = ["--samples", samples, *(["--dtype", "bfloat16"] if change == "dtype" else [])]
        assert run(capsys, *arguments, *options)[0] == 0
        seen.append(len(samples.read_text().splitlines()))
    assert seen == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(capsys, experts, tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    math, language = (shutil.copytree(folder, tmp_path / folder.name) for folder in experts)
    if arguments[:1] == ["eval"]:
        monkeypatch.setenv("LAYERSWAP_DATA", str(published(tmp_path / "data")))
        shutil.copytree(math, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
        odd = shutil.copytree(math, tmp_path / "odd") / "config.json"
        wide = shutil.copytree(math, tmp_path / "wide") / "config.json"
        wide.write_text(json.dumps(json.loads(wide.read_text()) | {"intermediate_size": 40}))
        odd.write_text(odd.read_text().replace('"llama"', '"unheard of"'))
    files = {"list": "[1]", "plan": "name: five\nlayers: [0, 0, 0, 0, 0]\noutside: 0", "ties": "name: x\nmethod: ties"}
    files |= {"number": "{name: 2024, layers: [0], outside: 0}", "date": "{name: 2024-01-01, layers: [0], outside: 0}"}
    files |= {
        "half": '{"name": "\\ud800", "layers": [0], "outside": 0}',
        "nested": "[" * 5000,
        "month": "a: 2024-13-45",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    places = {
        "bare": tmp_path / "bare",
        "wide": tmp_path / "wide",
        "odd": tmp_path / "odd",
        "math": math,
        "language": language,
        "new": tmp_path / "new",
        **{name: tmp_path / name for name in files},
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, output, error = run(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2 and output == "" and re.search(message, error), error
    assert error.count("\n") == 1 and error.endswith("\n") and error.startswith("layerswap")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not (tmp_path / "new").exists()


def test_a_closed_folder_is_one_line(capsys, experts, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    for folder in (*tmp_path.parents, *experts[0].parents, *experts):  # pytest closes its folders to other users
        if folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o055)
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # nothing is closed to root
    try:
        found = run(capsys, "merge", "--math", experts[0], "--language", experts[1], "--out", closed / "out")
    finally:
        os.seteuid(user)
    assert found[0] == 2 and "Permission denied" in found[2] and found[2].count("\n") == 1
    assert not list(closed.iterdir())


def test_a_swap_does_not_load_torch(experts, tmp_path):
    code = (
        "import sys; from layerswap.__main__ import main\n"
        "code = main(sys.argv[1:]); assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    merging = ["merge", "--math", experts[0], "--language", experts[1], "--out", tmp_path / "out"]
    for arguments in (merging, ["plan", "--layers", 8], ["inspect", experts[0]], ["verify", tmp_path / "out"]):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)
