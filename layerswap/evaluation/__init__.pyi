from .answers import AnswerCache as AnswerCache
from .engine import Generation as Generation, Loss as Loss, generate as generate, nll as nll, stream as stream
from .ranking import RANKING as RANKING, rank as rank
from .scoring import ScoredModel as ScoredModel, check_prompts as check_prompts, evaluate as evaluate
