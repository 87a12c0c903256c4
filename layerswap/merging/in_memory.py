"""Experts in memory, and any merge of them without writing a file.

A plan is applied by aliasing: where its weight is 0 or 1 the model uses the expert's own tensor, without a copy. Mixed
tensors are made on the device from what transformers loaded, so every family that it can load can be merged, and they
have the bits of a merge on disk, and lie in memory as in its file: some kernels round otherwise where they do not.
"""

from collections.abc import Collection, Hashable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open

from layerswap.checkpoints.compatibility import check_compatible
from layerswap.checkpoints.layers import decoder_layers, find_layers
from layerswap.checkpoints.loading import check_device, load_model
from layerswap.checkpoints.model_files import check_unchanged, file_states, model_digest
from layerswap.checkpoints.safetensors import FLOAT_DTYPES, read_header
from layerswap.errors import UserError
from layerswap.merging.arithmetic import weighted_mean_in_memory
from layerswap.merging.manifest import merge_key
from layerswap.merging.plans import Plan
from layerswap.merging.task_vectors import MergePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TensorSlot(NamedTuple):
    """One place for a parameter or buffer in the merged model, and what the two experts have there.

    Attributes:
        module_tensors: the parameters or buffers of the module that the place is in.
        attribute: the tensor's name in that module.
        name: the tensor's name in the model; tensors that are tied share one, under which they are stored.
        math: the math expert's tensor.
        language: the language expert's tensor.
    """

    module_tensors: dict[str, Any]
    attribute: str
    name: str
    math: torch.Tensor
    language: torch.Tensor


