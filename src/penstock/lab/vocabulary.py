"""The built-in model's tokenizer: byte-level BPE trained on the generated corpus.

Words, single digits and single Chinese characters are the largest units, and a space never sticks to
a word. So a word, a name or a number is the same run of tokens wherever it stands, and copying or
reversing it is a matter of position alone. Any UTF-8 text survives a round trip, byte for byte.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from penstock.lab.corpus import training_stream
from penstock.lab.tasks.lexicon import COMMON_CHARACTERS

END_OF_TEXT, MESSAGE_START, MESSAGE_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
"""In the order of their ids."""
END_OF_TEXT_ID, MESSAGE_START_ID, MESSAGE_END_ID = range(3)

VOCABULARY_SIZE = 4096
CONVERSATIONS = 60_000
"""Conversations of the training stream that the merges are learnt from."""

# A line break; a Chinese character; a run of other letters; a digit; punctuation with the space after it;
# other white space.
_PATTERN = r"\r?\n|\p{Han}|(?:(?!\p{Han})[\p{L}\p{M}])+|\p{N}|[^\s\p{L}\p{M}\p{N}]+ ?|[^\S\r\n]+|\s"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML: system, user and assistant turns in any number; no system prompt is made up."""


def _texts(seed: int, conversations: int) -> Iterator[str]:
    yield from ("system", "user", "assistant") * 100
    yield from (COMMON_CHARACTERS,) * 100
    for conversation in itertools.islice(training_stream(seed), conversations):
        for message in conversation.messages:
            yield message["content"]


def train_tokenizer(
    seed: int, vocabulary_size: int = VOCABULARY_SIZE, conversations: int = CONVERSATIONS
) -> Tokenizer:
    """Learns the merges from the first conversations of the seed's training stream.

    The result has exactly `vocabulary_size` entries if the text yields enough merges, otherwise fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, conversations), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_positions: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json in the Hugging Face layout.

    `max_positions` is the model's context in tokens.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "bos_token": None,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [MESSAGE_START, MESSAGE_END],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def render(messages: Sequence[dict[str, str]], generate: bool = False) -> str:
    """The chat as text, as the chat template writes it; with `generate`, open for the assistant's reply."""
    text = "".join(f"{MESSAGE_START}{m['role']}\n{m['content']}{MESSAGE_END}\n" for m in messages)
    return text + (f"{MESSAGE_START}assistant\n" if generate else "")
