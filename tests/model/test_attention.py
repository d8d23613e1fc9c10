import pytest
import torch
from conftest import CONFIGS, random_model, some_tokens

from r1mini.model.attention import PackedAttention

close = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=CONFIGS, scope="module")
def kind(request):
    return random_model(**CONFIGS[request.param]).requires_grad_(False)


def positions(lengths):
    return torch.cat([torch.arange(length) for length in lengths])


def test_packed_sequences_see_only_themselves_and_their_parents(kind):
    a, b, c = (some_tokens(1, 12)[0, i : i + 4] for i in (0, 4, 8))
    # a; a and then b; a and then c; c alone
    lengths, after = [4, 4, 4, 4], [-1, 0, 0, -1]
    position_M = torch.cat(
        [torch.arange(4), torch.arange(4, 8), torch.arange(4, 8), torch.arange(4)]
    )
    got = kind.lm_head(
        kind.hidden(torch.cat([a, b, c, c]), position_M, PackedAttention(lengths, after))
    ).split(4)
    torch.testing.assert_close(torch.cat(got[:2]), kind(torch.cat([a, b])[None])[0], **close)
    torch.testing.assert_close(got[2], kind(torch.cat([a, c])[None])[0, 4:], **close)
    torch.testing.assert_close(got[3], kind(c[None])[0], **close)
