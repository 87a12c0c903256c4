from .finetune import finetune as finetune
from .index import (
    BASELINES as BASELINES,
    NON_LAYER as NON_LAYER,
    ExpertIndex as ExpertIndex,
    check_experts as check_experts,
    count_layers as count_layers,
    expert_for_role as expert_for_role,
    first_pair as first_pair,
    load_index as load_index,
    pair_counts as pair_counts,
    profile_with_experts as profile_with_experts,
    read_index as read_index,
    resolve_experts as resolve_experts,
    save_index as save_index,
    seed_pairs as seed_pairs,
)
from .jobs import (
    TrainingJob as TrainingJob,
    held_out_rows as held_out_rows,
    plan_jobs as plan_jobs,
    train_experts as train_experts,
)
from .training_data import split_final_number as split_final_number, training_rows as training_rows
from .weight_change import compare_thirds as compare_thirds, thirds as thirds, weight_change as weight_change
