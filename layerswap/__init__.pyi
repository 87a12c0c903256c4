from .evaluation import evaluate as evaluate
from .merging import (
    ExpertPair as ExpertPair,
    Plan as Plan,
    TaskVectors as TaskVectors,
    layer_swap as layer_swap,
    merge as merge,
    soup as soup,
    verify as verify,
)

__version__: str
