"""Supervised fine-tuning of an expert through TRL: full or LoRA, on one device or many, resumed where it was cut off.

A finished expert lies beside the fingerprint of its training (base weights, rows, settings, versions) and its loss
curve. The same training is never run twice; another one replaces the folder.
"""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

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

from layerswap.checkpoints.layers import decoder_layers, find_layers, layer_count
from layerswap.checkpoints.loading import load_model, load_tokenizer
from layerswap.checkpoints.model_files import copy_model_files
from layerswap.checkpoints.safetensors import count_weights, read_header, weights_digest
from layerswap.errors import UserError, one_line
from layerswap.experts import batching
from layerswap.experts.batching import IGNORE_INDEX, EncodedRow, encode_rows, pack_rows, training_batches
from layerswap.experts.index import NON_LAYER
from layerswap.files import atomic_file, atomic_folder, check_space, file_digest, json_digest, locked, read_json, sync
from layerswap.processor import has_fast_bfloat16
from layerswap.progress import progress_options

CHECKPOINT_SECONDS = 300  # of training between two checkpoints
RECORD = "training.json"  # an expert's fingerprint, number of processes and losses; in the scratch folder the first
OLD_RECORD = "recipe.json"  # what earlier versions left in its place

Settings = dict[str, Any]  # the keyword arguments of ``finetune`` but for launch


