"""Running the notebooks: whether one must run again, and the run itself.

A notebook's fingerprint is everything that its result depends on: its parameters and code, every file of this package,
the pinned packages, the data, and what the notebooks it needs left behind. The record (fingerprint and digests of all
outputs) is written last, so nothing half-made is ever trusted.
"""

import fcntl
import json
import logging
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from layerswap.errors import UserError, one_line
from layerswap.files import DRAFT, ROOT, atomic_file, data_folder, file_digest, json_digest
from layerswap.run.cost import check_profile
from layerswap.run.profiles import (
    Parameters,
    Project,
    changed_parameters,
    code_cells,
    find_task,
    load_profile,
    metadata,
    parameter_defaults,
)
from layerswap.terminal import print_error
from layerswap.workers import Workers, preload


class NotebookFailed(UserError):
    """A notebook ended with an error, or did not write what it declares."""


def external_inputs(project: Project, parameters: Parameters) -> dict[str, Any]:
    """Name -> content of each file, model folder or data set's folder outside the project that a parameter names.

    Files of text by digest; folders and GGUF files by names, sizes and times: to hash them would take as long as to
    use them.
    """
    inputs: dict[str, Any] = {}
    for value in set(strings_in(parameters)):
        for language in parameters.get("languages", [""]):
            name = re.sub(r":[^:/]*$", "", value.replace("{language}", language))  # the weight of a data set
            path = project.root / name
            if path.is_file() and path.suffix != ".gguf":
                inputs[name] = file_digest(path)
            elif path.is_file():
                inputs[name] = listing([path])
            elif any((path / config).is_file() for config in ("config.json", "adapter_config.json")):
                inputs[name] = listing(path.iterdir())
    source = project.root / str(parameters.get("source", "")).removeprefix("msvamp:")
    if source.is_dir() and source != project.root:
        inputs["source"] = listing(path for path in source.rglob("*") if path.is_file())
    return dict(sorted(inputs.items()))


def listing(paths: Iterable[Path]) -> list[list[Any]]:
    """Name, size and time of files."""
    return sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths)


def strings_in(value: Any) -> list[str]:
    """All texts in a parameter's value, within lists and dicts too; empty ones do not count."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return [value] if isinstance(value, str) and value else []


def package_digest(project: Project) -> str:
    """Digest of every file of the package, whatever package it is in; texts for people (.md) do not count."""
    folder = project.root / "layerswap"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".md", ".pyc")]
    return json_digest([[str(path.relative_to(folder)), file_digest(path)] for path in files])


def data_digest(project: Project, parameters: Parameters, artifacts: Sequence[Path]) -> str:
    """Digest of LAYERSWAP_DATA where the notebook reads it: its benchmark lies there, or it trains on GSM8K.

    The benchmark is that of the parameter ``source``, or of the artifacts that the notebook reads.
    """
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in artifacts if path.is_file()]
    sources = {content["source"] for content in (parameters, *contents)
               if isinstance(content, dict) and "source" in content}  # fmt: skip
    trains_on_gsm8k = any(text.partition(":")[0] == "gsm8k" for text in strings_in(parameters))
    if not trains_on_gsm8k and not any(find_task(source).reads_data_folder for source in sources):
        return json_digest({})
    folder = data_folder()
    return json_digest({str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()})


def fingerprint(project: Project, name: str, profile: str, parameters: Parameters) -> dict[str, Any]:
    """Everything the notebook's result depends on, as JSON-able data."""
    needed = [file for need in metadata(project, name)["needs"] for file in metadata(project, need)["artifacts"]]
    artifacts = {file: project.build(profile, file) for file in needed}
    return {
        "parameters": parameters | {"workers": 1},  # they change no result
        "code": code_cells(project, name), "package": package_digest(project),
        "needs": {file: file_digest(path) if path.is_file() else None for file, path in artifacts.items()},
        "data": data_digest(project, parameters, list(artifacts.values())),
        "files": external_inputs(project, parameters), "lock": file_digest(project.root / "requirements.lock"),
        "python": platform.python_version(),
    }  # fmt: skip


