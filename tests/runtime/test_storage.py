"""Objects of a store on loopback: replaced whole, locked by generations, copied when changed."""

import json
import os
import threading
import time

import pytest

from bmx.core.errors import InputError
from bmx.runtime import files, locks, storage
from bmx.runtime.fetch import fetch
from bmx.runtime.files import ObjectAppender, read_json, write_json
from bmx.runtime.storage import NONE, place
from bmx.runtime.writer import JsonLines, read_metrics
from bmx.train import manifest, stepdirs


@pytest.fixture
def here(gcs, request):
  """A folder of the store for one test."""
  yield place(f'gs://units/{request.node.name.partition("[")[0]}')
  gcs.fails, gcs.loses = (lambda *_: 0), (lambda *_: False)


@pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')  # of aiohttp
def test_an_object_is_replaced_whole(gcs, here, monkeypatch):
  monkeypatch.setattr(storage, 'PUT_BYTES', 1 << 20)
  path = here / 'data.json'
  write_json(path, {'a': [1, float('nan')]})
  assert read_json(path) == {'a': [1, 'NaN']}
  big = ''.join(map(str, range(2_000_000)))  # more than a chunk of an upload
  with files.replacing(path) as file:
    file.write(big)
  assert gcs.get('units', f'{here.name}/data.json').decode() == big == path.read_text()
  with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
    file.write('half')
    _ = 1 / 0
  assert path.read_text() == big
  assert gcs.names('units') == [f'{here.name}/data.json'] and not gcs.refused


def test_a_write_demands_a_generation(gcs, here):
  path = here / 'lock'
  assert storage.read_object(path) == (NONE, b'')
  first = storage.put_if(path, b'first', NONE)
  assert first and storage.read_object(path) == (first, b'first')
  assert storage.put_if(path, b'other', NONE) is None
  second = storage.put_if(path, b'second', first)
  assert second not in (None, NONE, first)
  assert storage.put_if(path, b'late', first) is None
  storage.remove_if(path, first)
  assert storage.read_object(path) == (second, b'second')
  answers = iter([True])
  gcs.loses = lambda method, name: next(answers, False)  # written, but the client is not told
  third = storage.put_if(path, b'third', second)
  assert third and storage.read_object(path) == (third, b'third')
  storage.remove_if(path, third)
  assert not path.exists()


@pytest.mark.parametrize('address', [
  'gs://', 'gs://bucket', 'gs://bucket/', 'gs://bucket//x', 'gs://bucket/../x', 'gs://bucket/./x',
  'gs://bucket/a\nb', 'gs:///x', 'gs://B/x', 'gs:/bucket/x', 's3://bucket/x', 'http://x/y',
])  # fmt: skip
def test_addresses_that_are_refused(address, gcs):
  with pytest.raises(InputError, match='expected'):
    place(address)


def test_a_bucket_that_cannot_be_read_is_named(gcs, here):
  gcs.fails = lambda method, bucket, name: 403 if bucket == 'forbidden' else 0
  with pytest.raises(InputError, match='^gs://forbidden cannot be read: Forbidden'):
    place('gs://forbidden/x')


def test_lines_are_whole_at_every_flush(gcs, here, monkeypatch):
  path, name = here / 'metrics.jsonl', f'{here.name}/metrics.jsonl'
  lines = JsonLines(path)
  for step in range(100):
    lines.write({'step': step})
  assert len([r for r in gcs.requests if r == ('POST', name)]) <= 1  # not one for every line
  lines.flush()
  assert [x['step'] for x in read_metrics(path)] == list(range(100))
  mark = lines.length
  assert mark == len(gcs.get('units', name))
  lines.write({'step': 100})
  lines.close()
  again = JsonLines(path, mark)  # resumed from a checkpoint that records `mark`
  assert again.length == mark
  again.write({'step': 'again'})
  again.flush()
  assert [x['step'] for x in map(json.loads, path.read_text().splitlines())] == [
    *range(100), 'again',
  ]  # fmt: skip


def refuse(path, data):
  raise OSError('no answer')


def test_lines_of_a_failing_store_are_kept(gcs, here, monkeypatch, caplog):
  path = here / 'metrics.jsonl'
  file = ObjectAppender(path)
  file.write(b'1\n')
  monkeypatch.setattr(storage, 'put', refuse)
  with caplog.at_level('INFO', logger='bmx'):
    for text in (b'2\n', b'3\n'):
      file.write(text)
      file.flush()
    assert path.read_bytes() == b'1\n'
    monkeypatch.undo()
    file.close()
  assert path.read_bytes() == b'1\n2\n3\n'
  assert caplog.text.count('cannot be written, and will be tried again: no answer') == 1
  assert caplog.text.count('is written again') == 1


@pytest.fixture
def quick_leases(monkeypatch):
  monkeypatch.setattr(locks, 'RENEW', 0.1)
  monkeypatch.setattr(locks, 'STALE', 1.0)


