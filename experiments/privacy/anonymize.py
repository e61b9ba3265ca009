"""Precision and recall of `bmx anonymize` by type, beside presidio's pattern recognizers.

    python experiments/privacy/anonymize.py RUN FILE [PYTHON]

RUN is a run of pii_tagger, FILE presidio-research's synth_dataset_v2.json, of which a fifth of the
templates was held out from it; PYTHON is that of an environment with presidio-analyzer, whose
recognizers of patterns need no model. A finding is right if type, first and last character are. A
value is covered if all its characters but blanks are replaced, by findings of whatever type.
Writes anonymize.json beside this script.
"""

import collections
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

HOLDOUT = 0.2  # that of configs/pii_tagger.py
# Types of presidio, and of its synthetic file, -> those of bmx.
TYPES = {
  'EMAIL_ADDRESS': 'EMAIL', 'DOMAIN_NAME': 'URL', 'URL': 'URL', 'IP_ADDRESS': 'IP',
  'IBAN_CODE': 'IBAN', 'CREDIT_CARD': 'CARD', 'US_SSN': 'SSN', 'PHONE_NUMBER': 'PHONE',
  'PERSON': 'PERSON', 'GPE': 'LOCATION', 'STREET_ADDRESS': 'ADDRESS', 'ZIP_CODE': 'ADDRESS',
  'ORGANIZATION': 'ORGANIZATION', 'DATE_TIME': 'DATE',
}  # fmt: skip
Found = set[tuple[int, int, str]]  # (start, end, type) of one text


def presidio(texts: Sequence[str]) -> list[list[tuple[int, int, str]]]:
  """Finds with presidio's recognizers of patterns, each alone, at their default threshold."""
  from presidio_analyzer import predefined_recognizers as known

  names = ('EmailRecognizer', 'UrlRecognizer', 'IpRecognizer', 'IbanRecognizer',
           'CreditCardRecognizer', 'UsSsnRecognizer', 'PhoneRecognizer',
           'DateRecognizer')  # fmt: skip
  recognizers = [getattr(known, name)() for name in names]
  result = []
  for text in texts:
    found = [r for one in recognizers for r in one.analyze(text, one.supported_entities, None)]
    result.append([(r.start, r.end, TYPES[r.entity_type]) for r in found])
  return result


def scored(known: Sequence[Found], found: Sequence[Found], texts: Sequence[str]) -> dict:
  """Returns precision, recall, share of covered values and their number, by type."""
  right, given, true, covered = (collections.Counter[str]() for _ in range(4))
  for truth, spans, text in zip(known, found, texts, strict=True):
    right.update(s[2] for s in truth & spans)
    given.update(s[2] for s in spans)
    true.update(s[2] for s in truth)
    chars = {n for start, end, _ in spans for n in range(start, end)}
    covered.update(kind for start, end, kind in truth
                   if all(n in chars or text[n].isspace() for n in range(start, end)))  # fmt: skip
  return {
    kind: {
      'values': true[kind],
      'precision': round(right[kind] / given[kind], 3) if given[kind] else None,
      'recall': round(right[kind] / true[kind], 3) if true[kind] else None,
      'covered': round(covered[kind] / true[kind], 3) if true[kind] else None,
    }
    for kind in dict.fromkeys(TYPES.values())
    if true[kind] or given[kind]
  }


def as_sets(found: Iterable[Iterable]) -> list[Found]:
  """Returns the spans of each text as a set."""
  return [{(s.start, s.end, s.type) for s in spans} for spans in found]


def main(run: str, path: str, python: str = '') -> None:
  """Measures patterns alone, patterns with the tagger, and presidio."""
  from bmx.adapt.tagging import Tagger
  from bmx.data.text.annotated import texts_of
  from bmx.privacy.anonymize import Anonymizer

  began = time.process_time()
  held = texts_of(path, 'valid', HOLDOUT, (), TYPES)
  texts, known = [t.text for t in held], as_sets(t.spans for t in held)
  whole = Anonymizer(tagger=Tagger(run))
  result = {
    'date': time.strftime('%Y-%m-%d'),
    'file': pathlib.Path(path).name,
    'texts': len(texts),
    'templates': len({t.group for t in held}),
    'patterns': scored(known, as_sets(Anonymizer().find(texts)), texts),
    'patterns and tagger': scored(known, as_sets(whole.find(texts)), texts),
  }
  result['seconds'] = round(time.process_time() - began, 1)
  if python:
    done = subprocess.run([python, __file__, 'presidio'], input=json.dumps(texts), text=True,
                          capture_output=True, check=True)  # fmt: skip
    answer = json.loads(done.stdout)
    theirs = [{(a, b, kind) for a, b, kind in spans} for spans in answer['found']]
    result['presidio-analyzer'] = answer['version']
    result['presidio'] = scored(known, theirs, texts)
  out = pathlib.Path(__file__).with_suffix('.json')
  out.write_text(json.dumps(result, indent=2) + '\n')
  sys.stdout.write(out.read_text())


if __name__ == '__main__':
  if sys.argv[1:] == ['presidio']:
    version = importlib.metadata.version('presidio-analyzer')
    answered = {'version': version, 'found': presidio(json.load(sys.stdin))}
    sys.stdout.write(json.dumps(answered))
  else:
    main(*sys.argv[1:])
