"""One notebook: what a terminal shows of it, and what is said where the memory runs out."""

import shutil

import nbformat
import numpy as np
import pytest
import torch
from papermill.clientwrap import PapermillNotebookClient

from recnb import RecnbError
from recnb.profile import STAGES, save
from recnb.workflow import execute, launch

PARAMETERS = 'profile = "smoke"\nrun = "smoke"\noverrides = {}'


@pytest.fixture
def notebook(tmp_path, monkeypatch, smoke):
    """``run(code)`` executes a first notebook of one cell."""
    monkeypatch.setattr(execute, "root", lambda: tmp_path)
    save(smoke, tmp_path / "profile.yaml")
    (tmp_path / "notebooks").mkdir()

    def run(code):
        cells = [nbformat.v4.new_code_cell(text) for text in (PARAMETERS, code)]
        cells[0].metadata["tags"] = ["parameters"]
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
        nbformat.write(book, tmp_path / "notebooks" / "01_data.ipynb")
        execute.execute("01_data", tmp_path / "profile.yaml", tmp_path / "run")

    return run


def test_memory_that_ran_out_is_named_with_a_knob(notebook):
    with pytest.raises(RecnbError) as caught:
        notebook("import numpy as np\nnp.ones(1 << 55)")
    assert "notebook 01_data, cell 2: the memory ran out (" in str(caught.value)
    assert "raise data.k_core" in str(caught.value)


def test_the_terminal_shows_the_kernels_own_errors_alone(notebook, capfd):
    """Its connection is encrypted, so that it has nothing to warn of."""
    with pytest.raises(RecnbError, match="ended without a valid manifest"):
        notebook("import os\nos.write(2, b'a real one\\n')")
    shown = capfd.readouterr().err
    assert "a real one" in shown and "WARNING" not in shown


def test_a_busy_machine_gets_time(notebook, monkeypatch):
    """papermill hands options on by name, unchecked: a misspelled one would do nothing."""
    clients = []
    monkeypatch.setattr(PapermillNotebookClient, "execute", lambda self: clients.append(self))
    with pytest.raises(RecnbError, match="without a valid manifest"):
        notebook("1")
    assert clients[0].startup_timeout >= 600 and clients[0].iopub_timeout >= 600


def test_a_dead_kernel_names_what_may_have_ended_it(notebook):
    with pytest.raises(RecnbError, match="raise data.k_core"):
        notebook("import os\nos._exit(1)")


@pytest.mark.parametrize("allocate", [lambda: np.ones(1 << 55), lambda: torch.ones(1 << 55)])
def test_what_libraries_raise_is_known(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert execute.out_of_memory(type(caught.value).__name__, str(caught.value))


def test_onednn_says_it_in_its_own_words():
    assert execute.out_of_memory("RuntimeError", "could not create a primitive")


def test_a_full_disk_is_named_whatever_failed_on_it(monkeypatch, tmp_path):
    (tmp_path / "04_sft").mkdir()
    (tmp_path / "04_sft" / execute.FAILED).write_text("OSError in cell 3")
    assert "OSError in cell 3" in launch._why([tmp_path], 1, "")
    left = shutil._ntuple_diskusage(9 << 30, 9 << 30, 5 << 20)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda _: left)
    said = launch._why([tmp_path], 1, "")
    assert said.endswith(
        "is full (5 MiB free): make room, then start the same command again: "
        "finished notebooks and checkpoints are kept"
    )


def test_other_errors_are_not_put_down_to_memory():
    assert not execute.out_of_memory("RuntimeError", "mat1 and mat2 shapes cannot be multiplied")


def test_every_notebook_has_a_knob_that_saves_memory():
    assert list(execute.LESS_MEMORY) == STAGES
