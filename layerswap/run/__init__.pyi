from .cost import cost_report as cost_report
from .experiments import (
    Condition as Condition,
    Experiment as Experiment,
    candidates as candidates,
    condition as condition,
    dose_response as dose_response,
    ends as ends,
    first_answers as first_answers,
    methods as methods,
    profile_experiments as profile_experiments,
    ranking as ranking,
    single_layers as single_layers,
    starting_point as starting_point,
    transition_zone as transition_zone,
    transplants as transplants,
    width_map as width_map,
)
from .explorer import Explorer as Explorer
from .held_out import held_out_differences as held_out_differences
from .notebooks import run_profile as run_profile, start_notebook as start_notebook
from .profiles import Project as Project, find_base as find_base, find_task as find_task, load_profile as load_profile
from .scores import ProfileScores as ProfileScores, held_out_losses as held_out_losses
