"""Texts with spans: formats, splits by group, tags and back, made sentences."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data.text.annotated import annotated, texts_of, tokenizer
from bmx.data.text.spans import spans_of, tags_of, words_of

TEXT = 'Call Ann-Lee Brown, O\u0301slo 😀.'
RECORDS = [
  {'text': TEXT, 'spans': [{'start': 5, 'end': 18, 'type': 'P'}, {'start': 20, 'end': 25,
                                                                 'type': 'L'}]},
  {'full_text': 'Bob', 'spans': [{'start_position': 0, 'end_position': 3, 'entity_type': 'P'}],
   'template_id': 1},
  {'text': 'none'},
]  # fmt: skip


@pytest.fixture(params=['a.json', 'a.jsonl'])
def path(request, tmp_path):
  file = tmp_path / request.param
  lines = '\n'.join(map(json.dumps, RECORDS))
  file.write_text(json.dumps(RECORDS) if request.param == 'a.json' else lines)
  return str(file)


def test_formats(path, tmp_path):
  found = texts_of(path, types={'P': 'PERSON'})
  assert [t.text for t in found] == [TEXT, 'Bob', 'none']
  assert [[t.text[s.start : s.end] for s in t.spans] for t in found] == [['Ann-Lee Brown'],
                                                                         ['Bob'], []]  # fmt: skip
  conll = tmp_path / 'b.conll'
  conll.write_text('Ann\tB-P\nLee\tI-P\n,\tO\nBob\tB-P\nOslo\tI-L\n\nx\tO\n')
  one, two = texts_of(str(conll))
  assert [one.text[s.start : s.end] + s.type for s in one.spans] == ['Ann LeeP', 'BobP', 'OsloL']
  assert two.text == 'x' and not two.spans


def test_words_and_tags(path):
  (text, *_) = texts_of(path)
  words = words_of(text.text)
  assert [text.text[a:b] for a, b in words] == ['Call', 'Ann', '-', 'Lee', 'Brown', ',',
                                                'O\u0301slo', '😀', '.']  # fmt: skip
  tags = tags_of(words, text.spans)
  assert tags == ['O', 'B-P', 'I-P', 'I-P', 'I-P', 'O', 'B-L', 'O', 'O']
  assert tuple(spans_of(words, tags)) == text.spans


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), data=st.data())
def test_spans_of_whole_words_survive(text, data):
  words = words_of(text)
  assert all(a.isspace() or any(s <= n < e for s, e in words) for n, a in enumerate(text)
             if a.isprintable() and not a.isspace())  # fmt: skip
  tags = data.draw(st.lists(st.sampled_from(['O', 'B-X', 'B-Y']), min_size=len(words),
                            max_size=len(words)))  # fmt: skip
  spans = spans_of(words, tags)
  assert tags_of(words, spans) == tags


def test_a_split_parts_no_group(data_dir):
  path = str(data_dir / 'pii_presidio/synth_dataset_v2.json')
  parts = [texts_of(path, split, 0.2) for split in ('train', 'valid', 'all')]
  train, valid, every = ({t.group for t in part} for part in parts)
  assert not train & valid and train | valid == every and len(every) == 209
  assert len(parts[2]) == 1500 and sum(len(t.spans) for t in parts[2]) == 2863  # PROVENANCE.txt
  assert len(valid) == 42


def test_rows_are_those_of_the_text():
  made = annotated('', tokenizer('', vocab_size=320), 40, 'train', 0.25)
  again = annotated('', tokenizer('', vocab_size=320), 40, 'train', 0.25)
  assert made.digest() == again.digest()  # type: ignore
  names = made.metadata['class_names']
  assert set(names) == {'O'} | {f'{k}-{t}' for k in 'BI' for t in ('PERSON', 'LOCATION',
                                                                   'ORGANIZATION')} - {
    'I-LOCATION'}  # fmt: skip
  rest = {t.text for t in texts_of('', 'valid', 0.25)}
  assert len(rest) > 30 and not rest & {t.text for t in texts_of('', 'train', 0.25)}


@pytest.mark.parametrize('content, message', [
  ('{', 'not JSON'),
  ('[]', 'expected a list of texts with spans'),
  ('[{"text": "a", "spans": [{"start": 0, "end": 2, "type": "P"}]}]', 'record 1: expected'),
  ('[{"text": "a", "spans": [{"start": 0, "type": "P"}]}]', 'record 1: expected'),
  ('[{"text": 3}]', 'record 1: expected'),
  ('[{"words": ["a"]}]', "expected 'text' and 'spans'"),
])  # fmt: skip
def test_bad_files(content, message, tmp_path):
  (tmp_path / 'a.json').write_text(content)
  with pytest.raises(InputError, match=message):
    texts_of(str(tmp_path / 'a.json'))
