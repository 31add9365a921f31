"""From what people have (Amazon dumps, CSV files, published rows, a seed) to RecBole's atomic files."""

from recbole_cdr_ext.data.prepare.description import Description, list_datasets, load_description
from recbole_cdr_ext.data.prepare.preparation import (
    Ensured,
    ensure_dataset,
    is_prepared,
    layout_folder,
    prepare,
)

__all__ = [
    "Description",
    "Ensured",
    "ensure_dataset",
    "is_prepared",
    "layout_folder",
    "list_datasets",
    "load_description",
    "prepare",
]
