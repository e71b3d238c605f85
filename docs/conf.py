"""Sphinx's settings; `make docs` builds the site into `build/site`."""

import re

import tfopt

project = "tfopt"
author = "the tfopt authors"
release = version = tfopt.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"tfopt {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
default_role = "code"  # docstrings write code between single backticks
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def write_as_restructured_text(app, what, name, thing, options, lines):
    """Turn a docstring, whose mathematics is plain text, into reStructuredText, in place.

    Indented formulas after a colon and an empty line become literal blocks. Elsewhere, outside backticks, what
    reStructuredText would take for markup is escaped: |x|, x_ and *.

    Args:
        app: Sphinx.
        what: Kind of the thing.
        name: Its name.
        thing: The thing.
        options: Of the directive.
        lines: The docstring.
    """
    literal = None  # how far the line before a literal block is indented
    for place, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip() or (literal is not None and indent > literal):
            continue
        literal = None
        if line.lstrip().startswith(">>>"):
            literal = indent - 1  # the output too, to the next line that stands further left
            continue
        gap, following = [*lines[place + 1 : place + 3], "", ""][:2]
        if line.endswith(":") and not gap.strip() and len(following) - len(following.lstrip()) > indent:
            literal, line = indent, line + ":"
        bullet = re.match(r"\s*(\* )?", line)[0]
        parts = re.split(r"(`[^`]*`)", line[len(bullet) :])
        parts[::2] = [re.sub(r"[|*]|_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
        lines[place] = bullet + "".join(parts)


def rewrite_links_of_the_readme(app, path, parent, source):
    """Make links of a file outside `docs/` right for `docs/`, in place.

    Args:
        app: Sphinx.
        path: The file.
        parent: The page that includes it.
        source: A list with its text.
    """
    pages = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
    source[0] = re.sub(
        r"\]\((?!docs/|[a-z]+:)([^)]*)\)", lambda found: f"]({pages.get(found[1], '../' + found[1])})", source[0]
    )


def setup(app):
    """Connect what is above.

    Args:
        app: Sphinx.
    """
    app.connect("include-read", rewrite_links_of_the_readme)
    app.connect("autodoc-process-docstring", write_as_restructured_text, priority=100)  # before Google style is read
