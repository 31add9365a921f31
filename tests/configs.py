"""Configurations as the tests of settings make them."""

from __future__ import annotations

import pytest

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig


def configure(*argv: str, model="I2VAE", dataset="toy", **settings) -> CDRConfig:
    return CDRConfig(model, dataset, config_dict=settings, argv=argv)


def refusal(*argv: str, **settings) -> str:
    with pytest.raises(CDRError) as caught:
        configure(*argv, **settings)
    return str(caught.value)
