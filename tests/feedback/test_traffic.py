"""Examples of captured traffic: labels, torn lines, what is held out."""

import json

import pytest

from bmx.core.errors import InputError
from bmx.feedback import traffic
from bmx.feedback.learn import challenger
from bmx.feedback.traffic import Example, Fields

FIELDS = Fields('income', '', {})


def answer(name: str, *instances, predictions=None):
  found = predictions or [{'prediction': 'no'} for _ in instances]
  return {'kind': 'answer', 'id': name, 'route': '/v1/predict',
          'asked': {'instances': list(instances)}, 'answer': {'predictions': found}}  # fmt: skip


def correct(name: str, **words):
  return {'kind': 'feedback', 'id': name, **words}


def write(path, *events, torn=''):
  path.write_text(''.join(json.dumps(e) + '\n' for e in events) + torn)
  return path


def test_corrections_win(tmp_path):
  """The last label counts; a rating above 0 confirms the prediction, another one does not."""
  write(tmp_path / 'a-1.jsonl', answer('one', {'age': 1}), answer('two', {'age': 2}, {'age': 3}))
  write(tmp_path / 'a-2.jsonl', answer('four', {'age': 4}), answer('five', {'age': 5}),
        correct('one', label='yes'), correct('two', index=1, label='yes'),
        correct('two', index=1, label='no'), correct('four', rating=1),
        correct('five', rating=0))  # fmt: skip
  found = traffic.read(str(tmp_path), FIELDS)
  assert [(e.inputs['age'], e.label) for e in found] == [
    (1, 'yes'), (2, None), (3, 'no'), (4, 'no'), (5, None)]  # fmt: skip
  assert [e.inputs['age'] for e in traffic.labeled(found)] == [1, 3, 4]


def test_the_last_correction_counts_alone(tmp_path):
  events = [answer('a', {'x': 1}, predictions=[{'prediction': 'no'}]), correct('a', label='yes'),
            correct('a', rating=1)]  # fmt: skip
  (found,) = traffic.read(str(write(tmp_path / 'one.jsonl', *events)), FIELDS)
  assert found.label == 'no'


def test_a_correction_that_is_no_class_is_left_out_and_that_of_a_file_named(tmp_path, caplog):
  events = [answer('a', {'x': 1}), answer('b', {'x': 2}), correct('a', label='maybe'),
            correct('b', label='yes')]  # fmt: skip
  found = traffic.read(str(write(tmp_path / 'one.jsonl', *events)), FIELDS)
  assert [e.inputs for e in traffic.labeled(found, ('no', 'yes'))] == [{'x': 2}]
  assert 'left out   1 corrections' in caplog.text
  with pytest.raises(InputError, match="label 'maybe'"):
    traffic.labeled([Example({'x': 1}, label='maybe')], ('no', 'yes'))


def test_a_text_under_the_name_that_servers_accept(tmp_path):
  path = write(
    tmp_path / 'one.jsonl', answer('a', {'text': 'well'}, predictions=[{'prediction': 'yes'}])
  )
  assert traffic.read(str(path), Fields('label', 'review', {}))[0].inputs == {'review': 'well'}


def test_a_torn_last_line_is_left_out_and_another_one_named(tmp_path):
  path = write(tmp_path / 'a.jsonl', answer('one', {'age': 1}), torn='{"kind": "answ')
  assert [e.inputs for e in traffic.read(str(path), FIELDS)] == [{'age': 1}]
  path.write_text('{"kind": "answer", "id": "x"}\n{"kind\n{"id": "y"}\n')
  with pytest.raises(InputError, match='line 2: not an event'):
    traffic.read(str(path), FIELDS)


def test_texts_and_files(tmp_path):
  path = write(tmp_path / 'a.jsonl', answer('one', 'good', {'text': 'bad'}))
  found = traffic.read(str(path), Fields('label', 'text', {}))
  assert [e.inputs for e in found] == [{'text': 'good'}, {'text': 'bad'}]
  (tmp_path / 'b.csv').write_text('age,income\n1,yes\n2,\n')
  found = traffic.read(str(tmp_path / 'b.csv'), FIELDS)
  assert found == [Example({'age': '1'}, None, 'yes'), Example({'age': '2'}, None, '')]
  assert len(traffic.labeled(found, ['yes', 'no'])) == 1
  with pytest.raises(InputError, match="label 'yes' of .*expected one of up, down"):
    traffic.labeled(found, ['up', 'down'])


@pytest.mark.parametrize('make, message', [
  (lambda p: p.mkdir(), 'expected files NAME.jsonl'),
  (lambda p: write(p, correct('one', label='yes')), 'holds no answer of /v1/predict'),
  (lambda p: None, 'no file'),
])  # fmt: skip
def test_nothing_captured_is_named(tmp_path, make, message):
  make(tmp_path / 'x')
  with pytest.raises(InputError, match=message):
    traffic.read(str(tmp_path / 'x'), FIELDS)


def test_equal_inputs_are_on_one_side():
  """A share of inputs is held out, by their content: numbers and their texts are equal."""
  held = sum(traffic.is_held_out(Example({'age': i}), 0.2) for i in range(4000))
  assert held == pytest.approx(800, abs=5 * (4000 * 0.16) ** 0.5)
  one, two = Example({'a': '1', 'b': None}, label='x'), Example({'a': 1}, label='y')
  assert traffic.key_of(one) == traffic.key_of(two)


CONFIG = {
  'data': {'call': 'bmx.data.tables:table', 'path': 'a.csv', 'target': 'y', 'split': 'train',
           'holdout': 0.2, 'delimiter': ';'},
  'eval': {'valid': {'split': 'valid'}, 'own': {'call': 'x:y', 'path': 'z'}},
  'init': {'path': '', 'reinit': 'head', 'adapter': 'folder'},
  'steps': 3,
}  # fmt: skip


def test_config_of_a_challenger():
  new = challenger(CONFIG, 'runs/a', 'new.jsonl', 0.25)
  assert new['steps'] == 3 and new['fitted'] == 'runs/a'
  assert new['init'] == {'path': 'runs/a', 'reinit': ''}
  assert new['eval']['valid'] == CONFIG['data'] | {'split': 'valid'}
  assert new['eval']['own'] == {'call': 'x:y', 'path': 'z'}
  data = new['data']
  assert data['weights'] == {'original': 0.75, 'captured': 0.25}
  assert data['sources']['original'] == CONFIG['data']
  assert data['sources']['captured'] == {
    'call': 'bmx.data.tables:table', 'path': 'new.jsonl', 'target': 'y'}  # fmt: skip


def test_a_challenger_of_a_challenger_keeps_what_was_captured():
  first = challenger(CONFIG, 'runs/a', 'one.jsonl', 0.5)
  second = challenger(first, 'runs/b', 'two.jsonl', 0.5)['data']
  assert second['weights'] == {'original': 0.25, 'captured': 0.25, 'captured2': 0.5}
  assert [p['path'] for p in second['sources'].values()] == ['a.csv', 'one.jsonl', 'two.jsonl']


def test_what_cannot_be_learned_is_named():
  with pytest.raises(InputError, match='feedback.share=1.5'):
    challenger(CONFIG, 'a', 'b', 1.5)
  with pytest.raises(InputError, match='reads labeled examples from a file'):
    challenger(CONFIG | {'data': {'call': 'bmx.data.text.windows:text'}}, 'a', 'b', 0.5)
