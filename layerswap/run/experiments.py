"""What is scored: every experiment as its conditions and comparisons. The one list of them.

The notebooks run it, ``run.cost`` counts it, FINDINGS.md prints its claims, figures take colours from its groups. A
condition's name is for people; what it is made of are its plan and its roles.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from layerswap.analysis.comparisons import (
    AGREES,
    ANSWER_LOSS,
    DISAGREES,
    EXACT_MATCH,
    OPEN,
    Claim,
    Comparison,
    Fact,
    against,
)
from layerswap.errors import UserError
from layerswap.merging.plans import (
    WIDTH_NAMES,
    Plan,
    layer_swap,
    middle_layers,
    only_bottom,
    only_top,
    random_layers,
    scaled_widths,
    selected_layers,
    soup,
    uniform,
)
from layerswap.merging.task_vectors import MergePlan, TaskVectors
from layerswap.run.profiles import Parameters

SEARCH_POPULATION = 8  # plans a generation of the search
WORSE = "no gain, but a clear loss"
NO_GAIN = "the transition zone showed no significant gain (B)"
HIGHER_DISAGREES = Fact(NO_GAIN, (DISAGREES, OPEN, WORSE))
LOWER_DISAGREES = Fact(NO_GAIN, (WORSE, OPEN, DISAGREES))
BEATS_EXPERTS = Fact("merged models beat the experts (A)", (DISAGREES, "not shown", AGREES))
BEATS_MERGES = Fact("merged models beat other merges (A)", (DISAGREES, "not shown", AGREES))


Role = str | TaskVectors


@dataclass(frozen=True)
class Condition:
    """What is scored: a plan, applied to the models of two roles.

    roles: what stands for the plan's math and for its language expert: as ``experts.expert_for_role`` names them, or
        task vectors of the two experts, whose merge it is.
    group: of METHOD_COLOURS.
    """

    name: str
    plan: MergePlan
    roles: tuple[Role, Role] = ("math", "language")
    group: str = "other swap"


@dataclass(frozen=True)
class Experiment:
    """Conditions that answer the same problems, and what is compared among them.

    notebook: that runs it. sample: the parameter that says how many problems of each language. languages: "all" that
    the profile names, "first", or "all and English". one_pair: with the first pair of experts only. n_searched: how
    many more conditions a search will try. equals: condition -> names of the same model, which is scored once.
    """

    notebook: str
    sample: str
    conditions: tuple[Condition, ...]
    comparisons: tuple[Comparison, ...] = ()
    split: str = "test"
    languages: str = "all"
    one_pair: bool = False
    n_searched: int = 0
    equals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The conditions' names, in order."""
        return [condition.name for condition in self.conditions]

    @property
    def groups(self) -> dict[str, str]:
        """Condition -> colour group."""
        return {condition.name: condition.group for condition in self.conditions}

    @property
    def labels(self) -> dict[str, str]:
        """Condition -> its name and those of its equals, where it has any."""
        return {name: " = ".join([name, *others]) for name, others in self.equals.items()}

    def contrasts(self, figure: str) -> dict[str, dict[str, float]]:
        """The contrasts of a figure."""
        (comparison,) = [comparison for comparison in self.comparisons if comparison.figure == figure]
        return {name: dict(weights) for name, weights in comparison.contrasts.items()}


def condition(plan: MergePlan, group: str = "other swap", roles: tuple[Role, Role] = ("math", "language")) -> Condition:
    """A condition that is called like its plan."""
    return Condition(plan.name, plan, roles, group)


def unique_conditions(conditions: Iterable[Condition]) -> tuple[tuple[Condition, ...], dict[str, tuple[str, ...]]]:
    """The conditions without those that are the same model as an earlier one, and what these are called, by that one.

    Two are the same model if they have the same roles, and the same weights or task vectors but for their name. The
    role of an expert of weight 0 does not count.
    """
    first: dict[tuple[Role, Role, MergePlan], Condition] = {}
    equals: dict[str, tuple[str, ...]] = {}
    for candidate in conditions:
        key = model_key(candidate)
        kept = first.setdefault(key, candidate)
        if kept is not candidate:
            equals[kept.name] = (*equals.get(kept.name, ()), candidate.name)
    return tuple(first.values()), equals


