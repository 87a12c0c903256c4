r"""The command line: plan a swap, merge on disk, inspect a checkpoint, verify a merged one, score models.

examples:
  layerswap plan --layers 32
  layerswap merge --math experts/math --language experts/swahili --out merged
  layerswap merge --math experts/math --language experts/swahili --out only-bottom \
      --bottom 5 --top 0 --transition-bottom 0 --transition-top 0 --non-layer-weight 0
  layerswap merge --math experts/math --language experts/swahili --base llama --plan ties.yml --out ties
  layerswap inspect merged
  layerswap verify merged
  layerswap eval --model merged experts/math --languages sw,te --style native_cot --limit 100
  layerswap eval --model merged --task msvamp --languages sw,bn,ja

A model (MODEL) is a folder of safetensors, a LoRA adapter's folder (with --base), a .gguf file, or owner/name@revision
on the hub. A plan file (YAML or JSON) holds name, layers (the language expert's weight in each layer, from the bottom
up) and non_layer_weight (its weight in embeddings, final norm and head); or name, method (task arithmetic, ties),
math, language, density and scale; or a mergekit configuration of passthrough or linear slices over the two experts.

Exit status: 0; 2 after bad input; 130 after Ctrl-C; 141 if standard output was closed early, as by `| head -1`.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from layerswap import analysis, checkpoints, evaluation, merging, run  # lazy: no torch before it is needed
from layerswap.errors import UserError
from layerswap.files import json_digest, read_json, read_yaml
from layerswap.terminal import run_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
N_EXEMPLARS = 8  # as MGSM publishes ...
ZERO_SHOT_STYLES = ("chat", "lab")  # ... but in these styles none
# What Ctrl-C leaves behind, by command.
INTERRUPTED = {
    "merge": "no unfinished folder is left, the same command starts again",
    "eval": "finished answers are kept in the file of --samples, the same command goes on from there",
    "verify": "nothing was changed, and not everything was verified",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options are written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class FormerOption(argparse.Action):
    """An option that there was in the past; ``const`` says what became of it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        parser.error(f"{option} is {self.const}")


