"""Recipes and running: which parameters a notebook gets, whether it must run again, and the run itself.

``python -m layerswap.nb run --profile lab [01_experts ...]`` runs what changed, ``plan`` says what that would cost, and
``notebooks`` executes the sources in place with their own defaults. A notebook's recipe is everything its result
depends on: its parameters and code, the layerswap modules it imports, the pinned packages, the data, and what the
notebooks it needs left behind. The record (recipe and digests of all outputs) is written last, so nothing half-made is
ever trusted.
"""

import argparse
import ast
import difflib
import fcntl
import json
import math
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from layerswap.mgsm import FOLDERS
from layerswap.paths import ROOT, UserError, atomic_file, data_folder, digest, file_digest

KINDS = ("png", "svg", "csv")  # files of one figure


@dataclass(frozen=True)
class House:
    """The folders of a project below ``root``."""

    root: Path = ROOT

    def notebook(self, name):
        return self.root / "notebooks" / f"{name}.ipynb"

    def names(self):
        return sorted(path.stem for path in (self.root / "notebooks").glob("*.ipynb"))

    def build(self, profile, file):
        return self.root / "build" / profile / file

    def outputs(self, name, profile):
        """The files that the notebook's metadata declares: its figures and what it leaves for other notebooks."""
        declared = metadata(self, name)
        figures = self.root / "figures" / profile
        files = [figures / f"{figure}.{kind}" for figure in declared["writes"] for kind in KINDS]
        return files + [self.build(profile, file) for file in declared["leaves"]]


def read(house, name):
    """The notebook as JSON. UserError if there is none."""
    if not house.notebook(name).is_file():
        raise UserError(f"notebook {name!r} is unknown, expected one of {', '.join(house.names())}")
    return json.loads(house.notebook(name).read_text(encoding="utf-8"))


def metadata(house, name):
    """{"needs", "writes", "leaves"} of a notebook. UserError if its metadata does not say."""
    declared = read(house, name)["metadata"].get("layerswap", {})
    if set(declared) != {"needs", "writes", "leaves"}:
        raise UserError(f"{name}: the notebook's metadata has no layerswap entry with needs, writes and leaves")
    return declared


def code(house, name):
    """Sources of the code cells, in order."""
    return ["".join(cell["source"]) for cell in read(house, name)["cells"] if cell["cell_type"] == "code"]


