"""Networks and noise schedules of diffusers: read from objects and folders, checked against diffusers' own steps."""

import json
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

import halfbridge as hb
from halfbridge.nets.diffusers import diffusers_field, diffusers_process, from_diffusers

N = 40
SHAPE = (2, 3, 8, 8)


def tiny(seed=0, **changes):
    """A random UNet2DModel of a few thousand weights."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False,
        "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DModel(**(config | changes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory):
    """A saved pipeline: its folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(N, prediction_type="v_prediction")).save_pretrained(folder)
    return folder


def states(seed=1):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def one_step(field, solver, k, j, x, z):
    """From step k to step j with the normal z, by the solver's own step in float64 coefficients."""
    return solver.step(field, x, float(k), float(j), lambda: z)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_train_timesteps": 50, "beta_start": 0.002, "beta_end": 0.3},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 17},
        {"trained_betas": [0.1, 0.02, 0.3]},
    ],
)
def test_betas_and_alphas_are_those_of_diffusers_to_the_rounding_of_its_float32(arguments):
    """diffusers rounds each beta (a few ulp of 6e-8) and multiplies up to a thousand float32 factors: 2e-5 at most."""
    scheduler = DDPMScheduler(**arguments)
    process, predicts = diffusers_process(scheduler)
    assert predicts == "noise"
    assert len(process.betas) == len(scheduler.betas) == process.T
    betas = torch.tensor(process.betas, dtype=torch.float64)
    assert torch.allclose(betas, scheduler.betas.double(), rtol=4e-7, atol=0)
    k = torch.arange(1, len(betas) + 1, dtype=torch.float64)
    assert torch.allclose(process.alpha(k) ** 2, scheduler.alphas_cumprod.double(), rtol=2e-5, atol=0)
    assert torch.allclose(process.alpha(k) ** 2, torch.cumprod(1 - betas, 0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("named", "predicts"), [("epsilon", "noise"), ("sample", "data"), ("v_prediction", "velocity")]
)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_a_step_of_ddim_is_diffusers_step_at_the_timestep_one_lower(model, named, predicts, schedule):
    scheduler = DDIMScheduler(N, beta_schedule=schedule, prediction_type=named, clip_sample=False)
    scheduler.set_timesteps(10)
    field = diffusers_field(model, scheduler)
    assert field.predicts == predicts
    x = states()
    for timestep in (36, 20, 0):
        theirs = scheduler.step(model(x, timestep).sample, timestep, x).prev_sample
        ours = one_step(field, hb.DDIM(), timestep + 1, max(timestep + 1 - 4, 0), x, None)
        if timestep == 0:
            ours = field.data(1.0, x)  # what every solver returns at sigma = 0
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() < 3e-6 * scale
        shifted = one_step(field, hb.DDIM(), timestep + 2, max(timestep - 2, 1), x, None)
        assert (shifted - theirs).abs().max() > 1e-4 * scale


@pytest.mark.parametrize("variance", ["small", "large"])
def test_an_ancestral_step_is_ddpms_with_the_same_noise(model, variance):
    scheduler = DDPMScheduler(N, clip_sample=False, variance_type=f"fixed_{variance}")
    field, x = diffusers_field(model, scheduler), states()
    solver = hb.Ancestral(variance={"small": "posterior", "large": "transition"}[variance])
    for timestep in (39, 17, 1):
        generator = torch.Generator().manual_seed(timestep)
        theirs = scheduler.step(model(x, timestep).sample, timestep, x, generator=generator).prev_sample
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(timestep))
        if variance == "large":  # diffusers' fixed_large is beta_k, our transition the same
            assert field.process.transition(timestep, timestep + 1)[1] == pytest.approx(
                scheduler.betas[timestep].item(), rel=1e-6
            )
        ours = one_step(field, solver, timestep + 1, timestep, x, z)
        assert (ours - theirs).abs().max() < 5e-6 * theirs.abs().max()


def test_a_whole_run_is_diffusers_own(model):
    scheduler = DDIMScheduler(N, clip_sample=False)
    scheduler.set_timesteps(10)
    x = y = states()
    for timestep in scheduler.timesteps:
        y = scheduler.step(model(y, timestep).sample, timestep, y).prev_sample
    grid = torch.tensor([*(scheduler.timesteps + 1).tolist(), 0.0], dtype=torch.float64)
    found = hb.solve(diffusers_field(model, scheduler), hb.DDIM(), x, grid=grid).x
    assert grid[0] == 37
    assert (found - y).abs().max() < 2e-5 * y.abs().max()


