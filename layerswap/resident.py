"""Two experts in memory, and any merge of them without writing a file.

A plan is applied by aliasing: where its weight is 0 or 1 the model uses the expert's own parameter, without
a copy. Mixed tensors come from the same code as a merge on disk, so both routes give the same bits.
"""

from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from layerswap import checkpoint, paths
from layerswap.paths import UserError


class Resident:
    """A math and a language expert (folders) with their weights as ``dtype`` on ``device``.

    The models are loaded by the first ``apply``. Both may be one folder: then every plan is that model.
    UserError if they do not fit each other.
    """

    def __init__(self, math, language, device="cpu", dtype=torch.float32):
        self.folders, self.device, self.dtype = (Path(math), Path(language)), device, dtype
        checkpoint.check_fit(math, language)
        self.headers = [checkpoint.read_header(folder) for folder in self.folders]
        self.n_layers = checkpoint.layer_count(math)
        self.mixed = {}  # tensor name -> (weight, parameter): at most one more model in memory

    @cached_property
    def digests(self):
        """Content digests of the math and the language expert."""
        return [checkpoint.digest(folder) for folder in self.folders]

    @cached_property
    def model(self):
        """The one model whose parameters ``apply`` exchanges, and its slots.

        Slots: (module, attribute, tensor name, math's parameter, the language expert's parameter).
        """
        experts = {folder: self.load(folder) for folder in set(self.folders)}
        math, language = (experts[folder] for folder in self.folders)
        theirs, tied, slots = dict(language.named_parameters(remove_duplicate=False)), {}, []
        for slot, parameter in list(math.named_parameters(remove_duplicate=False)):
            name = tied.setdefault((id(parameter), id(theirs[slot])), slot)  # tied ones are stored once
            module, _, attribute = slot.rpartition(".")
            slots.append((math.get_submodule(module), attribute, name, parameter, theirs[slot]))
        if wrong := set(tied.values()) - self.headers[0].keys() | self.headers[0].keys() - theirs.keys():
            raise UserError(f"{self.folders[0]}: tensor {min(wrong)} has another name in the model")
        return math, slots

    def load(self, folder):
        """A folder's model, frozen and in eval mode. UserError if tensors are missing or unknown to it."""
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if wrong := {what: sorted(names) for what, names in info.items() if names}:
            raise UserError(f"{folder}: the weights are not those of the model in config.json: {wrong}")
        return model.to(self.device).requires_grad_(False)

    def apply(self, plan):
        """The merged model in eval mode: always the same object, so each call changes what the last returned.

        Its weights are the experts' own: edit a copy. UserError if the plan has another number of layers.
        """
        if len(plan.layers) != self.n_layers:
            raise UserError(f"plan {plan.name!r} has {len(plan.layers)} layers, expected {self.n_layers}")
        model, slots = self.model
        for module, attribute, name, math, language in slots:
            weight = plan.weight(name)
            merged = {0: math, 1: language}.get(weight)
            module._parameters[attribute] = self.mix(name, weight) if merged is None else merged
        return model

    def mix(self, name, weight):
        """The mixed parameter of a tensor, from the files as in ``checkpoint.merge``; the last is kept."""
        if self.mixed.get(name, (None,))[0] != weight:
            math, language = (header[name] for header in self.headers)
            merged = b"".join(bytes(piece) for *_, piece in checkpoint.blend(math, language, weight))
            values = torch.frombuffer(bytearray(merged), dtype=getattr(torch, checkpoint.MIXED[math.dtype]))
            values = values.view(math.shape).to(self.device, self.dtype)
            self.mixed[name] = weight, torch.nn.Parameter(values, requires_grad=False)
        return self.mixed[name][1]

    def key(self, plan):
        """Digest of dtype, experts and plan weights; where the merge is one expert, of that expert alone."""
        weights, (math, language) = (*plan.layers, plan.outside), self.digests
        if math == language or set(weights) == {0}:
            return paths.digest([str(self.dtype), math])
        return paths.digest([str(self.dtype), language] + ([] if set(weights) == {1} else [math, weights]))
