"""Published weights by name: licence, download that resumes, cache, hashes. The only place that touches the network.

Files live in the Hugging Face cache, so weights that another tool has already downloaded are used as they are. Big
files are streamed into that cache here, because `hf_hub_download` starts from zero again when it was killed; the rest
is left to `huggingface_hub`. A run that finds everything in the cache asks the network nothing.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldline.io.ledger import Licence, accept, accepted, sha256
from worldline.io.tensors import WeightsError, choose, key_table, model_files
from worldline.scene import Progress, no_progress

LOG = logging.getLogger(__name__)
ATTEMPTS = 5
"""Times a connection may break in a row without a byte having come."""
PAUSE_SECONDS = 0.2
"""Wait after the first such break; doubled after each."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Some models of one hub repository.

    Attributes:
        system: the system they belong to.
        repo: "owner/name" on the hub.
        subfolders: one per model; each holds a config.json and safetensors.
        files: further files, as patterns inside the repository ("VAE/vae/*.bin"); each must match at least one.
        licence: what must be accepted before use.
        variant: preferred precision in the file names ("fp16"), or None.
        revision: branch, tag or commit.
        sha256: hash by path inside the repository; paths that are not named are checked against the hub's own hash.
    """

    system: str
    repo: str
    subfolders: tuple[str, ...]
    licence: Licence
    variant: str | None = None
    revision: str = "main"
    files: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Weights on this machine.

    Attributes:
        weights: what was asked for.
        folder: holds the subfolders.
        hashes: sha256 of every safetensors file by its path inside the folder.
    """

    weights: Weights
    folder: Path
    hashes: Mapping[str, str]

    def files(self, subfolder: str) -> list[Path]:
        """The safetensors files of one model."""
        return model_files(self.folder / subfolder, self.weights.variant)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What models are like, without their tensors.

    Attributes:
        configs: config.json by subfolder.
        tables: shape by key by subfolder; None where only an index of the keys is at hand.
    """

    configs: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Mapping[str, tuple[int, ...] | None]]

    def joined(self, other: Described) -> Described:
        """Both together."""
        return Described(configs={**self.configs, **other.configs}, tables={**self.tables, **other.tables})


def resolve(
    weights: Weights,
    *,
    source: str | Path | None = None,
    accept_license: bool = False,
    download: bool = True,
    progress: Progress = no_progress,
) -> Resolved:
    """Find weights on this machine, downloading them if need be, and make sure they are what they claim to be.

    `source` is a local folder with the same subfolders, or another repository; default: the published one.

    Raises:
        WeightsError: the licence is not accepted, nothing can be downloaded, or a file is missing, unsafe or damaged.
    """
    # 1. a folder of the user's own: nothing to download, no licence of ours to show
    if source is not None and is_local(source):
        return Resolved(weights=weights, folder=Path(source), hashes=_check_local(weights, Path(source)))
    if source is not None:
        weights = Weights(**{**vars(weights), "repo": str(source), "sha256": {}})

    # 2. the licence, once
    _check_licence(weights, accept_license)

    # 3. the cache, else the hub
    folder = find(weights)
    if folder is None:
        if not download:
            raise WeightsError(
                f"{weights.repo} is not on this machine; run `worldline models download {weights.system}`."
            )
        folder = _download(weights, progress)
    return Resolved(weights=weights, folder=folder, hashes=check_hashes(weights, folder, progress))


def find(weights: Weights) -> Path | None:
    """The folder in the hub cache that holds every file that is needed, or None; never asks the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(weights.repo, revision=weights.revision, local_files_only=True, allow_patterns=[])
        )
        for subfolder in weights.subfolders:
            model_files(folder / subfolder, weights.variant)
            if not (folder / subfolder / "config.json").is_file():
                return None
        _stored(weights, folder)
    except (LocalEntryNotFoundError, WeightsError):
        return None
    return folder


def describe(weights: Weights, folder: Path) -> Described:
    """Configs and key tables of models in a folder; the headers of their files, or even their index alone, suffice.

    Raises:
        WeightsError: a config, or both tensors and index, are missing.
    """
    configs, tables = {}, {}
    for subfolder in weights.subfolders:
        path = folder / subfolder / "config.json"
        if not path.is_file():
            raise WeightsError(f"{path} is missing; the weights need one beside their tensors.")
        configs[subfolder] = json.loads(path.read_text())
        tables[subfolder] = key_table(folder / subfolder, weights.variant)
    return Described(configs=configs, tables=tables)