class ExpertPair:
    """A math and a language expert in memory, from which ``apply`` makes the merged model of any plan.

    The models are loaded by the first ``apply``. Math and language expert may be one folder: then every plan is that
    model. Tensors outside the text decoder are always the math expert's.

    Args:
        math: the math expert's folder.
        language: the language expert's folder.
        base: the folder of their base model, for plans of task vectors.
        device: where the weights lie, such as "cuda".
        dtype: of the weights in memory.
        static: whether ``apply`` copies values into tensors of the model's own, which never move (CUDA graphs hold
            addresses), instead of exchanging tensors; it takes the memory of one more model.
        allow: names of differences between the models that are meant, as in ``on_disk.merge``; config and tokenizer are
            the math expert's.

    Raises:
        UserError: models that do not fit each other, or a GPU that is not there.
    """

    def __init__(
        self, math: str | Path, language: str | Path, base: str | Path | None = None, *,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, static: bool = False,
        allow: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.folders = {"math": Path(math), "language": Path(language)} | ({"base": Path(base)} if base else {})
        self.device, self.dtype, self.static = device, dtype, static
        check_device(device)
        for folder in list(self.folders.values())[1:]:
            check_compatible(math, folder, allow)
        self.headers = {role: read_header(folder) for role, folder in self.folders.items()}
        self.file_states = {role: file_states(folder) for role, folder in self.folders.items()}  # before the digests
        self.stored_layers = decoder_layers(math)
        self.n_layers = self.stored_layers.count
        self.applied: dict[int | None, Hashable] = {}  # layer (None: non-layer) -> signature of what the model has
        # tensor name -> its last mixed tensor, with the signature: at most one more model in memory
        self.mixed_tensors: dict[str, tuple[Hashable, torch.Tensor]] = {}

    @cached_property
    def digests(self) -> dict[str, str]:
        """role -> digest of a model."""
        return {role: model_digest(folder) for role, folder in self.folders.items()}

    @cached_property
    def model_and_slots(self) -> "tuple[PreTrainedModel, dict[int | None, list[TensorSlot]]]":
        """The one model that ``apply`` changes, and its slots by layer (None: non-layer)."""
        math = self.load("math")
        if self.folders["math"] == self.folders["language"]:
            return math, {}
        language = {name: tensor for name, _, _, tensor in stored_tensors(self.load("language"))}
        model = self.load("math") if self.static else math
        in_memory = [name for name, _, _, _ in stored_tensors(math)]
        layers = find_layers(in_memory, math.config.to_dict(), self.folders["math"])
        names: dict[tuple[int, int], str] = {}  # tensors of both experts -> the name under which they are stored
        for name, _, _, tensor in stored_tensors(math):
            first_name = names.setdefault((id(tensor), id(language[name])), name)
            if name in self.headers["math"] and first_name not in self.headers["math"]:
                names[id(tensor), id(language[name])] = name
        slots: dict[int | None, list[TensorSlot]] = {}
        places = zip(stored_tensors(math), stored_tensors(model), strict=True)
        for (name, _, attribute, tensor), (_, module_tensors, _, _) in places:
            stored_name = names[id(tensor), id(language[name])]
            slot = TensorSlot(module_tensors, attribute, stored_name, tensor, language[name])
            if layers.is_text(stored_name):
                slots.setdefault(layers.index(stored_name), []).append(slot)
        return model, slots

    @cached_property
    def base_tensors(self) -> dict[str, torch.Tensor]:
        """tensor name -> the base model's tensor."""
        return {name: tensor for name, _, _, tensor in stored_tensors(self.load("base"))}

    def load(self, role: str) -> "PreTrainedModel":
        """A role's model on the device, frozen. UserError if its files have changed since there is this pair."""
        model = load_model(self.folders[role], self.dtype, self.device).requires_grad_(False)
        check_unchanged(self.folders[role], self.file_states[role])
        return model

    def apply(self, plan: MergePlan) -> "PreTrainedModel":
        """The merged model of a plan, in eval mode.

        Only layers that differ from the last plan's are touched.

        Args:
            plan: a ``Plan``, or ``TaskVectors`` if there is a base.

        Returns:
            Always the same object: each call changes what the last one returned. Its weights are the experts' own, so
            only a copy of it may be edited.

        Raises:
            UserError: a plan of another number of layers, one that needs a base that was not given, or one that needs
                the stored tensors of a family whose tensors have other names in memory.
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
                    value = self.mixed_tensor(slot, layer, signature, plan)
                if self.static:
                    slot.module_tensors[slot.attribute].copy_(value)
                else:
                    slot.module_tensors[slot.attribute] = value
            self.applied[layer] = signature
        return model

    def layer_signature(self, plan: MergePlan, layer: int | None) -> Hashable:
        """What a layer (None: non-layer) is under a plan: the language expert's weight; all of task vectors' fields."""
        if isinstance(plan, Plan):
            return plan.weight(layer)
        return tuple(value for field, value in plan.to_dict().items() if field != "name")

    def mixed_tensor(self, slot: TensorSlot, layer: int | None, signature: Hashable, plan: MergePlan) -> torch.Tensor:
        """The mixed tensor of a slot, with the bits of ``on_disk.merge``; the last one is kept."""
        last_signature, mixed = self.mixed_tensors.get(slot.name, (None, None))
        if mixed is None or last_signature != signature:
            if not slot.math.is_floating_point():
                if not torch.equal(slot.math, slot.language):
                    raise UserError(f"{self.folders['math']}: tensor {slot.name} is {slot.math.dtype}; not to be mixed")
                return slot.math
            dtype = self.stored_dtype(slot.name, layer)
            if isinstance(plan, Plan):
                math, language = (self.stored_values(role, slot, dtype) for role in plan.roles)
                values = weighted_mean_in_memory(math, language, plan.weight(layer))
            else:
                self.check_stored_name(slot.name, f"{plan.method} needs them as they are stored")
                values = plan.combine(**{role: self.stored_values(role, slot, dtype) for role in plan.roles})
            mixed = values.to(slot.math.dtype)
            if isinstance(slot.math, torch.nn.Parameter):
                mixed = torch.nn.Parameter(mixed, requires_grad=False)
            self.mixed_tensors[slot.name] = signature, mixed
        return mixed

    def stored_dtype(self, name: str, layer: int | None) -> torch.dtype:
        """The dtype in which a tensor is stored, where a mean is rounded; that of its layer if it has another name."""
        header, layers = self.headers["math"], self.stored_layers
        in_layer = (
            tensor for other, tensor in header.items() if layers.is_text(other) and layers.index(other) == layer
        )
        dtypes = {tensor.dtype for tensor in in_layer if tensor.dtype in FLOAT_DTYPES}
        if name in header:
            dtypes = {header[name].dtype}
        if len(dtypes) != 1 or not dtypes <= FLOAT_DTYPES.keys():
            self.check_stored_name(name, f"are stored as {', '.join(sorted(dtypes))}")
            raise UserError(f"{self.folders['math']}: tensor {name} is {min(dtypes)}, which cannot be mixed")
        return getattr(torch, FLOAT_DTYPES[dtypes.pop()])

    def stored_values(self, role: str, slot: TensorSlot, dtype: torch.dtype) -> torch.Tensor:
        """A role's tensor in the stored dtype: the one in memory, or from its file where that one is narrower."""
        if torch.promote_types(dtype, slot.math.dtype) == slot.math.dtype:
            tensors = {"math": slot.math, "language": slot.language}
            return (tensors[role] if role in tensors else self.base_tensors[slot.name]).to(dtype)
        self.check_stored_name(slot.name, f"are stored as {dtype}, wider than {slot.math.dtype} here")
        with safe_open(self.headers[role][slot.name].file, "pt") as file:
            values = file.get_tensor(slot.name).to(self.device)
        check_unchanged(self.folders[role], self.file_states[role])
        return values

    def check_stored_name(self, name: str, reason: str) -> None:
        """UserError unless a tensor has the name in the file that it has in memory."""
        if name not in self.headers["math"]:
            remedy = "merge on disk (layerswap merge), then evaluate the result"
            raise UserError(f"{self.folders['math']}: tensors of {name} have other names there and {reason}; {remedy}")

    def merge_digest(self, plan: MergePlan) -> str:
        """Digest of dtype, models and plan, as in ``manifest.merge_key``; loads no model."""
        return merge_key(self.digests, plan, str(self.dtype))


def stored_tensors(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any], str, torch.Tensor]]:
    """What a model saves, tied tensors under each name: name, the module's dict that holds it, its key there, it."""
    for module_name, module in model.named_modules(remove_duplicate=False):
        for tensors in (module._parameters, module._buffers):
            for attribute, tensor in tensors.items():
                if tensor is not None and attribute not in module._non_persistent_buffers_set:
                    yield f"{module_name}.{attribute}".lstrip("."), tensors, attribute, tensor