def is_current(project: Project, name: str, profile: str, parameters: Parameters) -> bool:
    """Whether the record has this fingerprint, every output is as the record says, and models in them are there."""
    path = project.build(profile, f"{name}.json")
    if not path.is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    return (
        record.get("fingerprint") == fingerprint(project, name, profile, parameters)
        and all(
            (project.root / file).is_file() and file_digest(project.root / file) == sha
            for file, sha in record["outputs"].items()
        )
        and all(map(holds_model, indexed_models(project, name, profile)))
    )


def indexed_models(project: Project, name: str, profile: str) -> list[Path]:
    """The folders of models that a notebook's artifacts name, as the index of experts does."""
    artifacts = [project.build(profile, file) for file in metadata(project, name)["artifacts"]]
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in artifacts if path.suffix == ".json"]
    return [project.root / folder for content in contents if isinstance(content, dict)
            for folder in strings_in(content.get("folders", {}))]  # fmt: skip


def holds_model(folder: Path) -> bool:
    """Whether a model is in a folder: build/models may have been removed since."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def clean(notebook: Any) -> Any:
    """Drop what differs between equal runs and machines: timings, papermill's notes, random ids, warnings."""
    keep = ("kernelspec", "language_info", "layerswap")
    notebook["metadata"] = {key: notebook["metadata"][key] for key in keep if key in notebook["metadata"]}
    notebook["metadata"]["language_info"] = {"name": "python"}
    for i, cell in enumerate(notebook["cells"]):
        cell["metadata"] = {"tags": tags} if (tags := cell["metadata"].get("tags")) else {}
        cell["id"] = f"cell-{i:02d}"
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
            for output in cell["outputs"]:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its kernel has ended
    return notebook


