"""Counted random numbers against Python's integers, and against values that data, splits and ids depend on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import normals
from dlrm_torchrec.datasets.random.permutation import permutation
from dlrm_torchrec.embeddings.mixing import mix
from dlrm_torchrec.inference import lookups
from dlrm_torchrec.preparation.vocabularies.hashing import hash_categories, hash_ids, hash_ints
from dlrm_torchrec.preparation.vocabularies.int_tables import insert_ids


def finalised(bits: int) -> int:
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
    return bits ^ (bits >> 31)


def word(key: int, number: int) -> int:
    return finalised((key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def any_words(random: np.random.Generator, count: int) -> NDArray[np.uint64]:
    edges = np.array([0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    return np.concatenate([edges, random.integers(0, 2**64, count, np.uint64)])


def test_words_equal_those_of_whole_numbers(random: np.random.Generator) -> None:
    keys, numbers = any_words(random, 200), any_words(random, 200)[::-1]
    expected = [word(key, number) for key, number in zip(keys.tolist(), numbers.tolist(), strict=True)]
    assert counter.words(keys, numbers).tolist() == expected
    assert [int(counter.word(key, number)) for key, number in zip(keys, numbers, strict=True)] == expected
    assert counter.words(keys[:, None], numbers[:3]).tolist() == [
        [word(k, n) for n in numbers[:3].tolist()] for k in keys.tolist()
    ]


def test_words_leave_their_arguments_alone() -> None:
    keys, numbers = np.arange(3, dtype=np.uint64), np.arange(3, dtype=np.uint64)
    counter.words(keys, numbers)
    assert keys.tolist() == numbers.tolist() == [0, 1, 2]


def test_loops_draw_the_numbers_of_arrays(random: np.random.Generator) -> None:
    key, numbers = np.uint64(random.integers(0, 2**64, dtype=np.uint64)), np.arange(100, dtype=np.uint64)
    uniforms = counter.uniforms(counter.words(key, numbers))
    assert [counter.uniform(key, number) for number in numbers] == uniforms.tolist()
    assert [counter.below(key, number, 1000) for number in numbers] == (uniforms * 1000).astype(int).tolist()


def test_every_finaliser_is_the_same(random: np.random.Generator) -> None:
    bits = any_words(random, 1000)
    expected = [finalised(each) for each in bits.tolist()]
    mixed = mix(torch.from_numpy(bits.view(np.int64)))
    assert mixed.numpy().view(np.uint64).tolist() == expected
    hashed = lookups.hashes(lookups.Categories.of(pa.array(bits.view(np.int64))))
    assert hashed.tolist() == hash_ints(bits.view(np.int64)).tolist()
    texts = pa.array(["", "a", "foobar", "héllo", "-5", None])
    (ids,) = lookups.hashed_ids([(lookups.Categories.of(texts), 1000)])
    assert ids.tolist() == hash_categories(texts, 1000).tolist()


def test_known_numbers() -> None:
    words = counter.words(7, np.arange(3))
    assert words.tolist() == [0x63CBE1E459320DD7, 0x044C3CD7F43C661C, 0xE6984080BAB12A02]
    assert counter.words(np.arange(2) - 1, 1 << 40).tolist() == [0x68C83D31FA6F683F, 0x1937167E168D9372]
    assert counter.uniforms(words).tolist() == [0.3898297483912715, 0.01678829452815611, 0.9007606806068834]
    assert [counter.below(np.uint64(7), np.uint64(number), 1000) for number in range(3)] == [389, 16, 900]
    assert [int(counter.derived_key(*parts)) for parts in ((3, 5), (3,))] == [0xFE5747E429476829, 0xF88BB8A8724C81EC]
    expected = [-1.606614112854004, -0.3895712196826935, 1.1870338916778564, -0.27977800369262695]
    assert normals(words[:1]).tolist() == expected
    assert permutation(12, 3, 5).tolist() == [9, 0, 8, 2, 7, 1, 5, 10, 3, 11, 6, 4]


def test_known_hashes() -> None:
    values = np.array([0, 1, -1, 2**62])
    hashes = [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1, 0xE4D971771B652C20, 0x00AA50EA8E0FA9EB]
    assert hash_ints(values).tolist() == hashes
    ids = np.empty(4, np.int64)
    hash_ids(
        values, np.array([0b10110], np.uint8), 1, ids, rows=1000, if_missing=-7
    )  # bits 1 to 4 are those of the values
    assert ids.tolist() == [737, 546, -7, 926]
    keys, slot_ids = np.zeros(11, np.int64), np.zeros(11, np.int32)
    insert_ids(np.array([5, -3, 2**60, 17, 0]), np.arange(1, 6, dtype=np.int32), keys, slot_ids)
    assert keys.tolist() == [5, -3, 0, 2**60, 0, 17, 0, 0, 0, 0, 0]
    assert slot_ids.tolist() == [1, 2, 5, 3, 0, 4, 0, 0, 0, 0, 0]