def model_key(candidate: Condition) -> tuple[Role, Role, MergePlan]:
    """What a condition's model is made of."""
    (math, language), plan = candidate.roles, replace(candidate.plan, name="any")
    if isinstance(plan, Plan) and len(weights := {*plan.layers, plan.non_layer_weight}) == 1:
        if weights == {0.0}:
            return math, math, plan
        if weights == {1.0}:
            return language, language, uniform(len(plan.layers), 0.0, "any")
    return math, language, plan


# --- 1: the experts, and 2: the swap ----------------------------------------------------------------------------------


def experts_alone(n_layers: int) -> list[Condition]:
    """Base, math expert and language expert."""
    return [
        condition(uniform(n_layers, 0.0, "base"), "base", ("base", "base")),
        condition(uniform(n_layers, 0.0, "math expert"), "math expert"),
        condition(uniform(n_layers, 1.0, "language expert"), "language expert"),
    ]


def starting_point(n_layers: int) -> Experiment:
    """What base and experts can do, in English too, before anything is merged."""
    return Experiment("01_experts", "n_problems", tuple(experts_alone(n_layers)), languages="all and English")


def first_answers(n_layers: int, widths: dict[str, int], weight: float, non_layer_weight: float) -> Experiment:
    """The swap beside both experts, on a few problems of one language."""
    swap = layer_swap(n_layers, **widths, weight=weight, non_layer_weight=non_layer_weight, name="layer swap")
    conditions = (*experts_alone(n_layers)[1:], condition(swap, "layer swap"))
    return Experiment("02_swap", "n_problems", conditions, languages="first", one_pair=True)


# --- 3: ablation 1, the transition zone removed -----------------------------------------------------------------------


def transition_zone(
    n_layers: int, widths: dict[str, int], zone_widths: Sequence[int], zone_weights: Sequence[float],
    weight: float, non_layer_weight: float,
) -> tuple[Experiment, Experiment]:  # fmt: skip
    """(the zone removed against kept; sweeps of its width, its weight, and the weight of the non-layer parameters).

    Bottom and top widths stay; only the zone between changes. UserError if none of ``zone_widths`` fits between them.
    """
    bottom, top, below, above = (widths[name] for name in WIDTH_NAMES)
    removed, kept = "transition removed", "transition kept"

    def swap(name: str, zone: tuple[int, int], weight: float = weight, non_layer: float = non_layer_weight) -> Plan:
        return layer_swap(n_layers, bottom, top, *zone, weight, non_layer, name)

    ablation = (condition(swap(kept, (below, above)), "layer swap"), condition(swap(removed, (0, 0)), removed))
    between = n_layers - bottom - top
    swept_widths = [
        condition(swap(f"{end}, width {width}", (width * (end != "top"), width * (end != "bottom"))))
        for end in ("bottom", "top", "both")
        for width in zone_widths
        if 0 < (1 + (end == "both")) * width <= between
    ]
    if not swept_widths:
        raise UserError(f"none of zone_widths {zone_widths} fits between {bottom} bottom and {top} top layers")
    of_weight: dict[float, str] = {}  # without a zone all weights are the hard cut, as weight 0 is
    if below or above:
        of_weight = {w: f"weight {w:g}" for w in zone_weights if w not in (0, weight)} | {weight: kept}
    swept_weights = [condition(swap(name, (below, above), w)) for w, name in of_weight.items() if name != kept]
    non_layer = {"math": 0.0, "average": 0.5, "language": 1.0}
    zones = {"kept": (below, above), "removed": (0, 0)}
    swept_non_layer = [
        condition(swap(f"{zone}, non-layer {source}", zones[zone], non_layer=w))
        for source, w in non_layer.items()
        for zone in zones
    ]
    of_sources = {
        f"{zone}: non-layer {source} - average": {
            f"{zone}, non-layer {source}": 1.0,
            f"{zone}, non-layer average": -1.0,
        }
        for zone in zones
        for source in ("math", "language")
    }
    of_zones = {
        f"removed - kept, non-layer {source}": {f"removed, non-layer {source}": 1.0, f"kept, non-layer {source}": -1.0}
        for source in non_layer
    }
    weight_rows = [name for _, name in sorted(of_weight.items())]
    main = Comparison("transition_removed", against(kept, [removed]), (
        Claim(removed, "transition removed, against kept", fact=HIGHER_DISAGREES),
        Claim(removed, "transition removed, against kept: loss of the answer", ANSWER_LOSS, LOWER_DISAGREES),
    ))  # fmt: skip
    sweeps = (
        Comparison("transition_width", against(removed, [zone.name for zone in swept_widths]),
                   (Claim("*", "zone ({}), against removed", fact=LOWER_DISAGREES),)),
        Comparison("transition_weight", against(removed, weight_rows),
                   (Claim("weight *", "zone of {}, against removed", fact=LOWER_DISAGREES),)),
        Comparison("non_layer", of_sources | of_zones, tuple(
            Claim(f"removed: non-layer {source} - average",
                  f"non-layer parameters from the {source} expert, against the average (zone removed)")
            for source in ("math", "language"))),
    )  # fmt: skip
    swept = (*ablation, *swept_widths, *swept_weights, *swept_non_layer)
    return (
        Experiment("03_transition", "n_problems", ablation, (main,)),
        Experiment("03_transition", "n_sweep", swept, sweeps),
    )


