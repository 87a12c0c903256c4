"""A profile's cost before it is run: what is loaded, trained, merged and evaluated, with memory, disk and time.

Nothing is fetched and no model is loaded. Sizes come from files that are here; of a model on the hub that is not, from
the billions in its name. Times assume SPEED: they say hours or days, no more.
"""

import math
import re
from pathlib import Path

from layerswap import checkpoint, mgsm, references, sources
from layerswap.paths import BUILD, LAB, ROOT, UserError

# What a device does of its best, assumed: floating-point operations and bytes of memory a second.
SPEED = {"cpu": (2e11, 2e10), "cuda": (4e14, 2e12)}  # two cores of a server; an H100 in bfloat16
BYTES = {"float32": 4, "bfloat16": 2}
TRAINED = 16  # bytes a trained weight: itself, its gradient, two moments of AdamW, all in float32
QUESTION = 150  # tokens of a question, about
SMOLLM2 = "SmolLM2-135M"  # what the base smollm2 is, before it has been fetched
ROWS = 32  # answers written at once, about


def lines(profile, settings):
    """The estimate of a profile as text lines. settings: notebook -> parameters, as ``nb.settings`` gives them."""
    p = settings["01_experts"]
    sources.check_given(p["math_experts"], p["language_experts"], p["languages"], p["seeds"],
                        p["baselines"])  # fmt: skip
    n_weights, n_layers, where = size(p["base"])
    languages, seeds = p["languages"], len(p["seeds"])
    made = {"math": 0 if p["math_experts"] else seeds} | dict.fromkeys(languages, 0 if p["language_experts"] else seeds)
    if "frozen" in p["baselines"]:
        made |= {f"frozen {name}": seeds for name in ("math", *languages)}
    if "joint" in p["baselines"]:
        made |= {f"joint {code}": seeds for code in languages}
    given = [*p["math_experts"], *p["language_experts"]]
    processes = processes_of(p["launch"])
    if p["device"] not in SPEED or any(q["eval_dtype"] not in BYTES for q in settings.values()):
        raise UserError(
            f"device is {p['device']!r}, eval_dtype {p['eval_dtype']!r}: expected {[*SPEED]} and {[*BYTES]}"
        )
    chosen, most = settings["05_mgsm"]["n_validation"], 250 - mgsm.VALIDATION
    if chosen and p["source"] != "lab" and settings["05_mgsm"]["n_problems"] > most:
        raise UserError(f"05_mgsm: n_problems is above {most}, but MGSM's last {mgsm.VALIDATION} are its validation"
                        " problems; lower n_problems, or set n_validation to 0")  # fmt: skip
    flops, bandwidth = SPEED[p["device"]]

    gb = lambda n_bytes: f"{n_bytes / 1e9:,.1f} GB"  # noqa: E731
    text = [f"profile {profile}: {n_weights / 1e6:,.1f} million weights ({where}); nothing is fetched or run by this"]
    text.append(f"load       base {p['base']}" + "".join(f"\n           expert {each}" for each in given))
    fetched = [each for each in (p["base"], *given) if references.HUB.fullmatch(each) and not cached(each)]
    disk = 2 * n_weights * len(fetched)
    text.append(f"           {len(fetched)} model(s) to fetch from the hub, about {gb(disk)} in bfloat16")

    seconds = 0.0
    stored = (2 if p["lora_rank"] else 4) * n_weights
    for name, count in made.items():
        kinds = ("math", "language") if "joint" in name else ("math",) if "math" in name else ("language",)
        steps = sum(p[f"{kind}_steps"] for kind in kinds)
        tokens = steps * p["batch_size"] * p["max_length"]
        sets = ", ".join(each for kind in kinds for each in p[f"{kind}_data"]) or f"{p['source']}'s own text"
        if count:
            how = f"LoRA of rank {p['lora_rank']}" if p["lora_rank"] else "all weights"
            text.append(f"train      {count} {name} expert(s), {how}: {steps} steps of {p['batch_size']} rows, at most"
                        f" {tokens / 1e6:,.1f} M tokens each, on {sets}")  # fmt: skip
            seconds += count * (4 if p["lora_rank"] else 6) * n_weights * tokens / flops / processes
            disk += count * stored
    if any(made.values()):
        memory = (4 if p["lora_rank"] else TRAINED) * n_weights
        disk += 2 * memory  # two checkpoints of a training
        spread = f", over {processes} processes" if processes > 1 else ""
        text.append(f"           memory {gb(memory)}{spread}, and activations; at most {duration(seconds)}")
    disk += stored
    text.append(f"merge      one checkpoint on disk, {gb(stored)}; all others in memory")

    scored, total = answers(settings, n_layers), 0.0
    for name, (count, parameters) in scored.items():
        text.append(f"evaluate   {name}: at most {count:,} answers of at most {parameters['max_new_tokens']} tokens,"
                    f" {parameters['exemplars']} exemplars")  # fmt: skip
        tokens = QUESTION + parameters["max_new_tokens"]
        read = parameters["max_new_tokens"] / ROWS * BYTES[parameters["eval_dtype"]] * n_weights / bandwidth
        total += count * (2 * n_weights * tokens / flops + read)
    memory = 3.3 * BYTES[p["eval_dtype"]] * n_weights
    text.append(f"           memory {gb(memory)} (two experts and what is mixed of them) and the cache of a batch;"
                f" at most {duration(total)}")  # fmt: skip
    text.append(f"in all     disk {gb(disk)}, at most {duration(seconds + total)} on {p['device']}"
                f" (assuming {flops:.0e} operations and {bandwidth:.0e} bytes a second)")  # fmt: skip
    return text