def test_learned_variances_are_split_off_by_the_channels():
    wide = tiny(out_channels=6)
    scheduler = DDPMScheduler(N, variance_type="learned_range", clip_sample=False)
    field, x = diffusers_field(wide, scheduler), states()
    assert torch.equal(field.evaluate(18.0, x), wide(x, torch.full((2,), 17.0)).sample[:, :3])
    # the mean of diffusers' own step, which splits its output likewise: at timestep 0 it adds no noise
    theirs = scheduler.step(wide(x, 0).sample, 0, x).prev_sample
    assert (field.data(1.0, x) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_pipelines_folder_is_read_whole_and_changes_no_generator(model, pipeline):
    state = torch.random.get_rng_state()
    field = diffusers_field(pipeline)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert field.predicts == "velocity"
    assert field.process == diffusers_process(DDPMScheduler(N))[0]
    x = states()
    assert torch.equal(field.evaluate(8.0, x), model(x, 7).sample)


def test_a_models_own_folder_and_the_schedulers_file_are_read(model, pipeline):
    net = from_diffusers(pipeline / "unet")
    x = states()
    assert torch.equal(net(x, torch.full((2,), 3.0)), model(x, 3).sample)
    assert not net.training
    assert net.classes == 0
    assert net.parameter_count == sum(p.numel() for p in model.parameters())
    from_all = [
        diffusers_process(p)
        for p in (pipeline, pipeline / "scheduler", pipeline / "scheduler" / "scheduler_config.json")
    ]
    assert len({process for process, _ in from_all}) == 1
    field = diffusers_field(pipeline / "unet", str(pipeline))
    assert torch.equal(field.evaluate(8.0, x), model(x, 7).sample)


def test_fractions_of_timesteps_reach_the_network(model):
    x = states()
    field = diffusers_field(model, DDPMScheduler(N))
    assert torch.equal(field.evaluate(8.5, x), model(x, torch.full((2,), 7.5)).sample)


def test_a_network_with_a_table_of_timesteps_is_shown_the_nearest():
    table = tiny(time_embedding_type="learned", num_train_timesteps=N)
    field, x = diffusers_field(table, DDPMScheduler(N)), states()
    for t, timestep in ((1.0, 0), (8.4, 7), (40.0, 39)):
        assert torch.equal(field.evaluate(t, x), table(x, torch.full((2,), timestep)).sample)


def test_classes_are_rows_of_the_models_table_and_no_class_is_the_row_that_was_named():
    classy, x, t = tiny(num_class_embeds=4), states(), torch.full((2,), 7.0)
    c, null = torch.tensor([0, 2]), torch.tensor([3, 3])
    net = from_diffusers(classy, null_class=3)
    assert (net.classes, from_diffusers(classy).classes, from_diffusers(classy, null_class=0).classes) == (3, 4, 4)
    one, none = classy(x, t, class_labels=c).sample, classy(x, t, class_labels=null).sample
    assert torch.equal(net(x, t, c), one)
    assert torch.equal(net(x, t, torch.tensor([-1, -1])), none)
    field = diffusers_field(classy, DDPMScheduler(N), classes=c, guidance=2.0, null_class=3)
    assert torch.allclose(field.evaluate(8.0, x), 3 * one - 2 * none, atol=1e-5)
    assert (one - none).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"class 3; the network has 0 \.\. 2"):
        diffusers_field(classy, DDPMScheduler(N), classes=3, null_class=3)
    with pytest.raises(ValueError, match="no row; pass classes, or null_class="):
        diffusers_field(classy, DDPMScheduler(N)).evaluate(8.0, x)
    with pytest.raises(ValueError, match="null_class = 4 is no row of the model's 4 classes"):
        from_diffusers(classy, null_class=4)
    with pytest.raises(ValueError, match="class_embed_type = 'timestep'"):
        from_diffusers(tiny(class_embed_type="timestep"))


CHAIN = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 10,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def test_a_config_without_a_prediction_type_predicts_noise():
    assert diffusers_process(CHAIN)[1] == "noise"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CHAIN | {"beta_schedule": "sigmoid"}, "DDPMScheduler has beta_schedule 'sigmoid'; only 'linear', 'scaled_linear', 'squared"),
        (CHAIN | {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'; only 'epsilon', 'sample', 'v_prediction'"),
        (CHAIN | {"predict_epsilon": False}, "predict_epsilon = False"),
        (CHAIN | {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
        (CHAIN | {"snr_shift_scale": 3.0}, r"snr_shift_scale = 3\.0"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 80.0}, "ScoreSdeVeScheduler has no beta_schedule"),
        ({k: v for k, v in CHAIN.items() if k != "beta_end"}, "DDPMScheduler has no beta_end"),
        (CHAIN | {"trained_betas": [0.1, 1.0]}, r"betas\[1\] = 1\.0"),
    ],
)  # fmt: skip
def test_schedules_that_are_not_read_are_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        diffusers_process(config)


@pytest.mark.parametrize("read", [from_diffusers, diffusers_process, diffusers_field])
def test_a_name_that_is_no_local_folder_is_refused_before_diffusers_is_asked(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="'google/ddpm-cat-256' is no local folder, and nothing is downloaded"):
        read("google/ddpm-cat-256")


def test_without_diffusers_the_extra_is_named(pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert diffusers_process(pipeline)[1] == "velocity"
    with pytest.raises(ImportError, match=r"pip install 'halfbridge\[diffusers\]'"):
        from_diffusers(pipeline)


def test_folders_that_hold_something_else_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"holds no model: there is no .*config\.json"):
        from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="holds no scheduler"):
        diffusers_process(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="holds a UNet2DConditionModel; only UNet2DModel"):
        from_diffusers(tmp_path)
    model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"no weights in \*\.safetensors, and pickled ones are never loaded"):
        from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        from_diffusers(tmp_path)


def test_what_is_no_model_or_scheduler_is_refused(model):
    with pytest.raises(TypeError, match="source is a Linear; pass a UNet2DModel"):
        from_diffusers(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="source is a int"):
        from_diffusers(3)
    with pytest.raises(TypeError, match="the scheduler is a Linear"):
        diffusers_process(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="scheduler is None and source is a model"):
        diffusers_field(model)
    with pytest.raises(ValueError, match="takes 3 channels and returns 4"):
        diffusers_field(tiny(out_channels=4), DDPMScheduler(N))


def test_a_model_with_attention_has_divergences_in_forward_mode():
    """Its maps are not contiguous after attention, and torch's forward-mode rule of group norm refuses such."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    field = diffusers_field(tiny(add_attention=True, **blocks).double(), DDPMScheduler(N))
    x = states()[:1].double()
    forward, reverse = (
        hb.divergence(lambda x: field.noise(7.0, x), x, hb.Hutchinson(2, mode=mode)).trace
        for mode in ("forward", "reverse")
    )
    assert torch.allclose(forward, reverse, rtol=1e-10)
