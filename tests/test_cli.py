"""The command line: what it prints, and that bad input is one line and exit code 2."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import same_bits, tensors, write_checkpoint
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from layerswap import checkpoints
from layerswap.checkpoints import adapters, loading
from layerswap.cli import main, parse_size
from layerswap.evaluation import AnswerCache
from layerswap.files import read_json
from layerswap.merging import Plan, TaskVectors


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of a call."""
    capsys.readouterr()  # forget what was printed before
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_plan_as_text_json_yaml_and_mergekit(capsys, tmp_path):
    _, text, _ = run(capsys, "plan", "--layers", 32)
    assert "LLLLLx" + 23 * "M" + "xLL" in text and "outside the layers: language weight 0.5" in text
    _, as_json, _ = run(capsys, "plan", "--layers", 8, "--bottom", 2, "--non-layer-weight", 0, "--format", "json")
    plan = Plan.from_dict(json.loads(as_json))
    assert plan.layer_map() == "LLxMMMxL" and plan.non_layer_weight == 0
    _, as_yaml, _ = run(capsys, "plan", "--layers", 8, "--bottom", 2, "--non-layer-weight", 0, "--format", "yaml")
    assert Plan.from_dict(yaml.safe_load(as_yaml)) == plan
    for form in ("yaml", "json", "mergekit"):
        (tmp_path / form).write_text(run(capsys, "plan", "--layers", 8, "--bottom", 2, "--format", form)[1])
        status, text, _ = run(capsys, "plan", "--plan", tmp_path / form)
        assert status == 0 and "LLxMMMxL" in text


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, "float32"), (torch.float16, "float16"), (None, None)])
def test_a_plan_for_mergekit_has_the_dtype_of_the_model(capsys, checkpoint_factory, dtype, expected):
    folder = checkpoint_factory("math", dtype=dtype or torch.bfloat16)
    if dtype is None:  # of two dtypes
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"].float()
        save_file(weights, folder / "model.safetensors")
    _, text, _ = run(capsys, "plan", "--model", folder, "--format", "mergekit")
    assert yaml.safe_load(text).get("dtype") == expected


def test_inspect_names_the_files_of_a_tokenizer_without_tokenizer_json(capsys, checkpoint_factory):
    folder = checkpoint_factory("math")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "\ntokenizer: tokenizer.model\n" in run(capsys, "inspect", folder)[1]
    (folder / "tokenizer.model").unlink()
    assert "\ntokenizer: none\n" in run(capsys, "inspect", folder)[1]


def test_a_plan_of_task_vectors_is_read(capsys, tmp_path):
    (tmp_path / "ties.yml").write_text("name: TIES\nmethod: ties\ndensity: 0.2\n")
    status, text, _ = run(capsys, "plan", "--plan", tmp_path / "ties.yml")
    assert status == 0 and re.search(r"method +ties", text) and re.search(r"density +0.2", text)


def test_merge_inspect_verify(capsys, checkpoint_factory, tmp_path):
    math, language, base = (checkpoint_factory(name, i) for i, name in enumerate(("math", "language", "base")))
    options = ["--math", math, "--language", language, "--out", tmp_path / "out"]
    status, text, error = run(capsys, "merge", *options, "--donor", "language", "--shard-size", "20KB")
    assert (status, error) == (0, "") and "LxxL" in text and "38 tensors" in text
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    status, text, _ = run(capsys, "inspect", tmp_path / "out")
    assert status == 0 and "LlamaForCausalLM: 4 layers" in text and "merged by layerswap" in text
    assert re.search(r"4 layers +F32 +\[32, 32\] +model.layers.\*.self_attn.q_proj.weight", text)
    assert run(capsys, "verify", tmp_path / "out")[:2] == (0, f"{tmp_path / 'out'}: 38 tensors and all files are as "
                                                           "layerswap.json says\n")  # fmt: skip
    (tmp_path / "ta.yml").write_text(yaml.safe_dump(TaskVectors("TA", "task arithmetic", 0.5, 0.5).to_dict()))
    options[-1] = tmp_path / "added"
    assert run(capsys, "merge", *options, "--base", base, "--plan", tmp_path / "ta.yml", "--no-hash")[0] == 0
    assert tensors(tmp_path / "added").keys() == tensors(math).keys()


