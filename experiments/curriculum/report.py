"""Writes docs/evidence.md and its figures from results.jsonl.

    python experiments/curriculum/report.py --results=docs/evidence/results.jsonl \
        --page=docs/evidence.md

The page is written by hand but for what lies between <!-- generated: NAME --> and
<!-- end: NAME -->, which is replaced; a page that is missing is begun. Figures go into the folder
of the page's name beside it. --check writes nothing and fails if the page is not up to date.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from analysis import gather, read_results
from figures import plan_figures
from page import generate
from settings import SIZES

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


def skeleton() -> str:
    """Returns a page that has all markers and no words yet."""
    parts = ["# Training with and without the curriculum"]
    for name, heading in HEADINGS.items():
        parts += [f"## {heading}", f"<!-- generated: {name} -->\n<!-- end: {name} -->"]
    return "\n\n".join(parts) + "\n"


def replace_generated(page: str, texts: Mapping[str, str]) -> str:
    """Returns a page with new texts between its markers; all else stays as it is."""
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