def test_a_lease_has_one_holder(gcs, here, quick_leases):
  path, holder = here / 'lock', rf'another process trains here \(process {os.getpid()}, '
  with locks.locked(path):
    for _ in range(2):
      with pytest.raises(InputError, match=holder), locks.locked(path):
        raise AssertionError
    time.sleep(1.5)  # longer than it takes to be stale
    with pytest.raises(InputError, match='another process trains here'), locks.locked(path):
      raise AssertionError
  assert not path.exists()
  with locks.locked(path):
    assert path.exists()


def test_of_many_one_gets_the_lease(gcs, here, quick_leases):
  path, got, begin, end = here / 'lock', [], threading.Barrier(6), threading.Event()

  def work():
    begin.wait()
    try:
      with locks.locked(path):
        got.append('held')
        end.wait(20)
    except InputError:
      got.append('refused')

  threads = [threading.Thread(target=work) for _ in range(6)]
  for thread in threads:
    thread.start()
  while len(got) < 6:
    time.sleep(0.01)
  end.set()
  for thread in threads:
    thread.join()
  assert sorted(got) == ['held'] + ['refused'] * 5


def test_a_lease_of_a_dead_process_is_taken_over(gcs, here, quick_leases, monkeypatch):
  path, began = here / 'lock', time.monotonic()
  dead = locks.Lease(path)  # nothing renews it
  with locks.locked(path):
    assert time.monotonic() - began >= locks.STALE
    # The process was not dead but stopped: it ends as soon as it sees that.
    ends = []
    monkeypatch.setattr(locks.os, '_exit', lambda code: (ends.append(code), dead.ended.set()))
    dead.keep()
    assert ends == [1]


def test_copies_follow_the_objects(gcs, here, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  (here / 'x.csv').write_text('a,b\n')
  (here / 'x.csv.more').write_text('not this one')
  (here / 'model/deep/config.json').write_text('{}')
  (here / 'model/weights').write_bytes(b'\0' * 10)
  first = fetch(str(here / 'x.csv'))
  assert first.name == 'x.csv' and first.read_text() == 'a,b\n' and fetch(f'{here}/x.csv') == first
  (here / 'x.csv').write_text('c,d\n')
  assert fetch(f'{here}/x.csv').read_text() == 'c,d\n'
  model = fetch(f'{here}/model/')
  assert sorted(str(p.relative_to(model)) for p in model.rglob('*') if p.is_file()) == [
    'deep/config.json', 'weights',
  ]  # fmt: skip
  with pytest.raises(InputError, match='no file gs://units/.*absent'):
    fetch(f'{here}/absent')
  assert fetch(tmp_path / 'y') == tmp_path / 'y'


def test_a_library_that_writes_no_objects(gcs, here, tmp_path):
  staged = storage.staging(here / 'profile')
  (staged / 'plugins').mkdir()
  (staged / 'plugins/a.pb').write_bytes(b'trace')
  storage.publish(staged, here / 'profile')
  assert (here / 'profile/plugins/a.pb').read_bytes() == b'trace' and not staged.exists()
  assert storage.staging(tmp_path) == tmp_path


def write_step(folder, step):
  for name in (stepdirs.ORBAX_METADATA, *manifest.INDEX, 'd/1', 'd/2'):
    (folder / str(step) / name).write_text(f'{step} {name}')
  manifest.write_part(folder / str(step), 0)
  manifest.join(folder / str(step), 1, step=step, leaves={})


def test_damage_of_objects_is_found(gcs, here):
  write_step(here, 10)
  step, expected = here / '10', {'step': 10}
  assert manifest.damage(step, expected=expected) == []
  (step / 'd/1').write_text('changed')
  (step / 'd/2').unlink()
  lines = manifest.damage(step, expected={'step': 11})
  assert ['d/1 is damaged' in lines[1], lines[2]] == [True, 'd/2 is missing']
  facts = manifest.read(step) | {'files': {'../other': '0' * 64}}
  write_json(step / manifest.MANIFEST, facts | {manifest.SEAL: manifest.seal(facts)})
  assert '../other is missing' in manifest.damage(step)


def test_a_removal_that_is_cut_short_leaves_no_step(gcs, here, monkeypatch):
  """The process dies after each of the deletions in turn."""
  folder = here / 'checkpoints'
  for left in range(1, 6):
    write_step(folder, 10)
    write_step(folder, 20)
    (folder / '20.after.json').write_text('{}')
    count, prefix = iter(range(left)), f'{here.name}/checkpoints/10/'
    gcs.fails = lambda method, bucket, name, count=count, prefix=prefix: (
      403 if method == 'DELETE' and name.startswith(prefix) and next(count, None) is None else 0
    )
    with pytest.raises(OSError):
      stepdirs.remove(folder, 10)
    gcs.fails = lambda *_: 0
    assert stepdirs.steps(folder) == [20]
    stepdirs.check_names(folder)  # what is left is still known as bmx's
    stepdirs.clean(folder, folder / '30')
    assert storage.files(folder / '10') == []
    assert stepdirs.steps(folder) == [20] and (folder / '20.after.json').exists()
