"""Mode `gate`: whether a challenger may replace a champion, on new and on old held-out data."""

import dataclasses
import logging
import sys
import time
from typing import Any

import numpy as np

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.core.errors import DONE, FAILURE, InputError
from bmx.core.experiment import Experiment
from bmx.core.terminal import printable
from bmx.feedback import gate, pointer, traffic
from bmx.feedback.drift import Column
from bmx.feedback.gate import NEW, OLD, Rules, Scored
from bmx.feedback.traffic import Example
from bmx.modes import Request
from bmx.modes.feedback import (
  LEARNED,
  as_data,
  need_input,
  old_entry,
  read_examples,
  slice_columns,
)
from bmx.modes.start import need_run, start
from bmx.runtime.files import replacing, write_json
from bmx.runtime.storage import Place, place
from bmx.runtime.writer import table
from bmx.tasks import scores as judging
from bmx.train import datafile
from bmx.train.datafile import DataFile
from bmx.train.evaluate import join, predictions
from bmx.train.run import restored
from bmx.train.rundir import read_config

log = logging.getLogger('bmx')
TABLE = 'gate.txt'


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A run that takes part, with the old and new data as it reads them."""

  x: Experiment
  workdir: Place
  stored: DataFile | None
  step: str


def run(request: Request) -> int:
  """Writes WORKDIR/gate.json and gate.txt, prints the table; returns 0 if the run is accepted."""
  if len(request.runs) != 1:
    raise InputError('gate: expected two runs: bmx gate CHAMPION CHALLENGER --input=NEW')
  need_run('gate', request)
  need_input('gate', request)
  words = request.config.feedback
  rules = Rules(words.margin, words.slice_margin, words.least, words.level)
  workdir = start(request)
  champion, challenger = _contestants(request, workdir)
  found, fields, known = _new_examples(champion.x, workdir, request.input)
  sides, steps = _scored(champion, challenger, found, fields, tuple(words.slices))
  checks = gate.judge(sides[NEW], sides[OLD], rules, champion.x.seed)
  accepted = gate.accepted(checks)
  text = table(gate.table_rows(checks))
  write_json(workdir / pointer.GATE, {
    'accepted': accepted, 'champion': request.runs[0], 'challenger': str(workdir), 'step': steps[1],
    'digest': pointer.digest_of(workdir, steps[1]),
    'champion_digest': pointer.digest_of(champion.workdir, steps[0]), 'input': request.input,
    'learned': known, 'rules': dataclasses.asdict(rules), 'checks': gate.plain(checks),
    'written': time.strftime('%Y-%m-%d %H:%M:%S'),
  })  # fmt: skip
  with replacing(workdir / TABLE) as file:
    file.write(text + '\n')
  sys.stdout.write(printable(text) + '\n')
  refused = [check.name for check in checks if check.result == gate.REFUSED]
  log.info('%s; %s', f'refused: {", ".join(refused)}' if refused else 'accepted',
           workdir / pointer.GATE)  # fmt: skip
  return DONE if accepted else FAILURE


def _contestants(request: Request, workdir: Place) -> tuple[Contestant, Contestant]:
  """Builds both runs; the old data are those of the champion, for both of them."""
  folder, step = request.runs[0], 'latest'
  if pointer.is_pointer(folder):
    target = pointer.read(folder).target
    pointer.check(target)
    folder, step = target.run, str(target.step)
  stored = read_config(place(folder))
  own = recipes.plain(recipes.from_stored(stored['config']))
  given = recipes.plain(request.config)
  part = own['eval'][old_entry(own | {'feedback': given['feedback']})]
  part = part if 'call' in part else {**own['data'], **part}
  entry = {OLD: {k: v for k, v in part.items() if k != 'metrics'}}

  def contestant(where: Place, config: dict[str, Any], which: str, name: str) -> Contestant:
    fitted = datafile.read(where)
    made = experiments.build(recipes.from_plain(config | {'eval': entry}), name, stored=fitted)
    return Contestant(made, where, fitted, which)

  return (
    contestant(place(folder), own, step, stored.get('name', 'run')),
    contestant(workdir, given, request.step, request.name),
  )


def _new_examples(
  x: Experiment, workdir: Place, path: str
) -> tuple[list[Example], traffic.Fields, int]:
  """Returns labeled new examples that the challenger has not learned from, and those it has."""
  found, fields = read_examples(x.config, path)
  found = traffic.labeled(found, x.data.metadata.get('class_names', ()))
  learned: set[str] = set()
  if (workdir / LEARNED).is_file():
    learned = {traffic.key_of(e) for e in traffic.read(str(workdir / LEARNED), fields)}
  kept = [e for e in found if traffic.key_of(e) not in learned]
  log.info('new data   %d labeled examples, %d of them left out: the challenger has learned them',
           len(found), len(found) - len(kept))  # fmt: skip
  if not kept:
    raise InputError(f'--input={path}: expected labeled examples that the challenger has not '
                     'learned from; collect more')  # fmt: skip
  return kept, fields, len(found) - len(kept)


def _scored(
  champion: Contestant,
  challenger: Contestant,
  found: list[Example],
  fields: traffic.Fields,
  names: tuple[str, ...],
) -> tuple[dict[str, Scored], list[int]]:
  """Returns the scores of both on new and old data, and the step of each."""
  scale = float(champion.x.data.metadata.get('target_std', 1.0))
  scores: dict[str, list[np.ndarray]] = {NEW: [], OLD: []}
  sides: dict[str, list[Column]] = {}
  steps: list[int] = []
  for one in (champion, challenger):
    state, step = restored(one.x, one.workdir, one.step)
    steps.append(step)
    new = as_data(one.x, one.stored, found, fields, labels=True)
    for name, data in ((NEW, new), (OLD, one.x.evals[OLD].data)):
      rows = join(list(predictions(data, one.x.task, one.x.layout, state)))
      scores[name].append(judging.scores(rows, scale))
      if one is champion:
        sides[name] = slice_columns(data, rows, names, 'feedback.slices')
  slices = _slices(sides)
  return {k: Scored(scores[k][0], scores[k][1], slices[k]) for k in (NEW, OLD)}, steps


def _slices(sides: dict[str, list[Column]]) -> dict[str, dict[str, np.ndarray]]:
  """Returns the slice of each row: data -> column -> texts [N]; the old data divide numbers."""
  made: dict[str, dict[str, np.ndarray]] = {NEW: {}, OLD: {}}
  for new, old in zip(sides[NEW], sides[OLD], strict=True):
    parts = judging.slices_of(old.values, new.values, old.values, kind=old.kind)
    made[NEW][old.name], made[OLD][old.name] = parts
  return made
