from .browser import problem_browser as problem_browser
from .comparisons import Claim as Claim, Comparison as Comparison, Fact as Fact, against as against
from .doses import dose_table as dose_table
from .error_analysis import (
    ERROR_CLASSES as ERROR_CLASSES,
    accuracy_by_steps as accuracy_by_steps,
    agreement as agreement,
    classify as classify,
    classify_answers as classify_answers,
    count_errors as count_errors,
    equations as equations,
    is_true as is_true,
    operators_of as operators_of,
)
from .plots import (
    METHOD_COLOURS as METHOD_COLOURS,
    accuracy_plot as accuracy_plot,
    caption as caption,
    correlation_heatmap as correlation_heatmap,
    difference_plot as difference_plot,
    dose_panels as dose_panels,
    error_bars as error_bars,
    forest_plot as forest_plot,
    held_out_plot as held_out_plot,
    layer_map as layer_map,
    layer_panels as layer_panels,
    map_panels as map_panels,
    measure_panels as measure_panels,
    provenance_map as provenance_map,
    save_figure as save_figure,
    search_plot as search_plot,
    set_style as set_style,
    steps_plot as steps_plot,
    thirds_plot as thirds_plot,
    weight_change_heatmaps as weight_change_heatmaps,
)
from .report import report_text as report_text
from .selection import (
    CRITERIA as CRITERIA,
    TRIAL_COLUMNS as TRIAL_COLUMNS,
    objective as objective,
    search_weights as search_weights,
)
from .statistics import (
    MEASURES as MEASURES,
    SEEDS as SEEDS,
    MeanEstimate as MeanEstimate,
    accuracy as accuracy,
    best_pair as best_pair,
    check_complete as check_complete,
    compare as compare,
    compare_all as compare_all,
    compare_measures as compare_measures,
    contrast as contrast,
    crossed_random_effects as crossed_random_effects,
    mean_interval as mean_interval,
    measure_levels as measure_levels,
    minimum_detectable_effect as minimum_detectable_effect,
    paired as paired,
    summarize as summarize,
)
from .titles import CLEAR as CLEAR
