"""Code shared by the scripts that compare runs."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.shared.scripts import markdown_table
from resnet_jax.checkpoints.storage import write_file, write_json


def curves_of(run: pathlib.Path, split: str, name: str) -> np.ndarray:
    """A metric of a split at the end of every epoch, from ``metrics.jsonl`` of a run."""
    records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    last: dict[int, float] = {}
    for record in records:
        if record['split'] == split and name in record:
            last[int(np.ceil(record['epoch'] - 1e-9))] = record[name]
    return np.array([last[epoch] for epoch in sorted(last)])


def spread(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation over the first axis."""
    array = np.stack([np.asarray(value) for value in values])
    deviation = array.std(0, ddof=1) if len(array) > 1 else np.zeros(array.shape[1:])
    return array.mean(0), deviation


def format_mean(values: Sequence[Any], digits: int = 4) -> str:
    """Formats mean ± sample standard deviation; a single value is formatted alone."""
    mean, deviation = spread(values)
    return f'{mean:.{digits}f}' if len(values) == 1 else f'{mean:.{digits}f} ± {deviation:.{digits}f}'


def write_table(out: pathlib.Path, columns: Sequence[str], rows: Sequence[Sequence[str]], **facts: Any) -> None:
    """Prints a table and writes it to ``table.md`` and, with ``facts``, to ``result.json``."""
    table = markdown_table(columns, rows)
    write_file(out / 'table.md', (table + '\n').encode())
    write_json(out / 'result.json', {'columns': columns, 'rows': rows} | facts)
    print(table)
