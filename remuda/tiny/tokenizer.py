"""A small byte-level BPE tokenizer, learned here from a word list, with the special tokens of a model family."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from typing import Any

from remuda.models.tiny import ORDINARY_TOKENS, SpecialTokens

# How text is split before merging: words with one leading character, up to three digits, punctuation, white space.
_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what
all were we when your can said there use an each which she do how their if will up other about out many then them these
so some her would make like him into time has look two more write go see number no way could people my than first water
been call who oil its now find long down day did get come made may part over new sound take only little work know place
year live me back give most very after thing our just name good sentence man think say great where help through much
before line right too mean old any same tell boy follow came want show also around form three small set put end does
another well large must big even such because turn here why ask went men read need land different home us move try kind
hand picture again change off play spell air away animal house point page letter mother answer found study still learn
should world high every near add food between own below country plant last school father keep tree never start city
earth eye light thought head under story saw left late run while press close night real life few north open seem
together next white children begin got walk example ease paper group always music those both mark often until mile river
car feet care second book carry took science eat room friend began idea fish mountain stop once base hear horse cut sure
watch color face wood main enough plain girl usual young ready above ever red list though feel talk bird soon body dog
family direct pose leave song measure door product black short class wind question happen complete ship area half rock
order fire south problem piece told knew pass since top whole king space heard best hour better true during hundred five
remember step early hold west ground interest reach fast verb sing listen six table travel less morning ten simple
several vowel toward war lay against pattern slow center love person money serve appear road map rain rule govern pull
cold notice voice unit power town fine certain fly fall lead cry dark machine note wait plan figure star box noun field
rest correct able pound done beauty drive stood contain front teach week final gave green quick develop ocean warm free
minute strong special mind behind clear tail produce fact street inch multiply nothing course stay wheel full force blue
object decide surface deep moon island foot system busy test record boat common gold possible plane stead dry wonder
laugh thousand ago ran check game shape equate hot miss brought heat snow tire bring yes distant fill east paint
language
"""


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0-255 in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    code = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(code[byte]) for byte in range(256)]


@cache
def learn_merges(count: int) -> list[tuple[str, str]]:
    """The `count` most useful merges for the word list, frequent words counting more; ties go by spelling."""
    space = byte_alphabet()[ord(" ")]
    corpus: list[tuple[list[str], int]] = []
    for rank, word in enumerate(dict.fromkeys(_WORDS.split())):
        weight = 2 + 2000 // (rank + 10)
        corpus += [(list(space + word), 4 * weight), (list(word), weight), (list(space + word.capitalize()), weight)]
    counts: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = defaultdict(set)  # corpus entries in which a pair has occurred

    def count_pairs(entry: int, sign: int) -> None:
        symbols, weight = corpus[entry]
        for pair in pairwise(symbols):
            counts[pair] += sign * weight
            places[pair].add(entry)

    for entry in range(len(corpus)):
        count_pairs(entry, +1)
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for entry in list(places[best]):
            count_pairs(entry, -1)
            _merge(corpus[entry][0], best)
            count_pairs(entry, +1)
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> None:
    at = 0
    while at < len(symbols) - 1:
        if (symbols[at], symbols[at + 1]) == pair:
            symbols[at : at + 2] = ["".join(pair)]
        at += 1


def tokenizer_json(special: SpecialTokens) -> dict[str, Any]:
    """The content of tokenizer.json, as the `tokenizers` library reads it."""
    alphabet = sorted(byte_alphabet())
    merges = learn_merges(ORDINARY_TOKENS - len(alphabet))
    tokens = alphabet + ["".join(pair) for pair in merges]
    assert len(set(tokens)) == ORDINARY_TOKENS
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ORDINARY_TOKENS + i, "content": token, **flags, "special": token not in special.visible}
            for i, token in enumerate(special.names())
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": _begin_with(special.bos, special[special.bos]) if special.bos else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that writes `token` in front of every text."""
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
