"""Where weights come from: what a merged folder says of itself, its check, and the key of results made with a merge."""

import json
import shutil
from pathlib import Path

from layerswap import checkpoint, paths
from layerswap.paths import UserError

TOKENIZER = ("tokenizer*", "*token*.json", "chat_template*", *checkpoint.VOCABULARIES)
DONATED = ("config.json", "generation_config.json", *TOKENIZER)
MANIFEST = "layerswap.json"


def files(folder, patterns):
    """The files of a folder that match one of the patterns, sorted."""
    return sorted({file for pattern in patterns for file in Path(folder).glob(pattern) if file.is_file()})


def model_digest(folder):
    """Digest of a model: its weights, and what its config says of how they are used. Reads every byte."""
    return paths.digest([checkpoint.digest(folder), checkpoint.function_config(folder)])


def reading_digest(folder):
    """Digest of how a model's text is cut into tokens, put into a chat, and ended."""
    path = Path(folder) / "generation_config.json"
    ends = checkpoint.read_json(path).get("eos_token_id") if path.is_file() else None
    return paths.digest([ends, [[file.name, paths.file_digest(file)] for file in files(folder, TOKENIZER)]])


def merge_key(digests, plan, dtype):
    """Digest of models (role -> ``model_digest``), plan and dtype; where the merge is one expert, of that one alone."""
    math, language = digests["math"], digests["language"]
    what = {field: value for field, value in plan.to_dict().items() if field != "name"}
    if len(plan.roles) == 2:
        for alone, weight in ((math, 0), (language, 1)):
            if {*plan.layers, plan.outside} == {weight} or math == language:
                return paths.digest([dtype, alone])
    return paths.digest([dtype, *(digests[role] for role in plan.roles), what])


def finish(folder, donor, shards, manifest):
    """Write what stands beside the weights: index, the donor's files, model card, manifest."""
    if len(shards) > 1:
        weight_map = {part.name: shard.file for shard in shards for part in shard.parts}
        total = sum(part.size for shard in shards for part in shard.parts)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    donate(donor, folder)
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    weights = {shard.file for shard in shards}
    manifest["files"] = {path.name: None if path.name in weights else paths.file_digest(path)
                         for path in sorted(folder.iterdir())}  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def donate(donor, folder, dtype=None):
    """Copy a model's config, tokenizer and chat template to a folder.

    dtype: what the config is to call the weights' dtype instead; "" for no config, as in an adapter's folder.
    """
    for path in files(donor, DONATED):
        if path.name != "config.json" or dtype is None:
            shutil.copyfile(path, folder / path.name)
        elif dtype:
            config = {k: v for k, v in checkpoint.read_json(path).items() if k != "torch_dtype"} | {"dtype": dtype}
            (folder / path.name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def card(manifest):
    """The model card: what was merged, how, and how to check it."""
    plan, experts = manifest["plan"], manifest["experts"]
    models = "\n".join(f"| {role} | {each['folder']} |" for role, each in experts.items())
    return f"""---
library_name: transformers
tags: [merge, layer-swapping]
---
# {plan["name"]}

A merge without training of the experts below, made by layerswap {manifest["layerswap"]}. Layer swapping is the method
of Bandarkar et al., [arXiv 2410.01335](https://arxiv.org/abs/2410.01335). Config and tokenizer are those of the
{manifest["donor"]} expert.

| model | folder |
| --- | --- |
{models}

The plan (for a list of layers: the language expert's weight in each, from the bottom up):

```json
{json.dumps(plan)}
```

`{MANIFEST}` says where each tensor came from; `python -m layerswap verify` checks the folder against it.
"""


def verify(folder, progress=lambda n_bytes: None):
    """Check a merged folder against its manifest; returns the number of tensors. UserError names the first difference.

    Compared: the files, the sha256 of each that is not weights, each tensor's name and sha256, and the weights' digest
    (dtypes and shapes). UserError also for a folder that was merged without sha256s.
    """
    folder = Path(folder)
    manifest = checkpoint.read_json(folder / MANIFEST)
    try:
        files, tensors, expected = manifest["files"], manifest["tensors"], manifest["digest"]
        said = {name: each["sha256"] for name, each in tensors.items()}
        files.items()
    except KeyError as error:
        raise UserError(f"{folder / MANIFEST}: has no {error}, so there is nothing to check against") from None
    except (TypeError, AttributeError):
        raise UserError(f"{folder / MANIFEST}: not a manifest of layerswap") from None
    found = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(found ^ files.keys()):
        raise UserError(f"{folder / name}: {'is not in the manifest' if name in found else 'no such file'}")
    for name, sha in files.items():
        if sha and paths.file_digest(folder / name) != sha:
            raise UserError(f"{folder / name}: sha256 is {paths.file_digest(folder / name)}, expected {sha}")
    header = checkpoint.read_header(folder)
    if differing := header.keys() ^ said.keys():
        raise UserError(f"{folder}: tensor {min(differing)} is in only one of weights and manifest")
    for name, tensor in header.items():
        if (sha := checkpoint.tensor_digest(tensor)) != said[name]:
            raise UserError(f"{tensor.file}: tensor {name} has sha256 {sha}, expected {said[name]}")
        progress(tensor.n_bytes)
    if checkpoint.content_digest(header, said) != expected:
        raise UserError(f"{folder}: dtypes or shapes are not those of the manifest")
    return len(header)
