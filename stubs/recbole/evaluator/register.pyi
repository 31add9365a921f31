from typing import Any

metric_information: dict[str, list[str]]
metrics_dict: dict[str, Any]
metric_types: dict[str, Any]
