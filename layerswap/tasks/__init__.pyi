from .base import Alternatives as Alternatives, Problem as Problem, Task as Task
from .extraction import Extraction as Extraction, extract as extract
from .mgsm import MGSM as MGSM
from .msvamp import MSVAMP as MSVAMP
from .one_step import OneStepMSVAMP as OneStepMSVAMP
