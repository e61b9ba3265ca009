"""Search for a layout: counted by hand, ranked by time, compiled until one fits."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from bmx.core import tree
from bmx.core.chips import Chip
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.models.gpt import GPT
from bmx.plan import costs, memory, times
from bmx.plan.costs import StepCosts
from bmx.plan.memory import GIB, Memory, Traces, innermost
from bmx.plan.times import StepTime
from bmx.train.gradients import Accumulate, GradWrapper, described
from bmx.train.state import StateSpec, state_spec

Build = Callable[[Mapping[str, Any]], Experiment]
REMAT = ('none', 'dots', 'full')
SPARE = 1.1  # share of the usable memory up to which a count by hand is compiled: its error
FSDP = 4  # sizes of the axis that are tried for each size of the others, the smallest first
LATENCY = 1e-5  # seconds, of a message that is not overlapped (assumed)
LONG = 32768  # tokens of a row from which sequences are cut


class Choice(NamedTuple):
  """A layout of a recipe on devices, counted by hand.

  Attributes:
    overrides: words of the config that it sets.
    experiment: built with them.
    memory: of a device.
    costs: of a step.
    time: of a step.
  """

  overrides: dict[str, Any]
  experiment: Experiment
  memory: Memory
  costs: StepCosts
  time: StepTime

  @property
  def rank(self) -> tuple[float, float]:
    """Seconds of a step without overlap, at the likely efficiency, and with it: lower is better.

    Each message of a layer takes `LATENCY` besides.
    """
    late = LATENCY * messages(self.experiment)
    return self.time.apart / self.time.efficiency + late, self.time.likely

  def fits(self, chip: Chip, share: float = 1.0) -> bool:
    """Returns whether the memory counted by hand is below a share of what the chip has."""
    return self.memory.total <= share * chip.usable


@dataclasses.dataclass
class Search:
  """Choices for one recipe on one topology.

  Attributes:
    build: overrides -> Experiment on the devices of the topology; InputError if they do not fit
      the model.
    devices: number of them.
    chip: kind of each.
    fixed: words that the command sets, which stay.
    progress: called with one line for each layout.
    traces: results of earlier searches for the same recipe.
    last: words, experiment and state that were built last.
  """

  build: Build
  devices: int
  chip: Chip
  fixed: frozenset[str]
  progress: Callable[[str], None]
  traces: Traces = dataclasses.field(default_factory=dict)
  last: Any = None

  def choices(self) -> list[Choice]:
    """Counts all layouts; returns them by rank, those that fit first.

    Raises InputError if no layout can be built.
    """
    found: list[Choice] = []
    refused = ''
    for mesh in self._meshes(*self._laid({})):
      try:
        x, plan = self._laid(mesh)
        x.layout.batch(x.data.spec, x.data.batch_size)
      except InputError as error:
        refused = str(error)
        continue
      for remat in self._remats(x):
        y = with_remat(x, remat) if remat else x
        words = {memory.word(x.task, 'remat'): remat} if remat else {}
        found.append(self._least_steps(y, self._mesh(mesh) | words, plan))
        self.progress(describe(found[-1], self.chip))
    if not found:
      why = refused or 'the parameters and moments alone are larger than the memory'
      raise InputError(f'no layout of {self.devices} devices can be built: {why}')
    return sorted(found, key=lambda c: (not c.fits(self.chip, SPARE), c.rank))

  def _laid(self, mesh: Mapping[str, int]) -> tuple[Experiment, StateSpec]:
    """Returns the experiment on a mesh with its state; that of the last mesh is kept."""
    words = self._mesh(mesh)
    if self.last is None or self.last[0] != words:
      x = self.build(words)
      self.last = words, x, state_spec(x)
    return self.last[1:]

  def _remats(self, x: Experiment) -> tuple[str, ...]:
    stack = memory.is_stack(innermost(x.task).model)
    return REMAT if stack and memory.word(x.task, 'remat') not in self.fixed else ('',)

  def _mesh(self, mesh: Mapping[str, int]) -> dict[str, Any]:
    if any(word.startswith('mesh.') for word in self.fixed):
      return {}
    axes = {'data': self.devices, 'fsdp': 1, 'model': 1, 'seq': 1, 'expert': 1, 'pipe': 1}
    return {f'mesh.{axis}': n for axis, n in (axes | dict(mesh)).items()}

  def _meshes(self, x: Experiment, plan: StateSpec) -> Iterator[dict[str, int]]:
    """Yields sizes of axes whose product is the number of devices.

    FSDP is tried from the smallest size that holds the state on.
    """
    if any(word.startswith('mesh.') for word in self.fixed):
      yield {}
      return
    node, model = self.chip.node or self.devices, innermost(x.task).model
    state = tree.nbytes(plan.abstract)
    cuts = [1, 2, 4, 8] if isinstance(model, GPT) else [1]
    tokens = x.data.abstract.get('tokens')
    long = tokens is not None and tokens.shape[1] >= LONG
    experts = divisors(model.experts) if isinstance(model, GPT) and model.experts else [1]
    for parts in (n for n in cuts if n <= node):
      for seq in (n for n in ((1, 4, 8, 16) if long else (1,))):
        for expert in experts:
          inner = parts * seq * expert
          if self.devices % inner:
            continue
          sizes = [
            n
            for n in divisors(self.devices // inner)
            if state / (n * parts * expert) < self.chip.usable
          ]
          for fsdp in sizes[:FSDP]:
            data = self.devices // inner // fsdp
            yield {'data': data, 'fsdp': fsdp, 'model': parts, 'seq': seq, 'expert': expert}

  def _least_steps(self, x: Experiment, overrides: dict[str, Any], plan: StateSpec) -> Choice:
    """Returns a layout with the fewest micro-batches that fit."""
    best = None
    for steps in self._steps(x):
      y = x if steps is None else with_steps(x, steps)
      words = overrides if steps is None else overrides | {'grad.steps': steps}
      found = memory.estimate(y, plan.abstract, self.traces)
      if best is None or found.total < 0.98 * best[2].total:
        best = y, words, found
      if found.total <= self.chip.usable:
        break
    assert best is not None
    y, words, found = best
    counted = costs.count(y, found, plan, self.traces)
    return Choice(words, y, found, counted, times.predict(y, counted, self.chip))

  def _steps(self, x: Experiment) -> list[int | None]:
    """Returns numbers of micro-batches, the fewest first; [None] where the recipe has none."""
    if not isinstance(x.grad_fn, Accumulate) or 'grad.steps' in self.fixed:
      return [None]
    rows = x.data.batch_size // memory.shards(x)
    return [n for n in divisors(x.data.batch_size) if rows % n == 0] or [None]


def with_remat(x: Experiment, remat: str) -> Experiment:
  """Returns an experiment whose model recomputes otherwise, for counting."""
  task = memory.with_model(x.task, remat=remat)
  choices = {**x.choices, 'remat': remat}
  return dataclasses.replace(x, task=task, grad_fn=_with_task(x.grad_fn, task), choices=choices)


def _with_task(grad_fn: Any, task: Any) -> Any:
  if isinstance(grad_fn, GradWrapper):
    return dataclasses.replace(grad_fn, inner=_with_task(grad_fn.inner, task))
  return dataclasses.replace(grad_fn, task=task)


def with_steps(x: Experiment, steps: int) -> Experiment:
  """Returns an experiment whose batches are cut into `steps` micro-batches."""
  assert isinstance(x.grad_fn, Accumulate)
  return dataclasses.replace(x, grad_fn=dataclasses.replace(x.grad_fn, steps=steps))


def messages(x: Experiment) -> int:
  """Returns the number of messages of a step, as far as layouts differ in them."""
  mesh = x.layout.mesh.shape
  model = innermost(x.task).model
  layers = model.depth if memory.is_stack(model) else 1
  each = {'data': 1, 'fsdp': 3 * layers, 'model': 4 * layers, 'expert': 4 * layers,
          'seq': 2 * layers * mesh['seq']}  # fmt: skip
  sent = sum(n for axis, n in each.items() if mesh[axis] > 1)
  return sent * described(x.grad_fn).micro_batches


def divisors(n: int) -> list[int]:
  """Returns the divisors of a number.

  >>> divisors(12)
  [1, 2, 3, 4, 6, 12]
  """
  return [d for d in range(1, n + 1) if n % d == 0]


def describe(choice: Choice, chip: Chip) -> str:
  """Formats one line of progress."""
  mesh = ' × '.join(
    f'{k.removeprefix("mesh.")}={v}'
    for k, v in choice.overrides.items()
    if k.startswith('mesh.') and v != 1
  )
  rest = [f'{k.rpartition(".")[2]} {v}' for k, v in choice.overrides.items() if 'mesh.' not in k]
  need, have = choice.memory.total / GIB, chip.usable / GIB
  fits = (
    f'{need:.3g} of {have:.1f} GiB' if choice.fits(chip) else f'{need - have:.1f} GiB too large'
  )
  seconds = f'{choice.time.likely:.3g} s a step likely, {choice.time.limit} bound'
  return f'counted    {mesh or "1 device"}, {", ".join(rest) or "as the recipe"}: {fits}, {seconds}'