def parse_size(text: str) -> int:
    """Bytes of "200MB", "5GB", "1000000" (decimal units)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B|)", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected one like 200MB or 5GB")
    size = float(match[1]) * UNITS[match[2].upper()]
    if size >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:20]}... is too large")
    return int(size)


def command_parser() -> Parser:
    """The parser of all commands."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = Parser(prog="layerswap", description=description, epilog=examples,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    swap = Parser(add_help=False)
    zones = swap.add_argument_group("the layer swap", "a width that is not given is the paper's, scaled to the depth")
    for width in merging.WIDTH_NAMES:
        zones.add_argument("--" + width.replace("_", "-"), type=int, metavar="N", help=f"layers of zone {width}")
    zones.add_argument("--weight", type=float, help="the language expert's weight in the transition zone (0.5)")
    zones.add_argument("--non-layer-weight", type=float, help="its weight in embeddings, final norm and head (0.5)")
    zones.add_argument("--plan", metavar="FILE", help="a plan file instead of these")
    add_former_option(zones, "--outside", "called --non-layer-weight now")

    command = commands.add_parser("plan", parents=[swap], help="print a plan's layer map")
    depth = command.add_mutually_exclusive_group()
    depth.add_argument("--layers", type=int, metavar="N", help="layers of the model")
    depth.add_argument("--model", metavar="DIR", help="a checkpoint that says how many")
    command.add_argument("--math", metavar="DIR", default="math", help="the math expert's name in mergekit's YAML")
    command.add_argument("--language", metavar="DIR", default="language", help="the language expert's name there")
    command.add_argument("--format", choices=["text", "json", "yaml", "mergekit"], default="text")

    command = commands.add_parser("merge", parents=[swap], help="write a merged checkpoint")
    command.add_argument("--math", metavar="MODEL", required=True, help="the math expert")
    command.add_argument("--language", metavar="MODEL", required=True, help="the language expert")
    command.add_argument("--base", metavar="MODEL", help="their base model, for adapters, task arithmetic and TIES")
    command.add_argument("--out", metavar="DIR", required=True, help="the new folder")
    command.add_argument("--donor", choices=["math", "language"], default="math",
                         help="whose config, tokenizer and chat template the result gets (math)")  # fmt: skip
    command.add_argument("--allow", metavar="FIELD", action="append", default=[],
                         help="a difference between the experts that is meant, such as a field of config.json; the "
                              "donor's value is taken (repeatable)")  # fmt: skip
    command.add_argument("--custom-code", action="store_true", help="copy the donor's code (*.py) too")
    command.add_argument("--shard-size", type=parse_size, default="5GB", metavar="SIZE",
                         help="of the largest file (5GB)")  # fmt: skip
    command.add_argument("--no-hash", action="store_true", help="no sha256 in the manifest: faster, not verifiable")
    add_former_option(command, "--link", "gone: every merged checkpoint has files of its own now")

    command = commands.add_parser("inspect", help="what a checkpoint holds, from its headers")
    command.add_argument("folder", metavar="DIR")
    command = commands.add_parser("verify", help="check a merged checkpoint against its manifest")
    command.add_argument("folder", metavar="DIR")

    command = commands.add_parser("eval", help="score models on a benchmark of word problems")
    command.add_argument("--model", metavar="MODEL", nargs="+", required=True, help="models")
    command.add_argument("--base", metavar="MODEL", help="the base of those that are adapters")
    command.add_argument("--task", metavar="NAME", default="mgsm",
                         help="mgsm (default), rev2 (its corrected translations), msvamp or one-step, from mgsm/, "
                              "mgsm_rev2/ or msvamp/ in LAYERSWAP_DATA; lab; or a hub id with its commit, such as "
                              "juletxara/mgsm@<commit> or msvamp:Mathoctopus/MSVAMP@<commit>")  # fmt: skip
    add_former_option(command, "--source", "called --task now")
    command.add_argument("--languages", metavar="sw,te", required=True, help="of the task's, with commas")
    command.add_argument("--style", metavar="STYLE",
                         help="of prompts: native_cot (default), en_cot, direct, chat; of the lab: lab")  # fmt: skip
    command.add_argument("--exemplars", type=int, metavar="N",
                         help=f"solved problems in a prompt ({N_EXEMPLARS}; in the styles chat and lab 0)")  # fmt: skip
    command.add_argument("--limit", type=int, metavar="N", help="problems a language (all)")
    command.add_argument("--max-new-tokens", type=int, default=320, metavar="N", help="tokens of an answer (320)")
    command.add_argument("--stop", metavar="TEXT", action="append",
                         help=r"what ends an answer instead of the style's own stop strings; \n is a line break, '' "
                              "nothing but the end token (repeatable)")  # fmt: skip
    command.add_argument("--batch-tokens", type=int, default=16384, metavar="N", help="tokens of a batch (16384)")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the model runs (cpu)")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
                         help="its numbers (float32)")  # fmt: skip
    command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's own choice)")
    command.add_argument("--samples", metavar="FILE", default="answers.jsonl",
                         help="where the answers are kept (answers.jsonl)")  # fmt: skip
    return parser


def add_former_option(parser: Any, option: str, fate: str) -> None:
    """Have a parser answer an option that there was in the past with what became of it."""
    parser.add_argument(option, action=FormerOption, nargs="?", const=fate, help=argparse.SUPPRESS)