# --- 4: ablation 2, only the top or only the bottom layers replaced ---------------------------------------------------


def ends(n_layers: int, widths: dict[str, int], control_seeds: Sequence[int], non_layer_weight: float) -> Experiment:
    """Neither end, only bottom, only top, both; and both against controls that replace as many layers elsewhere.

    UserError if two of both and its controls are the same layers.
    """
    bottom, top = widths["bottom"], widths["top"]
    both = layer_swap(n_layers, bottom, top, non_layer_weight=non_layer_weight, name="both")
    four = (
        condition(selected_layers(n_layers, [], non_layer_weight, "neither"), "math expert"),
        condition(only_bottom(n_layers, bottom, non_layer_weight), "language expert"),
        condition(only_top(n_layers, top, non_layer_weight)),
        condition(both, "layer swap"),
    )
    count = bottom + top
    draws = [random_layers(n_layers, count, seed, non_layer_weight, f"random layers, draw {seed}")
             for seed in control_seeds]  # fmt: skip
    controls = [
        middle_layers(n_layers, count, non_layer_weight, "middle layers"),
        *draws,
        selected_layers(n_layers, range(bottom, n_layers - top), non_layer_weight, "roles reversed"),
    ]
    placements = [both.layers, *(plan.layers for plan in controls)]
    if len(set(placements)) < len(placements):
        raise UserError("two of both ends and its controls are the same layers: change bottom, top or control_seeds")
    interaction = {"interaction": {"both": 1.0, "only bottom": -1.0, "only top": -1.0, "neither": 1.0}}
    mean_of_draws = "mean of the random draws"
    against_controls = {plan.name: {"both": 1.0, plan.name: -1.0} for plan in controls}
    if draws:
        against_controls[mean_of_draws] = {"both": 1.0} | {plan.name: -1 / len(draws) for plan in draws}
    comparisons = (
        Comparison("top_bottom", against("neither", ["both", "only bottom", "only top"]) | interaction, (
            Claim("only bottom", "only bottom, against neither"), Claim("only top", "only top, against neither"),
            Claim("both", "both, against neither"), Claim("interaction", "interaction of both ends"),
            Claim("only bottom", "only bottom, against neither: loss of the answer", ANSWER_LOSS),
            Claim("only top", "only top, against neither: loss of the answer", ANSWER_LOSS),
        )),
        Comparison("controls", against("neither", ["both", *(plan.name for plan in controls)]), (
            Claim("middle layers", "control: as many middle layers, against neither"),
            Claim("random layers*", "control: {}, against neither"),
            Claim("roles reversed", "control: roles reversed, against neither"),
        )),
        Comparison("both_controls", against_controls, (
            Claim("middle layers", "both, against as many middle layers"),
            Claim(mean_of_draws, "both, against the {}"),
            Claim("roles reversed", "both, against roles reversed"),
        )),
    )  # fmt: skip
    return Experiment("04_top_bottom", "n_problems", (*four, *map(condition, controls)), comparisons)


def width_map(n_layers: int, widths: dict[str, int], map_widths: Sequence[int], non_layer_weight: float) -> Experiment:
    """Every number of bottom and of top layers, against the default ones (*both*)."""
    both = layer_swap(n_layers, widths["bottom"], widths["top"], non_layer_weight=non_layer_weight, name="both")
    grid = [layer_swap(n_layers, b, u, non_layer_weight=non_layer_weight, name=f"{b} bottom, {u} top")
            for b in map_widths for u in map_widths]  # fmt: skip
    others = [plan.name for plan in grid if plan.layers != both.layers]
    conditions = (*map(condition, grid), condition(both, "layer swap"))
    return Experiment("04_top_bottom", "n_map", conditions, (Comparison("width_paired", against("both", others)),))


