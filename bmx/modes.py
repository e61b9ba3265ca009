"""What `--mode` can be: functions (experiment, workdir, arguments) -> exit code."""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bmx import experiment as experiments
from bmx.adapt import restore
from bmx.core import errors, tree
from bmx.core.types import Data, Experiment, Rows
from bmx.data import documents, tokenizer
from bmx.data.tokenizer import Tokenizer
from bmx.plan.compile import compile_step, verdict
from bmx.runtime.writer import brief, write_json
from bmx.serve.generate import Report
from bmx.serve.text import Options, Writer
from bmx.train import loop
from bmx.train.evaluate import Evaluator, join, predictions
from bmx.train.state import plan_state

log = logging.getLogger('bmx')
TOGETHER = 32  # prompts of a file that are gone on with at a time


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
    for line in _lines(data, predictions(data, x.task, x.layout, state)):
      file.write(json.dumps(line) + '\n')
      count += 1
  part.replace(path)
  log.info('%d predictions of step %d in %s', count, step, path)
  return errors.DONE


def _lines(data: Data, parts: Iterator[Rows]) -> Iterator[dict[str, Any]]:
  """What is written of each example; of questions, whose answer may stand in several windows, the
  text of the best one."""
  if hasattr(data, 'answers'):
    answers = data.answers(join(list(parts)))  # type: ignore
    yield from ({'answer': said, 'known': known} for said, known in answers)
    return
  for rows in parts:
    for i in range(len(rows['prediction'])):
      yield {k: v[i].tolist() for k, v in rows.items()}


def plan(experiment: Experiment, _: pathlib.Path, args: argparse.Namespace) -> int:
  """Compiles a training step for the topology and says what it takes; nothing is run."""
  x = experiment
  made = compile_step(x)
  lines = [f'plan       {x.name} on {args.topology}']
  lines += [f'{k:28} {v}' for k, v in verdict(x, made).items()]
  log.info('%s', '\n'.join(lines))
  return errors.DONE


def generate(experiment: Experiment, workdir: pathlib.Path, args: argparse.Namespace) -> int:
  """Goes on with each --prompt, on the terminal, or with each line of --input, one JSON object each
  in WORKDIR/generations.jsonl."""
  x = experiment
  if bool(args.prompt) == bool(args.input):
    raise errors.InputError(
      'give --prompt=TEXT, several times for several, or --input=FILE; one of the two'
    )
  if args.prompt and args.workdir and not (workdir / 'checkpoints').is_dir():
    raise errors.InputError(f'{workdir} holds no run: give --workdir=DIR of one that has trained')
  options = Options(**x.generate)
  if not hasattr(x.task.model, 'extend'):  # type: ignore
    raise errors.InputError('generation needs a decoder, a model that says next tokens')
  prompts = args.prompt or documents.read(args.input, 'prompt', 'line')
  folder, params = _weights(x, workdir, args.step)
  coder = _tokenizer(x, folder)
  writer = Writer(x.task.model, params, x.layout, coder, options)  # type: ignore
  del params  # the writer has its own
  report = Report()
  if args.prompt:
    _tell(writer, prompts, x.seed, report)
  else:
    _write(writer, prompts, x.seed, report, workdir)
  if report.tokens:
    log.info(
      '%d prompt tokens in %.2f s, then %d tokens at %s tokens/s (compiled in %.1f s)',
      report.prompt_tokens, report.prefill_seconds, report.tokens, brief(report.rate),
      report.compile_seconds,
    )  # fmt: skip
  return errors.DONE


def _weights(x: Experiment, workdir: pathlib.Path, which: str) -> tuple[pathlib.Path, Any]:
  """The plain weights to use -> (the folder that they are from, params); nothing else is read."""
  plan = plan_state(x.task, x.tx, x.data.spec, x.layout, seed=x.seed, ema=x.ema)
  folder, step = str(workdir), which
  if x.weights and not (workdir / 'checkpoints').is_dir():
    if which != 'latest':
      raise errors.InputError(
        f'--step={which} is of a run, and init.path={x.weights} is used as it is'
      )
    folder, step = x.weights, 'latest'
  found = restore.load(folder, plan.abstract.params, step=step)
  return pathlib.Path(folder), x.task.view(tree.nested(found), {})


def _tokenizer(x: Experiment, folder: pathlib.Path) -> Tokenizer:
  """The one that lies beside the weights, or where they came from; bytes where there is none and
  the model reads bytes."""
  for place in (folder, pathlib.Path(x.weights or folder)):
    if (place / 'tokenizer.json').is_file():
      return tokenizer.load(str(place))
  vocab = getattr(x.task.model, 'vocab', 0)  # type: ignore
  if vocab != 256:
    raise errors.InputError(
      f'{folder} has no tokenizer.json, and a vocabulary of {vocab} is not that of bytes: put the '
      "model's tokenizer there"
    )
  return tokenizer.Bytes()


def _tell(writer: Writer, prompts: Sequence[str], seed: int, report: Report) -> None:
  """One text as it is made; several when all are whole."""
  out = sys.stdout
  if len(prompts) == 1 and writer.options.stream:
    before = prompts[0]
    for (piece,) in writer.stream(prompts, seed, report):
      out.write(before + piece)
      out.flush()
      before = ''
    out.write('\n')
    return
  for prompt, text in zip(prompts, writer.write(prompts, seed, report), strict=True):
    out.write(f'{prompt}{text}\n\n')


def _write(
  writer: Writer, prompts: Sequence[str], seed: int, report: Report, workdir: pathlib.Path
) -> None:
  """A few prompts at a time, so that any number of them fits."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'generations.jsonl'
  part = path.with_name(path.name + '.part')
  with part.open('w') as file:
    for first in range(0, len(prompts), TOGETHER):
      some = prompts[first : first + TOGETHER]
      texts = writer.write(some, seed, report, first)
      for prompt, text in zip(some, texts, strict=True):
        file.write(json.dumps({'prompt': prompt, 'text': text}) + '\n')
  part.replace(path)
  log.info('%d texts in %s', len(prompts), path)


eval = evaluate  # the mode's name
