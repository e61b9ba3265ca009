"""Chips as data: peaks, memory, links, power, each with the page it was read from.

No price is listed: none could be read from a page of a vendor. Prices are words of the config.
"""

import dataclasses
import re

READ = '2026-11-28'  # date on which the pages below were read
TPU = 'docs.cloud.google.com/tpu/docs/'
HOPPER = 'glennklockwood.com/garden/processors/h100'
XLA = 'github.com/openxla/xla, xla/backends/gpu/target_config/specs/'


# Family -> share of the bound that published trainings reach, as `experiments/plan/fit.py` fits it.
EFFICIENCY = {'h100': 0.412, 'h200': 0.412, 'v5p': 0.635, 'v6e': 0.436}
# Without a published point: the mean of the vendor's, not fitted; of a CPU a guess, until a plan
# has run the step.
ASSUMED = {'v4': 0.526, 'v5e': 0.526, 'tpu7x': 0.526, 'l4': 0.412, 'a10g': 0.412, 'a100': 0.412,
           'b200': 0.412, 'cpu': 0.3}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one jax device, dense, without sparsity.

  Attributes:
    flops: bfloat16 FLOP/s.
    memory: bytes.
    bandwidth: of the memory, bytes/s.
    link: of the fast network (ICI, NVLink, PCIe), bytes/s that a device receives at most.
    network: between slices or nodes (DCN, InfiniBand), bytes/s that a device receives;
      0 if unpublished.
    power: watts of the board, for each device; 0 if unpublished.
    usable: bytes that the compiler or the runtime leaves to a program.
    float32: FLOP/s of float32 products at jax's default precision (TPU: bfloat16 operands;
      NVIDIA: TF32).
    node: devices that share the fast network; 0 is a whole slice.
    family: name of the group whose measured efficiency it shares.
    page: source of the figures, read on `READ` unless the page has its own date.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float = 0.0
  network: float = 0.0
  power: float = 0.0
  usable: float = 0.0
  float32: float = 0.0
  node: int = 0
  family: str = ''
  page: str = ''

  def peak(self, dtype: str) -> float:
    """Returns the FLOP/s of products in a dtype of the config."""
    return self.flops if dtype in ('bfloat16', 'float16') else self.float32 or self.flops

  @property
  def efficiency(self) -> float:
    """Share of the bound that trainings likely reach."""
    return (EFFICIENCY | ASSUMED)[self.family]


GIB = 2**30
# `link` is half of a bidirectional figure. `network` of GPUs: one adapter of 200 (A100) or 400
# Gbit/s (H100, H200, B200) each, assumed. `usable` of TPUs is the limit in libtpu's message; jax
# takes three quarters of a GPU by default, and XLA_PYTHON_CLIENT_MEM_FRACTION changes that.
GPU_SHARE = 0.75
V4 = Chip(275e12, 32 * GIB, 1200e9, 300e9, 0.0, 192, 30.75 * GIB, family='v4',
          page=TPU + 'v4; links: Jouppi et al. 2023, six of 50 GB/s in each direction')  # fmt: skip
V5E = Chip(197e12, 16 * GIB, 819e9, 200e9, 3.1e9, 0, 15.75 * GIB, family='v5e', page=TPU + 'v5e')
V5P = Chip(459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, 0, 95.74 * GIB, family='v5p', page=TPU + 'v5p')
V6E = Chip(918e12, 32 * GIB, 1638e9, 400e9, 12.5e9, 0, 31.25 * GIB, family='v6e', page=TPU + 'v6e')
TPU7X = Chip(1153.5e12, 96 * GIB, 3690e9, 300e9, 6.25e9, 0, 94.75 * GIB, family='tpu7x',
             page=TPU + 'tpu7x; half a chip, which jax shows as two devices')  # fmt: skip
L4 = Chip(121e12, 24e9, 300e9, 32e9, 12.5e9, 72, GPU_SHARE * 24e9, 60e12, 1, 'l4',
          'hmc-tech.com/gpu/nvidia-l4-vs-nvidia-a100-40gb; peak: data sheet, not read')  # fmt: skip
A10G = Chip(70e12, 24e9, 600e9, 32e9, 12.5e9, 300, GPU_SHARE * 24e9, 35e12, 1, 'a10g',
            'baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference; peak and power: data '
            'sheet, not read')  # fmt: skip
A100_40 = Chip(312e12, 42.3e9, 1555e9, 300e9, 25e9, 400, GPU_SHARE * 42.3e9, 156e12, 8, 'a100',
               'hmc-tech.com/gpu/nvidia-l4-vs-nvidia-a100-40gb; links and power: data sheet, not '
               'read; memory: ' + XLA + 'a100_sxm_40.txtpb')  # fmt: skip
A100_80 = dataclasses.replace(
  A100_40, memory=85.1e9, bandwidth=2039e9, usable=GPU_SHARE * 85.1e9,
  page=A100_40.page.replace('sxm_40', 'sxm_80'))  # fmt: skip
H100 = Chip(989e12, 84.9e9, 3352e9, 450e9, 50e9, 700, GPU_SHARE * 84.9e9, 494e12, 8, 'h100',
            f'{HOPPER}; memory: {XLA}h100_sxm.txtpb')  # fmt: skip
H200 = Chip(989e12, 150e9, 4800e9, 450e9, 50e9, 700, GPU_SHARE * 150e9, 494e12, 8, 'h200',
            f'{HOPPER}; memory: as a device says')  # fmt: skip
B200 = Chip(2250e12, 191.5e9, 7672e9, 900e9, 50e9, 1000, GPU_SHARE * 191.5e9, 1100e12, 8, 'b200',
            f'glennklockwood.com/garden/processors/B200, HGX; memory: {XLA}b200.txtpb')  # fmt: skip

# Keyed by what `jax.Device.device_kind` says, in lower case; the first key it contains wins.
CHIPS: dict[str, Chip] = {
  'tpu v5 lite': V5E, 'tpu v5e': V5E, 'tpu v5p': V5P, 'tpu v5': V5P, 'tpu v6': V6E, 'tpu7x': TPU7X,
  'tpu v4': V4, 'b200': B200, 'h200': H200, 'h100': H100, 'a100-sxm4-40': A100_40,
  'a100-pcie-40': A100_40, 'a100': A100_80, 'a10g': A10G, 'l4': L4,
}  # fmt: skip

# Keyed by the kind of a topology.
KINDS: dict[str, Chip] = {
  'v4': V4, 'v5e': V5E, 'v5p': V5P, 'v6e': V6E, 'tpu7x': TPU7X, 'l4': L4, 'a10g': A10G,
  'a100_40': A100_40, 'a100_80': A100_80, 'h100': H100, 'h200': H200, 'b200': B200,
}  # fmt: skip


def named(chip: Chip | None) -> str:
  """Returns the kind of a chip, as topologies and prices name it; '' for None."""
  return next((k for k, c in KINDS.items() if c is chip), '')


def find(kind: str) -> Chip | None:
  """Returns the chip of a `device_kind`; None if its peak is unknown (a CPU).

  >>> find('NVIDIA L40S'), find('NVIDIA L4') is L4, find('NVIDIA A100-SXM4-40GB') is A100_40
  (None, True, True)
  """
  kind = kind.lower()
  return next((c for k, c in CHIPS.items() if re.search(rf'{re.escape(k)}(?![0-9]|l?s\b)', kind)),
              None)  # fmt: skip
