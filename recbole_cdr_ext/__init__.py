"""Cross-domain recommendation for RecBole: models, data and experiments."""

__version__ = "0.1.0"
