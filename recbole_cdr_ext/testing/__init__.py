"""What every model must pass, in this package and in others.

In the tests of a package that brings a model::

    import pytest
    from recbole_cdr_ext.testing import Subject, checks_of

    @pytest.fixture(scope="module")
    def subject(tmp_path_factory):
        return Subject("MyModel", tmp_path_factory.mktemp("conformance"))

    @pytest.mark.parametrize("check", checks_of("MyModel"), ids=lambda check: check.__name__)
    def test_conformance(subject, check):
        check(subject)

On the command line: ``recbole-cdr check --model=MyModel``. What the checks ask for is on the page "conformance".
"""

from recbole_cdr_ext.testing.checks import NotConformant, checks_of, outcomes
from recbole_cdr_ext.testing.subject import Subject

__all__ = ["NotConformant", "Subject", "checks_of", "outcomes"]
