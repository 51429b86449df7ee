"""Where every benchmark's data comes from: address with its revision, checksum, licence.

To add a benchmark's data: an entry here, and `macbench.fetch.find` where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co/datasets"
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Remote:
    """A published file. The address is of one revision wherever its host knows revisions."""

    name: str  # in the benchmark's folder
    url: str
    sha256: str
    size: int  # bytes
    licence: str
    about: str
    instead: str  # what there is without it


QUESTIONS = "embedded questions instead"

RULER = (
    # as RULER's own script downloads it
    Remote(
        "squad.json",
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
        "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
        4_370_528,
        "CC BY-SA 4.0",
        "SQuAD v2 dev, for qa_1",
        QUESTIONS,
    ),
    # RULER's mirror, as the first host is gone
    Remote(
        "hotpotqa.json",
        f"{HUB}/namlh2004/hotpotqa/resolve/7e54db4656209750ff487f6fdf8e39a66dba136b/"
        "hotpot_dev_distractor_v1.json",
        "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8",
        46_320_117,
        "CC BY-SA 4.0",
        "HotpotQA dev with distractors, for qa_2",
        QUESTIONS,
    ),
    # RULER collects the essays from two sites that change; this is what its script made at one
    # time, so that the haystack stays the same
    Remote(
        "PaulGrahamEssays.json",
        f"{RAW}/Rya-Sanovar/RULER/174598e1c0c3b88badb9a87fb95b16cc744612b8/"
        "scripts/data/synthetic/json/PaulGrahamEssays.json",
        "1af094ff36d47893ea3c09cc570038053b711a9ba728c9d2dca036dbb231fa41",
        3_108_596,
        "none: copyright of the author",
        "Paul Graham's essays, the haystack of five tasks",
        "an embedded text instead",
    ),
    Remote(
        "english_words.json",
        "https://media.githubusercontent.com/media/NVIDIA/RULER/"
        "c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a/scripts/data/synthetic/json/"
        "english_words.json",
        "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca",
        8_564_991,
        "Apache-2.0, as RULER",
        "the longer word list of cwe, for 128K tokens and more",
        "other samples, or no cwe, at such lengths",
    ),
)

LONGBENCH_V2 = (
    Remote(
        "data.json",
        f"{HUB}/zai-org/LongBench-v2/resolve/2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9/data.json",
        "15d61c22d92c96900b3c4948b6aeea218d3214b676a65df48e7b8555604c7fe2",
        465_490_535,
        "Apache-2.0",
        "the 503 records",
        "generated questions over an embedded text instead",
    ),
)

LONGGENBENCH = tuple(
    Remote(
        f"Dataset_{variant}.json",
        f"{RAW}/mozhu621/LongGenBench/f06aa89d143af1a3e8e22816eeecab34d41dabbc/"
        f"Dataset/Dataset_{variant}.json",
        sha256,
        size,
        "none named",
        f"the 400 prompts of the {tokens} variant",
        "generated prompts instead",
    )
    for variant, tokens, sha256, size in (
        (
            "short",
            "16K",
            "3cf98c4badc330a93d1010f57f6658b09f2ebc2e6428a3df083b652d902d96e8",
            1_474_710,
        ),
        (
            "long",
            "32K",
            "f61048da5ecfb1b717584af8b2dc5999198459e9b95aceedde2dcc6f5cdd35e7",
            1_244_214,
        ),
    )
)

SOURCES: dict[str, tuple[Remote, ...]] = {
    "ruler": RULER,
    "longbench_v2": LONGBENCH_V2,
    "longgenbench": LONGGENBENCH,
}
MODEL = "smollm2"  # the embedded model, from the Python package index
NAMES = (*SOURCES, MODEL)


def megabytes(size: int) -> str:
    """Such as "465.5 MB"."""
    return f"{size / 1e6:.1f} MB"
