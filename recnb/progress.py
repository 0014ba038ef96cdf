"""Progress of long work in a notebook: a small file that ``recnb run`` shows in the terminal."""

import json
import time


class Progress:
    """Call it with (done, of): ``.progress.json`` of the stage then says how much time is left."""

    def __init__(self, stage, text):
        self.path, self.text, self.stage = stage.folder / ".progress.json", text, stage
        self.first = (0, time.time())

    def __call__(self, done, of):
        first, started = self.first
        left = (time.time() - started) * (of - done) / max(done - first, 1)
        # What came before the first report (reading, tokenizing) says nothing about the pace.
        if not first:
            self.first = (done, time.time())
        row = {"text": self.text, "done": done, "of": of, "left": left}
        self.path.write_text(json.dumps(row))
        self.stage.tick()

    def row(self, row):
        """The same for a logged row of a trainer, with keys step and of."""
        if row.get("of"):
            self(row["step"], row["of"])
