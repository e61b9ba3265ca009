"""Config -> Experiment: assembles the parts of a run and decides nothing."""

from bmx.experiment.build import build
from bmx.experiment.data import fitted_of, input_data
from bmx.experiment.instances import Column, Instances

__all__ = ['Column', 'Instances', 'build', 'fitted_of', 'input_data']
