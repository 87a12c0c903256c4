"""Supervised fine-tuning of an expert through TRL: full or LoRA, on one device or many, resumed where it was cut off.

A finished expert lies beside the recipe that made it (base weights, rows, settings, versions) and its loss curve. The
same recipe is never trained twice; another recipe replaces the folder.
"""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from layerswap import checkpoint, paths, provenance, resident
from layerswap import rows as rows_module
from layerswap.paths import UserError, atomic_file, atomic_folder
from layerswap.plan import layer_index
from layerswap.rows import IGNORED, batches, encode, pack

CHECKPOINT_SECONDS = 300  # of training between two checkpoints
OUTSIDE = -1  # stands for embeddings, final norm and head in a list of layers


class StopAtNan(TrainerCallback):
    """Ends the training with a UserError at the first loss or gradient that is no number."""

    def on_log(self, args, state, control, logs, **kwargs):
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                hint = "lower the learning rate, or look for bad numbers in the base"
                raise UserError(f"fine-tuning: {name} is {logs[name]} at step {state.global_step}; {hint}")


class Keep(TrainerCallback):
    """A checkpoint every CHECKPOINT_SECONDS where the disk has room; it is marked once all of it is written."""

    def __init__(self):
        self.last = time.monotonic()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        due = time.monotonic() - self.last >= CHECKPOINT_SECONDS and state.global_step < state.max_steps
        due = due and shutil.disk_usage(args.output_dir).free > checkpoint_bytes(model)
        control.should_save = broadcast_object_list([due])[0]  # all processes save, or none

    def on_save(self, args, state, control, **kwargs):
        self.last = time.monotonic()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for file in [*folder.iterdir(), folder]:
                paths.sync(file)
            (folder / "complete").touch()


