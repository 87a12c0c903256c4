"""What the experts learned: their loss on held-out text of their own subject, beside the base's."""

from collections.abc import Mapping, Sequence

import pandas as pd

from layerswap.analysis.statistics import compare, paired
from layerswap.analysis.titles import language_name
from layerswap.experts.index import ExpertIndex
from layerswap.experts.training_data import Row, split_final_number
from layerswap.run.scores import held_out_losses


def held_out_differences(
    index: ExpertIndex, held_out: Mapping[str, Sequence[Row]], device: str = "cpu", dtype: str = "float32"
) -> pd.DataFrame:
    """Loss of each expert minus the base's (nats a token), paired by row, with 95 % intervals.

    Args:
        index: a profile's models; of several seeds the first counts.
        held_out: "math" or a language -> rows of its subject, as ``experts.held_out_rows`` gives them.
        device: "cpu" or "cuda".
        dtype: of the models, or "auto".

    Returns:
        The columns of ``analysis.paired``. ``language`` says what the text is: "English solutions", "number after its
        solution" (the final number alone, given the worked solution), "Swahili text".
    """
    losses: dict[str, list[pd.DataFrame]] = {}  # condition -> those of each text
    for expert, rows in held_out.items():
        condition, texts = "language expert", {f"{language_name(expert)} text": rows}
        if expert == "math":
            condition = "math expert"
            texts = {"English solutions": rows, "number after its solution": [split_final_number(row) for row in rows]}
        losses.setdefault(condition, []).extend(
            held_out_losses(index, {expert: rows_of_text}, device, dtype).assign(language=text)
            for text, rows_of_text in texts.items()
        )
    tables = [paired(pd.concat(frames), [condition], "base", "loss", pooled=False)
              for condition, frames in losses.items()]  # fmt: skip
    return pd.concat(tables) if tables else compare(pd.DataFrame(), {})