def test_merge_says_what_differs_and_what_is_left_out(capsys, checkpoint_factory, tmp_path):
    math, language = checkpoint_factory("math", 1), checkpoint_factory("language", 2)
    config = read_json(language / "config.json") | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    (language / "config.json").write_text(json.dumps(config | {"unsloth_version": "1", "pad_token_id": 2}))
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    (math / "config.json").write_text(json.dumps(read_json(math / "config.json") | code))
    (math / "modeling_mine.py").write_text("")
    (math / "optimizer.pt").write_text("")
    weights = load_file(math / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, math / "model.safetensors")
    arguments = ["merge", "--math", math, "--language", language, "--out", tmp_path / "out"]
    status, _, error = run(capsys, *arguments)
    assert status == 2 and "config field rope_parameters.rope_theta is 10000.0 in" in error and error.count("\n") == 1
    status, text, error = run(capsys, *arguments, "--allow", "rope_theta")
    assert (status, error) == (0, "") and not (tmp_path / "out" / "modeling_mine.py").exists()
    for line in (
        "config field rope_parameters.rope_theta differs (10000.0 in math, 500000.0 in language): that of the math",
        "config field unsloth_version differs (missing in math, 1 in language): that of the math expert is taken",
        "config field pad_token_id differs (0 in math, 2 in language): that of the math expert is taken",
        "tensor lm_head.weight, which no loader reads, differs (there in math, missing in language): it is left out",
        "left out of the math expert's folder: modeling_mine.py (custom code, named by config.json)",
        "left out of the math expert's folder: optimizer.pt (weights or training state)",
    ):
        assert line in text
    arguments[-1] = tmp_path / "with code"
    status, text, _ = run(capsys, *arguments, "--allow", "rope_parameters", "--custom-code")
    assert (
        status == 0
        and "expert's folder: modeling_mine" not in text
        and (tmp_path / "with code" / "modeling_mine.py").exists()
    )


