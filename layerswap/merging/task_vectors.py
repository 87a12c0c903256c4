"""Merges that are no vector of weights: task arithmetic and TIES, the baselines that need the base model.

A task vector is an expert minus its base. Task arithmetic (Ilharco et al., arXiv 2212.04089) adds the weighted task
vectors to the base. TIES (Yadav et al., arXiv 2306.01708) trims each to its largest elements, lets the vectors elect a
sign for every element, and adds the mean of those that agree with it.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from layerswap.errors import UserError
from layerswap.merging.plans import Plan, check_name, check_nonnegative

if TYPE_CHECKING:
    import torch

METHODS = ("task arithmetic", "ties")


@dataclass(frozen=True)
class TaskVectors:
    """One merge of two experts and their base. A plan, as ``Plan`` is one.

    Attributes:
        name: what figures and tables call it.
        method: one of METHODS.
        math: weight of the math expert's task vector, 0 or more.
        language: weight of the language expert's task vector, 0 or more.
        density: the fraction of each vector's elements, tensor by tensor, that TIES keeps, in (0, 1].
        scale: factor of what is added to the base, 0 or more (lambda in the papers).
        roles: the models that a merge under this plan needs.

    Raises:
        UserError: a field with any other value.
    """

    name: str
    method: str
    math: float = 1.0
    language: float = 1.0
    density: float = 1.0
    scale: float = 1.0
    roles: ClassVar[tuple[str, ...]] = ("math", "language", "base")

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        for field in ("math", "language", "density", "scale"):
            object.__setattr__(self, field, check_nonnegative(field, getattr(self, field)))
        if not 0 < self.density <= 1:
            raise UserError(f"density is {self.density!r}, expected a number above 0, at most 1")
        if self.method != "ties" and self.density != 1:
            raise UserError(f"density is {self.density!r}, but {self.method} keeps every element; expected 1")

    def weight(self, layer: int | None) -> None:
        """None: no layer is one expert's own, nor a mean of the two."""

    def check_depth(self, n_layers: int, location: str | Path) -> None:
        """Accepts models of any depth."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data; ``TaskVectors.from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TaskVectors":
        """The plan of ``to_dict``'s data. UserError for missing or unknown fields and for bad values."""
        if not {"name", "method"} <= set(data) <= {field.name for field in fields(cls)}:
            names = "name, method and, as needed, math, language, density and scale"
            raise UserError(f"a plan of task vectors has the fields {names}, found {str(data)[:300]}")
        return cls(**data)

    def combine(self, math: "torch.Tensor", language: "torch.Tensor", base: "torch.Tensor") -> "torch.Tensor":
        """The merged tensor.

        Args:
            math: a tensor of the math expert, of any shape.
            language: the language expert's, of the same dtype and shape.
            base: the base model's, of the same dtype and shape.

        Returns:
            A tensor of that dtype and shape, calculated in float32 (float64 for float64 tensors) and rounded once.
        """
        import torch

        dtype = torch.promote_types(base.dtype, torch.float32)
        start = base.to(dtype)
        vectors = [math.to(dtype) - start, language.to(dtype) - start]
        if self.method == "ties":
            vectors = [trim(vector, self.density) for vector in vectors]
        vectors = [self.math * vectors[0], self.language * vectors[1]]
        merged = vectors[0] + vectors[1]
        if self.method == "ties":
            sign = torch.where(merged >= 0, 1.0, -1.0)  # of a draw, and where all is trimmed, the positive sign
            agree = [vector.sign() == sign for vector in vectors]
            merged = vectors[0] * agree[0] + vectors[1] * agree[1]
            total = self.math * agree[0].to(dtype) + self.language * agree[1].to(dtype)
            merged /= torch.where(total == 0, 1.0, total)
        return (start + self.scale * merged).to(base.dtype)


MergePlan = Plan | TaskVectors  # the two kinds of plan that a merge can follow


def trim(vector: "torch.Tensor", density: float) -> "torch.Tensor":
    """The vector with all but the largest ``density`` of its elements set to 0; what equals the smallest kept stays."""
    n_kept = max(1, int(density * vector.numel()))
    if n_kept >= vector.numel():
        return vector
    magnitude = vector.abs()
    return vector * (magnitude >= magnitude.flatten().kthvalue(vector.numel() - n_kept + 1).values)
