"""What results say: accuracies and comparisons with their uncertainty, errors by class, figures.

``statistics`` has intervals and paired tests, ``error_analysis`` says where answers go wrong, ``selection`` searches
for a merge on validation problems, and ``plots`` draws and saves every figure. ``comparisons`` holds what a figure
compares and claims, as data; ``report`` writes FINDINGS.md from the saved results.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
