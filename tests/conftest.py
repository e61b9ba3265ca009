"""Every test sees 8 virtual CPU devices; the environment is set before jax is imported."""

import contextlib
import functools
import gc
import inspect
import logging
import os
import pathlib
import subprocess
import sys
import tempfile

FLAGS = (
  '--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=300'
)
# Compiling is most of the time of most tests: without LLVM's optimization and MLIR's emitters of
# fusions it takes a third of it. .ci/nightly runs all tests with both.
if not os.environ.get('BMX_TEST_OPTIMIZED'):
  FLAGS += ' --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = FLAGS
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
# Of torch and of numpy's matrices: threads of two workers would wait for each other.
os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'
# Read when gcsfs is imported: otherwise it asks Google's server for the kind of a bucket.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
# Of private recipes, whose `:tiny` variants are trained as all others.
os.environ['BMX_PRIVACY_SECRET'] = 'a secret of tests, known to everybody'
# Shared by all tests and workers; one that kills processes takes a cache of its own.
CACHE = pathlib.Path(tempfile.gettempdir()) / 'bmx-test-programs'

import jax  # noqa: E402
import pytest  # noqa: E402

PROGRAMS = {
  'jax_compilation_cache_dir': str(CACHE),
  'jax_persistent_cache_min_compile_time_secs': 0.1,
}
for word, value in {**PROGRAMS, 'jax_numpy_rank_promotion': 'raise'}.items():
  jax.config.update(word, value)

ROOT = pathlib.Path(__file__).parent.parent


# Group `slow`: files, or tests of a file, that train, compile or start processes for long.
SLOW = (
  'adapt/test_adalora.py::test_the_budget_is_met_exactly',
  'adapt/test_adapter_runs.py',
  'adapt/test_hub.py::test_host_memory',
  'adapt/test_keys.py',
  'adapt/test_lora.py::test_adapted_is_merged',
  'adapt/test_lora.py::test_averages_and_rejected_updates',
  'adapt/test_lora.py::test_eight_devices_are_one',
  'adapt/test_restore.py',
  'adapt/test_tagging.py',
  'adapt/test_vision_runs.py',
  'compress/test_distill.py',
  'compress/test_mode.py',
  'compress/test_offline.py',
  'compress/test_prune.py',
  'compress/test_quantize.py',
  'compress/test_runs.py',
  'compress/test_shrink.py',
  'export/',
  'feedback/test_loop.py',
  'feedback/test_served.py',
  'interpret/test_attributions.py',
  'interpret/test_captum.py',
  'interpret/test_knowledge.py',
  'interpret/test_pages.py',
  'interpret/test_patches.py',
  'models/test_bert.py::test_loss_and_gradient_do_not_depend_on_the_layout',
  'models/test_bert.py::test_the_loss_does_not_depend_on_the_layout',
  'models/test_gpt.py::test_a_scan_is_a_loop',
  'models/test_gpt.py::test_remat_changes_nothing',
  'models/test_interception.py',
  'models/test_moe.py',
  'models/test_seq2seq.py',
  'ops/test_cache.py::test_decoding_in_parts_is_the_whole_forward',
  'ops/test_chunked.py::test_chunks_change_nothing',
  'ops/test_dense.py::test_derivatives_are_those_of_einsum',
  'ops/test_parity.py',
  'parallel/test_layouts.py',
  'parallel/test_packed.py',
  'parallel/test_per_example.py',
  'parallel/test_pipeline.py',
  'parallel/test_rules.py',
  'parallel/test_vision.py',
  'privacy/test_clip.py::test_eight_devices_are_one',
  'privacy/test_runs.py',
  'seams/',
  'serve/',
  'tasks/test_encoder.py::test_a_model_learns_the_masked_words',
  'tasks/test_encoder.py::test_rows_without_weight_count_nothing',
  'tasks/test_seq2seq.py',
  'test_bad_input.py::test_processes',
  'test_bad_input.py::test_the_same_command_again_is_well',
  'test_bench.py',
  'test_captioned.py',
  'test_commands.py::test_commands_run_in_their_order',
  'test_configs.py::test_tiny_trains',
  'test_docs.py::test_python_of_the_table_page',
  'test_docs.py::test_the_notebook_runs',
  'test_hostile.py',
  'test_images.py',
  'test_language.py',
  'test_package.py',
  'test_speech.py::test_a_run',
  'test_speech.py::test_predictions_of_a_folder',
  'test_sweep.py::test_a_pruned_trial_stops_and_a_failing_one_is_recorded',
  'test_sweep.py::test_a_sweep_resumes',
  'train/',
)
COMPILE = ('compress/test_accelerators.py', 'plan/test_compile.py', 'plan/test_placement.py')
LIBRARIES = ('torch', 'transformers', 'librosa', 'jiwer', 'sacrebleu')


