"""The end of a run: summary.json, report.html and the closing line."""

import logging
from collections.abc import Mapping
from typing import Any

import jax

from bmx.core import tree
from bmx.core.errors import Stop
from bmx.runtime import energy, report
from bmx.runtime.files import write_json
from bmx.runtime.report import starts
from bmx.runtime.storage import Place
from bmx.runtime.throughput import peak_memory_bytes
from bmx.runtime.writer import brief
from bmx.tasks import illustrations
from bmx.train import start
from bmx.train.run import Event, Run

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
    **times(run),
    'hook_seconds': {k: round(v, 3) for k, v in run.hook_seconds.items()},
    'parameters': start.published_parameters(x, run.spec),
    'state_digest': tree.digest(event.state),
    'device': f'{x.layout.devices} × {device.device_kind}',
    'peak_memory_bytes': peak_memory_bytes(),
    'energy': run.energy.facts(event.step),
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
    starts.mark(run.workdir, event.step)
    status = 'stopped early' if loop.stopped else 'finished'
    report.write(run.workdir, x.name, {'status': status} | summary)
    log.info('%s', closing(summary, run.workdir))
  return summary


def times(run: Run) -> dict[str, Any]:
  """Returns the wall time of a run until now, over all its starts, and its parts."""
  spent = run.account.parts()
  return {
    'seconds': round(sum(spent.values()), 3),
    'seconds_by_part': spent,
    'compile_seconds': spent['compile'],
  }


def write_report(run: Run, step: int, status: str, reports: report.Reports) -> None:
  """Writes report.html of a run that has not finished, in process 0.

  Args:
    run: the run.
    step: completed steps.
    status: in words.
    reports: writes it.
  """
  if jax.process_index():
    return
  loop = run.loop
  facts = {
    'status': status,
    'metrics': loop.last,
    'steps': step,
    'of': run.experiment.steps,
    'best_step': loop.best_step,
    **times(run),
    'hook_seconds': run.hook_seconds,
    'energy': run.energy.facts(step),
  }
  run.writer.flush()
  starts.mark(run.workdir, step)
  reports.write(run.workdir, run.experiment.name, facts)


def begin(run: Run) -> None:
  """Writes sections of the training data, and a first report, in process 0."""
  if jax.process_index():
    return
  if run.secret is None:  # these are exact statistics of the training data
    report.keep_sections(run.workdir, report.DATA, illustrations.columns(run.experiment.data))
  write_report(run, run.resumed or 0, 'running', report.Reports())


def interrupted(run: Run, error: Exception) -> None:
  """Writes the report of a run that ends with an error, or that was asked to stop."""
  saved, logged = run.checkpoints.saved, run.loop.rate
  step = saved if saved is not None else int(logged[0]) if logged else run.resumed or 0
  reason = str(error) if isinstance(error, Stop) else f'ended by {type(error).__name__}'
  write_report(run, step, reason, report.Reports())


def show(summary: Mapping[str, Any], workdir: Place, name: str) -> None:
  """Logs the closing line of a finished run; writes its report if that is missing."""
  if jax.process_index() == 0 and not (workdir / 'report.html').exists():
    report.write(workdir, name, summary)
  log.info('this run is finished\n%s', closing(summary, workdir))


def closing(summary: Mapping[str, Any], workdir: Place) -> str:
  """Returns the closing lines: steps, seconds, metrics of evaluations, path of the report."""
  tests = {k: v for k, v in summary['metrics'].items() if k.startswith('eval/')}
  metrics = '  '.join(f'{k} {brief(v)}' for k, v in (tests or summary['metrics']).items())
  parts = summary.get('seconds_by_part', {})
  spent = ', '.join(f'{k} {v:.1f}' for k, v in parts.items() if v >= 0.05)
  return (
    f'done     {summary["steps"]:,} steps in {summary["seconds"]:.1f} s'
    f'{f" ({spent})" if spent else ""}\n'
    f'{_energy(summary)}'
    f'results  {metrics}\n'
    f'report   {workdir / "report.html"}'
  )


def _energy(summary: Mapping[str, Any]) -> str:
  """Formats lines of the energy of a run, if it is known, and of its forecast."""
  facts = summary.get('energy')
  if not facts:
    return ''
  expected = energy.achieved(facts, summary['seconds'])
  used = f'energy   {energy.text(facts)}\n' if facts['kwh'] is not None else ''
  return used + (f'forecast {expected}\n' if expected else '')
