"""Rewrite the tables and figures of `docs/reproductions.md` from the results in `runs/reproduce`.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. A table without results is not changed.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reproductions.md"


def table(content: dict) -> str:
    """Return the claims of a script's `results.json` as a Markdown table."""
    lines = ["| | published | measured | verdict |", "| --- | --- | --- | --- |"]
    for claim in content["claims"]:
        cells = [claim[name].replace("|", "\\|") for name in ("statement", "published", "measured", "verdict")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Rewrite the page, or raise SystemExit if there are no results of the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--size", default="quick", help="ignore results of other sizes (default: quick)")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args(argv)
    text, done = arguments.page.read_text(), []
    for name in re.findall(r"<!-- begin (\w+) -->", text):
        results = arguments.runs / name / "results.json"
        content = json.loads(results.read_text()) if results.exists() else {}
        if content.get("size") != arguments.size:
            print(f"Not changed: {name}, which has no {arguments.size} results in {arguments.runs}")
            continue
        pattern = rf"(?<=<!-- begin {name} -->\n).*?(?=<!-- end {name} -->)"
        text = re.sub(pattern, lambda _, content=content: table(content) + "\n", text, flags=re.DOTALL)
        if f"(figures/{name}.png)" in text:
            (arguments.page.parent / "figures").mkdir(exist_ok=True)
            shutil.copy(results.with_name("figure.png"), arguments.page.parent / "figures" / f"{name}.png")
        done.append(name)
    if not done:
        raise SystemExit(
            f"No {arguments.size} results in {arguments.runs}: run the scripts of examples/reproduce first"
        )
    arguments.page.write_text(text)
    print(f"Rewritten: {', '.join(done)}")


if __name__ == "__main__":
    main()
