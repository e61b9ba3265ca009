"""What `--mode` can be: functions (experiment, workdir, arguments) -> exit code."""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from bmx import experiment as experiments
from bmx.core import errors
from bmx.core.types import Experiment
from bmx.core.writer import brief, write_json
from bmx.data import documents, tokenizer
from bmx.data.tokenizer import Tokenizer
from bmx.plan.compile import compile_step, verdict
from bmx.serve.generate import Report
from bmx.serve.text import Options, Writer
from bmx.train import loop
from bmx.train.evaluate import Evaluator, predictions
from bmx.train.state import eval_params

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


def generate(experiment: Experiment, workdir: pathlib.Path, args: argparse.Namespace) -> int:
  """Goes on with each --prompt, on the terminal, or with each line of --input, one JSON object each
  in WORKDIR/generations.jsonl."""
  x = experiment
  options = Options(**x.config['generate'])
  prompts = args.prompt or _prompts(args.input)
  params, folder = _weights(x, workdir, args.step)
  writer = Writer(x.task.model, params, x.layout, _tokenizer(x, folder), options)  # type: ignore
  report = Report()
  if args.prompt:
    _tell(writer, prompts, x.seed, report)
  else:
    texts = writer.write(prompts, x.seed, report)
    lines = [json.dumps({'prompt': p, 'text': t}) for p, t in zip(prompts, texts, strict=True)]
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'generations.jsonl'
    path.write_text('\n'.join(lines) + '\n')
    log.info('%d texts in %s', len(texts), path)
  if report.tokens:
    log.info(
      '%d prompt tokens in %.2f s, then %d tokens at %s tokens/s (compiled in %.1f s)',
      report.prompt_tokens, report.prefill_seconds, report.tokens, brief(report.rate),
      report.compile_seconds,
    )  # fmt: skip
  return errors.DONE


def _prompts(path: str) -> list[str]:
  if not path:
    raise errors.InputError('give --prompt=TEXT, several times for several, or --input=FILE')
  return documents.read(path, 'prompt', 'line')


def _weights(x: Experiment, workdir: pathlib.Path, step: str) -> tuple[Any, pathlib.Path]:
  """The plain weights to use -> (params, the folder that they are from)."""
  init = x.config['init']['path']
  if (workdir / 'checkpoints').is_dir() or not init:
    state, found = loop.restored(x, workdir, step)
    log.info('weights    of step %d of %s', found, workdir)
    return x.task.view(eval_params(state), state.collections), workdir
  state = x.init()
  return x.task.view(state.params, state.collections), pathlib.Path(init)


def _tokenizer(x: Experiment, folder: pathlib.Path) -> Tokenizer:
  """The one that lies beside the weights; bytes where there is none and the model reads bytes."""
  if (folder / 'tokenizer.json').is_file():
    return tokenizer.load(str(folder))
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


eval = evaluate  # the mode's name