def size(name):
    """(weights, layers, how that is known) of a base; of one that is not here 32 layers are taken for granted.

    UserError if its size cannot be known.
    """
    folder = {"lab": LAB / "base", "smollm2": BUILD / "smollm2" / "base"}.get(name) or cached(name) or ROOT / name
    if folder.is_dir():
        header = checkpoint.read_header(folder)
        return checkpoint.n_weights(header), checkpoint.layer_count(folder), "by its files"
    found = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)\s*([BM])\b", SMOLLM2 if name == "smollm2" else name, re.IGNORECASE)
    if not found:
        raise UserError(f"base {name}: is no folder here, and its name does not say how many weights it has")
    return int(found[1] or 1) * float(found[2]) * {"B": 1e9, "M": 1e6}[found[3].upper()], 32, "by its name"


def cached(name):
    """The folder of a hub reference in the hub's cache, or None."""
    from huggingface_hub import errors, snapshot_download

    hub = references.HUB.fullmatch(name)
    try:
        found = hub and Path(snapshot_download(hub["name"], revision=hub["revision"], local_files_only=True))
        return found if found and list(found.glob("*.safetensors")) else None
    except (errors.LocalEntryNotFoundError, ValueError):
        return None


def processes_of(launch):
    """The processes that accelerate's file starts."""
    import yaml

    if not launch:
        return 1
    try:
        return int(yaml.safe_load((ROOT / launch).read_text(encoding="utf-8"))["num_processes"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"launch {launch}: expected a file for accelerate with num_processes ({error!r})") from None


def answers(settings, n_layers):
    """Notebook -> (how many answers it asks for at most, its parameters); equal conditions are answered once."""
    counts, baselines = {}, len(settings["01_experts"]["baselines"])
    for name, p in settings.items():
        n_languages, n = len(p.get("languages", [1])), p["n_problems"]
        n_pairs = math.prod(sources.pair_counts(p.get("pairs", "1x1"), settings["01_experts"]["seeds"]))
        if name == "01_experts":  # English: base and math expert; else the language expert too
            counts[name] = (3 * n_languages + 2) * n
        elif name == "02_swap":
            counts[name] = 3 * n
        elif name == "03_transition":
            swept = 2 + 3 * len(p["zone_widths"]) + len(p["zone_weights"]) + 6
            counts[name] = n_pairs * n_languages * (2 * n + swept * p["n_sweep"])
        elif name == "04_top_bottom":
            single = 2 + (len(p["probed_layers"]) or n_layers)
            mapped = (len(p["map_widths"]) ** 2 + single) * p["n_map"]
            counts[name] = n_pairs * n_languages * ((6 + len(p["control_seeds"])) * n + mapped)
        elif name == "05_mgsm":
            grid = len(p["chosen_widths"]) ** 2 * len(p["chosen_outside"]) + 8 * p["generations"]
            methods = 10 + baselines + (0 if not p["n_validation"] else 2 if p["generations"] else 1)
            counts[name] = n_languages * (n_pairs * methods * n + grid * p["n_validation"])
    return {name: (count, settings[name]) for name, count in counts.items()}


def duration(seconds):
    """Seconds as minutes, hours or days, to two digits."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:,.0f} seconds"
