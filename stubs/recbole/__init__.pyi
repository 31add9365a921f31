# What this library uses of RecBole 1.2.0, which ships no types. mypy alone reads these files. They leave out the
# `__getattr__` of Config and Interaction on purpose: with it, no misspelt attribute would ever be found.
__version__: str