def prepare_kernels(project: Project, profile: str) -> None:
    """Set what the kernels of a run inherit.

    They start from this interpreter and import this project's code, wherever an editable install points; they may
    write results of the profile; progress bars are off where no terminal would show them.
    """
    os.environ.update({"JUPYTER_PREFER_ENV_PATH": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"})
    os.environ["JUPYTER_PATH"] = os.path.join(sys.prefix, "share", "jupyter")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [str(project.root), *(path for path in inherited if path not in ("", str(project.root)))]
    os.environ.update({"PYTHONPATH": os.pathsep.join(folders), "LAYERSWAP_PROFILE": profile})


def start_notebook(threads: int, workers: Workers = 1) -> None:
    """What every notebook begins with: its CPU threads and workers, the figures' style, no noise in what is stored.

    Warnings are stored without the paths of a machine, and those of missing widgets and fonts, and the bars of
    libraries, not at all.

    Raises:
        UserError: the notebook lies in another copy of the project than the code that it would run.
    """
    here = Path.cwd().parent
    if (here / "layerswap" / "files.py").is_file() and here.resolve() != ROOT:
        raise UserError(f"this notebook lies in {here}, but layerswap is imported from {ROOT}: open it with `make lab`")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    preload(workers)
    warnings.filterwarnings("ignore", "IProgress not found")
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import torch
    from transformers.utils.logging import disable_progress_bar

    from layerswap.analysis.plots import set_style

    disable_progress_bar()
    torch.set_num_threads(threads)
    set_style()


def with_needs(project: Project, names: Sequence[str]) -> list[str]:
    """The notebooks and all that they need, each after what it needs."""
    ordered: dict[str, None] = {}
    for name in names:
        ordered |= dict.fromkeys([*with_needs(project, metadata(project, name)["needs"]), name])
    return list(ordered)


def run_profile(project: Project, profile: str, names: Sequence[str] = ()) -> list[str]:
    """Run the notebooks (those named and what they need, or all but those on request) whose fingerprint changed.

    Returns those that ran. UserError for bad parameters before anything runs, and for a notebook that fails or does not
    write what it declares; then the notebook stays as build/<profile>/<name>.failed.ipynb.
    """
    parameters, ran = load_profile(project, profile), []
    names = names or [name for name in project.notebook_names() if not metadata(project, name).get("on_request")]
    needed = with_needs(project, names)
    project.check_outputs(profile)
    for line in changed_parameters(project, names):
        print_error(line)
    for name in needed:
        project.build(profile, ".").mkdir(parents=True, exist_ok=True)
        with open(project.build(profile, f".{name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_current(project, name, profile, parameters[name]):
                if name in names:
                    print(f"{name:14} unchanged", flush=True)
            else:
                if name == "01_experts":  # before hours of training
                    check_profile(parameters)
                seconds = execute(project, name, profile, parameters[name])
                print(f"{name:14} {seconds:5.0f} s", flush=True)
                ran.append(name)
    return ran


def execute(project: Project, name: str, profile: str, parameters: Parameters) -> float:
    """Run one notebook through papermill and record it; returns the seconds it took."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    prepare_kernels(project, profile)
    if sys.stderr.isatty():
        os.environ["LAYERSWAP_TERMINAL"] = os.ttyname(sys.stderr.fileno())
    target, record, failed, running = (
        project.build(profile, f"{name}.{end}") for end in ("ipynb", "json", "failed.ipynb", "running.ipynb")
    )
    for stale in (record, failed, running):
        stale.unlink(missing_ok=True)
    current, started = fingerprint(project, name, profile, parameters), time.time_ns()
    defaults = parameter_defaults(project, name)
    changed = {key: value for key, value in parameters.items() if value != defaults[key]}
    try:
        papermill.execute_notebook(
            project.notebook(name), running, changed, kernel_name="python3", cwd=project.notebook(name).parent,
            progress_bar=sys.stderr.isatty() and {"desc": name, "disable": False, "leave": False},
            extra_arguments=["--log-level=CRITICAL"],
        )  # fmt: skip
        for path in project.outputs(name, profile):
            if not path.is_file() or path.stat().st_mtime_ns < started:
                raise UserError(f"{path.relative_to(project.root)} was declared but not written")
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        raise
    except (papermill.exceptions.PapermillExecutionError, DeadKernelError, UserError) as error:
        target.unlink(missing_ok=True)
        ename = getattr(error, "ename", "")  # of the cell's own error, where it is one
        if ename == "KeyboardInterrupt":  # the kernel was interrupted first
            running.unlink(missing_ok=True)
            raise KeyboardInterrupt from None
        if running.exists():
            os.replace(running, failed)
        message = f"{ename}: {getattr(error, 'evalue', '')}" if ename else str(error)
        reason = re.sub(r"\x1b\[[0-9;]*m", "", message).strip().partition("\n")[0]
        raise NotebookFailed(f"{name} failed: {reason} (see {failed.relative_to(project.root)})") from None
    with atomic_file(running) as file:
        nbformat.write(clean(nbformat.read(running, 4)), file)
    os.replace(running, target)
    written = [*project.outputs(name, profile), target]
    outputs = {str(path.relative_to(project.root)): file_digest(path) for path in written}
    with atomic_file(record) as file:
        json.dump({"fingerprint": current, "outputs": outputs}, file, indent=1, ensure_ascii=False)
    return (time.time_ns() - started) / 1e9


def refresh(project: Project, names: Sequence[str] = ()) -> None:
    """Execute the sources in place with their own defaults; the stored outputs are what nbval compares with.

    NotebookFailed for one that ends with an error; its source stays as it was.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    prepare_kernels(project, DRAFT)
    for name in names or project.notebook_names():
        metadata(project, name)
        started, path = time.monotonic(), project.notebook(name)
        notebook = nbformat.read(path, 4)
        client = NotebookClient(
            notebook, timeout=None, kernel_name="python3", extra_arguments=["--log-level=CRITICAL"],
            resources={"metadata": {"path": path.parent}},
        )  # fmt: skip
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            reason = one_line(getattr(error, "evalue", error))
            raise NotebookFailed(f"{name} failed: {getattr(error, 'ename', 'the kernel')}: {reason}") from None
        with atomic_file(path) as file:
            nbformat.write(clean(notebook), file)
        print(f"{name:14} {time.monotonic() - started:5.0f} s", flush=True)
