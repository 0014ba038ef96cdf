"""Sliders and lists beside the pictures: what is moved becomes a state, the state a picture."""

import ipywidgets as ui

from recnb.widgets import pictures

WIDE = {"description_width": "8em"}


class Live:
    """A picture with what moves it.

    As a notebook's output it is both: the widget, and the picture for pages without a kernel.

    Attributes:
        controls: ``{argument of draw: widget with that value}``.
        box: the whole widget.
    """

    def __init__(self, draw, controls, box=None):
        self.draw, self.controls, self.shown = draw, controls, ui.HTML()
        self.box = ui.VBox([*(box or controls.values()), self.shown])
        for control in controls.values():
            control.observe(self.refresh, "value")
        self.refresh()

    def refresh(self, change=None):
        """Draw what the controls say."""
        state = {name: control.value for name, control in self.controls.items()}
        self.picture = pictures.render(self.draw(**state))
        self.shown.value = pictures.as_html(self.picture)

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = self.picture._repr_mimebundle_()
        return data | self.box._repr_mimebundle_() | {"text/plain": data["text/plain"]}, metadata


def _choice(label, options, value):
    return ui.Dropdown(options=options, value=value, description=label, style=WIDE)


def _number(label, value, low, high, step):
    slider = ui.FloatSlider if isinstance(step, float) else ui.IntSlider
    return slider(
        value, min=low, max=high, step=step, description=label, style=WIDE, continuous_update=False
    )


def rewards():
    """``pictures.rewards`` with ten lines to write in and to move up."""
    films, first = list(pictures.FILMS), pictures.ANSWER
    wish = _choice("wish", list(pictures.WISHES), "about 30 % Comedy")
    lines = [
        ui.Combobox(
            value=title,
            options=films,
            description=f"title {n}",
            style=WIDE,
            continuous_update=False,
        )
        for n, title in enumerate(first, start=1)
    ]
    answer = _Lines(lines)
    rows = []
    for place, line in enumerate(lines):
        up = ui.Button(
            description="up", tooltip=f"move title {place + 1} up", disabled=place == 0,
            layout=ui.Layout(width="4em"),
        )  # fmt: skip
        up.on_click(lambda _, place=place: answer.move_up(place))
        rows.append(ui.HBox([line, up]))
    live = Live(pictures.rewards, {"titles": answer, "wish": wish}, [wish, *rows])
    live.up = [row.children[1] for row in rows]
    return live


class _Lines:
    """Several text fields as one control: its value is the tuple of theirs."""

    def __init__(self, lines):
        self.lines, self.told, self.moving = lines, None, False

    @property
    def value(self):
        return tuple(line.value for line in self.lines)

    def observe(self, told, name):
        self.told = told
        for line in self.lines:
            line.observe(self._changed, name)

    def _changed(self, change):
        if not self.moving:
            self.told(change)

    def move_up(self, place):
        """Change places with the line above; one picture for both changes."""
        above, line = self.lines[place - 1 : place + 1]
        self.moving = True
        above.value, line.value = line.value, above.value
        self.moving = False
        self.told(None)


def credit():
    """``pictures.credit`` with two sliders."""
    controls = {
        "lam": _number("λ (lambda)", 0.95, 0.0, 1.0, 0.05),
        "gamma": _number("γ (gamma)", 0.99, 0.0, 1.0, 0.01),
    }
    return Live(pictures.credit, controls)


def label_filter():
    """``pictures.label_filter`` with a wish, a length and a step."""
    titles = len(pictures.FILMS) - len(pictures.HAD)
    controls = {
        "wish": _choice("wish", list(pictures.WISHES), "at most 20 % Comedy"),
        "k": _number("titles (k)", 5, 1, 10, 1),
        "step": _number("titles read", 6, 0, titles, 1),
    }
    return Live(pictures.label_filter, controls)


def dial(frame):
    """``pictures.dial`` with a system, a category and a share."""
    systems, categories = (list(dict.fromkeys(frame[name])) for name in ("system", "category"))
    controls = {
        "system": _choice("system", systems, systems[-1]),
        "category": _choice("category", categories, categories[0]),
        "share": _number("share asked, %", 30, 0, 100, 10),
    }
    return Live(lambda **state: pictures.dial(frame, **state), controls)


class Tree(Live):
    """``pictures.trie`` with a button for each token that may come."""

    def __init__(self):
        films, self.tokens = list(pictures.TRIE_FILMS), ()
        self.buttons = ui.HBox(layout=ui.Layout(flex_flow="row wrap"))
        controls = {
            "banned": ui.SelectMultiple(
                options=films, value=("Heat",), rows=len(films), description="the user has",
                style=WIDE,
            ),
            "wish": _choice("wish, obeyed", list(pictures.WISHES), "no wish"),
        }  # fmt: skip
        super().__init__(pictures.trie, controls, [*controls.values(), self.buttons])

    def refresh(self, change=None):
        """Draw; another wish or another user begins a new list."""
        if change is not None:
            self.tokens = ()
        state = {name: control.value for name, control in self.controls.items()}
        state["k"] = max(1, min(3, len(pictures.TRIE_FILMS) - len(state["banned"])))
        if len(state["banned"]) == len(pictures.TRIE_FILMS):
            self.buttons.children = ()
            self.shown.value = "<p>The user has every title: no list is left to write.</p>"
            return
        state["tokens"] = self.tokens
        now, _ = pictures.row_state(**state)
        buttons = [self._button(token.strip(), token) for token in pictures.may_come(now)]
        self.buttons.children = (*buttons, self._button("start again", None))
        self.picture = pictures.render(self.draw(**state))
        self.shown.value = pictures.as_html(self.picture)

    def _button(self, words, token):
        button = ui.Button(description=words, tooltip=f"write {words}" if token else words)
        button.on_click(lambda _: self.take(token))
        return button

    def take(self, token):
        """Write a token; None begins a new list."""
        self.tokens = () if token is None else (*self.tokens, token)
        self.refresh()


def trie():
    """``Tree``, at the start of a list."""
    return Tree()
