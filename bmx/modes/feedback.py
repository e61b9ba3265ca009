"""Data of the modes that compare a run with new examples: `drift`, `learn`, `gate`."""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from bmx import experiment as experiments
from bmx.core.errors import InputError, did_you_mean
from bmx.core.experiment import Experiment
from bmx.data.batches import Batches
from bmx.feedback import traffic
from bmx.feedback.traffic import Example
from bmx.modes import Request
from bmx.train.datafile import DataFile

ARRAYS = '.npz'
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
