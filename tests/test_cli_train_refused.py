"""What `halfbridge train sgm` refuses: one line, and nothing is begun."""

import numpy as np
import pytest
from command import refused
from test_cli_train import MOONS, SMALL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mons"], "there is no data 'mons', neither by name nor as a path; did you mean 'moons'?"),
        (["--data", "no/folder"], "no file or folder no/folder"),
        (["--data", "moons(sead=3)"], "data 'moons' has no argument 'sead'; did you mean 'seed'?"),
        (["--data", "moons(20)"], "data 'moons' has an argument without a name, 20; it takes moons(n=None"),
        (["--data", "moons(n=)"], "cannot be read"),
        (["--data", "digits(size=9)", "--size", "8"], "size is given twice"),
        (["--data", "moons", "--size", "8,8,8"], "'8,8,8' must be a number of pixels, or height,width"),
        (["--process", "vpp"], "there is no process 'vpp'; did you mean 'VP'?"),
        (["--net", "ulet"], "there is no net 'ulet'; did you mean 'unet'?"),
        (["--net", "unet"], "net = 'unet' is for images"),
        (["--net", "mlp(hiden=8)"], "net 'mlp' has no argument 'hiden'; did you mean 'hidden'?"),
        (["--net", "mlp(shape=3)"], "shape follows from data, process and objective; leave it out"),
        (["--net", "mlp(hidden=1+x)"], "'1 + x' is not a literal"),
        (["--objective", "denosing"], "did you mean 'denoising'?"),
        (["--objective", "denoising(weigting=simple)"], "did you mean 'weighting'?"),
        (["--objective", "denoising(weighting=min_snir)"], "did you mean 'min_snr'?"),
        (["--objective", "ddpm", "--process", "vp"], "DiscreteVP"),
        (["--objective", "denoising(predicts=data)", "--predicts", "score"], "predicts = 'score'"),
        (["--predicts", "nois"], "there is no prediction 'nois'; did you mean 'noise'?"),
        (["--precondition", "edn"], "there is no precondition 'edn'; did you mean 'edm'?"),
        (["--precondition", "edm", "--predicts", "noise"], "a preconditioned network predicts data"),
        (["--classes", "--data", "swiss_roll(n=20)"], "has no classes"),
        (["--class-dropout", "0.1"], "class_dropout = 0.1"),
        (["--sample-solver", "hen"], "there is no solver 'hen'; did you mean 'Heun'?"),
        (["--optimizer", "adma"], "did you mean 'adam'?"),
        (["--batch-size", "7", "--accumulate", "2"], "pass batch_size=8"),
        (["--steps", "0"], "steps"),
        (["--steps", "ten"], "argument --steps: 'ten' is not a whole number"),
        (["--stepz", "3"], "unrecognized arguments: --stepz 3; did you mean '--steps'?"),
        (["--dtype", "float16"], "argument --dtype: there is no 'float16'; did you mean 'float64'?"),
        (["--device", "gpu"], "--device gpu"),
        (["--threads", "0"], "argument --threads: 0 must be at least 1"),
        (["--resume"], "holds no run to resume; resume 'auto' begins one"),
        (["--data", "moons(n=a)"], "data 'moons': n = a must be a whole number or None"),
        (["--data", "moons(seed=1.5)"], "data 'moons': seed = 1.5 must be a whole number"),
        (["--net", "mlp(hidden=1e9)"], "net 'mlp': hidden = 1000000000.0 must be a whole number"),
        (["--net", "mlp(learned_variance=True)"], "follows from data, process and objective"),
        (["--precondition", "edm(sigma=1)"], "did you mean 'sigma_data'?"),
        (["--objective", "vdm(schedule=linear)"], "schedule = 'linear' is not learned, or learned(hidden=32)"),
        (["--objective", "vdm(schedule=learned(hiden=8))"], "schedule 'learned' has no argument 'hiden'"),
        (["--objective", "denoising(weighting=3)"], "weighting = 3 must be a word or"),
        (["--objective", "denoising(weighting=[1])"], "weighting = [1] must be a word or"),
        (["--objective", "denoising(times=[1,2])"], "times = [1, 2] must be a word or"),
        (["--objective", "denoising(labels=foo)"], "labels = foo must be"),
        (["--objective", "ncsn(levels=1)"], "levels = 1 must be a list"),
        (["--objective", "ncsn(levels=a)"], "levels = a must be a list"),
        (["--objective", "high_order(lambda1=a)"], "lambda1 = a must be a number or None"),
        (["--process", "VP(beta_max=a)"], "beta_max = a must be a number"),
        (["--device", "meta"], "--device meta holds no numbers"),
        (["--threads", "99999"], "argument --threads: 99999 must be at most"),
        (["--lr", "1e30", "--clip", "inf", "--steps", "9"], "at step"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(capsys, tmp_path, arguments, message):
    assert message in refused(capsys, *MOONS, "--quiet", "--out", tmp_path / "run", *arguments)


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((0, 2)), "is empty"), (np.ones((5, 2)), "is constant"), (np.array([[1.0, 2.0], [np.nan, 1.0]]), "the first is row 1"),
])  # fmt: skip
def test_data_with_nothing_to_learn_is_refused_in_a_line(capsys, tmp_path, array, message):
    np.save(tmp_path / "data.npy", array)
    out = tmp_path / "run"
    assert message in refused(capsys, "train", "sgm", "--data", tmp_path / "data.npy", *SMALL, "--out", out, "--quiet")
    assert not out.exists()


def test_what_the_folder_is_for_is_looked_at_before_the_data(capsys, tmp_path):
    (tmp_path / "x.csv").write_text("")
    for out in ("x.csv", "x.csv/k"):
        told = ["--data", "mons", "--out", tmp_path / out]
        assert f"{tmp_path / 'x.csv'} is a file" in refused(capsys, "train", "sgm", *told)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    told = ["train", "sgm", "--data", "mons", "--out", tmp_path / "run"]
    assert "holds a run already" in refused(capsys, *told)
    assert "config.json is no run's config" in refused(capsys, *MOONS, "--out", tmp_path / "run", "--resume", "--quiet")
