"""The lab's tokenizer: English and the words of sentences are whole, all other words are spelled in pieces."""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from layerswap.errors import UserError
from layerswap.lab.world import LANGUAGES, LARGEST_NUMBER, lexicon_words, whole_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

UNKNOWN = "<unk>"
CONTINUES = "~"  # begins a piece that goes on a word


def word_piece_tokenizer(vocabulary: Iterable[str]) -> "Tokenizer":
    """A tokenizer that spells each word, from its beginning on, in the longest pieces that there are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = {piece: i for i, piece in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUES))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=False)
    return tokenizer


@cache
def learn_pieces(language: str) -> list[str]:
    """The pieces in which words of a language are spelled, learned from the words that the base model meets.

    There are as many as leave every held-out word spelled in pieces of known ones, so that no word has vectors of its
    own that were never trained.

    Raises:
        UserError: a held-out word has a character that no known word has in such a place.
    """
    from tokenizers import trainers

    known, held_out = lexicon_words(language, met=True), lexicon_words(language, met=False)
    unspelled = [*known, *held_out]
    for n_pieces in range(200, 0, -5):
        tokenizer = word_piece_tokenizer([UNKNOWN])
        trainer = trainers.WordPieceTrainer(
            vocab_size=n_pieces, min_frequency=2, special_tokens=[UNKNOWN], continuing_subword_prefix=CONTINUES,
            show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator(known, trainer)
        pieces = sorted({piece for encoding in tokenizer.encode_batch(known) for piece in encoding.tokens})
        encodings = word_piece_tokenizer([UNKNOWN, *pieces]).encode_batch([*known, *held_out])
        unspelled = [word for word, encoding in zip([*known, *held_out], encodings) if UNKNOWN in encoding.tokens]
        if not unspelled:
            return pieces
    raise UserError(f"{language}.yml: {unspelled[0]!r} has a character where no word known to the base has it")


@cache
def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer of the world: marks, numbers, English and the words of sentences whole, other words in pieces."""
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", UNKNOWN, "<user>", "<ask>", "<text>", "<translate>", "<note>"]
    special += [f"<{language}>" for language in LANGUAGES]
    vocabulary = [*special, *(str(i) for i in range(LARGEST_NUMBER + 1)), "+", "-", "*", "=", ".", ":", "####"]
    for language in LANGUAGES:
        vocabulary += whole_words(language)
    for language in LANGUAGES[1:]:
        vocabulary += learn_pieces(language)
    tokenizer = word_piece_tokenizer(vocabulary)
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token=UNKNOWN, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