def pytest_collection_modifyitems(items):
  """Puts every test into its group: compile, reference, slow; quick is what remains."""
  for item in items:
    name = item.nodeid.removeprefix('tests/')
    groups = [
      ('compile', name.startswith(COMPILE)),
      ('reference', compares_with_a_library(item)),
      ('slow', name.startswith(SLOW)),
    ]
    marks = [mark for mark, there in groups if there] or ['quick']
    for mark in marks:
      item.add_marker(mark)
  if 'PYTEST_XDIST_WORKER' in os.environ:  # long files begin: no worker waits for another's last
    long = {item.path for item in items if not item.get_closest_marker('quick')}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish():
  """Leaves the modules out of every collection of garbage, and collects less often."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


body_of = functools.cache(inspect.getsource)  # of a test, which may have many cases


def compares_with_a_library(item) -> bool:
  """Whether a test needs a library of `LIBRARIES`: by its module, its fixtures or its body."""
  body = body_of(item.function)
  return (
    any(hasattr(item.module, library) for library in LIBRARIES)
    or bool({'torch', 'reference'} & set(item.fixturenames))
    or any(f"importorskip('{library}" in body for library in LIBRARIES)
  )


@pytest.fixture(autouse=True)
def programs():
  """Undoes what a run in this process decides about the cache of all tests."""
  yield
  for word, value in PROGRAMS.items():
    jax.config.update(word, value)


@pytest.fixture(scope='module')
def short_library():
  """A twelfth of the default text, of which tokenizers learn and a tenth is evaluated."""
  from bmx.data.text import chat, documents

  found = documents.library_files()[::12]
  with pytest.MonkeyPatch.context() as patch:
    for module in (documents, chat):
      patch.setattr(module, 'library_files', lambda: found)
    documents._kept.cache_clear()
    yield
  documents._kept.cache_clear()


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch', reason='the extra `reference` is not installed')


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """The folder of real data that some tests read; they are skipped where it is not there."""
  folder = os.environ.get('BMX_TEST_DATA', '')
  if not folder or not pathlib.Path(folder).is_dir():
    pytest.skip('BMX_TEST_DATA names no folder')
  return pathlib.Path(folder)


@pytest.fixture(scope='session')
def gcs():
  """An object store on loopback that every gs:// of this process and its children names."""
  pytest.importorskip('gcsfs', reason='the extra `gcs` is not installed')
  from tests import objectstore

  with objectstore.serve() as store, pytest.MonkeyPatch.context() as patch:
    for key, value in objectstore.environment(store.address).items():
      patch.setenv(key, value)
    fsspec = pytest.importorskip('fsspec.config')
    patch.setitem(fsspec.conf, 'gcs', {'token': 'anon'})
    yield store


@contextlib.contextmanager
def own_logging():
  """`main` takes over the logger of the process."""
  log = logging.getLogger('bmx')
  former = list(log.handlers), log.level, log.propagate
  try:
    yield
  finally:
    log.handlers[:], log.level, log.propagate = former


@pytest.fixture
def command(capsys, monkeypatch):
  """Runs `bmx.main` in this process, on one device -> CompletedProcess."""
  from bmx.main import main

  monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
  monkeypatch.setenv('XDG_CACHE_HOME', str(CACHE))

  def run(*arguments):
    capsys.readouterr()
    with own_logging():
      try:
        code = main([*map(str, arguments)])
      except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, said.out, said.err)

  return run


@pytest.fixture
def bmx():
  """Runs `python -m bmx.main` -> CompletedProcess, on one device by default."""

  def run(*arguments, devices=1, env=None, cwd=ROOT, timeout=300):
    flags = FLAGS.replace('count=8', f'count={devices}')
    full = {**os.environ, 'XLA_FLAGS': flags, **(env or {})}
    full.setdefault('XDG_CACHE_HOME', str(CACHE))
    return subprocess.run(
      [sys.executable, '-m', 'bmx.main', *map(str, arguments)],
      cwd=cwd, env=full, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip

  return run
