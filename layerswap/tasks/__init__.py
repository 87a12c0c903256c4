"""Benchmarks of word problems: problems, prompts, and the number that an answer gives.

``base`` has what every benchmark is (``Task``, ``Problem``); ``mgsm`` and ``msvamp`` are two of them, each in one file.
``extraction`` finds the number in an answer, in eleven languages. A new benchmark is a new file with a subclass of
``Task``, or of ``MGSM`` if it has MGSM's prompts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