def defaults(house, name):
    """Parameter -> default of the cell tagged ``parameters``. UserError unless it holds literals only, one a line."""
    cells = [cell for cell in read(house, name)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise UserError(f"{name}: found {len(cells)} cells tagged parameters, expected one")
    found = {}
    for line in ast.parse("".join(cells[0]["source"])).body:
        try:
            (target,) = line.targets
            found[target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise UserError(f"{name}: line {line.lineno} of the parameters cell is not `name = literal`") from None
    return found


def fitting(value, default):
    """Whether a value may stand for a default: the same type (a list: of the same types), or an int for a float."""
    if isinstance(default, list) and isinstance(value, list):
        return not default or all(fitting(each, default[0]) for each in value)
    return type(value) is type(default) or (type(value) is int and type(default) is float)


def settings(house, profile):
    """Notebook -> all its parameters under a profile (params/<profile>.yml over the notebooks' defaults).

    The section ``all`` reaches every notebook that has the parameter, a section named like a notebook that one.
    UserError names a section or parameter that does not exist and a value of the wrong type.
    """
    path = house.root / "params" / f"{profile}.yml"
    have = sorted(each.stem for each in (house.root / "params").glob("*.yml"))
    if profile not in have:  # nor is a path a profile: it would write elsewhere
        raise UserError(f"profile {profile!r}: params/{profile}.yml does not exist, expected one of {', '.join(have)}")
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"params/{profile}.yml: {' '.join(str(error).split())}") from None
    if not isinstance(sections, dict):
        raise UserError(f"params/{profile}.yml: found {sections!r}, expected sections with parameters")
    known = {name: defaults(house, name) for name in house.names()}
    for name, values in known.items():
        if "profile" not in values:
            raise UserError(f"{name}: the parameters cell has no `profile`, which says where results go")
    result = {name: values | {"profile": profile} for name, values in known.items()}
    for section, values in sections.items():
        if section != "all" and section not in known:
            raise UserError(f"params/{profile}.yml: section {section!r} names no notebook{nearest(section, known)}")
        if not isinstance(values, dict):
            raise UserError(f"params/{profile}.yml: section {section!r} is {values!r}, expected parameters")
        for parameter, value in values.items():
            reached = [n for n in known if section in ("all", n) and parameter in known[n]]
            if not reached or parameter == "profile":
                names = {p for n in known if section in ("all", n) for p in known[n]}
                where = f"params/{profile}.yml, {section}"
                raise UserError(f"{where}: no notebook has a parameter {parameter!r}{nearest(parameter, names)}")
            for name in reached:
                default = known[name][parameter]
                if not fitting(value, default):
                    raise UserError(
                        f"params/{profile}.yml, {section}: {parameter} is {value!r} "
                        f"({type(value).__name__}), {name} expects {type(default).__name__} like {default!r}"
                    )
                if not countable(value):
                    raise UserError(f"params/{profile}.yml, {section}: {parameter} is {value!r}, expected 0 or more")
                if section != "all" or parameter not in (sections.get(name) or {}):
                    result[name][parameter] = float(value) if isinstance(default, float) else value
    return result


def countable(value):
    """Whether all numbers of a value are finite and not below zero, where no parameter has a meaning."""
    if isinstance(value, list):
        return all(map(countable, value))
    return not isinstance(value, (int, float)) or 0 <= value < math.inf


def named_files(house, parameters):
    """Name -> content of each file or model folder outside the project's own that a parameter names.

    Files of text by digest; model folders and GGUF files by names, sizes and times: to hash them would take as long
    as to use them.
    """
    found = {}
    values = [each for value in parameters.values() for each in (value if isinstance(value, list) else [value])]
    for value in {value for value in values if isinstance(value, str) and value}:
        for code in parameters.get("languages", [""]):
            name = re.sub(r":[^:/]*$", "", value.replace("{language}", code))  # the weight of a data set
            path = house.root / name
            if path.is_file():
                found[name] = (
                    [path.stat().st_size, path.stat().st_mtime_ns] if path.suffix == ".gguf" else file_digest(path)
                )
            elif any((path / config).is_file() for config in ("config.json", "adapter_config.json")):
                found[name] = sorted([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in path.iterdir())
    return dict(sorted(found.items()))


def nearest(word, words):
    """ "; did you mean ...?" for the closest of ``words``, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def modules(house, sources):
    """Relative path -> sha256 of the layerswap modules that the sources import, and of the modules these import."""
    found, queue = {}, list(sources)
    while queue:
        for node in ast.walk(ast.parse(queue.pop())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "layerswap":
                names = [*node.module.split(".")[1:2], *(alias.name for alias in node.names)]
                for path in (house.root / "layerswap" / f"{name}.py" for name in names):
                    if path.is_file() and path.name not in found:
                        found[path.name] = file_digest(path)
                        queue.append(path.read_text(encoding="utf-8"))
    if "lab.py" in found:
        data = house.root / "layerswap" / "lab_data"
        files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.suffix != ".md"]
        found |= {str(path.relative_to(data)): file_digest(path) for path in files}
    return dict(sorted(found.items()))


def recipe(house, name, profile, parameters):
    """Everything the notebook's result depends on, as JSON-able data."""
    sources, lock = code(house, name), house.root / "requirements.lock"
    needed = {}
    for need in metadata(house, name)["needs"]:
        for file in metadata(house, need)["leaves"]:
            path = house.build(profile, file)
            needed[file] = file_digest(path) if path.is_file() else None
    data = {}
    texts = [house.build(profile, file).read_text(encoding="utf-8") for file, sha in needed.items() if sha]
    if any(each in parameters.values() or any(f'"source": "{each}"' in text for text in texts) for each in FOLDERS):
        data = {
            str(p.relative_to(data_folder())): file_digest(p) for p in sorted(data_folder().rglob("*")) if p.is_file()
        }
    return {
        "parameters": parameters, "code": sources, "modules": modules(house, sources), "needs": needed,
        "data": digest(data), "files": named_files(house, parameters), "lock": file_digest(lock),
        "python": platform.python_version(),
    }  # fmt: skip


def is_current(house, name, profile, parameters):
    """Whether the record has this recipe and every output is as the record says."""
    record = house.build(profile, f"{name}.json")
    if not record.is_file():
        return False
    known = json.loads(record.read_text(encoding="utf-8"))
    return known["recipe"] == recipe(house, name, profile, parameters) and all(
        (house.root / file).is_file() and file_digest(house.root / file) == sha
        for file, sha in known["outputs"].items()
    )


def clean(notebook):
    """Drop what differs between equal runs and machines: timings, papermill's notes, random ids, warnings."""
    notebook["metadata"] = {k: notebook["metadata"][k] for k in ("kernelspec", "language_info", "layerswap")
                            if k in notebook["metadata"]}  # fmt: skip
    notebook["metadata"]["language_info"] = {"name": "python"}
    for i, cell in enumerate(notebook["cells"]):
        cell["metadata"] = {"tags": tags} if (tags := cell["metadata"].get("tags")) else {}
        cell["id"] = f"cell-{i:02d}"
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    return notebook


def quiet_kernels():
    """Have kernels start from this interpreter, with progress bars off where no terminal would show them."""
    os.environ.update({"JUPYTER_PREFER_ENV_PATH": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"})
    os.environ["JUPYTER_PATH"] = os.path.join(sys.prefix, "share", "jupyter")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"


def run(house, profile, names=()):
    """Run the notebooks (all, or those named) whose recipe changed; returns the names that ran.

    UserError for bad parameters before anything runs, and for a notebook that fails or does not write what it declares;
    then the notebook stays as build/<profile>/<name>.failed.ipynb.
    """
    parameters, ran = settings(house, profile), []
    for name in names or house.names():
        metadata(house, name)
    for name in names or house.names():
        house.build(profile, "").mkdir(parents=True, exist_ok=True)
        with open(house.build(profile, f".{name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_current(house, name, profile, parameters[name]):
                print(f"{name:14} unchanged", flush=True)
            else:
                seconds = execute(house, name, profile, parameters[name])
                print(f"{name:14} {seconds:5.0f} s", flush=True)
                ran.append(name)
    return ran


def execute(house, name, profile, parameters):
    """Run one notebook through papermill and record it; returns the seconds it took."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    quiet_kernels()
    if sys.stderr.isatty():
        os.environ["LAYERSWAP_TERMINAL"] = os.ttyname(sys.stderr.fileno())
    target, record, failed, running = (
        house.build(profile, f"{name}.{end}") for end in ("ipynb", "json", "failed.ipynb", "running.ipynb")
    )
    for stale in (record, failed, running):
        stale.unlink(missing_ok=True)
    known, started = recipe(house, name, profile, parameters), time.time_ns()
    changed = {k: v for k, v in parameters.items() if v != defaults(house, name)[k]}
    try:
        papermill.execute_notebook(
            house.notebook(name), running, changed, kernel_name="python3", cwd=house.notebook(name).parent,
            progress_bar=sys.stderr.isatty(), extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        for path in house.outputs(name, profile):
            if not path.is_file() or path.stat().st_mtime_ns < started:
                raise UserError(f"{path.relative_to(house.root)} was declared but not written")
    except (papermill.exceptions.PapermillExecutionError, DeadKernelError, UserError) as error:
        target.unlink(missing_ok=True)
        if running.exists():
            os.replace(running, failed)
        raw = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else str(error)
        reason = re.sub(r"\x1b\[[0-9;]*m", "", raw).strip().splitlines()[0]
        raise UserError(f"{name} failed: {reason} (see {failed.relative_to(house.root)})") from None
    with atomic_file(running) as file:
        nbformat.write(clean(nbformat.read(running, 4)), file)
    os.replace(running, target)
    outputs = {str(path.relative_to(house.root)): file_digest(path) for path in [*house.outputs(name, profile), target]}
    with atomic_file(record) as file:
        json.dump({"recipe": known, "outputs": outputs}, file, indent=1, ensure_ascii=False)
    return (time.time_ns() - started) / 1e9


def refresh(house, names=()):
    """Execute the sources in place with their own defaults; the stored outputs are what nbval compares with."""
    import nbformat
    from nbclient import NotebookClient

    quiet_kernels()
    for name in names or house.names():
        started, path = time.monotonic(), house.notebook(name)
        notebook = nbformat.read(path, 4)
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": path.parent}},
        ).execute()
        with atomic_file(path) as file:
            nbformat.write(clean(notebook), file)
        print(f"{name:14} {time.monotonic() - started:5.0f} s", flush=True)


def main(arguments=None):
    """The command line; bad input exits with 2 and one line, a failed notebook with 1."""
    parser = argparse.ArgumentParser(prog="python -m layerswap.nb", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run what changed, under a profile")
    runner.add_argument("--profile", default="lab", help="name of a file in params/ (default: lab)")
    planner = commands.add_parser("plan", help="what a profile would cost; nothing is run or fetched")
    planner.add_argument("--profile", default="lab", help="name of a file in params/ (default: lab)")
    for command in (runner, commands.add_parser("notebooks", help="execute the sources in place with their defaults")):
        command.add_argument("names", nargs="*", help="notebooks, such as 01_experts (default: all)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "run":
            run(House(), chosen.profile, chosen.names)
        elif chosen.command == "plan":
            from layerswap import estimate  # here, as it needs the hub's library

            print("\n".join(estimate.lines(chosen.profile, settings(House(), chosen.profile))))
        else:
            refresh(House(), chosen.names)
    except UserError as error:
        print(f"layerswap: {error}", file=sys.stderr)
        return 1 if " failed: " in str(error) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
