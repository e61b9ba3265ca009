"""Anonymized texts: properties, overlaps, keys, the cleaning step, the capture hook."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data.text import clean
from bmx.data.text.documents import documents
from bmx.data.text.spans import Span, apart, words_of
from bmx.feedback.capture import FEEDBACK_ROUTE, capture_of
from bmx.privacy.anonymize import TYPES, Anonymizer, redactor, strings_of, with_strings
from bmx.privacy.pseudonyms import FORMS

DATA = ('bob@x.org', '+49 30 901820', 'GB29 NWBK 6016 1331 9268 19', '4111111111111111',
        '2001:db8::1', 'https://a.example/b', '078-05-1120', '1980-03-17')  # fmt: skip
FILLERS = (
  'call ',
  ' and ',
  '😀',
  'é',
  ' e\u0301 ',
  '👩\u200d👧 ',
  '\n',
  ', ',
  ' 12 ',
  'x',
  '@',
  ' .',
)
TEXTS = st.lists(st.sampled_from(DATA + FILLERS), max_size=9).map(''.join)


@pytest.fixture
def key(tmp_path):
  path = tmp_path / 'key'
  path.write_text('0123456789abcdef')
  return str(path)


class Names:
  """Finds one word, as a tagger finds names."""

  def __init__(self, word='Ann', type='PERSON'):
    self.word, self.type = word, type

  def find(self, texts):
    return [[Span(a, b, self.type) for a, b in words_of(t) if t[a:b] == self.word] for t in texts]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_nothing_that_is_found_is_left(text):
  for form in FORMS:
    if form == 'pseudonym':
      continue
    made = Anonymizer(form=form)  # type: ignore
    (new,), counts = made.anonymize([text])
    assert not made.find([new])[0]
    assert made.anonymize([new])[0] == [new]
    (spans,) = made.find([text])
    assert bool(spans) == bool(counts)
    for span in spans:
      assert text[span.start : span.end].strip() == text[span.start : span.end]
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    if form == 'mask':
      assert len(new) == len(text)


SPANS = st.builds(
  lambda start, length, type, checked: Span(start, start + length, type, checked),
  st.integers(0, 20), st.integers(1, 9), st.sampled_from('ABC'), st.booleans(),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(spans=st.lists(SPANS, max_size=7))
def test_overlaps_cover_the_same_characters_once(spans):
  kept = apart(spans)
  chars = [n for s in kept for n in range(s.start, s.end)]
  assert len(chars) == len(set(chars))
  assert set(chars) == {n for s in spans for n in range(s.start, s.end)}
  longest = max(spans, key=lambda s: s.end - s.start, default=None)
  assert longest is None or any(k.end - k.start == longest.end - longest.start for k in kept)


def test_offsets_count_code_points():
  text = '😀 e\u0301 👩‍👩‍👧 bob@x.org'
  (span,) = Anonymizer().find([text])[0]
  assert text[span.start : span.end] == 'bob@x.org' and span.end == len(text)


def test_a_checked_finding_wins_a_tie_and_names_around_it_are_removed():
  text = 'Ann 4111111111111111'
  both = type('', (), {'find': lambda self, texts: [[Span(0, len(t), 'PERSON')] for t in texts]})()
  assert Anonymizer(tagger=both).anonymize([text])[0] == ['<PERSON>']
  same = type('', (), {'find': lambda self, ts: [[Span(4, 20, 'PERSON')] for _ in ts]})()
  assert [s.type for s in Anonymizer(tagger=same).find([text])[0]] == ['CARD']


def test_pseudonyms_follow_key_type_and_value(key, tmp_path, monkeypatch):
  other = tmp_path / 'other'
  other.write_text('another key of enough bytes')
  monkeypatch.setenv('BMX_TEST_KEY', '0123456789abcdef')
  replace = lambda text, k: Anonymizer(form='pseudonym', key=k).anonymize([text])[0][0]
  one = replace('bob@x.org', key)
  assert one == replace('BOB@x.org', key) == replace('bob@x.org', 'env:BMX_TEST_KEY')
  assert one != replace('rob@x.org', key) and one != replace('bob@x.org', str(other))
  assert replace('GB29 NWBK 6016 1331 9268 19', key) == replace('GB29NWBK60161331926819', key)
  assert one.startswith('<EMAIL_') and len(one) == len('<EMAIL_>') + 12
  assert replace(one, key) == one


@pytest.mark.parametrize('words, message', [
  ({'types': ('EMIAL',)}, "unknown type 'EMIAL'; did you mean 'EMAIL'"),
  ({'types': ('PERSON',)}, 'expected a tagger, which finds PERSON'),
  ({'form': 'masked'}, "form='masked': expected one of placeholder.*did you mean 'mask'"),
  ({'form': 'pseudonym'}, 'expected the key of pseudonyms; write one with'),
  ({'form': 'pseudonym', 'key': 'nowhere'}, 'anonymize.key=nowhere: expected a file'),
  ({'form': 'pseudonym', 'key': 'env:BMX_NOT_SET'}, 'expected an environment variable'),
])  # fmt: skip
def test_bad_words(words, message):
  with pytest.raises(InputError, match=message):
    Anonymizer(**words)


def test_keys_that_are_short_or_in_a_run(tmp_path):
  short = tmp_path / 'short'
  short.write_text('15 bytes are fe')
  with pytest.raises(InputError, match='at least 16 random bytes, found 15'):
    Anonymizer(form='pseudonym', key=str(short))
  (tmp_path / 'run/checkpoints').mkdir(parents=True)
  (tmp_path / 'run/config.json').write_text('{}')
  (tmp_path / 'run/key').write_text('0123456789abcdef')
  with pytest.raises(InputError, match='outside the run directory'):
    Anonymizer(form='pseudonym', key=str(tmp_path / 'run/key'))


def test_types_choose_what_is_replaced():
  text = 'Ann bob@x.org 10.0.0.1'
  made = Anonymizer(types=('IP', 'PERSON'), tagger=Names())
  assert made.anonymize([text]) == (['<PERSON> bob@x.org <IP>'], {'IP': 1, 'PERSON': 1})
  assert set(TYPES) >= {s.type for s in Anonymizer(tagger=Names()).find([text])[0]}


def test_a_cleaning_step_counts_and_comes_before_duplicates(tmp_path, caplog):
  (tmp_path / 'a.jsonl').write_text('\n'.join(
    json.dumps({'text': t}) for t in ('mail a@x.org', 'mail b@x.org', 'nothing')))  # fmt: skip
  with caplog.at_level('INFO', 'bmx'):
    steps = clean.standard(anonymize=Anonymizer())
    found = documents([str(tmp_path / 'a.jsonl')], steps=steps)
  assert found == ['mail <EMAIL>', 'nothing']
  assert 'Anonymizer: 2 EMAIL replaced' in caplog.text
  assert 'Anonymizer: 0 of 3 documents removed, 2 changed' in caplog.text


def test_captured_events_are_anonymized_at_any_depth(tmp_path):
  words = {'folder': str(tmp_path), 'share': 1.0, 'redact': '', 'file_bytes': 2**20}
  capture = capture_of(words, redactor(Anonymizer(tagger=Names())))
  assert capture is not None
  asked = {'messages': [{'role': 'user', 'content': 'I am Ann, bob@x.org'}], 'n': 3, 'x': None}
  capture.answered('/v1/chat/completions', 'one', asked, {'text': 'Hello Ann', 'rest': [1.5, True]})
  capture.answered(FEEDBACK_ROUTE, 'one', {'id': 'one', 'answer': 'ask Ann'}, {})
  capture.close()
  (file,) = tmp_path.glob('*.jsonl')
  first, second = map(json.loads, file.read_text().splitlines())
  content = 'I am <PERSON>, <EMAIL>'
  assert first['asked'] == {'messages': [{'role': 'user', 'content': content}], 'n': 3, 'x': None}
  assert first['answer'] == {'text': 'Hello <PERSON>', 'rest': [1.5, True]}
  assert second['answer'] == 'ask <PERSON>' and second['id'] == 'one'


def test_a_redaction_of_ones_own_comes_first(tmp_path):
  words = {'folder': str(tmp_path), 'share': 1.0, 'redact': 'tests.privacy.test_anonymize:upper',
           'file_bytes': 2**20}  # fmt: skip
  capture = capture_of(words, redactor(Anonymizer()))
  assert capture is not None
  capture.answered('/v1/completions', 'one', {'prompt': 'bob@x.org is it'}, {})
  capture.close()
  (file,) = tmp_path.glob('*.jsonl')
  assert json.loads(file.read_text())['asked'] == {'prompt': '<EMAIL> IS IT'}


def upper(said):
  return with_strings(said, [s.upper() for s in strings_of(said)])
