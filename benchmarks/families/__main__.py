"""Does lens_slt compute what the model computes, whatever the family?

Tiny random models of Hugging Face families in a TransformerBridge, and variants of
HookedTransformer. Each is measured through public functions and compared with torch hooks and
written weights on an untouched copy (:mod:`benchmarks.families.plain`): losses at the given and
at other weights, which weights a component has, gradients, ablation of heads and MLPs, paths into
queries, keys, values and logits, composition scores, edge attribution. A number has to be right to
1e-4 (nats, or of the largest entry), or refused in a sentence.

- *families*: Hugging Face configurations whose losses were measured; *variants*: of
  HookedTransformer;
- *silent_wrong*: cells with a wrong number; *crashes*: cells that ended in anything but a
  ValueError or TypeError that says why; *refused*, *right*: the other cells.

Configurations that transformers or TransformerLens cannot build are named and not counted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.common import Target, cpu_seconds, finish, one_thread, parser, say, show_table
from benchmarks.families.build import NotBuilt, wrapped
from benchmarks.families.configs import FAMILIES
from benchmarks.families.family import Family
from benchmarks.families.measure import MEASUREMENTS, Cell, measured, refusals
from benchmarks.families.variants import VARIANTS, has_hooked_transformer, variant

TARGETS = {
    "families": Target(least=28),
    "silent_wrong": Target(most=0),
    "crashes": Target(most=0),
}
QUICK = ("gpt2", "falcon", "mixtral", "attn-only")
Row = dict[str, Cell]


def judge(family: Family) -> Row:
    """The verdicts on one family."""
    model, plain = wrapped(family)
    return refusals(model) if family.unsupported else measured(model, plain)


def subjects() -> Iterator[tuple[str, bool, Callable[[], Row]]]:
    """Name, whether it is a Hugging Face family, and what measures it."""
    for family in FAMILIES:
        yield family.name, True, lambda family=family: judge(family)
    for name in VARIANTS if has_hooked_transformer() else ():
        yield name, False, lambda name=name: measured(*variant(name))


def figures_of(families: dict[str, Row], variants: dict[str, Row]) -> dict[str, Any]:
    """The summary; see the top of the file."""
    cells = [cell for row in (families | variants).values() for cell in row.values()]

    def count(kind: str) -> int:
        return sum(cell.kind == kind for cell in cells)

    def with_losses(rows: dict[str, Row]) -> int:
        return sum(row["losses"].kind in ("right", "wrong") for row in rows.values())

    return {
        "families": with_losses(families),
        "variants": with_losses(variants),
        "silent_wrong": count("wrong"),
        "crashes": count("crash"),
        "refused": count("refused"),
        "right": count("right"),
    }


def show(rows: dict[str, Row]) -> None:
    """The table, then in words what was refused, wrong or crashed."""
    show_table(
        "families", ["", *MEASUREMENTS],
        [[name, *[row[column] for column in MEASUREMENTS]] for name, row in rows.items()],
    )  # fmt: skip
    for kind in ("wrong", "crash", "refused"):
        said: dict[str, list[str]] = {}
        for name, row in rows.items():
            for column, cell in row.items():
                if cell.kind == kind:
                    said.setdefault(cell.words.splitlines()[0][:110], []).append(f"{name} {column}")
        for words, where in said.items():
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            say(f"{kind}: {words}\n    {', '.join(where[:3])}{more}")


def main() -> None:
    """Command line."""
    made = parser(__doc__)
    made.add_argument("--only", help="names of families or variants, separated by ';'")
    args = made.parse_args()
    one_thread()
    warnings.filterwarnings("ignore")
    wanted = QUICK if args.quick else None
    if args.only:
        wanted = tuple(name.strip() for name in args.only.split(";"))
    families: dict[str, Row] = {}
    variants: dict[str, Row] = {}
    began, missing = time.perf_counter(), 0
    for name, hugging_face, run in subjects():
        if wanted is not None and name not in wanted:
            continue
        try:
            (families if hugging_face else variants)[name] = run()
        except NotBuilt as words:
            missing += 1
            say(f"not built: {name}: {str(words).splitlines()[0][:110]}")
    show(families | variants)
    figures = figures_of(families, variants) | {"not_built": missing}
    figures |= {"cpu_seconds": cpu_seconds(), "wall_seconds": time.perf_counter() - began}
    finish(args, figures, None if wanted else TARGETS)


if __name__ == "__main__":
    main()