def checkpoint_bytes(model):
    """The size of a checkpoint: the weights that are saved, two moments of those that are trained, and some room."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    saved = trained if isinstance(model, PeftModel) else sum(parameter.numel() for parameter in model.parameters())
    return (4 * saved + 8 * trained) * 1.05 + 1e6


class Progress(TrainerCallback):
    """A bar over the steps where somebody looks: loss, tokens a second, time left."""

    def __init__(self, tokens):
        self.tokens = np.cumsum([0, *tokens])  # [steps + 1]: tokens before each step

    def on_train_begin(self, args, state, control, **kwargs):
        where = paths.shown() if state.is_world_process_zero else {"disable": True}
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step", **where)
        self.first, self.begun = state.global_step, time.monotonic()

    def on_log(self, args, state, control, logs, **kwargs):
        rate = (self.tokens[state.global_step] - self.tokens[self.first]) / (time.monotonic() - self.begun)
        self.bar.set_postfix_str(f"loss {logs.get('loss', math.nan):.3f}, {rate:,.0f} tok/s", refresh=False)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Trainer(SFTTrainer):
    """TRL's trainer on given ``parts``: lists of row indices, dealt to the processes in turn."""

    parts = ()

    def get_train_dataloader(self):
        mine = self.parts[self.args.process_index :: self.args.world_size]
        return DataLoader(self.train_dataset, batch_sampler=mine, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean loss of the completions' tokens over all parts of a step.

        TRL's own head scores prompts and padding too, at twice the time.
        """
        labels = inputs.pop("labels")[:, 1:]  # [rows, length - 1]
        scored = (labels != IGNORED).any(0).nonzero()[:, 0]  # positions before some completion's token
        logits = model(**inputs, use_cache=False, logits_to_keep=scored).logits.float()  # [rows, scored, vocabulary]
        targets = labels[:, scored].flatten()  # [rows * scored]
        total = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        return total * self.args.world_size / num_items_in_batch  # the processes' gradients are averaged


def finetune(
    base, rows, out, *, steps, learning_rate, batch_size, max_length, seed, threads, device="cpu", dtype="float32",
    lora_rank=0, lora_alpha=16.0, frozen=(), packing=False, micro_batch=0, launch="",
):  # fmt: skip
    """Fine-tune ``base`` on ``rows`` ({"prompt", "completion"}) and return the expert's folder ``out``.

    Loss on completions and their end of text only, the mean over a step's ``batch_size`` rows' tokens; AdamW without
    weight decay, gradients clipped to norm 1, linear decay after a tenth of the steps as warm-up. Rows longer than
    ``max_length`` tokens are left out; rows are repeated if ``steps`` need more of them. Weights are trained and saved
    in float32, whatever the base has: a light fine-tune moves many weights by less than a bfloat16 step. ``dtype``
    "bfloat16" lowers the arithmetic alone (autocast), for twice the speed on most machines.

    lora_rank: above 0, LoRA of that rank on all matrices of the layers; then ``out`` is an adapter, which
    ``references.model`` folds into the base. frozen: layers that are not trained, OUTSIDE for embeddings, final norm
    and head. packing: rows laid end to end instead of padded, the same loss. micro_batch: rows at once on a device
    (0: all); gradients are summed. launch: accelerate's YAML for several processes, which share each step's rows.

    Deterministic on a CPU at a fixed number of threads, also when it was killed and went on. UserError for bad rows or
    settings, a full disk and a loss that is no number; then no new expert is left, and one that was there stays.
    """
    settings = {
        "steps": steps, "learning_rate": learning_rate, "batch_size": batch_size, "max_length": max_length,
        "seed": seed, "threads": threads, "device": device, "dtype": dtype, "lora_rank": lora_rank,
        "lora_alpha": lora_alpha, "frozen": sorted(frozen), "packing": packing, "micro_batch": micro_batch,
    }  # fmt: skip
    out, header = Path(out), checkpoint.read_header(base)
    check_settings(base, settings, launch)
    encoded = encode(rows, resident.load_tokenizer(base), max_length)
    recipe = {
        "base": checkpoint.digest(base), "rows": paths.digest(encoded), "n_rows": len(encoded),
        "n_left_out": len(rows) - len(encoded), **settings, "launch": paths.file_digest(launch) if launch else "",
        "code": [paths.file_digest(path) for path in (__file__, rows_module.__file__)],
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")},
    }  # fmt: skip
    if (out / "recipe.json").is_file():
        if checkpoint.read_json(out / "recipe.json").get("recipe") == recipe:
            return out
    elif out.exists():
        raise UserError(f"{out}: exists and holds no recipe.json, so it was not made by fine-tuning; remove it first")
    if out.is_symlink():
        raise UserError(f"{out}: is a link, expected a folder that another expert may replace")
    if not lora_rank:
        paths.check_space(out, 4 * checkpoint.n_weights(header))
    scratch = out.with_name(f".{out.name}.training")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with paths.locked(scratch) as lock:
            job = {"base": str(base), "rows": encoded, "settings": settings}
            if not prepare(scratch, recipe, job):
                try:
                    launched(scratch, launch, lock) if launch else train(scratch)
                except UserError:
                    shutil.rmtree(scratch)  # the same rows and settings would fail again
                    raise
                gc.collect()  # the trainer holds its model in a circle, and the next one needs the memory
                torch.cuda.empty_cache()
            told = json.loads((scratch / "told.json").read_text(encoding="utf-8"))
            if out.exists():
                shutil.rmtree(out)
            with atomic_folder(out) as folder:
                for file in (scratch / "expert").iterdir():
                    os.replace(file, folder / file.name)
                with atomic_file(folder / "recipe.json") as file:
                    json.dump({"recipe": recipe, **told}, file, indent=1)
            shutil.rmtree(scratch)
    except BlockingIOError:
        raise UserError(f"{out}: another process is fine-tuning it") from None
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk or GPU: each library has its own
        told = f"{paths.one_line(error)}; run again, it goes on from its last checkpoint"
        raise UserError(f"{out}: {told}") from error
    return out


def check_settings(base, settings, launch):
    """UserError names the first setting that cannot be used."""
    config, n_layers = checkpoint.read_json(Path(base) / "config.json"), checkpoint.layer_count(base)
    context = config.get("max_position_embeddings") or math.inf
    for name, holds, expected in (
        ("steps", settings["steps"] >= 1, "1 or more"),
        ("batch_size", settings["batch_size"] >= 1, "1 or more"),
        ("threads", settings["threads"] >= 1, "1 or more"),
        ("learning_rate", 0 < settings["learning_rate"] < 1, "between 0 and 1"),
        ("max_length", 2 <= settings["max_length"] <= context, f"2 to the model's {context} tokens"),
        ("dtype", settings["dtype"] in ("float32", "bfloat16"), "float32 or bfloat16"),
        ("lora_rank", settings["lora_rank"] >= 0, "0 or more"),
        ("lora_alpha", 0 < settings["lora_alpha"] < math.inf, "above 0"),
        ("micro_batch", settings["micro_batch"] >= 0, "0 or more"),
        ("frozen", all(OUTSIDE <= layer < n_layers for layer in settings["frozen"]),
         f"layers 0 to {n_layers - 1}, or {OUTSIDE} for what is outside"),
        ("frozen", not {*range(n_layers)} <= {*settings["frozen"]} or not settings["lora_rank"], "a layer to train"),
        ("frozen", {*settings["frozen"]} < {OUTSIDE, *range(n_layers)}, "something to train"),
        ("device", settings["device"] in ("cpu", "cuda"), "cpu or cuda"),
        ("device", settings["device"] == "cpu" or torch.cuda.is_available(), "cpu, as torch finds no GPU here"),
    ):  # fmt: skip
        if not holds:
            raise UserError(f"fine-tuning: {name} is {settings[name]!r}, expected {expected}")
    if launch and not Path(launch).is_file():
        raise UserError(f"fine-tuning: launch is {str(launch)!r}, expected a file for accelerate")


def prepare(scratch, recipe, job):
    """Leave in ``scratch`` the job and, of an earlier try at this very recipe, its checkpoints.

    Returns whether that try had ended (its parent was killed while other processes went on).
    """
    path = scratch / "recipe.json"
    if not path.is_file() or checkpoint.read_json(path) != recipe:
        for stale in scratch.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for half in [each for each in scratch.glob("checkpoint-*") if not (each / "complete").is_file()]:
        shutil.rmtree(half)  # or it would count as one of those to keep
    for name, content in (("job.json", job), ("recipe.json", recipe)):
        with atomic_file(scratch / name) as file:
            json.dump(content, file)
    return (scratch / "told.json").is_file()


def launched(scratch, launch, lock):
    """``train`` in the processes that accelerate starts. UserError if one of them fails.

    They hold the lock too: should this process be killed, no other one trains there before they have ended.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    (scratch / "error").unlink(missing_ok=True)
    done = subprocess.run([*command, "-m", "layerswap.finetune", str(scratch)], pass_fds=[lock])
    if (scratch / "error").is_file():
        raise UserError((scratch / "error").read_text(encoding="utf-8"))
    if done.returncode:
        raise OSError(f"the processes of {launch} ended with status {done.returncode}")


def train(scratch):
    """Run the job that ``prepare`` left, from its last checkpoint if it has one.

    The model is left in ``scratch``/expert and, written last, the loss of each step in told.json.
    """
    job = json.loads((scratch / "job.json").read_text(encoding="utf-8"))
    base, encoded, chosen = job["base"], job["rows"], job["settings"]
    torch.set_num_threads(chosen["threads"])
    set_seed(chosen["seed"])  # before LoRA draws its matrices
    tokenizer, model = resident.load_tokenizer(base), resident.load(base, torch.float32)
    lora = adapter(checkpoint.read_header(base), chosen) if chosen["lora_rank"] else None
    for name, parameter in model.named_parameters():
        layer = layer_index(name)
        parameter.requires_grad_((OUTSIDE if layer is None else layer) not in chosen["frozen"])
    arguments = SFTConfig(
        str(scratch), max_steps=chosen["steps"], learning_rate=chosen["learning_rate"], lr_scheduler_type="linear",
        warmup_steps=chosen["steps"] // 10, weight_decay=0.0, max_length=None, seed=chosen["seed"],
        activation_checkpointing=False, bf16=chosen["dtype"] == "bfloat16", use_cpu=chosen["device"] == "cpu",
        save_strategy="no", save_total_limit=2, report_to="none", disable_tqdm=True, logging_steps=1,
        logging_nan_inf_filter=False, pad_to_multiple_of=None,
    )  # fmt: skip
    n_processes = arguments.world_size
    arguments._n_gpu = min(arguments._n_gpu, 1)  # or a second GPU would get half of each batch's tensors, cut wrongly
    n_parts = parts_of_a_step(len(encoded), n_processes, chosen)
    arguments.gradient_accumulation_steps = n_parts // n_processes
    lengths = [len(row["input_ids"]) for row in encoded]
    groups = batches(lengths, chosen["batch_size"], chosen["steps"], chosen["seed"], n_parts)
    told = [StopAtNan(), Keep(), Progress([sum(lengths[i] for i in group) for group in groups])]
    if chosen["packing"] and len(encoded) > 1:
        check_packing(model, sorted(encoded, key=lambda row: len(row["input_ids"]))[:2])
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(encoded), processing_class=tokenizer,
                      peft_config=lora, callbacks=told)  # fmt: skip
    trainer.parts = [part.tolist() for group in groups for part in np.array_split(group, n_parts)]
    if chosen["packing"]:
        trainer.data_collator = lambda rows: pack(rows, chosen["max_length"])
    trainer.remove_callback(PrinterCallback)
    complete = sorted(scratch.glob("checkpoint-*/complete"), key=lambda file: int(file.parent.name.split("-")[1]))
    trainer.train(resume_from_checkpoint=str(complete[-1].parent) if complete else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped) if n_processes > 1 else None
    if trainer.is_world_process_zero():
        shutil.rmtree(scratch / "expert", ignore_errors=True)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(scratch / "expert", state_dict=gathered)
        provenance.donate(
            base, scratch / "expert", "" if lora else "float32"
        )  # the trainer changed pad token and cache
        with atomic_file(scratch / "told.json") as file:
            json.dump({"processes": n_processes, "losses": losses}, file)


