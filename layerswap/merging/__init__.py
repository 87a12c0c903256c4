"""The merge kernels: what is merged, and how it is done. They know nothing of benchmarks, notebooks or profiles.

A merge is data: ``plans`` (layer swaps, ablations, controls) and ``task_vectors`` (task arithmetic, TIES); ``mergekit``
reads and writes plans as that tool's YAML. ``on_disk`` writes a merged checkpoint, ``in_memory`` gives a merged model;
``arithmetic`` has the means that the two share. ``manifest`` records, checks and names merges.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
