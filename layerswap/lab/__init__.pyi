from .pretrain import make_base as make_base
from .task import LabTask as LabTask
from .world import (
    BASE as BASE,
    LANGUAGES as LANGUAGES,
    arithmetic_rows as arithmetic_rows,
    build_tokenizer as build_tokenizer,
    has_unknown as has_unknown,
    load_language as load_language,
    make_problems as make_problems,
    math_rows as math_rows,
    render_prompt as render_prompt,
    text_rows as text_rows,
)