def test_adapters_are_merged_into_the_base(capsys, checkpoint_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "BUILD", tmp_path / "build")
    disable_progress_bar()  # as in a process of its own
    base, adapter_folders, models = checkpoint_factory("base", 0), [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        adapter_folders.append(tmp_path / f"adapter-{seed}")
        model.save_pretrained(adapter_folders[-1])
        models.append(shutil.copytree(base, tmp_path / f"model-{seed}"))
        model.merge_and_unload().save_pretrained(models[-1])
    for out, (math, language), options in (("ours", adapter_folders, ["--base", base]), ("peft's", models, [])):
        arguments = ["merge", "--math", math, "--language", language, "--out", tmp_path / out, *options]
        assert run(capsys, *arguments)[::2] == (0, "")
    ours, expected = tensors(tmp_path / "ours"), tensors(tmp_path / "peft's")
    assert ours.keys() == expected.keys() and all(same_bits(ours[name], expected[name]) for name in ours)
    arguments = ["merge", "--math", adapter_folders[0], "--language", adapter_folders[1], "--out", tmp_path / "x"]
    status, _, error = run(capsys, *arguments)
    assert status == 2 and "is an adapter, expected a whole model" in error and not (tmp_path / "x").exists()


def test_progress_bars_are_for_terminals(experts):
    code = (
        "import sys; from layerswap.cli import main; status = main()\n"
        "from transformers.utils import logging; sys.exit(status or logging.is_progress_bar_enabled())"
    )
    subprocess.run([sys.executable, "-c", code, "inspect", experts[0]], check=True, capture_output=True)


def test_widths_of_the_command_are_those_of_the_plan(capsys, experts, tmp_path):
    zones = "--bottom 2 --top 0 --transition-bottom 1 --transition-top 0 --weight 0.25 --non-layer-weight 1".split()
    run(capsys, "merge", "--math", experts[0], "--language", experts[1], "--out", tmp_path / "out", *zones)
    plan = read_json(tmp_path / "out" / "layerswap.json")["plan"]
    assert plan["layers"] == [1, 1, 0.25, 0] and plan["non_layer_weight"] == 1


@pytest.mark.parametrize("text", ["1", "200MB", "1.5gb", "7 KB"])
def test_sizes(text):
    assert parse_size(text) == {"1": 1, "200MB": 200_000_000, "1.5gb": 1_500_000_000, "7 KB": 7000}[text]


MERGE = ["merge", "--math", "{math}", "--language", "{language}", "--out", "{new}"]
PLAN_FILES = {
    "list": "[1]",
    "plan": "name: five\nlayers: [0, 0, 0, 0, 0]\nnon_layer_weight: 0",
    "ties": "name: x\nmethod: ties",
    "number": "{name: 2024, layers: [0], non_layer_weight: 0}",
    "date": "{name: 2024-01-01, layers: [0], non_layer_weight: 0}",
    "half": '{"name": "\\ud800", "layers": [0], "non_layer_weight": 0}',
    "nested": "[" * 5000,
    "bomb": "a: &a [x, x]\nb: &b [*a, *a]\n",
    "long": "{name: long, layers: [" + "1, " * 5000 + "1]}",
    "month": "a: 2024-13-45",
}
EVAL = ["eval", "--model", "{math}", "--languages", "en", "--exemplars", "1", "--max-new-tokens", "4"]
BAD = {
    "nothing": ([], "required: command"),
    "unknown command": (["swap"], "invalid choice: 'swap'"),
    "unknown option": ([*MERGE, "--botom", "1"], "unrecognized arguments: --botom 1"),
    "a former option": ([*MERGE, "--outside", "0.5"], "--outside is called --non-layer-weight now"),
    "a former option with a sign": (["plan", "--outside=0"], "--outside is called --non-layer-weight now"),
    "links": ([*MERGE, "--link"], "--link is gone: every merged checkpoint has files of its own"),
    "missing option": (MERGE[:3], "required: --language, --out"),
    "a width in words": ([*MERGE, "--bottom", "two"], "--bottom: invalid int value: 'two'"),
    "a negative width": ([*MERGE, "--bottom", "-1"], "bottom is -1"),
    "zones overlap": ([*MERGE, "--bottom", "4"], "zones overlap: bottom 4"),
    "a weight above 1": ([*MERGE, "--weight", "1.5"], "weight is 1.5"),
    "a weight that is no number": ([*MERGE, "--non-layer-weight", "nan"], "non_layer_weight is nan"),
    "no size": ([*MERGE, "--shard-size", "big"], "'big' is no size"),
    "a size of nothing": ([*MERGE, "--shard-size", "0"], "shard_size is 0"),
    "unknown donor": ([*MERGE, "--donor", "base"], "invalid choice: 'base'"),
    "no folder": ([*MERGE[:2], "nowhere", *MERGE[3:]], "nowhere: no such folder; a model on the hub is"),
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
    "plan of aliases in aliases": ([*MERGE, "--plan", "{bomb}"], r"bomb: alias \*a stands within what has an anchor"),
    "plan of long lists": ([*MERGE, "--plan", "{long}"], r"^.{,700}$"),
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
    "inspect nothing": (["inspect", "nowhere"], "nowhere: no such folder; a model on the hub is"),
    "eval without a folder": ([*EVAL[:2], "nowhere", *EVAL[3:]], "nowhere: no such folder; a model on the hub is"),
    "eval without a model": (["eval", "--languages", "en"], "required: --model"),
    "eval of no language": ([*EVAL[:3], "--languages", ""], "language '' is not in MGSM, expected one of bn, de"),
    "eval of an unknown language": ([*EVAL[:4], "en,xx", *EVAL[5:]], "language 'xx' is not in MGSM"),
    "eval in an unknown style": ([*EVAL, "--style", "cot"], "style is 'cot', expected one that MGSM has: native_cot"),
    "eval in the lab's style": ([*EVAL, "--style", "lab"], "style is 'lab', expected one that MGSM has: native_cot"),
    "eval of the lab in another": ([*EVAL, "--task", "lab", "--style", "chat"], "expected one that the lab has: lab"),
    "eval of an unknown task": (
        [*EVAL, "--task", "gsm"],
        "is 'gsm', expected lab, mgsm, rev2, msvamp, one-step, or",
    ),
    "eval of a former option": ([*EVAL, "--source", "rev2"], "--source is called --task now"),
    "eval of no problems": ([*EVAL, "--limit", "0"], "the number of problems is 0, expected 1 or more"),
    "eval with too many exemplars": ([*EVAL, "--exemplars", "9"], "9 exemplars are requested, en has 1"),
    "eval with less than none": ([*EVAL, "--exemplars", "-1"], "--exemplars is -1, expected 0 or more"),
    "eval in a chat with exemplars": ([*EVAL, "--style", "chat"], "1 exemplars are requested, style chat takes 0"),
    "eval of no tokens": ([*EVAL, "--max-new-tokens", "0"], "--max-new-tokens is 0, expected 1 or more"),
    "eval in no batches": ([*EVAL, "--batch-tokens", "0"], "--batch-tokens is 0, expected 1 or more"),
    "eval beyond the context": ([*EVAL, "--max-new-tokens", "125"], "2 of 2 prompts do not fit .* of 128 tokens"),
    "eval without a template": ([*EVAL[:5], "--style", "chat"], "has no chat template"),
    "eval without a tokenizer": (
        [*EVAL[:2], "{untokenized}", *EVAL[3:]],
        "untokenized: transformers cannot load its tokenizer",
    ),
    "eval of what is no model": ([*EVAL[:2], "{odd}", *EVAL[3:]], "odd: transformers cannot load it"),
    "eval on no device": ([*EVAL, "--device", "mps"], "invalid choice: 'mps'"),
    "eval on less than no thread": ([*EVAL, "--threads", "-1"], "--threads is -1, expected 0 or more"),
    "eval of an empty file": ([*EVAL[:4], "ja", *EVAL[5:]], "MGSM ja from local holds no problems"),
    "eval of another shape": ([*EVAL[:2], "{wide}", *EVAL[3:]], "wide: transformers cannot load it"),
    "eval on no GPU": ([*EVAL, "--device", "cuda"], "device is cuda, but torch finds no GPU"),
    "eval of no commit": ([*EVAL, "--task", "juletxara/mgsm"], "expected juletxara/mgsm@<commit>"),
    "eval of torn data": ([*EVAL[:4], "de", *EVAL[5:]], "mgsm_de.tsv, line 2: found 1 fields"),
    "eval of data that is no text": ([*EVAL[:4], "fr", *EVAL[5:]], "mgsm_fr.tsv: 'utf-8' codec can't decode"),
    "eval of data that is not there": ([*EVAL[:4], "sw", *EVAL[5:]], "found 0 files"),
    "eval without its exemplars": ([*EVAL[:4], "es", *EVAL[5:]], "exemplars.json: not the published exemplars of es"),
    "samples into a folder": ([*EVAL, "--samples", "{math}"], "answers cannot be written there"),
    "verify what is no merge": (["verify", "{math}"], "layerswap.json: no such file"),
}


def write_mgsm(folder, n_problems=2):
    """A data folder with MGSM in English, and other languages that are broken in some way."""
    problems = [f"{i} plus two is\t{i + 2}\n" for i in range(1, n_problems + 1)]
    (folder / "mgsm").mkdir(parents=True)
    files = {
        "en": "".join(problems).encode(),
        "de": b"eins\t1\nzwei\n",
        "fr": b"\xff\t1\n",
        "es": b"u\t1\n",
        "ja": b"",
    }
    for language, content in files.items():
        (folder / "mgsm" / f"mgsm_{language}.tsv").write_bytes(content)
    exemplars = {"en": {"1": {"q": "Question: one is", "a": "Step-by-Step Answer: one . The answer is 1."}}}
    (folder / "mgsm/exemplars.json").write_text(json.dumps({"MGSM_EXEMPLARS": exemplars}))
    return folder


def run_without_torch(*arguments):
    """Standard output of a call in a process of its own, which may not import torch or transformers."""
    code = (
        "import sys; from layerswap.cli import main\n"
        "status = main(); assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_eval_prints_a_table_and_keeps_the_answers(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--model", *experts, "--languages", "en,en", "--exemplars", 1, "--max-new-tokens", 4]
    status, text, _ = run(capsys, *arguments)
    assert status == 0 and "the answers lie in answers.jsonl" in text
    table = [line.split() for line in text.splitlines()[:3]]
    assert table[0][:4] == ["model", "language", "k", "n"] and [row[0] for row in table[1:]] == list(map(str, experts))
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and len({row["weights"] for row in rows}) == 2 and {row["shots"] for row in rows} == {1}
    assert run(capsys, *arguments)[1] == text and len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    assert run_without_torch(*arguments) == text  # finished answers need no model


MANNERS = ["renamed", "weights over weights", "with the same times", "another tokenizer"]


def replace_folder(folder, source, manner):
    """Put another model in the place of one."""
    if manner == "renamed":
        folder.rename(folder.with_name(f"{folder.name}-before"))
        shutil.copytree(source, folder)
    elif manner.startswith("w"):
        weights = folder / "model.safetensors"
        times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
        weights.write_bytes((source / weights.name).read_bytes())
        if manner == "with the same times":  # as cp -p and rsync --inplace -t of reproducible files
            os.utime(weights, ns=times)
    else:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] |= {"two": 8, "five": 5}  # words with each other's ids
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_20_random_replacements_leave_no_foreign_answers(capsys, experts, tmp_path, monkeypatch):
    """While two models are evaluated, one of their folders becomes another model, at any moment and in any manner.

    Whatever is kept is what the model of its key answers.
    """
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data", n_problems=9)))
    third = write_checkpoint(tmp_path / "third", 3)
    arguments = ["--languages", "en", "--exemplars", 0, "--max-new-tokens", 4, "--batch-tokens", 32]
    answers_of = {}
    for model in (*experts, third):
        assert run(capsys, "eval", "--model", model, *arguments, "--samples", tmp_path / "own.jsonl")[0] == 0
    for line in (tmp_path / "own.jsonl").read_text().splitlines():
        row = json.loads(line)
        answers_of[row["key"]] = row["text"], row["answer_nll"]
    assert len(answers_of) == 27

    rng, add, load, n_refused = random.Random(0), AnswerCache.add, loading.load_model, 0
    for i in range(20):
        folders = [
            shutil.copytree(expert, tmp_path / f"{name}-{i}") for expert, name in zip(experts, "ab", strict=True)
        ]
        moments = iter(range(1000))
        when, manner, folder = rng.randrange(22), rng.choice(MANNERS), rng.choice(folders)

        def next_moment(moments=moments, when=when, folder=folder, manner=manner):
            if next(moments) == when:
                replace_folder(folder, third, manner)

        def add_later(cache, row, next_moment=next_moment):
            next_moment()
            add(cache, row)

        def load_between(*details, next_moment=next_moment):
            next_moment()  # after the digest
            model = load(*details)
            next_moment()  # before the first answer
            return model

        monkeypatch.setattr(AnswerCache, "add", add_later)
        monkeypatch.setattr(checkpoints, "load_model", load_between)
        samples = tmp_path / f"answers-{i}.jsonl"
        status, _, error = run(capsys, "eval", "--model", *folders, *arguments, "--samples", samples)
        assert status in (0, 2) and ("was changed or replaced meanwhile" in error) == (status == 2), error
        n_refused += status == 2
        rows = [json.loads(line) for line in samples.read_text().splitlines()] if samples.is_file() else []
        assert [(row["text"], row["answer_nll"]) for row in rows] == [answers_of[row["key"]] for row in rows]
    assert n_refused > 5


