"""The built-in benchmark: a small multilingual world whose problems, texts and base model are made from seeds.

``task`` has ``LabTask``, the lab as a benchmark; open it first. ``world`` makes problems, training text and the
tokenizer from the language files in ``data``; ``pretrain`` trains the base model in ``data/base`` (``make base``).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