class StopAtNan(TrainerCallback):
    """Ends the training with a UserError at the first loss or gradient that is no number."""

    def on_log(self, args: SFTConfig, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                hint = "lower the learning rate, or look for bad numbers in the base"
                raise UserError(f"fine-tuning: {name} is {logs[name]} at step {state.global_step}; {hint}")


class CheckpointCallback(TrainerCallback):
    """A checkpoint every CHECKPOINT_SECONDS where the disk has room; it is marked once all of it is written."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: SFTConfig, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        due = time.monotonic() - self.last >= CHECKPOINT_SECONDS and state.global_step < state.max_steps
        due = due and shutil.disk_usage(args.output_dir).free > checkpoint_bytes(model)
        control.should_save = broadcast_object_list([due])[0]  # all processes save, or none

    def on_save(self, args: SFTConfig, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for file in [*folder.iterdir(), folder]:
                sync(file)
            (folder / "complete").touch()


def checkpoint_bytes(model: torch.nn.Module) -> float:
    """The size of a checkpoint: the weights that are saved, two moments of those that are trained, and some room."""
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    n_all = sum(parameter.numel() for parameter in model.parameters())
    n_saved = n_trained if isinstance(model, PeftModel) else n_all
    return (4 * n_saved + 8 * n_trained) * 1.05 + 1e6


class TrainingProgress(TrainerCallback):
    """A bar over the steps where somebody looks: loss, tokens a second, time left."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = np.cumsum([0, *tokens])  # [steps + 1]: tokens before each step

    def on_train_begin(self, args: SFTConfig, state: Any, control: Any, **kwargs: Any) -> None:
        options = progress_options() if state.is_world_process_zero else {"disable": True}
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step", **options)
        self.first_step, self.started = state.global_step, time.monotonic()

    def on_log(self, args: SFTConfig, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        n_tokens = self.tokens[state.global_step] - self.tokens[self.first_step]
        rate = n_tokens / (time.monotonic() - self.started)
        self.bar.set_postfix_str(f"loss {logs.get('loss', math.nan):.3f}, {rate:,.0f} tok/s", refresh=False)

    def on_step_end(self, args: SFTConfig, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: SFTConfig, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class ExpertTrainer(SFTTrainer):
    """TRL's trainer on given ``micro_batches``: lists of row indices, dealt to the processes in turn."""

    micro_batches: Sequence[list[int]] = ()

    def get_train_dataloader(self) -> DataLoader:
        own = self.micro_batches[self.args.process_index :: self.args.world_size]
        return DataLoader(self.train_dataset, batch_sampler=own, collate_fn=self.data_collator)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Mean loss of the completions' tokens over all micro batches of a step.

        TRL's own head scores prompts and padding too, at twice the time.
        """
        labels = inputs.pop("labels")[:, 1:]  # [rows, length - 1]
        scored = (labels != IGNORE_INDEX).any(0).nonzero()[:, 0]  # positions before some completion's token
        logits = model(**inputs, use_cache=False, logits_to_keep=scored).logits.float()  # [rows, scored, vocabulary]
        targets = labels[:, scored].flatten()  # [rows * scored]
        total = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORE_INDEX, reduction="sum")
        return total * self.args.world_size / num_items_in_batch  # the processes' gradients are averaged


def finetune(
    base: str | Path, rows: Sequence[dict[str, str]], out: str | Path, *, steps: int, learning_rate: float,
    batch_size: int, max_length: int, seed: int, threads: int, device: str = "cpu", dtype: str = "float32",
    lora_rank: int = 0, lora_alpha: float = 16.0, frozen: Sequence[int] = (), packing: bool = False,
    micro_batch: int = 0, softmax: str = "all", launch: str | Path = "",
) -> Path:  # fmt: skip
    """Fine-tune a base model on rows of prompt and completion.

    The loss is the mean over the tokens of a step's completions and their ends of text. AdamW without weight decay,
    gradients clipped to norm 1, linear decay after a tenth of the steps as warm-up. Weights are trained and saved in
    float32, whatever the base has: a light fine-tune moves many weights by less than a bfloat16 step.

    Deterministic on a CPU at a fixed number of threads, also when it was killed and resumed.

    Args:
        base: the base model's folder.
        rows: {"prompt", "completion"}; they are repeated if ``steps`` need more of them.
        out: the expert's folder; an expert of another training that is there is replaced.
        steps: optimiser steps.
        learning_rate: its peak.
        batch_size: rows a step.
        max_length: tokens; longer rows are left out.
        seed: of the rows' order and of LoRA's first matrices.
        threads: CPU threads.
        device: "cpu" or "cuda".
        dtype: of the arithmetic: "float32"; "bfloat16" (autocast), which takes half the time where the processor has
            it and longer where it does not; or "auto", bfloat16 where it is fast.
        lora_rank: above 0, LoRA of that rank on all matrices of the layers; then ``out`` is an adapter, which
            ``resolve_model`` merges into the base.
        lora_alpha: LoRA's changes count ``lora_alpha / lora_rank`` times.
        frozen: layers that are not trained; ``NON_LAYER`` stands for embeddings, final norm and head.
        packing: rows laid end to end instead of padded, with the same loss.
        micro_batch: rows at once on a device (0: all); gradients are summed.
        softmax: tokens that a prediction chooses from: "all", or "rows", those that occur in the rows. The latter is
            another loss: nothing is learned about the other tokens. Of a large vocabulary it saves most of the time.
        launch: accelerate's YAML for several processes, which share each step's rows; empty: one process.

    Returns:
        ``out``, with training.json: {"fingerprint", "processes", "losses"}.

    Raises:
        UserError: bad rows or settings, a full disk, or a loss that is no number. Then no new expert is left, and one
            that was there stays.
    """
    if dtype == "auto" and (device == "cpu" or torch.cuda.is_available()):
        dtype = "bfloat16" if has_fast_bfloat16(device) else "float32"
    settings = {
        "steps": steps, "learning_rate": learning_rate, "batch_size": batch_size, "max_length": max_length,
        "seed": seed, "threads": threads, "device": device, "dtype": dtype, "lora_rank": lora_rank,
        "lora_alpha": lora_alpha, "frozen": sorted(frozen), "packing": packing, "micro_batch": micro_batch,
        "softmax": softmax,
    }  # fmt: skip
    out, header = Path(out), read_header(base)
    check_settings(base, settings, launch)
    encoded = encode_rows(rows, load_tokenizer(base), max_length)
    fingerprint = {
        "base": weights_digest(base), "rows": json_digest(encoded), "n_rows": len(encoded),
        "n_left_out": len(rows) - len(encoded), **settings, "launch": file_digest(launch) if launch else "",
        "code": [file_digest(path) for path in (__file__, batching.__file__)],
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")},
    }  # fmt: skip
    if has_fingerprint(out, fingerprint):
        return out
    if out.exists() and not any((out / name).is_file() for name in (RECORD, OLD_RECORD)):
        raise UserError(f"{out}: exists and holds no {RECORD}, so it was not made by fine-tuning; remove it first")
    if out.is_symlink():
        raise UserError(f"{out}: is a link, expected a folder that another expert may replace")
    if not lora_rank:
        check_space(out, 4 * count_weights(header))
    scratch = out.with_name(f".{out.name}.training")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with locked(scratch) as lock:
            job = {"base": str(base), "rows": encoded, "settings": settings}
            if not prepare_scratch(scratch, fingerprint, job):
                try:
                    launch_accelerate(scratch, launch, lock, device) if launch else train(scratch)
                except UserError:
                    shutil.rmtree(scratch)  # the same rows and settings would fail again
                    raise
                gc.collect()  # the trainer holds its model in a circle, and the next one needs the memory
                torch.cuda.empty_cache()
            result = read_json(scratch / "result.json")
            if out.exists():
                shutil.rmtree(out)
            with atomic_folder(out) as folder:
                for path in (scratch / "expert").iterdir():
                    os.replace(path, folder / path.name)
                with atomic_file(folder / RECORD) as file:
                    json.dump({"fingerprint": fingerprint, **result}, file, indent=1)
            shutil.rmtree(scratch)
    except BlockingIOError:
        raise UserError(f"{out}: another process is fine-tuning it") from None
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk or GPU: each library has its own
        message = f"{one_line(error)}; run again, it goes on from its last checkpoint"
        raise UserError(f"{out}: {message}") from error
    return out


def has_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether what lies in a folder is of this very training."""
    path = folder / RECORD
    return path.is_file() and read_json(path).get("fingerprint") == fingerprint


def check_settings(base: str | Path, settings: Settings, launch: str | Path) -> None:
    """UserError names the first setting that cannot be used."""
    config, n_layers = read_json(Path(base) / "config.json"), layer_count(base)
    context = config.get("max_position_embeddings") or math.inf
    for name, is_valid, expected in (
        ("steps", settings["steps"] >= 1, "1 or more"),
        ("batch_size", settings["batch_size"] >= 1, "1 or more"),
        ("threads", settings["threads"] >= 1, "1 or more"),
        ("learning_rate", 0 < settings["learning_rate"] < 1, "between 0 and 1"),
        ("max_length", 2 <= settings["max_length"] <= context, f"2 to the model's {context} tokens"),
        ("dtype", settings["dtype"] in ("float32", "bfloat16"), "float32, bfloat16 or auto"),
        ("lora_rank", settings["lora_rank"] >= 0, "0 or more"),
        ("lora_alpha", 0 < settings["lora_alpha"] < math.inf, "above 0"),
        ("micro_batch", settings["micro_batch"] >= 0, "0 or more"),
        ("softmax", settings["softmax"] in ("all", "rows"), "all or rows"),
        ("frozen", all(NON_LAYER <= layer < n_layers for layer in settings["frozen"]),
         f"layers 0 to {n_layers - 1}, or {NON_LAYER} for the non-layer weights"),
        ("frozen", not {*range(n_layers)} <= {*settings["frozen"]} or not settings["lora_rank"], "a layer to train"),
        ("frozen", {*settings["frozen"]} < {NON_LAYER, *range(n_layers)}, "something to train"),
        ("device", settings["device"] in ("cpu", "cuda"), "cpu or cuda"),
        ("device", settings["device"] == "cpu" or torch.cuda.is_available(), "cpu, as torch finds no GPU here"),
    ):  # fmt: skip
        if not is_valid:
            raise UserError(f"fine-tuning: {name} is {settings[name]!r}, expected {expected}")
    if launch and not Path(launch).is_file():
        raise UserError(f"fine-tuning: launch is {str(launch)!r}, expected a file for accelerate")


def prepare_scratch(scratch: Path, fingerprint: dict[str, Any], job: dict[str, Any]) -> bool:
    """Leave in ``scratch`` the job and, of an earlier try at this very training, its checkpoints.

    Returns whether that try had ended (its parent was killed while other processes went on).
    """
    if not has_fingerprint(scratch, fingerprint):
        for stale in scratch.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for checkpoint in list(scratch.glob("checkpoint-*")):
        if not (checkpoint / "complete").is_file():
            shutil.rmtree(checkpoint)  # half-written: it would count as one of those to keep
    for name, content in (("job.json", job), (RECORD, {"fingerprint": fingerprint})):
        with atomic_file(scratch / name) as file:
            json.dump(content, file)
    return (scratch / "result.json").is_file()


def launch_accelerate(scratch: Path, launch: str | Path, lock: int, device: str) -> None:
    """``train`` in the processes that accelerate starts. UserError if one of them fails.

    They hold the lock (a file handle) too: should this process be killed, no other one trains there before they have
    ended.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    (scratch / "error").unlink(missing_ok=True)
    command += ["-m", "layerswap.experts.finetune", str(scratch)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}  # accelerate would take the GPUs that it sees
    process = subprocess.run(command, pass_fds=[lock], env=os.environ | hidden)
    if (scratch / "error").is_file():
        raise UserError((scratch / "error").read_text(encoding="utf-8"))
    if process.returncode:
        raise OSError(f"the processes of {launch} ended with status {process.returncode}")


def train(scratch: Path) -> None:
    """Run the job that ``prepare_scratch`` left, from its last checkpoint if it has one.

    The model is left in ``scratch``/expert and, written last, the loss of each step in result.json.
    """
    job = json.loads((scratch / "job.json").read_text(encoding="utf-8"))
    base, encoded, settings = job["base"], job["rows"], job["settings"]
    torch.set_num_threads(settings["threads"])
    set_seed(settings["seed"])  # before LoRA draws its matrices
    tokenizer, model = load_tokenizer(base), load_model(base, torch.float32)
    lora = lora_config(base, settings) if settings["lora_rank"] else None
    parameters = dict(model.named_parameters())
    layers = find_layers(parameters, model.config.to_dict(), base)
    for name, parameter in parameters.items():
        layer = layers.index(name)
        parameter.requires_grad_((NON_LAYER if layer is None else layer) not in settings["frozen"])
    if settings["softmax"] == "rows":
        encoded = restrict_softmax(model, encoded)
    arguments = SFTConfig(
        str(scratch), max_steps=settings["steps"], learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear", warmup_steps=settings["steps"] // 10, weight_decay=0.0, max_length=None,
        seed=settings["seed"], activation_checkpointing=False, bf16=settings["dtype"] == "bfloat16",
        use_cpu=settings["device"] == "cpu", save_strategy="no", save_total_limit=2, report_to="none",
        disable_tqdm=True, logging_steps=1, logging_nan_inf_filter=False, pad_to_multiple_of=None,
    )  # fmt: skip
    n_processes = arguments.world_size
    arguments._n_gpu = min(arguments._n_gpu, 1)  # or a second GPU would get half of each batch's tensors, cut wrongly
    n_micro_batches = count_micro_batches(len(encoded), n_processes, settings)
    arguments.gradient_accumulation_steps = n_micro_batches // n_processes
    lengths = [len(row["input_ids"]) for row in encoded]
    batches = training_batches(lengths, settings["batch_size"], settings["steps"], settings["seed"], n_micro_batches)
    progress = TrainingProgress([sum(lengths[i] for i in batch) for batch in batches])
    if settings["packing"] and len(encoded) > 1:
        check_packing(model, sorted(encoded, key=lambda row: len(row["input_ids"]))[:2])
    trainer = ExpertTrainer(
        model, arguments, train_dataset=Dataset.from_list(encoded), processing_class=tokenizer, peft_config=lora,
        callbacks=[StopAtNan(), CheckpointCallback(), progress],
    )  # fmt: skip
    trainer.micro_batches = [
        micro_batch.tolist() for batch in batches for micro_batch in np.array_split(batch, n_micro_batches)
    ]
    if settings["packing"]:
        trainer.data_collator = lambda rows: pack_rows(rows, settings["max_length"])
    trainer.remove_callback(PrinterCallback)
    complete = sorted(scratch.glob("checkpoint-*/complete"), key=lambda path: int(path.parent.name.split("-")[1]))
    trainer.train(resume_from_checkpoint=str(complete[-1].parent) if complete else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if n_processes > 1 else None
    if trainer.is_world_process_zero():
        shutil.rmtree(scratch / "expert", ignore_errors=True)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(scratch / "expert", state_dict=weights)
        copy_model_files(base, scratch / "expert", "" if lora else "float32")  # the trainer changed pad token and cache
        with atomic_file(scratch / "result.json") as file:
            json.dump({"processes": n_processes, "losses": losses}, file)


def restrict_softmax(model: torch.nn.Module, rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Let the model's head give logits of the tokens that occur in the rows only; returns the rows, with labels so.

    The head's weights stay whole: they are saved as they were, and trained where they are not frozen.
    """
    token_ids = sorted({token for row in rows for token in row["input_ids"]})
    place = dict(zip(token_ids, range(len(token_ids)), strict=True)) | {IGNORE_INDEX: IGNORE_INDEX}
    head: Any = model.get_output_embeddings()

    def forward(hidden: torch.Tensor) -> torch.Tensor:  # [..., hidden] -> [..., tokens of the rows]
        rows_of_head = torch.tensor(token_ids, device=hidden.device)
        return F.linear(hidden, head.weight[rows_of_head], None if head.bias is None else head.bias[rows_of_head])

    head.forward = forward
    return [row | {"labels": [place[label] for label in row["labels"]]} for row in rows]


def check_packing(model: torch.nn.Module, rows: Sequence[EncodedRow]) -> None:
    """UserError unless two packed rows have the logits they have alone: not all models heed positions that restart."""
    line = pack_rows(rows, sum(len(row["input_ids"]) for row in rows))
    ids, positions = line["input_ids"], line["position_ids"]  # [1, length]
    second = positions[0].tolist().index(0, 1)  # where the second row begins
    with torch.inference_mode():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits  # [1, length, vocabulary]
        alone = [model(input_ids=row_ids, use_cache=False).logits for row_ids in (ids[:, :second], ids[:, second:])]
    if not torch.allclose(together, torch.cat(alone, 1), rtol=1e-3, atol=1e-3 * together.abs().max().item()):
        raise UserError(f"fine-tuning: packing is True, but in a {model.config.model_type} rows would see each other")


def lora_config(base: str | Path, settings: Settings) -> LoraConfig:
    """LoRA on every matrix of the base's layers that are trained."""
    index = decoder_layers(base).index
    layers = {name: index(name) for name, tensor in read_header(base).items() if len(tensor.shape) == 2}
    modules = sorted({name.split(".")[-2] for name, layer in layers.items() if layer is not None})
    trained = sorted({layer for layer in layers.values() if layer is not None} - {*settings["frozen"]})
    return LoraConfig(r=settings["lora_rank"], lora_alpha=settings["lora_alpha"], target_modules=modules,
                      layers_to_transform=trained, task_type="CAUSAL_LM")  # fmt: skip


def count_micro_batches(n_rows: int, world_size: int, settings: Settings) -> int:
    """How many micro batches a step's rows are cut into, over all processes. UserError if they don't divide it."""
    batch_size = settings["batch_size"]
    at_once = world_size * (settings["micro_batch"] or batch_size // world_size or 1)
    if batch_size % at_once or n_rows < batch_size // at_once * world_size:
        actual = f"batch_size {batch_size} of {n_rows} rows"
        raise UserError(f"fine-tuning: {actual}, expected a multiple of {at_once} (processes times micro_batch)")
    return batch_size // at_once * world_size


def run_worker() -> int:
    """Run the job of the folder named on the command line, as one of accelerate's processes."""
    scratch = Path(sys.argv[1])
    try:
        train(scratch)
    except UserError as error:
        (scratch / "error").write_text(str(error), encoding="utf-8")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_worker())