def describe_remote(weights: Weights) -> Described:
    """The same from the hub: configs and the first kilobytes of every file, not the tensors.

    Raises:
        WeightsError: the hub cannot be reached, or a file is missing or unsafe.
    """
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    configs: dict[str, Any] = {}
    tables: dict[str, dict[str, tuple[int, ...] | None]] = {}
    with _hub_errors(weights):
        commit = str(api.model_info(weights.repo, revision=weights.revision).sha)
        for path in _wanted(weights, api.list_repo_files(weights.repo, revision=commit)):
            subfolder, name = path.rsplit("/", 1)
            if name == "config.json":
                configs[subfolder] = json.loads(Path(hf_hub_download(weights.repo, path, revision=commit)).read_text())
            elif name.endswith(".safetensors"):
                found = api.parse_safetensors_file_metadata(weights.repo, path, revision=commit).tensors
                tables.setdefault(subfolder, {}).update({key: tuple(entry.shape) for key, entry in found.items()})
    return Described(configs=configs, tables=tables)


def is_local(source: str | Path) -> bool:
    """Whether a --weights argument is a folder rather than "owner/name" on the hub.

    Raises:
        WeightsError: it looks like a path, but there is nothing.
    """
    if Path(source).is_dir():
        return True
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or text.endswith("/"):
        raise WeightsError(f"There is no folder {text}; give a folder with the weights, or owner/name on the hub.")
    return False


