"""The loop of docs/feedback.md with a made shift, on a table and on texts; writes results.json.

    BMX_TEST_DATA=DIR python experiments/feedback/loop.py WORKDIR [SEEDS] [table,texts]

DIR holds tabular_uci/ (Census Income) and tfds/sst2_rebuilt (phrases of film reviews). The champion
learns from an old world: people of at most 40 years; phrases of at most 6 words. The new world has
older people; phrases of at least 12 words. For each seed:

1. drift: calm windows of the old world, and windows with a tenth, a quarter or all of the new one;
2. learn: a challenger from labeled traffic of the new world, and a bad one from shuffled labels;
3. gate: both beside the champion, on held-out examples of both worlds.

Also draws loop.svg: the accuracy of champion and challengers on both worlds.
"""

import csv
import dataclasses
import datetime
import json
import os
import pathlib
import sys
import time

import numpy as np

from bmx import config as recipes
from bmx import experiment as experiments
from bmx import main
from bmx.config import from_stored
from bmx.data.text.documents import records
from bmx.feedback import columns, drift
from bmx.modes.feedback import window_data
from bmx.runtime.storage import place
from bmx.train import datafile
from bmx.train.evaluate import join, predictions
from bmx.train.run import restored
from bmx.train.rundir import read_config

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ.get('BMX_TEST_DATA', ''))
LEVEL, WINDOWS, ROWS, REFERENCE = 0.05, 10, 400, 2000
SHARES = (0.1, 0.25, 1.0)  # of the new world in a window
HOLDOUT = '--config.feedback.holdout=0.3'  # of the traffic, for the gate


@dataclasses.dataclass(frozen=True)
class World:
  """Rows of one world: texts of cells, the class last; `train` for the champion, `test` later."""

  train: list[list[str]]
  test: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Case:
  """A data set with its old and new world, and the words of its runs."""

  old: World
  new: World
  names: tuple[str, ...]
  recipe: str
  words: tuple[str, ...]
  learn: tuple[str, ...]
  traffic: int  # labeled examples of the new world
  slices: str = '()'  # word of the gate
  margin: float = 0.01  # word of the gate


def table() -> Case:
  """Census Income by age."""
  recipe, _ = recipes.load('adult_mlp')
  names = recipes.plain(recipe)['data']['columns']

  def rows(name):
    with (DATA / 'tabular_uci' / name).open() as file:
      return [[*r[:-1], r[-1].strip('.')] for r in csv.reader(file, skipinitialspace=True)
              if len(r) == len(names)]  # fmt: skip

  train, test = rows('adult.data'), rows('adult.test')
  is_old = lambda r: int(r[0]) <= 40
  old, new = (World([r for r in train if is_old(r) == o], [r for r in test if is_old(r) == o])
              for o in (True, False))  # fmt: skip
  words = ('epochs=6', 'every.log=0', 'every.eval=0', 'every.save=0')
  learn = 'epochs=0', 'steps=800'
  return Case(old, new, names, 'adult_mlp', words, learn, 8000, '("sex",)')


def texts() -> Case:
  """Film reviews by length."""
  found = {split: [[str(r['sentence']), ('negative', 'positive')[int(r['label'])]]
                   for _, r in records(f'tfds:sst2_rebuilt/{split}', str(DATA / 'tfds'))]
           for split in ('train', 'validation')}  # fmt: skip
  everything = found['train'] + found['validation']
  order = np.random.default_rng(0).permutation(len(everything))
  everything = [everything[i] for i in order]
  old = [r for r in everything if len(r[0].split()) <= 6]
  new = [r for r in everything if len(r[0].split()) >= 12]
  worlds = World(old[:-10000], old[-10000:]), World(new[:-6000], new[-6000:])
  words = (
    'vocab=4096', 'length=32', 'task.model.encoder.width=64', 'task.model.encoder.depth=1',
    'epochs=0', 'steps=400', 'data.split=all', 'eval.valid.split=all', 'every.eval=0',
    'every.log=0', 'keep.metric=', 'schedule.peak=2e-3',
  )  # fmt: skip
  return Case(
    worlds[0], worlds[1], ('text', 'label'), 'text', words, ('steps=400',), 8000, margin=0.02
  )


CASES = {'table': table, 'texts': texts}


