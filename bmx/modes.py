"""What `--mode` can be: functions (experiment, workdir, arguments) -> exit code."""

import argparse
import json
import logging
import pathlib

from bmx import experiment as experiments
from bmx.core import errors
from bmx.core.types import Experiment
from bmx.core.writer import brief, write_json
from bmx.plan.compile import compile_step, verdict
from bmx.train import loop
from bmx.train.evaluate import Evaluator, predictions

log = logging.getLogger('bmx')


def train(experiment: Experiment, workdir: pathlib.Path, _: argparse.Namespace) -> int:
  loop.run(experiment, workdir)
  return errors.DONE


def evaluate(experiment: Experiment, workdir: pathlib.Path, args: argparse.Namespace) -> int:
  """Every entry of `eval` on a checkpoint; one line each, and WORKDIR/evaluation.STEP.json."""
  x = experiment
  if not x.evals:
    raise errors.InputError('the config has no `eval` entry to evaluate')
  state, step = loop.restored(x, workdir, args.step)
  values: dict[str, float] = {}
  for name, entry in x.evals.items():
    values |= Evaluator(name, entry, x.task, x.layout)(state)
  log.info('step %d  %s', step, '  '.join(f'{k} {brief(v)}' for k, v in values.items()))
  write_json(workdir / f'evaluation.{step}.json', {'step': step, 'metrics': values})
  return errors.DONE


def predict(experiment: Experiment, workdir: pathlib.Path, args: argparse.Namespace) -> int:
  """One JSON object an example, in file order, to WORKDIR/predictions.jsonl."""
  x = experiment
  if args.input:
    data = experiments.input_data(x, args.input)
  elif x.evals:
    data = x.evals['test' if 'test' in x.evals else next(iter(x.evals))].data
  else:
    raise errors.InputError('give --input=FILE: the config has no `eval` entry to predict')
  state, step = loop.restored(x, workdir, args.step)
  path = workdir / 'predictions.jsonl'
  part = path.with_name(path.name + '.part')
  count = 0
  with part.open('w') as file:
    for rows in predictions(data, x.task, x.layout, state):
      for i in range(len(rows['prediction'])):
        file.write(json.dumps({k: v[i].tolist() for k, v in rows.items()}) + '\n')
        count += 1
  part.replace(path)
  log.info('%d predictions of step %d in %s', count, step, path)
  return errors.DONE


def plan(experiment: Experiment, _: pathlib.Path, args: argparse.Namespace) -> int:
  """Compiles a training step for the topology and says what it takes; nothing is run."""
  x = experiment
  made = compile_step(x)
  lines = [f'plan       {x.name} on {args.topology}']
  lines += [f'{k:28} {v}' for k, v in verdict(x, made).items()]
  log.info('%s', '\n'.join(lines))
  return errors.DONE


eval = evaluate  # the mode's name
