"""Layer swapping to play with: sliders for the plan, and beside them what the merged model answers, at once.

The two experts lie in memory; a change of plan exchanges tensors and costs next to nothing, so an answer comes as fast
as the model writes it.
"""

import shlex
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
import yaml
from statsmodels.stats.proportion import proportion_confint
from transformers import PreTrainedTokenizerBase

from layerswap.analysis.plots import METHOD_COLOURS
from layerswap.analysis.titles import language_name
from layerswap.checkpoints.loading import load_tokenizer
from layerswap.errors import UserError
from layerswap.evaluation.engine import Generation, stream
from layerswap.evaluation.scoring import apply_template
from layerswap.experts.index import expert_for_role
from layerswap.files import ROOT, atomic_file
from layerswap.merging.in_memory import ExpertPair
from layerswap.merging.plans import WIDTH_NAMES, Plan, layer_swap, scaled_widths, soup, uniform
from layerswap.processor import resolve_dtype
from layerswap.run.scores import ProfileScores
from layerswap.tasks.base import Problem

LABELS = {
    "bottom": "bottom", "top": "top", "transition_bottom": "transition, bottom", "transition_top": "transition, top",
    "weight": "weight there", "non_layer_weight": "outside layers",
}  # fmt: skip


class Explorer:
    """Controls and what they show.

    Args:
        scores: a profile's experts, task and prompts.
        n_problems: problems to pick from, and to score.
        plan_file: where the button writes the plan.
    """

    def __init__(self, scores: ProfileScores, n_problems: int, plan_file: Path) -> None:
        self.scores, self.n_problems, self.plan_file = scores, n_problems, plan_file
        widths, n_layers = scaled_widths(scores.n_layers), scores.n_layers
        self.sliders: dict[str, Any] = {
            name: widgets.IntSlider(widths[name], 0, n_layers, description=LABELS[name]) for name in WIDTH_NAMES
        }
        for name in ("weight", "non_layer_weight"):
            self.sliders[name] = widgets.FloatSlider(0.5, min=0, max=1, step=0.05, description=LABELS[name])
        seeds = list(scores.index.seeds)
        self.language = widgets.Dropdown(
            options=[(language_name(code), code) for code in scores.languages], description="language"
        )
        self.math_seed, self.language_seed = (
            widgets.Dropdown(
                options=[(str(seed), i) for i, seed in enumerate(seeds)], value=0, description=f"{name} seed"
            )
            for name in ("math", "language")
        )
        self.problem = widgets.Dropdown(options=list(range(n_problems)), description="problem")
        self.score_button = widgets.Button(description=f"score {n_problems} problems")
        self.save_button = widgets.Button(description="write the plan")
        self.progress = widgets.IntProgress(0, 0, n_problems, description="")
        self.progress.layout.visibility = "hidden"
        self.picture, self.answers, self.result = widgets.HTML(), widgets.HTML(), widgets.HTML()
        for control in (*self.sliders.values(), self.language, self.math_seed, self.language_seed, self.problem):
            control.style.description_width = "9.5em"
            control.observe(self.update, "value")
        self.score_button.on_click(lambda _: self.score())
        self.save_button.on_click(lambda _: self.save())
        self.fixed_answers: dict[tuple[Any, ...], Generation] = {}  # of the experts and the soup
        self.pairs: dict[tuple[str, int, int], ExpertPair] = {}  # the last one
        self.tokenizer = cache(load_tokenizer)  # a slider waits for an answer, not for a file
        controls = widgets.VBox([
            *self.sliders.values(), self.language, self.math_seed, self.language_seed, self.problem,
            widgets.HBox([self.score_button, self.save_button]), self.progress,
        ])  # fmt: skip
        column = widgets.VBox(
            [self.picture, self.answers, self.result], layout=widgets.Layout(flex="1", min_width="20em")
        )
        self.widget = widgets.HBox([controls, column], layout=widgets.Layout(flex_flow="row wrap", gap="2em"))
        self.update()

    @property
    def plan(self) -> Plan:
        """The layer swap of the sliders. UserError where its zones do not fit into the model."""
        values = {name: slider.value for name, slider in self.sliders.items()}
        return layer_swap(self.scores.n_layers, **values, name="explored")

    @property
    def pair_key(self) -> tuple[str, int, int]:
        """Language, math expert and language expert."""
        return self.language.value, self.math_seed.value, self.language_seed.value

    @property
    def folders(self) -> tuple[Path, Path]:
        """Those of math and language expert."""
        index, (language, *seeds) = self.scores.index, self.pair_key
        return tuple(expert_for_role(index, role, language, *seeds) for role in ("math", "language"))  # type: ignore

    @property
    def models(self) -> ExpertPair:
        """The two experts in memory; those of another pair are let go."""
        if self.pair_key not in self.pairs:
            dtype = getattr(torch, resolve_dtype(self.scores.dtype, self.scores.device))
            self.pairs = {self.pair_key: ExpertPair(*self.folders, device=self.scores.device, dtype=dtype)}
        return self.pairs[self.pair_key]

    @cached_property
    def problems(self) -> Mapping[str, list[Problem]]:
        """Language -> problems."""
        task, split = self.scores.task, self.scores.split
        return {code: task.problems(code, split, self.n_problems) for code in self.scores.languages}

    def generate(self, plan: Plan, problems: list[Problem], on_finish: Callable[[], None]) -> list[Generation]:
        """The answers of a merge, with the loss of the task's reference text."""
        scores, task = self.scores, self.scores.task
        tokenizer: PreTrainedTokenizerBase = self.tokenizer(self.folders[0])
        exemplars = task.exemplars(self.language.value, scores.exemplars, scores.style)
        prompts = [task.prompt(problem, exemplars, scores.style) for problem in problems]
        is_chat = scores.style == "chat"
        texts = [apply_template(tokenizer, prompt) for prompt in prompts] if is_chat else prompts
        references = [task.reference_text(problem, scores.style) for problem in problems]
        stop = task.stops(self.language.value, scores.style, bool(exemplars) and not tokenizer.chat_template)
        answers: dict[int, Generation] = {}
        for batch in stream(self.models.apply(plan), tokenizer, texts, scores.max_new_tokens, stop, references,
                            templated=is_chat, on_finish=lambda *_: on_finish()):  # fmt: skip
            answers |= batch
        return [answers[i] for i in range(len(problems))]

    def update(self, _: object = None) -> None:
        """Show the plan, and the answers to the problem under it."""
        try:
            plan = self.plan
            problem = self.problems[self.language.value][self.problem.value]
            n_layers = self.scores.n_layers
            fixed = {"math expert": uniform(n_layers, 0, "math expert"), "soup": soup(n_layers),
                     "language expert": uniform(n_layers, 1, "language expert")}  # fmt: skip
            for name, other in fixed.items():
                key = (*self.pair_key, problem.id, name)
                if key not in self.fixed_answers:
                    self.fixed_answers[key] = self.generate(other, [problem], lambda: None)[0]
            answers = {"merged": self.generate(plan, [problem], lambda: None)[0]}
            answers |= {name: self.fixed_answers[*self.pair_key, problem.id, name] for name in fixed}
        except UserError as error:
            self.show_error(error)
            return
        self.picture.value, self.result.value = plan_picture(plan), ""
        self.answers.value = answer_table(self.scores, problem, answers)

    def show_error(self, error: UserError) -> None:
        """Say what cannot be done; what was shown before stays."""
        self.result.value = f"<p role='alert'>{escape(str(error))}</p>"

    def score(self) -> None:
        """Exact match of the plan on all problems, with Wilson's 95 % interval."""
        problems = self.problems[self.language.value]
        self.score_button.disabled, self.progress.value, self.progress.layout.visibility = True, 0, "visible"

        def on_finish() -> None:
            self.progress.value += 1

        try:
            answers = self.generate(self.plan, problems, on_finish)
            n_correct = sum(is_correct(self.scores, problem, answer)
                            for problem, answer in zip(problems, answers, strict=True))  # fmt: skip
            low, high = proportion_confint(n_correct, len(problems), method="wilson")
            self.result.value = (
                f"<p>exact match {100 * n_correct / len(problems):.0f} % ({100 * low:.0f} to {100 * high:.0f},"
                f" 95 % interval, n = {len(problems)})</p>"
            )
        except UserError as error:
            self.show_error(error)
        finally:
            self.score_button.disabled, self.progress.layout.visibility = False, "hidden"

    def save(self) -> None:
        """Write the plan, and show the command that merges with it on disk."""
        try:
            plan = self.plan
        except UserError as error:
            self.show_error(error)
            return
        with atomic_file(self.plan_file) as file:
            yaml.safe_dump(plan.to_dict(), file, sort_keys=False)
        math, language, plan_file = (relative(path) for path in (*self.folders, self.plan_file))
        command = shlex.join(["layerswap", "merge", "--math", math, "--language", language, "--plan", plan_file,
                              "--out", "build/merged"])  # fmt: skip
        self.result.value = (
            f"<p>written: {escape(plan_file)}; from the project's folder:</p><pre>{escape(command)}</pre>"
        )