def write(path: pathlib.Path, case: Case, rows) -> str:
  """Writes rows as JSON lines."""
  lines = [json.dumps(dict(zip(case.names, row, strict=True))) for row in rows]
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def write_old(folder: pathlib.Path, case: Case, train, test) -> list[str]:
  """Writes the champion's files; returns the words that name them."""
  if case.recipe == 'text':
    data, held = (
      write(folder / f'{n}.jsonl', case, r) for n, r in (('old', train), ('held', test))
    )
    return [f'data.path={data}', f'eval.valid.path={held}']
  for name, rows in (('adult.data', train), ('adult.test', test)):
    with (folder / name).open('w') as file:
      csv.writer(file).writerows(rows)
  return [f'folder={folder}']


def command(mode: str, *arguments: str) -> int:
  """Runs a mode of bmx in this process."""
  return main.main([f'--mode={mode}', *arguments])


def flags(words) -> list[str]:
  """Returns words of a config as arguments."""
  return [f'--config.{word}' for word in words]


def sample_columns(run: pathlib.Path, paths: list[str]) -> list[list[drift.Column]]:
  """Returns the columns of each file and of its predictions, as `bmx drift` makes them."""
  stored = datafile.read(place(str(run)))
  x = experiments.build(from_stored(read_config(place(str(run)))['config']), 'run', evals=False,
                        stored=stored)  # fmt: skip
  state, _ = restored(x, place(str(run)), 'latest')
  task, _ = columns.with_hidden(x.task)
  made = []
  for path in paths:
    data = window_data(x, stored, path)
    chosen = columns.sample(data, data.size)
    rows = join(list(predictions(chosen, task, x.layout, state)))
    made.append([*columns.inputs(chosen, rows), *columns.outputs(rows, x.data.metadata)])
  return made


def part(sample: list[drift.Column], rows: np.ndarray) -> list[drift.Column]:
  """Returns rows of a sample."""
  return [dataclasses.replace(c, values=c.values[rows]) for c in sample]


def joined(a: list[drift.Column], b: list[drift.Column]) -> list[drift.Column]:
  """Returns the rows of both samples."""
  return [dataclasses.replace(c, values=np.concatenate([c.values, d.values]))
          for c, d in zip(a, b, strict=True)]  # fmt: skip


def alarms(samples: list[list[drift.Column]], seed: int) -> dict[str, int]:
  """Counts windows with an alarm: calm ones, and those with a share of the new world.

  Args:
    samples: the reference, the rest of the old world, the new world.
    seed: of the windows.
  """
  reference, calm, new = samples
  random, found = np.random.default_rng(seed), {}
  order = random.permutation(len(calm[0].values))[: WINDOWS * ROWS].reshape(WINDOWS, ROWS)
  noticed = lambda window: any(f.drifted for f in drift.compare(reference, window, LEVEL, seed))
  found['calm'] = sum(noticed(part(calm, rows)) for rows in order)
  for share in SHARES:
    k = round(ROWS * share)
    found[f'{share:.0%} new'] = sum(
      noticed(joined(part(calm, rows[k:]), part(new, random.permutation(len(new[0].values))[:k])))
      for rows in order
    )
  return {k: int(v) for k, v in found.items()}


