"""Capture: what is written, rotation, redaction, disks that are full."""

import errno
import json
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.feedback import traffic
from bmx.feedback.capture import FEEDBACK_ROUTE, Capture, capture_of
from bmx.runtime import files
from tests.conftest import ROOT

FIELDS = traffic.Fields('y', '', {})


def say(made: Capture, name: str, value: object = 1, **answer) -> None:
  made.answered('/v1/predict', name, {'instances': [{'x': value}]},
                {'id': name, 'predictions': [{'prediction': 'no'}], **answer})  # fmt: skip


def lines(folder: pathlib.Path) -> list[dict]:
  return [e for file in traffic.event_files(folder) for e in traffic.events(file)]


def test_answers_and_corrections_are_lines(tmp_path):
  made = Capture(str(tmp_path / 'a'))
  say(made, 'one', 1)
  say(made, 'two', 2)
  made.answered(FEEDBACK_ROUTE, 'one', {'id': 'one', 'label': 'yes', 'index': 0}, {})
  made.close()
  found = lines(tmp_path / 'a')
  assert [e['kind'] for e in found] == ['answer', 'answer', 'feedback']
  assert found[0]['asked'] == {'instances': [{'x': 1}]} and found[0]['route'] == '/v1/predict'
  assert [e.label for e in traffic.read(str(tmp_path / 'a'), FIELDS)] == ['yes', None]
  assert made.written == 3 and made.lost == 0


def test_a_share_is_chosen_by_id(tmp_path):
  """The same ids each time, about the share of them, and corrections with their answers."""
  one, two = (Capture(str(tmp_path / n), share=0.3) for n in 'ab')
  names = [f'pred-{i}' for i in range(3000)]
  chosen = [n for n in names if one.chosen(n)]
  assert chosen == [n for n in names if two.chosen(n)]
  assert len(chosen) == pytest.approx(900, abs=5 * (3000 * 0.21) ** 0.5)
  for name in names[:50]:
    say(one, name)
    one.answered(FEEDBACK_ROUTE, name, {'label': 'yes'}, {})
  one.close()
  assert {e['id'] for e in lines(tmp_path / 'a')} == set(chosen) & set(names[:50])
  assert all(e.label == 'yes' for e in traffic.read(str(tmp_path / 'a'), FIELDS))


def test_files_rotate_by_size_and_their_names_are_in_order(tmp_path):
  made = Capture(str(tmp_path), file_bytes=1024)
  for i in range(40):
    say(made, f'{i:02d}', i)
  made.close()
  found = traffic.event_files(tmp_path)
  assert len(found) > 3 and all(f.stat().st_size <= 1024 for f in found)
  assert [e['id'] for e in lines(tmp_path)] == [f'{i:02d}' for i in range(40)]


def test_files_are_private(tmp_path):
  """Whatever the process lets others read."""
  before = os.umask(0)
  try:
    made = Capture(str(tmp_path), file_bytes=1024)
    for i in range(20):
      say(made, str(i))
    made.close()
  finally:
    os.umask(before)
  modes = [file.stat().st_mode & 0o777 for file in traffic.event_files(tmp_path)]
  assert len(modes) > 1 and set(modes) == {0o600}


def test_the_mask_of_the_page_masks(tmp_path):
  """The hook that docs/feedback.md shows hides addresses and digits before anything is written."""
  page = (ROOT / 'docs/feedback.md').read_text()
  code = next(c for c in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if 'def mask' in c)
  space: dict = {}
  exec(code, space)
  made = Capture(str(tmp_path), redact=space['mask'])
  say(made, 'one', 'call 0171 2345, mail ann.lee@example.org', note={'deep': ['card 4111']})
  made.close()
  text = b''.join(f.read_bytes() for f in traffic.event_files(tmp_path)).decode()
  assert 'example' not in text and not re.search(r'0171|2345|4111', text)
  assert 'call #### ####, mail (address)' in text and json.loads(text)['id'] == 'one'


def test_what_cannot_be_redacted_is_not_written(tmp_path, caplog):
  made = Capture(str(tmp_path), redact=lambda said: 1 / 0)  # type: ignore
  say(made, 'one')
  say(made, 'two')
  made.close()
  assert not traffic.event_files(tmp_path) and made.lost == 2
  assert caplog.text.count('capture.redact failed') == 1


def test_a_full_disk_loses_events_and_nothing_else(tmp_path, caplog, monkeypatch):
  """It is logged once, events are counted and not kept, and the next write succeeds."""
  caplog.set_level('INFO', 'bmx')
  made, real = Capture(str(tmp_path)), os.write
  say(made, 'one')

  def full(file: int, data: bytes) -> int:
    if len(data) > 20:
      return real(file, bytes(data)[:10])  # a part fits
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files.os, 'write', lambda file, data: full(file, bytes(data)[:25]))
  for i in range(5):
    say(made, f'lost {i}')
  monkeypatch.setattr(files.os, 'write', real)
  say(made, 'two')
  made.close()
  assert [e['id'] for e in lines(tmp_path)] == ['one', 'two']
  assert (made.written, made.lost) == (2, 5)
  assert caplog.text.count('No space left on device') == 1
  assert caplog.text.count('is written again') == 1


LIMITED = """
import logging, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
logging.basicConfig(level='INFO')
from bmx.feedback.capture import Capture
made = Capture(sys.argv[1])
for i in range(60):
  made.answered('/v1/predict', str(i), {'instances': [{'x': i}]}, {'predictions': [{}]})
print(made.written, made.lost)
"""


def test_a_file_of_limited_size(tmp_path):
  """The kernel refuses to let the file grow: whole lines stay, the rest is counted."""
  done = subprocess.run([sys.executable, '-c', LIMITED, tmp_path], capture_output=True, text=True,
                        check=True, env=os.environ)  # fmt: skip
  written, lost = map(int, done.stdout.split())
  assert written + lost == 60 and lost > 0 and written == len(lines(tmp_path))
  assert done.stderr.count('cannot be written') == 1
  assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


def words(**given):
  return {'folder': '', 'share': 1.0, 'redact': '', 'file_bytes': 2**20} | given


def test_words(tmp_path):
  assert capture_of(words()) is None
  made = capture_of(words(folder=str(tmp_path), redact='json:dumps'))
  assert isinstance(made, Capture)


@pytest.mark.parametrize('given, message', [
  ({'share': 0}, 'capture.share=0'),
  ({'share': 1.1}, 'capture.share=1.1'),
  ({'file_bytes': 3}, 'capture.file_bytes=3'),
  ({'redact': 'nowhere:mask'}, "'nowhere:mask' cannot be imported"),
  ({'redact': 'json:__name__'}, "capture.redact='json:__name__'"),
  ({'folder': '/proc/none'}, 'capture.folder=/proc/none: cannot be written'),
])  # fmt: skip
def test_bad_words_are_named(tmp_path, given, message):
  with pytest.raises(InputError, match=re.escape(message)):
    capture_of(words(**{'folder': str(tmp_path), **given}))


def test_a_stored_hook_is_untrusted():
  """A config.json of others cannot name a function of another package."""
  with pytest.raises(InputError, match="calls 'os:system'"):
    recipes.check_calls({'capture': words(redact='os:system')})
  recipes.check_calls({'capture': words()})
