"""Running a profile: its parameters, its notebooks, and the one list of what they score.

``profiles`` reads params/*.yml strictly and knows what names stand for; ``notebooks`` decides what runs again and runs
it; ``experiments`` is the list of conditions and comparisons; ``scores`` scores them with a profile's experts; ``cost``
estimates a profile before it runs. ``python -m layerswap.run`` is what make calls.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
