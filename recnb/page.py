"""A page of plain HTML: no script, nothing loaded, readable on a phone and in the dark."""

from recnb import text_safety

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #888; padding: .2em .5em; text-align: left; vertical-align: top; }}
</style></head><body>
{body}
</body></html>
"""


def page(title, body):
    """A whole page.

    Args:
        title: text.
        body: HTML, its texts escaped already.
    """
    return PAGE.format(title=text_safety.html(title), body=body)