def relative(path: Path) -> str:
    """A path as seen from the project's folder, if it lies in it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def is_correct(scores: ProfileScores, problem: Problem, answer: Generation) -> bool:
    """Whether an answer gives the problem's number."""
    return scores.task.extract(answer.text, problem.language).value == problem.number


def plan_picture(plan: Plan) -> str:
    """The plan as a row of coloured squares, bottom layer first, and one for the non-layer parameters."""
    math, language = METHOD_COLOURS["math expert"], METHOD_COLOURS["language expert"]
    cells = [*[(f"layer {i}", weight) for i, weight in enumerate(plan.layers)], ("outside", plan.non_layer_weight)]
    squares = "".join(
        f'<span title="{name}: {weight:g} language expert" style="display:inline-block; width:1.3em; height:1.6em;'
        f" margin:1px{' 1px 1px .8em' * (name == 'outside')}; background:color-mix(in srgb, {language}"
        f' {100 * weight:.0f}%, {math})"></span>'
        for name, weight in cells
    )
    legend = (
        f'<span style="color:{math}">&#9632;</span> math expert <span style="color:{language}">&#9632;</span> language'
        " expert; bottom layer first, then what is outside the layers"
    )
    return f'<div role="img" aria-label="layers: {plan.layer_map()}">{squares}</div><p>{legend}</p>'


def answer_table(scores: ProfileScores, problem: Problem, answers: Mapping[str, Generation]) -> str:
    """A problem and what several models answer, as a table."""
    rows = []
    for name, answer in answers.items():
        mark = "&#10003;" if is_correct(scores, problem, answer) else "&#10007;"
        loss = answer.loss.nats / answer.loss.n_tokens if answer.loss else float("nan")
        rows.append(
            f"<tr><th scope='row' style='text-align:left'>{name}</th><td>{mark}</td><td>{loss:.3f}</td>"
            f"<td style='text-align:left; white-space:pre-wrap'>{escape(answer.text.strip())}</td></tr>"
        )
    head = "".join(f"<th scope='col' style='text-align:left'>{text}</th>" for text in
                   ("model", "right", "loss of the gold answer, nats a token", "answer"))  # fmt: skip
    return (
        f"<p><b>{escape(problem.question)}</b> &rarr; {problem.number}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