def test_eval_checks_all_models_before_the_first_answer(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data")))
    good, bad = (shutil.copytree(experts[0], tmp_path / name) for name in ("good", "bad"))
    (good / "chat_template.jinja").write_text("{{ messages[0].content }}")
    arguments = ["eval", "--model", good, bad, "--languages", "en", "--samples", tmp_path / "answers.jsonl"]
    arguments += ["--max-new-tokens", 4]
    for style, problem in (("chat", "has no chat template"), ("chat", "the chat template fails (no roles)"),
                           ("direct", "2 of 2 prompts do not fit the model's context of 3 tokens"),
                           ("direct", "transformers cannot load its tokenizer")):  # fmt: skip
        if "fails" in problem:
            (bad / "chat_template.jinja").write_text("{{ raise_exception('no roles') }}")
        elif "context" in problem:
            path = bad / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 3}))
        elif "tokenizer" in problem:
            (bad / "tokenizer.json").write_text("{}")
        status, text, error = run(capsys, *arguments, "--style", style, "--exemplars", 0)
        assert status == 2 and problem in error and error.count("\n") == 1 and not text
        assert not (tmp_path / "answers.jsonl").exists()


def test_other_stop_strings_may_end_an_answer(capsys, experts, tmp_path, monkeypatch):
    """They are part of the key: no answer that another one ended is taken for theirs."""
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data")))
    samples = tmp_path / "answers.jsonl"
    arguments = [
        "eval",
        "--model",
        experts[0],
        "--languages",
        "en",
        "--exemplars",
        1,
        "--max-new-tokens",
        4,
        "--samples",
        samples,
    ]
    tables = [run(capsys, *arguments, *stop)[1].splitlines() for stop in
              ([], ["--stop", r"\n\n", "--stop", "Question:"], ["--stop", "two"], ["--stop", ""])]  # fmt: skip
    assert tables[1] == tables[0] and "two" in tables[2][1] and "stops" not in tables[3][0]
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 6 and len({row["key"] for row in rows}) == 6


