"""The command line: plan a swap, merge on disk, look at a checkpoint, check a merged one, score models on MGSM."""

import argparse
import json
import re
import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from layerswap import checkpoint, merge, mergekit, mgsm, paths, plan, provenance, references, vectors
from layerswap.paths import UserError

WIDTHS = ("bottom", "top", "transition_bottom", "transition_top")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
EXAMPLES = """examples:
  python -m layerswap plan --layers 32
  python -m layerswap merge --math experts/math --language experts/swahili --out merged
  python -m layerswap merge --math experts/math --language experts/swahili --out only-bottom \\
      --bottom 5 --top 0 --transition-bottom 0 --transition-top 0 --outside 0
  python -m layerswap merge --math experts/math --language experts/swahili --base llama --plan ties.yml --out ties
  python -m layerswap inspect merged
  python -m layerswap verify merged
  python -m layerswap eval --model merged experts/math --languages sw,te --style native_cot --limit 100

A model (MODEL) is a folder of safetensors, a LoRA adapter's folder (with --base), a .gguf file, or owner/name@revision
on the hub. A plan file (YAML or JSON) holds name, layers (the language expert's weight in each layer, from the bottom
up) and outside (its weight in embeddings, final norm and head); or name, method (task arithmetic, ties), math,
language, density and scale; or a mergekit configuration of passthrough or linear slices over the two experts.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def n_bytes(text):
    """Bytes of "200MB", "5GB", "1000000" (decimal units)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B|)", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected one like 200MB or 5GB")
    size = float(found[1]) * UNITS[found[2].upper()]
    if size >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:20]}... is too large")
    return int(size)


def parser():
    top = Parser(prog="layerswap", description=__doc__, epilog=EXAMPLES,
                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True)
    swap = argparse.ArgumentParser(add_help=False)
    zones = swap.add_argument_group("the layer swap", "a width that is not given is the paper's, scaled to the depth")
    for width in WIDTHS:
        zones.add_argument("--" + width.replace("_", "-"), type=int, metavar="N", help=f"layers of zone {width}")
    zones.add_argument("--weight", type=float, help="the language expert's weight in the transition zone (0.5)")
    zones.add_argument("--outside", type=float, help="its weight outside the layers (0.5)")
    zones.add_argument("--plan", metavar="FILE", help="a plan file instead of these")

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
    command.add_argument("--shard-size", type=n_bytes, default="5GB", metavar="SIZE", help="of the largest file (5GB)")
    command.add_argument("--link", action="store_true", help="hard links for files that are wholly one expert's")
    command.add_argument("--no-hash", action="store_true", help="no sha256 in the manifest: faster, not verifiable")

    command = commands.add_parser("inspect", help="what a checkpoint holds, from its headers")
    command.add_argument("folder", metavar="DIR")
    command = commands.add_parser("verify", help="check a merged checkpoint against its manifest")
    command.add_argument("folder", metavar="DIR")

    command = commands.add_parser(
        "eval", help="score models on MGSM", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.add_argument("--model", metavar="MODEL", nargs="+", required=True, help="models")
    command.add_argument("--base", metavar="MODEL", help="the base of those that are adapters")
    command.add_argument("--languages", metavar="sw,te", required=True, help="of MGSM's eleven, with commas")
    command.add_argument("--style", choices=mgsm.STYLES, default="native_cot", help="of the prompts")
    command.add_argument("--source", metavar="WHERE", default="local",
                         help="local or rev2 (mgsm/ or mgsm_rev2/ below LAYERSWAP_DATA), lab, or a hub id with its "
                              "commit, such as juletxara/mgsm@<commit>")  # fmt: skip
    command.add_argument("--exemplars", type=int, metavar="N", help="solved problems in a prompt (8, in a chat 0)")
    command.add_argument("--limit", type=int, metavar="N", help="problems a language (all)")
    command.add_argument("--max-new-tokens", type=int, default=320, metavar="N", help="tokens of an answer")
    command.add_argument("--batch-tokens", type=int, default=16384, metavar="N", help="tokens of a batch")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the model runs")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's own choice)")
    command.add_argument("--samples", metavar="FILE", default="answers.jsonl", help="where the answers are kept")
    return top


