import copy

import safetensors.torch
import torch
from conftest import random_model, some_tokens

from r1mini.sampler.decode import FusedDecoder, fuse_linears


def test_fused_projections_share_memory_with_the_linears():
    model = random_model(attention_bias=True)
    attention = model.model.layers[0].self_attn
    linears = attention.q_proj, attention.k_proj, attention.v_proj
    before = [linear.weight.clone() for linear in linears]
    weight, bias = fuse_linears(linears)
    assert torch.cat(before).equal(weight) and len(bias) == len(weight)
    assert all(old.equal(linear.weight) for old, linear in zip(before, linears))
    with torch.no_grad():
        linears[1].weight.add_(1)
    assert weight[len(before[0]) :][: len(before[1])].equal(before[1] + 1)
    assert fuse_linears(linears)[0].data_ptr() == weight.data_ptr()  # nothing is copied again


def test_fused_projections_survive_training_and_saving(tmp_path):
    model = random_model()
    tokens_BT = some_tokens(1, 6)
    FusedDecoder(model)
    copied = copy.deepcopy(model)
    safetensors.torch.save_file(
        model.state_dict() | {"lm_head.weight": model.lm_head.weight.detach().clone()},
        tmp_path / "x",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(tokens_BT).sum().backward()
    optimizer.step()
    weight, _ = fuse_linears(
        (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj)
    )
    assert weight.equal(
        torch.cat(
            [model.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.up_proj.weight]
        )
    )
    assert not weight.equal(
        torch.cat(
            [copied.model.layers[0].mlp.gate_proj.weight, copied.model.layers[0].mlp.up_proj.weight]
        )
    )
    model.load_state_dict(copied.state_dict())
    torch.testing.assert_close(model(tokens_BT), copied(tokens_BT))
    assert weight.equal(
        fuse_linears((copied.model.layers[0].mlp.gate_proj, copied.model.layers[0].mlp.up_proj))[0]
    )
