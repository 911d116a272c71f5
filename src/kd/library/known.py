"""What conf/ does not say of a name: licence, Google's archive of it, and checksums that were seen elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ARCHIVES = "https://storage.googleapis.com/bert_models"
APACHE, MIT = "Apache-2.0", "MIT"
UNCASED_WORDS = {"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"}
CASED_WORDS = {"vocab.txt": "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"}
TENSORS = "bert_model.ckpt.data-00000-of-00001"


@dataclass(frozen=True)
class Known:
    """``archive`` is DATE/NAME below ARCHIVES; ``lower_case``: its tokenizer takes capitals for small letters.

    ``hub`` and ``archived`` are sha256 sums by file, of the hub's files and of those inside the archive. What is not
    there is recorded when it is first downloaded. ``folder``: the part of a data set on the hub that is meant.
    """

    licence: str
    archive: str | None = None
    lower_case: bool = True
    hub: Mapping[str, str] = field(default_factory=dict)
    archived: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""


def bert(archive: str, lower_case: bool, tensors: str | None = None, words: Mapping[str, str] | None = None,
         weights: str | None = None) -> Known:  # fmt: skip
    sums = {**(words or {}), **({TENSORS: tensors} if tensors else {})}
    return Known(APACHE, archive, lower_case, {"model.safetensors": weights} if weights else {}, sums)


# The sums of archived files are those that NVIDIA's and others' BERT examples check after unpacking; the one of the
# hub's bert-base-uncased is that of its Git LFS pointer at revision 86b5e093.
MODELS = {
    "bert_base": bert(
        "2018_10_18/uncased_L-12_H-768_A-12", True,
        "58580dc5e0bf0ae0d2efd51d0e8272b2f808857f0a43a88aaf7549da6d7a8a84", UNCASED_WORDS,
        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    ),
    "bert_base_cased": bert(
        "2018_10_18/cased_L-12_H-768_A-12", False,
        "734d5a1b68bf98d4e9cb6b6692725d00842a1937af73902e51776905d8f760ea", CASED_WORDS,
    ),
    "bert_large": bert(
        "2018_10_18/uncased_L-24_H-1024_A-16", True,
        "bc6b3363e3be458c99ecf64b7f472d2b7c67534fd8f564c0556a678f90f4eea1", UNCASED_WORDS,
    ),
    "bert_large_cased": bert(
        "2018_10_18/cased_L-24_H-1024_A-16", False,
        "6ff33640f40d472f7a16af0c17b1179ca9dcc0373155fb05335b6a4dd1657ef0", CASED_WORDS,
    ),
    "bert_large_wwm": bert("2019_05_30/wwm_uncased_L-24_H-1024_A-16", True, words=UNCASED_WORDS),
    "bert_large_cased_wwm": bert("2019_05_30/wwm_cased_L-24_H-1024_A-16", False, words=CASED_WORDS),
    "bert_chinese": bert(
        "2018_11_03/chinese_L-12_H-768_A-12", True,
        "756699356b78ad0ef1ca9ba6528297bcb3dd1aef5feadd31f4775d7c7fc989ba",
        {"vocab.txt": "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"},
    ),
    "bert_multilingual": bert(
        "2018_11_23/multi_cased_L-12_H-768_A-12", False,
        "55b8a2df41f69c60c5180e50a7c31b7cdf6238909390c4ddf05fbc0d37aa1ac5",
        {"vocab.txt": "fe0fda7c425b48c516fc8f160d594c8022a0808447475c1a7c6d6479763f310c"},
    ),
    "bert_medium": bert("2020_02_20/uncased_L-8_H-512_A-8", True, words=UNCASED_WORDS),
    "bert_small": bert("2020_02_20/uncased_L-4_H-512_A-8", True, words=UNCASED_WORDS),
    "bert_mini": bert("2020_02_20/uncased_L-4_H-256_A-4", True, words=UNCASED_WORDS),
    "bert_tiny": bert("2020_02_20/uncased_L-2_H-128_A-2", True, words=UNCASED_WORDS),
    "distilbert": Known(APACHE),
    "distilbert_cased": Known(APACHE, lower_case=False),
    "distilbert_multilingual": Known(APACHE, lower_case=False),
    "distilroberta": Known(APACHE, lower_case=False),
    "electra_small": Known(APACHE),
    "minilm_l6": Known(MIT),
    "modernbert_base": Known(APACHE, lower_case=False),
    "modernbert_large": Known(APACHE, lower_case=False),
    "roberta_base": Known(MIT, lower_case=False),
}  # fmt: skip

DATA = {
    "banking77": Known("CC BY 4.0"),
    "emobank": Known("CC BY-SA 4.0"),
    "goemotions": Known(APACHE, folder="simplified"),
    "sst2": Known("none given; for research"),
    "sst5": Known("none given; for research"),
    "wikipedia_en_sample": Known("CC BY-SA 3.0"),
    "wnut17": Known("CC BY 4.0"),
}