def play(name: str, folder: pathlib.Path, seed: int) -> dict:
  """Plays the loop once; returns what it shows."""
  case, began = CASES[name](), time.perf_counter()
  folder.mkdir(parents=True)
  random = np.random.default_rng(seed)
  shuffle = lambda rows: [rows[i] for i in random.permutation(len(rows))]
  held = shuffle(case.old.test)
  half = len(held) - WINDOWS * ROWS if len(held) < 2 * WINDOWS * ROWS else len(held) // 2
  words = write_old(folder, case, shuffle(case.old.train)[:20000], held[:half])
  champion, new = folder / 'champion', shuffle(case.new.train)[: case.traffic]
  own = [f'seed={seed}', 'mesh.data=1', 'show_parameters=1', *words, *case.words]
  assert command('train', f'--config={case.recipe}', *flags(own), f'--workdir={champion}') == 0
  wrong = [[*row[:-1], label] for row, label in
           zip(new, random.permutation([row[-1] for row in new]), strict=True)]  # fmt: skip
  files = [write(folder / f'{n}.jsonl', case, rows) for n, rows in
           (('reference', held[:half][:REFERENCE]), ('calm', held[half:]), ('new', new),
            ('wrong', wrong))]  # fmt: skip
  result: dict = {'seed': seed, 'windows': WINDOWS}
  result['alarms'] = alarms(sample_columns(champion, files[:3]), seed)
  for kind, path in (('good', files[2]), ('bad', files[3])):
    output = folder / kind
    given = flags([f'seed={seed + 100}', *case.learn])
    assert command('learn', f'--workdir={champion}', f'--input={path}', f'--output={output}',
                   *given, HOLDOUT) == 0  # fmt: skip
    code = command(
      'gate',
      f'--workdir={output}',
      f'--run={champion}',
      f'--input={files[2]}',
      f'--config.feedback.slices={case.slices}',
      f'--config.feedback.margin={case.margin}',
    )
    found = json.loads((output / 'gate.json').read_text())
    checks = {c['name']: {k: round(c[k], 4) for k in ('champion', 'challenger', 'low', 'high')} |
              {'rows': c['rows'], 'result': c['result']} for c in found['checks']}  # fmt: skip
    result[kind] = {'accepted': code == 0, 'checks': checks}
  return result | {'seconds': round(time.perf_counter() - began, 1)}


def picture(results: dict) -> str:
  """Draws the accuracy of each model on both worlds, a dot for each seed."""
  colours = {'champion': '#64748b', 'good': '#16a34a', 'bad': '#db2777'}
  parts, width, height = [], 420, 320
  for i, (name, seeds) in enumerate(results.items()):
    parts.append(
      f'<text x="{i * width + 20}" y="42" font-weight="bold">{name}, accuracy in %</text>'
    )
    for tick in range(50, 101, 10):
      y = height - 30 - (tick - 50) * 4.6
      parts.append(f'<line x1="{i * width + 50}" x2="{i * width + 400}" y1="{y}" y2="{y}" '
                   f'stroke="#8884"/><text x="{i * width + 44}" y="{y + 4}" '
                   f'text-anchor="end">{tick}</text>')  # fmt: skip
    for j, world in enumerate(('old', 'new')):
      parts.append(f'<text x="{i * width + 140 + 170 * j}" y="{height - 8}" '
                   f'text-anchor="middle">{world} world</text>')  # fmt: skip
      for n, result in enumerate(seeds):
        for k, (model, colour) in enumerate(colours.items()):
          check = result['good' if model == 'champion' else model]['checks'][world]
          value = check['champion' if model == 'champion' else 'challenger']
          x = i * width + 90 + 170 * j + 45 * k + 5 * n
          y = height - 30 - (100 * value - 50) * 4.6
          parts.append(f'<circle cx="{x}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity=".7"/>')
  for k, (model, colour) in enumerate(colours.items()):
    said = {'champion': 'champion', 'good': 'challenger', 'bad': 'challenger of shuffled labels'}
    parts.append(f'<circle cx="{160 + 120 * k}" cy="18" r="4" fill="{colour}"/>'
                 f'<text x="{168 + 120 * k}" y="22">{said[model]}</text>')  # fmt: skip
  width = max(width, 520 // len(results))
  size = f'viewBox="0 0 {width * len(results)} {height}" width="{width * len(results)}"'
  return (f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
          f'font-size="12" fill="#475569">{"".join(parts)}</svg>\n')  # fmt: skip


def run() -> None:
  """Plays the seeds that results.json lacks; it grows with each."""
  folder = pathlib.Path(sys.argv[1])
  seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
  names = sys.argv[3].split(',') if len(sys.argv) > 3 else list(CASES)
  path = HERE / 'results.json'
  stored = json.loads(path.read_text()) if path.exists() else {}
  found = stored.get('results', {})
  for name in names:
    known = found.setdefault(name, [])
    for seed in range(len(known), seeds):
      known.append(play(name, folder / f'{name}-{seed}', seed))
      facts = {'date': datetime.date.today().isoformat(), 'level': LEVEL, 'rows': ROWS}
      path.write_text(json.dumps(facts | {'results': found}, indent=1) + '\n')
      (HERE / 'loop.svg').write_text(picture(found))


if __name__ == '__main__':
  run()
