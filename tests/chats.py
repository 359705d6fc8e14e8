"""Small tokenizers and chat templates built like those of well-known model families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_TEXT = [
    "Name a colour. Blue is the colour of the sky, and green the colour of the grass; is it not?",
    "end of turn, start header id, user and assistant: the model writes, the user reads. INST, [ ] < > | / _",
    'def add(a, b): return a + b  # 1 2 3 {"name": "weather", "arguments": {"city": "Rome"}}',
] * 3  # fmt: skip
_PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<tool_call>' + call | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson(indent=4) }}<|eot_id|>{% endif %}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim }}"
    "{% for call in m['tool_calls'] or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ '[TOOL_RESULTS] ' + m['content'] + '[/TOOL_RESULTS]' }}"
    "{% elif m['tool_calls'] %}{{ '[TOOL_CALLS] ' + m['tool_calls'] | tojson + eos_token }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
_PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_BERT = (
    "[CLS]{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '[SEP]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a model family's tokenizer and template are made."""

    kind: str
    template: str
    special: Sequence[str]
    bos: str
    eos: str
    added: Sequence[AddedToken] = ()
    rstrip: bool = False
    lossless: bool = True
    """Whether decoding gives back what was encoded, for any text."""


FAMILIES = {
    "plain chatml": Family("bytes", _PLAIN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>",
                           "<|im_end|>"),
    "chatml": Family("bytes", _CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|im_end|>",
                     [AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False),
                      AddedToken("\n\n", normalized=False)]),
    "llama 3": Family("split bytes", _LLAMA3, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
                      "<|end_header_id|>"], "<|begin_of_text|>", "<|eot_id|>"),
    "llama 2": Family("prepend", _LLAMA2, ["<unk>", "<s>", "</s>"], "<s>", "</s>"),
    "gemma": Family("spaces", _GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<end_of_turn>",
                    [AddedToken("\n\n", normalized=False)]),
    "mistral": Family("metaspace first", _MISTRAL, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]",
                      "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"], "<s>", "</s>"),
    "phi": Family("prepend", _PHI, ["<unk>", "<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>",
                  "<|tool|>", "<|end|>"], "<s>", "<|endoftext|>", rstrip=True),
    "zephyr": Family("metaspace", _PHI, ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"], "<s>",
                     "</s>"),
    "unigram": Family("unigram", _PHI, ["<unk>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"], "</s>", "</s>",
                      lossless=False),
    "wordpiece": Family("wordpiece", _BERT, ["[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]", lossless=False),
    "left": Family("bytes", _PLAIN, ["<|im_start|>", "<|endoftext|>"], "<|im_start|>", "<|endoftext|>",
                   [AddedToken("<|im_end|>", lstrip=True, special=True)]),
}  # fmt: skip


@cache
def tokenizer(name: str) -> Any:
    family = FAMILIES[name]
    raw = _raw(family)
    raw.add_special_tokens([AddedToken(t, rstrip=family.rstrip, normalized=False) for t in family.special])
    raw.add_tokens(list(family.added))
    unknown = {"unk_token": family.special[0]} if "unk" in family.special[0].lower() else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=family.bos, eos_token=family.eos, **unknown)
    fast.chat_template = family.template
    return fast


def control_ids(name: str) -> set[int]:
    """Ids of a family's control tokens."""
    added = tokenizer(name).added_tokens_decoder
    return {index for index, token in added.items() if token.special or token.content.strip()}


def _raw(family: Family) -> Tokenizer:
    if "bytes" in family.kind:
        return _bytes(split="split" in family.kind)
    if family.kind == "unigram":
        return _unigram(family.special)
    if family.kind == "wordpiece":
        return _wordpiece(family.special)
    return _sentencepiece(family)


def _bytes(split: bool) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it, or with a pattern of its own as Llama 3 has it."""
    raw = Tokenizer(models.BPE(ignore_merges=split))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    if split:
        pattern = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
        level = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), level])
    raw.pre_tokenizer = level
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False))
    return raw


def _sentencepiece(family: Family) -> Tokenizer:
    """BPE over characters with bytes for the unknown ones; spaces are written as U+2581."""
    letters = sorted({c for text in _TEXT for c in text if c.strip()} | {"▁"})
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "n"), ("en", "d"), ("<", "|"), ("|", ">"), ("▁", "▁")]
    words = [*family.special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    unknown = family.special[0] if family.special[0] == "<unk>" else None
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    first: list[Any] = []
    if family.kind == "prepend":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        first = [decoders.Strip(" ", 1, 0)]
    elif family.kind == "spaces":
        raw.normalizer = normalizers.Replace(" ", "▁")
    else:
        scheme = "first" if family.kind == "metaspace first" else "always"
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first])
    return raw


def _unigram(special: Sequence[str]) -> Tokenizer:
    """Its vocabulary has the control tokens as words, with the best scores; full-width characters are folded."""
    letters = sorted({c for text in _TEXT for c in text if c.strip()} | {"▁"})
    vocabulary = [(word, 0.0) for word in special] + [(c, -5.0) for c in letters] + [("▁the", -3.0), ("end", -4.0)]
    raw = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    raw.normalizer = normalizers.Sequence([normalizers.NFKC()])
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    return raw


def _wordpiece(special: Sequence[str]) -> Tokenizer:
    letters = sorted({c for text in _TEXT for c in text.lower() if c.strip()})
    words = [*special, *letters, *(f"##{c}" for c in letters), "the", "##end", "colour"]
    raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=False)
    return raw
