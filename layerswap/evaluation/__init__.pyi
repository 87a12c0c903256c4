from .answers import AnswerCache as AnswerCache
from .engine import Generation as Generation, Loss as Loss, generate as generate, nll as nll, stream as stream
from .scoring import ScoredModel as ScoredModel, evaluate as evaluate