def single_layers(n_layers: int, probed_layers: Sequence[int]) -> Experiment:
    """One layer from the language expert, all others from the math expert; last the non-layer parameters alone.

    probed_layers: none means all.
    """
    probed = list(dict.fromkeys(probed_layers)) or range(n_layers)
    alone = [selected_layers(n_layers, [layer], 0.0, str(layer)) for layer in probed]
    alone.append(Plan("non-layer", (0.0,) * n_layers, 1.0))
    math_expert = experts_alone(n_layers)[1]
    comparison = Comparison("single_layers", against(math_expert.name, [plan.name for plan in alone]))
    conditions = (math_expert, *(condition(plan, "language expert") for plan in alone))
    return Experiment("04_top_bottom", "n_map", conditions, (comparison,))


# --- 5: methods -------------------------------------------------------------------------------------------------------


def candidates(
    n_layers: int, candidate_widths: Sequence[int], non_layer_weights: Sequence[float], generations: int
) -> Experiment:
    """The widths (hard cuts) and non-layer weights that validation problems choose from, and the search after them."""
    grid = [
        layer_swap(n_layers, b, u, non_layer_weight=w, name=f"{b} bottom, {u} top, non-layer {w:g}")
        for b in candidate_widths
        for u in candidate_widths
        for w in non_layer_weights
    ]
    return Experiment("05_mgsm", "n_validation", tuple(map(condition, grid)), split="validation", one_pair=True,
                      n_searched=generations * SEARCH_POPULATION)  # fmt: skip


def methods(
    n_layers: int, widths: dict[str, int], weight: float, non_layer_weight: float, ties_density: float,
    baselines: Collection[str] = (), chosen_plans: Sequence[Plan] = (),
) -> Experiment:  # fmt: skip
    """All methods: base and experts, training instead of merging, merges from the literature, layer swapping.

    baselines: of "joint" and "frozen", those that were trained. chosen_plans: the swaps that validation problems chose.
    """
    bottom, top = widths["bottom"], widths["top"]
    swap = layer_swap(n_layers, **widths, weight=weight, non_layer_weight=non_layer_weight, name="layer swap")
    removed = layer_swap(n_layers, bottom, top, non_layer_weight=non_layer_weight, name="transition removed")
    joint = condition(uniform(n_layers, 0.0, "joint SFT"), "other training", ("joint", "joint"))
    frozen = condition(replace(swap, name="freeze in training"), "other training", ("frozen math", "frozen language"))
    reverted = layer_swap(n_layers, bottom, top, non_layer_weight=0.0, name="revert after training")
    conditions, equals = unique_conditions([
        *experts_alone(n_layers),
        *([joint] if "joint" in baselines else []),
        *([frozen] if "frozen" in baselines else []),
        condition(reverted, "other training", ("math", "base")),
        condition(soup(n_layers), "other merge"),
        condition(TaskVectors("task arithmetic at 1", "task arithmetic"), "other merge"),
        condition(TaskVectors("TIES", "ties", density=ties_density), "other merge"),
        condition(swap, "layer swap"),
        condition(removed, "transition removed"),
        condition(only_bottom(n_layers, bottom, non_layer_weight)),
        *map(condition, chosen_plans),
    ])  # fmt: skip
    names = [method.name for method in conditions]
    swaps = [name for name in (swap.name, removed.name, "only bottom", *(plan.name for plan in chosen_plans))
             if name in names]  # fmt: skip
    widths_chosen = (chosen_plans or [swap])[0].name
    reference = next((name for name, others in equals.items() if widths_chosen in others), widths_chosen)

    def claims(
        rows: Iterable[str], reference: str, measure: str = EXACT_MATCH, fact: Fact | None = None
    ) -> tuple[Claim, ...]:
        ending = "" if measure == EXACT_MATCH else ": loss of the answer"
        return tuple(
            Claim(row, f"{row}, against {reference}{ending}", measure, fact if row == swap.name else None)
            for row in rows
        )

    math, to_soup = against("math expert", names), against("soup", names)
    claimed_methods = [name for name in METHODS_CLAIMED if name in names]
    comparisons = (
        Comparison("mgsm_paired", math, claims(claimed_methods, "the math expert", fact=BEATS_EXPERTS)),
        Comparison("answer_nll", math, claims(["soup", "TIES", *swaps[:3]], "the math expert", ANSWER_LOSS)),
        Comparison("mgsm_soup", to_soup, claims(swaps, "the soup", fact=BEATS_MERGES)),
        Comparison("mgsm_chosen", against(reference, swaps), claims(
            [name for name in (swap.name, "searched weights") if name in swaps and chosen_plans],
            "the widths chosen")),
        Comparison("solution_nll", math),
    )  # fmt: skip
    return Experiment("05_mgsm", "n_problems", conditions, comparisons, equals=equals)


