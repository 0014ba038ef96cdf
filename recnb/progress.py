"""Progress of long work in a notebook: a small file that ``recnb run`` turns into a line in the terminal."""

import json
import time


class Progress:
    """Call it with (done, of); it keeps ``.progress.json`` of a stage up to date with an estimate of what is left."""

    def __init__(self, stage, text):
        self.path, self.text, self.started = stage.folder / ".progress.json", text, time.time()

    def __call__(self, done, of):
        spent = time.time() - self.started
        row = {"text": self.text, "done": done, "of": of, "left": spent * (of - done) / max(done, 1)}
        self.path.write_text(json.dumps(row))

    def row(self, row):
        """The same for a logged row of a trainer, with keys step and of."""
        if row.get("of"):
            self(row["step"], row["of"])
