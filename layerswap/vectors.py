"""Merges that are no vector of weights: task arithmetic and TIES, the baselines that need the base model.

A task vector is an expert minus its base. Task arithmetic (Ilharco et al., arXiv 2212.04089) adds the weighted task
vectors to the base. TIES (Yadav et al., arXiv 2306.01708) first trims each to its largest elements, then lets the
vectors elect a sign for every element, and adds the mean of those that agree with it.
"""

from dataclasses import asdict, dataclass
from numbers import Real

from layerswap.paths import UserError
from layerswap.plan import check_name

METHODS = ("task arithmetic", "ties")


@dataclass(frozen=True)
class TaskVectors:
    """One merge of two experts and their base.

    name: what figures and tables call it. method: one of METHODS. math, language: weights of the task vectors. density:
    the share of each vector's elements, tensor by tensor, that TIES keeps, in (0, 1]. scale: factor of what is added to
    the base. UserError for anything else.
    """

    name: str
    method: str
    math: float = 1.0
    language: float = 1.0
    density: float = 1.0
    scale: float = 1.0
    roles = ("math", "language", "base")  # the models that a merge under this plan needs

    def __post_init__(self):
        check_name(self.name)
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        for field in ("math", "language", "density", "scale"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1e300:
                raise UserError(f"{field} is {value!r}, expected a number, 0 or more")
            object.__setattr__(self, field, float(value))
        if not 0 < self.density <= 1:
            raise UserError(f"density is {self.density!r}, expected a number above 0, at most 1")
        if self.method != "ties" and self.density != 1:
            raise UserError(f"density is {self.density!r}, but {self.method} keeps every element; expected 1")

    def weight(self, tensor_name):
        """None: no tensor is an expert's own, nor a mean of the two."""

    def check_depth(self, n_layers, folder):
        """Any depth will do."""

    def to_dict(self):
        """The plan as JSON-able data; ``TaskVectors.from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data):
        """The plan of ``to_dict``'s data. UserError for missing or unknown fields and for bad values."""
        try:
            return cls(**data)
        except TypeError as error:
            raise UserError(f"a plan of task vectors: {str(error).removeprefix('TaskVectors.')}") from None

    def combine(self, math, language, base):
        """The merged tensor, of the dtype and shape of the three; float32 inside, float64 for float64 tensors."""
        import torch

        inside = torch.promote_types(base.dtype, torch.float32)
        start = base.to(inside)
        deltas = [math.to(inside) - start, language.to(inside) - start]
        if self.method == "ties":
            deltas = [trim(delta, self.density) for delta in deltas]
        weighted = [weight * delta for weight, delta in zip((self.math, self.language), deltas, strict=True)]
        added = weighted[0] + weighted[1]
        if self.method == "ties":
            elected = torch.where(added >= 0, 1.0, -1.0)  # of a draw, and where all is trimmed, the positive sign
            agree = [each.sign() == elected for each in weighted]
            added = weighted[0] * agree[0] + weighted[1] * agree[1]
            total = self.math * agree[0].to(inside) + self.language * agree[1].to(inside)
            added /= torch.where(total == 0, 1.0, total)
        return (start + self.scale * added).to(base.dtype)


def trim(delta, density):
    """``delta`` with all but the largest ``density`` of its elements set to 0; ties with the smallest kept one stay."""
    kept = max(1, int(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    size = delta.abs()
    return delta * (size >= size.flatten().kthvalue(delta.numel() - kept + 1).values)
