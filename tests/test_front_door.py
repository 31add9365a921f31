"""The front door: ``import recbole_cdr_ext as cdr``."""

import ast
import inspect
import subprocess
import sys

import pytest

import recbole_cdr_ext as cdr


def test_every_name_is_there_and_is_what_the_type_checker_is_told():
    tree = ast.parse(inspect.getsource(cdr))
    imports = {
        alias.asname: f"{node.module}:{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert imports == {name: f"recbole_cdr_ext.{home}" for name, home in cdr._HOMES.items()}
    for name in cdr.__all__:
        assert getattr(cdr, name) is not None
    assert set(cdr.__all__) <= set(dir(cdr))


def test_what_is_not_there_says_so():
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        _ = cdr.runn


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; import recbole_cdr_ext;"
        "heavy = {'torch', 'recbole', 'numpy', 'pandas', 'yaml', 'ray', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy; assert not [m for m in sys.modules if m.startswith('recbole_cdr_ext.data')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_names_of_before_are_handed_on_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"recbole_cdr_ext\.run_recbole_cdr now"):
        from recbole_cdr_ext.run import run_recbole_cdr
    with pytest.warns(DeprecationWarning, match="load_model now"):
        from recbole_cdr_ext.serve import load_model
    with pytest.warns(DeprecationWarning, match="Recommender now"):
        from recbole_cdr_ext.model.abstract import CrossDomainRecommender
    assert run_recbole_cdr is cdr.run and load_model is cdr.load_model
    assert CrossDomainRecommender is cdr.Recommender
    assert callable(cdr.run)  # and no module took its place
