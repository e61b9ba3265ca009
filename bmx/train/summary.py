"""The end of a run: summary.json, report.html and the closing line."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from bmx.core import tree
from bmx.core.errors import Stop
from bmx.runtime import report
from bmx.runtime.files import write_json
from bmx.runtime.throughput import peak_memory_bytes
from bmx.runtime.writer import brief
from bmx.train import start
from bmx.train.run import Event

log = logging.getLogger('bmx')


def finish(event: Event) -> dict[str, Any]:
  """Writes summary.json and report.html after the last event -> the summary.

  Collective: every process must call; process 0 writes.

  Raises Stop if the summary cannot be written.
  """
  run, loop, x = event.run, event.run.loop, event.run.experiment
  device = x.layout.mesh.devices.flat[0]
  summary = {
    'metrics': loop.last,
    'steps': event.step,
    'stopped_early': loop.stopped,
    'best_step': loop.best_step,
    'seconds': round(loop.seconds, 3),
    'compile_seconds': round(loop.compile_seconds, 3),
    'hook_seconds': {k: round(v, 3) for k, v in run.hook_seconds.items()},
    'parameters': start.published_parameters(x, run.spec),
    'state_digest': tree.digest(event.state),
    'device': f'{x.layout.devices} × {device.device_kind}',
    'peak_memory_bytes': peak_memory_bytes(),
    'energy': None,  # not measured: no meter on this device
  }
  if jax.process_index() == 0:
    path = run.workdir / 'summary.json'
    try:
      write_json(path, summary)
    except OSError as error:
      raise Stop(
        f'{path} cannot be written: {error}; the checkpoint of step {event.step} is on disk, and '
        'the same command writes the summary'
      ) from error
    report.write(run.workdir, x.name, summary)
    log.info('%s', closing(summary, run.workdir))
  return summary


def show(summary: Mapping[str, Any], workdir: pathlib.Path, name: str) -> None:
  """Logs the closing line of a finished run; writes its report if that is missing."""
  if jax.process_index() == 0 and not (workdir / 'report.html').exists():
    report.write(workdir, name, summary)
  log.info('this run is finished\n%s', closing(summary, workdir))


def closing(summary: Mapping[str, Any], workdir: pathlib.Path) -> str:
  """Returns the closing lines: steps, seconds, metrics of evaluations, path of the report."""
  tests = {k: v for k, v in summary['metrics'].items() if k.startswith('eval/')}
  metrics = '  '.join(f'{k} {brief(v)}' for k, v in (tests or summary['metrics']).items())
  return (
    f'done     {summary["steps"]:,} steps in {summary["seconds"]:.1f} s: {metrics}\n'
    f'report   {workdir / "report.html"}'
  )
