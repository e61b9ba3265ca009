"""Built-in pairs of texts: numbers in digits, and in English words."""

from bmx.core import streams
from bmx.core.data import Examples
from bmx.core.errors import InputError
from bmx.data.text.parallel import parallel
from bmx.data.text.tokenizer import Tokenizer

ONES = (
  'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven',
  'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen',
)  # fmt: skip
TENS = 'twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety'


def spelled(number: int) -> str:
  """Returns a number below a million in words.

  >>> spelled(12_345)
  'twelve thousand three hundred forty-five'
  """
  if number < 20:
    return ONES[number]
  if number < 100:
    rest = number % 10
    return TENS[number // 10 - 2] + (f'-{ONES[rest]}' if rest else '')
  size, name = (1000, 'thousand') if number >= 1000 else (100, 'hundred')
  rest = number % size
  return f'{spelled(number // size)} {name}' + (f' {spelled(rest)}' if rest else '')


def numbers(
  tokenizer: Tokenizer,
  length: int,
  count: int = 1000,
  most: int = 10_000,
  packed: bool = True,
  begin: int = -1,
  split: str = 'train',
  read: bool = True,
  train: bool = True,
) -> Examples:
  """Makes pairs that every machine has: a number below `most` in digits, and in words.

  Args:
    tokenizer: see `parallel`, as are length, packed and begin.
    length: tokens of a row of each side.
    count: pairs of the split.
    most: numbers are below it, at most a million.
    packed: see `parallel`.
    begin: see `parallel`.
    split: 'train' or 'valid', which have no number in common.
    read: False returns shapes only.
    train: training data.
  """
  if split not in ('train', 'valid') or not 1 < most <= 1_000_000 or not 1 <= count <= most // 2:
    raise InputError(f"split={split!r}, count={count}, most={most}: expected 'train' or 'valid', "
                     'numbers below at most 1000000, and at most half as many pairs')  # fmt: skip
  halves = streams.generator(0, streams.SYNTHETIC).permutation(most // 2)[:count]
  chosen = [2 * int(n) + (split == 'valid') for n in halves]
  pairs = [{'source': str(number), 'target': spelled(number)} for number in chosen]
  return parallel(
    tokenizer, length, given=pairs, packed=packed, begin=begin, read=read, train=train
  )
