"""Experts in memory, and any merge of them without writing a file.

A plan is applied by aliasing: where its weight is 0 or 1 the model uses the expert's own parameter, without a copy.
Mixed tensors come from the same code as a merge on disk, so both routes give the same bits.
"""

from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerswap import checkpoint
from layerswap.blend import MIXED, blend, check_mixable
from layerswap.paths import UserError, one_line
from layerswap.plan import layer_index
from layerswap.provenance import merge_key, model_digest


class Resident:
    """A math and a language expert (folders) with their weights as ``dtype`` on ``device``.

    base: the folder of their base, for plans of task vectors. static: ``apply`` copies values into parameters of the
    model's own, which never move (CUDA graphs hold addresses), instead of exchanging parameters; one more model in
    memory. The models are loaded by the first ``apply``. Math and language expert may be one folder: then every plan is
    that model. UserError if the models do not fit each other, and for a GPU that is not there.
    """

    def __init__(self, math, language, base=None, *, device="cpu", dtype=torch.float32, static=False):
        self.folders = {"math": Path(math), "language": Path(language)} | ({"base": Path(base)} if base else {})
        self.device, self.dtype, self.static = device, dtype, static
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device is {device}, but torch finds no GPU here; expected cpu")
        for folder in list(self.folders.values())[1:]:
            checkpoint.check_fit(math, folder)
        self.headers = {role: checkpoint.read_header(folder) for role, folder in self.folders.items()}
        self.n_layers = checkpoint.layer_count(math)
        self.applied = {}  # layer (None: outside) -> what the model holds of it: a weight, or task vectors
        self.mixed = {}  # tensor name -> (that, parameter): at most one more model in memory

    @cached_property
    def digests(self):
        """role -> digest of a model."""
        return {role: model_digest(folder) for role, folder in self.folders.items()}

    @cached_property
    def model(self):
        """The one model that ``apply`` changes, and its slots by layer (None: outside).

        A slot: (the module's parameters, attribute, tensor name, math's parameter, the language expert's parameter).
        """
        experts = {folder: self.loaded(folder) for folder in {self.folders["math"], self.folders["language"]}}
        math, language = (experts[self.folders[role]] for role in ("math", "language"))
        model = self.loaded(self.folders["math"]) if self.static else math
        ours, theirs = (dict(expert.named_parameters(remove_duplicate=False)) for expert in (math, language))
        tied, slots = {}, {}
        for slot, parameter in ours.items():
            name = tied.setdefault((id(parameter), id(theirs[slot])), slot)  # tied ones are stored once
            module, _, attribute = slot.rpartition(".")
            place = model.get_submodule(module)._parameters, attribute
            slots.setdefault(layer_index(slot), []).append((*place, name, parameter, theirs[slot]))
        stored = self.headers["math"].keys()
        if wrong := set(tied.values()) - stored | stored - ours.keys():
            raise UserError(f"{self.folders['math']}: tensor {min(wrong)} has another name in the model")
        return model, slots

    def loaded(self, folder):
        """A folder's model on the device, frozen."""
        return load(folder, self.dtype).to(self.device).requires_grad_(False)

    def apply(self, plan):
        """The merged model in eval mode: always the same object, so each call changes what the last returned.

        Its weights are the experts' own: edit a copy. Only layers that differ from the last plan's are touched.
        UserError if the plan has another number of layers, or needs a base that was not given.
        """
        plan.check_depth(self.n_layers, self.folders["math"])
        if missing := set(plan.roles) - self.folders.keys():
            raise UserError(f"plan {plan.name!r} needs the {min(missing)} model, which was not given")
        model, slots = self.model
        for layer, places in slots.items():
            if self.applied.get(layer) == (what := self.part(plan, layer)):
                continue
            self.applied.pop(layer, None)  # until all of the layer is in place
            for parameters, attribute, name, math, language in places:
                value = math if what == 0 else language if what == 1 else self.mix(name, what, plan)
                if self.static:
                    parameters[attribute].copy_(value)
                else:
                    parameters[attribute] = value
            self.applied[layer] = what
        return model

    def part(self, plan, layer):
        """What a plan says of a layer (None: outside): the language expert's weight; of task vectors, everything."""
        if len(plan.roles) > 2:
            return tuple(value for field, value in plan.to_dict().items() if field != "name")
        return plan.outside if layer is None else plan.layers[layer]

    def mix(self, name, what, plan):
        """The mixed parameter of a tensor, from the files as in ``merge.merge``; the last is kept."""
        if self.mixed.get(name, (None,))[0] != what:
            check_mixable({name: self.headers["math"][name]}, plan)
            sources = {role: self.headers[role][name] for role in plan.roles}
            made = b"".join(bytes(made) for _, made in blend(sources, plan, plan.weight(name)))
            dtype = getattr(torch, MIXED[sources["math"].dtype])
            values = torch.frombuffer(bytearray(made), dtype=dtype) if made else torch.empty(0, dtype=dtype)
            values = values.view(sources["math"].shape).to(self.device, self.dtype)
            self.mixed[name] = what, torch.nn.Parameter(values, requires_grad=False)
        return self.mixed[name][1]

    def key(self, plan):
        """Digest of dtype, models and plan, as in ``provenance.merge_key``."""
        return merge_key(self.digests, plan, str(self.dtype))


def load(folder, dtype):
    """A folder's model in eval mode, as ``dtype``. UserError if tensors are missing or unknown to it, or it cannot be
    loaded: transformers would go on with random weights."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({one_line(error)})") from None
    if wrong := {what: sorted(names) for what, names in info.items() if names}:
        raise UserError(f"{folder}: the weights are not those of the model in config.json: {wrong}")
    return model.eval()


def load_tokenizer(folder):
    """A folder's tokenizer. UserError if transformers cannot load it."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: transformers cannot load its tokenizer ({one_line(error)})") from None
