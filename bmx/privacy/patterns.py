"""Personal data that has a form: addresses, numbers and dates, found by pattern and checked."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence

from bmx.data.text.spans import Span
from bmx.privacy import checksums

Places = Iterator[tuple[int, int]]  # (start, end) in code points
CONTEXT = 40  # characters before a number that may say what it is

NUMBER = re.compile(r'(?<!\w)(?<!\d[.,])\d(?:[ -]?\d){11,}(?!\w)')
CARD_CONTEXT = re.compile(
  r'\b(?:cards?|cc|visa|mastercard|amex|maestro|kreditkarte)\b', re.IGNORECASE
)
EMAIL = re.compile(
  r"(?<![\w.+%'-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.)+(?:[^\W\d_]{2,24}|xn--[\w-]{1,59})(?![\w-])"
)
URL = re.compile(r'(?<!\w)(?:(?:https?|ftps?)://|www\.(?=[\w-]+\.))[^\s<>"]+', re.IGNORECASE)
IPV4 = re.compile(r'(?<![\w.])(?<![\w:]:)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)')
IPV6 = re.compile(r'(?<![\w:.])(?=[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]{3,45}(?![\w:])')
IBAN = re.compile(r'(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,29}')
SSN = re.compile(r'(?<![\w-])\d{3}([- ])\d{2}\1\d{4}(?![\w-])')
SSN_CONTEXT = re.compile(r'\b(?:ssn|social security)\b', re.IGNORECASE)
NINE = re.compile(r'(?<!\w)\d{9}(?!\w)')
PHONE = re.compile(
  r'(?<![\w.+])(?<!\d,)(?:\+ ?)?\(?\d(?:[ ./()-]{0,2}\d){5,16}(?: ?(?:x|ext\.?) ?\d{1,6})?'
  r'(?!\w|[.-]\d)',
  re.IGNORECASE,
)
PHONE_CONTEXT = re.compile(
  r'\b(?:phones?|telephone|tel|call(?:ed|ing)?|mobile|cell|fax|whatsapp|sms|messages?|dial|reach|'
  r'contact|answering|handy|telefon)\b',
  re.IGNORECASE,
)
NANP = re.compile(r'(?:\+?1[ .-]?)?\(?[2-9]\d\d\)?[ .-]{1,2}[2-9]\d\d[ .-]\d{4}(?!\d)')
GROUPED = re.compile(r'\d{2,4}(?:[ .-]\d{2,4}){2,4}')  # three to five groups
THOUSANDS = re.compile(r'\d{1,3}(?:[ .]\d{3})+')
PASSPORT_LINES = re.compile(
  r'(?<![A-Z0-9<])(?:P[A-Z<][A-Z<]{42}|[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z0-9<]{14}[0-9<]\d)'
  r'(?![A-Z0-9<])'
)
PASSPORT = re.compile(r'(?<![\w-])(?:[A-Z]{0,2}\d{6,9}|[A-Z0-9]{9})(?![\w-])')
PASSPORT_CONTEXT = re.compile(r'\b(?:passport|reisepass|passeport|pasaporte|passaporto)\b',
                              re.IGNORECASE)  # fmt: skip
MONTHS = ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec']
NAMED_MONTH = rf'(?P<name>{"|".join(MONTHS)})(?:[a-z]{{0,6}})\.?'
TIME = r'(?:[T ]\d{1,2}:\d{2}(?::\d{2})?)?'
DATES = tuple(re.compile(rf'(?<![\w./-]){form}(?![\w/-]|\.\d)', re.IGNORECASE) for form in (
  rf'(?P<year>\d{{4}})([-/.])(?P<month>\d{{1,2}})\2(?P<day>\d{{1,2}}){TIME}',
  r'(?P<a>\d{1,2})([-/.])(?P<b>\d{1,2})\2(?P<year>\d{4}|\d{2})',
  rf'(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\.? (?:of )?{NAMED_MONTH},? (?P<year>\d{{4}})',
  rf'{NAMED_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})',
))  # fmt: skip


def _emails(text: str) -> Places:
  return (m.span() for m in EMAIL.finditer(text))


def _urls(text: str) -> Places:
  """Addresses of pages, without the punctuation of the sentence behind them."""
  for m in URL.finditer(text):
    yield m.start(), m.start() + len(m.group().rstrip('.,;:!?\'")]}'))


def _addresses(text: str) -> Places:
  """Addresses of IPv4 and IPv6 that `ipaddress` accepts."""
  for pattern in (IPV4, IPV6):
    for m in pattern.finditer(text):
      value = m.group().rstrip('.') if pattern is IPV6 else m.group()
      if any(c.isalnum() for c in value) and _is_address(value):
        yield m.start(), m.start() + len(value)


def _is_address(value: str) -> bool:
  try:
    ipaddress.ip_address(value)
  except ValueError:
    return False
  return True


def _ibans(text: str) -> Places:
  """Account numbers, with single blanks or hyphens anywhere; the country says where one ends."""
  for m in IBAN.finditer(text):
    length = checksums.IBAN_LENGTHS.get(m.group()[:2].upper(), 0)
    places = [n for n, c in enumerate(m.group()) if c.isalnum()][:length]
    end = m.start() + places[-1] + 1 if places else 0
    whole = ''.join(c for c in text[m.start() : end] if c.isalnum())
    if checksums.is_iban(whole) and not text[end : end + 1].isalnum():
      yield m.start(), end


def _cards(text: str) -> Places:
  """Numbers of payment cards: the longest run of groups of digits that is one.

  Behind a word such as card Luhn's digit is enough, as issuers get new ranges.
  """
  for m in NUMBER.finditer(text):
    named = _near(CARD_CONTEXT, text, m.start())
    groups = [(m.start() + g.start(), m.start() + g.end()) for g in re.finditer(r'\d+', m.group())]
    first = 0
    while first < len(groups):
      last = _card_end(text, groups[first : first + checksums.CARD_DIGITS[1]], named)
      if last is not None:
        yield groups[first][0], groups[first + last][1]
      first += 1 if last is None else last + 1


def _card_end(text: str, groups: Sequence[tuple[int, int]], named: bool) -> int | None:
  """Index of the last group of the longest card that begins with the first group."""
  digits, found = '', None
  for n, (start, end) in enumerate(groups):
    digits += text[start:end]
    if checksums.is_card(digits, named):
      found = n
  return found


def _digits(text: str) -> str:
  return ''.join(c for c in text if c.isdigit())


def _near(context: re.Pattern[str], text: str, start: int) -> bool:
  """Whether the characters before a number name it."""
  return bool(context.search(text[max(0, start - CONTEXT) : start]))


def _ssns(text: str) -> Places:
  for m in SSN.finditer(text):
    if checksums.is_ssn(_digits(m.group())):
      yield m.span()
  for m in NINE.finditer(text):
    if _near(SSN_CONTEXT, text, m.start()) and checksums.is_ssn(m.group()):
      yield m.span()


def _phones(text: str) -> Places:
  for m in PHONE.finditer(text):
    if _is_phone(m.group(), _near(PHONE_CONTEXT, text, m.start())):
      yield m.span()


def _is_phone(value: str, named: bool) -> bool:
  """Whether digits and signs are a telephone number (E.164: 15 digits at most).

  Args:
    value: digits, separators, an extension.
    named: whether words before it speak of a telephone.
  """
  number = re.split('x|ext', value, flags=re.IGNORECASE)[0].rstrip()
  count = len(_digits(number))
  if number.count('(') != number.count(')') or _is_date(number):
    return False
  if number.startswith('+'):
    return 7 <= count <= 15
  if named:
    return 6 <= count <= 15
  if SSN.fullmatch(number) or THOUSANDS.fullmatch(number):
    return False
  separated = not number.isdigit()
  if number.startswith(('0', '(')):
    return separated and 8 <= count <= 15
  return bool(NANP.fullmatch(number)) or (bool(GROUPED.fullmatch(number)) and 8 <= count <= 12)


def _passports(text: str) -> Places:
  for m in PASSPORT_LINES.finditer(text):
    if (m.group()[0] == 'P' and '<<' in m.group()) or checksums.is_passport_line(m.group()):
      yield m.span()
  for m in PASSPORT.finditer(text):
    if len(_digits(m.group())) >= 5 and _near(PASSPORT_CONTEXT, text, m.start()):
      yield m.span()


def _dates(text: str) -> Places:
  """Whole dates: year, month and day, in figures or with an English month."""
  for pattern in DATES:
    for m in pattern.finditer(text):
      if _in_calendar(m):
        yield m.span()


def _is_date(value: str) -> bool:
  return any((m := p.fullmatch(value)) is not None and _in_calendar(m) for p in DATES)


def _in_calendar(m: re.Match[str]) -> bool:
  part = m.groupdict()
  year = int(part['year'])
  if 'a' in part:  # day and month, in either order
    a, b = int(part['a']), int(part['b'])
    return checksums.is_date(year, b, a) or checksums.is_date(year, a, b)
  named = 'name' in part
  month = 1 + MONTHS.index(part['name'].lower()) if named else int(part['month'])
  return checksums.is_date(year, month, int(part['day']))


# Type -> (function, whether a check digit or a parser confirms what it finds).
RECOGNIZERS: dict[str, tuple[Callable[[str], Places], bool]] = {
  'EMAIL': (_emails, False),
  'URL': (_urls, False),
  'IP': (_addresses, True),
  'IBAN': (_ibans, True),
  'CARD': (_cards, True),
  'SSN': (_ssns, False),
  'PASSPORT': (_passports, False),
  'PHONE': (_phones, False),
  'DATE': (_dates, False),
}


def find(text: str, types: tuple[str, ...]) -> list[Span]:
  """Returns what the recognizers of these types find; spans of several may overlap."""
  found = []
  for name in types:
    recognize, checked = RECOGNIZERS[name]
    found += [Span(start, end, name, checked) for start, end in recognize(text)]
  return found
