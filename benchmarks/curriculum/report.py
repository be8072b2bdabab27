"""Writes docs/evidence.md and its figures from results.jsonl.

    python benchmarks/curriculum/report.py --results=docs/evidence/results.jsonl \
        --page=docs/evidence.md

The page is written by hand but for what lies between <!-- generated: NAME --> and
<!-- end: NAME -->, which is replaced; a page that is missing is begun. Figures go into the folder
of the page's name beside it. --check writes nothing and fails if the page is not up to date.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import sections
from figures import plan_figures
from methods import METHODS
from records import Results, by_method, read_results, tuning
from summary import summary
from table import SIZES

from keras_cdiff.common.files import write_whole

# The sections in the order of a new page, with their headings.
HEADINGS = {
    "summary": "Results",
    "figures": "Figures",
    "grid": "Number of clusters and patience",
    "clusters": "Validation loss by noise",
    "settings": "Settings",
    "tuning": "Learning rates",
    "time": "Time and versions",
}
MARKER = re.compile(r"^<!-- (generated|end): (.*?) -->$", re.MULTILINE)


def gather(records: Sequence[dict], size: str) -> list[Results]:
    """Returns the records by setting and method, as the table knows them; settings without a record
    are left out.

    Args:
        records: of one size.
        size: name of the table.

    Raises:
        ValueError: if the table has no such setting or method, or records cannot be compared.
    """
    for record in records:
        if record["setting"] not in SIZES[size] or record["method"] not in METHODS:
            raise ValueError(
                f"Records must be of the settings {sorted(SIZES[size])} and of a method of "
                f"methods.py. Received: {record['run']}"
            )
    found = {record["setting"] for record in records}
    return [
        _setting_results(name, setting, [r for r in records if r["setting"] == name])
        for name, setting in SIZES[size].items()
        if name in found
    ]


def _setting_results(name: str, setting: object, records: Sequence[dict]) -> Results:
    first = next(iter(setting.methods))
    measured = sorted({record["method"] for record in records} - set(setting.methods))
    methods = [*setting.methods, *measured]
    runs = by_method(records, methods, setting.preset["training"]["learning_rate"])
    options = {method: METHODS[method].options for method in methods}
    groups = {"curricula": [], "controls": [], "weights": []}
    plain = {}  # methods that name clusters, their number and patience alone, by kind of clusters
    for method in runs:
        if options[method].get("weighting") != options[first].get("weighting"):
            groups["weights"].append(method)
        elif METHODS[method].title.startswith("control"):
            groups["controls"].append(method)
        elif set(options[method]) - {"clusters"} == {"num_clusters", "patience"}:
            alike = plain.setdefault(options[method].get("clusters"), [])
            alike.append(method)
            if len(alike) == 1:  # the others fill the grid around it
                groups["curricula"].append(method)
        else:
            groups["curricula"].append(method)
    grid = max(plain.values(), key=len, default=[])
    return Results(
        name=name,
        setting=setting,
        first=first,
        titles={method: METHODS[method].title for method in methods},
        runs=runs,
        **groups,
        grid={m: (options[m]["num_clusters"], options[m]["patience"]) for m in grid},
        pairs=_pairs(first, groups, options),
        tuning={m: rates for m in methods if len(rates := tuning(records, m)) > 1},
        record=records[0],
    )


def _pairs(first: str, groups: Mapping[str, list], options: Mapping) -> list[tuple[str, str]]:
    """What is compared: all with the first, a curriculum with the same weights without it, and a
    curriculum with the controls of its clusters, and stages in order with their steps in none.
    """
    measured = [method for group in groups.values() for method in group]
    pairs = [(m, first) for m in measured if m != first] if first in measured else []

    def staged(methods: Sequence[str], wanted: bool = True) -> list[str]:
        return [m for m in methods if (options[m].get("curriculum") != "none") == wanted]

    def alike(kind: Callable, methods: Sequence[str], others: Sequence[str]) -> list[tuple]:
        return [(m, other) for other in others for m in methods if kind(m) == kind(other)]

    def clusters(method: str) -> tuple:
        return options[method].get("clusters"), METHODS[method].measured_clusters

    weights = groups["weights"]
    pairs += alike(lambda m: options[m].get("weighting"), staged(weights), staged(weights, False))
    pairs += alike(clusters, staged(groups["curricula"]), staged(groups["controls"]))
    orders = ((METHODS[method].unordered, method) for method in measured)
    return pairs + [pair for pair in orders if pair[0] in measured]


def generate(records: Sequence[dict], results: Sequence[Results], folder: str) -> dict[str, str]:
    """Returns the text of each section by its name.

    Args:
        records: all of the size.
        results: the same by setting.
        folder: of the figures, relative to the page.
    """
    return {
        "summary": summary(results),
        "figures": sections.figures(results, folder),
        "grid": sections.grid(results),
        "clusters": sections.clusters(results),
        "settings": sections.settings(results),
        "tuning": sections.tuning(results),
        "time": sections.time(records),
    }


def skeleton() -> str:
    """Returns a page that has all markers and no words yet."""
    parts = ["# Training with and without the curriculum"]
    for name, heading in HEADINGS.items():
        parts += [f"## {heading}", f"<!-- generated: {name} -->\n<!-- end: {name} -->"]
    return "\n\n".join(parts) + "\n"


def replace_generated(page: str, texts: Mapping[str, str]) -> str:
    """Returns a page with new texts between its markers; all else stays as it is.

    Args:
        page: the page, with a pair of markers for each text.
        texts: by the name in the markers.

    Raises:
        ValueError: if markers are unknown, missing, twice there or not in pairs.
    """
    pieces, end, opened, seen = [], 0, None, set()
    for marker in MARKER.finditer(page):
        kind, name = marker.groups()
        if name not in texts:
            raise ValueError(
                f"Markers must be of the sections {', '.join(texts)}. Received: {marker[0]}"
            )
        if kind == "generated":
            if opened is not None or name in seen:
                raise ValueError(
                    "Each section must be in the page once, and end before the next begins. "
                    f"Received: {marker[0]}"
                )
            pieces += [page[end : marker.end()], texts[name]]
            opened = name
            seen.add(name)
        elif name != opened:
            raise ValueError(f"A section must begin before it ends. Received: {marker[0]}")
        else:
            end, opened = marker.start(), None
    if opened is not None:
        raise ValueError(f"The section {opened} must end. Received: no <!-- end: {opened} -->")
    missing = [name for name in texts if name not in seen]
    if missing:
        raise ValueError(
            "The page must have the markers <!-- generated: NAME --> and <!-- end: NAME --> of "
            f"each section. Received: none of {', '.join(missing)}"
        )
    return "\n\n".join([*(piece.rstrip("\n") for piece in pieces), page[end:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("docs/evidence/results.jsonl"))
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    parser.add_argument("--size", default="cpu", choices=SIZES)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    options = parser.parse_args()
    records = read_results(options.results, options.size)
    if not records:
        parser.error(f"{options.results} has no run of the size {options.size}")
    results, folder = gather(records, options.size), options.page.with_suffix("")
    old = options.page.read_text(encoding="utf-8") if options.page.is_file() else None
    texts = generate(records, results, folder.name)
    new = replace_generated(skeleton() if old is None else old, texts)
    if options.check:
        if new != old:
            print(f"{options.page} is not what {options.results} says", file=sys.stderr)
        sys.exit(new != old)
    drawn = [figure for setting in results for figure in plan_figures(setting)]
    for name, _, draw in drawn:
        draw(folder / name)
    write_whole(options.page, lambda path: path.write_text(new, encoding="utf-8"))
    print(f"wrote {options.page} and {len(drawn)} figures of {len(records)} runs")


if __name__ == "__main__":
    main()
