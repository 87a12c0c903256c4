from .in_memory import ExpertPair as ExpertPair
from .manifest import MANIFEST as MANIFEST, merge_key as merge_key, verify as verify
from .mergekit import from_mergekit as from_mergekit, to_mergekit as to_mergekit
from .on_disk import merge as merge
from .plans import (
    SCALED as SCALED,
    WIDTH_NAMES as WIDTH_NAMES,
    Plan as Plan,
    layer_swap as layer_swap,
    middle_layers as middle_layers,
    only_bottom as only_bottom,
    only_top as only_top,
    random_layers as random_layers,
    scaled_widths as scaled_widths,
    selected_layers as selected_layers,
    soup as soup,
    uniform as uniform,
)
from .task_vectors import METHODS as METHODS, MergePlan as MergePlan, TaskVectors as TaskVectors
