"""The public names of opd_ray for type checkers: they are imported when first used."""

from opd_ray import errors as errors
from opd_ray.api import EvaluationResult as EvaluationResult
from opd_ray.api import RunPaths as RunPaths
from opd_ray.api import RunResult as RunResult
from opd_ray.api import evaluate as evaluate
from opd_ray.api import read_run as read_run
from opd_ray.api import train as train
from opd_ray.config.load import load_config as load_config
from opd_ray.config.schema import Config as Config
from opd_ray.divergence import HiddenTarget as HiddenTarget
from opd_ray.divergence import LogitsTarget as LogitsTarget
from opd_ray.divergence import SampledTarget as SampledTarget
from opd_ray.divergence import TopKTarget as TopKTarget
from opd_ray.divergence import exact_scores as exact_scores
from opd_ray.divergence import linear_divergence as linear_divergence
from opd_ray.tip import Selection as Selection
from opd_ray.tip import TipFilter as TipFilter
from opd_ray.tip import TipSettings as TipSettings
from opd_ray.tip import TokenScores as TokenScores
from opd_ray.tip import selection_rule as selection_rule

__version__: str
