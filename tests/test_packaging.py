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
import yaml

import recbole_cdr_ext

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy so that no build folder is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("recbole_cdr_ext", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "*.md"):
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


def test_the_wheel_holds_all_files_of_the_package_and_of_properties(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in files_in(ROOT / "recbole_cdr_ext")}
    properties = {
        f"recbole_cdr_ext/{path.relative_to(ROOT).as_posix()}" for path in files_in(ROOT / "properties")
    }
    assert properties
    assert "recbole_cdr_ext/py.typed" in package
    assert package - names == set()
    assert properties - names == set()
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "properties"))]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_setup_cfg_lists_every_package():
    setuptools = pytest.importorskip("setuptools")
    rooms = setuptools.find_packages(str(ROOT), include=["recbole_cdr_ext", "recbole_cdr_ext.*"])
    options = setup_cfg()["options"]
    assert options["packages"].split() == sorted([*rooms, "recbole_cdr_ext.properties"])
    folders = {path.parent for path in (ROOT / "recbole_cdr_ext").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(rooms)


def test_the_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import sys; from recbole_cdr_ext.cli.main import main;"
        "from recbole_cdr_ext.settings.reading import properties_dir;"
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


def setup_cfg() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def test_constraints_pin_what_make_installs():
    extras = setup_cfg()["options.extras_require"]
    shared = re.search(r"^recbole_cdr_ext\[(.+)\]$", extras["dev"], re.MULTILINE)
    assert shared
    assert {*shared[1].split(","), "dev"} == set(extras)
    required = "\n".join([setup_cfg()["options"]["install_requires"], *extras.values()])
    names = {re.match(r"[\w-]+", line)[0] for line in required.splitlines() if line and line[0] != "#"}
    assert {name for name in names if _normal(name) not in pinned()} == {"recbole_cdr_ext"}


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


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == recbole_cdr_ext.__version__
    assert citation["title"] == setup_cfg()["metadata"]["name"]
