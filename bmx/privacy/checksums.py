"""Check digits and issued ranges of numbers that name a person or an account."""

import datetime
import re

# Characters of an IBAN by country: SWIFT's IBAN registry.
IBAN_LENGTHS = {
  'AD': 24, 'AE': 23, 'AL': 28, 'AT': 20, 'AZ': 28, 'BA': 20, 'BE': 16, 'BG': 22, 'BH': 22,
  'BI': 27, 'BR': 29, 'BY': 28, 'CH': 21, 'CR': 22, 'CY': 28, 'CZ': 24, 'DE': 22, 'DJ': 27,
  'DK': 18, 'DO': 28, 'EE': 20, 'EG': 29, 'ES': 24, 'FI': 18, 'FK': 18, 'FO': 18, 'FR': 27,
  'GB': 22, 'GE': 22, 'GI': 23, 'GL': 18, 'GR': 27, 'GT': 28, 'HN': 28, 'HR': 21, 'HU': 28,
  'IE': 22, 'IL': 23, 'IQ': 23, 'IS': 26, 'IT': 27, 'JO': 30, 'KW': 30, 'KZ': 20, 'LB': 28,
  'LC': 32, 'LI': 21, 'LT': 20, 'LU': 20, 'LV': 21, 'LY': 25, 'MC': 27, 'MD': 24, 'ME': 22,
  'MK': 19, 'MN': 20, 'MR': 27, 'MT': 31, 'MU': 30, 'NI': 28, 'NL': 18, 'NO': 15, 'OM': 23,
  'PK': 24, 'PL': 28, 'PS': 29, 'PT': 25, 'QA': 29, 'RO': 24, 'RS': 22, 'RU': 33, 'SA': 24,
  'SC': 31, 'SD': 18, 'SE': 24, 'SI': 19, 'SK': 24, 'SM': 27, 'SO': 23, 'ST': 25, 'SV': 28,
  'TL': 23, 'TN': 24, 'TR': 26, 'UA': 29, 'VA': 22, 'VG': 24, 'XK': 20, 'YE': 30,
}  # fmt: skip
# First digits of payment cards and their numbers of digits: American Express, Diners Club, JCB,
# Visa, Mastercard, UnionPay, Discover, Maestro.
CARDS: tuple[tuple[str, tuple[int, ...]], ...] = (
  (r'3[47]', (15,)),
  (r'30[0-5]|309|3[689]', tuple(range(14, 20))),
  (r'2131|1800', (15,)),
  (r'35(2[89]|[3-8]\d)', tuple(range(16, 20))),
  (r'4', (13, 16, 19)),
  (r'5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720', (16,)),
  (r'62', tuple(range(16, 20))),
  (r'6011|64[4-9]|65', tuple(range(16, 20))),
  (r'50|5[6-9]|6[0-9]', tuple(range(12, 20))),
)
CARD_DIGITS = (12, 19)
MRZ_WEIGHTS = (7, 3, 1)
# Fields with a check digit behind them in the second line of a passport, and the composite one.
MRZ_FIELDS = ((0, 9), (13, 19), (21, 27))


def luhn(digits: str) -> bool:
  """Returns whether the last digit is the check digit of the others (ISO/IEC 7812-1).

  >>> luhn('4111111111111111'), luhn('4111111111111112')
  (True, False)
  """
  values = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
  return sum(v - 9 * (v > 9) for v in values) % 10 == 0


def is_card(digits: str, named: bool = False) -> bool:
  """Returns whether the digits are a payment card's: of an issuer, of its length, with Luhn's.

  Args:
    digits: of the number.
    named: whether the text calls it a card: then 12 to 19 digits of any issuer are one.
  """
  if not CARD_DIGITS[0] <= len(digits) <= CARD_DIGITS[1] or not luhn(digits):
    return False
  return named or any(len(digits) in n and re.match(first, digits) for first, n in CARDS)


def is_iban(text: str) -> bool:
  """Returns whether the text is an IBAN without separators (ISO 13616: its country, mod 97).

  >>> is_iban('GB82WEST12345698765432'), is_iban('GB82WEST12345698765433')
  (True, False)
  """
  text = text.upper()
  if IBAN_LENGTHS.get(text[:2]) != len(text) or not re.fullmatch('[A-Z]{2}[0-9]{2}[A-Z0-9]+', text):
    return False
  return int(''.join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def is_ssn(digits: str) -> bool:
  """Returns whether nine digits can be a US social security number, of any year of issue."""
  area, group, serial = digits[:3], digits[3:5], digits[5:]
  return area not in ('000', '666') and area < '900' and group != '00' and serial != '0000'


def is_passport_line(line: str) -> bool:
  """Returns whether 44 characters are the second line of a passport (ICAO 9303, TD3).

  The check digits of number, birth, expiry and of all together are compared.
  """
  checked = all(_mrz(line[a:b]) == line[b] for a, b in MRZ_FIELDS)
  return checked and _mrz(line[0:10] + line[13:20] + line[21:43]) == line[43]


def _mrz(field: str) -> str:
  """Check digit of a field of a machine-readable zone."""
  values = (0 if c == '<' else int(c, 36) for c in field)
  return str(sum(v * MRZ_WEIGHTS[i % 3] for i, v in enumerate(values)) % 10)


def is_date(year: int, month: int, day: int) -> bool:
  """Returns whether a calendar has the date. A year of two digits counts as one of 2000 to 2099."""
  try:
    datetime.date(year if year > 99 else 2000 + year, month, day)
  except ValueError:
    return False
  return True