METHODS_CLAIMED = (
    "base", "language expert", "joint SFT", "freeze in training", "revert after training", "soup",
    "task arithmetic at 1", "TIES", "layer swap", "transition removed", "only bottom", "widths chosen",
    "searched weights",
)  # fmt: skip


# --- 6: where layer swapping can help ---------------------------------------------------------------------------------

SUM = TaskVectors("math + language vector", "task arithmetic")  # the math expert with all that the language one learned


def dose_response(
    n_layers: int, widths: dict[str, int], weight: float, non_layer_weight: float, scales: Sequence[float]
) -> Experiment:
    """The dosed methods with the experts as they are, and with experts whose task vectors are multiplied by ``scales``.

    "language x 0.5" is the language expert at half of its distance from the base; "both x 0.5" are both experts so.
    """
    methods = dosed_methods(n_layers, widths, weight, non_layer_weight)
    scaled = [
        replace(method, name=f"{method.name}, {what} x {scale:g}", roles=roles)
        for scale in scales
        for what, roles in scaled_roles(scale).items()
        for method in methods
        if what == "both" or method.name != "math expert"  # which has nothing of the language expert
    ]
    contrasts: dict[str, dict[str, float]] = {}
    for dose in ("", *(f", {what} x {scale:g}" for scale in scales for what in ("language", "both"))):
        math = "math expert" + (dose if "both" in dose else "")
        for method, reference in (("layer swap", math), ("soup", math), ("layer swap", "soup")):
            other = reference if reference == math else f"soup{dose}"
            contrasts[f"{method} - {reference.partition(',')[0]}{dose}"] = {f"{method}{dose}": 1.0, other: -1.0}
    comparison = Comparison("dose_response", contrasts)
    return Experiment("06_dose_response", "n_problems", (*methods, *scaled), (comparison,))


def scaled_roles(scale: float) -> dict[str, tuple[Role, Role]]:
    """What is multiplied -> the two models that a plan is applied to."""
    math = TaskVectors(f"math x {scale:g}", "task arithmetic", scale, 0.0)
    language = TaskVectors(f"language x {scale:g}", "task arithmetic", 0.0, scale)
    return {"language": ("math", language), "both": (math, language)}


def dosed_methods(n_layers: int, widths: dict[str, int], weight: float, non_layer_weight: float) -> list[Condition]:
    """What is scored at every dose: the math expert, its soup with the language expert, and the layer swap."""
    swap = layer_swap(n_layers, **widths, weight=weight, non_layer_weight=non_layer_weight, name="layer swap")
    return [
        experts_alone(n_layers)[1],
        condition(soup(n_layers), "other merge"),
        condition(swap, "layer swap"),
    ]


def transplants(n_layers: int, depths: Sequence[int]) -> Experiment:
    """The language expert's task vector added to the math expert in some layers only.

    In one layer, or in the non-layer parameters; or in these and in as many layers as each of ``depths``, counted from
    the bottom or from the top. All of it is task arithmetic at scale 1, and so are the conditions' plans on two models:
    the math expert, and the sum.
    """
    math_expert = experts_alone(n_layers)[1]
    plans = [selected_layers(n_layers, [layer], 0.0, f"layer {layer}") for layer in range(n_layers)]
    plans.append(selected_layers(n_layers, [], 1.0, "non-layer"))
    inner = [depth for depth in depths if 0 < depth < n_layers]
    plans += [selected_layers(n_layers, range(depth), 1.0, f"{depth} bottom") for depth in inner]
    plans += [selected_layers(n_layers, range(n_layers - depth, n_layers), 1.0, f"{depth} top") for depth in inner]
    plans.append(uniform(n_layers, 1.0, "all"))
    conditions = (math_expert, *(condition(plan, "other merge", ("math", SUM)) for plan in plans))
    comparison = Comparison("transplants", against(math_expert.name, [plan.name for plan in plans]))
    return Experiment("06_dose_response", "n_problems", conditions, (comparison,))


