"""What a figure compares and what is claimed of it, as data.

Experiments (``run.experiments``) make them, ``statistics.compare`` calculates them, the report prints the claims.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EXACT_MATCH, ANSWER_LOSS = "exact match", "answer loss"  # what is measured of an answer
AGREES, DISAGREES, OPEN = "agrees", "does not agree", "not contradicted"


@dataclass(frozen=True)
class Fact:
    """What the papers say, with its label (docs/labels.md).

    verdicts: what a clearly lower, an unclear and a clearly higher result says of it.
    """

    text: str
    verdicts: tuple[str, str, str]


@dataclass(frozen=True)
class Claim:
    """A row of FINDINGS.md.

    row: the contrast's name ("*" for any end). label: the text of its link; {} stands for the contrast's name.
    """

    row: str
    label: str
    measure: str = EXACT_MATCH
    fact: Fact | None = None


@dataclass(frozen=True)
class Comparison:
    """The contrasts of one figure, which are tested together.

    contrasts: name -> condition -> factor of a weighted sum of conditions.
    """

    figure: str
    contrasts: Mapping[str, Mapping[str, float]]
    claims: tuple[Claim, ...] = ()


def against(reference: str, conditions: Iterable[str]) -> dict[str, dict[str, float]]:
    """The contrasts of each condition minus a reference."""
    return {condition: {condition: 1.0, reference: -1.0} for condition in conditions if condition != reference}
