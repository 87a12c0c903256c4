"""How the code is laid out: its packages and their imports, types, names and size, and what a wheel of it holds."""

import ast
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import importlinter.cli
import mypy.api
import pytest

from layerswap.run.profiles import Project

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "layerswap"
MODULES = sorted(PACKAGE.rglob("*.py"))
STUBS = sorted(PACKAGE.rglob("*.pyi"))
LARGEST = {"": 9200, "merging": 900, "evaluation": 1050}  # lines of code; a fifth of them are imports and signatures
# Names that say nothing about what they hold. `widths` may not be a parameter of a notebook: there are four of them.
BANNED = set(
    "told found each made some said heard fresh live asked given room side sides alike worth fitting recipe leaves "
    "House countable nearest named_files shown begin_writing chosen_plan check_fit splitting PIECE BLOCK blend "
    "widened MIXED runs twin follows fill donate reading_digest finish Resident part mix once fold UNFIT replied "
    "drawn shaped turns weighted say share IGNORED STRETCH Keep launched parts known followers accepted follow "
    "tails wanted Rows ask apart packed seen flash plain Store counts in_chat stored SIDES measured two bare spoken "
    "spelled stated crossed grids detectable measures estimates ROLE learned moved chosen kind holds signs "
    "outside".split()
)
BANNED_PARAMETERS = BANNED | {"widths"}
THIRD_PARTY = {("hypothesis", "given")}  # may be imported by its own name


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def report(offenders: list[str]) -> str:
    """All offenders, one a line, for the message of an assertion."""
    return "\n".join([f"{len(offenders)} in all:", *offenders])


@pytest.mark.slow  # `make check` runs it by itself
def test_imports_go_one_way(capsys):
    status = importlinter.cli.lint_imports(str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


def test_no_circles():
    """Neither between modules nor between a package's modules and its public names, which are imported lazily."""
    graph = grimp.build_graph("layerswap", cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    for stub in STUBS:
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        if package != "layerswap":  # whose __version__ all may read
            imports[package] |= {
                f"{package}.{node.module}" for node in ast.walk(parse(stub)) if isinstance(node, ast.ImportFrom)
            }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.slow  # as above
def test_types(monkeypatch):
    monkeypatch.chdir(ROOT)  # where pyproject.toml is
    output, problems, status = mypy.api.run([])
    assert status == 0, output + problems


def is_triton_kernel(node):
    """Triton compiles its kernels itself, and takes no annotation for a type."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def test_every_function_is_annotated():
    offenders = []
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_triton_kernel(node):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
                missing = [argument.arg for argument in arguments if not argument.annotation]
                missing = [name for name in missing if name not in ("self", "cls")] + ["return"] * (not node.returns)
                offenders += [f"{place(path, node.lineno)} {node.name}: {', '.join(missing)}"] * bool(missing)
    assert not offenders, report(offenders)


def code_lines(text: str) -> int:
    """Lines of code, without blank lines, comments and docstrings."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_code_lines_are_counted_without_comments_and_docstrings():
    text = '"""Two\nlines."""\n\n# a comment\nx = """a\nb"""  # text\n\n\n'
    text += 'def f():\n    """Doc."""\n    return [\n        1,\n    ]\n'
    assert code_lines(text) == 6


@pytest.mark.parametrize("package", LARGEST)
def test_the_code_stays_small(package):
    sizes = Counter(
        {place(path, 1): code_lines(path.read_text(encoding="utf-8")) for path in (PACKAGE / package).rglob("*.py")}
    )
    total = sizes.total()
    assert total <= LARGEST[package], report(
        [f"{total} lines, at most {LARGEST[package]}", *map(str, sizes.most_common())]
    )


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of all that code gives a name to: variables, arguments, functions, classes, attributes, imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if (getattr(node, "module", None), alias.name) not in THIRD_PARTY or alias.asname:
                    yield alias.lineno, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.lineno, node.name


def test_bindings():
    code = (
        "import a.b, c as d\nfrom hypothesis import given\nfrom e import f\nfor g, self.h in i: j = k = l\n"
        "def m(n, *o, p=q, **r): ...\nclass s(t): u: v = w\nwith x as y: z += [a for b in c]\nlambda e: (f := g)\n"
        "try: ...\nexcept E as h: ...\n"
    )
    assert sorted(name for _, name in bindings(ast.parse(code))) == sorted("adfghjkmnoprsuyzbefh")


def notebook_cells() -> Iterator[tuple[str, bool, ast.Module]]:
    """(place, whether it holds the parameters, code) of the notebooks' code cells."""
    for path in map(Project().notebook, Project().notebook_names()):
        for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                is_parameters = "parameters" in cell["metadata"].get("tags", [])
                yield f"{path.relative_to(ROOT)}, cell {i}", is_parameters, ast.parse("".join(cell["source"]))


def test_names_say_what_they_hold():
    folders = ("layerswap", "tests", "benchmarks", "notebooks")
    offenders = [
        f"{place(path, line)} {name}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in sorted(bindings(parse(path)))
        if name in BANNED
    ]
    for cell, is_parameters, tree in notebook_cells():
        banned = BANNED_PARAMETERS if is_parameters else BANNED
        offenders += [f"{cell}, line {line} {name}" for line, name in sorted(bindings(tree)) if name in banned]
    assert not offenders, report(offenders)


def test_no_name_stands_for_two_things():
    places = defaultdict(list)
    for path in MODULES:
        for node in parse(path).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name != "main":
                places[node.name].append(place(path, node.lineno))
    offenders = [f"{name}: {', '.join(lines)}" for name, lines in sorted(places.items()) if len(lines) > 1]
    assert not offenders, report(offenders)


def packages() -> list[str]:
    return [".".join(path.parent.relative_to(ROOT).parts) for path in sorted(PACKAGE.rglob("__init__.py"))]


@pytest.mark.slow
def test_public_names_are_imported_lazily():
    code = f"""
import importlib, sys
for package in {packages()}:
    importlib.import_module(package)
assert not (heavy := {{"torch", "transformers", "pandas", "numpy"}} & set(sys.modules)), heavy"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", packages())
def test_public_names_exist_and_are_documented(package):
    public = importlib.import_module(package)
    assert public.__doc__ and public.__all__, f"{package} has no docstring or no public names"
    for name in public.__all__:
        value = getattr(public, name)
        assert not getattr(value, "__module__", "").startswith("layerswap") or value.__doc__, f"{package}.{name}"


def test_the_lock_pins_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    required = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in required}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").split("\n")
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lock}
    assert names <= pinned, names - pinned


def test_documents_name_files_that_exist():
    offenders = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"`((?:layerswap|tests|benchmarks|docs|notebooks)/[\w./-]+)`", text)
        offenders += [f"{path.name}: {name}" for name in names if not (ROOT / name).exists()]
        links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        offenders += [f"{path.name}: link to {link}" for link in links if not (path.parent / link).exists()]
    assert not offenders, report(offenders)


def test_a_former_target_of_make_says_what_it_is_called_now():
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # no make within one
    command = ["make", "plan", "PROFILE=mine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment | {"MFLAGS": ""})
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "is called `make cost` now: make cost PROFILE=mine" in done.stderr


@pytest.mark.slow
def test_a_wheel_holds_the_whole_package(tmp_path):
    source = tmp_path / "source"  # a build leaves files beside its sources
    shutil.copytree(PACKAGE, source / "layerswap", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    options = "--no-deps --no-build-isolation --no-index --disable-pip-version-check -q".split()
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("layerswap/")}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "layerswap = layerswap.cli:main" in archive.read(entry_points).decode()
    files = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert names == files