def plan_from_args(options: argparse.Namespace, n_layers: int | None) -> "merging.MergePlan":
    """The plan of the options.

    Args:
        options: of ``plan`` or ``merge``.
        n_layers: of the models; None: not known.

    Raises:
        UserError: options that contradict each other, that are no plan, or that give no depth.
    """
    zones = {name: getattr(options, name) for name in (*merging.WIDTH_NAMES, "weight", "non_layer_weight")}
    zones = {name: value for name, value in zones.items() if value is not None}
    if options.plan is None:
        if n_layers is None:
            raise UserError("how many layers? expected --layers N, --model DIR or --plan FILE")
        return merging.layer_swap(n_layers, **merging.scaled_widths(n_layers) | zones)
    if zones:
        raise UserError(f"--{min(zones).replace('_', '-')} and --plan {options.plan} are given, expected one of them")
    data = read_yaml(options.plan)
    try:
        if "merge_method" in data:
            return merging.from_mergekit(data, options.math, options.language, name=Path(options.plan).stem,
                                         base=getattr(options, "base", None), n_layers=n_layers)  # fmt: skip
        return merging.TaskVectors.from_dict(data) if "method" in data else merging.Plan.from_dict(data)
    except UserError as error:
        raise UserError(f"{options.plan}: {error}") from None


def resolve_argument(name: str, base: str | None = None) -> str:
    """The folder of a model on the command line; the name of a plain folder stays as it was written."""
    from layerswap.checkpoints.loading import HUB, is_adapter, resolve_model

    path, base_folder = Path(name), None if base is None else Path(base).absolute()
    if path.suffix.lower() == ".gguf" or is_adapter(path):
        return str(resolve_model(path.absolute(), base_folder))
    return name if path.exists() or not HUB.fullmatch(name) else str(resolve_model(name, base_folder))


def run_plan(options: argparse.Namespace) -> None:
    """Print a plan, as text or as a file of it."""
    n_layers = options.layers if options.model is None else checkpoints.layer_count(options.model)
    plan = plan_from_args(options, n_layers)
    if n_layers is not None:
        plan.check_depth(n_layers, "--layers" if options.model is None else options.model)
    if options.format == "text":
        print(describe_plan(plan))
    elif options.format == "json":
        print(json.dumps(plan.to_dict()))
    else:
        import yaml

        data = plan.to_dict()
        if options.format == "mergekit":
            header = checkpoints.read_header(options.model) if options.model else {}
            dtypes = {checkpoints.FLOAT_DTYPES.get(tensor.dtype) for tensor in header.values()}
            data = merging.to_mergekit(plan, options.math, options.language, dtypes.pop() if len(dtypes) == 1 else None)
        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")


def describe_plan(plan: "merging.MergePlan") -> str:
    """A plan as text: the layer map of a swap, the fields of task vectors."""
    if isinstance(plan, merging.TaskVectors):
        return "\n".join(f"{field:9} {value}" for field, value in plan.to_dict().items())
    letters = plan.layer_map()
    weights = sorted({weight for weight in plan.layers if 0 < weight < 1})
    key = "L language expert, M math expert"
    if weights:
        key += ", x language weight " + ", ".join(map(str, weights))
    return (
        f"{plan.name}\n{letters}   (layer 0 to {len(letters) - 1}: {key})\n"
        f"outside the layers: language weight {plan.non_layer_weight}"
    )


