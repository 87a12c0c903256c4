"""``python -m layerswap.run``: what ``make`` calls.

``run --profile lab [01_experts ...]`` runs the notebooks that changed, ``cost`` says what a profile would cost,
``findings`` writes its findings, ``report`` its pages, ``start`` the page that JupyterLab opens with, and ``refresh``
executes the sources in place with their own defaults.
"""

import argparse
import sys
from collections.abc import Sequence

from layerswap.terminal import print_error, run_command

KEPT = "finished notebooks, trained experts and answers are kept; the same command goes on from there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        1 for a notebook that failed, 2 for bad input, 130 for an interruption, else 0.
    """
    return run_command(lambda: dispatch(parse(arguments)), KEPT)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m layerswap.run", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run what changed, under a profile")
    coster = commands.add_parser("cost", help="what a profile would cost; nothing is run or fetched")
    finder = commands.add_parser("findings", help="write FINDINGS.md, or FINDINGS-<profile>.md of one's own profile")
    reporter = commands.add_parser("report", help="write build/<profile>/report, pages to be read in a browser")
    commands.add_parser("start", help="write build/start.md, the page that `make lab` opens")
    refresher = commands.add_parser("refresh", help="execute the sources in place with their defaults")
    for command in (runner, coster, finder, reporter):
        command.add_argument("--profile", default="lab", help="name of a file in params/ (default: lab)")
    for command in (runner, refresher):
        command.add_argument("names", nargs="*", help="notebooks, such as 01_experts (default: all)")
    return parser.parse_args(arguments)


def dispatch(options: argparse.Namespace) -> int:
    """Do what the options say. Imports are lazy, so that an interruption of them is none of a library's."""
    from layerswap.run import notebooks
    from layerswap.run.profiles import Project, changed_parameters, load_profile

    project = Project()
    if not getattr(options, "names", ()):  # `make all` names each notebook, and reports once
        for path in project.strays():
            print_error(
                f"{path.relative_to(project.root)}: left out, as it is no notebook of the project (CONTRIBUTING.md)"
            )
    try:
        if options.command == "run":
            notebooks.run_profile(project, options.profile, options.names)
        elif options.command == "refresh":
            notebooks.refresh(project, options.names)
        elif options.command == "findings":
            from layerswap.run.findings import write_findings

            write_findings(project, options.profile)
        elif options.command == "report":
            from layerswap.run.pages import write_report

            print(f"report: {write_report(project, options.profile).relative_to(project.root)}")
        elif options.command == "start":
            from layerswap.run.start import write_start_page

            write_start_page(project)
        else:
            from layerswap.run.cost import cost_report

            settings = load_profile(project, options.profile)
            for line in changed_parameters(project, list(settings)):
                print_error(line)
            print("\n".join(cost_report(options.profile, settings)))
    except notebooks.NotebookFailed as error:
        print_error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
