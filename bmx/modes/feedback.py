"""Data of the modes that compare a run with new examples: `drift`, `learn`, `gate`."""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx import experiment as experiments
from bmx.core.data import Data
from bmx.core.errors import InputError, did_you_mean
from bmx.core.experiment import Experiment
from bmx.core.types import HostBatch
from bmx.data.batches import Batches
from bmx.feedback import columns, traffic
from bmx.feedback.drift import Column
from bmx.feedback.traffic import Example
from bmx.modes import Request
from bmx.train.datafile import DataFile

ARRAYS = '.npz'
LABEL = 'label'  # slices by the true class
LEARNED = 'captured.jsonl'  # in a run directory: the new examples that the run learns from


def need_input(mode: str, request: Request) -> None:
  """Raises InputError if the command names no new examples."""
  if not request.input:
    raise InputError(
      f'--mode={mode} needs --input=PATH: a folder that a server has captured, or a file of '
      'examples'
    )


def old_entry(config: Mapping[str, Any]) -> str:
  """Returns the `eval` entry that holds old data: `feedback.entry`, the first but test, or test.

  Raises InputError if the config has none, or not that one.
  """
  known, chosen = config['eval'], config['feedback']['entry']
  if chosen and chosen not in known:
    raise InputError(f'feedback.entry={chosen}: the config has no such entry of eval'
                     f'{did_you_mean(chosen, known)}')  # fmt: skip
  if not known:
    raise InputError('the config has no `eval` entry with old data; set --eval.NAME...')
  return chosen or next((name for name in known if name != 'test'), 'test')


def read_examples(config: Mapping[str, Any], path: str) -> tuple[list[Example], traffic.Fields]:
  """Reads new examples by the names in the data part of a run, see `traffic.read`."""
  fields = traffic.fields_of(traffic.part_of(config['data']))
  return traffic.read(path, fields), fields


def as_data(
  x: Experiment,
  stored: DataFile | None,
  found: Sequence[Example],
  fields: traffic.Fields,
  labels: bool,
) -> Batches:
  """Returns examples as a run reads them, with its own preprocessing."""
  with tempfile.TemporaryDirectory(prefix='bmx-') as folder:
    path = pathlib.Path(folder) / 'input.jsonl'
    traffic.write(path, found, fields, labels)
    return experiments.input_data(x, path, stored)


def window_data(x: Experiment, stored: DataFile | None, path: str) -> Batches:
  """Returns all new examples, without labels: of traffic, of a file, or of an archive (.npz)."""
  if path.endswith(ARRAYS):
    return experiments.input_data(x, path, stored)
  found, fields = read_examples(x.config, path)
  return as_data(x, stored, found, fields, labels=False)


def slice_columns(data: Data, rows: HostBatch, names: Sequence[str], word: str) -> list[Column]:
  """Returns the columns that slices name: inputs of a table, and the true class.

  Args:
    data: the examples.
    rows: their predictions and labels.
    names: of columns, or 'label'.
    word: of the config that names them, for messages.

  Raises:
    InputError: an unknown column.
  """
  if not names:
    return []
  known = columns.inputs(columns.sample(data, data.size), rows) if 'x' in data.spec else []
  if LABEL in rows:
    texts = data.metadata.get('class_names') or range(int(rows[LABEL].max()) + 1)
    values = np.array([str(text) for text in texts])[rows[LABEL]]
    known = [*known, Column(LABEL, 'category', values)]
  for name in names:
    if name not in [c.name for c in known]:
      near = did_you_mean(name, [c.name for c in known])
      raise InputError(f'{word}={name}: expected a column of the data, or label{near}')
  return [next(c for c in known if c.name == name) for name in names]