def test_eval_says_what_ends_an_answer(capsys, experts, tmp_path, monkeypatch):
    """A blank line does not end an answer of a model with a chat template; the next question's header does."""
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data")))
    instruct = shutil.copytree(experts[0], tmp_path / "instruct")
    (instruct / "chat_template.jinja").write_text("{{ messages[0].content }}")
    arguments = ["eval", "--model", experts[0], instruct, "--languages", "en", "--samples", tmp_path / "answers.jsonl"]
    arguments += ["--max-new-tokens", 4]
    _, text, _ = run(capsys, *arguments, "--exemplars", 1)
    header, base, chat = text.splitlines()[:3]
    assert "stops" in header and "a blank line or Question:" in base
    assert "Question:" in chat and "blank line" not in chat
    _, text, _ = run(capsys, *arguments, "--style", "chat", "--model", instruct)
    assert "stops" not in text.splitlines()[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_terminal_can_be_printed_to(checkpoint_factory, tmp_path, encoding):
    """Names that the terminal's encoding does not have are written with escapes."""
    model, other = checkpoint_factory("modèle-ไทย"), checkpoint_factory("other", 1)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    arguments = ["--task", "lab", "--languages", "sw", "--limit", "1", "--max-new-tokens", "2"]
    for command in (["eval", "--model", model.name, *arguments], ["inspect", model.name], ["verify", model.name],
                    ["merge", "--math", model.name, "--language", other.name, "--out", f"{encoding}-ไทย"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "layerswap", *command], cwd=tmp_path, env=environment, capture_output=True
        )
        printed = (done.stdout + done.stderr).decode(encoding)
        assert done.returncode == (2 if command[0] == "verify" else 0) and "Traceback" not in printed, printed
        assert r"\u0e44\u0e17\u0e22" in printed or command[0] == "inspect"


def test_a_table_is_printed_where_names_are_bytes_that_are_no_text(checkpoint_factory, tmp_path):
    """As on a system without UTF-8; transformers loads no tokenizer there, so these answers are kept ones."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = ["eval", "--model", checkpoint_factory("modèle-ไทย").name, "--task", "lab", "--languages", "sw"]
    for variables in (os.environ, environment):
        done = subprocess.run(
            [sys.executable, "-m", "layerswap", *command, "--limit", "1", "--max-new-tokens", "2"],
            cwd=tmp_path, env=variables, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert r"mod\xe8le-\u0e44\u0e17\u0e22" in done.stdout


def test_eval_of_the_lab_takes_its_style_without_exemplars(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--model", experts[0], "--languages", "sw,te", "--limit", 2, "--max-new-tokens", 4]
    status, text, _ = run(capsys, *arguments, "--task", "lab")
    assert status == 0 and [line.split()[1:4:2] for line in text.splitlines()[1:3]] == [["sw", "2"], ["te", "2"]]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {(row["style"], row["shots"]) for row in rows} == {("lab", 0)}


def test_another_model_at_the_same_path_never_gets_its_answers(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data")))
    samples, model = tmp_path / "answers.jsonl", tmp_path / "model"
    arguments = ["eval", "--model", model, "--languages", "en", "--exemplars", 0, "--max-new-tokens", 4]
    n_answers = []
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
        n_answers.append(len(samples.read_text().splitlines()))
    assert n_answers == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(capsys, experts, tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, message = BAD[case]
    math, language = (shutil.copytree(folder, tmp_path / folder.name) for folder in experts)
    if arguments[:1] == ["eval"]:
        monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data")))
        shutil.copytree(math, tmp_path / "untokenized", ignore=shutil.ignore_patterns("token*"))
        odd = shutil.copytree(math, tmp_path / "odd") / "config.json"
        wide = shutil.copytree(math, tmp_path / "wide") / "config.json"
        wide.write_text(json.dumps(json.loads(wide.read_text()) | {"intermediate_size": 40}))
        odd.write_text(odd.read_text().replace('"llama"', '"unheard of"'))
    for name, text in PLAN_FILES.items():
        (tmp_path / name).write_text(text)
    names = ["math", "language", "new", "untokenized", "wide", "odd", *PLAN_FILES]
    places = {name: tmp_path / name for name in names}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, output, error = run(capsys, *(argument.format(**places) for argument in arguments))
    assert status == 2 and output == "" and re.search(message, error), error
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
    arguments = ["merge", "--math", experts[0], "--language", experts[1], "--out"]
    assert run(capsys, *arguments, tmp_path / "open")[0] == 0  # all that it imports is imported now
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # nothing is closed to root
    try:
        status, _, error = run(capsys, *arguments, closed / "out")
    finally:
        os.seteuid(user)
    assert status == 2 and "Permission denied" in error and error.count("\n") == 1
    assert not list(closed.iterdir())


def test_a_swap_does_not_load_torch(experts, tmp_path):
    run_without_torch("merge", "--math", experts[0], "--language", experts[1], "--out", tmp_path / "out")
    for arguments in (["plan", "--layers", 8], ["inspect", experts[0]], ["verify", tmp_path / "out"]):
        run_without_torch(*arguments)


# A command that says on standard output when it has begun, but for the interpreter's own start.
ANNOUNCED = """
import sys
from layerswap import cli

def announce(command):
    def announced(options):
        print("begun", flush=True)
        command(options)
    return announced

cli.COMMANDS = {name: announce(command) for name, command in cli.COMMANDS.items()}
sys.exit(cli.main())
"""


def start(*arguments, code=ANNOUNCED, **options):
    """A command in a process of its own that Ctrl-C reaches, even if these tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
    )  # fmt: skip


