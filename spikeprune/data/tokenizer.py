"""The tokenizer of a checkpoint, or a small WordPiece one made from the training sentences."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spikeprune.data.hub import reachable
from spikeprune.errors import InputError, in_a_line
from spikeprune.files import jsonfile

SPECIAL = {  # in the order of their ids
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
UNKNOWN_LIMIT = 0.5  # share of [UNK] above which a vocabulary is taken not to belong to the data
SAMPLE = 1000  # sentences looked at
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # that it may need


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a directory or of a hub name (its cache is tried first, then the network).

    An `InputError` says why there is none, or which of [CLS], [SEP], [PAD], [UNK] it lacks.
    """
    if Path(checkpoint).exists() or checkpoint.startswith((".", "~", os.sep)):
        tokenizer = _from_directory(checkpoint)
    else:
        tokenizer = _from_hub(checkpoint)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {checkpoint} has no fast version; save it with a tokenizer.json")
    words = tokenizer.get_vocab()
    for role in ("cls_token", "sep_token", "pad_token", "unk_token"):
        if getattr(tokenizer, role) not in words:  # whose id transformers looks up without end
            raise InputError(
                f"the tokenizer of {checkpoint} has no {role}, so it is not a BERT's; choose a BERT checkpoint"
            )
    row = _ids(tokenizer, checkpoint, "a")
    for texts in (("\u2603 a",), ("a", "\u2603")):  # a word that is unknown, and a pair
        _ids(tokenizer, checkpoint, *texts)
    if row[:1] != [tokenizer.cls_token_id] or row[-1:] != [tokenizer.sep_token_id]:
        raise InputError(
            f"the tokenizer of {checkpoint} does not put {tokenizer.cls_token} and {tokenizer.sep_token} around a "
            "sentence, which a BERT reads; save it with its post-processor"
        )
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerFast, checkpoint: str, *texts: str) -> list[int]:
    """Raises InputError where its files do not fit together; the library notices that no sooner."""
    try:
        return tokenizer(*texts)["input_ids"]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise InputError(f"the tokenizer of {checkpoint} cannot tokenize ({in_a_line(error)}); save it again") from None


def _from_directory(checkpoint: str) -> PreTrainedTokenizerFast:
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise InputError(
            f"{checkpoint} is not a directory; teacher.checkpoint names a checkpoint directory or a hub model"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"{checkpoint} holds no tokenizer (neither tokenizer.json nor vocab.txt); copy it there")
    remedy = f"copy it there again, or make {folder} again"
    try:
        for name in FILES:
            if (folder / name).is_file():
                jsonfile.read(folder / name, remedy)
    except InputError as error:
        raise InputError(f"the tokenizer in {checkpoint} cannot be read: {error}") from None
    try:
        return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds, for files of any content
        raise InputError(f"the tokenizer in {checkpoint} cannot be read: {in_a_line(error)}") from error


def _from_hub(name: str) -> PreTrainedTokenizerFast:
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        pass  # not in the cache: ask the hub
    if not reachable():
        raise InputError(
            f"{name!r} is no directory, is not in the hub's cache, and the hub cannot be reached; give a directory"
        )
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer {name!r} on the hub: {in_a_line(error)}") from error


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, max_length: int = 512) -> PreTrainedTokenizerFast:
    """A lower-casing BERT WordPiece tokenizer learnt from `texts`: same texts, in any order, same tokenizer.

    At most `vocab_size` tokens, the five special ones first ([PAD] is 0), then every character that occurs, then
    pieces by frequency. `save_pretrained` writes what `AutoTokenizer.from_pretrained` reads. No text at all, or a
    `vocab_size` below the characters, is an `InputError`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    def bert(model) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    learner = bert(models.WordPiece(unk_token="[UNK]"))
    counts: Counter[str] = Counter()
    for text in texts:
        words = learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    letters = sorted(set("".join(counts)))
    # The trainer numbers "##x" in the order of a hash map, and ties follow the numbers: naming them first fixes both.
    start = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters)]
    if not counts:
        raise InputError("there is no text to build a vocabulary from; the training split holds no words")
    if vocab_size < len(start):
        raise InputError(
            f"teacher.size has a vocabulary of {vocab_size}, but the characters alone need {len(start)}; raise it"
        )
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=start, show_progress=False)
    learner.train_from_iterator([" ".join([word] * count) for word, count in sorted(counts.items())], trainer)
    vocabulary = learner.get_vocab()

    tokenizer = bert(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **SPECIAL,
    )


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """The share of [UNK] among the tokens of (up to 1000, evenly taken) `texts`; above one half an `InputError`."""
    sample = list(texts)[:: max(1, len(texts) // SAMPLE)]
    rows = tokenizer(sample, add_special_tokens=False)["input_ids"]
    count = sum(len(row) for row in rows)
    share = sum(row.count(tokenizer.unk_token_id) for row in rows) / max(1, count)
    if share > UNKNOWN_LIMIT:
        raise InputError(
            f"{share:.0%} of the data's tokens are {tokenizer.unk_token} for this tokenizer: its vocabulary does not "
            "match the data; give the checkpoint its own vocabulary files or choose another teacher.checkpoint"
        )
    return share
