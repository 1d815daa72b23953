"""The flags of `halfbridge train bridge` that are its own."""

from __future__ import annotations

from halfbridge.parser import Parser, count, number, numbers, path
from halfbridge.training.bridge import TARGETS
from halfbridge.training.bridge.couplings import COUPLINGS
from halfbridge.training.bridge.covariances import FORMS
from halfbridge.training.bridge.network_regressor import METHODS
from halfbridge.training.bridge.regression import WEIGHTINGS
from halfbridge.training.bridge.room import WHERE

__all__ = ["add_method", "add_paths", "add_problem"]


def add_problem(parser: Parser) -> None:
    """The laws and the reference between them."""
    group = parser.add_argument_group("problem")
    for name, at in (("start", "0"), ("end", "T")):
        group.add_argument(
            f"--{name}", metavar="NAME|PATH", help=f"the law at time {at}: data, or normal (required, no default)"
        )
    group.add_argument(
        "--process",
        default="auto",
        metavar="NAME",
        help="the reference process, see names below (default: auto: that of --first, else Brownian)",
    )
    group.add_argument("--steps-of-chain", type=count, metavar="N", help="steps from 0 to T (default: 20)")
    group.add_argument(
        "--gammas",
        metavar="NAME",
        help="step sizes in these ratios; of dsb they are the step sizes themselves (default: steps of equal time)",
    )
    group.add_argument(
        "--times",
        type=numbers,
        metavar="X,X,...",
        help="in place of these two: the N + 1 times of the chain, 0 first and T last (default: by --steps-of-chain)",
    )
    group.add_argument(
        "--transitions",
        choices=["exact", "euler"],
        help="of the reference, those of the process or of Euler (default: exact; of dsb euler)",
    )


def add_method(parser: Parser) -> None:
    """What is fitted, with which networks, and when it stops."""
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        default="dsb",
        choices=METHODS,
        help="dsb: iterative proportional fitting; dsbm: iterative Markovian fitting, by bridge matching",
    )
    group.add_argument("--iterations", type=count, default=5, metavar="N", help="each of two half-bridges")
    group.add_argument(
        "--coupling",
        default="reference",
        choices=["reference", *COUPLINGS],
        help="pairs that dsbm begins from: the reference's, independent, or of minibatches ot or sinkhorn",
    )
    group.add_argument("--coupling-size", type=count, default=256, metavar="N", help="pairs of a minibatch")
    group.add_argument(
        "--target",
        choices=list(TARGETS),
        help="what networks are regressed onto (default: mean; increment with --variance matched and of dsbm)",
    )
    group.add_argument(
        "--variance",
        default="fixed",
        choices=["fixed", "matched"],
        help="of the kernels: 2 gamma, or the reverse kernels' own",
    )
    group.add_argument("--form", choices=FORMS, help="of --variance matched (default: diagonal)")
    group.add_argument("--weighting", default="kl", choices=WEIGHTINGS, help="of the loss")
    group.add_argument(
        "--first",
        type=path,
        metavar="RUN",
        help="make the first backward kernels of this run of train sgm, under the same process (default: train them)",
    )
    group.add_argument("--net", default="auto", metavar="NAME", help="both networks: unet for images, mlp for points")
    group.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of weights and data")
    group.add_argument(
        "--stop-kl",
        type=number,
        metavar="X",
        help="with --stop-error: stop where both half-bridges of an iteration moved by at most X nats (default: no such rule)",
    )
    group.add_argument(
        "--stop-error",
        type=number,
        metavar="X",
        help="with --stop-kl: and the energy distances at both ends are at most X, about 0 if perfect (default: no such rule)",
    )
    group.add_argument(
        "--stop-patience",
        type=count,
        metavar="N",
        help="stop where N iterations have not lowered the larger of these distances (default: no such rule)",
    )


def add_paths(parser: Parser) -> None:
    """The trajectories that it is fitted and measured on."""
    group = parser.add_argument_group("paths")
    group.add_argument("--cache-paths", type=count, default=1024, metavar="N", help="trajectories that are trained on")
    group.add_argument(
        "--refresh",
        type=count,
        metavar="N",
        help="steps until they are simulated anew (default: as many as see each state once)",
    )
    group.add_argument(
        "--cache", default="auto", choices=WHERE, help="where they are; auto: in memory while there is room"
    )
    group.add_argument("--cache-limit", type=count, metavar="BYTES", help="of auto (default: half of the free memory)")
    group.add_argument(
        "--cache-folder", type=path, metavar="FOLDER", help="of a cache on the disk (default: the system's)"
    )
    group.add_argument(
        "--covariance-paths", type=count, default=16384, metavar="N", help="that full covariances are estimated from"
    )
    group.add_argument(
        "--chunk",
        type=count,
        metavar="N",
        help="simulated at once, which bounds the memory (default: 8 batches; at most 2048 on a CPU)",
    )
    group.add_argument(
        "--monitor-paths", type=count, default=2048, metavar="N", help="that each iterate is measured on"
    )
