"""Where an expert moved away from its base: layer by layer, matrix by matrix, and third by third."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from layerswap.checkpoints.compatibility import mergeable_headers
from layerswap.checkpoints.layers import decoder_layers
from layerswap.checkpoints.safetensors import (
    DTYPE_BYTES,
    FLOAT_DTYPES,
    StoredTensor,
    read_chunks,
    tensor_digest,
    to_float64,
)
from layerswap.errors import UserError

MATRICES = ["q", "k", "v", "o", "gate", "up", "down", "norm", "non_layer"]
THIRDS = ["bottom", "middle", "top"]
BLOCK_NUMBERS = 1 << 17  # numbers of a tensor compared at once: no more than a chunk of any dtype


def weight_change(base: str | Path, expert: str | Path) -> pd.DataFrame:
    """How far an expert moved from its base, for each layer and matrix.

    Sums in float64 over blocks of the two files, which are neither loaded nor mapped: memory does not grow with the
    model.

    Args:
        base: the base model's folder.
        expert: the expert's folder.

    Returns:
        Columns ``layer`` (-1: non-layer tensors, that is embeddings, final norm and head, and those of modules beside
        the text decoder); ``matrix`` (q, k, v, o, gate, up, down with their biases, norm for all norms of a layer,
        non_layer, the name of a module beside the text decoder such as vision_tower, or a module's own name such as
        qkv_proj); ``n``, how many numbers; ``mean_absolute``, the mean of |expert - base|; ``relative``,
        ||expert - base|| / ||base|| in Frobenius norms.

    Raises:
        UserError: the two have not the same tensors and shapes, or numbers that are not floating-point; the layers of
            the base are not found.
    """
    before, after = mergeable_headers([Path(base), Path(expert)])
    layers = decoder_layers(base)
    rows: list[tuple[Any, ...]] = []
    for name in sorted(before.keys() | after.keys()):
        shapes = [header[name].shape if name in header else None for header in (before, after)]
        if shapes[0] != shapes[1]:
            raise UserError(f"tensor {name}: shape {shapes[0]} in {base}, {shapes[1]} in {expert}; expected the same")
        layer, words = layers.index(name), name.replace("_proj", "").split(".")
        module = "norm" if "norm" in name or len(words) < 2 else words[-2]
        if layer is not None:
            matrix = next((matrix for matrix in MATRICES if matrix in words), module)
        else:
            matrix = "non_layer" if layers.is_text(name) else layers.module(name)
        if before[name].dtype not in FLOAT_DTYPES and tensor_digest(before[name]) == tensor_digest(after[name]):
            continue  # a table of indices, say
        sums = np.zeros(4)  # numbers, |change|, change ** 2, base ** 2
        for old, new in zip(tensor_blocks(before[name]), tensor_blocks(after[name]), strict=True):
            difference = new - old
            sums += old.size, np.abs(difference).sum(), difference @ difference, old @ old
        rows.append((-1 if layer is None else layer, matrix, *sums))
    frame = pd.DataFrame(rows, columns=["layer", "matrix", "n", "absolute", "squared_change", "squared_base"])
    order = [*MATRICES[:-2], *sorted({*frame.matrix} - {*MATRICES}), *MATRICES[-2:]]
    frame["matrix"] = pd.Categorical(frame.matrix, order)  # so that rows come in this order
    frame = frame.groupby(["layer", "matrix"], observed=True).sum().reset_index()
    frame["mean_absolute"] = frame.absolute / frame.n
    frame["relative"] = (frame.squared_change / frame.squared_base) ** 0.5
    return frame[["layer", "matrix", "n", "mean_absolute", "relative"]].astype({"matrix": str, "n": int})


def tensor_blocks(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """A tensor of a file as flat float64 blocks of ``BLOCK_NUMBERS`` numbers."""
    if tensor.dtype not in FLOAT_DTYPES:
        expected = f"expected one of {', '.join(FLOAT_DTYPES)}"
        raise UserError(f"{tensor.file}: {tensor.dtype} numbers have no change to measure, {expected}")
    size, n = DTYPE_BYTES[tensor.dtype], prod(tensor.shape)
    for start in range(0, n, BLOCK_NUMBERS):
        end = min(start + BLOCK_NUMBERS, n)
        block = replace(tensor, start=tensor.start + size * start, end=tensor.start + size * end)
        for chunk in read_chunks(block):
            yield to_float64(chunk, tensor.dtype)


def thirds(frame: pd.DataFrame) -> pd.DataFrame:
    """Each third's share of the absolute change inside the layers.

    Args:
        frame: of one expert, from ``weight_change``.

    Returns:
        Columns ``third`` (bottom, middle, top), ``share`` of the change, ``of_weights``: the third's share of the
        weights, which is what no preference would give, and ``ratio`` of the two.
    """
    layers = frame[frame.layer >= 0]
    third = layers.layer * len(THIRDS) // (layers.layer.max() + 1)
    sums = layers.assign(share=layers.mean_absolute * layers.n, of_weights=layers.n).groupby(third)
    shares = sums[["share", "of_weights"]].sum().reindex(range(len(THIRDS)), fill_value=0.0)
    shares = (shares / shares.sum()).assign(third=THIRDS)
    shares["ratio"] = (shares.share / shares.of_weights).fillna(0.0)  # a third without layers, or nothing changed
    return shares[["third", "share", "of_weights", "ratio"]]


def compare_thirds(shares: pd.DataFrame, expert: str, reference: str = "math") -> pd.DataFrame:
    """Shares of an expert minus those of a reference, over seeds: one row a third.

    Args:
        shares: columns expert, seed, third, share.
        expert: a language, or another name in the column expert.
        reference: the name that it is compared with.

    Returns:
        Columns ``expert``, ``reference``, ``third``, ``n`` and ``n_reference`` (seeds), ``difference`` with ``low``
        and ``high`` (Welch's 95 % interval of this third alone), ``p`` (Welch's t test) and ``p_holm`` (Holm over the
        three thirds). All but the difference are missing where one of the two has a single seed.
    """
    rows = []
    for third in THIRDS:
        of_third = shares[shares.third == third]
        expert_shares, reference_shares = (of_third[of_third.expert == name].share for name in (expert, reference))
        row = {"expert": expert, "reference": reference, "third": third,
               "n": len(expert_shares), "n_reference": len(reference_shares),
               "difference": expert_shares.mean() - reference_shares.mean(),
               "low": np.nan, "high": np.nan, "p": np.nan}  # fmt: skip
        if min(len(expert_shares), len(reference_shares)) > 1:
            test = ttest_ind(expert_shares, reference_shares, equal_var=False)
            row["low"], row["high"] = test.confidence_interval(0.95)
            row["p"] = test.pvalue
        rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = multipletests(table.p, method="holm")[1] if table.p.notna().all() else np.nan
    return table