def fingerprint(*resolved: Resolved) -> str:
    """One sha256 for everything that was loaded: the hash of the sorted (path, hash) list, for a scene's provenance."""
    lines = [f"{part.weights.repo} {path} {digest}" for part in resolved for path, digest in part.hashes.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _check_licence(weights: Weights, accept_license: bool) -> None:
    licence = weights.licence
    if not licence.must_accept or accepted(licence):
        return
    if not accept_license:
        raise WeightsError(
            f"The weights of {weights.repo} come with a licence ({licence.name}): {licence.text} {licence.url} "
            "If you accept it, run the same command again with --accept-license."
        )
    accept(licence)
    LOG.warning("Licence of %s accepted (%s): %s %s", weights.repo, licence.name, licence.text, licence.url)


def _stored(weights: Weights, folder: Path) -> dict[str, Path]:
    """Every file with tensors (and every other one that is asked for by name), by its name inside the repository."""
    stored = {
        f"{sub}/{path.name}": path for sub in weights.subfolders for path in model_files(folder / sub, weights.variant)
    }
    for pattern in weights.files:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not found:
            raise WeightsError(f"{folder} has no {pattern}; give the folder that holds the files of {weights.repo}.")
        stored |= {path.relative_to(folder).as_posix(): path for path in found}
    return stored


def _check_local(weights: Weights, folder: Path) -> dict[str, str]:
    hashes = {}
    for name, path in _stored(weights, folder).items():
        hashes[name] = sha256(path)
        if weights.sha256.get(name, hashes[name]) != hashes[name]:
            raise _wrong_hash(path, weights.sha256[name], hashes[name], "use the published file")
    return hashes


def _download(weights: Weights, progress: Progress) -> Path:
    """Fetch what is needed into the hub cache; big files resume where a killed run stopped."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(weights):
        api = HfApi()
        commit = str(api.model_info(weights.repo, revision=weights.revision).sha)
        entries = api.list_repo_tree(weights.repo, recursive=True, revision=commit)
        tree = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        wanted = _wanted(weights, list(tree))
        for path in wanted:
            lfs = tree[path].lfs
            if lfs is not None:
                _stream(weights, path, commit, lfs, progress)
        return Path(
            snapshot_download(weights.repo, revision=weights.revision, allow_patterns=wanted, tqdm_class=_silent_bar())
        )


def _silent_bar() -> type:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        """The hub's progress bar, drawing nothing: bytes are reported by `_append`."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return Silent


def _wanted(weights: Weights, paths: list[str]) -> list[str]:
    wanted = []
    for subfolder in weights.subfolders:
        names = [path.removeprefix(subfolder + "/") for path in paths if path.startswith(subfolder + "/")]
        names = [name for name in names if "/" not in name]
        where = f"{weights.repo}/{subfolder}"
        if "config.json" not in names:
            raise WeightsError(
                f"{where}/config.json is missing on the hub; check --weights, or report it to the owner."
            )
        wanted += [f"{subfolder}/{name}" for name in ["config.json", *choose(names, where, weights.variant)]]
    for pattern in weights.files:
        found = [path for path in paths if fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/")]
        if not found:
            raise WeightsError(
                f"{weights.repo} on the hub has no {pattern}; check --weights, or report it to the owner."
            )
        wanted += found
    return wanted


def _stream(weights: Weights, path: str, commit: str, lfs: Any, progress: Progress) -> None:
    """One big file into the hub cache's blobs, which are named by sha256; what is there already is not asked again."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.file_download import repo_folder_name

    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=weights.repo, repo_type="model")
    blob, part = repo / "blobs" / lfs.sha256, repo / "blobs" / f"{lfs.sha256}.worldline-part"
    if blob.exists():
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(weights.repo, path, revision=commit)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _append(url, part, lfs.size, f"download {path}", progress)
            break
        except HTTPError as error:  # a broken connection is tried again from where it broke, an answer of "no" is not
            grown = part.exists() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if isinstance(error, HfHubHTTPError) or failures == ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS * 2**failures)
    digest = hashlib.file_digest(part.open("rb"), "sha256").hexdigest()
    if digest != lfs.sha256 or part.stat().st_size != lfs.size:
        part.unlink()
        raise _wrong_hash(Path(path), lfs.sha256, digest, "it was deleted; run the command again")
    part.rename(blob)


def _append(url: str, part: Path, size: int, step: str, progress: Progress) -> None:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    done = part.stat().st_size if part.exists() else 0
    if done >= size:
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        done = done if resumed else 0
        with part.open("ab" if resumed else "wb") as stream:
            for block in response.iter_bytes():
                stream.write(block)
                done += len(block)
                progress(step, done, size)


def check_hashes(weights: Weights, folder: Path, progress: Progress = no_progress) -> dict[str, str]:
    """sha256 of every safetensors file in a hub cache, which names its blobs by theirs, so it works offline.

    Raises:
        WeightsError: a file is not what its name or `weights.sha256` says; a damaged one is deleted.
    """
    hashes = {}
    stored = _stored(weights, folder)
    for done, (name, path) in enumerate(stored.items()):
        blob = path.resolve()
        hashes[name] = sha256(path)
        if len(blob.name) == 64 and blob.name != hashes[name]:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise _wrong_hash(path, blob.name, hashes[name], "it was deleted; run the command again to download it")
        if weights.sha256.get(name, hashes[name]) != hashes[name]:
            raise _wrong_hash(
                path, weights.sha256[name], hashes[name], "the owner changed it; use the revision we know"
            )
        progress("verify weights", done + 1, len(stored))
    return hashes


def _wrong_hash(path: Path, expected: str, found: str, advice: str) -> WeightsError:
    return WeightsError(
        f"{path} has sha256 {found[:12]}…, not {expected[:12]}…: damaged or not the file meant; {advice}."
    )


@contextmanager
def _hub_errors(weights: Weights) -> Iterator[None]:
    """Say what is wrong with the hub in one sentence; diffusers and the hub would blame a missing config.json."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = weights.repo
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise WeightsError(
            f"{repo} is not on this machine and HF_HUB_OFFLINE is set; unset it to download, or give --weights FOLDER."
        ) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{repo} is gated: accept its terms on https://huggingface.co/{repo}, run `hf auth login`, and try again."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise WeightsError(f"The hub has no {repo} at revision {weights.revision}; check the name.") from error
    except HfHubHTTPError as error:
        raise WeightsError(f"The hub answered {error.response.status_code} for {repo}; try again later.") from error
    except HTTPError as error:
        raise WeightsError(
            f"The hub cannot be reached ({type(error).__name__}), and {repo} is not completely on this machine; "
            "connect and run the same command again (what is here is kept), or give --weights FOLDER."
        ) from error
