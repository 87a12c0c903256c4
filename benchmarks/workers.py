"""Two workers against one: the lab's fine-tunings, and the conditions of its notebooks 03 to 05.

    python benchmarks/workers.py

Every run is a process of its own, so that starting the workers counts; runs are interleaved. The experts must have the
same weights, and the results the same csv.
"""

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path

import measure

from layerswap import run
from layerswap.checkpoints.layers import layer_count
from layerswap.checkpoints.safetensors import weights_digest
from layerswap.experts.index import load_index, resolve_experts, save_index
from layerswap.experts.jobs import plan_jobs, train_experts
from layerswap.files import BUILD
from layerswap.run.experiments import profile_experiments
from layerswap.run.profiles import Project, find_base, find_task, load_profile

NOTEBOOKS = ("03_transition", "04_top_bottom", "05_mgsm")


def profile_of(workers):
    """The name under which a number of workers writes."""
    return f"benchmark-workers-{workers}"


def train(workers, settings):
    """Fine-tune the lab's experts, and leave their index."""
    p = settings["01_experts"]
    task, base = find_task(p["source"]), find_base(p["base"])
    resolved = resolve_experts(base, [], [], p["languages"], p["seeds"], [])
    jobs = plan_jobs(task, resolved, p["seeds"], p["fine_tuning"])
    index = train_experts(
        jobs, resolved, profile=profile_of(workers), source=p["source"], base=base, seeds=p["seeds"],
        fine_tuning=p["fine_tuning"], threads=1, workers=workers,
    )  # fmt: skip
    save_index(profile_of(workers), index)


def evaluate(workers, settings):
    """Score the conditions of each notebook, and leave a csv of each."""
    index = load_index(profile_of(1))
    for experiment in profile_experiments(settings, layer_count(index.base)):
        p = settings[experiment.notebook]
        if experiment.notebook not in NOTEBOOKS or experiment.n_searched:  # a search waits for each generation
            continue
        conditions = [condition for condition in experiment.conditions if condition.roles[0] != "joint"]
        scores = run.ProfileScores(
            profile_of(workers), p["languages"], p["style"], p["exemplars"], p["max_new_tokens"],
            split=experiment.split or p["split"], experts=index, workers=workers,
        )  # fmt: skip
        frame = scores.score(conditions, p[experiment.sample])
        frame.to_csv(BUILD / profile_of(workers) / f"{experiment.notebook}-{len(conditions)}.csv", index=False)


def remove(what, name):
    """Remove what an earlier run of a case left, so that it is made anew."""
    folder = BUILD / profile_of(name.split()[0])
    if what == "train":
        shutil.rmtree(folder, ignore_errors=True)
    for path in [*folder.glob("answers-*"), *folder.glob("*.csv")]:
        path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--profile", default="lab")
    parser.add_argument("--run", choices=["train", "evaluate"], help="one run, in this process")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.run:
        run.start_notebook(1, options.workers)  # before anything that takes long, as in a notebook
        settings = load_profile(Project(), options.profile)
        {"train": train, "evaluate": evaluate}[options.run](options.workers, settings)
        return
    lines = [f"{measure.machine()}; profile {options.profile}, one thread a worker"]
    for what in ("train", "evaluate"):
        command = [sys.executable, __file__, "--profile", options.profile, "--run", what, "--workers"]
        cases = {f"{n} worker(s)": [*command, n] for n in (1, 2)}
        table = measure.interleaved(cases, options.rounds, partial(remove, what))
        ratio = table.wall_s.iloc[0] / table.wall_s.iloc[1]
        lines.append(f"\n{what}\n{table.round(1).to_string()}\ntwo workers are {ratio:.2f} times as fast as one")
        if what == "train":
            digests = [
                [weights_digest(folder) for folders in load_index(profile_of(n)).experts.values() for folder in folders]
                for n in (1, 2)
            ]
            assert digests[0] == digests[1]
            lines.append(f"the weights of {len(digests[0])} experts are equal")
        else:
            first, second = (sorted((BUILD / profile_of(n)).glob("*.csv")) for n in (1, 2))
            assert first and [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
            lines.append(f"{len(first)} result files are equal, byte by byte")
    print(*lines, sep="\n")
    text = "\n".join(["python benchmarks/workers.py", *lines])
    (Path(__file__).parent / "results" / "workers.txt").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
