"""Rewrite the tables and figures of `docs/reproductions.md`.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. Its first columns are results of `--quick` runs in
`runs/reproduce`; without such results they stay as they are. The columns beside them are results of `--full` runs,
which lie as JSON in `docs/results`. `--keep FOLDER` copies the results and the figure of a `--full` run to the
documents.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reproductions.md"
RESULTS, FULL_FIGURE = "results/{}.json", "figures/{}_published_size.png"  # Beside the page, by name.
COLUMNS = ("statement", "published", "measured", "verdict")


def cells_of(table: str) -> list[dict[str, str]]:
    """Return the claims of the first columns of a Markdown table."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    claims = [dict(zip(COLUMNS, (cell.strip().replace("\\|", "|") for cell in row), strict=False)) for row in rows]
    return [claim for claim in claims if claim["measured"]]


def table(quick: list[dict[str, str]], full: dict) -> str:
    """Return the claims of `--quick` and of `--full`, which may be empty, as a Markdown table."""
    header = ["", "published", "measured", "verdict"]
    if full:
        rows = f", {full['num_rows']:,} rows" if full["num_rows"] else ""
        header += [f"published size, {full['data']}{rows}", "verdict"]
    lines = [header, ["---"] * len(header)]
    by_claim = {
        size: {(c["statement"], c["published"]): c for c in claims}
        for size, claims in (("quick", quick), ("full", full.get("claims", [])))
    }
    for statement, published in dict.fromkeys([*by_claim["quick"], *by_claim["full"]]):
        line = [statement, published]
        for size in ("quick", "full")[: 1 + bool(full)]:
            claim = by_claim[size].get((statement, published), {})
            line += [claim.get("measured", ""), claim.get("verdict", "")]
        lines.append([cell.replace("|", "\\|") for cell in line])
    return "\n".join(re.sub(r"\s+\|", " |", f"| {' | '.join(line)} |") for line in lines)


def when_and_where(name: str, full: dict) -> str:
    """Return a sentence about a `--full` run, and its figure; empty if there is none."""
    if not full:
        return ""
    missing = f" {full['unfinished']} of its trainings and measurements are not finished." if full["unfinished"] else ""
    made = f"Published size: {full['date']}, seed {full['seed']}, {full['machine']}.{missing}"
    return f"\n\n{made}\n\n![Published size]({FULL_FIGURE.format(name)})"


def read(path: Path, size: str) -> dict:
    """Return the content of a `results.json` of a size; empty if there is none."""
    content = json.loads(path.read_text()) if path.exists() else {}
    return content if content.get("size") == size else {}


def keep(folder: Path, documents: Path) -> None:
    """Copy the results and the figure of a `--full` run to the documents."""
    if not read(folder / "results.json", "full"):
        raise SystemExit(f"{folder} must hold the results.json of a --full run")
    for source, target in (("results.json", RESULTS), ("figure.png", FULL_FIGURE)):
        path = documents / target.format(folder.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, path)


def main(argv: list[str] | None = None) -> None:
    """Rewrite the page, or raise SystemExit if there are no results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--size", default="quick", help="ignore results of other sizes (default: quick)")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--keep", type=Path, nargs="*", default=[], help="folders of --full runs to keep the results of"
    )
    arguments = parser.parse_args(argv)
    text, done, documents = arguments.page.read_text(), [], arguments.page.parent
    for folder in arguments.keep:
        keep(folder, documents)
    for name in re.findall(r"<!-- begin (\w+) -->", text):
        pattern = rf"(?<=<!-- begin {name} -->\n).*?(?=<!-- end {name} -->)"
        quick = read(arguments.runs / name / "results.json", arguments.size)
        full = read(documents / RESULTS.format(name), "full")
        if not quick and not full:
            print(f"Not changed: {name}, which has no {arguments.size} results in {arguments.runs}")
            continue
        now = re.search(pattern, text, re.DOTALL)
        claims = quick["claims"] if quick else cells_of(now[0] if now else "")
        new = table(claims, full) + when_and_where(name, full) + "\n"
        text = re.sub(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        if quick and f"(figures/{name}.png)" in text:
            (documents / "figures").mkdir(exist_ok=True)
            shutil.copy(arguments.runs / name / "figure.png", documents / "figures" / f"{name}.png")
        done.append(name)
    if not done:
        raise SystemExit(
            f"No {arguments.size} results in {arguments.runs}: run the scripts of examples/reproduce first"
        )
    arguments.page.write_text(text)
    print(f"Rewritten: {', '.join(done)}")


if __name__ == "__main__":
    main()
