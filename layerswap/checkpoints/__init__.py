"""Models on disk: from what a parameter names to a folder that can be merged or loaded.

``loading`` finds the folder a name stands for, and loads it; ``adapters`` and ``gguf`` make such a folder of a LoRA
adapter or a GGUF file. ``safetensors`` reads headers, bytes and digests of weights. ``compatibility`` says whether two
models can be merged, by what ``architecture`` (what transformers makes of a config) and ``tokenizer`` tell it, as each
``difference``. ``model_files`` copies what lies beside the weights.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
