"""Text to token ids and back, by the checkpoint's own tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from penstock.base.errors import CheckpointError
from penstock.text.token_bytes import token_bytes

# Around the index of a text that was taken out of a prompt; Unicode noncharacters, so no valid text has them.
OPEN_MARK, CLOSE_MARK = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{OPEN_MARK}([0-9]+){CLOSE_MARK}")
_FORGED = re.compile(f"[{OPEN_MARK}{CLOSE_MARK}]")


class Tokenizer:
    """A checkpoint's tokenizer with its end tokens and special tokens. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        """Reads tokenizer.json, tokenizer_config.json, generation_config.json and config.json.

        Raises:
            CheckpointError: tokenizer.json is missing or broken.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{directory} lacks tokenizer.json (convert older tokenizer formats first)")
        try:
            self._encoder = RustTokenizer.from_file(str(path))
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._encoder.no_truncation()  # training leaves these in the file; a prompt must not be cut
        self._encoder.no_padding()
        _forget_words(self._encoder)
        self.config = read_json(directory / "tokenizer_config.json")
        added = self._encoder.get_added_tokens_decoder()
        self.added_tokens = {token.content: token_id for token_id, token in added.items()}
        """Tokens that are found in a text before it is split into others, special ones included."""
        self.special_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        self._literal_ids = self._spell_out(self.special_tokens)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special_ids = frozenset(self.special_tokens.values())
        self._is_byte_level = "ByteLevel" in repr(self._encoder.decoder)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.longest_token = max(map(len, self._encoder.get_vocab(with_added_tokens=True)), default=1)
        """Characters that one token covers at most."""
        self.end_token_ids = self._end_tokens(directory)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._encoder.get_vocab_size(with_added_tokens=True))

    def to_json(self) -> str:
        """All of it in the form of tokenizer.json."""
        return str(self._encoder.to_str())

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; special tokens written in it count as such.

        `add_special_tokens` puts those around it that the checkpoint wants around plain text (BOS, say).
        """
        return _encode(self._encoder, text, add_special_tokens)

    def encode_prompt(self, text: str, defused: Sequence[str]) -> list[int]:
        """Token ids of a rendered prompt in which marks stand for `defused` special tokens, by index.

        Those are encoded letter by letter, as text, so a user cannot forge the end of a turn.
        """
        pieces = _MARKED.split(text)
        ids = self.encode(pieces[0], add_special_tokens=False)
        for index, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            ids += self._literal_ids[defused[int(index)]]
            ids += self.encode(piece, add_special_tokens=False)
        return ids

    def defuse(self, text: str, defused: list[str]) -> str:
        """Takes special tokens out of user text: appends them to `defused`, leaves marks in their place."""
        text = _FORGED.sub("\ufffd", text)
        if self._special is None:
            return text

        def take(found: re.Match[str]) -> str:
            defused.append(found[0])
            return f"{OPEN_MARK}{len(defused) - 1}{CLOSE_MARK}"

        return self._special.sub(take, text)

    def num_added(self, *, is_pair: bool = False) -> int:
        """Special tokens that the checkpoint wants around a text, or around and between a pair of them."""
        return int(self._encoder.num_special_tokens_to_add(is_pair))

    def encode_start(self, text: str, limit: int) -> list[int]:
        """As :meth:`encode` with special tokens, but only so much of the text that there are `limit` in all.

        `limit` is at least :meth:`num_added`.
        """
        encoding = self._encoder.encode_batch_fast([text], add_special_tokens=False)[0]
        encoding.truncate(limit - self.num_added())
        return list(self._encoder.post_process(encoding, None, True).ids)

    def encode_pairs(
        self, first: str, seconds: Iterable[str], max_second: int | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """`first` with each of `seconds`, cut to `max_second` tokens: token ids, and the segment of each."""
        head = self._encoder.encode_batch_fast([first], add_special_tokens=False)[0]
        pairs = []
        for second in seconds:
            tail = self._encoder.encode_batch_fast([second], add_special_tokens=False)[0]
            if max_second is not None:
                tail.truncate(max_second)
            pair = self._encoder.post_process(head, tail, True)
            pairs.append((list(pair.ids), list(pair.type_ids)))
        return pairs

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out; broken UTF-8 shows as U+FFFD."""
        return str(self._encoder.decode(ids, skip_special_tokens=True))

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens written out."""
        return str(self._encoder.decode(ids, skip_special_tokens=False))

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary writes it; None if there is none of this id, which is not negative."""
        found: str | None = self._encoder.id_to_token(token_id)
        return found

    def has_text(self, token: int) -> bool:
        """False for special tokens and for ids of the model's that the tokenizer does not have."""
        return token not in self._special_ids and self._encoder.id_to_token(token) is not None

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, of special ones too; none for an id that the tokenizer does not have."""
        piece = self._encoder.id_to_token(token)
        if piece is None:
            return b""
        if token in self._special_ids:
            return str(piece).encode()
        return token_bytes(piece, is_byte_level=self._is_byte_level)

    def text_of(self, ids: Iterable[int]) -> str:
        """The text of token ids as they are, each by itself: no decoder's rules about a text's beginning."""
        return b"".join(self.token_bytes(token) for token in ids if self.has_text(token)).decode(
            errors="replace"
        )

    def showing(self, visible: Collection[str]) -> Decoding:
        """Decoding that shows some special tokens as text, those of `visible` that there are."""
        return Decoding(
            self._encoder, self._special_ids - {self.special_tokens.get(text) for text in visible}
        )

    def _spell_out(self, specials: Iterable[str]) -> dict[str, list[int]]:
        """The ids of special tokens that are written as text."""
        self._encoder.encode_special_tokens = True
        spelled = {text: _encode(self._encoder, text, add_special_tokens=False) for text in specials}
        self._encoder.encode_special_tokens = False
        return spelled

    def _end_tokens(self, directory: Path) -> frozenset[int]:
        """Ids that end an answer: every source that names one counts, as in vLLM."""
        ids: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            given = read_json(directory / name).get("eos_token_id")
            listed = given if isinstance(given, list) else [] if given is None else [given]
            if not all(type(token_id) is int for token_id in listed):
                raise CheckpointError(f"{directory / name}: eos_token_id is {given!r}, not token ids")
            ids.update(listed)
        named = self._encoder.token_to_id(token_text(self.config.get("eos_token")))
        return frozenset(ids if named is None else ids | {named})


class Decoding:
    """Token ids to text with some tokens left out; see `Tokenizer.showing`."""

    def __init__(self, encoder: RustTokenizer, hidden: frozenset[int]) -> None:
        self._encoder = encoder
        self._hidden = hidden

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, hidden tokens left out; broken UTF-8 shows as U+FFFD."""
        shown = ids if self._hidden.isdisjoint(ids) else [token for token in ids if token not in self._hidden]
        return str(self._encoder.decode(shown, skip_special_tokens=False))

    def has_text(self, token: int) -> bool:
        """False for hidden tokens and for ids of the model's that the tokenizer does not have."""
        return token not in self._hidden and self._encoder.id_to_token(token) is not None


def _forget_words(tokenizer: RustTokenizer) -> None:
    """Turns off the library's cache of the words it has split, which only BPE and Unigram have.

    Each thread has one of 10,000 words, kept for ever and chosen by clients: 80 MB a thread if they send long
    random ones. It saves a sixth of the time, tenths of a millisecond for a long prompt.
    """
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize is not None:
        resize(0)


def _encode(tokenizer: RustTokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """Of the library's calls the one that lets other threads run: `encode` stops them all for its time."""
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def token_text(entry: object) -> str:
    """A special token of tokenizer_config.json, which writes it as a string or as an object."""
    if isinstance(entry, Mapping):
        return str(entry.get("content", ""))
    return entry if isinstance(entry, str) else ""


def read_json(path: Path) -> dict[str, Any]:
    """An optional JSON object; {} if there is no such file.

    Raises:
        CheckpointError: it is there and cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value