def run_merge(options: argparse.Namespace) -> None:
    """Write a merged checkpoint."""
    base = options.base and resolve_argument(options.base)
    math, language = resolve_argument(options.math, base), resolve_argument(options.language, base)
    plan = plan_from_args(options, checkpoints.layer_count(math))
    if (math, language) != (options.math, options.language) and "base" not in plan.roles:
        base = None  # it was there for the adapters
    with byte_progress(math, "merging") as progress:
        manifest = merging.merge(
            math, language, plan, options.out, base=base, donor=options.donor, allow=options.allow,
            custom_code=options.custom_code, shard_size=options.shard_size, hashing=not options.no_hash,
            progress=progress,
        )  # fmt: skip
    n_tensors = Counter(entry["source"] for entry in manifest["tensors"].values())
    print(describe_plan(plan))
    by_source = ", ".join(f"{count} from {source}" for source, count in n_tensors.items())
    print(f"{options.out}: {n_tensors.total()} tensors, {by_source}")
    if manifest["modules"]:
        listed = ", ".join(f"{module} ({count} tensors)" for module, count in manifest["modules"].items())
        print(f"no part of the text decoder, taken whole from the {options.donor} expert: {listed}")
    for description, values in manifest["differences"].items():
        places = ", ".join(f"{value} in {role}" for role, value in values.items())
        is_left_out = description.startswith("tensor ")
        fate = "it is left out" if is_left_out else f"that of the {options.donor} expert is taken"
        print(f"{description} differs ({places}): {fate}")
    for name, reason in manifest["left_out"].items():
        print(f"left out of the {options.donor} expert's folder: {name} ({reason})")
    if manifest["unloaded"]:
        names = f"{manifest['unloaded'][0]} and {len(manifest['unloaded']) - 1} more"
        print(f"merged like the rest, though the model in config.json does not load them: {names}")


