"""A model's tokenizer, the same for a look at data before a run and for the run. Without torch."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from stages.policy.files import copy_tokenizer, has_tokenizer


def read_tokenizer(model: Path, adapter: Path | None = None) -> Any:
    """The tokenizer of a model's folder, with what an adapter's folder has in its place; of a GGUF file too, which
    is converted, and that imports torch.

    Where there is a ``tokenizer.json``, it says everything. transformers' own choice goes by ``tokenizer_class``, and
    some classes build another tokenizer from the same vocabulary, one that loses every space.

    Raises:
        OSError, ValueError: there is none that transformers can read.
    """
    from transformers import PreTrainedTokenizerFast

    options = {"local_files_only": True, "trust_remote_code": False}
    if model.is_file():
        return PreTrainedTokenizerFast.from_pretrained(model.parent, gguf_file=model.name, **options)
    if adapter is None or not has_tokenizer(adapter):
        return PreTrainedTokenizerFast.from_pretrained(model, **options)
    with tempfile.TemporaryDirectory() as scratch:
        copy_tokenizer(model, Path(scratch))
        copy_tokenizer(adapter, Path(scratch))
        shutil.copyfile(model / "config.json", Path(scratch) / "config.json")
        return PreTrainedTokenizerFast.from_pretrained(scratch, **options)
