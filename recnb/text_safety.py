"""Text from outside (titles, categories, answers, notes) as plain text in every medium.

Each function takes a text and gives what shows that text and does nothing else there: it starts no
markup, runs no command, moves no cursor, is no formula.
"""

import html as html_of_python
import re

ORDERS = (
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # control characters, which a terminal obeys
    "\\u2028-\\u202e\\u2066-\\u2069"  # ends of lines, and turns of the direction of text
    "\\ud800-\\udfff]"  # halves of surrogate pairs, which no file can hold
)
"""Characters that give orders; line feed and tab are left out."""
LATEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "%": "\\%",
    "&": "\\&",
    "#": "\\#",
    "_": "\\_",
    "$": "\\$",
    "^": "\\^{}",
    "~": "$\\approx$",
    "<=": "$\\leq$",
    ">=": "$\\geq$",
    "¬": "$\\neg$",
    "±": "$\\pm$",
}
MARKDOWN = {"\\": "&#92;", "`": "&#96;", "$": "&#36;", "*": "&#42;", "|": "\\|"}
BEGINS_MARKUP = r"<(?=[a-zA-Z/!?])|&(?=[#a-zA-Z])|\](?=[(\[])|~(?=\S)|(?<![^\W_])_|_(?![^\W_])"
"""Signs that are markup in Markdown only beside certain others: tags, entities, links, strikes and
emphasis."""


def visible(text):
    """The text with each character of ``ORDERS`` written out, as ``\\x1b``."""
    return re.sub(ORDERS, lambda match: repr(match[0])[1:-1], str(text))


def one_line(text):
    """``visible`` with every run of blanks and line feeds as one blank."""
    return re.sub(r"[ \n\t]+", " ", visible(text)).strip()


def html(text):
    """For HTML, in an element or in an attribute between quotes."""
    return html_of_python.escape(visible(text))


def latex(text):
    """For LaTeX, as the cell of a table, too."""
    signs = "|".join(map(re.escape, LATEX))
    found = re.sub(signs, lambda match: LATEX[match[0]], one_line(text))
    # Behind the end of a row, LaTeX would take these for an argument of that row's end.
    return f"{{{found[0]}}}{found[1:]}" if found[:1] in ("[", "*") else found


def markdown(text):
    """For Markdown, as the cell of a table, too; Jupyter's formulas are markup there."""
    signs = "|".join(map(re.escape, MARKDOWN)) + "|" + BEGINS_MARKUP

    def replaced(match):
        sign = match[0]
        return MARKDOWN.get(sign) or f"&#{ord(sign)};"

    return re.sub(signs, replaced, one_line(text))


def figure(text):
    """For a label in a figure, where dollar signs would enclose a formula."""
    return one_line(text).replace("$", "\\$")


NUMBER = r"[+-]?[\d.]+(e[+-]?\d+)?%?( [(\[][-+\d.,e ]*[)\]])*"
"""A number, and what the tables set behind one: its value without control, its interval."""


def spreadsheet(text):
    """For a cell of a CSV file that people open: what would be a formula begins with ``'``."""
    text = visible(text)
    formula = text.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))
    return f"'{text}" if formula and not re.fullmatch(NUMBER, text) else text
