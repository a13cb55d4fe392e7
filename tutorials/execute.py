"""Make and run the tutorials.

    python tutorials/execute.py                    # run every notebook, each in a fresh kernel
    python tutorials/execute.py 1_quickstart       # only these
    python tutorials/execute.py --jobs 2           # two at a time, one thread each
    python tutorials/execute.py --out executed     # keep the executed notebooks
    python tutorials/execute.py --keep             # put what they show into the .ipynb files here
    python tutorials/execute.py --make             # write every .ipynb from its .py; run nothing

Notebooks run with this Python and this checkout's ``lens_slt``, without a network, in an empty
folder. Exit code 1 if a notebook fails or takes more than 300 s; with ``--jobs``, where each has
one core, twice that. Only ``--keep`` and ``--make`` change files here. ``--make`` leaves what a
notebook shows where no code changed; ``--keep`` shows figures as small pictures, as a code host can
draw them, which needs kaleido and a Chrome.

Once pyproject.toml has the address of the repository (``project.urls.Repository``), ``--make``
gives notebooks a badge that opens them in Colab, lets their first cell install from there, and
makes links that work outside of the repository. Until then the first cell asks where lens_slt is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
LONGEST = 300  # seconds that a tutorial may take on two cores, and twice that on one
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ASKS = 'input("Where is lens_slt? A folder, a wheel, or git+https://…: ")'  # in each first cell
FROM = re.compile(r"^    source = .*$", re.MULTILINE)
COLAB = "https://colab.research.google.com"
LINK = re.compile(r"\]\((\.\./|(?=\d+_))([^)\s:]+)\)")  # to a file of the repository


def sources() -> list[Path]:
    """The tutorials as text, in order."""
    return sorted(FOLDER.glob("[0-9]*_*.py"), key=lambda path: int(path.stem.split("_")[0]))


def address() -> str | None:
    """Of the repository, if somebody owns one."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def published(notebook: NotebookNode, name: str, there: str) -> None:
    """Make it work where it stands alone, as in Colab."""
    title, _, rest = notebook.cells[0].source.partition("\n")
    place = f"{there.removeprefix('https://github.com/')}/blob/main/tutorials/{name}.ipynb"
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{place})"
    notebook.cells[0].source = f"{title}\n\n{badge}\n{rest}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace(ASKS, f'"lens-slt @ git+{there}"')
            continue
        cell.source = LINK.sub(
            lambda m: f"]({there}/blob/main/{'' if m[1] else 'tutorials/'}{m[2]})", cell.source
        )


def made(source: Path) -> NotebookNode:
    """The notebook that jupytext makes of a .py, without outputs, the same every time.

    jupytext gives cells random names; here they follow from what a cell says.
    """
    notebook = jupytext.read(source, fmt="py:percent")
    there = address()
    if there is not None:
        published(notebook, source.stem, there)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[name] += 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """In order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def show_as(notebook: NotebookNode, executed: NotebookNode) -> bool:
    """Give a notebook the outputs of another, if their code is the same wherever it is from."""
    cells, others = code_cells(notebook), code_cells(executed)
    codes = [[FROM.sub("", cell.source) for cell in some] for some in (cells, others)]
    if codes[0] != codes[1]:
        return False
    for cell, other in zip(cells, others, strict=True):
        cell.outputs, cell.execution_count = other.outputs, other.execution_count
    return True


def write(notebook: NotebookNode, path: Path) -> None:
    """With the same bytes every time."""
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def make(chosen: Sequence[Path]) -> None:
    """Write the .ipynb beside every .py."""
    for source in chosen:
        notebook, path = made(source), source.with_suffix(".ipynb")
        kept = path.exists() and show_as(notebook, nbformat.read(path, as_version=4))
        write(notebook, path)
        print(f"wrote {path.name}" + ("" if kept else ", without outputs: run it with --keep"))


def shown(executed: NotebookNode) -> NotebookNode:
    """Outputs as they are kept: no progress, which lands on stderr, and no time of a cell.

    Of pages with scripts, which no code host runs, the words remain.
    """
    for cell in code_cells(executed):
        cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for one in cell.outputs:
            one.get("metadata", {}).clear()
            if "<script" in one.get("data", {}).get("text/html", ""):
                del one["data"]["text/html"]
    return executed


def execute(
    path: Path, out: Path | None, keep: bool = False, alone: bool = True
) -> tuple[int, float, str]:
    """Number of code cells, seconds, and what went wrong ("" if nothing did)."""
    # On use: the test that compares .py with .ipynb needs no kernel.
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisPython(AsyncKernelManager):
        """Starts kernels with the Python that runs this, whatever kernels are installed."""

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]
            return [*command, "--log-level=ERROR", *(extra_arguments or [])]

    notebook = nbformat.read(path, as_version=4)
    n_cells = len(code_cells(notebook))
    problem, longest = "", LONGEST if alone else 2 * LONGEST
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=longest,
            kernel_manager_class=ThisPython,
            resources={"metadata": {"path": folder}},
        )
        start = time.perf_counter()
        try:
            client.execute(env=_environment(keep) if alone else _environment(keep) | ONE_THREAD)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            problem = str(error)
        seconds = time.perf_counter() - start
    if not problem and seconds > longest:
        problem = f"took {seconds:.0f} s; at most {longest} s are allowed"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / path.name)
    if keep and not problem:
        clean = made(path.with_suffix(".py"))
        show_as(clean, shown(notebook))
        write(clean, path)
    return n_cells, seconds, problem


def _environment(keep: bool) -> dict[str, str]:
    """The kernel's environment: this checkout first, the Hugging Face hub never asked."""
    places = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {
        # A figure is a picture, or data and HTML that draws it.
        "PLOTLY_RENDERER": "png" if keep else "plotly_mimetype+notebook_connected",
        **os.environ,
        **offline,
        "PYTHONPATH": os.pathsep.join(place for place in places if place),
    }


def _chosen(names: Sequence[str]) -> list[Path]:
    known = {path.stem: path for path in sources()}
    wanted = [Path(name).stem for name in names] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"no tutorial {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="tutorials; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="tutorials at a time")
    parser.add_argument("--out", type=Path, help="folder for the executed notebooks")
    parser.add_argument("--keep", action="store_true", help="put outputs into the .ipynb files")
    parser.add_argument("--make", action="store_true", help="write the .ipynb files; run nothing")
    given = parser.parse_args(arguments)
    chosen = _chosen(given.names)
    if given.make:
        make(chosen)
        return 0
    rows, problems = [], {}
    print(f"{'tutorial':<30} {'cells':>5} {'seconds':>8}  result", flush=True)
    run = partial(execute, out=given.out, keep=given.keep, alone=given.jobs == 1)
    pool = ThreadPoolExecutor(given.jobs)  # of waiting threads: each kernel is a process
    results = pool.map(run, [source.with_suffix(".ipynb") for source in chosen])
    for source, (n_cells, seconds, problem) in zip(chosen, results, strict=True):
        rows.append(seconds)
        if problem:
            problems[source.stem] = problem
        result = "failed" if problem else "passed"
        print(f"{source.stem:<30} {n_cells:>5} {seconds:>8.1f}  {result}", flush=True)
    print(f"{'total':<30} {'':>5} {sum(rows):>8.1f}")
    for name, problem in problems.items():
        print(f"\n== {name}\n{problem}")
    print(f"{len(rows) - len(problems)} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
