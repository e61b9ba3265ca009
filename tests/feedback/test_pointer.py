"""The pointer: promotion, the way back, kills, runs that no gate has accepted."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bmx.core.errors import InputError
from bmx.feedback import pointer
from bmx.feedback.pointer import Target
from bmx.modes import Request, promote
from bmx.train import manifest


def run_dir(folder: pathlib.Path, step: int = 5, content: str = 'a') -> pathlib.Path:
  """A run directory with the manifest of one checkpoint, which is all that a pointer reads."""
  path = folder / 'checkpoints' / str(step)
  path.mkdir(parents=True)
  facts = {'step': step, 'files': {'x': content * 64}, 'leaves': {}}
  (path / 'manifest.json').write_text(json.dumps(facts | {'sha256': manifest.seal(facts)}))
  return folder


def accept(folder: pathlib.Path, **words) -> None:
  found = {'accepted': True, 'digest': pointer.digest_of(folder, 5), 'step': 5}
  (folder / 'gate.json').write_text(json.dumps(found | words))


def test_promote_and_back(tmp_path):
  name = str(tmp_path / 'served.json')
  one, two = (pointer.target_of(run_dir(tmp_path / n), 5) for n in 'ab')
  pointer.promote(name, one)
  pointer.promote(name, two)
  assert pointer.read(name).target == two and pointer.read(name).history == (one,)
  assert pointer.back(name).target == one
  with pytest.raises(InputError, match='expected an earlier model'):
    pointer.back(name)


def test_a_changed_checkpoint_is_not_returned_to(tmp_path):
  name = str(tmp_path / 'served.json')
  one, two = (run_dir(tmp_path / n) for n in 'ab')
  pointer.promote(name, pointer.target_of(one, 5))
  pointer.promote(name, pointer.target_of(two, 5))
  run_dir(tmp_path / 'c', content='c')
  (tmp_path / 'c/checkpoints/5/manifest.json').replace(one / 'checkpoints/5/manifest.json')
  with pytest.raises(InputError, match='differs from the one that was promoted'):
    pointer.back(name)


def test_the_gate_is_asked(tmp_path):
  folder = run_dir(tmp_path / 'a')
  target = pointer.target_of(folder, 5)
  with pytest.raises(InputError, match='no such file; run bmx gate'):
    pointer.check_gate(folder, target)
  accept(folder, accepted=False)
  with pytest.raises(InputError, match='the gate has refused this run'):
    pointer.check_gate(folder, target)
  accept(folder, digest='0' * 64, step=3)
  with pytest.raises(InputError, match='the gate has judged step 3, not this checkpoint of step 5'):
    pointer.check_gate(folder, target)
  accept(folder, champion_digest='1' * 64, champion='runs/old')
  found = pointer.check_gate(folder, target)
  name = str(tmp_path / 'served.json')
  pointer.check_champion(name, found)  # nothing is served yet
  pointer.promote(name, pointer.target_of(run_dir(tmp_path / 'b', content='b'), 5))
  with pytest.raises(InputError, match='the gate has compared with runs/old'):
    pointer.check_champion(name, found)


@pytest.mark.parametrize('text', [
  '', '{', '[]', '{"target": {"run": "a"}}', '{"target": {"run": 1, "step": 2, "digest": ""}}',
  '{"target": {"run": "a", "step": "2", "digest": ""}, "history": []}',
])  # fmt: skip
def test_a_file_that_is_no_pointer_is_named(tmp_path, text):
  (tmp_path / 'x').write_text(text)
  with pytest.raises(InputError, match='expected a pointer that `bmx promote` has written'):
    pointer.read(str(tmp_path / 'x'))


@pytest.mark.parametrize('words, message', [
  ({}, 'promote: expected a pointer'),
  ({'pointer': 'missing/x'}, '--pointer=missing/x'),
  ({'pointer': 'x', 'back': True, 'force': True}, '--back: expected no run'),
  ({'pointer': 'x'}, 'needs --workdir'),
  ({'pointer': 'x', 'workdir': 'y'}, 'expected the directory of a run'),
])  # fmt: skip
def test_commands_that_cannot_promote_are_named(tmp_path, monkeypatch, words, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=message):
    promote.run(Request(None, '', **words))


PROMOTES = """
import itertools, sys
from bmx.feedback import pointer
from bmx.feedback.pointer import Target
for n in itertools.count():
  pointer.promote(sys.argv[1], Target('run', n, 'd' * 64))
  if not n: print('begun', flush=True)
"""


def test_a_kill_leaves_the_old_or_the_new_pointer(tmp_path):
  name = str(tmp_path / 'served.json')
  pointer.promote(name, Target('run', -1, 'd' * 64))
  for i in range(3):
    process = subprocess.Popen([sys.executable, '-c', PROMOTES, name], stdout=subprocess.PIPE,
                               env=os.environ)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline()
    deadline = time.monotonic() + 0.2 + 0.013 * i
    while time.monotonic() < deadline:
      assert pointer.read(name).target.digest == 'd' * 64  # whole at every moment
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = pointer.read(name)
    assert found.target.step - found.history[-1].step in (1, -found.history[-1].step)
