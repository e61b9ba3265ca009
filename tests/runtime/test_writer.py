"""metrics.jsonl holds whole lines only, whatever happens to the file."""

from bmx.runtime.writer import JsonLines, read_metrics


def written(path, length, *steps):
  lines = JsonLines(path, length)
  for step in steps:
    lines.write({'step': step})
  lines.close()
  return lines.length


def test_a_resumed_run_cuts_what_came_after_its_checkpoint(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  length = written(path, 0, 1, 2)
  written(path, length, 3, 4)
  written(path, length, 3)
  assert [line['step'] for line in read_metrics(path)] == [1, 2, 3]


def test_a_file_that_has_lost_lines_is_told_of_and_not_padded(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  length = written(path, 0, 1, 2)
  path.write_bytes(b'')
  with caplog.at_level('WARNING', logger='bmx'):
    written(path, length, 3)
  assert 'HAS LOST LINES' in caplog.text
  assert [line['step'] for line in read_metrics(path)] == [3]
