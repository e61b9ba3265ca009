"""The run directory: whose run it holds, its lock, and the files beside metrics and checkpoints."""

import contextlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from bmx.config import complete
from bmx.core.errors import InputError, near
from bmx.core.experiment import Experiment
from bmx.runtime import storage
from bmx.runtime.files import numbers, read_json, write_json
from bmx.runtime.locks import locked
from bmx.runtime.storage import Place
from bmx.train import datafile, package, repeats
from bmx.train.stepdirs import check_names, check_path

log = logging.getLogger('bmx')

# Words that a resumed run may change.
FREE = [
  'steps',
  'epochs',
  'every',
  'eval',
  'stop',
  'keep',
  'mesh',
  'rules',
  'compute',
  'watchdog',
  'profile',
  'show_parameters',
  'cache',
  'generate',
  'serve',
  'compress',
  'feedback',
  'predict',
  'export',
  'plan',
  'capture',
  'explain',
  'reliability',
  'init',
  'hooks',
  'writers',
  'allow_changed_data',
]
# Files and folders that bmx writes in a run directory: a link there would lead a write elsewhere.
OWN = ('lock', 'config.json', 'data.json', 'tokenizer.json', 'tokenizer_config.json',
       'special_tokens_map.json', 'metrics.jsonl', 'summary.json', 'sections.json', 'starts.json',
       'report.html', 'temperature.json', 'checkpoints', 'constants', 'tensorboard', 'logs',
       'profile', repeats.UNSAVED)  # fmt: skip
PACKAGES = ('bmx-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain')


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts by dotted names.

  >>> flatten({'a': {'b': 1}, 'c': [2]})
  {'a.b': 1, 'c': [2]}
  """
  result = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      result |= flatten(value, f'{prefix}{key}.')
    else:
      result[f'{prefix}{key}'] = value
  return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
  """Returns (leaf, old, new) where two configs differ; '(absent)' if one lacks the leaf."""
  a, b = flatten(old), flatten(new)
  missing = '(absent)'
  names = sorted({*a, *b})
  return [
    (k, a.get(k, missing), b.get(k, missing))
    for k in names
    if a.get(k, missing) != b.get(k, missing)
  ]


def _ours(name: str) -> bool:
  """Whether bmx may have left a file before it wrote config.json."""
  return (
    name in ('logs', 'checkpoints', 'lock', '.probe', 'captured.jsonl', 'captured.json')
    or name.startswith('.nonce-')
    or (name.endswith('.part'))
  )


def _free(leaf: str) -> bool:
  """Whether a resumed run may change a leaf.

  Tokenizers are compared by content, not by source: see `datafile.check`.
  """
  words = leaf.split('.')
  return words[0] in FREE or 'tokenizer' in words


class RunDir:
  """WORKDIR, new or of a run that is resumed.

  Args:
    workdir: its path.
    experiment: whose run it holds.

  Raises:
    InputError: it cannot be written, is a package, or holds the run of another config (the
      differences are listed).
  """

  def __init__(self, workdir: str | os.PathLike[str], experiment: Experiment):
    self.began, self.identity = time.time(), ''
    self.path = storage.absolute(storage.place(workdir))
    self.experiment = experiment
    self.config = self.path / 'config.json'
    self.resumed = self.config.exists()
    self.changes: list[tuple[str, Any, Any]] = []  # (word, before, now) of a resumed run
    check_path(self.path)
    check_links(self.path)
    check_new(self.path)
    if jax.process_index():
      return  # process 0 writes the directory
    check_names(self.path / 'checkpoints')
    if self.resumed:
      self._compare()
    elif self.path.is_dir() and (others := self._others()):
      raise InputError(
        f'--workdir={self.path}: expected a new directory or a run of bmx, found '
        f'{", ".join(others[:5])}; name another directory'
      )
    try:
      (self.path / 'checkpoints').mkdir(parents=True, exist_ok=True)
      probe = self.path / '.probe'
      probe.touch()
      probe.unlink()
    except OSError as error:
      raise InputError(f'--workdir={self.path} cannot be written: {error}') from None

  def _others(self) -> list[str]:
    return sorted(p.name for p in self.path.iterdir() if not _ours(p.name))

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Holds WORKDIR/lock, so that no second process trains here.

    Raises InputError if another process holds it.
    """
    if jax.process_index():
      yield
      return
    with locked(self.path / 'lock'):
      if self.config.exists() and not self.resumed:  # of a run that ended before the lock
        self.resumed = True
        self._compare()
      yield

  def _compare(self) -> None:
    stored = read_config(self.path)
    plain = lambda config: json.loads(json.dumps(config))  # tuples are lists there
    changes = differences(plain(stored['config']), plain(self.experiment.config))
    lines = [f'  {name}: {old!r} there, {new!r} given' for name, old, new in changes]
    forbidden = [line for line, change in zip(lines, changes, strict=True)
                 if not _free(change[0])]  # fmt: skip
    if forbidden:
      raise InputError(
        f'--workdir={self.path}: expected the same config as its run, found differences:\n'
        + '\n'.join(forbidden)
        + '\ngive the same config again to resume; to continue from its weights with another one, '
        f'name another --workdir and add --config.init.path={self.path}'
      )
    repeats.check(self.path, changes)
    self.changes = changes
    if changes:
      log.info('resuming with another\n%s', '\n'.join(lines))

  def identify(self) -> str:
    """Returns the random name of the run: that in its config.json, or a new one."""
    if not self.identity:
      old = read_config(self.path) if self.resumed else {}
      self.identity = old.get('run') or secrets.token_hex(8)
    return self.identity

  def write_config(self, step: int, resolved: Mapping[str, Any]) -> None:
    """Writes config.json; the previous one is kept as config.STEP.json if a resumed run changes it.

    Args:
      step: of the checkpoint that the run continues from.
      resolved: choices made at the start, by name.
    """
    if jax.process_index():
      return
    old = read_config(self.path) if self.resumed else None
    new = {
      # The identity of the run, which the manifests of its checkpoints repeat.
      'run': self.identify(),
      'config': json.loads(json.dumps(self.experiment.config)),
      'name': self.experiment.name,
      'resolved': dict(resolved),
      'data': dict(self.experiment.data.metadata),
      'versions': {'python': platform.python_version()} | {p: _version(p) for p in PACKAGES},
      'git_commit': _git_commit(),
      'xla_flags': os.environ.get('XLA_FLAGS', ''),
      'devices': [jax.device_count(), jax.devices()[0].device_kind],
    }
    changed = self.experiment.config['allow_changed_data']
    datafile.check(self.path, self.experiment.data, changed)
    if json.loads(json.dumps(new, default=str)) != old:
      if old is not None:
        write_json(self.path / f'config.{step}.json', old)
      write_json(self.config, new)  # first: it marks the directory as a run
    datafile.write(self.path, self.experiment.data, self.experiment.weights)

  def summary(self) -> dict[str, Any] | None:
    """Returns the summary of a finished run, None if there is more to do.

    A run that stopped early is finished as long as its words under `stop` are the same.
    """
    path, x = self.path / 'summary.json', self.experiment
    if not path.exists():
      return None
    try:
      summary = dict(numbers(read_json(path)))
      steps, stopped = int(summary['steps']), bool(summary.get('stopped_early'))
      dict(summary['metrics'])
      float(summary['seconds'])
    except (OSError, ValueError, KeyError, TypeError) as error:
      log.warning('%s IS DAMAGED and is written again: %s', path, error)
      return None
    same = self.resumed and read_config(self.path)['config']['stop'] == x.config['stop']
    return summary if steps >= x.steps or (stopped and same) else None