def chosen_plan(options, n_layers):
    """The plan of the options. UserError if they contradict each other or give no depth."""
    given = {name: getattr(options, name) for name in (*WIDTHS, "weight", "outside")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.plan is None:
        if n_layers is None:
            raise UserError("how many layers? expected --layers N, --model DIR or --plan FILE")
        return plan.layer_swap(n_layers, **plan.widths(n_layers) | given)
    if given:
        raise UserError(f"--{min(given).replace('_', '-')} and --plan {options.plan} are given, expected one of them")
    data = plan.read_yaml(options.plan)
    try:
        if "merge_method" in data:
            return mergekit.from_mergekit(data, options.math, options.language, name=Path(options.plan).stem)
        return (vectors.TaskVectors if "method" in data else plan.Plan).from_dict(data)
    except UserError as error:
        raise UserError(f"{options.plan}: {error}") from None


def found(name, base=None):
    """The folder of a model on the command line: a plain folder is itself, as it was written."""
    path, base = Path(name), None if base is None else Path(base).absolute()
    if path.suffix == ".gguf" or (path / "adapter_config.json").is_file():
        return str(references.model(path.absolute(), base))
    return name if path.exists() or not references.HUB.fullmatch(name) else str(references.model(name, base))


def show_plan(options):
    where = "--layers" if options.model is None else options.model
    n_layers = options.layers if options.model is None else checkpoint.layer_count(options.model)
    made = chosen_plan(options, n_layers)
    if n_layers is not None:
        made.check_depth(n_layers, where)
    if options.format == "text":
        print(described(made))
    elif options.format == "json":
        print(json.dumps(made.to_dict()))
    else:
        import yaml  # here, for the speed of the command line

        kit = options.format == "mergekit"
        data = mergekit.to_mergekit(made, options.math, options.language, "bfloat16") if kit else made.to_dict()
        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")


def described(made):
    """A plan as text: the layer map of a swap, the fields of task vectors."""
    if len(made.roles) > 2:
        return "\n".join(f"{field:9} {value}" for field, value in made.to_dict().items())
    letters = made.layer_map()
    mixed = sorted({w for w in made.layers if 0 < w < 1})
    key = "L language expert, M math expert" + (", x language weight " + ", ".join(map(str, mixed)) if mixed else "")
    lines = [made.name, f"{letters}   (layer 0 to {len(letters) - 1}: {key})"]
    return "\n".join([*lines, f"outside the layers: language weight {made.outside}"])


def do_merge(options):
    base = options.base and found(options.base)
    math, language = found(options.math, base), found(options.language, base)
    made = chosen_plan(options, checkpoint.layer_count(math))
    if (math, language) != (options.math, options.language) and "base" not in made.roles:
        base = None  # it was there for the adapters
    with bar(math, "merging") as progress:
        manifest = merge.merge(
            math, language, made, options.out, base=base, donor=options.donor,
            shard_size=options.shard_size, link=options.link, hashing=not options.no_hash, progress=progress,
        )  # fmt: skip
    counts = Counter(entry["source"] for entry in manifest["tensors"].values())
    print(described(made))
    print(
        f"{options.out}: {sum(counts.values())} tensors, " + ", ".join(f"{n} from {role}" for role, n in counts.items())
    )


@contextmanager
def bar(folder, what):
    """A function that is told bytes done: it draws a bar over a checkpoint's bytes, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda n_bytes: None
        return
    from tqdm import tqdm  # here, for the speed of the command line

    total = sum(tensor.n_bytes for tensor in checkpoint.read_header(folder).values())
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False) as drawn:
        yield drawn.update


def inspect(options):
    folder = Path(options.folder)
    header, layers = checkpoint.read_header(folder), checkpoint.layer_count(folder)
    config = checkpoint.read_json(folder / "config.json")
    files = {tensor.file for tensor in header.values()}
    dtypes = Counter()
    for tensor in header.values():
        dtypes[tensor.dtype] += tensor.n_bytes // checkpoint.BYTES[tensor.dtype]
    numbers = ", ".join(f"{count / 1e6:,.1f} M {dtype}" for dtype, count in dtypes.most_common())
    named = config.get("architectures")
    print(f"{named[0] if isinstance(named, list) and named else 'unknown architecture'}: {layers} layers, {numbers},"
          f" {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB in {len(files)} file(s)")  # fmt: skip
    print(f"tokenizer: {len(checkpoint.read_vocabulary(folder))} entries")
    within = Counter()
    for name, tensor in header.items():
        layer = plan.layer_index(name)
        within[(plan.LAYER.sub(".layers.*.", name).lstrip("."), tensor.dtype, tensor.shape, layer is None)] += 1
    for (name, dtype, shape, outside), count in within.items():
        print(f"  {'outside' if outside else f'{count} layers':10} {dtype:5} {str(list(shape)):16} {name}")
    if (folder / provenance.MANIFEST).is_file():
        print(f"merged by layerswap: {json.dumps(checkpoint.read_json(folder / provenance.MANIFEST).get('plan'))}")


def verify(options):
    with bar(options.folder, "verifying") as progress:
        count = provenance.verify(options.folder, progress)
    print(f"{options.folder}: {count} tensors and all files are as {provenance.MANIFEST} says")


def evaluate(options):
    languages = list(dict.fromkeys(code.strip() for code in options.languages.split(",")))
    for name, least in (("max_new_tokens", 1), ("batch_tokens", 1), ("threads", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected {least} or more")
    n = options.exemplars if options.exemplars is not None else 0 if options.style == "chat" else 8
    if n < 0:
        raise UserError(f"--exemplars is {n}, expected 0 or more")
    tests = [(mgsm.load(options.source, code, limit=options.limit),
              mgsm.exemplars(options.source, code, n, options.style)) for code in languages]  # fmt: skip
    models, base = {}, options.base and found(options.base)
    for folder in dict.fromkeys(found(name, base) for name in options.model):
        whole = plan.uniform(checkpoint.layer_count(folder), 0.0, folder)
        digests = dict.fromkeys(("math", "language"), provenance.model_digest(folder))
        weights = provenance.merge_key(digests, whole, f"torch.{options.dtype}")
        models[whole] = paths.digest([weights, provenance.reading_digest(folder)])

    from layerswap import evaluate  # here, for the speed of the command line

    frames = []
    for whole, key in models.items():
        condition = whole.name, key, cache(partial(load, whole, options))
        frames += [evaluate.evaluate([condition], problems, shots, options.samples, style=options.style,
                                     max_new_tokens=options.max_new_tokens, batch_tokens=options.batch_tokens)
                   for problems, shots in tests]  # fmt: skip
    table = evaluate.counts(evaluate.pd.concat(frames, ignore_index=True)).rename(columns={"condition": "model"})
    print(table.round(4).to_string(index=False))
    print("accuracy: exact match with its 95 % interval (Wilson); nll: loss of the bare answer, nats")
    print(f"the answers lie in {options.samples}")


def load(whole, options):
    """(model, tokenizer) of the folder that a plan is named after."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from layerswap.resident import Resident, load_tokenizer

    disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    alone = Resident(whole.name, whole.name, device=options.device, dtype=getattr(torch, options.dtype))
    return alone.apply(whole), load_tokenizer(whole.name)


COMMANDS = {"plan": show_plan, "merge": do_merge, "inspect": inspect, "verify": verify, "eval": evaluate}


def main(arguments=None):
    """The command line; bad input exits with 2 and one line."""
    options = parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except (UserError, OSError) as error:
        print(f"layerswap: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "the answers so far are kept" if options.command == "eval" else "nothing was written"
        print(f"layerswap: interrupted, {kept}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
