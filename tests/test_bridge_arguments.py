"""What fit_bridge is called with."""

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, nets, small

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.solvers.field import FieldOutputError
from halfbridge.training import Settings
from halfbridge.training.bridge import (
    Bridge,
    Examples,
    NetworkRegressor,
    Normal,
    ReferenceChain,
    reference_iterate,
)
from halfbridge.training.bridge.arguments import ends


class Flat:
    """A law of numbers."""

    def sample(self, n, seed, first=0):
        return torch.zeros(n)


def test_a_network_whose_classes_are_names_has_none_to_be_told():
    class Named(MLP):
        classes = ("a", "b")

    both = [Named(2, hidden=8, depth=1).double(), nets(dtype=F64)[0]]
    assert small(nets=both, iterations=1).stopped == "iterations"


def test_a_fit_and_a_bridge_say_what_they_are():
    made = small(iterations=1)
    assert repr(made) == f"BridgeFit({ONE!r} in 3 steps, after half-bridge 2, stopped='iterations')"
    assert repr(Bridge(made.forward, made.backward)) == f"Bridge({ONE!r} in 3 steps)"


class Stateful(MLP):
    def get_extra_state(self):
        return 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"end": hb.reference.Gaussian([0.0] * 3, 1.0)}, ValueError, r"`end` has samples of shape \(3,\), but `start` has \(2,\)"),
        ({"iterations": 0}, ValueError, "`iterations` = 0 must be a whole number, at least 1"),
        ({"reference": hb.OU()}, TypeError, "`reference` is a OU; pass a ReferenceChain"),
        ({"nets": nets()}, ValueError, "`forward_net` has dtype torch.float32 and `start` gives states of torch.float64"),
        ({"nets": nets(dtype=F64)[:1] * 2}, ValueError, "are one network; pass two"),
        ({"nets": [MLP(2, hidden=8, depth=1, classes=3).double(), nets(dtype=F64)[0]]}, ValueError, "`forward_net` has classes"),
        ({"first": NEAR0.field(hb.VP())}, ValueError, "`first` belongs to VP"),
        ({"class_dropout": 0.1}, ValueError, "class_dropout = 0.1, but a bridge's networks have no classes"),
        ({"resume": True}, ValueError, "resume = True goes with a folder"),
        ({"plots": True}, ValueError, "plots = True goes with a folder"),
        ({"monitor_paths": 1}, ValueError, "`monitor_paths` = 1"),
        ({"step": 3}, TypeError, "there is no setting 'step'; did you mean 'steps'"),
        ({"start": Normal((2,), dtype=F64), "target": "scores"}, ValueError, "did you mean 'score'"),
        ({"start": [[1.0, 2.0]]}, ValueError, "`start` is a list; pass a floating tensor"),
        ({"end": torch.zeros(3, 2).log()}, ValueError, "`end` must be finite, but 6 of its 6"),
        ({"end": torch.distributions.Normal(torch.zeros(2), 1.0)}, TypeError, r"`end` is a Normal, whose sample\(n, seed, first\) fails"),
        ({"start": Flat()}, ValueError, r"`start`.sample\(1, 0, 0\) is \(1,\), torch.float32; it must be"),
        ({"settings": {"steps": 3}}, TypeError, "settings is a dict; pass a Settings"),
        ({"first": nets()[0]}, TypeError, "`first` is a MLP; pass a Field"),
        ({"stop": 0.1}, TypeError, r"`stop` is a float; pass a StopRule, such as StopRule\(kl=0.1, error=0.05\)"),
        ({"form": "diagonal"}, ValueError, "`form` = 'diagonal' is of variance='matched'; pass that too, or leave form out"),
        ({"nets": [lambda x, t: x, nets()[0]]}, TypeError, "`forward_net` is a function; pass a torch.nn.Module"),
        ({"nets": nets(dtype=torch.float16)}, ValueError, "`forward_net` is float16, where Adam's epsilon"),
        ({"precision": "bfloat16"}, ValueError, "keeps float32 weights and `forward_net` is torch.float64"),
        ({"nets": nets(), "start": torch.ones(4, 2), "end": torch.ones(3, 2), "precision": "float16"}, ValueError,
         "needs a CUDA GPU and `forward_net` is on cpu"),
        ({"coupling_size": -3}, ValueError, "`coupling_size` = -3"),
        ({"variance": "matched", "form": "full", "covariance_paths": 2}, ValueError,
         "`covariance_paths` = 2 paths do not determine a covariance in 2 dimensions"),
        ({"end": torch.ones(3, 2, dtype=torch.int64)}, ValueError, r"`end` is \(3, 2\), torch.int64; pass a floating tensor"),
        ({"cache": "dsk"}, ValueError, "`cache` = 'dsk' is no place for a cache; did you mean 'disk'"),
        ({"cache_limit": 1e9}, ValueError, "`cache_limit` = 1000000000.0 must be a number of bytes"),
        ({"cache_folder": 3}, TypeError, "`cache_folder` = 3 is a int; pass the path of a folder"),
        ({"refresh": 0}, ValueError, "`refresh` = 0"),
        ({"nets": [nets(dtype=F64)[0], Stateful(2, hidden=8, depth=1).double()]}, ValueError,
         r"`backward_net` has a state beside its tensors, of itself \(Stateful.get_extra_state\)"),
        ({"callback": True}, TypeError, "`callback` is a bool; pass a function of a BridgeState"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_a_folder_is_begun(changes, error, message, tmp_path):
    out = {} if changes.keys() & {"resume", "plots"} else {"out": tmp_path / "run"}
    with pytest.raises(error, match=message):
        small(**out, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda out: out[:, :1], r"shape \(1, 1\) for a state of shape \(1, 2\) \(from `backward_net`\)"),
        (lambda out: (out, out), r"returned a tuple \(from `backward_net`\)"),
        (lambda out: out.float(), r"dtype torch.float32 for a state of dtype torch.float64 \(from `backward_net`\)"),
    ],
)
def test_a_network_whose_output_is_not_like_the_state_is_refused_before_anything_is_written(tmp_path, output, message):
    good, bad = nets(dtype=F64)
    bad.register_forward_hook(lambda module, given, out: output(out))
    with pytest.raises(FieldOutputError, match=message):
        small(nets=[good, bad], out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    chain = ReferenceChain(ONE, 3)
    with pytest.raises(FieldOutputError):  # and in the loss: nothing is broadcast
        NetworkRegressor(good, bad, cache_paths=8, settings=Settings(steps=1)).fit(
            reference_iterate(NEAR0, NEAR1, chain).half_bridge
        )


def test_data_stays_where_it_is_and_what_is_sampled_goes_to_the_networks():
    data = NEAR0.sample(9, 0).float()
    both = ends(data, data, dict(zip(("forward_net", "backward_net"), (net.to("meta") for net in nets()), strict=True)))
    for law in both:
        assert law.data is data
        assert law.sample(3, 0).device.type == "meta"
    assert torch.equal(Examples(data).sample(5, 1), Examples(data, device="cpu").sample(5, 1))
