"""Layer swapping (Bandarkar et al., arXiv 2410.01335): merging a math and a language expert of one base by layers.

``merging`` plans and makes merges, ``evaluation`` scores models on the benchmarks of ``tasks`` and of the built-in
``lab``, ``experts`` fine-tunes, ``checkpoints`` reads models, ``analysis`` has statistics and figures, ``run`` the
notebooks' profiles and experiments. Nothing is imported before it is used: ``import layerswap`` loads no torch.
"""

import os

import lazy_loader

# OpenMP threads that wait soon sleep. Where they spin, as they do for long, another process beside slows torch tenfold.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
