"""Experts in memory, and any merge of them without writing a file.

A plan is applied by aliasing: where its weight is 0 or 1 the model uses the expert's own parameter, without a copy.
Mixed tensors come from the same code as a merge on disk, so the two routes give the same bits.
"""

from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from layerswap.checkpoints.compatibility import check_compatible
from layerswap.checkpoints.loading import load_model
from layerswap.checkpoints.model_files import model_digest
from layerswap.checkpoints.safetensors import FLOAT_DTYPES, layer_count, layer_index, read_header
from layerswap.errors import UserError
from layerswap.merging.arithmetic import check_mixable, merge_chunks
from layerswap.merging.manifest import merge_key
from layerswap.merging.plans import Plan
from layerswap.merging.task_vectors import MergePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ParameterSlot(NamedTuple):
    """One place for a parameter in the merged model, and what the two experts have there.

    Attributes:
        parameters: the parameters of the module that the place is in.
        attribute: the parameter's name in that module.
        tensor_name: the parameter's name in the checkpoint; tied parameters share one.
        math: the math expert's parameter.
        language: the language expert's parameter.
    """

    parameters: dict[str, Any]
    attribute: str
    tensor_name: str
    math: torch.nn.Parameter
    language: torch.nn.Parameter


class ExpertPair:
    """A math and a language expert in memory, from which ``apply`` makes the merged model of any plan.

    The models are loaded by the first ``apply``. Math and language expert may be one folder: then every plan is that
    model.

    Args:
        math: the math expert's folder.
        language: the language expert's folder.
        base: the folder of their base model, for plans of task vectors.
        device: where the weights lie, such as "cuda".
        dtype: of the weights in memory.
        static: whether ``apply`` copies values into parameters of the model's own, which never move (CUDA graphs hold
            addresses), instead of exchanging parameters; it takes the memory of one more model.

    Raises:
        UserError: models that do not fit each other, or a GPU that is not there.
    """

    def __init__(
        self, math: str | Path, language: str | Path, base: str | Path | None = None, *,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, static: bool = False,
    ) -> None:  # fmt: skip
        self.folders = {"math": Path(math), "language": Path(language)} | ({"base": Path(base)} if base else {})
        self.device, self.dtype, self.static = device, dtype, static
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device is {device}, but torch finds no GPU here; expected cpu")
        for folder in list(self.folders.values())[1:]:
            check_compatible(math, folder)
        self.headers = {role: read_header(folder) for role, folder in self.folders.items()}
        self.n_layers = layer_count(math)
        self.applied: dict[int | None, Hashable] = {}  # layer (None: non-layer) -> signature of what the model has
        # tensor name -> its last mixed parameter, with the signature: at most one more model in memory
        self.merged_parameters: dict[str, tuple[Hashable, torch.nn.Parameter]] = {}

    @cached_property
    def digests(self) -> dict[str, str]:
        """role -> digest of a model."""
        return {role: model_digest(folder) for role, folder in self.folders.items()}

    @cached_property
    def model_and_slots(self) -> "tuple[PreTrainedModel, dict[int | None, list[ParameterSlot]]]":
        """The one model that ``apply`` changes, and its slots by layer (None: non-layer)."""
        experts = {folder: self.load(folder) for folder in {self.folders["math"], self.folders["language"]}}
        math, language = (experts[self.folders[role]] for role in ("math", "language"))
        model = self.load(self.folders["math"]) if self.static else math
        math_parameters, language_parameters = (
            dict(expert.named_parameters(remove_duplicate=False)) for expert in (math, language)
        )
        first_names: dict[tuple[int, int], str] = {}  # parameters -> first name: tied ones are stored once, under it
        slots: dict[int | None, list[ParameterSlot]] = {}
        for name, parameter in math_parameters.items():
            other = language_parameters[name]
            tensor_name = first_names.setdefault((id(parameter), id(other)), name)
            module, _, attribute = name.rpartition(".")
            slot = ParameterSlot(model.get_submodule(module)._parameters, attribute, tensor_name, parameter, other)
            slots.setdefault(layer_index(name), []).append(slot)
        stored_names = self.headers["math"].keys()
        if extra := stored_names - math_parameters.keys():
            raise UserError(f"{self.folders['math']}: tensor {min(extra)} is no parameter of the model, expected one")
        if missing := set(first_names.values()) - stored_names:
            raise UserError(f"{self.folders['math']}: has no tensor {min(missing)}, a parameter of the model")
        return model, slots

    def load(self, folder: Path) -> "PreTrainedModel":
        """A folder's model on the device, frozen."""
        return load_model(folder, self.dtype).to(self.device).requires_grad_(False)

    def apply(self, plan: MergePlan) -> "PreTrainedModel":
        """The merged model of a plan, in eval mode.

        Only layers that differ from the last plan's are touched.

        Args:
            plan: a ``Plan``, or ``TaskVectors`` if there is a base.

        Returns:
            Always the same object: each call changes what the last one returned. Its weights are the experts' own, so
            only a copy of it may be edited.

        Raises:
            UserError: a plan of another number of layers, or one that needs a base that was not given.
        """
        plan.check_depth(self.n_layers, self.folders["math"])
        if missing := set(plan.roles) - self.folders.keys():
            raise UserError(f"plan {plan.name!r} needs the {min(missing)} model, which was not given")
        model, slots = self.model_and_slots
        for layer, layer_slots in slots.items():
            signature = self.layer_signature(plan, layer)
            if self.applied.get(layer) == signature:
                continue
            self.applied.pop(layer, None)  # until all of the layer is in place
            for slot in layer_slots:
                if signature == 0:
                    value = slot.math
                elif signature == 1:
                    value = slot.language
                else:
                    value = self.merged_parameter(slot.tensor_name, signature, plan)
                if self.static:
                    slot.parameters[slot.attribute].copy_(value)
                else:
                    slot.parameters[slot.attribute] = value
            self.applied[layer] = signature
        return model

    def layer_signature(self, plan: MergePlan, layer: int | None) -> Hashable:
        """What a layer (None: non-layer) is under a plan: the language expert's weight; all of task vectors' fields."""
        if isinstance(plan, Plan):
            return plan.non_layer_weight if layer is None else plan.layers[layer]
        return tuple(value for field, value in plan.to_dict().items() if field != "name")

    def merged_parameter(self, name: str, signature: Hashable, plan: MergePlan) -> torch.nn.Parameter:
        """The mixed parameter of a tensor, from the files as in ``on_disk.merge``; the last one is kept."""
        last_signature, parameter = self.merged_parameters.get(name, (None, None))
        if parameter is None or last_signature != signature:
            header = self.headers["math"]
            check_mixable({name: header[name]}, plan)
            sources = {role: self.headers[role][name] for role in plan.roles}
            data = b"".join(bytes(merged) for _, merged in merge_chunks(name, sources, plan))
            dtype = getattr(torch, FLOAT_DTYPES[header[name].dtype])
            values = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            values = values.view(header[name].shape).to(self.device, self.dtype)
            parameter = torch.nn.Parameter(values, requires_grad=False)
            self.merged_parameters[name] = signature, parameter
        return parameter

    def merge_digest(self, plan: MergePlan) -> str:
        """Digest of dtype, models and plan, as in ``manifest.merge_key``; loads no model."""
        return merge_key(self.digests, plan, str(self.dtype))
