"""The preflight over sockets in one process: what processes differ in, who is lost, strangers."""

import contextlib
import socket
import time

import pytest

from bmx.core.errors import InputError
from bmx.runtime import facts, peers, preflight
from bmx.runtime.preflight import ProcessMissing, Report, join
from tests.runtime.together import close, follow, lead, outcomes, report


def test_processes_that_agree_are_released(place):
  other = lambda k: lambda: follow(place, report(k, processes=3))
  links, *rest = outcomes(lambda: lead(place, report(0, processes=3), 3), other(1), other(2))
  assert sorted(links) == [1, 2]
  close(*links.values(), *rest)
  assert not list(place[1].parent.iterdir())  # the nonce is gone


def config_word(word, value):
  return lambda: (report(0), report(1, **{word: value}), f'config.{word}: ')


def variable(name, value):
  def make():
    first = report(0)
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv(name, value)
      return first, report(1), f'{name}: '

  return make


def version(package):
  def make():
    with pytest.MonkeyPatch.context() as patch:
      former = facts.importlib.metadata.version
      patch.setattr(facts.importlib.metadata, 'version',
                    lambda name: '0.0.1' if name == package else former(name))  # fmt: skip
      return report(0), report(1), f'version of {package}: '

  return make


def edited(report_, word, value):
  return Report(report_.process, {**report_.facts, word: value})


MISCONFIGURED = {
  'seed': config_word('seed', 1),
  'rate': config_word('schedule.peak', 1e-3),
  'batch size': config_word('batch_size', 32),
  'steps': config_word('steps', 200),
  'depth': config_word('task.model.depth', 7),
  'type of a value': config_word('steps', 100.0),
  'a word more': config_word('ema', 0.9),
  'a long value': config_word('data.text', 'x' * 1000),
  'XLA flags': variable('XLA_FLAGS', '--xla_force_host_platform_device_count=2'),
  'precision': variable('JAX_DEFAULT_MATMUL_PRECISION', 'highest'),
  'mode': lambda: (report(0), edited(report(1), '--mode', "'eval'"), '--mode: '),
  'step': lambda: (report(0), edited(report(1), '--step', "'best'"), '--step: '),
  'jax': lambda: (report(0), edited(report(1), 'version of jax', '0.4.1'), 'version of jax: '),
  'python': lambda: (
    report(0), edited(report(1), 'version of python', '3.9.0'), 'version of python: ',
  ),
  'code': lambda: (report(0), edited(report(1), 'source of bmx', 'abc'), 'source of bmx: '),
  'processes': lambda: (report(0), report(1, processes=4), '--processes: 2 on process 0, 4 on'),
  'number too large': lambda: (report(0), report(3, processes=4), '--processes: 2 on process 0, 4'),
  'process 1 fails': lambda: (report(0), report(1, 'no recipe x'), 'process 1: no recipe x'),
  'process 0 fails': lambda: (report(0, 'no recipe x'), report(1), 'process 0: no recipe x'),
}  # fmt: skip


@pytest.mark.parametrize('make', MISCONFIGURED.values(), ids=MISCONFIGURED)
def test_a_difference_is_named_on_every_process(place, make):
  first, second, message = make()
  began = time.monotonic()
  errors = outcomes(lambda: lead(place, first), lambda: follow(place, second))
  assert time.monotonic() - began < 10
  assert [type(e) for e in errors] == [InputError, InputError]
  assert message in str(errors[0]) and str(errors[0]) == str(errors[1])
  assert len(str(errors[0])) < 500
  if not first.failure and not second.failure:
    assert 'on process 0, ' in str(errors[0]) and f'on process {second.process}' in str(errors[0])


FILES = {
  'a byte': (lambda path: path.write_bytes(b'b' * 5000), '5,000 bytes, digest'),
  'a line': (lambda path: path.write_bytes(b'a' * 5001), '5,000 bytes, digest'),
  'no file': (lambda path: path.unlink(), '(absent) on process 1'),
}


@pytest.mark.parametrize(('change', 'message'), FILES.values(), ids=FILES)
def test_other_data_are_named(place, tmp_path, change, message):
  path = tmp_path / 'train.csv'
  path.write_bytes(b'a' * 5000)
  word = {'data.path': str(path)}
  first = report(0, **word)
  change(path)
  second = report(1, **word)
  errors = outcomes(lambda: lead(place, first), lambda: follow(place, second))
  assert all('file of config.data.path: 5,000 bytes' in str(e) for e in errors)
  assert message in str(errors[0]) and 'on process 1' in str(errors[0])


