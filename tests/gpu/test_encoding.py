"""Items encoded on a GPU against those of a processor."""

from pathlib import Path

import numpy as np

from common.encoder.cache import encode_items
from common.encoder.spec import DEFAULT_ENCODER
from tests.client.federation import make_bench
from tests.gpu.marks import GPU

pytestmark = GPU


def test_items_have_the_vectors_of_a_processor(tmp_path: Path) -> None:
    here, there = (
        make_bench(DEFAULT_ENCODER, tmp_path / "here"),
        make_bench(DEFAULT_ENCODER, tmp_path / "there", "cuda"),
    )
    assert there.cache._hidden.device.type == "cuda"
    for bench in (here, there):
        bench.encoder.set_adapter(bench.base)
    expected = encode_items(here.encoder, here.cache)
    np.testing.assert_allclose(encode_items(there.encoder, there.cache), expected, rtol=0, atol=2e-4)
    np.testing.assert_allclose(there.encoder.encode(there.texts), expected, rtol=0, atol=2e-4)
