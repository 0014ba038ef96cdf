"""Sphinx's settings of the book; docs/book/prepare.py writes the pages that it reads."""

import re
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# autodoc imports the kit, whose packages lie in the other environment: behind the book's own.
own = sysconfig.get_paths(vars={"base": str(ROOT / ".venv"), "platbase": str(ROOT / ".venv")})
sys.path += [str(ROOT), own["purelib"]]

project = "recnb"
author = "recnb"
copyright = "the authors of recnb, MIT licence"
html_title = "Controllable recommendation with language models"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/book/index"
templates_path = []

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
    "exclude-members": "model_config, model_post_init",
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Words such as "users" in a docstring's types are words, not links to one of several attributes.
suppress_warnings = ["ref.python"]

highlight_language = "none"  # commands and formulas; what is Python says so

html_theme = "sphinx_book_theme"
html_css_files = ["book.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
mathjax_path = "tex-svg.js"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "max_navbar_depth": 2,
}


CODE = re.compile(r"(``(?:(?!\n\n)[^`])+``)(\w)?|(?<=\w)@(?=\d)")
ONE_LINE = ("attribute", "data", "property")
COLON = "\ue000"
"""Stands for a colon while napoleon looks: it would take what stands before one for a type."""


def for_docutils(app, what, name, thing, options, lines):
    """Blocks set off by indentation stay as they are set; a letter may follow code at once.

    HR@10 is no address of a mailbox.
    """
    before, inside = 0, False
    marked = []
    for place, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip():
            if inside and indent <= before:
                inside = False
            if not inside and place and not lines[place - 1].strip() and indent > before:
                inside = True
                marked += [" " * before + "::", ""]
            if not inside:
                before = indent
        marked.append(line)
    text = CODE.sub(_told_apart, "\n".join(marked))
    if what in ONE_LINE:
        text = text.replace(":", COLON)
    lines[:] = text.split("\n")


def _told_apart(match):
    if match[1] is None:
        return r"\@"
    return match[1] + (rf"\ {match[2]}" if match[2] else "")


def with_colons(app, what, name, thing, options, lines):
    """What ``for_docutils`` hid from napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def setup(app):
    """What prepare.py made beside the pages; Sphinx would look for it beside this file."""
    app.connect("autodoc-process-docstring", for_docutils, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-docstring", with_colons, priority=600)
    app.config.html_static_path = [str(app.srcdir / "_static")]
    app.config.html_extra_path = [str(app.srcdir / "_extra")]
