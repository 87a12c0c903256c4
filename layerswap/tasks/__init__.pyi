from .base import Problem as Problem, Task as Task
from .extraction import Extraction as Extraction, extract as extract
from .mgsm import MGSM as MGSM
from .msvamp import MSVAMP as MSVAMP
