"""Config -> Experiment: assembles the parts of a run and decides nothing."""

from bmx.experiment.build import build
from bmx.experiment.data import input_data

__all__ = ['build', 'input_data']
