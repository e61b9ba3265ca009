"""Communication of a compiled program: its collectives, with loops multiplied out."""

import collections
import dataclasses
import math
import re

WIDTH = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
         'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}  # fmt: skip
KINDS: tuple[str, ...] = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_SHAPE = re.compile(r'\b(' + '|'.join(WIDTH) + r')\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition)=%([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-]+)')
_OPERATION = re.compile(r'= (\(?.*?\)?) ([\w\-]+)\(')
_CONSTANT = re.compile(r'%([\w.\-]+) = [su]32\[\][^ ]* constant\((\d+)\)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One message of a program.

  Attributes:
    kind: of `KINDS`.
    shape: the largest array it moves, as HLO writes it.
    bytes: of all arrays it moves, on one device, once.
    times: how often the program runs it.
    name: of its instruction.
  """

  kind: str
  shape: str
  bytes: int
  times: int
  name: str


def collectives(text: str) -> list[Collective]:
  """Returns the collectives of an HLO module's text.

  The TPU writes a reduce-scatter as a fusion around an all-reduce: it is counted as a
  reduce-scatter.
  """
  bodies, entry = computations(text)
  found: dict[tuple[str, int], Collective] = {}

  def visit(computation: str, times: int, fused: bool, scatter: bool) -> None:
    for line in bodies.get(computation, ()):
      match = _OPERATION.search(line)
      if not match:
        continue
      result, operation = match.groups()
      kind = operation.removesuffix('-start')
      if kind in KINDS:
        shape, size = _moved(kind, operation, result if kind != 'reduce-scatter' else line)
        name = line.split('=')[0].strip().lstrip('%').removeprefix('ROOT %')
        kind = 'reduce-scatter' if scatter and kind == 'all-reduce' else kind
        channel = re.search(r'channel_id=(\d+)', line)
        # The TPU spreads one message over three fusions (start, along with work, done), which share
        # its channel; outside of fusions, messages that are written apart are apart.
        message = (channel.group(1) if channel and fused else name, times)
        found.setdefault(message, Collective(kind, shape, size, times, name))
      inner = times * trips(line, bodies) if operation == 'while' else times
      inside = scatter or 'all-reduce-scatter' in line
      if kind not in KINDS and operation not in ('reduce', 'sort', 'scatter', 'reduce-window'):
        for name in called(line):
          visit(name, inner, fused or operation == 'fusion', inside)

  visit(entry, 1, False, False)
  return list(found.values())


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Splits an HLO module's text: name of a computation -> its lines; and the entry's name."""
  bodies: dict[str, list[str]] = collections.defaultdict(list)
  here = entry = ''
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if head:
      here = head.group(2)
      entry = here if head.group(1) else entry
    elif line.startswith(' ') and here:
      bodies[here].append(line)
  return bodies, entry


def trips(line: str, bodies: dict[str, list[str]]) -> int:
  """Returns the trips of a loop: the compiler's annotation, or the constant of its condition.

  1 if neither is known.
  """
  told = _TRIPS.search(line)
  if told:
    return int(told.group(1))
  condition = re.search(r'condition=%([\w.\-]+)', line)
  body = bodies.get(condition.group(1), []) if condition else []
  constants = {m.group(1): int(m.group(2)) for m in map(_CONSTANT.search, body) if m}
  for text in body:
    compared = re.search(r'ROOT .*compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT', text)
    if compared and compared.group(1) in constants:
      return constants[compared.group(1)]
  return 1


def called(line: str) -> list[str]:
  """Returns the names of the computations that an instruction calls."""
  found = _CALLED.findall(line)
  for several, one in _BRANCHES.findall(line):
    found += [one] if one else [n.strip().lstrip('%') for n in several.split(',')]
  return found


def bytes_of(text: str) -> int:
  """Returns the bytes of all arrays of a type, such as '(f32[8], bf16[2,3])'."""
  return sum(_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(text))


def _bytes(dtype: str, dims: str) -> int:
  return WIDTH[dtype] * math.prod(int(d) for d in dims.split(',') if d)


def _moved(kind: str, operation: str, text: str) -> tuple[str, int]:
  """Returns the largest array and the bytes of all that are moved."""
  sizes = []
  for dtype, dims in _SHAPE.findall(text.split('metadata=')[0]):
    sizes.append((_bytes(dtype, dims), f'{dtype}[{dims}]'))
  size, shape = max(sizes, default=(0, ''))
  # A result of several arrays is one message for all of them; that of `all-gather-start` and of
  # permutations holds the operand too.
  combined = kind in ('all-reduce', 'all-to-all') or operation == 'all-gather'
  return shape, sum(n for n, _ in sizes) if combined else size


def total(found: list[Collective]) -> dict[str, int]:
  """Sums bytes by kind, loops multiplied out: kind -> bytes on one device."""
  result: dict[str, int] = dict.fromkeys(KINDS, 0)
  for c in found:
    result[c.kind] += c.bytes * c.times
  return {k: v for k, v in result.items() if v}
