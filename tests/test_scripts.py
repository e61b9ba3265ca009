"""The launcher's dry run: what it would run, on which workers."""

import subprocess

import pytest

from tests.conftest import ROOT

SCRIPT = str(ROOT / 'scripts/tpu_vm.sh')


def dry(*arguments):
  return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_create_and_install():
  made = dry('create', 'pod', 'us-east5-a', 'v5litepod-16').stdout
  assert made.startswith('gcloud compute tpus tpu-vm create pod --zone=us-east5-a')
  assert '--accelerator-type=v5litepod-16' in made
  lines = dry('install', 'pod', 'us-east5-a').stdout.splitlines()
  assert len(lines) == 2
  assert all('--worker=all' in line for line in lines)


def test_every_worker_gets_its_number():
  """The remote command, with a metadata server that says: worker 2 of 3."""
  text = dry('run', 'pod', 'zone', '--config=configs/llama_1b.py', '--workdir=/w').stdout
  remote = subprocess.run(
    ['bash', '-c', f'gcloud() {{ printf "%s" "${{@: -1}}"; }}; {text}'],
    capture_output=True, text=True, check=True,
  ).stdout.removeprefix('--command=')  # fmt: skip
  fake = """
curl() {
  case ${@: -1} in *endpoints) echo a:b:10.0.0.1,a:b:10.0.0.2,a:b:10.0.0.3;; *) echo 2;; esac
}
cd() { :; }
"""
  remote = remote.replace('.venv/bin/python', 'echo')
  said = subprocess.run(['bash', '-c', fake + remote], capture_output=True, text=True, check=True)
  assert said.stdout.strip() == (
    '-m bmx.main --processes=3 --process=2 --coordinator=10.0.0.1:9871 '
    '--config=configs/llama_1b.py --workdir=/w'
  )


@pytest.mark.parametrize('arguments', [[], ['run'], ['fly', 'pod', 'zone'], ['create', 'p', 'z']])
def test_mistakes(arguments):
  assert dry(*arguments).returncode != 0
