from .pretrain import make_base as make_base
from .task import LabTask as LabTask
from .text import text_rows as text_rows
from .tokenizer import build_tokenizer as build_tokenizer
from .world import (
    BASE as BASE,
    LANGUAGES as LANGUAGES,
    load_language as load_language,
    make_problems as make_problems,
    render_prompt as render_prompt,
)
