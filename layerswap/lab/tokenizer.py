"""The lab's tokenizer: English and the words of sentences are whole, all other words are spelled in pieces."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
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


def merge_pieces(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield the pieces that words are spelled in, sorted: characters first, then after each merge of two neighbours.

    Byte-pair encoding (Sennrich et al. 2016): the pair that is found most often becomes one piece, as long as one is
    found twice. Of equal pairs the first in alphabetical order; the trainers of ``tokenizers`` choose one by chance.
    """
    spellings = [[word[0], *(CONTINUES + character for character in word[1:])] for word in words]
    while True:
        yield sorted({piece for spelling in spellings for piece in spelling})
        pairs = Counter(pair for spelling in spellings for pair in pairwise(spelling))
        (first, second), count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            return
        for spelling in spellings:
            for i in reversed(range(len(spelling) - 1)):
                if spelling[i : i + 2] == [first, second]:
                    spelling[i : i + 2] = [first + second.removeprefix(CONTINUES)]


@cache
def learn_pieces(language: str) -> list[str]:
    """The pieces in which words of a language are spelled, learned from the words that the base model meets.

    As many merges are made as leave every held-out word spelled in pieces of known ones, so that no word has vectors of
    its own that were never trained.

    Raises:
        UserError: a held-out word has a character that no known word has in such a place.
    """
    met_words, held_out = lexicon_words(language, met=True), lexicon_words(language, met=False)
    best: list[str] = []
    for pieces in merge_pieces(met_words):
        tokenizer = word_piece_tokenizer([UNKNOWN, *pieces])
        known_pieces = {piece for encoding in tokenizer.encode_batch(met_words) for piece in encoding.tokens}
        encodings = tokenizer.encode_batch(held_out)
        unspelled = [
            word for word, encoding in zip(held_out, encodings, strict=True) if not set(encoding.tokens) <= known_pieces
        ]
        if not unspelled and UNKNOWN not in known_pieces:
            best = sorted(known_pieces)
        elif not best:
            raise UserError(f"{language}.yml: {unspelled[0]!r} has a character where no word known to the base has it")
    return best


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
