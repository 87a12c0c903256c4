"""Layer swapping (Bandarkar et al., arXiv 2410.01335): merging a math and a language expert of one base by layers.

``merging`` plans and makes merges, ``evaluation`` scores models on the benchmarks of ``tasks`` and of the built-in
``lab``, ``experts`` fine-tunes, ``checkpoints`` reads models, ``analysis`` has statistics and figures, ``run`` the
notebooks' profiles and experiments. Nothing is imported before it is used: ``import layerswap`` loads no torch.
"""

import os

import lazy_loader

# Threads of OpenMP that wait sleep. Where they spin, as is its default, another process beside slows torch tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
