"""Where an expert moved away from its base: layer by layer, matrix by matrix, and third by third."""

from dataclasses import replace
from math import prod

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from layerswap import checkpoint
from layerswap.blend import MIXED, widened
from layerswap.paths import UserError
from layerswap.plan import layer_index

MATRICES = ["q", "k", "v", "o", "gate", "up", "down", "norm", "outside"]
THIRDS = ["bottom", "middle", "top"]
BLOCK = 1 << 17  # numbers of a tensor compared at once: no more than a piece of any dtype


def change(base, expert):
    """How far an expert moved: a frame with columns layer, matrix, n, mean_absolute and relative.

    matrix: q, k, v, o, gate, up, down (with their biases), norm (all norms of a layer), outside (embeddings, final
    norm, head; layer -1), or a module's own name (qkv_proj). n: numbers. relative is ||expert - base|| / ||base||
    (Frobenius norms). Sums in float64 over blocks of the two files, which are neither loaded nor mapped: memory does
    not grow with the model. UserError if the two have not the same tensors and shapes, or other numbers than
    floating-point ones.
    """
    before, after, rows = checkpoint.read_header(base), checkpoint.read_header(expert), []
    for name in sorted(before.keys() | after.keys()):
        shapes = [header[name].shape if name in header else None for header in (before, after)]
        if shapes[0] != shapes[1]:
            raise UserError(f"tensor {name}: shape {shapes[0]} in {base}, {shapes[1]} in {expert}; expected the same")
        layer, words = layer_index(name), name.replace("_proj", "").split(".")
        own = "norm" if "norm" in name or len(words) < 2 else words[-2]
        matrix = "outside" if layer is None else next((m for m in MATRICES if m in words), own)
        sums = np.zeros(4)
        for old, new in zip(blocks(before[name]), blocks(after[name]), strict=True):
            moved = new - old
            sums += old.size, np.abs(moved).sum(), moved @ moved, old @ old
        rows.append((-1 if layer is None else layer, matrix, *sums))
    frame = pd.DataFrame(rows, columns=["layer", "matrix", "n", "absolute", "moved", "norm"])
    kinds = [*MATRICES[:-2], *sorted({*frame.matrix} - {*MATRICES}), *MATRICES[-2:]]
    frame["matrix"] = pd.Categorical(frame.matrix, kinds)  # so that rows come in this order
    frame = frame.groupby(["layer", "matrix"], observed=True).sum().reset_index()
    frame["mean_absolute"], frame["relative"] = frame.absolute / frame.n, (frame.moved / frame.norm) ** 0.5
    return frame[["layer", "matrix", "n", "mean_absolute", "relative"]].astype({"matrix": str, "n": int})


def blocks(tensor):
    """A tensor of a file as float64 blocks of BLOCK numbers."""
    if tensor.dtype not in MIXED:
        expected = f"expected one of {', '.join(MIXED)}"
        raise UserError(f"{tensor.file}: {tensor.dtype} numbers have no change to measure, {expected}")
    size, n = checkpoint.BYTES[tensor.dtype], prod(tensor.shape)
    for start in range(0, n, BLOCK):
        place = replace(tensor, start=tensor.start + size * start, end=tensor.start + size * min(start + BLOCK, n))
        for piece in checkpoint.read_pieces(place):
            yield widened(piece, tensor.dtype)


def thirds(frame):
    """Each third's share of the absolute change inside the layers, and of their weights: what no preference would be.

    Columns third, share, of_weights. frame: from ``change``.
    """
    inside = frame[frame.layer >= 0]
    third = inside.layer * len(THIRDS) // (inside.layer.max() + 1)
    sums = inside.assign(share=inside.mean_absolute * inside.n, of_weights=inside.n).groupby(third)
    shares = sums[["share", "of_weights"]].sum().reindex(range(len(THIRDS)), fill_value=0.0)
    return (shares / shares.sum()).assign(third=THIRDS)[["third", "share", "of_weights"]]


def compare_thirds(shares, expert, reference="math"):
    """Shares of an expert minus those of a reference, over seeds: one row a third.

    shares: columns expert, seed, third, share. Columns: expert, reference, third, n and n_reference (seeds),
    difference with low and high (Welch's 95 % interval of this third alone), p (Welch's t test) and p_holm (Holm over
    the three thirds); without two seeds of both there is a difference and no more.
    """
    rows = []
    for third in THIRDS:
        part = shares[shares.third == third]
        ours, theirs = (part[part.expert == name].share for name in (expert, reference))
        row = {"expert": expert, "reference": reference, "third": third, "n": len(ours), "n_reference": len(theirs),
               "difference": ours.mean() - theirs.mean(), "low": np.nan, "high": np.nan, "p": np.nan}  # fmt: skip
        if min(len(ours), len(theirs)) > 1:
            test = ttest_ind(ours, theirs, equal_var=False)
            row["low"], row["high"] = test.confidence_interval(0.95)
            row["p"] = test.pvalue
        rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = multipletests(table.p, method="holm")[1] if table.p.notna().all() else np.nan
    return table
