"""The classes of arithmetic partitions as digits (id // divisor) % modulus."""

from __future__ import annotations

from typing import NamedTuple

from dlrm_torchrec.embeddings.compositional.partitions import (
    INT64_MAX,
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    Partition,
    QuotientRemainder,
)


class Digit(NamedTuple):
    """The class (id // divisor) % modulus."""

    divisor: int
    modulus: int


WHOLE = Digit(1, INT64_MAX)  # the id itself


def digits(table: str, partition: Partition) -> list[Digit]:
    """The k classes of ``partition``; raises ValueError when arithmetic cannot compute them."""
    match partition:
        case Naive():
            return [WHOLE]
        case Hash():
            return [Digit(1, partition.num_classes)]
        case QuotientRemainder():
            return [Digit(partition.num_remainders, INT64_MAX), Digit(1, partition.num_remainders)]
        case MixedRadix():
            places, divisor = [], 1
            for radix in partition.radices:
                places.append(Digit(divisor, radix))
                divisor *= radix
            return places
        case ChineseRemainder():
            return [Digit(1, modulus) for modulus in partition.moduli]
    raise ValueError(
        f"partition of table {table!r} must be arithmetic to be served: got {type(partition).__name__}; train with "
        "quotient_remainder, mixed_radix, chinese_remainder or hash"
    )
