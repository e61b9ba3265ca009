"""Files are whole or not there, whatever the disk does; sinks that cannot write do not raise."""

import errno
import json
import logging
import math
import os
import struct
import sys

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from bmx.core.terminal import printable
from bmx.runtime import files, logs, report
from bmx.runtime.files import Appender, numbers, read_json, replacing, to_json, write_json
from bmx.runtime.writer import Events, JsonLines, Writer, read_metrics


@pytest.fixture
def disk(monkeypatch):
  """A disk with room for so many bytes; `room` is set by the test. None: as much as there is."""

  class Disk:
    room = None

  write = os.write

  def limited(file, data):
    if Disk.room is None:
      return write(file, data)
    if not Disk.room:
      raise OSError(errno.ENOSPC, 'No space left on device')
    done = write(file, bytes(data)[: Disk.room])
    Disk.room -= done
    return done

  monkeypatch.setattr(os, 'write', limited)
  return Disk


@pytest.mark.parametrize('room', [0, 1, 15, 40])
def test_lines_of_a_full_disk_are_kept_and_written_later(room, disk, tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  lines = JsonLines(path)
  lines.write({'step': 1})
  disk.room = room
  with caplog.at_level('INFO', logger='bmx'):
    for step in (2, 3, 4, 5, 6):
      lines.write({'step': step})
      assert path.read_bytes().endswith(b'}\n')
    disk.room = None
    lines.write({'step': 7})
  lines.close()
  assert [line['step'] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6, 7]
  assert lines.length == path.stat().st_size
  assert caplog.text.count('cannot be written, and will be tried again') == 1
  assert caplog.text.count('is written again') == 1


def events(path):
  """The events of a file, by the format's rule: length, checksum, content, checksum."""
  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    assert struct.unpack('<I', data[8:12]) == (masked_crc32c(data[:8]),)
    content, rest = data[12 : 12 + size], data[12 + size :]
    assert struct.unpack('<I', rest[:4]) == (masked_crc32c(content),)
    found.append(event_pb2.Event.FromString(content))
    data = rest[4:]
  return found


def test_tensorboard_reads_what_is_written(tmp_path):
  made = Events(tmp_path / 'tensorboard', 20)
  made.scalars(30, {'loss': 0.5, 'eval/valid/loss': math.nan})
  made.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  version, begun, loss, valid = events(path)
  assert version.file_version == 'brain.Event:2'
  assert (begun.step, begun.session_log.status) == (21, event_pb2.SessionLog.START)
  assert (loss.step, loss.summary.value[0].tag, loss.summary.value[0].simple_value) == (
    30, 'loss', 0.5,
  )  # fmt: skip
  assert math.isnan(valid.summary.value[0].simple_value)


def test_a_full_disk_never_stops_the_writer(disk, tmp_path, caplog):
  """TensorBoard, metrics, sections and report: no exception, no thread that could hang."""
  made = Writer(tmp_path, 0, 0)
  disk.room = 10
  with caplog.at_level('INFO', logger='bmx'):
    for step in range(1, 100):
      made.scalars(step, {'loss': 1.0})
  assert caplog.text.count('cannot be written') == 2
  disk.room = None
  made.scalars(100, {'loss': 1.0})
  made.close()
  assert [line['step'] for line in read_metrics(tmp_path / 'metrics.jsonl')] == [*range(1, 101)]
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert [e.step for e in events(path) if e.summary.value] == [*range(1, 101)]


def test_what_cannot_be_replaced_stays(tmp_path, monkeypatch, caplog):
  path = tmp_path / 'x.json'
  write_json(path, 1)

  def fail(descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='No space'):
    write_json(path, 2)
  assert read_json(path) == 1
  with caplog.at_level('ERROR', logger='bmx'):
    report.write(tmp_path, 'run', {'metrics': {}})
    report.keep_sections(tmp_path, 'hook', report.Section('a', 'b'))
  assert caplog.text.count('cannot be written') == 2
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_two_writers_of_one_file(tmp_path):
  with replacing(tmp_path / 'x') as first, replacing(tmp_path / 'x') as second:
    first.write('first' * 10000)
    second.write('second')
  assert (tmp_path / 'x').read_text() == 'first' * 10000
  assert len(list(tmp_path.iterdir())) == 1


def test_links_are_not_followed(tmp_path):
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  for name in ('x.json', 'metrics.jsonl'):
    (tmp_path / name).symlink_to(precious)
  write_json(tmp_path / 'x.json', 1)
  with pytest.raises(OSError, match=r'metrics\.jsonl'):
    Appender(tmp_path / 'metrics.jsonl')
  assert precious.read_text() == 'precious'
  assert not (tmp_path / 'x.json').is_symlink()


VALUES = [math.nan, math.inf, -math.inf, 0.1, -0.0, 3, None, True, 'nan', '']


def test_json_is_json_for_every_parser():
  text = to_json({'a': VALUES, 'b': {'c': math.nan}})

  def refuse(constant):
    raise AssertionError(constant)

  assert json.loads(text, parse_constant=refuse)['a'][:3] == ['NaN', 'Infinity', '-Infinity']
  back = numbers(json.loads(text))
  assert repr(back) == repr({'a': VALUES, 'b': {'c': math.nan}})


DAMAGED = [
  b'{"step": 2, "lo',
  b'\xff\xfe',
  b'[1]',
  b'{"loss": 1}',
  b'[' * 100000,
  b'{"step": "x"}',
  b'',
]


def test_damaged_lines_are_left_out(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\n'.join([b'{"step": 1, "loss": "NaN"}', *DAMAGED, b'{"step": 3}', b'']))
  with caplog.at_level('WARNING', logger='bmx'):
    found = read_metrics(path)
  assert [line['step'] for line in found] == [1, 3] and math.isnan(found[0]['loss'])
  assert caplog.text.count('is damaged and left out') == len(DAMAGED)


@pytest.mark.parametrize('text', ['', '[1]', '{"hook": 3}', '[' * 100000])
def test_a_report_is_made_from_what_is_there(text, tmp_path):
  for name in ('sections.json', 'config.json', 'metrics.jsonl'):
    (tmp_path / name).write_text(text)
  report.write(tmp_path, 'run', {'metrics': {'loss': 0.25}})
  assert '0.25' in (tmp_path / 'report.html').read_text()


def test_a_terminal_is_not_written_to_by_names(capsys):
  assert printable('a\x1b[2Jb\x9b\r\n\tü') == 'a\\x1b[2Jb\\x9b\\r\n\tü'
  record = logging.LogRecord('bmx', 20, '', 0, '%s', ('\x1b]0;title\x07',), None)
  logs._Terminal().emit(record)
  assert capsys.readouterr().err == '\\x1b]0;title\\x07\n'


def test_a_closed_terminal_does_not_raise(monkeypatch):
  reader, pipe = os.pipe()
  os.close(reader)
  record = logging.LogRecord('bmx', 20, '', 0, 'step', (), None)
  with open(pipe, 'w', buffering=1) as closed:
    monkeypatch.setattr(sys, 'stderr', closed)
    logs._Terminal().emit(record)
    monkeypatch.undo()
    os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)  # what is left in the buffer
  monkeypatch.setattr(sys, 'stderr', closed)
  logs._Terminal().emit(record)


def test_a_file_is_reported_once_until_it_is_written(tmp_path, caplog):
  with caplog.at_level('INFO', logger='bmx'):
    for fails in (True, True, False, False, True):
      with files.tolerated(tmp_path):
        if fails:
          raise OSError('full')
  assert [r.levelname for r in caplog.records] == ['ERROR', 'INFO', 'ERROR']
