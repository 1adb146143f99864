"""A node of a smaller rank trains what it holds, as a node whose whole adapter is that small would."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.ledger import Ledger
from client.node import Node, SecretSum
from client.train import train
from common.encoder.adapter import TextEncoder
from common.encoder.spec import EncoderSpec
from common.errors import InvalidSetting
from common.ids import arrays_sha256
from common.instructions import Objective, PrivacyTerms
from common.privacy import PrivacySpend
from common.ranks import cut
from common.updates import AdapterUpdate
from tests.client.federation import Bench, make_data, make_request
from tests.client.test_train import plan_for

ONE_STEP = Objective(window=4, negatives=3)


def answer(
    folder: Path, bench: Bench, rank: int | None, secret_sum: SecretSum | None = None, **changes: object
) -> AdapterUpdate:
    node = Node("n", make_data(), folder / f"{rank}.sqlite", 7, rank=rank)
    return node.answer(make_request(bench, **changes), bench.base, bench.encoder, bench.cache, secret_sum)


def test_its_change_is_that_of_an_encoder_made_for_the_rank(bench: Bench) -> None:
    spec = bench.encoder.spec
    small = TextEncoder.load(replace(spec, rank=2, alpha=spec.alpha * 2 // spec.rank))  # the same scale
    plan, data, held = plan_for(bench, noise_multiplier=0.5), make_data(), cut(bench.base, 2)
    for trained in (bench.b_names, tuple(bench.base)):
        found = train(replace(plan, trained=trained), held, data, bench.encoder, bench.cache)
        expected = train(replace(plan, trained=trained), held, data, small, bench.cache)
        for name in trained:
            np.testing.assert_allclose(found.arrays[name], expected.arrays[name], rtol=1e-5, atol=1e-7)
    assert EncoderSpec.from_name(spec.name).rank == bench.encoder.spec.rank


def test_after_a_smaller_rank_the_full_one_trains_as_before(bench: Bench) -> None:
    plan, data = plan_for(bench), make_data()
    before = train(plan, bench.base, data, bench.encoder, bench.cache)
    train(plan, cut(bench.base, 3), data, bench.encoder, bench.cache)
    after = train(plan, bench.base, data, bench.encoder, bench.cache)
    assert arrays_sha256(before.arrays.items()) == arrays_sha256(after.arrays.items())


def test_it_answers_with_its_own_rank_and_charges_the_same(bench: Bench, tmp_path: Path) -> None:
    full, narrow = answer(tmp_path, bench, None), answer(tmp_path, bench, 2)
    assert {array.shape[1] for array in narrow.arrays.values()} == {2}
    assert all(narrow.arrays[name].shape[0] == array.shape[0] for name, array in full.arrays.items())
    assert narrow.meta == full.meta


def test_a_rank_as_large_as_the_adapters_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    plain = answer(tmp_path, bench, None)
    for rank in (bench.encoder.spec.rank, 100):
        assert arrays_sha256(plain.arrays.items()) == arrays_sha256(answer(tmp_path, bench, rank).arrays.items())


@pytest.mark.parametrize("hidden", [False, True])
def test_in_a_sum_it_refuses_before_it_charges(bench: Bench, tmp_path: Path, hidden: bool) -> None:
    terms = PrivacyTerms("user", 8.0, 1e-3, 0.5, "local" if hidden else "server")
    changes = {"objective": ONE_STEP, "privacy": terms, "noise_multiplier": 0.0 if hidden else 1.0}
    with pytest.raises(InvalidSetting, match="a node of rank 2 in a sum"):
        answer(tmp_path, bench, 2, SecretSum("s", 2) if hidden else None, **changes)
    ledger = Ledger(tmp_path / "2.sqlite", "n")
    assert ledger.state(PrivacySpend("user", 1e-3)).entries == 0
    ledger.close()


def test_the_encoder_has_no_larger_rank(bench: Bench) -> None:
    for rank in (0, bench.encoder.spec.rank + 1):
        with pytest.raises(InvalidSetting, match="the rank of the encoder's adapter"):
            bench.encoder.set_rank(rank)