def check_new(workdir: Place) -> None:
  """Raises InputError if a folder is a package, which no run continues."""
  if package.is_package(workdir):
    raise InputError(
      f'--workdir={workdir}: expected a run, found a package of `bmx export`; '
      f'to train from its weights, add --config.init.path={workdir} and name another --workdir'
    )


def check_links(workdir: Place) -> None:
  """Raises InputError if something that bmx writes in a run directory is a symbolic link."""
  links = [name for name in OWN if storage.is_link(workdir / name)]
  if links:
    raise InputError(
      f'--workdir={workdir}: {", ".join(links)} is a symbolic link, which is not followed; '
      'expected the files themselves. To keep a run elsewhere, link the whole directory'
    )


def read_config(workdir: Place) -> dict[str, Any]:
  """Returns the stored config.json. Raises InputError if it is missing or damaged."""
  path = workdir / 'config.json'
  if package.is_package(workdir):
    package.check_config(workdir)
  try:
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored['config'], dict):
      raise ValueError('it holds no config')
    return stored | {'config': complete(stored['config'])}
  except (OSError, ValueError, KeyError, TypeError) as error:
    reason = error if path.exists() else f'no such file{_run_near(workdir)}'
    raise InputError(f'{path}: expected the config of a run: {reason}') from None


def _run_near(workdir: Place) -> str:
  """A hint for a folder without a config: runs inside it, or a run of a similar name."""
  if not isinstance(workdir, pathlib.Path):
    return ''
  inside = sorted(workdir.glob('*/config.json'), key=lambda p: p.stat().st_mtime)
  if inside:
    return f'; it is a folder of runs, the newest is {inside[-1].parent}'
  known = [str(p.parent) for p in workdir.parent.glob('*/config.json')]
  return near(str(workdir), known)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _git_commit() -> str:
  """Returns the commit of this code, with '+' if files differ from it; '' outside a checkout."""
  folder = pathlib.Path(__file__).parent
  git = lambda *args: subprocess.run(
    ['git', *args], cwd=folder, capture_output=True, text=True, timeout=10, check=True
  ).stdout.strip()
  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.SubprocessError):
    return ''