# --- 7: alternatives ranked -------------------------------------------------------------------------------------------

BLIND = "math expert, text-blind"  # a floor: shown no more of a question than its numbers
PUT_BACK = "ends put back to the base"  # a control: is a gain what the language expert learned, or less mathematics?


def ranking(n_layers: int, widths: dict[str, int], weight: float, non_layer_weight: float) -> Experiment:
    """Both ablations and their controls on problems whose alternatives are ranked.

    In ``PUT_BACK`` the layers that the swap takes from the language expert come from the base instead.
    """
    bottom, top = widths["bottom"], widths["top"]
    swap = layer_swap(n_layers, **widths, weight=weight, non_layer_weight=non_layer_weight, name="layer swap")
    removed = layer_swap(n_layers, bottom, top, non_layer_weight=non_layer_weight, name="transition removed")
    merges = (
        condition(swap, "layer swap"),
        condition(removed, "transition removed"),
        condition(only_bottom(n_layers, bottom, non_layer_weight)),
        condition(only_top(n_layers, top, non_layer_weight)),
        condition(middle_layers(n_layers, bottom + top, non_layer_weight, "middle layers")),
        condition(replace(swap, name=PUT_BACK), "other training", ("math", "base")),
        condition(soup(n_layers), "other merge"),
    )
    ablations = {
        "transition removed - kept": {"transition removed": 1.0, "layer swap": -1.0},
        "only top - only bottom": {"only top": 1.0, "only bottom": -1.0},
        f"layer swap - {PUT_BACK}": {"layer swap": 1.0, PUT_BACK: -1.0},
        "layer swap - middle layers": {"layer swap": 1.0, "middle layers": -1.0},
        "layer swap - soup": {"layer swap": 1.0, "soup": -1.0},
    }
    conditions = (*experts_alone(n_layers), *merges)
    comparisons = (
        Comparison("ranking", against("math expert", [*(method.name for method in conditions), BLIND])),
        Comparison("ranking_ablations", ablations),
    )
    return Experiment("07_ranking", "n_problems", conditions, comparisons)


# --- a whole profile --------------------------------------------------------------------------------------------------


def widths_of(n_layers: int, parameters: Parameters) -> dict[str, int]:
    """The widths of a notebook's parameters; those that it does not have are the paper's, scaled."""
    return scaled_widths(n_layers, **{name: parameters[name] for name in WIDTH_NAMES if name in parameters})


def profile_experiments(settings: dict[str, Parameters], n_layers: int) -> list[Experiment]:
    """All experiments of a profile, in the order of the notebooks. settings: as ``load_profile`` gives them.

    What validation problems will choose is a placeholder of the same name.
    """
    swap, zone, both, final = (settings[name] for name in ("02_swap", "03_transition", "04_top_bottom", "05_mgsm"))
    n_chosen = (1 + (final["generations"] > 0)) * (final["n_validation"] > 0)
    placeholders = [uniform(n_layers, w, name) for name, w in (("widths chosen", 0.3), ("searched weights", 0.7))]
    ends_widths = widths_of(n_layers, both)
    grid = candidates(n_layers, final["candidate_widths"], final["non_layer_weights"], final["generations"])
    return [
        starting_point(n_layers),
        first_answers(n_layers, widths_of(n_layers, swap), swap["weight"], swap["non_layer_weight"]),
        *transition_zone(n_layers, widths_of(n_layers, zone), zone["zone_widths"], zone["zone_weights"],
                         zone["weight"], zone["non_layer_weight"]),
        ends(n_layers, ends_widths, both["control_seeds"], both["non_layer_weight"]),
        width_map(n_layers, ends_widths, both["map_widths"], both["non_layer_weight"]),
        single_layers(n_layers, both["probed_layers"]),
        *([grid] if n_chosen else []),
        methods(n_layers, widths_of(n_layers, final), final["weight"], final["non_layer_weight"],
                final["ties_density"], settings["01_experts"]["baselines"], placeholders[:n_chosen]),
    ]  # fmt: skip
