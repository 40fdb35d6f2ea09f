"""Toy-model training: instance-steps per second against tms-kit, occhio and our own autograd path.

Every program trains the same models: tied weights, ReLU output, batch 1,024, Adam. occhio can feed one batch to
all instances; ours and tms-kit draw one each, so occhio is timed both ways and the ratio is to the best of them.
"""

import contextlib
import io

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.timing import best_of, show
from toolkit.configs import ToyModel, ToyTraining
from toolkit.toy import _autograd_steps, _compiled_steps, _problem, start

BATCH = 1024
PROBLEMS = (  # instances, features, hidden, density, steps to time
    (16, 5, 2, 0.05, 200),
    (8, 400, 30, 0.1, 8),
    (8, 400, 30, 0.01, 8),
)


def report() -> None:
    """Print the table and the ratios."""
    rows = []
    for instances, n, m, density, steps in PROBLEMS:
        model = ToyModel(features=n, hidden=m, instances=instances, density=(density,))
        peers = {
            "tms-kit 0.4.1": tms_kit(model, steps),
            "occhio 0.2.3": occhio(model, steps, shared=False),
            "occhio, one batch for all": occhio(model, steps, shared=True),
            "torch autograd (ours)": autograd(model, steps),
            "torch autograd, compiled": autograd(model, steps, compiled=True),
        }
        mine = ours(model, 20 * steps, trained=0)
        late = ours(model, 20 * steps, trained=1500)
        best_peer = min(value for name, value in peers.items() if "ours" not in name and "compiled" not in name)
        label = f"n={n} m={m} p={density:g} x{instances}"
        for name, seconds in {**peers, "kernel, first steps": mine, "kernel, after 1,500": late}.items():
            rate = 1 / seconds
            rows.append((label, name, f"{seconds * 1e6:,.1f}", f"{rate:,.0f}", f"{best_peer / seconds:.2f}"))
        rows.append((label, "floor: " + floor(model), "", "", ""))
    head = ("problem", "program", "us / instance-step", "instance-steps / s", "times best peer")
    show(f"Toy training, batch {BATCH}, {torch.get_num_threads()} threads", head, rows)


def floor(model: ToyModel) -> str:
    """Work that cannot be left out: encode and decode the rows that are on, and the decoder's dense product."""
    p, n, m = model.density[0], model.features, model.hidden
    filled = BATCH * (1 - (1 - p) ** n)
    flops = 2 * filled * n * m + 4 * BATCH * n * p * m
    return f"{flops / 1e6:.2f} Mflop ({flops / 1e11 * 1e6:.1f} us at 100 Gflop/s), {BATCH * n * p:,.0f} draws"


def ours(model: ToyModel, steps: int, *, trained: int) -> float:
    """Seconds an instance-step of the compiled kernel, after some training."""
    problem = _problem(model, ToyTraining(toy_batch=BATCH), 0)
    state = start(model, 0)
    with threadpool_limits(1, user_api="blas"):
        if trained:
            _compiled_steps(problem, state, 0, np.full(trained, 3e-3))
        call = lambda: _compiled_steps(problem, state, trained, np.full(steps, 1e-3))  # noqa: E731
        return best_of(call) / steps / model.instances


def autograd(model: ToyModel, steps: int, *, compiled: bool = False) -> float:
    """The same through torch's autograd, as it runs on CUDA; `compiled` puts torch.compile round loss and gradient."""
    problem = _problem(model, ToyTraining(toy_batch=BATCH), 0)
    state = start(model, 0)
    if not compiled:
        call = lambda: _autograd_steps(problem, state, 0, np.full(steps, 1e-3))  # noqa: E731
        return best_of(call) / steps / model.instances
    from toolkit.samplers import sample
    from toolkit.toy import density, loss

    chances = density(model)
    gradient = torch.compile(
        torch.func.grad(lambda W, b, x: loss(model, W.mT, b, x).sum(), argnums=(0, 1)), dynamic=False
    )

    def run() -> None:
        for step in range(steps):
            gradient(state["W"], state["b"], sample(chances, BATCH, seed=0, step=step))

    return best_of(run) / steps / model.instances


def tms_kit(model: ToyModel, steps: int) -> float:
    """tms-kit's own loop, its progress bar off."""
    from tms_kit.data import IIDFeatureGenerator
    from tms_kit.loss import ImportanceWeightedLoss
    from tms_kit.model import Model
    from tms_kit.optimize import optimize
    from tms_kit.tms import TMS

    n, instances = model.features, model.instances
    bundle = TMS()
    bundle.model = Model(n_features=n, n_inst=instances, d_hidden=model.hidden, device="cpu")
    bundle.data_gen = IIDFeatureGenerator(n, instances, torch.full((instances, n), model.density[0]))
    bundle.loss_calc = ImportanceWeightedLoss(n, torch.ones(instances, n))
    call = lambda: optimize(bundle, steps=steps, batch_size=BATCH, disable_tqdm=True)  # noqa: E731
    return best_of(call) / steps / instances


def occhio(model: ToyModel, steps: int, *, shared: bool) -> float:
    """occhio's ModelGrid; `shared` lets it feed one batch to every instance."""
    from occhio.autoencoder import TiedLinearRelu
    from occhio.distributions.sparse import SparseUniform
    from occhio.model_grid import Axis, ModelGrid
    from occhio.toy_model import ToyModel as Theirs

    def create(params: dict[str, torch.Tensor]) -> Theirs:
        generator = torch.Generator().manual_seed(0 if shared else int(params["seed"]))
        distribution = SparseUniform(model.features, model.density[0], generator=generator)
        return Theirs(distribution=distribution, ae=TiedLinearRelu(model.features, model.hidden))

    grid = ModelGrid(create, [Axis("seed", list(range(model.instances)))], cache_samples=shared)
    with contextlib.redirect_stderr(io.StringIO()):
        return best_of(lambda: grid.fit(steps, batch_size=BATCH)) / steps / model.instances
