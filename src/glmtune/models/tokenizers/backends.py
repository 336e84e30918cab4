"""The `tokenizers` objects that cut text as SentencePiece and tiktoken do, with each generation's special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as backends

from glmtune.models.tokenizers.vocabulary_files import (
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
)

UNIGRAM, BPE = "Unigram", "BPE"
_SPACE = "▁"

CHATGLM2_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
CHATGLM3_SPECIALS = (*CHATGLM2_SPECIALS, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM4_SPECIALS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
_LATER_SPECIALS = (
    *("<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>"),
    *("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>"),
)
CONTROL_TOKENS = frozenset((*CHATGLM3_SPECIALS, *GLM4_SPECIALS, *_LATER_SPECIALS))
"""Special tokens behind the pieces of any published vocabulary, those of GLM-4's later releases too."""
CHATGLM_NAMED = ("<sop>", "<eop>", "<pad>", "[MASK]")
"""ChatGLM-6B's control pieces that a tokenizer's own attributes name (`bos_token` and so on)."""

# GLM-4's cutting rule: contractions, words, numbers of up to three digits, punctuation, line ends, spaces.
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LEADING_SPACES = 1024  # "all of them"
_LONGEST_BLANK = 80
"""ChatGLM-6B has one piece for each run of 2 to 80 spaces."""


