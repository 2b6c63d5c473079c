"""`--set model.roi_backend=detectron2` on the command line, with and without detectron2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import TINY, dedetr

ASKED = ["train", "--model", "de-detr", *TINY, "--dry-run", "--set", "model.roi_backend=detectron2"]
PLAIN = ["--set", "model.attention=plain"]
INSTALL = "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a package called detectron2, which comes before an installed one."""
    folder = tmp_path / "detectron2"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


def test_f73_absent_detectron2_is_named_with_the_line_that_installs_it(demo, package):
    """A package that Python does not find raises the same error as one that was never installed."""
    (package / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'detectron2'\", name='detectron2')"
    )
    refused = dedetr(*ASKED, *PLAIN, cwd=demo, PYTHONPATH=str(package.parent))
    assert refused.returncode == 5, refused.stderr
    assert "model.roi_backend: detectron2 is not installed" in " ".join(refused.stderr.split())
    assert INSTALL in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_the_fast_attention_says_why_it_does_not_crop_by_detectron2(demo):
    refused = dedetr(*ASKED, cwd=demo)
    assert refused.returncode == 2, refused.stderr
    said = " ".join(refused.stderr.split())
    assert "model.roi_backend: the fast attention does not crop by detectron2" in said
    assert "model.attention=plain" in said
    assert "Traceback" not in refused.stderr


def test_a_backend_that_is_there_is_taken(demo, package):
    (package / "layers.py").write_text("class ROIAlign: ...")
    done = dedetr(*ASKED, *PLAIN, cwd=demo, PYTHONPATH=str(package.parent))
    assert done.returncode == 0, done.stderr
