"""Rates, by a watch that the test holds."""

import pytest

from bmx.runtime.throughput import Throughput


class Watch:
  def __init__(self):
    self.time = 100.0

  def __call__(self):
    return self.time

  def sleep(self, seconds):
    self.time += seconds


def start(**options):
  watch = Watch()
  throughput = Throughput(steps=100, units={'tokens': 768, 'examples': 3}, now=watch, **options)
  throughput.begin(0)
  return watch, throughput


def test_rates():
  watch, throughput = start()
  watch.sleep(5.0)
  line = throughput.close(10)
  assert line == {
    'steps_per_second': pytest.approx(2.0),
    'step_seconds': pytest.approx(0.5),
    'data_wait_fraction': 0.0,
    'tokens_per_second': pytest.approx(1536.0),
    'examples_per_second': pytest.approx(6.0),
  }


def test_a_slow_source_shows():
  watch, throughput = start()
  for step in range(4):
    watch.sleep(0.3)
    throughput.wait(0.3, step + 1)
    watch.sleep(0.1)
  assert throughput.close(4)['data_wait_fraction'] == pytest.approx(0.75)


def test_a_wait_is_of_the_window_whose_steps_waited():
  """A window is closed when the loop has already waited for the next one."""
  watch, throughput = start()
  watch.sleep(1.0)
  throughput.wait(0.5, 4)
  at = watch()
  watch.sleep(1.0)
  throughput.wait(0.8, 5)
  assert throughput.close(4, at)['data_wait_fraction'] == pytest.approx(0.5)
  assert throughput.close(5)['data_wait_fraction'] == pytest.approx(0.8)


def test_pauses_are_not_training():
  watch, throughput = start()
  watch.sleep(1.0)
  throughput.wait(0.5, 2)
  watch.sleep(50.0)
  throughput.pause(50.0)
  watch.sleep(1.0)
  line = throughput.close(4)
  assert line['steps_per_second'] == pytest.approx(2.0)
  assert line['data_wait_fraction'] == pytest.approx(0.25)


def test_mfu():
  """10 steps of 3 TFLOP in 5 s on chips of 12 TFLOP/s: 6 of 12."""
  watch, throughput = start(flops=3e12, peak=12e12)
  watch.sleep(5.0)
  assert throughput.close(10)['mfu'] == pytest.approx(0.5)


@pytest.mark.parametrize('options', [{'flops': 3e12}, {'peak': 12e12}, {}])
def test_no_mfu_without_a_peak_or_a_count(options):
  watch, throughput = start(**options)
  watch.sleep(5.0)
  assert 'mfu' not in throughput.close(10)


def test_a_window_starts_where_the_last_one_ended():
  watch, throughput = start()
  watch.sleep(1.0)
  throughput.wait(1.0, 1)
  throughput.pause(0.5)
  throughput.close(10)
  watch.sleep(4.0)
  line = throughput.close(12)
  assert line['steps_per_second'] == pytest.approx(0.5)
  assert line['data_wait_fraction'] == 0.0


def test_a_window_may_end_before_it_is_read():
  watch, throughput = start()
  watch.sleep(7.0)
  assert throughput.close(10, at=105.0)['steps_per_second'] == pytest.approx(2.0)
  assert throughput.close(12)['steps_per_second'] == pytest.approx(1.0)


def test_a_resumed_run_counts_its_own_steps():
  watch, throughput = start()
  watch.sleep(30.0)
  throughput.begin(90)
  watch.sleep(1.0)
  assert throughput.close(94)['steps_per_second'] == pytest.approx(4.0)


def test_time_left():
  watch, throughput = start()
  assert throughput.left(0) == 0.0
  watch.sleep(5.0)
  throughput.close(10)
  assert throughput.left(10) == pytest.approx(45.0)


def test_a_window_of_no_time_has_finite_rates():
  _, throughput = start(flops=1.0, peak=1.0)
  line = throughput.close(1)
  assert all(v == v and v != float('inf') for v in line.values())


def test_a_window_too_short_to_time_is_part_of_the_next():
  """Two dispatches that end at one moment do not give a million steps a second."""
  now = [0.0]
  throughput = Throughput(100, {'examples': 10}, now=lambda: now[0])
  throughput.begin(0)
  assert throughput.close(10, at=1e-5) == {}
  assert throughput.close(20, at=2.0)['steps_per_second'] == 10.0
