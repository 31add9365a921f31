"""What a wheel holds, and that it works where there is no checkout."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy so that no build folder is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("recbole_cdr_ext", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("setup.*", "pyproject.toml", "MANIFEST.in", "LICENSE", "*.md"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_every_property_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_cdr_ext").rglob("*.py")}
    properties = {
        f"recbole_cdr_ext/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "properties").rglob("*.yaml")
    }
    assert properties
    assert modules - held == set()
    assert properties - held == set()
    assert any(name.endswith("LICENSE") for name in held)
    assert not [name for name in held if name.startswith(("tests", "benchmarks", "properties"))]


def test_the_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import sys; from recbole_cdr_ext.cli.main import main;"
        "from recbole_cdr_ext.settings.paths import properties_dir;"
        "from recbole_cdr_ext.settings.reading import find_config_file;"
        "print(properties_dir()); print(find_config_file('properties/model/I2VAE_paper.yaml'));"
        "sys.exit(main(['run', '--help', '--model=I2VAE']) or main(['prepare', 'toy', '--data_path=data']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert str(installed / "recbole_cdr_ext" / "properties") in done.stdout
    assert (tmp_path / "data" / "toy" / "books.inter").is_file()


def test_the_wheel_has_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "recbole-cdr = recbole_cdr_ext.cli.main:main" in archive.read(name).decode()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_what_make_installs():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    names = [re.match(r"[\w-]+", line) for line in required.splitlines() if line and not line.startswith("#")]
    missing = [match.group() for match in names if match and _normal(match.group()) not in pinned()]
    assert missing == []


def test_constraints_suit_every_machine():
    """No build of one machine (torch's +cpu), and torch for make's own line."""
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned().values())
    assert "torch" in pinned()


def test_commands_need_nothing_that_only_unix_has():
    code = (
        "import sys; sys.modules['fcntl'] = None; sys.modules['resource'] = None\n"
        "import recbole_cdr_ext.runs.run, recbole_cdr_ext.cli.main, recbole_cdr_ext.tuning.sweep\n"
        "import recbole_cdr_ext.reports.report\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
