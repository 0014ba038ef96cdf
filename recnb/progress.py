"""Progress of long work in a notebook: a small file that ``recnb run`` shows in the terminal."""

import json
import time


class Progress:
    """Call it with (done, of): ``.progress.json`` of the stage then says how much time is left."""

    def __init__(self, stage, text):
        self.path, self.text, self.stage = stage.folder / ".progress.json", text, stage
        self.first = None

    def __call__(self, done, of):
        # What came before the first report (reading, tokenizing, an earlier start's steps) says
        # nothing about the pace.
        self.first = self.first or (done, time.time())
        first, started = self.first
        left = None
        if done > first:
            left = (time.time() - started) * (of - done) / (done - first)
        row = {"text": self.text, "done": done, "of": of, "left": left}
        self.path.write_text(json.dumps(row))
        self.stage.tick()

    def row(self, row):
        """The same for a logged row of a trainer, with keys step and of."""
        if row.get("of"):
            self(row["step"], row["of"])