def build_bpe_backend(model: SentencePieceModel, specials: tuple[str, ...]) -> Tokenizer:
    """SentencePiece BPE with an identity normaliser (ChatGLM2, ChatGLM3); `specials` get the ids behind the pieces.

    Every stretch between special tokens is cut on its own and gets its own dummy prefix, as in the official code.
    """
    vocabulary = {piece: index for index, piece in enumerate(model.pieces)}
    (unknown,) = [piece for piece, _ in model.of_type(UNKNOWN)]
    merges = order_bpe_merges(model.of_type(NORMAL))
    tokenizer = Tokenizer(
        backends.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([_make_dummy_prefix(), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            # Here white space is encoded in bytes. `ByteFallback` rejects a sequence of bytes if one character in it
            # is cut off, as in a reply that ends amid an emoji: line breaks must not be lost with it.
            *(decoders.Replace(f"<0x{ord(letter):02X}>", letter) for letter in "\t\n\r"),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    _add_specials(tokenizer, [unknown, *model.control, *specials])
    _set_post_processor(tokenizer, "[gMASK] sop $A", "[gMASK] sop $A $B </s>")
    return tokenizer


def _make_dummy_prefix() -> normalizers.Normalizer:
    """A space in front of any text that is not empty; it has the offsets of the first letter.

    So a mask by letters, such as that of the chat templates' `{% generation %}`, covers the prefix where it stays a
    token of its own. Only `Replace` may follow it: the normalisers that rewrite a whole text panic on it.
    """
    return normalizers.Prepend(_SPACE)


def order_bpe_merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best score of the result first.

    SentencePiece joins whichever neighbours make the piece of the highest score. A fast tokenizer wants a ranked list
    of pairs instead; ranked by the score of what they make, both choose alike.

    Args:
        pieces: (piece, score) of the ordinary pieces. Byte, control and unknown pieces are never joined from letters.
    """
    vocabulary = {piece for piece, _ in pieces}
    merges: list[tuple[str, str]] = []
    for piece, _ in sorted(pieces, key=lambda row: -row[1]):
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    return merges


def build_unigram_backend(model: SentencePieceModel, image_tokens: int = 0) -> Tokenizer:
    """SentencePiece Unigram with its own normaliser (ChatGLM-6B), every id shifted by `image_tokens`.

    In a run of one repeated letter, cuts of equal score may come in another order than SentencePiece's, which adds
    its scores in single precision; the pieces are the same.
    """
    # A raw space never survives the normaliser, so no text can match a placeholder.
    losing_score = _compute_losing_score(model)
    placeholders = [(f"<image {i}>", losing_score) for i in range(image_tokens)]
    tokenizer = Tokenizer(
        backends.Unigram(
            vocab=placeholders + _make_unigram_scores(model, losing_score),
            unk_id=image_tokens + model.types.index(UNKNOWN),
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = _make_unigram_normalizer(model)
    tokenizer.decoder = _make_unigram_decoder()
    unknown = model.pieces[model.types.index(UNKNOWN)]
    _add_specials(tokenizer, [unknown, *model.control])
    _set_post_processor(tokenizer, "$A [gMASK] <sop>", "$A [gMASK] <sop> $B <eop>")
    return tokenizer


def _make_unigram_scores(model: SentencePieceModel, losing_score: float) -> list[tuple[str, float]]:
    # SentencePiece gives a user-defined piece a score by its length in bytes, at the rate of the best ordinary one.
    best = max(score for _, score in model.of_type(NORMAL))
    scored = []
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        if kind == USER_DEFINED:
            score = len(piece.encode()) * best - 0.1
        elif kind != NORMAL:
            score = losing_score
        scored.append((piece, score))
    return scored


def _compute_losing_score(model: SentencePieceModel) -> float:
    """A score that loses against any other cut of the same text.

    SentencePiece keeps control, byte and unknown pieces out of its trie; a fast tokenizer has one trie for all. It
    also scores an unknown letter 10 below the worst score here, which is harmless as long as each letter of a longer
    piece is a piece itself: then the unknown letters of a text are the same in every cut. The number stays small
    enough to leave double precision for the real scores.
    """
    longest = max(len(piece) for piece in model.pieces)
    worst = min(score for _, score in model.of_type(NORMAL))
    return (worst - 10.0) * (longest + 1)


def _make_unigram_normalizer(model: SentencePieceModel) -> normalizers.Normalizer:
    # The official code writes white space as pieces before SentencePiece sees the text, longest run first.
    blanks = [normalizers.Replace(" " * n, _name_blank(n)) for n in range(_LONGEST_BLANK, 1, -1)]
    return normalizers.Sequence(
        [
            normalizers.Replace("\n", "<n>"),
            normalizers.Replace("\t", "<|tab|>"),
            *blanks,
            *_make_charsmap_normalizers(model.charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"\A "), ""),
            _make_dummy_prefix(),
            normalizers.Replace(" ", _SPACE),
            # After the prefix: a text of nothing but spaces ends up empty, and a typed "▁" counts as a space.
            normalizers.Replace(Regex(f"{_SPACE}+\\z"), ""),
        ]
    )


def _make_charsmap_normalizers(rules: bytes) -> list[normalizers.Normalizer]:
    """SentencePiece's compiled rules, with the letters that are written in several code points put together.

    `Precompiled` looks up a complete grapheme if it is short, drops what the rule does not cover, and takes a long one
    apart: "，" under a combining stroke loses the stroke, a kana and its voicing mark stay two. So it sees every code
    point alone (a control character, which the rules delete, keeps marks off their letters), and composition happens
    before it, for letters that came apart, and after it, for those that its own rules leave apart (half-width kana).
    Marks in another than the canonical order, which no keyboard or editor writes, may still differ.
    """
    return [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"(?<=[\s\S])(?=\p{M})"), "\x01"),
        normalizers.Precompiled(rules),
        normalizers.NFC(),
    ]


def _make_unigram_decoder() -> decoders.Decoder:
    blanks = [decoders.Replace(_name_blank(n), " " * n) for n in range(_LONGEST_BLANK, 1, -1)]
    return decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            # A model that collapses spaces shows none at the start of a text, however many pieces begin with one.
            # Before the blanks: those stay.
            decoders.Strip(content=" ", left=_LEADING_SPACES, right=0),
            decoders.Replace("<n>", "\n"),
            decoders.Replace("<|tab|>", "\t"),
            *blanks,
        ]
    )


def _name_blank(length: int) -> str:
    return f"<|blank_{length}|>"


def build_tiktoken_backend(ranks: dict[bytes, int]) -> Tokenizer:
    """tiktoken's byte-level BPE (GLM-4, original layout)."""
    letters = _list_byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        vocabulary = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [(spell(left), spell(right)) for left, right in vocabulary]
    # ignore_merges: tiktoken too takes a complete word that is a token, without merging it from bytes.
    tokenizer = Tokenizer(
        backends.BPE(vocab={spell(token): rank for token, rank in ranks.items()}, merges=merges, ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_specials(tokenizer, list(GLM4_SPECIALS))
    _set_post_processor(tokenizer, "[gMASK] <sop> $A", "[gMASK] <sop> $A $B <|endoftext|>")
    return tokenizer


def _list_byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _add_specials(tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Mark `tokens` as special: found in text unless `split_special_tokens`, left out by `skip_special_tokens`.

    `sop` and `eop` match as complete words only, or "sophisticated" would be split.
    """
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, single_word=token.isalpha()) for token in tokens]
    )


def _set_post_processor(tokenizer: Tokenizer, single: str, pair: str) -> None:
    """What `add_special_tokens=True` puts around one text and around two."""
    names = {name for name in f"{single} {pair}".split() if not name.startswith("$")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(names)],
    )
