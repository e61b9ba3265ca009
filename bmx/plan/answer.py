"""The answer of a plan: compiled layouts, kept by what they were compiled from, and files."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import threading
from typing import Any

from bmx.config import plain
from bmx.config.planned import render
from bmx.core.chips import Chip
from bmx.core.errors import InputError
from bmx.core.spending import Spending
from bmx.plan import processor
from bmx.plan.compile import GIB, compile_step, summarize
from bmx.plan.search import Choice
from bmx.runtime import cache

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'libtpu', 'jax-cuda12-plugin')


@dataclasses.dataclass
class Answer:
  """A layout on one topology.

  Attributes:
    topology: as the command names it.
    kind: of `chips.KINDS`, or 'cpu'.
    chip: of each device.
    choice: the layout.
    spending: of the whole training at the likely speed, or the measured one.
    compiled: facts of its program; None before it is compiled.
    measured: seconds of a step that ran on this machine; None: not run.
    error: why it does not fit; ''.
  """

  topology: str
  kind: str
  chip: Chip
  choice: Choice
  spending: Spending
  compiled: dict[str, Any] | None = None
  error: str = ''
  measured: float | None = None

  @property
  def gib(self) -> float:
    """GiB of a device: compiled, else counted by hand."""
    return self.compiled['peak_gib'] if self.compiled else self.choice.memory.total / GIB

  @property
  def fits(self) -> bool:
    """Whether the program, or else the count by hand, fits the memory of a device."""
    return not self.error and self.gib <= self.chip.usable / GIB

  def compile(self) -> bool:
    """Compiles the layout unless an earlier plan did; returns whether it fits.

    The compiler runs in another thread, so that an interrupt is answered at once. A measured time
    is taken anew by each plan: it holds for one machine, at one moment.
    """
    path = cache.place('plans') / f'{key(self.choice, self.topology)}.json'
    kept = self.kind != processor.KIND
    if kept and path.is_file():
      self.__dict__.update(json.loads(path.read_text()))
      return self.fits
    thread = threading.Thread(target=self._compile, daemon=True)
    thread.start()
    while thread.is_alive():
      thread.join(0.2)
    if kept:
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_suffix('.part')
      part.write_text(json.dumps({'compiled': self.compiled, 'error': self.error}))
      part.replace(path)
    self._take_measured()
    return self.fits

  def _compile(self) -> None:
    x = self.choice.experiment.rebuild(self.choice.overrides)
    try:
      made = compile_step(x)
      self.compiled = summarize(x, made)
      if self.kind == processor.KIND and self.fits:
        self.measured = processor.step_seconds(x, made.program)
    except InputError as error:
      self.error = str(error).splitlines()[0]

  def _take_measured(self) -> None:
    """Puts the measured time of a step, if there is one, in place of the likely one."""
    if self.measured is None:
      return
    time = self.choice.time
    ratio = self.measured / time.likely
    self.choice = self.choice._replace(time=time._replace(efficiency=time.bound / self.measured))
    self.spending = self.spending.scaled(ratio)


def key(choice: Choice, topology: str) -> str:
  """Returns a digest of what a program is compiled from: config, topology, versions, bmx."""
  versions = [f'{name} {_version(name)}' for name in PACKAGES]
  words = [choice.experiment.config, choice.overrides, topology, versions, _source()]
  text = json.dumps(words, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _source() -> str:
  root = pathlib.Path(__file__).parent.parent
  found = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    found.update(path.read_bytes())
  return found.hexdigest()


def write(
  folder: pathlib.Path,
  answers: list[Answer],
  recipe: str,
  given: tuple[str, ...],
  digest: str,
) -> pathlib.Path:
  """Writes plan.json and planned.py, a recipe that trains; returns the recipe's path.

  Args:
    folder: to write.
    answers: the chosen one first.
    recipe: as the command names it.
    given: overrides of the command.
    digest: of the config without the words of the plan.
  """
  folder.mkdir(parents=True, exist_ok=True)
  best = answers[0]
  path = folder / 'planned.py'
  chosen = tuple(f'{k}={v}' for k, v in best.choice.overrides.items())
  title = f'{recipe}, as planned for {best.topology}'
  path.write_text(render(title, 'plan', path, recipe, given, chosen, digest))
  record = {
    'recipe': recipe,
    'overrides': list(given),
    'digest': digest,
    'key': key(best.choice, best.topology),
    'answer': as_json(best),
    'others': [as_json(a) for a in answers[1:]],
  }
  (folder / 'plan.json').write_text(json.dumps(record, indent=1, default=plain) + '\n')
  return path


def as_json(a: Answer) -> dict[str, Any]:
  """Returns an answer as plan.json holds it; each group says how its figures were found."""
  time, costs = a.choice.time, a.choice.costs
  return {
    'topology': a.topology,
    'devices': a.choice.experiment.layout.devices,
    'words': a.choice.overrides,
    'fits': a.fits,
    'error': a.error,
    'compiled': a.compiled,
    'counted': {
      'memory_gib': {k: round(v / GIB, 3) for k, v in a.choice.memory._asdict().items()},
      'usable_gib': round(a.chip.usable / GIB, 2),
      'parameters': costs.parameters,
      'unit': costs.unit,
      'units_of_a_step': costs.units,
      'flops_of_a_step': costs.flops,
      'flops_that_run': costs.run,
      'received_bytes': costs.received,
    },
    'bound': {
      'step_seconds': time.bound,
      'step_seconds_without_overlap': time.apart,
      'compute_seconds': time.compute,
      'memory_seconds': time.memory,
      'network_seconds': time.network,
      'limit': time.limit,
    },
    'likely' if a.measured is None else 'measured': {
      'step_seconds': time.likely,
      'share_of_the_bound': time.efficiency,
      'units_per_second': costs.units / time.likely,
      'hours': a.spending.h,
    },
    'assumed': {'usd': a.spending.usd, 'kwh': a.spending.kwh, 'kg_co2e': a.spending.kg},
    'chip': dataclasses.asdict(a.chip),
  }
