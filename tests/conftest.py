"""What all tests share."""

import sys

import pytest
import torch
from study_toys import CHILD

from recbole_cdr_ext.pages import page
from recbole_cdr_ext.studies import execution

# The tensors here are small: a second thread costs more than it gives, and a great deal on a busy machine.
torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, where a study's runs are made by the stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "child", lambda words: [sys.executable, "-S", str(CHILD), *words])
    monkeypatch.setattr(page, "plotly_script", lambda: "")  # five megabytes in each page
    (tmp_path / "moods").mkdir()
    return tmp_path