def wait_for(condition, process):
    """Wait until a condition is true; it must become so before the process ends."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def check_interrupted(process, what_is_kept):
    """Ctrl-C a process; it must end with 130 and one line that has the text ``what_is_kept``."""
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.count("\n") == 1, (process.returncode, error)
    assert error.startswith("layerswap: interrupted; ") and what_is_kept in error


@pytest.mark.parametrize("delay", [0, 0.2, 0.7, 1.5, 3])  # seconds: during imports, loading, answers
def test_eval_is_interrupted_at_any_moment(experts, tmp_path, delay):
    environment = os.environ | {"LAYERSWAP_DATA": str(write_mgsm(tmp_path / "data", n_problems=10_000))}
    arguments = ["eval", "--model", experts[0], "--languages", "en", "--exemplars", 0, "--max-new-tokens", 100]
    process = start(*arguments, cwd=tmp_path, env=environment)
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay)
    check_interrupted(process, "finished answers are kept")


def test_an_interrupted_eval_goes_on(capsys, experts, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSWAP_DATA", str(write_mgsm(tmp_path / "data", n_problems=400)))
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--model", experts[0], "--languages", "en", "--exemplars", 0, "--max-new-tokens", 10]
    samples = tmp_path / "answers.jsonl"
    process = start(*arguments, "--batch-tokens", 64)  # few problems at once, so that the first answers are soon there
    wait_for(lambda: samples.is_file() and samples.stat().st_size, process)
    check_interrupted(process, "the same command goes on")
    kept = samples.read_text().splitlines()
    assert run(capsys, *arguments)[0] == 0
    rows = samples.read_text().splitlines()
    assert 0 < len(kept) < 400 == len(rows) and rows[: len(kept)] == kept


@pytest.mark.parametrize("pause", [0, 0.001, 0.01])  # seconds
def test_every_answer_that_was_finished_is_kept(experts, tmp_path, pause):
    """However often Ctrl-C is pressed: what ended before the first time is in the file when the line is printed."""
    environment = os.environ | {"LAYERSWAP_DATA": str(write_mgsm(tmp_path / "data", n_problems=400))}
    code = f"""
