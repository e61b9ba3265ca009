"""Memory traffic of a compiled GPU program: bytes that each kernel reads and writes, and how often.

A lower bound of the time of everything but products and attention: bytes over the memory's
bandwidth, if every byte is moved once and nothing stays in a cache.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

from bmx.plan import hlo

# Operations that run no kernel, or whose kernels are in the computations they call.
FREE = {'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'conditional',
        'call', 'after-all', 'partition-id', 'replica-id', 'iota'}  # fmt: skip
GROUPS: tuple[str, ...] = (
  'products', 'attention', 'norms', 'feed-forward', 'loss', 'embedding', 'optimizer', 'copies',
  'other',
)  # fmt: skip
_PRODUCT = re.compile(r'__cublas\$|__cublas\$lt|"kind":"__triton_(?:nested_)?gemm|__cudnn\$conv')
_FUSED_ATTENTION = re.compile(r'__cudnn\$fmha|flash|splash')
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
  """One line of HLO.

  Attributes:
    name: without the leading %.
    result: its type, as HLO writes it.
    operation: such as 'fusion'.
    operands: names.
    line: the whole text.
    root: whether it is the result of its computation.
  """

  name: str
  result: str
  operation: str
  operands: tuple[str, ...]
  line: str
  root: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One kernel of a program.

  Attributes:
    name: of its instruction.
    group: of `GROUPS`.
    bytes: read and written in one run.
    times: how often the program runs it.
    source: path of modules and primitive that it comes from.
  """

  name: str
  group: str
  bytes: int
  times: int
  source: str


def kernels(text: str) -> list[Kernel]:
  """Returns the kernels of an HLO module's text, scheduled for a GPU.

  A fusion that reads slices of an array, or writes one into it in place, moves the slices alone.
  A loop of an unknown number of trips counts once.
  """
  bodies, entry = hlo.computations(text)
  parsed = {name: [i for i in map(_parse, lines) if i] for name, lines in bodies.items()}
  found: list[Kernel] = []

  def visit(computation: str, times: int) -> None:
    types = {i.name: i.result for i in parsed.get(computation, ())}
    for item in parsed.get(computation, ()):
      if item.operation in ('while', 'conditional', 'call'):
        inner = times * hlo.trips(item.line, bodies) if item.operation == 'while' else times
        for called in hlo.called(item.line):
          visit(called, inner)
      elif item.operation not in FREE and not item.operation.endswith('-done'):
        size = _moved(item, types, parsed)
        source = _SOURCE.search(item.line)
        path = source.group(1) if source else ''
        found.append(Kernel(item.name, _group(item, path, parsed), size, times, path))

  visit(entry, 1)
  return found


def by_group(found: Iterable[Kernel]) -> dict[str, tuple[int, int]]:
  """Sums kernels with loops multiplied out: group -> (launches, bytes)."""
  sums: dict[str, tuple[int, int]] = dict.fromkeys(GROUPS, (0, 0))
  for k in found:
    launches, moved = sums[k.group]
    sums[k.group] = launches + k.times, moved + k.bytes * k.times
  return {group: total for group, total in sums.items() if total[0]}


def _parse(line: str) -> Instruction | None:
  match = re.match(r'\s*(ROOT )?%([\w.\-]+) = (\(?.*?\)?) ([\w\-]+)\((.*)', line)
  if not match:
    return None
  root, name, result, operation, rest = match.groups()
  operands = re.findall(r'%([\w.\-]+)', rest.split(')')[0])
  return Instruction(name, result, operation, tuple(operands), line, bool(root))


def _moved(item: Instruction, types: dict[str, str], parsed: dict[str, list[Instruction]]) -> int:
  """Returns the bytes that one kernel reads and writes."""
  inside = parsed.get(next(iter(hlo.called(item.line)), ''), [])
  if item.operation != 'fusion' or not inside:
    read = sum(hlo.bytes_of(types.get(name, '')) for name in set(item.operands))
    return _sliced(item, types) or read + hlo.bytes_of(item.result)
  return sum(_read(p, inside) for p in inside if p.operation == 'parameter') + _written(inside)


def _sliced(item: Instruction, types: dict[str, str]) -> int:
  """Returns the bytes of a slice that is read or written in place, 0 for other operations."""
  if item.operation == 'dynamic-update-slice':
    return 2 * hlo.bytes_of(types.get(item.operands[1], ''))
  return 2 * hlo.bytes_of(item.result) if item.operation in ('dynamic-slice', 'slice') else 0


def _read(parameter: Instruction, inside: list[Instruction]) -> int:
  """Returns the bytes of a fusion's parameter that it reads: all, or its slices."""
  whole, total = hlo.bytes_of(parameter.result), 0
  names = {parameter.name}
  for item in inside:
    if not names & set(item.operands):
      continue
    if item.operation == 'bitcast':
      names.add(item.name)
    elif item.operation in ('dynamic-slice', 'gather', 'slice'):
      total += hlo.bytes_of(item.result)
    elif item.operation != 'dynamic-update-slice' or item.operands[0] not in names:
      return whole
  return min(total, whole)


def _written(inside: list[Instruction]) -> int:
  """Returns the bytes that a fusion writes: its results, or the slices it puts into place."""
  known = {i.name: i for i in inside}
  root = next(i for i in inside if i.root)
  results = [known[name] for name in root.operands] if root.operation == 'tuple' else [root]
  total = 0
  for item in results:
    while item.operation == 'bitcast':
      item = known[item.operands[0]]
    placed = item.operation == 'dynamic-update-slice'
    total += hlo.bytes_of(known[item.operands[1]].result if placed else item.result)
  return total


def _group(item: Instruction, source: str, parsed: dict[str, list[Instruction]]) -> str:
  """Returns the group of a kernel, by its target and by the module it comes from."""
  operations = {i.operation for called in hlo.called(item.line) for i in parsed.get(called, ())}
  product = _PRODUCT.search(item.line) or item.operation == 'dot' or 'dot' in operations
  if _FUSED_ATTENTION.search(item.line) or ('/attention/' in source and _of_scores(source)):
    return 'attention'
  if product:
    return 'products'
  # `jvp()` is what a task computes outside its model; without jvp: guard, optimizer, averages.
  places = (('norm', 'norms'), ('feed_forward', 'feed-forward'), ('/attention/', 'attention'),
            ('embed', 'embedding'), ('jvp()', 'loss'), ('jvp', 'other'))  # fmt: skip
  stacked = source.endswith(('/dynamic_update_slice', '/dynamic_slice'))
  if item.operation in ('copy', 'transpose', 'copy-start', 'memset') or not source or stacked:
    return 'copies'
  return next((group for word, group in places if word in source), 'optimizer')


def _of_scores(source: str) -> bool:
  return not re.search(r'/attention/(?:query|key|value|out)/', source)