def check_packing(model, rows):
    """UserError unless two packed rows have the logits they have alone: not all models heed positions that restart."""
    packed = pack(rows, sum(len(row["input_ids"]) for row in rows))
    ids, positions = packed["input_ids"], packed["position_ids"]  # [1, length]
    first = positions[0].tolist().index(0, 1)  # where the second row begins
    with torch.inference_mode():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits  # [1, length, vocabulary]
        alone = [model(input_ids=part, use_cache=False).logits for part in (ids[:, :first], ids[:, first:])]
    if not torch.allclose(together, torch.cat(alone, 1), rtol=1e-3, atol=1e-3 * together.abs().max().item()):
        raise UserError(f"fine-tuning: packing is True, but in a {model.config.model_type} rows would see each other")


def adapter(header, chosen):
    """LoRA on every matrix of the layers that are trained."""
    layers = {name: layer_index(name) for name, tensor in header.items() if len(tensor.shape) == 2}
    names = sorted({name.split(".")[-2] for name, layer in layers.items() if layer is not None})
    trained = sorted({layer for layer in layers.values() if layer is not None} - {*chosen["frozen"]})
    return LoraConfig(r=chosen["lora_rank"], lora_alpha=chosen["lora_alpha"], target_modules=names,
                      layers_to_transform=trained, task_type="CAUSAL_LM")  # fmt: skip


def parts_of_a_step(n_rows, world_size, chosen):
    """Into how many parts a step's rows are cut: micro batches times processes. UserError if they don't divide it."""
    at_once = world_size * (chosen["micro_batch"] or chosen["batch_size"] // world_size or 1)
    if chosen["batch_size"] % at_once or n_rows < chosen["batch_size"] // at_once * world_size:
        found = f"batch_size {chosen['batch_size']} of {n_rows} rows"
        raise UserError(f"fine-tuning: {found}, expected a multiple of {at_once} (processes times micro_batch)")
    return chosen["batch_size"] // at_once * world_size


def main():
    """Run the job of the folder named on the command line, as one of accelerate's processes."""
    scratch = Path(sys.argv[1])
    try:
        train(scratch)
    except UserError as error:
        (scratch / "error").write_text(str(error), encoding="utf-8")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