import signal, sys, os, threading, time
from layerswap import cli
from layerswap.evaluation import AnswerCache
add, flush, finished = AnswerCache.add, AnswerCache.flush, []
def press():
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep({pause})
def announce(cache, row):
    cache.last_flush = float("inf")  # nothing is written while the answers come
    add(cache, row)
    with open("finished", "a") as file:
        print(row["key"], file=file, flush=True)
    finished.append(row)
    if len(finished) == 100:
        threading.Thread(target=press).start()
AnswerCache.add = announce
sys.exit(cli.main())
"""
    arguments = ["eval", "--model", experts[0], "--languages", "en", "--exemplars", 0, "--max-new-tokens", 10]
    process = start(*arguments, code=code, cwd=tmp_path, env=environment)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.count("\n") == 1 and "finished answers are kept" in error, error
    keys = {json.loads(line)["key"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()}
    assert len(keys) >= 100 and set((tmp_path / "finished").read_text().split()[:-1]) <= keys


def test_an_interrupted_merge_leaves_nothing(checkpoint_factory, tmp_path):
    math = checkpoint_factory("math", vocab_size=1_000_000, hidden_size=64)  # 256 MB
    language = shutil.copytree(math, tmp_path / "language", copy_function=os.link)
    process = start("merge", "--math", math, "--language", language, "--out", tmp_path / "out" / "merged")
    wait_for(lambda: list(tmp_path.glob("out/.merged.*/*.safetensors")), process)
    check_interrupted(process, "no unfinished folder is left")
    assert not list((tmp_path / "out").iterdir())


def test_reading_commands_are_interrupted(experts, tmp_path):
    """Each while it reads a file that has no end yet."""
    folder = shutil.copytree(experts[0], tmp_path / "model")
    (folder / "config.json").unlink()
    for arguments, pipe in (
        (["plan", "--plan", tmp_path / "plan.yml"], tmp_path / "plan.yml"),
        (["inspect", folder], folder / "config.json"),
        (["verify", tmp_path], tmp_path / "layerswap.json"),
    ):
        os.mkfifo(pipe)
        process = start(*arguments)
        with open(pipe, "w"):  # when the command reads it
            check_interrupted(process, "nothing was changed")


def pipe_without_reader():
    """A file to write to of which nobody will read anything."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("buffering", ["buffered", "unbuffered"])
@pytest.mark.parametrize("command", ["plan --layers 32", "plan --help", "inspect {folder}"])
def test_a_closed_pipe_is_silent(experts, command, buffering):
    environment = os.environ | {"PYTHONUNBUFFERED": "1" if buffering == "unbuffered" else ""}
    arguments = [sys.executable, "-m", "layerswap", *command.format(folder=experts[0]).split()]
    status = 0 if "--help" in arguments and buffering == "unbuffered" else 141  # argparse ignores errors of its help
    with pipe_without_reader() as pipe:
        done = subprocess.run(arguments, stdout=pipe, stderr=subprocess.PIPE, env=environment)
        assert done.returncode == status and done.stderr == b""
        done = subprocess.run(arguments, stdout=pipe, stderr=subprocess.STDOUT, env=environment)
        assert done.returncode == status
    done = subprocess.run(f"{shlex.join(arguments)} | head -1", shell=True, capture_output=True, env=environment)
    assert done.stdout.count(b"\n") == 1 and done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_below_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        arguments = [sys.executable, "-m", "layerswap", "plan", "--layers", "32"]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "layerswap: [Errno 28] No space left on device\n"
