"""Experts: fine-tunes of one base model, whose layers are later swapped.

``training_data`` reads the rows that an expert learns from, ``batching`` makes tokens and steps of them, ``finetune``
trains one expert through TRL; ``jobs`` plans and trains all that a profile needs, and ``index`` says which models the
profile has. ``weight_change`` measures where an expert moved away from its base.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
