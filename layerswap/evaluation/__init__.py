"""The eval kernels: greedy answers, answer losses and scores of decoders on a task's problems.

``scoring`` scores models on problems of one language, a row an answer; ``answers`` keeps what was answered. ``engine``
decodes prompts and measures losses in batches; ``prefix_attention`` is the attention that lets them share a prefix.
Only the last two import torch, so a finished evaluation is read without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