@contextmanager
def byte_progress(folder: str, description: str) -> Iterator[Callable[[int], object]]:
    """A function to call with the bytes done: it draws a bar over a checkpoint's bytes, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda n_bytes: None
        return
    from tqdm import tqdm

    total = sum(tensor.n_bytes for tensor in checkpoints.read_header(folder).values())
    with tqdm(total=total, desc=description, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update


def run_inspect(options: argparse.Namespace) -> None:
    """Print what a checkpoint holds: architecture, size, tokenizer, tensors (those of all layers on one line)."""

    folder = Path(options.folder)
    header, layers = checkpoints.read_header(folder), checkpoints.decoder_layers(folder)
    files = {tensor.file for tensor in header.values()}
    n_weights: Counter[str] = Counter()
    for tensor in header.values():
        n_weights[tensor.dtype] += prod(tensor.shape)
    by_dtype = ", ".join(f"{count / 1e6:,.1f} M {dtype}" for dtype, count in n_weights.most_common())
    architectures = read_json(folder / "config.json").get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else "unknown architecture"
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{architecture}: {layers.count} layers, {by_dtype}, {megabytes:,.1f} MB in {len(files)} file(s)")
    vocabulary, has_entries = checkpoints.read_vocabulary(folder), (folder / "tokenizer.json").is_file()
    print(f"tokenizer: {f'{len(vocabulary)} entries' if has_entries else ', '.join(vocabulary) or 'none'}")
    shapes: Counter[tuple[Any, ...]] = Counter()
    for name, tensor in header.items():
        layer = layers.index(name)
        place = "no layer" if layers.is_text(name) else "apart"  # from the text decoder
        if layer is not None:
            name, place = name.replace(f"{layers.prefix}{layer}.", f"{layers.prefix}*.", 1), ""
        shapes[name, tensor.dtype, tensor.shape, place] += 1
    for (name, dtype, shape, place), count in shapes.items():
        print(f"  {place or f'{count} layers':10} {dtype:5} {str(list(shape)):16} {name}")
    if (folder / merging.MANIFEST).is_file():
        print(f"merged by layerswap: {json.dumps(read_json(folder / merging.MANIFEST).get('plan'))}")


def run_verify(options: argparse.Namespace) -> None:
    """Check a merged checkpoint against its manifest."""
    with byte_progress(options.folder, "verifying") as progress:
        n_tensors = merging.verify(options.folder, progress)
    print(f"{options.folder}: {n_tensors} tensors and all files are as {merging.MANIFEST} says")


def run_eval(options: argparse.Namespace) -> None:
    """Score models on a task and print the table; torch is imported only where an answer is missing."""
    languages = list(dict.fromkeys(code.strip() for code in options.languages.split(",")))
    for name, least in (("exemplars", 0), ("max_new_tokens", 1), ("batch_tokens", 1), ("threads", 0)):
        if (number := getattr(options, name)) is not None and number < least:
            raise UserError(f"--{name.replace('_', '-')} is {number}, expected {least} or more")
    task = run.find_task(options.task)
    style = options.style or task.styles[0]
    n_exemplars = options.exemplars
    if n_exemplars is None:
        n_exemplars = 0 if style in ZERO_SHOT_STYLES else N_EXEMPLARS
    for language in languages:
        task.check(language, style)
    problems = {language: task.problems(language, limit=options.limit) for language in languages}
    exemplars = {language: task.exemplars(language, n_exemplars, style) for language in languages}

    stops = options.stop and [text.replace(r"\n", "\n") for text in options.stop if text]
    digests, states, base = {}, {}, options.base and resolve_argument(options.base)
    for folder in dict.fromkeys(resolve_argument(name, base) for name in options.model):
        states[folder] = checkpoints.file_states(folder)  # before the digest
        weights = json_digest([f"torch.{options.dtype}", checkpoints.model_digest(folder)])  # as ``merge_key`` of one
        digests[folder] = json_digest([weights, checkpoints.tokenizer_digest(folder)])

    @cache
    def load_tokenizers() -> "dict[str, PreTrainedTokenizerBase]":
        """Those of all models. UserError unless every model can be given the prompts of every language."""
        tokenizers = {folder: checkpoints.load_tokenizer(folder) for folder in digests}
        for folder, tokenizer in tokenizers.items():
            config = checkpoints.parse_config(folder)
            for language in languages if config else ():  # that there is no such model, loading it says
                evaluation.check_prompts(config, tokenizer, task, problems[language], exemplars[language], style=style,
                                         max_new_tokens=options.max_new_tokens)  # fmt: skip
        return tokenizers

    def load(folder: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        tokenizers = load_tokenizers()  # before the first answer of the first model
        return load_for_eval(folder, states[folder], options), tokenizers[folder]

    import pandas as pd

    frames, answers = [], evaluation.AnswerCache(options.samples)
    try:
        for folder, digest in digests.items():
            check = partial(checkpoints.check_unchanged, folder, states[folder])
            has_template = checkpoints.has_chat_template(folder)
            name = os.fsencode(folder).decode(errors="backslashreplace")  # pandas takes no undecoded bytes
            model = evaluation.ScoredModel(name, digest, cache(partial(load, folder)), check, has_template)
            frames += [
                evaluation.evaluate([model], task, problems[language], exemplars[language], answers, style=style,
                                    max_new_tokens=options.max_new_tokens, batch_tokens=options.batch_tokens,
                                    stops=stops)
                for language in languages
            ]  # fmt: skip
    finally:
        answers.flush()  # whatever interrupted the evaluation's own
    table = analysis.summarize(pd.concat(frames, ignore_index=True)).rename(columns={"condition": "model"})
    print(table.round(4).to_string(index=False))
    print("accuracy: exact match with its 95 % interval (Wilson); nll: loss of the bare answer, nats")
    print(f"the answers lie in {options.samples}")


def load_for_eval(folder: str, states: "checkpoints.FileStates", options: argparse.Namespace) -> "PreTrainedModel":
    """The model of a folder. UserError if its files, the tokenizer's too, are not in these states any more."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = checkpoints.load_model(folder, getattr(torch, options.dtype), options.device)
    checkpoints.check_unchanged(folder, states)
    return model


COMMANDS = {"plan": run_plan, "merge": run_merge, "inspect": run_inspect, "verify": run_verify, "eval": run_eval}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, to its exit status.

    Args:
        arguments: None: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of the hub and of transformers

    def dispatch() -> int:
        options = command_parser().parse_args(arguments)
        COMMANDS[options.command](options)
        return 0

    return run_command(dispatch, INTERRUPTED.get(arguments[0] if arguments else "", "nothing was changed"))


if __name__ == "__main__":
    sys.exit(main())
