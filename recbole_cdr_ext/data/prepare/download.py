"""Finding raw files, and fetching them where the property file knows an address."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from recbole_cdr_ext.data.prepare.description import Description
from recbole_cdr_ext.errors import CDRError

RAW_VARIABLE = "RECBOLE_CDR_RAW"
_TIMEOUT = 60  # seconds without an answer
_BLOCK = 1 << 18  # bytes


def find_raw(
    description: Description, raw: str | Path | None, data_path: Path
) -> tuple[dict[str, Path], list[str]]:
    """Looks for a dataset's raw files.

    They are sought in ``raw`` (else in the folder that the environment variable RECBOLE_CDR_RAW names), in
    its sub-folder of the dataset's name first, and then among what has been downloaded. All must lie in one
    folder; a file may be gzipped or not, whatever the property file says.

    Returns:
        The files by key (empty if they were not found), and what was looked for, for a message.

    Raises:
        CDRError: ``raw`` was given but is no folder.
    """
    if raw is not None and not Path(raw).is_dir():
        raise CDRError(f"--raw={raw}: there is no such folder.")
    folder_of_raw = raw if raw is not None else os.environ.get(RAW_VARIABLE)
    folders = [Path(folder_of_raw) / description.name, Path(folder_of_raw)] if folder_of_raw else []
    folders.append(download_folder(description, data_path))
    for folder in folders:
        files = {key: _either(folder / name) for key, name in description.files.items()}
        if all(files.values()):
            return {key: path for key, path in files.items() if path}, []
    looked_for = [f"{', '.join(description.files.values())} in {folder}" for folder in folders]
    if not folder_of_raw:
        looked_for.append(f"nothing was looked for elsewhere, since neither --raw nor {RAW_VARIABLE} is set")
    return {}, looked_for


def _either(path: Path) -> Path | None:
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(path.name + ".gz")
    return next((candidate for candidate in (path, other) if candidate.is_file()), None)


def how_to_get(description: Description) -> str:
    """Returns one sentence on how a person gets the raw files."""
    place = f"get them from {description.homepage}" if description.homepage else "get them"
    sentence = f"To use it, {place} and pass --raw=FOLDER (or set {RAW_VARIABLE})"
    return sentence + (", or pass --download=True." if description.urls else ".")


def download_folder(description: Description, data_path: Path) -> Path:
    """Returns where a dataset's downloaded raw files lie."""
    return data_path / ".raw" / description.name


def download_raw(description: Description, data_path: Path, progress: bool) -> dict[str, Path]:
    """Fetches the raw files that are not there yet.

    Returns:
        The files by key.

    Raises:
        CDRError: no address is known, or an address does not give its file.
    """
    if not description.urls:
        raise CDRError(
            f"'{description.name}' cannot be downloaded: no address is known. {how_to_get(description)}"
        )
    folder = download_folder(description, data_path)
    files = {key: folder / name for key, name in description.files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in files.items():
            if not path.is_file():
                _fetch(description.urls[key], path, description, progress)
    except OSError as error:
        raise CDRError(
            f"{error.filename or folder}: cannot be written: {error.strerror or error}."
        ) from error
    return files


def _fetch(url: str, path: Path, description: Description, progress: bool) -> None:
    """Fetches one file; it has its name only when it is complete."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise CDRError(f"{description.origin}: '{url}' is no http or https address.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        expected, received = _copy(url, partial, progress)
        if expected is not None and received != expected:
            raise CDRError(
                _failure(
                    url, path, f"{received:,} bytes came instead of {expected:,}; try again", description
                )
            )
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
        raise CDRError(_failure(url, path, reason, description)) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise CDRError(_failure(url, path, str(getattr(error, "reason", error)), description)) from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(url: str, partial: Path, progress: bool) -> tuple[int | None, int]:
    """Bytes announced (None if the server does not say) and bytes written."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, partial.open("wb") as out:
        length = answer.headers.get("Content-Length")
        expected = int(length) if length and length.isdecimal() else None
        name = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
        with tqdm(total=expected, desc=name, unit="B", unit_scale=True, disable=not progress) as bar:
            received = 0
            while block := answer.read(_BLOCK):
                out.write(block)
                received += len(block)
                bar.update(len(block))
    return expected, received


def _failure(url: str, path: Path, reason: str, description: Description) -> str:
    return (
        f"{url}: cannot be downloaded: {reason}. Get the file by hand and put it there: {path}; "
        f"or pass its folder as --raw=FOLDER."
        + (f" The data's page is {description.homepage}." if description.homepage else "")
    )
