"""Where weights come from: what a merged folder records of its merge, its check against that, and the key of results
made with a merge.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layerswap.checkpoints.model_files import copy_model_files
from layerswap.checkpoints.safetensors import read_header, tensor_digest, tensors_digest
from layerswap.errors import UserError
from layerswap.files import file_digest, json_digest, read_json
from layerswap.merging.plans import Plan
from layerswap.merging.task_vectors import MergePlan

MANIFEST = "layerswap.json"


def merge_key(digests: Mapping[str, str], plan: MergePlan, dtype: str) -> str:
    """Digest that names merged weights without making them; answers are kept under it.

    Args:
        digests: role ("math", "language", "base") -> ``model_digest`` of that model.
        plan: the merge; its name plays no part.
        dtype: of the weights in memory, such as "torch.float32".

    Returns:
        sha256 (hex) of dtype, models and plan; where the merge is one expert, of dtype and that expert alone.
    """
    math, language = digests["math"], digests["language"]
    fields = {field: value for field, value in plan.to_dict().items() if field != "name"}
    if isinstance(plan, Plan):
        fields["outside"] = fields.pop("non_layer_weight")  # its first name, so that answers kept since then stay valid
        for expert, weight in ((math, 0), (language, 1)):
            if {*plan.layers, plan.non_layer_weight} == {weight} or math == language:
                return json_digest([dtype, expert])
    return json_digest([dtype, *(digests[role] for role in plan.roles), fields])


def write_metadata(
    folder: Path, donor: Path, weight_map: Mapping[str, str], n_bytes: int, manifest: dict[str, Any],
    custom_code: bool = False,
) -> None:  # fmt: skip
    """Write what lies beside the weights: index, the donor's files, model card, and the manifest with all of them.

    weight_map: tensor name -> file. n_bytes: of all tensors. custom_code: whether the donor's is copied.
    """
    weight_files = set(weight_map.values())
    if len(weight_files) > 1:
        index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    manifest["left_out"] = copy_model_files(donor, folder, custom_code=custom_code)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
    manifest["files"] = {name: None if name in weight_files else file_digest(folder / name)
                         for name in file_names(folder)}  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def file_names(folder: Path) -> list[str]:
    """The names of all files in a folder and below it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def model_card(manifest: Mapping[str, Any]) -> str:
    """The model card: what was merged, how, and how to check it."""
    plan, experts = manifest["plan"], manifest["experts"]
    models = "\n".join(f"| {role} | {expert['folder']} |" for role, expert in experts.items())
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


def verify(folder: str | Path, progress: Callable[[int], object] = lambda n_bytes: None) -> int:
    """Check a merged folder against its manifest.

    Compared: the files, the sha256 of each that is not weights, each tensor's name and sha256, and the weights' digest
    (dtypes and shapes). Reads every byte.

    Args:
        folder: a folder that ``merge`` wrote.
        progress: called with the number of bytes of each tensor that has been read.

    Returns:
        The number of tensors.

    Raises:
        UserError: the first difference; a folder that was merged without sha256s.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    try:
        files, tensors, expected = manifest["files"], manifest["tensors"], manifest["digest"]
        digests = {name: tensor["sha256"] for name, tensor in tensors.items()}
        files.items()
    except KeyError as error:
        raise UserError(f"{folder / MANIFEST}: has no {error}, so there is nothing to check against") from None
    except (TypeError, AttributeError):
        raise UserError(f"{folder / MANIFEST}: not a manifest of layerswap") from None
    present = set(file_names(folder)) - {MANIFEST}
    if differing := present ^ files.keys():
        name = min(differing)
        raise UserError(f"{folder / name}: {'is not in the manifest' if name in present else 'no such file'}")
    for name, sha in files.items():
        if sha and file_digest(folder / name) != sha:
            raise UserError(f"{folder / name}: sha256 is {file_digest(folder / name)}, expected {sha}")
    header = read_header(folder)
    if differing := header.keys() ^ digests.keys():
        name = min(differing)
        places = ("weights", "manifest") if name in header else ("manifest", "weights")
        raise UserError(f"{folder}: tensor {name} is in the {places[0]}, but not in the {places[1]}")
    for name, tensor in header.items():
        if (sha := tensor_digest(tensor)) != digests[name]:
            raise UserError(f"{tensor.file}: tensor {name} has sha256 {sha}, expected {digests[name]}")
        progress(tensor.n_bytes)
    if tensors_digest(header, digests) != expected:
        raise UserError(f"{folder}: dtypes or shapes are not those of the manifest")
    return len(header)
