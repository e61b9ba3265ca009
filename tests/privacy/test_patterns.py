"""Patterns and check digits beside published test numbers and Python's own parsers."""

import ipaddress

import numpy as np
import pytest

from bmx.privacy import checksums, patterns

# Examples of SWIFT's IBAN registry.
IBANS = (
  'GB29NWBK60161331926819', 'DE89370400440532013000', 'FR1420041010050500013M02606',
  'NL91ABNA0417164300', 'NO9386011117947', 'MT84MALT011000012345MTLCAST001S',
  'CH9300762011623852957', 'BE68539007547034', 'SE4550000000058398257466',
  'AE070331234567890123456', 'PL61109010140000071219812874', 'ES9121000418450200051332',
  'IT60X0542811101000000123456', 'BR1800360305000010009795493C1',
)  # fmt: skip
# Test numbers that payment providers publish.
CARDS = (
  '4111111111111111', '4012888888881881', '4222222222222', '5555555555554444', '5105105105105100',
  '2223003122003222', '378282246310005', '371449635398431', '6011111111111117', '3530111333300000',
  '30569309025904', '38520000023237', '6200000000000005', '6759649826438453',
)  # fmt: skip
MRZ = (
  'P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<<',
  'L898902C36UTO7408122F1204159ZE184226B<<<<<10',
)


def values(text, *types):
  spans = patterns.find(text, types or tuple(patterns.RECOGNIZERS))
  return [text[s.start : s.end] for s in spans]


def changed(number):
  """The number with its last digit raised by one: no check digit allows that."""
  place = max(n for n, c in enumerate(number) if c.isdigit())
  return f'{number[:place]}{(int(number[place]) + 1) % 10}{number[place + 1 :]}'


@pytest.mark.parametrize('iban', IBANS)
def test_ibans(iban):
  spaced = ' '.join(iban[i : i + 4] for i in range(0, len(iban), 4))
  for form in (iban, spaced, iban.lower()):
    assert values(f'to {form} and more', 'IBAN') == [form]
  assert not values(f'to {changed(iban)} and more', 'IBAN')
  assert not values(f'to {iban}9 and', 'IBAN')


def test_every_single_changed_digit_of_an_iban_is_noticed():
  iban = IBANS[1]
  for place in range(2, len(iban)):
    other = iban[:place] + str((int(iban[place]) + 3) % 10) + iban[place + 1 :]
    assert not checksums.is_iban(other)


@pytest.mark.parametrize('card', CARDS)
def test_cards(card):
  grouped = ' '.join(card[i : i + 4] for i in range(0, len(card), 4))
  for form in (card, grouped, grouped.replace(' ', '-')):
    assert values(f'no. {form}, 12/26', 'CARD') == [form]
  assert not values(f'no. {changed(card)}.', 'CARD')
  assert values(f'{1:08d} {grouped} 9999', 'CARD') == [grouped]
  assert not values(f'x{card}', 'CARD') and not values(f'{card}0123', 'CARD')


def test_luhn_beside_its_definition():
  """ISO/IEC 7812-1: from the right every second digit doubled, digits of products summed."""
  rng = np.random.default_rng(0)
  for number in rng.integers(0, 10**15, 500):
    digits = str(number)
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(digits[::-1])]
    assert checksums.luhn(digits) == (sum(map(int, ''.join(map(str, doubled)))) % 10 == 0)


def test_a_number_of_no_issuer_is_a_card_where_it_is_called_one():
  number = '060426070011'
  assert checksums.luhn(number) and not values(f'sum {number}', 'CARD')
  assert values(f'credit card {number}', 'CARD') == [number]


def test_addresses_are_those_of_ipaddress():
  rng = np.random.default_rng(0)
  given = [str(ipaddress.IPv4Address(int(n))) for n in rng.integers(0, 2**32, 50)]
  six = [ipaddress.IPv6Address(rng.bytes(16)) for _ in range(50)]
  given += [str(a) for a in six] + [a.exploded for a in six[:5]]
  given += ['::1', 'fe80::1', '2001:db8::', '::ffff:192.0.2.1']
  for address in given:
    assert values(f'at {address}, and at {address}.', 'IP') == [address] * 2
  for other in ('256.1.1.1', '1.2.3', '1.2.3.4.5', '12:30:45', 'std::vector', '::', '1.2.3.04x'):
    assert not values(f'at {other} there', 'IP')


def test_passports():
  """The example of ICAO 9303 part 4, and numbers behind the word."""
  assert values('\n'.join(MRZ), 'PASSPORT') == list(MRZ)
  for place in (0, 9, 13, 21, 27, 43):
    line = MRZ[1][:place] + ('5' if MRZ[1][place] != '5' else '7') + MRZ[1][place + 1 :]
    assert not values(line, 'PASSPORT')
  assert values('passport no. C01X00T47 of mine', 'PASSPORT') == ['C01X00T47']
  assert not values('order C01X00T47 of mine', 'PASSPORT')


@pytest.mark.parametrize('type, text, expected', [
  ('EMAIL', 'a <first.last+tag@sub.example.co.uk>, b@x', ['first.last+tag@sub.example.co.uk']),
  ('EMAIL', 'jürgen@bücher.example, x@xn--bcher-kva.example', ['jürgen@bücher.example',
                                                                'x@xn--bcher-kva.example']),
  ('EMAIL', 'me@a.xn--p1ai!', ['me@a.xn--p1ai']),
  ('EMAIL', 'user@localhost and @name and a@b.c', []),
  ('URL', 'see https://a.example/b?c=d(e). Or www.x.example!', ['https://a.example/b?c=d(e',
                                                                'www.x.example']),
  ('URL', 'http://[2001:db8::1]:80/x', ['http://[2001:db8::1]:80/x']),
  ('SSN', '078-05-1120 000-12-3456 666-12-3456 900-12-3456 123-00-4567', ['078-05-1120']),
  ('SSN', 'SSN 219099999 but 219099999', ['219099999', '219099999']),
  ('SSN', 'the number 219099999', []),
  ('PHONE', '+49 30 901820 or (212) 555-0100 or 07700 900123', ['+49 30 901820',
                                                               '(212) 555-0100', '07700 900123']),
  ('PHONE', 'room 4711, 100 000 000 people, 2020-05-12, 078-05-1120, v1.2.3', []),
  ('PHONE', 'call 4673395 ext. 12', ['4673395 ext. 12']),
  ('DATE', '1980-03-17T10:11:12, 17/3/1980, 3/17/80', ['1980-03-17T10:11:12', '17/3/1980',
                                                       '3/17/80']),
  ('DATE', 'March 3rd, 1980; 3 Sept. 1980; 2020-02-30; 31/31/2000; in 1980; 1.2.3', [
    '3 Sept. 1980', 'March 3rd, 1980']),
])  # fmt: skip
def test_forms(type, text, expected):
  assert sorted(values(text, type)) == sorted(expected)


def test_long_texts_take_linear_time():
  """Runs of the characters that patterns repeat: none may be read from each of its characters."""
  for run in ('a' * 200_000, '1 ' * 100_000, '1' * 200_000, ':' * 200_000, '.a' * 100_000,
              'a.' * 60_000 + '@', 'GB29' * 50_000, '<' * 100_000):  # fmt: skip
    assert isinstance(values(run), list)