def test_facts_know_the_ends_of_a_large_file_and_the_entries_of_a_folder(tmp_path):
  path, digests = tmp_path / 'large', []
  for place in (None, 0, 3 * facts.EDGE):
    path.write_bytes(b'a' * (3 * facts.EDGE + 1))
    with path.open('r+b') as file:
      if place is not None:
        file.seek(place)
        file.write(b'b')
    digests.append(facts.facts({'a': str(path)}, {})['file of config.a'])
  assert len(set(digests)) == 3
  alike = facts.facts({'a': (str(path), str(tmp_path))}, {'mode': 'train'})
  assert alike['file of config.a'].startswith(f'{digests[2]}; 1 entries')
  path.rename(tmp_path / 'larger')
  assert facts.facts({'a': str(tmp_path)}, {})['file of config.a'] not in alike.values()
  assert 'config.cache' not in facts.facts({'cache': 'here'}, {})


def test_the_same_number_twice_stops_all(place):
  one = lambda: follow(place, report(1, processes=3))
  errors = outcomes(lambda: lead(place, report(0, processes=3), 3), one, one)
  assert [type(e) for e in errors] == [InputError] * 3
  assert '--process=1: expected each number once; it was started twice' in str(errors[0])


def test_a_process_that_starts_again_is_counted_once(place):
  """Its first connection has ended."""

  def twice():
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(preflight, '_await_verdict', lambda link, seconds: link)
      follow(place, report(1, processes=3)).close()
    time.sleep(0.3)
    with contextlib.closing(follow(place, report(1, processes=3))):
      return 'released'

  def late():
    time.sleep(0.8)
    return follow(place, report(2, processes=3))

  links, word, other = outcomes(lambda: lead(place, report(0, processes=3), 3), twice, late)
  assert (sorted(links), word) == ([1, 2], 'released')
  close(*links.values(), other)


def test_who_never_comes_or_ends_is_named(place):
  alone = lambda: follow(place, report(1, processes=3), 0.5)
  errors = outcomes(lambda: lead(place, report(0, processes=3), 3, timeout=0.5), alone)
  assert all(type(e) is ProcessMissing for e in errors)
  assert all('of 3 processes, process 2 did not connect in 0.5 s' in str(e) for e in errors)
  with pytest.raises(ProcessMissing, match=r'process 0 is missing: .*this process \(1\) does not'):
    follow(place, report(1), 0.3)
  with pytest.raises(ProcessMissing, match='process 0 is missing: .*at nowhere.invalid:1 in 0.2 s'):
    join(('nowhere.invalid', 1), place[1], report(1), 0.2)


def test_a_process_that_ends_before_the_start_is_named(place):
  def leave():
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(preflight, '_await_verdict', lambda link, seconds: link)
      follow(place, report(1, processes=3)).close()

  error, _ = outcomes(lambda: lead(place, report(0, processes=3), 3, timeout=0.6), leave)
  assert 'processes 1, 2 did not connect' in str(error)
  assert 'process 1 connected and ended' in str(error)


def test_another_workdir_is_named(place, tmp_path):
  other = lambda: follow(place, report(1), path=tmp_path / 'elsewhere/.nonce')
  first, second = outcomes(lambda: lead(place, timeout=0.8), other)
  assert type(second) is InputError
  assert f'--workdir={tmp_path}/elsewhere: expected the directory that process 0 uses' in str(
    second
  )
  assert type(first) is ProcessMissing and 'reports' in str(first) and 'elsewhere' in str(first)


@pytest.mark.parametrize('offset', [0, 1], ids=["jax's", 'ours'])
def test_a_taken_port_is_named(place, offset):
  message = rf'{place[0] + offset} cannot be used .*choose another'
  with socket.create_server(('', place[0] + offset)), pytest.raises(InputError, match=message):
    lead(place)


@pytest.mark.parametrize(
  'where', ['host', 'host:', ':9871', 'host:0', 'host:65535', 'host:9x', 'h:²']
)
def test_a_coordinator_that_is_none(tmp_path, where):
  with pytest.raises(InputError, match='expected HOST:PORT'):
    peers.start(where, 2, 1, tmp_path, {})


def test_a_process_0_that_stops_answering(place, monkeypatch):
  monkeypatch.setattr(preflight, 'HANDSHAKE_SECONDS', 0.2)
  monkeypatch.setattr(preflight.Gathering, 'release', lambda self: time.sleep(0.8))
  links, error = outcomes(lambda: lead(place), lambda: follow(place, report(1), 0.3))
  assert type(error) is ProcessMissing and 'process 0 is lost' in str(error)
  close(*links.values())
